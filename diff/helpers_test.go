package diff

import (
	"cmp"
	"context"
	"fmt"
	"hash"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
)

// old is the mtime of all files that a test does not give another one.
var old = time.Unix(1_600_000_000, 123_456_789)

// treeSource is a directory as a Source.
type treeSource struct {
	fd     *sys.FD
	whole  bool
	skip   map[string]bool
	claims map[string]*change.Node // nil: unsigned
}

func (s *treeSource) Root() *sys.FD      { return s.fd }
func (s *treeSource) Whole() bool        { return s.whole }
func (s *treeSource) Skip(p string) bool { return s.skip[p] }
func (s *treeSource) Claim(p string) (*change.Node, bool) {
	return s.claims[p], s.claims != nil
}

// owner is an Owner by prefix: the longest one that matches counts.
type owner struct {
	classes map[string]change.Class
	base    map[string]*change.Node
}

func (o *owner) Class(p string) change.Class {
	for q := p; ; q = filepath.Dir(q) {
		if c, ok := o.classes[q]; ok {
			return c
		}
		if q == "/" {
			return change.ClassListed
		}
	}
}

// Decide is the rule of /etc in its plainest form.
func (o *owner) Decide(p string, live, src *change.Node) change.Decision {
	was, recorded := o.base[p]
	unchanged := recorded && live != nil && difference(was, live)&^change.AspectMtime == 0
	switch {
	case src == nil && unchanged:
		return change.Decision{Verdict: change.VerdictRemove}
	case src == nil:
		return change.Decision{Verdict: change.VerdictKeep, Reason: "the machine changed it"}
	case live == nil && recorded:
		return change.Decision{Verdict: change.VerdictKeep, Reason: "the machine removed it"}
	case live == nil || unchanged:
		return change.Decision{Verdict: change.VerdictTake}
	case !recorded:
		return change.Decision{Verdict: change.VerdictTake, Reason: "no base is recorded", Warning: true}
	}
	return change.Decision{Verdict: change.VerdictBeside, Reason: "the machine changed it"}
}

func (o *owner) Recorded() iter.Seq[string] {
	return func(yield func(string) bool) {
		for p := range maps.Keys(o.base) {
			if o.Class(p) == change.ClassThreeWay && !yield(p) {
				return
			}
		}
	}
}

func whole() *owner {
	return &owner{classes: map[string]change.Class{
		"/": change.ClassNever, "/usr": change.ClassWhole, "/usr/local": change.ClassNever,
		"/bin": change.ClassWhole, "/lib": change.ClassWhole, "/sbin": change.ClassWhole,
		"/etc": change.ClassThreeWay, "/etc/machine-id": change.ClassNever,
		"/var": change.ClassAddOnly, "/boot": change.ClassAddOnly,
	}}
}

func listed() *owner { return &owner{} }

func owned() *owner {
	return &owner{classes: map[string]change.Class{"/": change.ClassWhole}}
}

func openDir(t testing.TB, dir string) *sys.FD {
	t.Helper()
	fd, err := sys.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

// build makes a tree from lines:
//
//	d PATH [MODE]      f PATH CONTENT [MODE]      l PATH TARGET
//	h PATH FIRST       p PATH                     s PATH (socket)
//
// Folders above are made where they are missing.
func build(t testing.TB, lines ...string) string {
	t.Helper()
	dir := t.TempDir()
	extend(t, dir, lines...)
	return dir
}

func extend(t testing.TB, dir string, lines ...string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range lines {
		word := strings.Split(line, " ")
		p := filepath.Join(dir, word[1])
		check(os.MkdirAll(filepath.Dir(p), 0o755))
		mode := func(i int, otherwise fs.FileMode) fs.FileMode {
			if len(word) <= i {
				return otherwise
			}
			var m uint32
			_, err := fmt.Sscanf(word[i], "%o", &m)
			check(err)
			return fs.FileMode(m)
		}
		switch word[0] {
		case "d":
			check(os.MkdirAll(p, 0o755))
			check(syscall.Chmod(p, uint32(mode(2, 0o755))))
		case "f":
			check(os.WriteFile(p, []byte(word[2]), 0o644))
			check(syscall.Chmod(p, uint32(mode(3, 0o644))))
			check(os.Chtimes(p, old, old))
		case "l":
			check(os.Symlink(word[2], p))
			setMtime(t, dir, word[1], old.UnixNano())
		case "h":
			check(os.Link(filepath.Join(dir, word[2]), p))
		case "p":
			check(syscall.Mkfifo(p, 0o644))
			check(os.Chtimes(p, old, old))
		case "s":
			check(syscall.Mknod(p, syscall.S_IFSOCK|0o644, 0))
		default:
			t.Fatalf("no such line: %q", line)
		}
	}
}

func setMtime(t testing.TB, dir, p string, ns int64) {
	t.Helper()
	fd := openDir(t, filepath.Join(dir, filepath.Dir(p)))
	if err := (*sys.Kernel)(nil).SetMtime(fd, filepath.Base(p), ns); err != nil {
		t.Fatal(err)
	}
}

type bed struct {
	src, live string
	own       *owner
	source    *treeSource
	o         Options
}

func newBed(t testing.TB, src, live string, own *owner) *bed {
	return &bed{
		src: src, live: live, own: own, source: &treeSource{fd: openDir(t, src)},
		o: Options{Live: openDir(t, live), Workers: 2},
	}
}

func (b *bed) compare(t testing.TB) *Result {
	t.Helper()
	r, err := Compare(context.Background(), b.source, b.own, b.o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// brief is a Delta as short lines: "replace /a content,mode", "replace /b links (live)".
func brief(d *change.Delta) []string {
	out := []string{}
	for _, e := range d.Entries {
		s := string(e.Op) + " " + e.Path
		if e.Aspects != 0 {
			s += " " + strings.Join(e.Aspects.Names(), ",")
		}
		if e.New != nil && e.New.Link != "" {
			s += " =" + e.New.Link
		}
		if e.FromLive {
			s += " (live)"
		} else if e.From != "" && e.From != e.Path {
			s += " <" + e.From
		}
		out = append(out, s)
	}
	return out
}

// apply carries out a Delta in the plainest way there is.
func apply(t testing.TB, b *bed, d *change.Delta) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What stays in the root with a fresh inode is saved first.
	saved := map[string][]byte{}
	for _, e := range d.Entries {
		if e.FromLive && e.New.Type == change.Regular {
			content, err := os.ReadFile(filepath.Join(b.live, e.From))
			check(err)
			saved[e.Path] = content
		}
	}
	for _, e := range slices.Backward(d.Entries) {
		// A folder that becomes a folder's metadata stays; all else goes, deepest first.
		if e.Op == change.Remove || e.Op == change.Replace {
			check(os.Remove(filepath.Join(b.live, e.Path)))
		}
	}
	k := (*sys.Kernel)(nil)
	for _, e := range d.Entries {
		if e.Op == change.Remove {
			continue
		}
		at := filepath.Join(b.live, e.Path)
		n := e.New
		if e.Op != change.Metadata {
			if n.Link != "" && n.Link != e.Path {
				check(os.Link(filepath.Join(b.live, n.Link), at))
				continue
			}
			switch n.Type {
			case change.Directory:
				check(os.Mkdir(at, 0o755))
			case change.Symlink:
				check(os.Symlink(n.Target, at))
			case change.FIFO:
				check(syscall.Mkfifo(at, 0o644))
			case change.Regular:
				content, ok := saved[e.Path]
				if !e.FromLive {
					var err error
					content, err = os.ReadFile(filepath.Join(b.src, e.From))
					check(err)
				} else if !ok {
					t.Fatalf("%s was not saved", e.Path)
				}
				check(os.WriteFile(at, content, 0o644))
			default:
				t.Fatalf("cannot make a %s", n.Type)
			}
		}
		fd := openDir(t, filepath.Dir(at))
		check(k.Chown(fd, filepath.Base(at), n.UID, n.GID))
		if n.Type != change.Symlink {
			check(k.Chmod(fd, filepath.Base(at), n.Mode))
		}
		if e.Op == change.Metadata {
			for key := range e.Old.Xattrs {
				if _, ok := n.Xattrs[key]; !ok {
					check(k.RemoveXattr(fd, filepath.Base(at), key))
				}
			}
		}
		for key, val := range n.Xattrs {
			check(k.SetXattr(fd, filepath.Base(at), key, val))
		}
		if n.Type != change.Directory {
			check(k.SetMtime(fd, filepath.Base(at), n.MtimeNS))
		}
	}
}

// snapshot is all of a tree that a comparison is about, as text.
func snapshot(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	first := map[uint64]string{}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		check(err)
		if p == dir {
			return nil
		}
		fd := openDir(t, filepath.Dir(p))
		defer fd.Close()
		n, err := sys.Lstat(fd, filepath.Base(p))
		check(err)
		rel := strings.TrimPrefix(p, dir)
		s := fmt.Sprintf("%s %s %04o %d:%d", rel, n.Type, n.Mode, n.UID, n.GID)
		xattrs, err := sys.Xattrs(fd, filepath.Base(p))
		check(err)
		for _, key := range slices.Sorted(maps.Keys(xattrs)) {
			s += fmt.Sprintf(" %s=%q", key, xattrs[key])
		}
		if n.Type != change.Directory {
			s += fmt.Sprintf(" %d", n.MtimeNS)
		}
		switch n.Type {
		case change.Symlink:
			target, err := os.Readlink(p)
			check(err)
			s += " -> " + target
		case change.Regular:
			content, err := os.ReadFile(p)
			check(err)
			s += fmt.Sprintf(" %q", content)
		}
		if n.Type != change.Directory && n.Nlink > 1 {
			s += " =" + cmp.Or(first[n.Ino], rel)
			first[n.Ino] = cmp.Or(first[n.Ino], rel)
		}
		out = append(out, s)
		return nil
	}))
	return out
}

// readBase writes entries as a recorded base and reads them.
func readBase(t testing.TB, entries iter.Seq2[string, *change.Node]) *catalog.Base {
	t.Helper()
	dir := openDir(t, t.TempDir())
	if err := catalog.WriteBase(nil, dir, "base", false, entries); err != nil {
		t.Fatal(err)
	}
	base, err := catalog.ReadBase(dir, "base")
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// meddler is a hash that does something each time it is written to.
type meddler struct {
	hash.Hash
	do func()
}

func (m *meddler) Write(b []byte) (int, error) {
	m.do()
	return m.Hash.Write(b)
}
