package nsmount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/internal/sys"
)

func TestIsolate(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mount(t, dir, "-t", "tmpfs", "tmpfs")
	run(t, "mount", "--make-shared", dir)
	for _, sub := range []string{"ours", "theirs"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")

	h := startHelper(t, "isolate")
	if got := h.read(t); got != "ready" {
		t.Fatal(got)
	}
	own, err := os.Readlink(ownNamespace)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.ask(t, "ns"); got == own {
		t.Errorf("the child is in our mount namespace %s", got)
	}
	// Nothing gets out.
	if got := h.ask(t, "mount "+ours); got != "ok" {
		t.Fatal(got)
	}
	if mounted(t, ours) {
		t.Error("a mount of the child is seen by the host")
	}
	// What the host mounts and unmounts gets in.
	run(t, "mount", "-t", "tmpfs", "tmpfs", theirs)
	if got := h.ask(t, "mounted "+theirs); got != "1" {
		t.Errorf("a mount by the host is seen %s times by the child; want once", got)
	}
	run(t, "umount", theirs)
	if got := h.ask(t, "mounted "+theirs); got != "0" {
		t.Errorf("an unmount by the host left %s mounts in the child", got)
	}
}

// The negative control: without Isolate a mount gets out.
func TestWithoutIsolate(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mount(t, dir, "-t", "tmpfs", "tmpfs")
	run(t, "mount", "--make-shared", dir)
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	h := startHelper(t, "stay")
	if got := h.read(t); got != "ready" {
		t.Fatal(got)
	}
	if got := h.ask(t, "mount "+sub); got != "ok" {
		t.Fatal(got)
	}
	if !mounted(t, sub) {
		t.Error("the host does not see the mount: TestIsolate shows nothing")
	}
	if got := h.ask(t, "umount "+sub); got != "ok" {
		t.Fatal(got)
	}
}

func mounted(t *testing.T, point string) bool {
	t.Helper()
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.Point == point {
			return true
		}
	}
	return false
}

func TestIsolateRefusesInitNamespace(t *testing.T) {
	needRoot(t)
	same, err := inInitNamespace()
	if err != nil {
		t.Fatal(err)
	}
	if !same {
		t.Skip("the tests run in a mount namespace of their own")
	}
	if err := Isolate(); err == nil || !strings.Contains(err.Error(), "process 1's") {
		t.Errorf("Isolate() = %v; want a refusal", err)
	}
}

// Started from another namespace, the child still gets a copy of PID 1's. The
// negative control: started the plain way it does not.
func TestStartFromElsewhere(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	h := startHelperAs(t, sys.ClonePIDNS, "init")
	h.read(t)
	if got := h.ask(t, "mount "+dir); got != "ok" {
		t.Fatal(got)
	}
	for verb, want := range map[string]string{"start": "0", "plainstart": "1"} {
		if got := h.ask(t, verb+" "+dir); got != want {
			t.Errorf("%s: the child sees %s mounts of its parent's; want %s", verb, got, want)
		}
	}
}
