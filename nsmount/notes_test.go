package nsmount

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/internal/sys"
)

// keep is what a child keeps open to its end.
var keep *Root

// makeWritableUntil makes a root writable and kills this process in front of
// the n-th call; it stays where there are fewer.
func makeWritableUntil(root, notes, n string) error {
	limit, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	calls := 0
	k := sys.WithHook(func(sys.Call) sys.Fault {
		if calls++; calls == limit {
			err := syscall.Kill(os.Getpid(), syscall.SIGKILL)
			return sys.Fault{Err: errors.Join(syscall.EINTR, err)}
		}
		return sys.Fault{}
	})
	r, err := Open(root, true)
	if err != nil {
		return err
	}
	keep = r
	if notes != "" {
		if _, err := r.Remember(k, notes); err != nil {
			return err
		}
	}
	return r.MakeWritable(k)
}

// flagless is a read-only file system, and a bind mount of it that has no flag of its own.
func flagless(t *testing.T) (root string, lines func() []sys.Mount) {
	base := t.TempDir()
	root, bind := base+"/root", base+"/bind"
	mountRaw(t, root, "ext4", loop(t, image(t, "ext4")))
	mount(t, bind, "--bind", root)
	return root, func() []sys.Mount { return []sys.Mount{mountLine(t, root), mountLine(t, bind)} }
}

// Wherever a process is killed, the next one puts back what it did not.
func TestRememberAfterKill(t *testing.T) {
	root, lines := flagless(t)
	notes := filepath.Join(t.TempDir(), "notes")
	before := lines()
	p := probe(t, root, syscall.EROFS)
	owed := 0
	for n := 1; ; n++ {
		h := startHelper(t, "writable", root, notes, strconv.Itoa(n))
		h.killed = true
		one := make([]byte, 1)
		_, err := h.out.Read(one)
		last := err == nil // it is ready: there were fewer calls
		if last {
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		for err == nil {
			_, err = h.out.Read(one) // until it has ended
		}
		if !cmp.Equal(before, lines()) {
			owed++
		}
		r := openRoot(t, root)
		if !r.LeftWritable(notes) && !cmp.Equal(before, lines()) {
			t.Errorf("killed in front of call %d: no note", n)
		}
		if _, err := r.Remember(nil, notes); err != nil {
			t.Fatal(err)
		}
		// The run that takes over may have work of its own.
		if err := r.MakeWritable(nil); err != nil {
			t.Fatal(err)
		}
		if err := writeFD(volumeOf(t, r, "/").Dir); err != nil {
			t.Error(err)
		}
		restore(t, r)
		if diff := cmp.Diff(before, lines()); diff != "" {
			t.Errorf("killed in front of call %d (-before +after):\n%s", n, diff)
		}
		if r.LeftWritable(notes) {
			t.Errorf("killed in front of call %d: a note is left", n)
		}
		if last {
			break
		}
	}
	p.end(t)
	if owed < 3 {
		t.Errorf("a kill left something to be put back %d times: this test shows nothing", owed)
	}
}

// A process that lives keeps what it made writable; one that was killed
// without notes leaves the file system writable (the control).
func TestRememberOwner(t *testing.T) {
	root, lines := flagless(t)
	notes := filepath.Join(t.TempDir(), "notes")
	before := lines()
	h := startHelper(t, "writable", root, notes, "0")
	h.read(t)
	h.killed = true
	r := openRoot(t, root)
	if left, err := r.Remember(nil, notes); err != nil || len(left) > 0 {
		t.Errorf("while its owner lives: Remember() = %v, %v", left, err)
	}
	restore(t, r)
	if got := mountLine(t, root); got.SuperReadOnly() {
		t.Error("the file system was taken from its owner")
	}
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for one := make([]byte, 1); ; {
		if _, err := h.out.Read(one); err != nil {
			break
		}
	}
	if got := mountLine(t, root); got.SuperReadOnly() {
		t.Error("a killed process put the file system back: this test shows nothing")
	}
	r = openRoot(t, root)
	if left, err := r.Remember(nil, notes); err != nil || !cmp.Equal(left, []string{"/"}) {
		t.Errorf("after its owner's death: Remember() = %v, %v", left, err)
	}
	restore(t, r)
	if diff := cmp.Diff(before, lines()); diff != "" {
		t.Errorf("the mounts (-before +after):\n%s", diff)
	}
}

// Somebody made it writable since: it is left to him.
func TestRememberLeavesWritable(t *testing.T) {
	root, lines := flagless(t)
	notes := t.TempDir()
	h := startHelper(t, "writable", root, notes, "0")
	h.read(t)
	h.killed = true
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for one := make([]byte, 1); ; {
		if _, err := h.out.Read(one); err != nil {
			break
		}
	}
	run(t, "mount", "-o", "remount,rw", root)
	r := openRoot(t, root)
	if left, err := r.Remember(nil, notes); err != nil || len(left) > 0 {
		t.Errorf("Remember() = %v, %v", left, err)
	}
	restore(t, r)
	if err := tryWrite(root); err != nil {
		t.Errorf("a write after it: %v", err)
	}
	if r.LeftWritable(notes) {
		t.Error("the note is still there")
	}
	for _, m := range lines() {
		if m.ReadOnly() || m.SuperReadOnly() {
			t.Errorf("%s is %s, %s; want no read-only flag that nobody but us gave", m.Point, m.Options, m.SuperOptions)
		}
	}
}
