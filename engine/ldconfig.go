package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/rootfs"
)

// libraryCache adds to an update what ldconfig makes of it: the loader's cache,
// and the links by which libraries are found. They are made by the new tree's own
// program, in a view of the tree as it will be, before the plan: so they are
// planned, committed and taken back like all else. A source that brings a cache
// of its own keeps it.
func (s *session) libraryCache(ctx context.Context, p *planned, content *sys.FD, ev Events) error {
	if p.delta.Empty() || s.bringsCache(p, content) {
		return nil
	}
	old := rootfs.Volumes(s.rootVolumes()...)
	libs := rootfs.ReadLibraries(old, rootfs.Overlay(old, p.delta, content), p.delta)
	if len(libs.Causes) == 0 {
		return nil
	}
	var found []nsmount.ViewFile
	var err error
	why := "there is no ldconfig"
	if libs.Program != "" {
		ev.progress("previewing", 0, 0, "", libs.Program)
		if found, err = s.runLdconfig(ctx, p, content, libs); err != nil {
			why = err.Error()
		}
	}
	if _, ok := errors.AsType[*sys.UnsupportedError](err); ok || libs.Program == "" {
		d := *p.delta
		d.Warnings = append(slices.Clip(d.Warnings), fmt.Sprintf(
			"%s: the loader reads %s, which is not made anew (%s): it takes effect when ldconfig has run", libs.Causes[0], rootfs.LdCache, why))
		p.delta = &d
		return nil
	}
	if err != nil {
		return err
	}
	m := &made{s: s, by: "ldconfig", old: old, mtime: latest(p.delta, libs.Causes), entries: map[string]*change.Entry{}}
	for i := range p.delta.Entries {
		m.entries[p.delta.Entries[i].Path] = &p.delta.Entries[i]
	}
	if err := m.take(found, libs, rootfs.Overlay(old, p.delta, content)); err != nil {
		return err
	}
	p.delta = m.delta(p.delta)
	if p.result != nil && len(m.links) > 0 {
		p.records = m.record(p.record())
	}
	return s.judgeVolumes(p.delta)
}

// bringsCache tells whether the cache that the root will have is the source's.
func (s *session) bringsCache(p *planned, content *sys.FD) bool {
	i := slices.IndexFunc(p.delta.Entries, func(e change.Entry) bool { return e.Path == rootfs.LdCache })
	if i >= 0 {
		return p.delta.Entries[i].New != nil
	}
	if p.src == nil || slices.ContainsFunc(p.delta.Kept, func(k change.Kept) bool { return k.Path == rootfs.LdCache }) {
		return false
	}
	_, err := sys.LstatPath(content, strings.TrimPrefix(rootfs.LdCache, "/"))
	return err == nil
}

// runLdconfig gives what the new tree's ldconfig left in the view.
func (s *session) runLdconfig(ctx context.Context, p *planned, content *sys.FD, libs *rootfs.Libraries) ([]nsmount.ViewFile, error) {
	view, err := s.preview(ctx, p.delta, content, func(path string) bool { return libs.Needs[path] })
	if err != nil {
		return nil, err
	}
	out, err := view.Do(ctx, nsmount.ViewSession{
		// -i: what an auxiliary cache says of inodes is not true of a view's.
		Programs:  []nsmount.ViewProgram{{Argv: []string{libs.Program, "-i"}, Limit: checkTimeout}},
		NoNetwork: true, Take: []string{rootfs.LdCache}, Written: true,
	})
	if err != nil {
		return nil, err
	}
	end := &out.Programs[0]
	if end.Foreign {
		return nil, &sys.UnsupportedError{Feature: "the new tree's " + libs.Program, Needs: "a processor of its kind"}
	}
	if err := end.Err(); err != nil {
		return nil, change.WithHint(fmt.Errorf("cannot make the new %s: %s fails: %w%s; %w", rootfs.LdCache, libs.Program, err, quoteOutput(end.Output), ErrNothingCommitted),
			"see what it says of the libraries of the update")
	}
	return out.Found, nil
}

// latest is when the last of some changed paths was changed, so that what is
// made of them is the same in each run.
func latest(d *change.Delta, paths []string) int64 {
	var at int64
	for i := range d.Entries {
		e := &d.Entries[i]
		if _, ok := slices.BinarySearch(paths, e.Path); ok {
			n := e.New
			if n == nil {
				n = e.Old
			}
			at = max(at, n.MtimeNS)
		}
	}
	return at
}

// made collects what a program of the new tree makes of an update.
type made struct {
	s       *session
	by      string
	old     rootfs.View
	mtime   int64
	entries map[string]*change.Entry // of the update
	out     []change.Entry
	dropped map[string]bool
	links   map[string]*change.Node
}

// record is what is recorded of the update, and the links that were made: in a
// folder that is all the image's, what no record has is damage.
func (m *made) record(of iter.Seq2[string, *change.Node]) iter.Seq2[string, *change.Node] {
	return func(yield func(string, *change.Node) bool) {
		left := slices.Sorted(maps.Keys(m.links))
		for p, n := range of {
			for len(left) > 0 && left[0] <= p {
				at := left[0]
				left = left[1:]
				if at == p {
					n = m.links[at]
				} else if !yield(at, m.links[at]) {
					return
				}
			}
			if !yield(p, n) {
				return
			}
		}
		for _, at := range left {
			if !yield(at, m.links[at]) {
				return
			}
		}
	}
}

// take looks at what ldconfig left: the cache, and links in library folders.
func (m *made) take(found []nsmount.ViewFile, libs *rootfs.Libraries, after rootfs.View) error {
	cached := false
	for _, f := range found {
		p := string(f.Path)
		switch {
		case p == rootfs.LdCache && !f.Gone:
			cached = true
			if err := m.cache(f, libs); err != nil {
				return err
			}
		case !libs.InLibraryFolder(p):
		case f.Gone:
			if err := m.stale(p, after); err != nil {
				return err
			}
		case f.Type == change.Symlink:
			now, err := after.Lstat(p)
			if err == nil && now.Type == change.Symlink && now.Target == string(f.Target) {
				continue
			}
			n := &change.Node{Type: change.Symlink, Mode: 0o777, UID: f.UID, GID: f.GID, Target: string(f.Target), MtimeNS: m.mtime}
			if m.links == nil {
				m.links = map[string]*change.Node{}
			}
			m.links[p] = n
			if err := m.add(p, n, nil); err != nil {
				return err
			}
		}
	}
	if _, err := m.old.Lstat(rootfs.LdCache); err == nil && !cached {
		return m.unreadable(libs, "it left none")
	}
	return nil
}

func (m *made) unreadable(libs *rootfs.Libraries, why string) error {
	return change.WithHint(fmt.Errorf("cannot make the new %s: what %s made is no cache that the loader reads: %s; %w", rootfs.LdCache, libs.Program, why, ErrNothingCommitted),
		"see whether the update's ldconfig fits its loader")
}

// cache enters the cache where the loader finds something else by it.
func (m *made) cache(f nsmount.ViewFile, libs *rootfs.Libraries) error {
	if f.Type != change.Regular {
		return m.unreadable(libs, "it is a "+f.Type.String())
	}
	before, err := m.old.ReadFile(rootfs.LdCache)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read the present cache: %w", err)
	}
	same, err := rootfs.SameCache(before, f.Content)
	if err != nil {
		return m.unreadable(libs, err.Error())
	}
	if same {
		m.drop(rootfs.LdCache) // the update may remove it
		return nil
	}
	n := &change.Node{
		Type: change.Regular, Mode: f.Mode, UID: f.UID, GID: f.GID, Size: int64(len(f.Content)), MtimeNS: m.mtime,
		Digest: change.Digest(sha256.Sum256(f.Content)),
	}
	return m.add(rootfs.LdCache, n, f.Content)
}

// stale enters a link that ldconfig removed, where it led to what the update
// removes: one that led nowhere before is not the update's business.
func (m *made) stale(p string, after rootfs.View) error {
	if _, err := m.old.Resolve(p); err != nil {
		return nil //nolint:nilerr // so it was before
	}
	if _, err := after.Resolve(p); err == nil {
		return nil
	}
	if _, err := after.Lstat(p); err != nil {
		return nil //nolint:nilerr // the update removes it
	}
	return m.add(p, nil, nil)
}

// drop leaves out what the update itself does to a path.
func (m *made) drop(p string) {
	if m.dropped == nil {
		m.dropped = map[string]bool{}
	}
	m.dropped[p] = true
}

// add enters one path in place of what the update itself has there.
func (m *made) add(p string, n *change.Node, content []byte) error {
	m.drop(p)
	if hidden := m.s.hiding(p); hidden != "" {
		return change.WithHint(fmt.Errorf("cannot make %s: %s is mounted over it; %w", p, hidden, ErrNothingCommitted),
			"unmount it, then run the same command again")
	}
	old, err := m.old.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		old = nil
	} else if err != nil {
		return fmt.Errorf("cannot look at %s: %w", p, err)
	}
	if old != nil {
		c := *old
		at, rel := m.s.volumeOf(p)
		if c.Xattrs, err = sys.Xattrs(at, strings.TrimPrefix(rel, "/")); err != nil {
			return fmt.Errorf("cannot look at %s: %w", p, err)
		}
		old = &c
	}
	e := change.Entry{Path: p, Op: change.Add, Old: old, New: n, MadeBy: m.by, Made: content}
	switch {
	case old == nil && n == nil:
		return nil
	case n == nil:
		e.Op = change.Remove
	case old != nil:
		e.Op, e.Aspects = change.Replace, change.AspectContent|change.AspectMtime
		if old.Type != n.Type {
			e.Aspects |= change.AspectType
		} else if old.Type == change.Symlink && old.Target == n.Target {
			m.links[p] = old // it stays, with its own time
			return nil
		}
		if len(old.Xattrs) > 0 && n.Type == old.Type {
			n.Xattrs = old.Xattrs // a label, or an ACL
		}
	}
	m.out = append(m.out, e)
	return nil
}

// delta is the update with what was made of it.
func (m *made) delta(d *change.Delta) *change.Delta {
	if len(m.dropped) == 0 {
		return d
	}
	with := *d
	with.Entries = slices.DeleteFunc(slices.Clone(d.Entries), func(e change.Entry) bool { return m.dropped[e.Path] })
	with.Entries = append(with.Entries, m.out...)
	slices.SortFunc(with.Entries, func(a, b change.Entry) int { return cmp.Compare(a.Path, b.Path) })
	for _, e := range m.out {
		with.Bytes += int64(len(e.Made))
	}
	return &with
}

// hiding is the mount point that hides a path of the root, "" for none.
func (s *session) hiding(p string) string {
	for _, point := range s.root.Covered() {
		if p == point || strings.HasPrefix(p, point+"/") {
			return point
		}
	}
	return ""
}
