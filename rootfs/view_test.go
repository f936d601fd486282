package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func TestResolveStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	v := viewOf(t, files{
		"usr/lib/a":      "inside",
		"lib":            "-> usr/lib",
		"abs":            "-> /usr/lib/a",
		"up":             "-> ../../../../../../usr/lib/a",
		"usr/lib/rel":    "-> ../../abs",
		"escape":         "-> " + outside,
		"upescape":       "-> ../../../../../../../../../.." + outside,
		"loop":           "-> loop",
		"loop2":          "-> loop3",
		"loop3":          "-> loop2",
		"file":           "x",
		"empty/":         "",
		"usr/dangling":   "-> nowhere",
		"usr/lib/self":   "-> .",
		"usr/lib/d/deep": "y",
	})
	cases := []struct {
		path, want string
		err        error
	}{
		{path: "/abs", want: "/usr/lib/a"},
		{path: "/up", want: "/usr/lib/a"},
		{path: "/lib/rel", want: "/usr/lib/a"},
		{path: "/lib/../../../lib/self/self/d/deep", want: "/usr/lib/d/deep"},
		{path: "/../..", want: "/"},
		{path: "/", want: "/"},
		{path: "/lib", want: "/usr/lib"},
		{path: "/empty/./", want: "/empty"},
		{path: "/escape", err: fs.ErrNotExist},
		{path: "/upescape", err: fs.ErrNotExist},
		{path: "/usr/dangling", err: fs.ErrNotExist},
		{path: "/file/below", err: fs.ErrNotExist},
		{path: "/loop", err: syscall.ELOOP},
		{path: "/loop2", err: syscall.ELOOP},
	}
	for _, c := range cases {
		got, err := v.Resolve(c.path)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("Resolve(%q) = %q, %v; want %q, %v", c.path, got, err, c.want, c.err)
		}
	}
	if b, err := v.ReadFile("/escape"); err == nil {
		t.Errorf("ReadFile through a symlink out of the root = %q; want an error", b)
	}
	if n, err := v.Lstat("/abs"); err != nil || n.Type != change.Symlink || n.Target != "/usr/lib/a" {
		t.Errorf("Lstat(/abs) = %+v, %v; want the symlink itself", n, err)
	}
	if got, err := v.Readlink("/lib/rel"); err != nil || got != "../../abs" {
		t.Errorf("Readlink(/lib/rel) = %q, %v; want ../../abs", got, err)
	}
	if _, err := v.Readlink("/file"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Readlink(/file) = %v; want EINVAL", err)
	}
}

// The kernel is asked for symlink-free paths only: a folder that becomes a
// symlink after it was resolved leads nowhere.
func TestNoRaceOutOfTheRoot(t *testing.T) {
	dir := writeTree(t, files{"a/f": "inside"})
	outside := writeTree(t, files{"f": "outside"})
	v := asTree(Dir(openDir(t, dir)))
	if _, err := v.Resolve("/a/f"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if b, err := v.ReadFile("/a/f"); err == nil {
		t.Errorf("ReadFile(/a/f) after the swap = %q; want an error", b)
	}
	// Negative control: without the protection the same read leaves the root.
	if b, err := os.ReadFile(filepath.Join(dir, "a/f")); err != nil || string(b) != "outside" {
		t.Fatalf("the swap did not take place: %q, %v", b, err)
	}
}

func TestReadOddFiles(t *testing.T) {
	dir := writeTree(t, files{"d/": ""})
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := Dir(openDir(t, dir))
	for _, p := range []string{"/fifo", "/d"} {
		if _, err := v.ReadFile(p); err == nil {
			t.Errorf("ReadFile(%s) succeeded; want a refusal", p)
		}
	}
	// The open itself does not block on a FIFO either.
	if _, err := sys.OpenRegular(openDir(t, dir), "fifo", 0); err == nil {
		t.Error("OpenRegular(fifo) succeeded; want a refusal")
	}
}

func TestVolumes(t *testing.T) {
	v := Volumes(
		Volume{Mount: "/", Dir: openDir(t, writeTree(t, files{
			"var/hidden": "covered", "var/lib/": "", "etc/l": "-> /var/lib/x/f", "varnish": "root",
		}))},
		Volume{Mount: "/var", Dir: openDir(t, writeTree(t, files{"lib/x/hidden": "covered", "log": "var", "up": "-> ../varnish"}))},
		Volume{Mount: "/var/lib/x", Dir: openDir(t, writeTree(t, files{"f": "deep"}))},
	)
	read := func(p string) string {
		b, err := v.ReadFile(p)
		if err != nil {
			return "absent"
		}
		return string(b)
	}
	got := map[string]string{}
	for _, p := range []string{"/var/hidden", "/var/log", "/etc/l", "/var/lib/x/f", "/var/lib/x/hidden", "/varnish", "/var/up"} {
		got[p] = read(p)
	}
	want := map[string]string{
		"/var/hidden": "absent", "/var/log": "var", "/etc/l": "deep", "/var/lib/x/f": "deep",
		"/var/lib/x/hidden": "absent", "/varnish": "root", "/var/up": "root",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("reads over volumes (-want +got):\n%s", d)
	}
	names, err := v.ReadDir("/var/lib/x")
	if d := cmp.Diff([]string{"f"}, names); d != "" || err != nil {
		t.Errorf("ReadDir of a mount point: %v\n%s", err, d)
	}
}

func TestOverlay(t *testing.T) {
	base := files{
		"usr/lib/libx.so.1":   "-> libx.so.1.0",
		"usr/lib/libx.so.1.0": "old",
		"etc/keep":            "kept",
		"etc/gone":            "gone",
		"etc/meta":            "meta",
		"etc/metalink":        "-> keep",
		"opt/java":            "-> /usr/java8",
		"usr/java8/bin":       "8",
		"usr/java9/bin":       "9",
		"todir":               "-> /etc",
		"tofile/inside":       "x",
		"etc/twin":            "twin",
	}
	src := files{
		"usr/lib/libx.so.1.1": "new",
		"deep/from/there":     "landed",
		"content":             "content",
	}
	file, link, dir := &change.Node{Type: change.Regular, Size: 3}, change.Symlink, &change.Node{Type: change.Directory}
	d := &change.Delta{Entries: []change.Entry{
		{Path: "/etc/gone", Op: change.Remove, Old: file},
		{Path: "/etc/meta", Op: change.Metadata, Old: file, New: &change.Node{Type: change.Regular, Size: 4, Mode: 0o600}},
		{Path: "/etc/metalink", Op: change.Metadata, Old: &change.Node{Type: link, Target: "keep"}, New: &change.Node{Type: link, UID: 7}},
		{Path: "/etc/twin2", Op: change.Replace, Old: file, New: file, From: "/etc/twin", FromLive: true},
		{Path: "/new", Op: change.Add, New: dir, From: "/new"},
		{Path: "/new/f", Op: change.Add, New: file, From: "/deep/from/there"},
		{Path: "/opt/java", Op: change.Replace, Old: &change.Node{Type: link}, New: &change.Node{Type: link, Target: "/usr/java9"}, From: "/opt/java"},
		{Path: "/todir", Op: change.Replace, Old: &change.Node{Type: link, Target: "/etc"}, New: dir, From: "/todir"},
		{Path: "/todir/only", Op: change.Add, New: file, From: "/content"},
		{Path: "/tofile", Op: change.Replace, Old: dir, New: file, From: "/content"},
		{Path: "/tofile/inside", Op: change.Remove, Old: file},
		{Path: "/usr/lib/libx.so.1", Op: change.Replace, Old: &change.Node{Type: link}, New: &change.Node{Type: link, Target: "libx.so.1.1"}, From: "/usr/lib/libx.so.1"},
		{Path: "/usr/lib/libx.so.1.0", Op: change.Remove, Old: file},
		{Path: "/usr/lib/libx.so.1.1", Op: change.Add, New: file, From: "/usr/lib/libx.so.1.1"},
	}}
	over := Overlay(viewOf(t, base), d, openDir(t, writeTree(t, src)))
	reads := map[string]string{
		"/usr/lib/libx.so.1":   "new",
		"/usr/lib/libx.so.1.0": "absent",
		"/etc/keep":            "kept",
		"/etc/gone":            "absent",
		"/etc/meta":            "meta",
		"/etc/metalink":        "kept",
		"/etc/twin2":           "twin",
		"/new/f":               "landed",
		"/opt/java/bin":        "9",
		"/todir/only":          "content",
		"/todir/keep":          "absent", // was visible through the symlink
		"/tofile":              "content",
		"/tofile/inside":       "absent",
	}
	for p, want := range reads {
		got := "absent"
		b, err := over.ReadFile(p)
		switch {
		case err == nil:
			got = string(b)
		case !errors.Is(err, fs.ErrNotExist):
			got = err.Error()
		}
		if got != want {
			t.Errorf("ReadFile(%s) = %q; want %q", p, got, want)
		}
	}
	lists := map[string][]string{
		"/":        {"etc", "new", "opt", "todir", "tofile", "usr"},
		"/etc":     {"keep", "meta", "metalink", "twin", "twin2"},
		"/todir":   {"only"},
		"/new":     {"f"},
		"/usr/lib": {"libx.so.1", "libx.so.1.1"},
	}
	for p, want := range lists {
		got, err := over.ReadDir(p)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("ReadDir(%s): %v\n%s", p, err, d)
		}
	}
	if n, err := over.Lstat("/etc/meta"); err != nil || n.Mode != 0o600 {
		t.Errorf("Lstat(/etc/meta) = %+v, %v; want the new mode", n, err)
	}
	if n, err := over.Lstat("/etc/metalink"); err != nil || n.Target != "keep" || n.UID != 7 {
		t.Errorf("Lstat(/etc/metalink) = %+v, %v; want the old target and the new owner", n, err)
	}
	// A second overlay over the first: an update planned over an update.
	top := Overlay(over, &change.Delta{Entries: []change.Entry{{Path: "/new/f", Op: change.Remove, Old: file}}}, nil)
	if names, err := top.ReadDir("/new"); err != nil || len(names) != 0 {
		t.Errorf("ReadDir(/new) of the second overlay = %v, %v; want nothing", names, err)
	}
}

// A View of another make serves as well.
func TestForeignView(t *testing.T) {
	v := viewOf(t, files{"a/f": "1", "l": "-> /a/f"})
	over := Overlay(struct{ View }{v}, &change.Delta{}, nil)
	if b, err := over.ReadFile("/l"); err != nil || string(b) != "1" {
		t.Errorf("ReadFile(/l) = %q, %v; want 1", b, err)
	}
}
