package sys

import (
	"errors"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// CloneMountNS and the others are the namespaces that a child is started in, for
// syscall.SysProcAttr.Cloneflags.
const (
	CloneMountNS = unix.CLONE_NEWNS
	ClonePIDNS   = unix.CLONE_NEWPID
	CloneIPCNS   = unix.CLONE_NEWIPC
	CloneUTSNS   = unix.CLONE_NEWUTS
)

// OnThread runs f on an operating system thread of its own, which ends with
// it: f may move it into other namespaces. The thread is never the process's
// first, which /proc/self stands for.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Hold the first thread, so that the next goroutine gets another.
			err := OnThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// Never unlocked: the runtime ends the thread with the goroutine.
		done <- f()
	}()
	return <-done
}

// EnterMountNS moves the calling thread, and no other, into the mount namespace
// ns (an open /proc/PID/ns/mnt); its root and working directory become that
// namespace's root. Only inside OnThread.
func EnterMountNS(ns *os.File) error {
	defer runtime.KeepAlive(ns)
	return retry("setns", ns.Name(), func() error {
		// A thread that shares its root directory with others cannot change namespaces.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
	})
}

// Confine takes every capability but those in keep from what the calling thread
// executes from now on, and forbids it to gain any by set-id programs.
func Confine(keep []int) error {
	kept := map[int]bool{}
	for _, c := range keep {
		kept[c] = true
	}
	for c := 0; c <= 63; c++ {
		if kept[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_AUDIT_READ {
			break // beyond the last one that this kernel knows
		}
		if err != nil {
			return os.NewSyscallError("prctl PR_CAPBSET_DROP", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_CAP_AMBIENT", err)
	}
	return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

// ValidatorCapabilities are those that programs which check a configuration as
// root are known to need: they change owners, drop to a user of their own, bind
// low ports and raise limits. None of them mounts, makes devices, traces,
// loads modules or reaches a file by its handle.
func ValidatorCapabilities() []int {
	return []int{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
		unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETPCAP, unix.CAP_SETFCAP, unix.CAP_NET_BIND_SERVICE,
		unix.CAP_SYS_CHROOT, unix.CAP_SYS_RESOURCE, unix.CAP_IPC_LOCK, unix.CAP_SYS_NICE, unix.CAP_AUDIT_WRITE,
	}
}

// CloseOnExec marks every descriptor from first on to be closed by execve(2).
func CloseOnExec(first uint) error {
	err := unix.CloseRange(first, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return &UnsupportedError{Feature: "close_range", Needs: "Linux 5.11"}
	}
	return os.NewSyscallError("close_range", err)
}

// BlockDeviceReadOnly tells whether the block device itself refuses writes, as
// dm-verity's and write-protected ones do, and what device-mapper calls it.
func BlockDeviceReadOnly(dev uint64) (readOnly bool, mapper string) {
	dir := sysDevBlock(dev)
	ro, err := os.ReadFile(dir + "/ro")
	if err != nil || len(ro) == 0 || ro[0] != '1' {
		return false, ""
	}
	uuid, err := os.ReadFile(dir + "/dm/uuid")
	if err != nil {
		return true, ""
	}
	return true, string(uuid)
}

func sysDevBlock(dev uint64) string {
	return "/sys/dev/block/" + strconv.Itoa(int(unix.Major(dev))) + ":" + strconv.Itoa(int(unix.Minor(dev)))
}

// CloneParent makes a child the caller's sibling, for syscall.SysProcAttr.Cloneflags.
const CloneParent = unix.CLONE_PARENT

// DieWithParent has the kernel kill this process when the thread that started it ends.
func DieWithParent() error {
	return os.NewSyscallError("prctl PR_SET_PDEATHSIG", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0))
}

// SocketPair makes two connected sockets that descriptors can be passed through.
func SocketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// ReceiveFile takes one descriptor that comes through a socket, with what names it.
func ReceiveFile(socket *os.File) (*os.File, error) {
	defer runtime.KeepAlive(socket)
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	if len(messages) != 1 {
		return nil, errors.New("cannot receive a descriptor: none came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("cannot receive a descriptor: none came"), err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}
