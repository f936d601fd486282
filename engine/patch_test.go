package engine

import (
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/trust"
)

func needZstd(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("needs the program zstd")
	}
}

// patchBed is a root that OLD was applied to, and what makes NEW of it.
type patchBed struct {
	*bed
	old, new, file string
}

// longText is worth a patch.
func longText(what string) string { return strings.Repeat("a line of text\n", 50) + what }

func newPatchBed(t *testing.T) *patchBed {
	needZstd(t)
	b := &patchBed{bed: newBed(t)}
	b.old, b.new, b.file = b.source+"-old", b.source+"-new", filepath.Join(t.TempDir(), "the.patch")
	for _, dir := range []string{b.old, b.new} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *patchBed) diff() *change.DiffReport {
	b.t.Helper()
	r, err := Diff(b.t.Context(), DiffRequest{Old: b.old, New: b.new, Out: b.file, Level: 3}, Events{})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *patchBed) apply(root, source string) (any, error) {
	return (&Engine{}).Run(b.t.Context(), Request{Verb: "apply", Root: root, Source: source, AllowUnsigned: true}, Events{})
}

func (b *patchBed) mustApply(root, source string) *change.Report {
	b.t.Helper()
	r, err := b.apply(root, source)
	if err != nil {
		b.t.Fatalf("apply %s: %v", source, err)
	}
	return r.(*change.Report)
}

func (b *patchBed) copyOf(dir string) string {
	b.t.Helper()
	to := filepath.Join(b.t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", dir, to).CombinedOutput(); err != nil {
		b.t.Fatalf("cp: %v\n%s", err, out)
	}
	return to
}

// A patch of whole systems does what the new system would do: to what is the image's, to what the machine
// changed, to what it owns. And it is taken back.
func TestPatchIsTheFullUpdate(t *testing.T) {
	b := newPatchBed(t)
	for _, dir := range []string{b.old, b.new} {
		b.write(dir, "usr/lib/os-release", "ID=test\n")
		b.write(dir, "usr/lib/same", longText("same"))
		b.write(dir, "etc/same.conf", "same")
		b.write(dir, "var/lib/db", "from "+dir)
	}
	b.write(b.old, "usr/lib/lib.so.1.2", longText("1.2"))
	b.write(b.new, "usr/lib/lib.so.1.3", longText("1.3"))
	b.write(b.old, "usr/bin/tool", longText("old"))
	b.write(b.new, "usr/bin/tool", longText("new"))
	b.write(b.old, "usr/share/gone/file", "gone")
	b.write(b.old, "usr/share/turns", "a file")
	b.write(b.new, "usr/share/turns/into", "a folder")
	b.write(b.old, "etc/changed.conf", longText("old"))
	b.write(b.new, "etc/changed.conf", longText("new"))
	b.write(b.old, "etc/edited.conf", longText("old"))
	b.write(b.new, "etc/edited.conf", longText("new"))
	b.write(b.old, "etc/gone.conf", "gone")
	b.write(b.old, "etc/gone-edited.conf", "gone")
	b.write(b.new, "etc/fresh.conf", "fresh")
	b.write(b.new, "var/lib/fresh", "fresh")
	b.write(b.new, "home/user/file", "not an update's")
	b.mustApply(b.root, "tree:"+b.old)
	b.write(b.root, "etc/edited.conf", "by the admin")
	b.write(b.root, "etc/gone-edited.conf", "by the admin")
	b.write(b.root, "etc/own.conf", "the admin's own")
	b.write(b.root, "home/user/own", "a user's")
	b.write(b.root, "var/lib/db", "the machine's")
	before := readTree(t, b.root)
	full := b.copyOf(b.root)

	report := b.diff()
	if report.Bases < 1 || report.Result != "done" {
		t.Errorf("Diff = %+v", report)
	}
	b.mustApply(full, "tree:"+b.new)
	b.mustApply(b.root, "patch:"+b.file)
	got, want := readTree(t, b.root), readTree(t, full)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the patch does not do what the tree does (-tree +patch):\n%s", d)
	}
	if got["usr/bin/tool"] == before["usr/bin/tool"] || got["usr/share/gone/file"] != "" || got["etc/gone.conf"] != "" {
		t.Errorf("the update did nothing: %v", got)
	}
	if again := b.mustApply(b.root, "patch:"+b.file); again.Result != "nothing-to-do" {
		t.Errorf("the second apply = %+v; want nothing to do", again)
	}
	if _, err := (&Engine{}).Run(t.Context(), Request{Verb: "rollback", Root: b.root}, Events{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, readTree(t, b.root)); d != "" {
		t.Errorf("after the rollback: %s", d)
	}
	b.mustApply(b.root, "patch:"+b.file)
	if d := cmp.Diff(want, readTree(t, b.root)); d != "" {
		t.Errorf("after the rollback and another apply: %s", d)
	}
}

// A base that does not fit refuses the patch before anything is written, and says what is wrong with it.
func TestPatchBaseMismatch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: devices")
	}
	const tool = "opt/app/tool"
	for _, tt := range []struct {
		name  string
		spoil func(b *patchBed, name string) error
		want  string
		hint  string
	}{
		{"as it was", func(*patchBed, string) error { return nil }, "", ""},
		{"other content", func(b *patchBed, _ string) error { b.write(b.root, tool, longText("odd")); return nil }, "here it has the digest", "the whole update"},
		{"other content of the same size and time", func(b *patchBed, name string) error {
			st, err := os.Stat(name)
			if err != nil {
				return err
			}
			b.write(b.root, tool, longText("xld"))
			return os.Chtimes(name, st.ModTime(), st.ModTime())
		}, "here it has the digest", "the whole update"},
		{"another version", func(b *patchBed, _ string) error {
			other := b.source + "-other"
			b.write(other, tool, longText("other"))
			b.mustApply(b.root, "tree:"+other)
			return nil
		}, "here it has ", "the whole update"},
		{"missing", func(_ *patchBed, name string) error { return os.Remove(name) }, "there is none", "the whole update"},
		{"a symlink to the same", func(_ *patchBed, name string) error {
			return errors.Join(os.Rename(name, name+"2"), os.Symlink("tool2", name))
		}, "it is a symlink", "the whole update"},
		{"behind a symlink", func(_ *patchBed, name string) error {
			dir := filepath.Dir(name)
			return errors.Join(os.Rename(dir, dir+"2"), os.Symlink("app2", dir))
		}, "cannot be opened", "the whole update"},
		{"a folder", func(_ *patchBed, name string) error { return errors.Join(os.Remove(name), os.Mkdir(name, 0o755)) }, "it is a directory", ""},
		{"a fifo", func(_ *patchBed, name string) error {
			return errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o644))
		}, "it is a fifo", ""},
		{"a device", func(_ *patchBed, name string) error {
			return errors.Join(os.Remove(name), syscall.Mknod(name, syscall.S_IFCHR|0o644, 1<<8|5))
		}, "it is a character device", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newPatchBed(t)
			b.write(b.old, tool, longText("old"))
			b.write(b.new, tool, longText("new"))
			b.write(b.new, "opt/app/more", "more")
			b.mustApply(b.root, "tree:"+b.old)
			b.diff()
			if err := tt.spoil(b, filepath.Join(b.root, tool)); err != nil {
				t.Fatal(err)
			}
			before := readTree(t, b.root)
			txs, err := filepath.Glob(filepath.Join(b.root, ".liveupd/tx/*"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.apply(b.root, "patch:"+b.file)
			if tt.want == "" {
				if err != nil || b.read(tool) != longText("new") || b.read("opt/app/more") != "more" {
					t.Errorf("apply = %v", err)
				}
				return
			}
			if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `"/`+tool+`"`) {
				t.Errorf("apply = %v; want a refusal with %q", err, tt.want)
			}
			if hint, ok := errors.AsType[*change.HintError](err); !ok || !strings.Contains(hint.Hint, tt.hint) {
				t.Errorf("the hint is %+v; want one with %q", hint, tt.hint)
			}
			if !maps.Equal(before, readTree(t, b.root)) {
				t.Error("a refused patch changed the root")
			}
			after, _ := filepath.Glob(filepath.Join(b.root, ".liveupd/tx/*"))
			left, _ := filepath.Glob(filepath.Join(b.root, ".liveupd/unpacked/*"))
			if len(after) != len(txs) || len(left) > 0 {
				t.Errorf("left behind: %v %v", after, left)
			}
		})
	}
}

// What a patch was refused or unpacked for is looked at again by the next run.
func TestPatchDriftAfterThePlan(t *testing.T) {
	b := newPatchBed(t)
	b.write(b.old, "opt/app/tool", longText("old"))
	b.write(b.new, "opt/app/tool", longText("new"))
	b.write(b.root, "opt/app/tool", longText("old"))
	b.diff()
	if _, err := (&Engine{}).Run(t.Context(), Request{Verb: "plan", Root: b.root, Source: "patch:" + b.file, AllowUnsigned: true}, Events{}); err != nil {
		t.Fatal(err)
	}
	b.write(b.root, "opt/app/tool", longText("odd"))
	if _, err := b.apply(b.root, "patch:"+b.file); !errors.Is(err, change.ErrVerification) {
		t.Errorf("apply = %v; want a refusal", err)
	}
	b.write(b.root, "opt/app/tool", longText("old"))
	b.mustApply(b.root, "patch:"+b.file)
	if b.read("opt/app/tool") != longText("new") {
		t.Error("it was not applied")
	}
}

// Whatever a patch says that goes: what is the machine's stays.
func TestPatchRemovesOnlyItsOwn(t *testing.T) {
	b := newPatchBed(t)
	machine := []string{"home/user/file", "var/lib/file", "etc/machine-id", "boot/file", "root/file"}
	for _, p := range append([]string{"opt/app/file", "usr/lib/app/file"}, machine...) {
		b.write(b.old, p, "x")
		b.write(b.root, p, "x")
	}
	b.write(b.root, "usr/lib/app/own", "the machine's")
	b.write(b.new, "opt/other", "x")
	b.write(b.new, "usr/lib/other", "x")
	for _, p := range []string{"etc", "var/lib", "boot", "home"} {
		b.write(b.new, p+"/other", "x")
	}
	b.diff()
	b.mustApply(b.root, "patch:"+b.file)
	for _, p := range append(machine, "usr/lib/app/own") {
		if b.read(p) == "-" {
			t.Errorf("%s is gone", p)
		}
	}
	for _, p := range []string{"opt/app", "usr/lib/app/file"} {
		if _, err := os.Lstat(filepath.Join(b.root, p)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", p, err)
		}
	}
}

// What a tree has no more of at all is found, though the folders that all systems share stay.
func TestPatchOfNothingButRemovals(t *testing.T) {
	b := newPatchBed(t)
	for _, p := range []string{"opt/app/file", "usr/lib/app/file", "top"} {
		b.write(b.old, p, "x")
		b.write(b.root, p, "x")
	}
	b.write(b.root, "opt/own", "the machine's")
	if r := b.diff(); r.Removed < 5 {
		t.Errorf("Diff = %+v", r)
	}
	b.mustApply(b.root, "patch:"+b.file)
	if d := cmp.Diff([]string{"opt/", "opt/own", "usr/", "usr/lib/"}, slices.Sorted(maps.Keys(readTree(t, b.root)))); d != "" {
		t.Error(d)
	}
}

// On a merged /usr the base of lib/x is usr/lib/x.
func TestPatchMergedUsr(t *testing.T) {
	b := newPatchBed(t)
	b.write(b.old, "lib/app.so", longText("old"))
	b.write(b.new, "lib/app.so", longText("new"))
	b.write(b.root, "usr/lib/app.so", longText("old"))
	if err := os.Symlink("usr/lib", filepath.Join(b.root, "lib")); err != nil {
		t.Fatal(err)
	}
	b.diff()
	b.mustApply(b.root, "patch:"+b.file)
	if b.read("usr/lib/app.so") != longText("new") {
		t.Error("it was not applied")
	}
}

// The signature beside a patch is the archive's own; a patch from a server is fetched with it.
func TestPatchSigned(t *testing.T) {
	b := newPatchBed(t)
	b.write(b.old, "opt/app/tool", longText("old"))
	b.write(b.new, "opt/app/tool", longText("new"))
	b.write(b.root, "opt/app/tool", longText("old"))
	b.diff()
	dir, keys := t.TempDir(), t.TempDir()
	if _, err := Keygen(KeygenRequest{Name: filepath.Join(dir, "k"), Password: func() (string, error) { return "", nil }}); err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(filepath.Join(dir, "k.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(keys, "k.pub"), pub, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Sign(t.Context(), SignRequest{
		Target: b.file, Key: filepath.Join(dir, "k.key"), Password: func() (string, error) { return "", nil },
		Head: trust.Head{Name: "app", Version: "2", Sequence: 2, Signed: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(b.file))))
	defer server.Close()
	run := func(source string) error {
		_, err := (&Engine{}).Run(t.Context(), Request{Verb: "plan", Root: b.root, Source: source, KeysDir: keys}, Events{})
		return err
	}
	for _, source := range []string{"patch:" + b.file, "patch:" + server.URL + "/the.patch"} {
		if err := run(source); err != nil {
			t.Errorf("%s: %v", source, err)
		}
	}
	// The control: a byte more than was signed.
	f, err := os.OpenFile(b.file, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("x")
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := run("patch:" + b.file); !errors.Is(err, change.ErrVerification) {
		t.Errorf("a patch that was signed otherwise: %v; want a refusal", err)
	}
}

// Archives are trees, too.
func TestDiffOfArchives(t *testing.T) {
	b := newPatchBed(t)
	b.write(b.old, "opt/app/tool", longText("old"))
	b.write(b.old, "opt/app/gone", "x")
	b.write(b.new, "opt/app/tool", longText("new"))
	var archives []string
	for _, dir := range []string{b.old, b.new} {
		// No line for opt: what an archive does not say is no difference.
		if out, err := exec.Command("tar", "-C", dir, "-czf", dir+".tar.gz", "opt/app").CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
		archives = append(archives, dir+".tar.gz")
	}
	b.mustApply(b.root, "tar:"+archives[0])
	r, err := Diff(t.Context(), DiffRequest{Old: archives[0], New: "tar:" + archives[1], Out: b.file, Level: 3}, Events{})
	if err != nil || r.Removed != 1 {
		t.Fatalf("Diff = %+v, %v", r, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(b.file), ".liveupd*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	b.mustApply(b.root, "patch:"+b.file)
	if b.read("opt/app/tool") != longText("new") || b.read("opt/app/gone") != "-" {
		t.Error("it was not applied")
	}
}
