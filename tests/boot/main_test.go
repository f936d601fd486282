// Package boot breaks an update in the middle of its commit and boots the machine: real
// initrds and real kernels in qemu, and systemd's units on booted containers.
package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/tests/machine"
)

// The test binary is also the process that is killed.
func TestMain(m *testing.M) {
	if nsmount.ChildMain() {
		return
	}
	if len(os.Args) == 6 && os.Args[1] == "die" {
		if err := die(os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// die carries out verb on root and kills itself before the nth rename after the
// commit point (of a recovery: before the nth of all).
func die(verb, root, source, nth string) error {
	at, err := strconv.Atoi(nth)
	if err != nil {
		return err
	}
	var states, renames atomic.Int64
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		switch {
		case c.Name != "renameat2":
		case c.To == "state":
			states.Add(1) // staging first, then committing
		case c.To != "steps" && (verb == "recover" || states.Load() >= 2):
			if int(renames.Add(1)) == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		return sys.Fault{}
	})
	req := engine.Request{Verb: verb, Root: root, AllowUnsigned: true, NoPrompt: true, Keep: 2}
	if source != "" {
		req.Source = "tree:" + source
	}
	_, err = (&engine.Engine{Kernel: k}).Run(context.Background(), req, engine.Events{})
	return err
}

// killed runs verb on root in a child, which dies at the nth rename.
func killed(t *testing.T, verb, root, source string, nth int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "die", verb, root, source, strconv.Itoa(nth))
	out, err := cmd.CombinedOutput()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s was not killed at rename %d: %v: %s", verb, nth, err, out)
	}
}

// run runs a program of the host, which must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// withMounted mounts images (at "/", "/var") while do runs.
func withMounted(t *testing.T, images map[string]string, do func(root string)) {
	t.Helper()
	root, err := os.MkdirTemp("", "boot-")
	if err != nil {
		t.Fatal(err)
	}
	var devices, mounts []string
	done := false
	end := func() {
		if done {
			return
		}
		done = true
		for _, mount := range slices.Backward(mounts) {
			run(t, "umount", mount)
		}
		for _, d := range devices {
			run(t, "losetup", "--detach", d)
		}
		if err := os.Remove(root); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	for _, at := range []string{"/", "/var"} {
		image, ok := images[at]
		if !ok {
			continue
		}
		device := run(t, "losetup", "--find", "--show", image)
		devices = append(devices, device)
		run(t, "mount", device, filepath.Join(root, at))
		mounts = append(mounts, filepath.Join(root, at))
	}
	do(root)
	end()
}

// state is that of the newest transaction in a mounted root.
func state(root string) string {
	found, _ := filepath.Glob(filepath.Join(root, ".liveupd/tx/*/state"))
	if len(found) == 0 {
		return ""
	}
	b, _ := os.ReadFile(found[len(found)-1])
	_, rest, _ := strings.Cut(string(b), `"state":"`)
	s, _, _ := strings.Cut(rest, `"`)
	return s
}

// many is how many files the updates of these tests exchange.
const (
	many = 200
	slow = 6000 // a swap that can be met
)

// manyFiles lays the old files into a root.
func manyFiles(root string, n int, dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
		for i := range n {
			if err := os.WriteFile(filepath.Join(root, dir, fmt.Sprint(i)), fmt.Appendf(nil, "old %d\n", i), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// countNew tells how many of a folder's files are new ones.
func countNew(t *testing.T, files int, dir string) int {
	t.Helper()
	n := 0
	for i := range files {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(b), "new ") {
			n++
		}
	}
	return n
}

// setUp runs liveupd setup on a root, without making initrds.
func setUp(t *testing.T, root string) {
	t.Helper()
	run(t, machine.Program(t, "liveupd"), "setup", "--root", root, "--yes")
}
