package nsmount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// selfExe is this program, also where its file has been replaced or removed.
const selfExe = "/proc/self/exe"

const (
	ownNamespace  = "/proc/self/ns/mnt"
	initNamespace = "/proc/1/ns/mnt"
)

// Command prepares this program's re-execution with args (without the
// program's name) in a new mount namespace. files are the child's descriptors
// from 3 on. It has to be started by Start, not by its own Start method.
func Command(args []string, files ...*os.File) (*exec.Cmd, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("cannot make a mount namespace: %w", fs.ErrPermission)
	}
	cmd := exec.Command(selfExe, args...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = files
	// Cloneflags and not Unshareflags: for the latter Go remounts / as private,
	// and the host's unmounts would no longer reach the child. No Pdeathsig
	// either: it is sent when the thread that started the child ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: sys.CloneMountNS}
	return cmd, nil
}

// Start starts what Command prepared, so that its namespace is a copy of PID
// 1's, whichever the caller is in. The caller's own threads stay where they are.
func Start(cmd *exec.Cmd) error {
	same, err := inInitNamespace()
	if err != nil {
		return err
	}
	if same {
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("cannot start in a mount namespace of its own: %w", err)
		}
		return nil
	}
	return sys.OnThread(func() error {
		ns, err := os.Open(initNamespace)
		if err != nil {
			return fmt.Errorf("cannot open the mount namespace of process 1: %w", err)
		}
		defer ns.Close()
		if err := sys.EnterMountNS(ns); err != nil {
			return fmt.Errorf("cannot enter the mount namespace of process 1: %w", err)
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("cannot start in a copy of process 1's mount namespace: %w", err)
		}
		return nil
	})
}

// Isolate is the first thing that the child does: it cuts the way of mounts
// from here to the host, and fails unless this is a namespace of our own.
func Isolate() error {
	same, err := inInitNamespace()
	if err != nil {
		return err
	}
	if same {
		return errors.New("cannot isolate mounts: this is process 1's mount namespace, not one of our own")
	}
	err = (*sys.Kernel)(nil).MakeSlave()
	if errors.Is(err, syscall.EINVAL) {
		// The kernel's answer where a process's root is a plain folder.
		return errors.New("cannot isolate mounts: / is no mount point, as in a chroot: call liveupd from outside with --root DIR, or mount --bind DIR DIR before the chroot")
	}
	if err != nil {
		return fmt.Errorf("cannot isolate mounts: %w", err)
	}
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("cannot isolate mounts: %w", err)
	}
	for _, m := range mounts {
		if m.Shared != 0 {
			return fmt.Errorf("cannot isolate mounts: %s is still in peer group %d", m.Point, m.Shared)
		}
	}
	return nil
}

// inInitNamespace tells whether this process is in PID 1's mount namespace.
func inInitNamespace() (bool, error) {
	own, err := os.Readlink(ownNamespace)
	if err != nil {
		return false, fmt.Errorf("cannot tell the mount namespace: %w", err)
	}
	theirs, err := os.Readlink(initNamespace)
	if err == nil {
		return own == theirs, nil
	}
	if !errors.Is(err, fs.ErrPermission) {
		return false, fmt.Errorf("cannot tell the mount namespace of process 1: %w", err)
	}
	// The link takes the right to trace PID 1, mountinfo does not. No two
	// namespaces have a mount of the same number.
	ours, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	inits, err := sys.ReadMountinfo("/proc/1/mountinfo")
	if err != nil {
		return false, err
	}
	return shareMount(ours, inits), nil
}

// shareMount tells whether two lists come from one namespace.
func shareMount(a, b []sys.Mount) bool {
	ids := make(map[int]bool, len(a))
	for _, m := range a {
		ids[m.ID] = true
	}
	for _, m := range b {
		if ids[m.ID] {
			return true
		}
	}
	return false
}
