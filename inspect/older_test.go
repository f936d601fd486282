package inspect

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

// Somebody maps a file of terabytes, all of it a hole, by the name of one that changes,
// and removes it: it is not read to learn that it is another.
func TestOlderReadsNoHole(t *testing.T) {
	lib := filepath.Join(t.TempDir(), "lib.so")
	write(t, lib, "the first")
	if err := os.Truncate(lib, 8<<40); err != nil {
		t.Skipf("no file system for a file of 8 TiB: %v", err)
	}
	pid := mapper(t, lib, true)
	if err := os.Remove(lib); err != nil {
		t.Fatal(err)
	}
	write(t, lib, "the second")
	entry := replace(t, lib)
	entry.New.Size, entry.New.Digest = 9, change.Digest{1}
	found := make(chan []change.Hit, 1)
	go func() { found <- collect(t, []int{pid}, entry) }()
	select {
	case hits := <-found:
		want(t, "a hole", hits, change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: alreadyOlder})
	case <-time.After(2 * time.Minute):
		t.Fatal("the look at processes does not end")
	}
}

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
	back.New = &change.Node{Type: change.Regular, Size: int64(len("the second")), Digest: digestOf(t, filepath.Join(dir, "copy"))}
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
