package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"strings"
	"syscall"
	"time"
)

// initName is the name under which this program is an init: it recovers the root and
// then is the real one. Written by package recovery as a link.
const initName = "liveupd-init"

// inits are tried in the kernel's own order, with systemd where distributions have it.
var inits = []string{"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init", "/bin/sh"}

// beInit is the life of PID 1 until the real init: for machines without an initrd,
// with init=/usr/local/lib/liveupd/liveupd-init on the kernel's command line.
// liveupd.init= names another init.
func beInit(args []string) int {
	console := os.Stderr
	mounted := false
	if _, err := os.Stat("/proc/self/mountinfo"); err != nil {
		if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
			fmt.Fprintf(console, "liveupd-init: cannot mount /proc: %v\n", err)
		} else {
			mounted = true
		}
	}
	if !off() {
		initRecover(console)
	}
	programs := append(realInit(), inits...)
	if mounted {
		_ = syscall.Unmount("/proc", 0) // the real init mounts over it otherwise
	}
	for _, program := range programs {
		err := syscall.Exec(program, append([]string{program}, args...), os.Environ())
		fmt.Fprintf(console, "liveupd-init: cannot execute %s: %v\n", program, err)
	}
	return 1
}

// realInit is what liveupd.init= names.
func realInit() []string {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil
	}
	var program []string
	for f := range strings.FieldsSeq(string(b)) {
		if v, ok := strings.CutPrefix(f, "liveupd.init="); ok && path.Base(v) != initName {
			program = []string{v}
		}
	}
	return program
}

// initRecover returns when the tree is whole.
func initRecover(console *os.File) {
	for range 3 {
		rec, err := atBoot("/", false, console)
		warnings(console, rec)
		if err == nil {
			if rec.Did != "" {
				fmt.Fprintf(console, "liveupd-init: %s\n", sentence("/", rec))
				leaveNote(console, rec)
			}
			return
		}
		person(console, "/", false, rec, err)
		if err := shell(); err != nil {
			fmt.Fprintf(console, "liveupd-init: %v\n", err)
		}
	}
	// A root that is half old and half new is not booted, and the end of PID 1 would
	// be a panic of the kernel, which may reset the machine again and again.
	fmt.Fprintln(console, "liveupd-init: the boot stops here; reset the machine to try again")
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	for {
		time.Sleep(time.Hour)
	}
}

// leaveNote tells the unit that comes later that PID 1 is from a whole tree.
func leaveNote(console *os.File, rec recovered) {
	var run, root syscall.Stat_t
	err := syscall.Stat("/run", &run)
	if err == nil {
		err = syscall.Stat("/", &root)
	}
	if err == nil && run.Dev == root.Dev {
		// As systemd mounts it; it leaves one that is there.
		err = syscall.Mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_STRICTATIME, "mode=0755,size=20%")
	}
	if err == nil {
		err = writeNote(bootNote, rec.ID)
	}
	if err != nil {
		fmt.Fprintf(console, "liveupd-init: cannot note the recovery: %v\n", err)
	}
}

// shell gives the console to a person, and returns when they leave it. The tree is
// mixed: a program may not start.
func shell() error {
	var last error
	for _, argv := range [][]string{{"/sbin/sulogin"}, {"/bin/busybox", "sh"}, {"/bin/sh"}} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		began := time.Now()
		if last = cmd.Start(); last != nil {
			continue
		}
		last = cmd.Wait()
		if last == nil || time.Since(began) > 5*time.Second {
			return nil
		}
	}
	return fmt.Errorf("no shell starts: %w", last)
}
