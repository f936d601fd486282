package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/internal/sys"
)

// diskBed is a bed whose root is an ext4 file system of its own.
func diskBed(t *testing.T) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a file system")
	}
	if testing.Short() {
		t.Skip("mounts a file system: not in the fast loop")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("mkfs.ext4 is not installed")
	}
	b := newBed(t)
	b.image = newDisk(t, b.root)
	return b
}

// newDisk mounts an ext4 file system of its own and gives its image.
func newDisk(t *testing.T, at string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	tool(t, "truncate", "-s", "64M", image)
	tool(t, "mkfs.ext4", "-q", "-F", image)
	tool(t, "mount", "-o", "loop", image, at)
	t.Cleanup(func() {
		if err := syscall.Unmount(at, 0); err != nil {
			t.Errorf("cannot unmount %s: %v", at, err)
		}
	})
	if err := os.Remove(filepath.Join(at, "lost+found")); err != nil {
		t.Fatal(err)
	}
	return image
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// state describes each object of a root but liveupd's own: all that a repair or a
// rollback has to bring back. A folder's time tells only that names moved in it.
func (b *bed) state() map[string]string {
	b.t.Helper()
	root, err := sys.OpenRoot(b.root)
	if err != nil {
		b.t.Fatal(err)
	}
	defer root.Close()
	out := map[string]string{}
	first := map[uint64]string{}
	err = filepath.WalkDir(b.root, func(full string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(b.root, full)
		if e.Name() == ".liveupd" {
			return fs.SkipDir
		}
		n, err := sys.Lstat(root, rel)
		if err != nil {
			return err
		}
		xattrs, err := sys.Xattrs(root, rel)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %04o %d:%d rdev %d", n.Type, n.Mode, n.UID, n.GID, n.Rdev)
		switch {
		case e.Type().IsRegular():
			data, err := os.ReadFile(full)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			line += " " + hex.EncodeToString(sum[:6])
		case e.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(full)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		if !e.IsDir() {
			if first[n.Ino] == "" {
				first[n.Ino] = rel
			}
			line += fmt.Sprintf(" mtime %d links %d %s", n.MtimeNS, n.Nlink, first[n.Ino])
		}
		for _, key := range slices.Sorted(maps.Keys(xattrs)) {
			line += fmt.Sprintf(" %s=%q", key, xattrs[key])
		}
		out["/"+rel] = line
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// sameState fails where two states differ, with the paths.
func (b *bed) sameState(what string, want, got map[string]string) {
	b.t.Helper()
	paths := map[string]bool{}
	for p := range want {
		paths[p] = true
	}
	for p := range got {
		paths[p] = true
	}
	var lines []string
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if want[p] != got[p] {
			lines = append(lines, fmt.Sprintf("%s\n    want %s\n    got  %s", p, want[p], got[p]))
		}
	}
	if len(lines) > 0 {
		b.t.Errorf("%s:\n%s", what, strings.Join(lines, "\n"))
	}
}

// at is a path below the root.
func (b *bed) at(name string) string { return filepath.Join(b.root, name) }

func (b *bed) do(errs ...error) {
	b.t.Helper()
	if err := errors.Join(errs...); err != nil {
		b.t.Fatal(err)
	}
}

// flip changes one bit of a file, which keeps its size and its times' looks, as
// a disk does that rots.
func (b *bed) flip(name string) {
	b.t.Helper()
	st, err := os.Stat(name)
	b.do(err)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	b.do(err)
	defer f.Close()
	one := make([]byte, 1)
	_, err = f.ReadAt(one, st.Size()/2)
	b.do(err)
	one[0] ^= 1
	_, err = f.WriteAt(one, st.Size()/2)
	b.do(err, os.Chtimes(name, st.ModTime(), st.ModTime()))
}

// rot changes one bit of each block of the disk that holds the text, behind the
// file system's back: no time, size or inode changes with it.
func (b *bed) rot(text string) {
	b.t.Helper()
	tool(b.t, "umount", b.root)
	data, err := os.ReadFile(b.image)
	b.do(err)
	f, err := os.OpenFile(b.image, os.O_WRONLY, 0)
	b.do(err)
	found := 0
	for at := 0; ; found++ {
		i := bytes.Index(data[at:], []byte(text))
		if i < 0 {
			break
		}
		at += i
		_, err := f.WriteAt([]byte{data[at] ^ 1}, int64(at))
		b.do(err)
		at++
	}
	b.do(f.Close())
	if found == 0 {
		b.t.Fatalf("%q is not on the disk", text)
	}
	tool(b.t, "mount", "-o", "loop", b.image, b.root)
	// A mount namespace that somebody made meanwhile keeps the file system and what it
	// has read alive over the unmount.
	b.do(os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0))
}
