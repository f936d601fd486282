package patch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: trees have owners, devices and attributes")
	}
}

func dir(t testing.TB, path string) *sys.FD {
	t.Helper()
	fd, err := sys.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

func do(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, in io.Reader, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func opener(root *sys.FD) Opener {
	return func(p string) (File, error) {
		return sys.OpenRegular(root, strings.TrimPrefix(p, "/"), sys.ResolveBeneath|sys.ResolveNoSymlinks)
	}
}

func makePatch(t testing.TB, old, new string, o Options) ([]byte, *Summary) {
	t.Helper()
	var out bytes.Buffer
	s, err := Make(t.Context(), dir(t, old), dir(t, new), &out, o)
	if err != nil {
		t.Fatal(err)
	}
	if s.Bytes != int64(out.Len()) {
		t.Errorf("the summary says %d bytes, %d were written", s.Bytes, out.Len())
	}
	return out.Bytes(), s
}

// applied is a copy of the old tree that the patch was put upon by tar.
func applied(t testing.TB, old string, patch []byte) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	run(t, nil, "cp", "-a", old, copied)
	p, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range slices.Backward(p.Gone()) {
		do(t, os.Remove(filepath.Join(copied, string(g.Path))))
	}
	run(t, p.Tar(t.Context()), "tar", "-C", copied, "-x", "-p", "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "--overwrite", "--recursive-unlink", "-f", "-")
	return copied
}

func equal(t testing.TB, what, got, want string) {
	t.Helper()
	a, err := walk(t.Context(), dir(t, got))
	do(t, err)
	b, err := walk(t.Context(), dir(t, want))
	do(t, err)
	for _, p := range b.sorted() {
		if p == manifestName {
			continue
		}
		differs, err := changed(a, b, p)
		do(t, err)
		if differs {
			t.Errorf("%s: %s is %+v; want %+v", what, p, a.nodes[p], b.nodes[p])
		}
	}
	for _, p := range a.sorted() {
		if b.nodes[p] == nil {
			t.Errorf("%s: %s should be gone", what, p)
		}
	}
}

// grow makes a random tree; what it makes from one seed is the same.
func grow(t testing.TB, root string, r *rand.Rand) {
	t.Helper()
	dirs := []string{"usr", "usr/lib", "etc", "var", "usr/lib/\xff\xfe", "usr/lib/" + strings.Repeat("long", 40)}
	for _, d := range dirs {
		do(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	var made []string
	for i := range 60 {
		p := filepath.Join(root, dirs[r.IntN(len(dirs))], fmt.Sprintf("f%d.%d", i, r.IntN(3)))
		switch r.IntN(10) {
		case 0:
			do(t, os.Symlink(strings.Repeat("../", r.IntN(40))+"target", p))
		case 1:
			do(t, syscall.Mkfifo(p, 0o600))
		case 2:
			do(t, syscall.Mknod(p, syscall.S_IFCHR|0o640, int(uint64(r.IntN(255))|uint64(r.IntN(4000))<<8)))
		case 3:
			if len(made) > 0 {
				do(t, os.Link(made[r.IntN(len(made))], p))
				continue
			}
			fallthrough
		default:
			content := make([]byte, r.IntN(200_000))
			for i := range content {
				content[i] = byte(r.IntN(40))
			}
			do(t, os.WriteFile(p, content, os.FileMode(r.IntN(0o1000))), os.Chown(p, r.IntN(70000), r.IntN(3)))
			if r.IntN(4) == 0 {
				do(t, syscall.Setxattr(p, "user.x", []byte{0, 1, '\n', byte(r.IntN(256))}, 0))
			}
			made = append(made, p)
		}
	}
}

// mutate changes some of a tree in place.
func mutate(t testing.TB, root string, r *rand.Rand) {
	t.Helper()
	var all []string
	do(t, filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, p)
		}
		return err
	}))
	for _, p := range all {
		info, err := os.Lstat(p)
		do(t, err)
		switch r.IntN(8) {
		case 0:
			do(t, os.Remove(p))
		case 1:
			do(t, os.Rename(p, p+"9"))
		case 2:
			if info.Mode().IsRegular() {
				b, err := os.ReadFile(p)
				do(t, err)
				at := r.IntN(len(b) + 1)
				b = slices.Concat(b[:at], []byte(fmt.Sprint("inserted", r.Int())), b[at:])
				do(t, os.Remove(p), os.WriteFile(p, b, 0o644))
			}
		case 3:
			if info.Mode().IsRegular() {
				do(t, os.Chmod(p, 0o4755))
			}
		case 4:
			do(t, os.Remove(p), os.MkdirAll(filepath.Join(p, "now", "a-folder"), 0o711))
		}
	}
}

// The old tree with the patch upon it is the new one, whatever the trees are, and the
// same trees give the same patch.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for i := range rounds {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		home := t.TempDir()
		old, new := filepath.Join(home, "old"), filepath.Join(home, "new")
		do(t, os.Mkdir(old, 0o755))
		grow(t, old, r)
		run(t, nil, "cp", "-a", old, new)
		mutate(t, new, r)
		for _, zstd := range []string{"-", ""} {
			patch, s := makePatch(t, old, new, Options{Zstd: zstd, Level: 3})
			equal(t, fmt.Sprintf("round %d by %s", i, s.Encoder), applied(t, old, patch), new)
			again, _ := makePatch(t, old, new, Options{Zstd: zstd, Level: 3})
			if !bytes.Equal(patch, again) {
				t.Errorf("round %d by %s: two patches of the same trees differ", i, s.Encoder)
			}
		}
	}
}

// A file that is larger than a group, with an insertion that shifts all that
// follows, and a library whose version is in its name.
func TestLarge(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("packs 50 MB twice: not in the fast loop")
	}
	home := t.TempDir()
	old, new := filepath.Join(home, "old"), filepath.Join(home, "new")
	content := make([]byte, groupBytes*2+12345)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(content)
	lib := make([]byte, 1<<20)
	_, _ = r.Read(lib)
	do(t, os.MkdirAll(filepath.Join(old, "usr"), 0o755), os.MkdirAll(filepath.Join(new, "usr"), 0o755))
	do(t, os.WriteFile(filepath.Join(old, "usr/big"), content, 0o644), os.WriteFile(filepath.Join(old, "usr/libx.so.1.2"), lib, 0o644))
	shifted := slices.Concat([]byte("more than there was"), content)
	do(t, os.WriteFile(filepath.Join(new, "usr/big"), shifted, 0o644), os.WriteFile(filepath.Join(new, "usr/libx.so.1.3"), append(lib, 1), 0o644))
	for _, zstd := range []string{"-", ""} {
		patch, s := makePatch(t, old, new, Options{Zstd: zstd, Level: 3})
		t.Logf("%s: %d bytes for %d", s.Encoder, s.Bytes, s.Content)
		if s.Bytes > s.Content/20 {
			t.Errorf("%s: %d bytes for %d of random bytes of which all but a few were there: no part of the old tree was used", s.Encoder, s.Bytes, s.Content)
		}
		equal(t, s.Encoder, applied(t, old, patch), new)
	}
}

func TestSame(t *testing.T) {
	needRoot(t)
	home := t.TempDir()
	grow(t, home, rand.New(rand.NewPCG(1, 1)))
	patch, s := makePatch(t, home, home, Options{Zstd: "-"})
	if len(patch) > 0 || s.Entries != 0 || s.Gone != 0 {
		t.Errorf("a patch of a tree to itself: %d bytes, %+v", len(patch), s)
	}
}

// pair makes two small trees and a patch.
func pair(t testing.TB) (old string, patch []byte) {
	t.Helper()
	home := t.TempDir()
	old, new := filepath.Join(home, "old"), filepath.Join(home, "new")
	lib := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(lib)
	do(t, os.MkdirAll(filepath.Join(old, "usr/lib"), 0o755), os.MkdirAll(filepath.Join(new, "usr/lib"), 0o755))
	do(t, os.WriteFile(filepath.Join(old, "usr/lib/lib"), lib, 0o644), os.WriteFile(filepath.Join(old, "usr/lib/gone"), []byte("x"), 0o644))
	do(t, os.WriteFile(filepath.Join(new, "usr/lib/lib"), append(lib, "more"...), 0o644))
	patch, s := makePatch(t, old, new, Options{Zstd: "-"})
	if s.Bases != 1 || s.Gone != 1 {
		t.Fatalf("the patch: %+v; want one base and one path that goes", s)
	}
	return old, patch
}

// A machine that has another file than the patch needs is told which, before
// anything is read of what changes.
func TestOtherBase(t *testing.T) {
	old, patch := pair(t)
	lib := filepath.Join(old, "usr/lib/lib")
	b, err := os.ReadFile(lib)
	do(t, err)
	for _, c := range []struct {
		name string
		make func() error
		want string
	}{
		{"other bytes", func() error { return os.WriteFile(lib, append([]byte{b[0] ^ 1}, b[1:]...), 0o644) }, "has the digest"},
		{"another size", func() error { return os.WriteFile(lib, b[1:], 0o644) }, "has the digest"},
		{"none", func() error { return os.Remove(lib) }, "there is none"},
		{"a symlink", func() error { return os.Symlink("/etc/passwd", lib) }, "lib"},
		{"a folder", func() error { return errors.Join(os.Remove(lib), os.Mkdir(lib, 0o755)) }, "lib"},
		{"a FIFO", func() error { return errors.Join(os.Remove(lib), syscall.Mkfifo(lib, 0o644)) }, "lib"},
	} {
		do(t, c.make())
		_, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "/usr/lib/lib") {
			t.Errorf("%s: %v; want an error with %q and the path", c.name, err, c.want)
		}
		if c.want != "lib" {
			if hint, ok := errors.AsType[*change.HintError](err); !ok || hint.Hint != otherBase || !errors.Is(err, change.ErrVerification) {
				t.Errorf("%s: %v; want a verification error with what to do", c.name, err)
			}
		}
	}
}

// A machine that has the patch already is told so.
func TestTwice(t *testing.T) {
	old, patch := pair(t)
	lib := filepath.Join(old, "usr/lib/lib")
	b, err := os.ReadFile(lib)
	do(t, err, os.WriteFile(lib, append(b, "more"...), 0o644))
	_, err = Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), nil)
	if hint, ok := errors.AsType[*change.HintError](err); !ok || !strings.Contains(hint.Hint, "seems to be applied") {
		t.Errorf("a patch upon itself: %v", err)
	}
}

// Where the files as they were are kept, a patch upon itself gives its archive again;
// what is kept is taken by its content, and only for what is as the patch leaves it.
func TestTwiceWithWhatIsKept(t *testing.T) {
	old, patch := pair(t)
	first, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), nil)
	do(t, err)
	want, err := io.ReadAll(first.Tar(t.Context()))
	do(t, err)
	lib := filepath.Join(old, "usr/lib/lib")
	b, err := os.ReadFile(lib)
	before := filepath.Join(t.TempDir(), "lib")
	do(t, err, os.WriteFile(before, b, 0o644), os.WriteFile(lib, append(b, "more"...), 0o644))
	kept := func(content string) Kept {
		return func(change.Digest) (File, error) {
			if content != "" {
				return opener(dir(t, filepath.Dir(before)))("/" + content)
			}
			return nil, fs.ErrNotExist
		}
	}
	p, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), kept("lib"))
	do(t, err)
	got, err := io.ReadAll(p.Tar(t.Context()))
	do(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the archive differs where its base is a kept file")
	}
	do(t, os.WriteFile(filepath.Join(filepath.Dir(before), "damaged"), append([]byte{b[0] ^ 1}, b[1:]...), 0o644))
	for name, k := range map[string]Kept{"nothing kept": kept(""), "damaged": kept("damaged")} {
		if _, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), k); !errors.Is(err, errApplied) {
			t.Errorf("%s: %v; want that it is applied", name, err)
		}
	}
	do(t, os.WriteFile(lib, []byte("the machine's own"), 0o644))
	if _, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), kept("lib")); err == nil || errors.Is(err, errApplied) {
		t.Errorf("a file that is neither old nor new: %v; want that it is refused", err)
	}
}

// A base that changes between the check and the use is found by what comes out.
func TestBaseChangesMeanwhile(t *testing.T) {
	old, patch := pair(t)
	p, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), nil)
	do(t, err)
	do(t, os.WriteFile(filepath.Join(old, "usr/lib/lib"), bytes.Repeat([]byte{7}, 300_000), 0o644))
	if _, err := io.Copy(io.Discard, p.Tar(t.Context())); !errors.Is(err, change.ErrVerification) {
		t.Errorf("the archive of a base that changed: %v; want a verification error", err)
	}
}

// Each bit that flips and each byte that is missing is found, by an error and
// without a crash; nothing is read that was not announced.
func TestDamage(t *testing.T) {
	old, patch := pair(t)
	root := dir(t, old)
	read := func(b []byte) error {
		p, err := Open(context.Background(), bytes.NewReader(b), opener(root), nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, p.Tar(context.Background()))
		return err
	}
	if err := read(patch); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for i := range patch {
		for _, bad := range [][]byte{patch[:i], slices.Concat(patch[:i], []byte{patch[i] ^ byte(1<<(i%8))}, patch[i+1:])} {
			tried++
			if err := read(bad); err == nil {
				// A bit of a frame that decides nothing, as its header's unused ones:
				// what came out was what its digest says.
				continue
			} else if !errors.Is(err, change.ErrVerification) && !strings.Contains(err.Error(), "/usr/") {
				t.Fatalf("byte %d: %v; want a verification error", i, err)
			}
		}
	}
	for i := range patch {
		if err := read(patch[:i]); err == nil {
			t.Errorf("a patch without its last %d bytes is accepted", len(patch)-i)
		}
	}
	if err := read(append(slices.Clone(patch), 0)); err == nil || !strings.Contains(err.Error(), "after its end") {
		t.Errorf("a patch with a byte more: %v", err)
	}
	t.Logf("%d damaged patches tried", tried)
}

func FuzzOpen(f *testing.F) {
	old, patch := pair(f)
	root := dir(f, old)
	f.Add(patch)
	f.Add([]byte(magic))
	f.Fuzz(func(_ *testing.T, b []byte) {
		p, err := Open(context.Background(), bytes.NewReader(b), opener(root), nil)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, p.Tar(context.Background()))
	})
}
