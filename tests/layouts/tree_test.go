package layouts

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/tests/machine"
)

// populate makes the old tree below root, over whatever is mounted there.
func populate(t *testing.T, root string) {
	t.Helper()
	file := func(name, content string, mode os.FileMode) { write(t, root, name, content, mode) }
	file("usr/lib/os-release", "ID=test\nVERSION_ID=1\n", 0o644)
	file("usr/bin/tool", "#!/bin/sh\necho 1\n", 0o755)
	file("usr/bin/gone", "#!/bin/sh\n", 0o755)
	file("usr/lib/libx.so.1", strings.Repeat("old library ", 5000), 0o644)
	file("usr/lib/app/data/a", "a 1", 0o640)
	file("usr/lib/app/dropped/b", "b 1", 0o644)
	file("usr/lib/app/kind", "a file", 0o644)
	file("usr/share/same", "same", 0o644)
	file("etc/app.conf", "old", 0o644)
	file("etc/mine.conf", "mine", 0o600)
	file("var/lib/app/state", "state", 0o600)
	file("boot/vmlinuz-1", "kernel 1", 0o600)
	file("home/user/notes", "notes", 0o600)
	file("srv/www/index.html", "index 1", 0o644)
	must(t, os.Link(filepath.Join(root, "usr/bin/tool"), filepath.Join(root, "usr/bin/alias")))
	must(t, os.Chown(filepath.Join(root, "usr/lib/app/data/a"), 33, 33))
	must(t, os.Symlink("libx.so.1", filepath.Join(root, "usr/lib/libx.so")))
	age(t, root, time.Unix(1_600_000_000, 5))
}

// update makes the tree that the update brings.
func update(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	file := func(name, content string, mode os.FileMode) { write(t, root, name, content, mode) }
	file("usr/lib/os-release", "ID=test\nVERSION_ID=2\n", 0o644)
	file("usr/bin/tool", "#!/bin/sh\necho 2\n", 0o755)
	file("usr/lib/libx.so.1", strings.Repeat("new library ", 6000), 0o644)
	file("usr/lib/app/data/a", "a 1", 0o644) // its mode alone
	file("usr/lib/app/data/b", "b 2", 0o644)
	file("usr/lib/app/kind/inside", "a folder", 0o644)
	for _, name := range []string{"1", "2", "3", "4"} {
		file("usr/lib/app/new/"+name, "new "+name, 0o644)
		file("usr/share/doc/"+name, "doc "+name, 0o644)
	}
	file("usr/share/same", "same", 0o644)
	file("etc/app.conf", "new", 0o644)
	file("etc/added.conf", "added", 0o644)
	file("var/lib/app/state", "shipped", 0o644) // there already: it stays
	file("var/lib/app/added", "added", 0o644)
	file("boot/vmlinuz-2", "kernel 2", 0o600)
	file("home/user/intruder", "x", 0o644) // never
	file("srv/www/index.html", "index 2", 0o644)
	must(t, os.Link(filepath.Join(root, "usr/bin/tool"), filepath.Join(root, "usr/bin/alias")))
	must(t, os.Chown(filepath.Join(root, "usr/lib/app/data/a"), 33, 33))
	must(t, os.Symlink("libx.so.1", filepath.Join(root, "usr/lib/libx.so")))
	must(t, syscall.Setxattr(filepath.Join(root, "usr/lib/app/data/b"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	age(t, root, time.Unix(1_700_000_000, 7))
	return root
}

func write(t *testing.T, root, name, content string, mode os.FileMode) {
	t.Helper()
	p := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(p), 0o755))
	must(t, os.WriteFile(p, []byte(content), 0o600))
	must(t, os.Chmod(p, mode))
}

// age gives all of a tree one time, folders after what they hold.
func age(t *testing.T, root string, at time.Time) {
	t.Helper()
	dir, err := sys.OpenRoot(root)
	must(t, err)
	defer dir.Close()
	var names []string
	must(t, filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		names = append(names, rel)
		return err
	}))
	for _, name := range slices.Backward(names) {
		must(t, (*sys.Kernel)(nil).SetMtime(dir, name, at.UnixNano()))
	}
}

// snapshot is the whole tree over all of its file systems; inner are the places of
// those below the root.
func snapshot(t *testing.T, root string, inner []string) machine.Snapshot {
	t.Helper()
	all := machine.TakeSnapshot(t, root)
	for _, at := range inner {
		for name, line := range machine.TakeSnapshot(t, filepath.Join(root, at)) {
			all[filepath.Join(at, name)] = line
		}
	}
	return all
}

var folderTime = regexp.MustCompile(`^(mode=04\S+ owner=\S+) mtime=\S+`)

// timeless is a snapshot without the times of folders: those in which names move
// have the time of the commit.
func timeless(s machine.Snapshot) machine.Snapshot {
	out := machine.Snapshot{}
	for name, line := range s {
		out[name] = folderTime.ReplaceAllString(line, "$1")
	}
	return out
}

func same(t *testing.T, what string, want, got machine.Snapshot) {
	t.Helper()
	if diff := want.Diff(got); len(diff) > 0 {
		t.Errorf("%s:\n%s", what, strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

func content(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if os.IsNotExist(err) {
		return "-"
	}
	must(t, err)
	return string(b)
}
