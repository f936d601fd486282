package diff

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// randomTree makes a tree of few names, so that two of them collide often.
func randomTree(t *testing.T, rng *rand.Rand, dir string, depth int) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var files []string
	var fill func(at string, depth int)
	fill = func(at string, depth int) {
		for _, name := range []string{"a", "a-b", "b", "c\xff", "d", "e"} {
			p := filepath.Join(at, name)
			switch rng.IntN(9) {
			case 0, 1:
				if depth > 0 {
					check(os.Mkdir(p, 0o755))
					check(syscall.Chmod(p, []uint32{0o755, 0o700, 0o2755}[rng.IntN(3)]))
					fill(p, depth-1)
				}
			case 2, 3:
				check(os.WriteFile(p, []byte{byte('0' + rng.IntN(3))}, 0o644))
				check(syscall.Chmod(p, []uint32{0o644, 0o600, 0o4755}[rng.IntN(3)]))
				if rng.IntN(4) == 0 {
					// Not every file system that tests run on has them; then
					// the trees are poorer, and no less trees.
					if err := syscall.Setxattr(p, "user.x", []byte{byte(rng.IntN(2))}, 0); err != nil && err != syscall.ENOTSUP {
						t.Fatal(err)
					}
				}
				check(os.Chtimes(p, old, old.Add(time.Duration(rng.IntN(2)))))
				files = append(files, p)
			case 4:
				// Never to a folder: partial trees land in those, which has tests of its own.
				check(os.Symlink([]string{"nothing", "none"}[rng.IntN(2)], p))
				setMtime(t, at, name, old.UnixNano())
				files = append(files, p)
			case 5:
				if len(files) > 0 {
					check(os.Link(files[rng.IntN(len(files))], p))
					files = append(files, p)
				}
			case 6:
				if rng.IntN(4) == 0 {
					check(syscall.Mkfifo(p, 0o644))
					check(os.Chtimes(p, old, old))
				}
			}
		}
	}
	fill(dir, depth)
}

// TestCompareProperty: what is applied is no difference any more, what is
// equal is none, and a root that is owned wholly becomes the source.
func TestCompareProperty(t *testing.T) {
	t.Parallel()
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	for seed := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(seed, 1))
		b := newBed(t, t.TempDir(), t.TempDir(), owned())
		b.o.AllowRemovals = true
		randomTree(t, rng, b.src, 3)
		randomTree(t, rng, b.live, 3)
		r := b.compare(t)
		again := b.compare(t)
		if diff := cmp.Diff(brief(r.Delta), brief(again.Delta)); diff != "" {
			t.Fatalf("seed %d: two comparisons differ:\n%s", seed, diff)
		}
		noSurvivors(t, seed, b, r.Delta)
		apply(t, b, r.Delta)
		if d := b.compare(t).Delta; !d.Empty() {
			t.Fatalf("seed %d: after %q was applied: %q", seed, brief(r.Delta), brief(d))
		}
		if diff := cmp.Diff(snapshot(t, b.src), snapshot(t, b.live)); diff != "" {
			t.Fatalf("seed %d: source and root (-want +got):\n%s", seed, diff)
		}
	}
}

// The same for a tree that owns only what it lists: what the machine has
// besides must be what it was, whatever inode it now has.
func TestComparePropertyListed(t *testing.T) {
	t.Parallel()
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	applied := 0
	for seed := range uint64(rounds) {
		rng := rand.New(rand.NewPCG(seed, 2))
		b := newBed(t, t.TempDir(), t.TempDir(), listed())
		randomTree(t, rng, b.src, 2)
		randomTree(t, rng, b.live, 2)
		r, err := Compare(t.Context(), b.source, b.own, b.o)
		if err != nil && strings.Contains(err.Error(), "is not the update's") {
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		applied++
		noSurvivors(t, seed, b, r.Delta)
		before := besides(t, b)
		apply(t, b, r.Delta)
		if d := b.compare(t).Delta; !d.Empty() {
			t.Fatalf("seed %d: after %q was applied: %q", seed, brief(r.Delta), brief(d))
		}
		if diff := cmp.Diff(before, besides(t, b)); diff != "" {
			t.Fatalf("seed %d: what the source lacks (-before +after):\n%s", seed, diff)
		}
	}
	if applied < rounds/10 {
		t.Errorf("only %d of %d rounds were applied", applied, rounds)
	}
}

// besides is the part of the root that the source lacks, without link groups.
func besides(t *testing.T, b *bed) []string {
	t.Helper()
	var out []string
	for _, line := range snapshot(t, b.live) {
		p, _, _ := strings.Cut(line, " ")
		if _, err := os.Lstat(filepath.Join(b.src, p)); os.IsNotExist(err) {
			line, _, _ = strings.Cut(line, " =/")
			out = append(out, line)
		}
	}
	return out
}

// noSurvivors checks the rule about live inodes: one that loses a name to the
// Delta loses all, and one that is changed in place has no name that the Delta
// does not know.
func noSurvivors(t *testing.T, seed uint64, b *bed, d *change.Delta) {
	t.Helper()
	names := map[uint64][]string{}
	err := filepath.WalkDir(b.live, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			info, err := e.Info()
			if err != nil {
				return err
			}
			ino := info.Sys().(*syscall.Stat_t).Ino
			names[ino] = append(names[ino], strings.TrimPrefix(p, b.live))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lost := map[uint64][]string{}
	for _, e := range d.Entries {
		if (e.Op == change.Replace || e.Op == change.Remove) && !e.Old.IsDir() {
			lost[e.Old.Ino] = append(lost[e.Old.Ino], e.Path)
		}
	}
	for ino, gone := range lost {
		slices.Sort(gone)
		slices.Sort(names[ino])
		if !slices.Equal(gone, names[ino]) {
			t.Fatalf("seed %d: inode %d has the names %q, and loses %q only: %q", seed, ino, names[ino], gone, brief(d))
		}
	}
	for _, e := range d.Entries {
		if e.Op == change.Metadata && lost[e.Old.Ino] != nil {
			t.Fatalf("seed %d: %s is changed in place, and loses names", seed, e.Path)
		}
	}
	if err := distinct(d); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
}

func distinct(d *change.Delta) error {
	for i := 1; i < len(d.Entries); i++ {
		if d.Entries[i-1].Path >= d.Entries[i].Path {
			return fmt.Errorf("%q does not come before %q", d.Entries[i-1].Path, d.Entries[i].Path)
		}
	}
	return nil
}

// The checks above must be able to fail.
func TestPropertyChecksCanFail(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f a y"), build(t, "f a x", "h b a"), listed())
	d := b.compare(t).Delta
	d.Entries = d.Entries[:1] // without /b, which has to leave the inode
	if got := brief(d); !slices.Equal(got, []string{"replace /a content"}) {
		t.Fatalf("Compare = %q", got)
	}
	apply(t, b, d)
	if diff := cmp.Diff(snapshot(t, b.src), snapshot(t, b.live)); diff == "" {
		t.Error("a root with a name too many equals the source")
	}
}
