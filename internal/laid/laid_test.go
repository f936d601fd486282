package laid

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// What is laid is taken away again, what was changed since or belongs to somebody else stays,
// and what is wanted no more goes with the next installation.
func TestSet(t *testing.T) {
	dir := t.TempDir()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	open := func(files ...File) *Set {
		t.Helper()
		s, err := Open(r, "var/lib/x/record.json", files)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	actions := func(items []change.SetupItem, err error) map[string]string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, it := range items {
			out[it.Path] = it.Action
		}
		return out
	}
	a, b := File{Path: "etc/a/x", Mode: 0o644, Text: "1"}, File{Path: "etc/b", Mode: 0o644, Text: "2"}
	link := File{Path: "etc/wants/u", Link: "/usr/lib/systemd/u"}
	write("etc/b", "the administrator's")
	s := open(a, b, link)
	if d := cmp.Diff(map[string]string{"/etc/a/x": "install", "/etc/b": "keep", "/etc/wants/u": "install"}, actions(s.Plan())); d != "" {
		t.Error(d)
	}
	if err := s.Install(); err != nil {
		t.Fatal(err)
	}
	// What somebody has removed is not laid any more: who does not ask again leaves it so.
	if err := os.Rename(filepath.Join(dir, "etc/a/x"), filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	if s = open(a, b, link); s.Laid("etc/a/x") || s.Laid("etc/b") || !s.Laid("etc/wants/u") {
		t.Errorf("laid: %v, %v, %v", s.Laid("etc/a/x"), s.Laid("etc/b"), s.Laid("etc/wants/u"))
	}
	if err := os.Rename(filepath.Join(dir, "x"), filepath.Join(dir, "etc/a/x")); err != nil {
		t.Fatal(err)
	}
	// The same place by its name of before the merge of /usr, as other tools write it.
	if err := os.Remove(filepath.Join(dir, link.Path)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/lib/systemd/u", filepath.Join(dir, link.Path)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"/etc/a/x": "keep", "/etc/b": "keep", "/etc/wants/u": "keep"}, actions(open(a, b, link).Plan())); d != "" {
		t.Error(d)
	}
	// b's record is nobody's: it was never laid. a is wanted no more.
	s = open(b, link)
	if d := cmp.Diff(map[string]string{"/etc/b": "keep", "/etc/wants/u": "keep", "/etc/a/x": "remove"}, actions(s.Plan())); d != "" {
		t.Error(d)
	}
	if err := s.Install(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "etc/a/x")); !os.IsNotExist(err) {
		t.Errorf("what is wanted no more is still there: %v", err)
	}
	a.Text = "3"
	if err := open(a, b, link).Install(); err != nil {
		t.Fatal(err)
	}
	write("etc/a/x", "changed")
	s = open()
	if d := cmp.Diff(map[string]string{"/etc/a/x": "keep", "/etc/wants/u": "remove"}, actions(s.PlanRemove())); d != "" {
		t.Error(d)
	}
	if err := s.Remove(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"etc/a/x": true, "etc/b": true, "etc/wants": false, "var": false} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", name, err, want)
		}
	}
	if open().Recorded() {
		t.Error("something is still recorded")
	}
}
