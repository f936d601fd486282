package nsmount

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// testChild is what the test binary does in another namespace.
func testChild(args []string) error {
	switch args[0] {
	case "isolate":
		if err := Isolate(); err != nil {
			return err
		}
	case "writable":
		if err := makeWritableUntil(args[1], args[2], args[3]); err != nil {
			return err
		}
	case "stay": // in a namespace that is not isolated
	case "init": // process 1 of a pid namespace, whose child is in another mount namespace
		if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return err
		}
		cmd, err := Command([]string{"child", "stay"})
		if err != nil {
			return err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	case "unprivileged":
		for _, set := range []func() error{func() error { return syscall.Setgroups(nil) }, func() error { return syscall.Setgid(65534) }, func() error { return syscall.Setuid(65534) }} {
			if err := set(); err != nil {
				return err
			}
		}
		fmt.Fprintln(os.Stdout, errnoName(checkUnprivileged(args[1])))
		return nil
	case "view": // a program that does not end, in the view of a root without an update
		r, err := Open(args[1], true)
		if err != nil {
			return err
		}
		v, err := OpenView(context.Background(), nil, ViewOptions{Root: r})
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, "started")
		_, err = v.Run(context.Background(), []string{"sleep", args[2]})
		return err
	case "count":
		n, err := countMounts(args[1])
		fmt.Fprintln(os.Stdout, n)
		return err
	}
	fmt.Fprintln(os.Stdout, "ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "write":
			fmt.Fprintln(os.Stdout, errnoName(tryWrite(arg)))
		case "mount":
			fmt.Fprintln(os.Stdout, errnoName(syscall.Mount("liveupd-test", arg, "tmpfs", 0, "")))
		case "umount":
			fmt.Fprintln(os.Stdout, errnoName(syscall.Unmount(arg, 0)))
		case "mounted":
			n, err := countMounts(arg)
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stdout, n)
		case "start", "plainstart": // a child that counts what is mounted on arg
			cmd, err := Command([]string{"child", "count", arg})
			if err != nil {
				return err
			}
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			start := Start
			if verb == "plainstart" {
				start = (*exec.Cmd).Start
			}
			if err := errors.Join(start(cmd), cmd.Wait()); err != nil {
				return err
			}
		case "options":
			mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
			if err != nil {
				return err
			}
			for _, m := range mounts {
				if m.Point == arg {
					fmt.Fprintln(os.Stdout, m.Options)
					break
				}
			}
		case "ns":
			link, err := os.Readlink("/proc/self/ns/mnt")
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stdout, link)
		default:
			return fmt.Errorf("no such verb: %s", verb)
		}
	}
	return lines.Err()
}

func countMounts(point string) (n int, err error) {
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	for _, m := range mounts {
		if m.Point == point {
			n++
		}
	}
	return n, err
}

func errnoName(err error) string {
	if err == nil {
		return "ok"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}
