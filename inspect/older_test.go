package inspect

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// A process that runs what an earlier change took off the disk is hit by the
// next change of that path; not where it brings back what runs, and not where
// another path changes.
func TestOlder(t *testing.T) {
	dir := t.TempDir()
	lib, other := filepath.Join(dir, "lib.so"), filepath.Join(dir, "other.so")
	write(t, lib, "the first")
	write(t, other, "another")
	old := mapper(t, lib, true)
	if err := os.Rename(lib, filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	write(t, lib, "the second")
	moved := replace(t, lib)
	want(t, "renamed aside, and there", collect(t, []int{old}, moved))
	if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	// What the kernel calls it is the last name that it had.
	gone := change.Entry{Path: filepath.Join(dir, "gone"), Op: change.Replace, Old: &change.Node{Type: change.Regular, Ino: 1}, New: &change.Node{Type: change.Regular}, Aspects: change.AspectContent}
	want(t, "the same name", collect(t, []int{old}, gone), change.Hit{PID: old, Kind: "mapped", Path: gone.Path, Detail: alreadyOlder})

	first := mapper(t, lib, true)
	if err := os.Remove(lib); err != nil {
		t.Fatal(err)
	}
	write(t, lib, "the third")
	now := mapper(t, lib, true)
	entry := replace(t, lib)
	want(t, "replaced again", collect(t, []int{first, now}, entry),
		change.Hit{PID: first, Kind: "mapped", Path: lib, Detail: alreadyOlder}, change.Hit{PID: now, Kind: "mapped", Path: lib})
	want(t, "another path", collect(t, []int{first}, replace(t, other)))
	write(t, filepath.Join(dir, "copy"), "the second")
	back := entry
	back.New = &change.Node{Type: change.Regular, Digest: digestOf(t, filepath.Join(dir, "copy"))}
	want(t, "what it runs comes back", collect(t, []int{first}, back))
}

func digestOf(t *testing.T, path string) change.Digest {
	t.Helper()
	f, err := openIn(nil)(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := digest(f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
