package diff

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// linkRecord is an entry of the source that is taken or equal, where its
// inode or the live one has more than one name.
type linkRecord struct {
	path, srcPath string
	src, live     change.InodeKey // live is zero where nothing is there
	srcLinks      uint32
	liveLinks     uint32
	aspects       change.Aspect
	sn, ln        *change.Node // nil for equal ones: there may be many
}

// link notes an entry for settleLinks.
func (w *worker) link(e *encounter, aspects change.Aspect) {
	r := linkRecord{
		path: e.path(), srcPath: e.srcPath(), aspects: aspects,
		src: change.InodeKey{Dev: e.sn.Dev, Ino: e.sn.Ino}, srcLinks: e.sn.Nlink,
	}
	if e.ln != nil {
		r.live, r.liveLinks = change.InodeKey{Dev: e.ln.Dev, Ino: e.ln.Ino}, e.ln.Nlink
	}
	if aspects != 0 || e.ln == nil {
		r.sn, r.ln = e.sn, e.ln
	}
	w.linked = append(w.linked, r)
}

// linkGroup is the names that an inode of the source has in the update.
type linkGroup struct {
	names []*linkRecord // sorted by path
	anew  bool          // all of them are staged as one new inode
}

// lostNames are the names that a live inode loses, and how many it had.
type lostNames struct {
	names map[string]bool
	links uint32
}

// topology decides step 6: which groups are staged anew, and which live inodes lose names.
type topology struct {
	groups []*linkGroup
	byLive map[change.InodeKey][]*linkGroup // groups with a name on a live inode, each once
	lost   map[change.InodeKey]*lostNames
}

// newTopology groups the records by the source's inode. The entries are those
// that other steps have settled: what they replace or remove loses names, too.
func newTopology(linked []linkRecord, entries []change.Entry) *topology {
	t := &topology{byLive: map[change.InodeKey][]*linkGroup{}, lost: map[change.InodeKey]*lostNames{}}
	slices.SortFunc(linked, func(a, b linkRecord) int { return strings.Compare(a.path, b.path) })
	bySource := map[change.InodeKey]*linkGroup{}
	for i := range linked {
		r := &linked[i]
		g := bySource[r.src]
		if g == nil || r.srcLinks < 2 {
			g = &linkGroup{}
			bySource[r.src] = g
			t.groups = append(t.groups, g)
		}
		g.names = append(g.names, r)
		if r.liveLinks > 0 && !slices.Contains(t.byLive[r.live], g) {
			t.byLive[r.live] = append(t.byLive[r.live], g)
		}
	}
	for _, e := range entries {
		if (e.Op == change.Replace || e.Op == change.Remove) && e.Old.Type != change.Directory && e.Old.Nlink > 1 {
			t.lose(change.InodeKey{Dev: e.Old.Dev, Ino: e.Old.Ino}, e.Old.Nlink, e.Path)
		}
	}
	return t
}

func (t *topology) lose(inode change.InodeKey, links uint32, path string) {
	l := t.lost[inode]
	if l == nil {
		l = &lostNames{names: map[string]bool{}}
		t.lost[inode] = l
	}
	l.names[path] = true
	l.links = links
}

// same tells whether the group's names are those of one live inode, which has
// none of another group.
func (t *topology) same(g *linkGroup) bool {
	first := g.names[0]
	for _, r := range g.names {
		if r.liveLinks == 0 || r.live != first.live {
			return false
		}
	}
	return len(t.byLive[first.live]) == 1
}

func (t *topology) stageAnew(g *linkGroup) {
	g.anew = true
	for _, r := range g.names {
		if r.liveLinks > 0 {
			t.lose(r.live, r.liveLinks, r.path)
		}
	}
}

// settle marks the groups that are staged anew. Which those are does not
// depend on the order: an inode of a group that could be changed in place has
// no names of other groups, so staging one anew takes names from itself only.
func (t *topology) settle() {
	for _, g := range t.groups {
		if same := t.same(g); !same || !g.names[0].aspects.InPlace() {
			for _, r := range g.names {
				if !same {
					r.aspects |= change.AspectLinks
				}
			}
			t.stageAnew(g)
		}
	}
	for _, g := range t.groups {
		first := g.names[0]
		if g.anew || first.aspects == 0 {
			continue
		}
		// In place means on all names of the inode: those that the update does
		// not bring would change with it, and those that go would keep it.
		if int(first.liveLinks) > len(g.names) || t.lost[first.live] != nil {
			for _, r := range g.names {
				r.aspects |= change.AspectLinks
			}
			t.stageAnew(g)
		}
	}
}

// settleLinks does step 6. It gives the first path of the group for each name
// of a group of several.
func (w *worker) settleLinks(ctx context.Context) (map[string]string, error) {
	t := newTopology(w.linked, w.entries)
	t.settle()
	links := map[string]string{}
	for _, g := range t.groups {
		link := ""
		if len(g.names) > 1 {
			link = g.names[0].path
			for _, r := range g.names {
				links[r.path] = link
			}
		}
		if err := w.emit(g, link); err != nil {
			return nil, err
		}
	}
	return links, w.freshInodes(ctx, t)
}

// emit makes the Delta's entries of a group.
func (w *worker) emit(g *linkGroup, link string) error {
	first := g.names[0]
	if !g.anew && first.aspects == 0 {
		w.identical += len(g.names)
		return nil
	}
	for _, r := range g.names {
		if err := w.reload(r); err != nil {
			return err
		}
		e := change.Entry{Path: r.path, Op: change.Replace, Old: r.ln, Aspects: r.aspects, From: r.srcPath}
		switch {
		case r.ln == nil:
			e.Op, e.Aspects = change.Add, 0
		case !g.anew:
			e.Op, e.From = change.Metadata, ""
		}
		e.New = installed(r.sn, r.ln, e.Op)
		e.New.Link = link
		w.entries = append(w.entries, e)
		if e.Op == change.Metadata {
			// One inode: what is done by its first name is done for all.
			return nil
		}
	}
	return nil
}

// reload describes an equal entry again.
func (w *worker) reload(r *linkRecord) error {
	if r.sn != nil {
		return nil
	}
	src, err := w.openSource(parent(r.srcPath))
	if err != nil {
		return err
	}
	defer src.release()
	live, err := w.live.open(parent(r.path))
	if err != nil {
		return err
	}
	defer live.release()
	p := &pairing{src: src, live: live, srcDir: parent(r.srcPath), dir: parent(r.path)}
	e := &encounter{pairing: p, name: r.srcPath[strings.LastIndexByte(r.srcPath, '/')+1:]}
	if e.sn, err = sys.Lstat(src.fd, e.name); err == nil {
		e.ln, err = sys.Lstat(live.fd, e.name)
	}
	if err != nil {
		return fmt.Errorf("cannot read %s again: %w", r.path, err)
	}
	if w.signed {
		if err := w.claim(p, e.name, e.sn); err != nil {
			return err
		}
	}
	if err := w.describe(e); err != nil {
		return err
	}
	r.sn, r.ln = e.sn, e.ln
	return nil
}

// freshInodes gives an inode of their own to the names that stay of live inodes
// which lose others.
func (w *worker) freshInodes(ctx context.Context, t *topology) error {
	staying := map[change.InodeKey][]string{}
	wanted := map[change.InodeKey]bool{}
	for inode, l := range t.lost {
		known := len(l.names)
		for _, g := range t.byLive[inode] {
			if g.anew {
				continue
			}
			for _, r := range g.names {
				staying[inode] = append(staying[inode], r.path)
				known++
				w.identical--
			}
		}
		if known < int(l.links) {
			wanted[inode] = true
		}
	}
	if len(wanted) > 0 {
		found, err := w.scan(ctx, wanted)
		if err != nil {
			return err
		}
		for inode, names := range found {
			l := t.lost[inode]
			for _, name := range names {
				if !l.names[name] && !slices.Contains(staying[inode], name) {
					staying[inode] = append(staying[inode], name)
				}
			}
		}
	}
	for _, names := range staying {
		if err := w.replaceByItself(names); err != nil {
			return err
		}
	}
	return nil
}

// replaceByItself makes entries for names of one live inode, which stay as they are
// but for the inode.
func (w *worker) replaceByItself(names []string) error {
	slices.Sort(names)
	link := ""
	if len(names) > 1 {
		link = names[0]
	}
	for _, name := range names {
		dir, base := parent(name), name[strings.LastIndexByte(name, '/')+1:]
		f, err := w.live.open(dir)
		if err != nil {
			return err
		}
		n, err := sys.Lstat(f.fd, base)
		if err == nil {
			err = w.describeLive(f, dir, base, n)
		}
		f.release()
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", name, err)
		}
		fresh := clone(n)
		fresh.Link = link
		w.entries = append(w.entries, change.Entry{
			Path: name, Op: change.Replace, Old: n, New: fresh, Aspects: change.AspectLinks, From: name, FromLive: true,
		})
	}
	return nil
}

// scan looks through the live root for further names of inodes.
func (w *worker) scan(ctx context.Context, wanted map[change.InodeKey]bool) (map[change.InodeKey][]string, error) {
	found := map[change.InodeKey][]string{}
	devs := map[uint64]bool{}
	for inode := range wanted {
		devs[inode.Dev] = true
	}
	for _, v := range append([]*volume{w.live.root}, w.live.volumes...) {
		if !devs[v.dev] {
			continue
		}
		f, err := w.live.open(v.mount)
		if err != nil {
			return nil, err
		}
		err = w.scanFolder(ctx, f, v.mount, wanted, found)
		f.release()
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (w *worker) scanFolder(ctx context.Context, f *folder, dir string, wanted map[change.InodeKey]bool, found map[change.InodeKey][]string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var list sys.Listing
	if err := list.Read(f.fd); err != nil {
		return fmt.Errorf("cannot list %s: %w", shown(dir), err)
	}
	var n change.Node
	for i := range list.Len() {
		name := list.Name(i)
		if f.inner[string(name.Bytes())] != nil || w.live.isStore(dir, string(name.Bytes())) {
			continue
		}
		if err := w.stat.Lstat(f.fd, name, &n); err != nil {
			if isAbsent(err) {
				continue
			}
			return fmt.Errorf("cannot read %s: %w", join(dir, name.String()), err)
		}
		switch {
		case n.Dev != f.vol.dev:
		case n.Type != change.Directory:
			if inode := (change.InodeKey{Dev: n.Dev, Ino: n.Ino}); n.Nlink > 1 && wanted[inode] {
				found[inode] = append(found[inode], join(dir, name.String()))
			}
		default:
			sub, err := w.live.child(f, dir, name.String())
			if err != nil {
				return err
			}
			err = w.scanFolder(ctx, sub, join(dir, name.String()), wanted, found)
			sub.release()
			if err != nil {
				return err
			}
		}
	}
	return nil
}
