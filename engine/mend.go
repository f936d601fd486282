package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/transact"
)

// mender makes the Delta that turns damage back into what is recorded.
type mender struct {
	s       *session
	base    *catalog.Base
	class   func(string) change.Class
	src     *update // nil where none is at hand
	covered []string
	kept    map[change.Digest][]string // where kept files lie, in the live root
	twins   map[change.Digest][]string // recorded paths of a digest that is wanted
	damaged map[string]bool
	entries map[string]*change.Entry
	lost    lostPaths
	buf     []byte
}

func (m *mender) close() { m.buf = nil }

// mendFrom opens the tree that a repair may read from: the one that was named, else
// the one that the update came from. It need not be signed: each file that is
// taken has the digest of the record, or is not taken.
func (s *session) mendFrom(ctx context.Context, of change.Generation) (*update, error) {
	from := *s
	from.req.AllowUnsigned = true
	if from.req.Source == "" {
		from.req.Source = of.Source
		if g, ok := s.generationBefore(of.ID); ok && strings.HasPrefix(of.Source, repairSource) {
			from.req.Source = g.Source
		}
	}
	if from.req.Source == "" {
		return nil, errors.New("none is recorded")
	}
	return from.openSource(ctx, Events{})
}

// mendKept puts damaged files that a generation keeps right, from the source or from
// wherever their content is. Nothing that is live changes.
func (s *session) mendKept(ctx context.Context, tx *transact.Tx, g change.Generation, damaged []transact.OldContent) error {
	list, err := s.store.List()
	if err != nil {
		return err
	}
	base, _, err := s.currentBase()
	if err != nil {
		return err
	}
	m := &mender{s: s, base: base, damaged: map[string]bool{}, entries: map[string]*change.Entry{}}
	if m.src, err = s.mendFrom(ctx, g); err != nil {
		return err
	}
	defer m.src.Close()
	wanted := map[change.Digest]bool{}
	for _, c := range damaged {
		wanted[c.Digest] = true
	}
	if err := errors.Join(m.keep(list), m.others(nil, wanted)); err != nil {
		return err
	}
	for _, c := range damaged {
		e := &change.Entry{Path: c.Path, New: &change.Node{Type: change.Regular, Size: c.Size, Digest: c.Digest}}
		if !m.find(e) {
			continue
		}
		at, from := m.src.Root(), e.From
		if e.FromLive {
			at, from = s.volumeOf(from)
		}
		in, err := sys.OpenContent(at, strings.TrimPrefix(from, "/"))
		if err != nil {
			return err
		}
		err = tx.MendKept(c, in)
		in.Close()
		if err != nil {
			return err
		}
		s.warnings = append(s.warnings, fmt.Sprintf("what was kept of %s was damaged, and has been mended from %s", c.Path, e.From))
	}
	return nil
}

// keep notes what the kept generations hold.
func (m *mender) keep(list []change.Generation) error {
	m.kept = map[change.Digest][]string{}
	for _, g := range list {
		if !g.Retained {
			continue
		}
		tx, err := m.s.store.Load(g.ID)
		if err != nil {
			return err
		}
		kept, err := tx.Kept()
		tx.Close()
		if err != nil {
			return err
		}
		for _, k := range kept {
			m.kept[k.Digest] = append(m.kept[k.Digest], k.From)
		}
	}
	return nil
}

func (m *mender) lose(p, format string, args ...any) {
	delete(m.entries, p)
	m.lost = append(m.lost, change.Damage{Path: p, Detail: fmt.Sprintf(format, args...)})
}

// delta makes an entry for each damaged path that can be mended.
func (m *mender) delta(ctx context.Context, damage []change.Damage) (*change.Delta, error) {
	m.damaged = map[string]bool{}
	groups := map[string]bool{} // hard-link groups that are made anew
	wanted := map[change.Digest]bool{}
	var unexpected []string
	for _, d := range damage {
		m.damaged[d.Path] = true
		if d.Problem == "unexpected" {
			unexpected = append(unexpected, d.Path)
			continue
		}
		want, ok := m.base.Get(d.Path)
		if !ok {
			return nil, fmt.Errorf("cannot repair %s: it is not recorded", d.Path)
		}
		if err := m.add(d.Path, want); err != nil {
			return nil, err
		}
		if e := m.entries[d.Path]; e != nil && want.Link != "" && (e.Op != change.Metadata || slices.Contains(d.Aspects, "links")) {
			groups[want.Link] = true
		} else if e != nil && slices.Contains(d.Aspects, "links") {
			m.anew(e)
		}
		wanted[want.Digest] = true
	}
	if err := m.others(groups, wanted); err != nil {
		return nil, err
	}
	for _, p := range unexpected {
		if err := m.remove(p, true); err != nil {
			return nil, err
		}
	}
	d := &change.Delta{}
	for _, p := range slices.Sorted(maps.Keys(m.entries)) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e := m.entries[p]
		if e == nil || !m.reachable(e) || e.New != nil && e.Op != change.Metadata && e.New.Type == change.Regular && !m.find(e) {
			continue
		}
		if e.New != nil && e.Op != change.Metadata {
			d.Bytes += e.New.Size
		}
		d.Entries = append(d.Entries, *e)
	}
	return m.whole(d), nil
}

// whole leaves out what goes with an object that could not be mended: files to
// be removed below a folder that stays, or added below one that does not come.
func (m *mender) whole(d *change.Delta) *change.Delta {
	lost := map[string]bool{}
	for _, l := range m.lost {
		lost[l.Path] = true
	}
	d.Entries = slices.DeleteFunc(d.Entries, func(e change.Entry) bool {
		for dir := path.Dir(e.Path); dir != "/"; dir = path.Dir(dir) {
			if lost[dir] {
				return true
			}
		}
		return false
	})
	return d
}

// others adds the names that share an inode with one that is made anew, and
// finds the paths that are recorded with a digest that is wanted.
func (m *mender) others(groups map[string]bool, wanted map[change.Digest]bool) error {
	m.twins = map[change.Digest][]string{}
	for p, n := range m.base.All() {
		if n.Type == change.Regular && wanted[n.Digest] && !m.damaged[p] {
			m.twins[n.Digest] = append(m.twins[n.Digest], p)
		}
		if n.Link == "" || !groups[n.Link] {
			continue
		}
		if m.entries[p] == nil {
			if err := m.add(p, n); err != nil {
				return err
			}
		}
		if e := m.entries[p]; e != nil {
			e.New.Link = n.Link
			m.anew(e)
		}
	}
	return nil
}

// anew makes of a change in place one of the object itself.
func (m *mender) anew(e *change.Entry) {
	if e.Op == change.Metadata {
		e.Op = change.Replace
		e.Aspects |= change.AspectLinks
	}
}

// add makes the entry of one recorded path.
func (m *mender) add(p string, want *change.Node) error {
	old, err := m.describe(p)
	if err != nil {
		return fmt.Errorf("cannot repair %s: %w", p, err)
	}
	now := *want
	e := &change.Entry{Path: p, Op: change.Add, Old: old, New: &now}
	now.Link = ""
	m.entries[p] = e
	if old == nil {
		return nil
	}
	if slices.Contains(m.covered, p) {
		m.lose(p, "something is mounted on it: unmount it first")
		return nil
	}
	e.Op, e.Aspects = change.Replace, aspectsOf(old, want)
	now.Xattrs = withMachines(want.Xattrs, old.Xattrs)
	if old.Type == want.Type && (want.IsDir() || !slices.Contains([]change.Type{change.Regular, change.Symlink}, want.Type) && old.Rdev == want.Rdev ||
		want.Type == change.Symlink && old.Target == want.Target) {
		e.Op = change.Metadata
		return nil
	}
	if old.Type == change.Regular && want.Type == change.Regular && old.Size == want.Size {
		digest, err := m.digest(m.s.vols[0].Dir, p, true)
		if err == nil && digest == want.Digest {
			old.Digest = digest
			e.Op = change.Metadata
			e.Aspects &^= change.AspectContent
			return nil
		}
	}
	if old.IsDir() {
		return m.remove(p, false)
	}
	return nil
}

// withMachines are the recorded attributes with those that the machine gave.
func withMachines(want, live map[string][]byte) map[string][]byte {
	out := maps.Clone(want)
	for key, val := range live {
		if _, ok := want[key]; ok || !change.MachineXattr(key) {
			continue
		}
		if out == nil {
			out = map[string][]byte{}
		}
		out[key] = val
	}
	return out
}

// aspectsOf is what a plan tells of the difference.
func aspectsOf(old, want *change.Node) change.Aspect {
	if old.Type != want.Type {
		return change.AspectType
	}
	var a change.Aspect
	if old.Type == change.Regular || old.Target != want.Target || old.Rdev != want.Rdev {
		a |= change.AspectContent
	}
	if old.Mode != want.Mode && want.Type != change.Symlink {
		a |= change.AspectMode
	}
	if old.UID != want.UID || old.GID != want.GID {
		a |= change.AspectOwner
	}
	if !maps.EqualFunc(old.Xattrs, withMachines(want.Xattrs, old.Xattrs), bytes.Equal) {
		a |= change.AspectXattr
	}
	return a
}

// remove lists what is at a path that goes, and all below it; top itself only
// where it is to go without a successor.
func (m *mender) remove(top string, itself bool) error {
	for _, mount := range m.covered {
		if mount == top || strings.HasPrefix(mount, top+"/") {
			m.lose(top, "%s is mounted there: unmount it first", mount)
			return nil
		}
	}
	var list []*change.Entry
	var walk func(p string) (bool, error)
	walk = func(p string) (bool, error) {
		if class := m.class(p); p != top && class != change.ClassWhole && class != change.ClassListed {
			m.lose(top, "it holds what is the machine's own: %s", p)
			return false, nil
		}
		n, err := m.describe(p)
		if err != nil || n == nil {
			return err == nil, err
		}
		if p != top || itself {
			list = append(list, &change.Entry{Path: p, Op: change.Remove, Old: n})
		}
		if !n.IsDir() {
			return true, nil
		}
		vol, rel := m.s.volumeOf(p)
		dir, err := sys.OpenDirAt(vol, strings.TrimPrefix(rel, "/"))
		if err != nil {
			return false, err
		}
		names, err := sys.ReadDirNames(dir)
		dir.Close()
		if err != nil {
			return false, err
		}
		for _, name := range names {
			if ok, err := walk(path.Join(p, name)); !ok || err != nil {
				return ok, err
			}
		}
		return true, nil
	}
	ok, err := walk(top)
	if err != nil {
		return fmt.Errorf("cannot repair %s: %w", top, err)
	}
	if ok {
		for _, e := range list {
			m.entries[e.Path] = e
		}
	}
	return nil
}

// reachable tells whether the folder of what is added is there, or comes too.
func (m *mender) reachable(e *change.Entry) bool {
	if e.Op != change.Add {
		return true
	}
	dir := path.Dir(e.Path)
	if above := m.entries[dir]; above != nil && above.New.IsDir() {
		return true
	}
	if n, err := m.describe(dir); err == nil && n.IsDir() {
		return true
	}
	m.lose(e.Path, "its folder is gone")
	return false
}

// find looks for the content of a file, by its digest.
func (m *mender) find(e *change.Entry) bool {
	want := e.New
	if want.Digest.IsZero() {
		m.lose(e.Path, "no digest of it is recorded")
		return false
	}
	if e.Old != nil && e.Old.Digest == want.Digest {
		// Its own content is right: it must only get an inode of its own.
		e.From, e.FromLive = e.Path, true
		return true
	}
	var tried []string
	root := m.s.vols[0].Dir
	for _, places := range []struct {
		what  string
		paths []string
	}{{"a kept generation", m.kept[want.Digest]}, {"", m.twins[want.Digest]}} {
		for _, p := range places.paths {
			if digest, err := m.digest(root, p, true); err == nil && digest == want.Digest {
				e.From, e.FromLive = p, true
				return true
			}
			if places.what != "" {
				tried = append(tried, "what "+places.what+" holds is damaged, too")
			}
		}
	}
	if m.src != nil {
		for _, p := range inSource(e.Path) {
			if m.src.Skip(p) {
				continue
			}
			digest, err := m.digest(m.src.Root(), p, false)
			if err == nil && digest == want.Digest {
				e.From, e.FromLive = p, false
				return true
			}
			if err == nil {
				tried = append(tried, "the source has another version")
			}
		}
	}
	why := "no kept generation has its content, and neither has a source"
	if slices.Sort(tried); len(tried) > 0 {
		why = strings.Join(slices.Compact(tried), "; ")
	}
	m.lose(e.Path, "%s (sha256 %s)", why, want.Digest)
	return false
}

// inSource is where a source may have what lands at a path: a tree of the old
// layout has /lib where a merged root has /usr/lib.
func inSource(p string) []string {
	out := []string{p}
	if rest, ok := strings.CutPrefix(p, "/usr"); ok {
		for _, top := range []string{"/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/"} {
			if strings.HasPrefix(rest, top) {
				out = append(out, rest)
			}
		}
	}
	return out
}

// describe is all of a live object but its digest; nil where there is none.
func (m *mender) describe(p string) (*change.Node, error) {
	vol, rel := m.s.volumeOf(p)
	rel = strings.TrimPrefix(rel, "/")
	for _, v := range m.s.vols[1:] {
		if v.Mount == p {
			vol, rel = v.Dir, "."
		}
	}
	dir, err := sys.OpenAt(vol, path.Dir(rel), sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := path.Base(rel)
	n, err := sys.Lstat(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if n.Xattrs, err = sys.Xattrs(dir, name); err != nil {
		return nil, err
	}
	if n.Type == change.Symlink {
		n.Target, err = sys.Readlink(dir, name)
	}
	return n, err
}

// digest reads a file, of the live root or of the source.
func (m *mender) digest(at *sys.FD, p string, live bool) (d change.Digest, err error) {
	rel := p
	if live {
		at, rel = m.s.volumeOf(p)
	}
	f, err := sys.OpenRegular(at, strings.TrimPrefix(rel, "/"), sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return d, err
	}
	defer f.Close()
	if m.buf == nil {
		m.buf = make([]byte, 256<<10)
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(f, 0, f.Size()), m.buf); err != nil {
		return d, err
	}
	h.Sum(d[:0])
	return d, nil
}
