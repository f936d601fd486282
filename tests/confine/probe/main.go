// Command probe tries from inside a sandbox what leads out of it, one thing at a time, and
// prints "through" where it got there and the error where not.
package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "want: probe WHAT [ARGS]")
		os.Exit(2)
	}
	try, ok := probes[os.Args[1]]
	if !ok {
		fmt.Fprintln(os.Stderr, "no such probe:", os.Args[1])
		os.Exit(2)
	}
	if err := try(os.Args[2:]); err != nil {
		fmt.Println(os.Args[1]+":", err)
		return
	}
	fmt.Println("through")
}

// reached is nil where the kernel got past its look at the capability: it says what else is
// wrong with a call that is meant to do nothing.
func reached(err error, harmless ...unix.Errno) error {
	for _, errno := range harmless {
		if errors.Is(err, errno) {
			return nil
		}
	}
	return err
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

var probes = map[string]func(args []string) error{
	// Of CAP_SYS_TIME alone: neither a time nor a zone is set.
	"clock":    func([]string) error { return raw(unix.SYS_SETTIMEOFDAY, 0, 0) },
	"reboot":   func([]string) error { return reached(raw(unix.SYS_REBOOT, 0, 0, 0, 0), unix.EINVAL) },
	"module":   func([]string) error { return reached(raw(unix.SYS_DELETE_MODULE, 0, unix.O_NONBLOCK), unix.EFAULT) },
	"mount":    func([]string) error { return unix.Mount("none", "/mnt", "tmpfs", 0, "") },
	"nice":     func([]string) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) },
	"hostname": func(a []string) error { return unix.Sethostname([]byte(a[0])) },
	"shm": func(a []string) error {
		key, err := strconv.Atoi(a[0])
		if err != nil {
			return err
		}
		_, err = unix.SysvShmGet(key, 1, 0)
		return err
	},
	"kill": func(a []string) error {
		pid, err := strconv.Atoi(a[0])
		if err != nil {
			return err
		}
		return unix.Kill(pid, unix.SIGKILL)
	},
	"init": func(a []string) error {
		b, err := os.ReadFile("/proc/1/cmdline")
		if err == nil && !strings.HasPrefix(strings.ReplaceAll(string(b), "\x00", " "), a[0]) {
			err = fmt.Errorf("process 1 is %q", b)
		}
		return err
	},
	"connect": func(a []string) error {
		c, err := net.DialTimeout("unix", a[0], 5*time.Second)
		if err == nil {
			c.Close()
		}
		return err
	},
	"device": func(a []string) error {
		if err := unix.Mknod(a[0], unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
			return err
		}
		f, err := os.Open(a[0])
		if err != nil {
			return err
		}
		_, err = f.Read(make([]byte, 1))
		return err
	},
	// What is written is what was read.
	"rewrite": func(a []string) error {
		b, err := os.ReadFile(a[0])
		if err != nil {
			return err
		}
		return os.WriteFile(a[0], b, 0o644)
	},
	"read": func(a []string) error {
		err := errors.New("none of them is there")
		for _, name := range a {
			var f *os.File
			if f, err = os.Open(name); err != nil {
				continue
			}
			if st, serr := f.Stat(); serr == nil && st.IsDir() {
				var names []string
				if names, err = f.Readdirnames(1); err == nil && len(names) > 0 {
					return nil
				}
			} else if _, err = f.Read(make([]byte, 1)); err == nil {
				return nil
			}
		}
		return err
	},
	// handle FOLDER TYPE HEX TEXT opens a file by its handle through a folder of its file system.
	"handle": func(a []string) error {
		dir, err := unix.Open(a[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		kind, err := strconv.Atoi(a[1])
		if err != nil {
			return err
		}
		h, err := hex.DecodeString(a[2])
		if err != nil {
			return err
		}
		fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(int32(kind), h), unix.O_RDWR)
		if err != nil {
			return err
		}
		b := make([]byte, 100)
		n, err := unix.Read(fd, b)
		if err == nil && string(b[:n]) != a[3] {
			err = fmt.Errorf("it holds %q", b[:n])
		}
		return err
	},
	"keys": func([]string) error {
		// The session's keyring is the caller's.
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
		return err
	},
	"bpf": func([]string) error { return reached(raw(unix.SYS_BPF, 0, 0, 0), unix.EINVAL, unix.EFAULT) },
	"perf": func([]string) error {
		return reached(raw(unix.SYS_PERF_EVENT_OPEN, 0), unix.EFAULT, unix.EINVAL, unix.EACCES)
	},
	"io_uring": func([]string) error { return reached(raw(unix.SYS_IO_URING_SETUP, 0, 0), unix.EFAULT, unix.EINVAL) },
	"clone3":   func([]string) error { return reached(raw(unix.SYS_CLONE3, 0, 0), unix.EINVAL, unix.EFAULT) },
	"syslog":   func([]string) error { return raw(unix.SYS_SYSLOG, 10, 0, 0) },
	"vsock":    func([]string) error { _, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); return err },
	"child": func([]string) error {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS}})
		if err == nil {
			_, err = p.Wait()
		}
		return err
	},
	"allocate": func(a []string) error {
		n, err := strconv.Atoi(a[0])
		if err != nil {
			return err
		}
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		return nil
	},
	"processes": func(a []string) error {
		n, err := strconv.Atoi(a[0])
		if err != nil {
			return err
		}
		for range n {
			p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
			if err != nil {
				return err
			}
			defer p.Kill() //nolint:errcheck // it ends with the sandbox
		}
		return nil
	},
}
