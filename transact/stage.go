package transact

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// Stage copies all that is new into the transaction's folders, from src and,
// for entries with FromLive, from the live root. It fills in the digests of New
// nodes that have none; one that differs is change.ErrVerification. Metadata-only
// changes are not in the staged view: they have no content there. Nothing that
// the running system can see changes. progress may be nil; it is called with what
// is done so far, one call at a time.
func (t *Tx) Stage(ctx context.Context, d *change.Delta, src *sys.FD, progress func(files, bytes int64)) error {
	if t.status.State != journal.Staging || t.stage != nil || t.journal != nil {
		return fmt.Errorf("cannot stage transaction %s: it is staged already (%s)", t.ID(), t.status.State)
	}
	if err := t.nest(d); err != nil {
		return err
	}
	st, err := t.layOut(d)
	if err != nil {
		return err
	}
	t.header.Changes = count(d)
	if err := t.preflight(st, src); err != nil {
		return err
	}
	for i := range t.vols {
		if !st.used[i] && i != 0 {
			continue
		}
		if err := t.makeDir(i); err != nil {
			return err
		}
		if err := t.probe(st, i); err != nil {
			return err
		}
		t.roundTimes(st, i)
		if err := t.probeFolders(st, i); err != nil {
			return err
		}
		if err := t.reserve(i); err != nil {
			return err
		}
	}
	g := &stager{t: t, st: st, src: src, dirs: newDirs(), made: map[string]*skeleton{}, progress: progress}
	defer g.dirs.close()
	if err := g.run(ctx); err != nil {
		return t.nameFull(err)
	}
	t.stage = st
	return nil
}

func count(d *change.Delta) change.Counts {
	c := change.Counts{Identical: d.Identical, Bytes: d.Bytes}
	for i := range d.Entries {
		switch d.Entries[i].Op {
		case change.Add:
			c.Added++
		case change.Replace:
			c.Replaced++
		case change.Remove:
			c.Removed++
		case change.Metadata:
			c.Metadata++
		}
	}
	return c
}

// stager is one run of Stage.
type stager struct {
	t    *Tx
	st   *staging
	src  *sys.FD
	dirs *dirs // used by one goroutine at a time; workers have their own
	made map[string]*skeleton
	// order lists the folders of up in the order in which they were made.
	order []*skeleton

	mu           sync.Mutex
	files, bytes int64
	progress     func(files, bytes int64)
}

// skeleton is a folder of up: either new, or there only to hold what is new.
type skeleton struct {
	vol  int
	rel  string // in the volume
	node *change.Node
	// label is the security label of what lies there, for what comes without one.
	label []byte
	// joined: the folder hands down a project's number until all in it is made.
	joined bool
}

func (g *stager) run(ctx context.Context) error {
	var files, links, others []int
	first := map[string]int{} // hard-link group on one volume to the entry that is copied
	for i := range g.st.items {
		it := &g.st.items[i]
		if it.New == nil || it.inPlace() {
			continue
		}
		g.dirs.trim()
		switch {
		case it.New.IsDir():
			if err := g.newDir(it); err != nil {
				return err
			}
			continue
		case it.under < 0:
			if err := g.parents(it.vol, path.Dir(it.rel)); err != nil {
				return err
			}
		}
		group := fmt.Sprint(it.vol, " ", it.New.Link)
		switch _, seen := first[group]; {
		case it.New.Link != "" && seen:
			links = append(links, i)
			continue
		case it.New.Link != "":
			first[group] = i
		}
		if it.New.Type == change.Regular {
			files = append(files, i)
		} else {
			others = append(others, i)
		}
	}
	if err := g.copyAll(ctx, files); err != nil {
		return err
	}
	for _, i := range others {
		g.dirs.trim()
		if err := g.makeOther(&g.st.items[i]); err != nil {
			return err
		}
	}
	for _, i := range links {
		g.dirs.trim()
		it := &g.st.items[i]
		if err := g.link(&g.st.items[first[fmt.Sprint(it.vol, " ", it.New.Link)]], it); err != nil {
			return err
		}
	}
	for i := range g.st.items {
		if it := &g.st.items[i]; it.Op == change.Remove && it.under < 0 {
			g.dirs.trim()
			if err := g.whiteout(it); err != nil {
				return err
			}
		}
	}
	// Folders last and from the bottom: what was made in them changed their mtime.
	for _, sk := range slices.Backward(g.order) {
		g.dirs.trim()
		if err := g.finishDir(sk); err != nil {
			return err
		}
	}
	return g.digestOld(ctx)
}

func (g *stager) newDir(it *item) error {
	if err := g.parents(it.vol, path.Dir(it.rel)); err != nil {
		return err
	}
	label, err := g.labelFor(it)
	if err != nil {
		return err
	}
	return g.mkdir(it.vol, it.rel, it.New, label)
}

// parents makes the folders of up that lead to what is staged, like those of the
// live root, or as they will be.
func (g *stager) parents(vol int, rel string) error {
	if g.made[key(vol, rel)] != nil {
		return nil
	}
	live := g.t.vols[vol].vol.Dir
	var node *change.Node
	abs := path.Join(g.t.vols[vol].mount, rel)
	if i, ok := g.st.byPath[abs]; ok && g.st.items[i].New != nil && g.st.items[i].inPlace() {
		node = g.st.items[i].New
	} else {
		var err error
		if node, err = sys.Lstat(live, rel); err != nil {
			return fmt.Errorf("cannot stage below %s: %w", abs, err)
		}
		if node.Xattrs, err = sys.Xattrs(live, rel); err != nil {
			return fmt.Errorf("cannot stage below %s: %w", abs, err)
		}
	}
	if !node.IsDir() {
		return fmt.Errorf("cannot stage below %s: it is a %s, not a directory: %w", abs, node.Type, change.ErrDrift)
	}
	if rel == "." {
		sk := &skeleton{vol: vol, rel: rel, node: node, label: node.Xattrs[selinux]}
		if err := g.joinProject(sk); err != nil {
			return err
		}
		g.made[key(vol, rel)] = sk
		g.order = append(g.order, sk)
		return nil
	}
	if err := g.parents(vol, path.Dir(rel)); err != nil {
		return err
	}
	return g.mkdir(vol, rel, node, node.Xattrs[selinux])
}

func (g *stager) mkdir(vol int, rel string, node *change.Node, label []byte) error {
	dir, name, err := g.dirs.parent(g.t.vols[vol].dir, path.Join(upName, rel))
	if err != nil {
		return fmt.Errorf("cannot stage %s: %w", rel, err)
	}
	if err := g.t.s.k.Mkdir(dir, name, 0o700); err != nil {
		return fmt.Errorf("cannot stage %s: %w", rel, err)
	}
	sk := &skeleton{vol: vol, rel: rel, node: node, label: label}
	if err := g.joinProject(sk); err != nil {
		return err
	}
	g.made[key(vol, rel)] = sk
	g.order = append(g.order, sk)
	return nil
}

func key(vol int, rel string) string { return string(rune('0'+vol)) + rel }

// finishDir gives a folder of up its owner, mode, xattrs and times.
func (g *stager) finishDir(sk *skeleton) error {
	name := path.Join(upName, sk.rel)
	dir, base, err := g.dirs.parent(g.t.vols[sk.vol].dir, name)
	if err == nil {
		err = g.leaveProject(sk)
	}
	if err == nil {
		err = setMeta(g.t.s.k, dir, base, sk.node, sk.label)
	}
	if err != nil {
		return fmt.Errorf("cannot stage %s: %w", path.Join(g.t.vols[sk.vol].mount, sk.rel), err)
	}
	return nil
}

// setMeta sets owner, then mode, then xattrs, times last, of a staged object.
func setMeta(k *sys.Kernel, dir *sys.FD, name string, n *change.Node, label []byte) error {
	if err := k.Chown(dir, name, n.UID, n.GID); err != nil {
		return err
	}
	if n.Type != change.Symlink {
		if err := k.Chmod(dir, name, n.Mode); err != nil {
			return err
		}
	}
	keys := make([]string, 0, len(n.Xattrs))
	for key := range n.Xattrs {
		// An overlay's own words in a source would change what the staged view shows.
		if !strings.HasPrefix(key, "trusted.overlay.") {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := k.SetXattr(dir, name, key, n.Xattrs[key]); err != nil {
			return err
		}
	}
	if label != nil && n.Xattrs[selinux] == nil {
		if err := k.SetXattr(dir, name, selinux, label); err != nil {
			return err
		}
	}
	return k.SetMtime(dir, name, n.MtimeNS)
}

// makeOther makes a symlink, a device, a FIFO or a socket.
func (g *stager) makeOther(it *item) error {
	k := g.t.s.k
	dir, name, err := g.dirs.parent(g.t.vols[it.vol].dir, it.staged)
	if err != nil {
		return fmt.Errorf("cannot stage %s: %w", it.Path, err)
	}
	if it.New.Type == change.Symlink {
		err = k.Symlink(it.New.Target, dir, name)
	} else {
		err = k.Mknod(dir, name, typeBits[it.New.Type]|0o600, it.New.Rdev)
	}
	if err == nil {
		err = g.setMeta(dir, name, it)
	}
	if err != nil {
		return fmt.Errorf("cannot stage %s: %w", it.Path, err)
	}
	g.done(0)
	return nil
}

var typeBits = map[change.Type]uint32{
	change.CharDevice: syscall.S_IFCHR, change.BlockDevice: syscall.S_IFBLK,
	change.FIFO: syscall.S_IFIFO, change.Socket: syscall.S_IFSOCK,
}

// link makes a further name of a staged file. Both names are staged: no live
// inode is ever linked.
func (g *stager) link(first, it *item) error {
	from, fromName, err := g.dirs.parent(g.t.vols[first.vol].dir, first.staged)
	if err != nil {
		return fmt.Errorf("cannot stage %s: %w", it.Path, err)
	}
	to, toName, err := g.dirs.parent(g.t.vols[it.vol].dir, it.staged)
	if err != nil {
		return fmt.Errorf("cannot stage %s: %w", it.Path, err)
	}
	if err := g.t.s.k.Link(from, fromName, to, toName); err != nil {
		return fmt.Errorf("cannot stage %s: %w", it.Path, err)
	}
	if !it.New.Digest.IsZero() && it.New.Digest != first.New.Digest {
		return fmt.Errorf("cannot stage %s: its digest is not that of %s, with which it shares its content: %w", it.Path, first.Path, change.ErrVerification)
	}
	it.New.Digest = first.New.Digest
	g.done(0)
	return nil
}

// whiteout hides a path that will go from the staged view, in overlay's words: a
// character device 0:0.
func (g *stager) whiteout(it *item) error {
	if g.t.vols[it.vol].overlay {
		return nil // an overlay lets nobody make one, and has no staged view above it
	}
	if err := g.parents(it.vol, path.Dir(it.rel)); err != nil {
		return err
	}
	dir, name, err := g.dirs.parent(g.t.vols[it.vol].dir, path.Join(upName, it.rel))
	if err == nil {
		err = g.t.s.k.Mknod(dir, name, syscall.S_IFCHR, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot stage the removal of %s: %w", it.Path, err)
	}
	return nil
}

func (g *stager) done(bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files++
	g.bytes += bytes
	if g.progress != nil {
		g.progress(g.files, g.bytes)
	}
}

// Upper is one volume's part of the staged view: the upper and work folders of an
// overlay whose lower is the live volume. The caller closes them.
type Upper struct {
	Mount    string
	Up, Work *sys.FD
}

// Uppers are the staged folders of the volumes that change.
func (t *Tx) Uppers() ([]Upper, error) {
	var out []Upper
	for i := range t.vols {
		tv := &t.vols[i]
		if tv.dir == nil || (t.stage != nil && !t.stage.used[i]) {
			continue
		}
		up, err := sys.OpenAt(tv.dir, upName, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
		work, err2 := sys.OpenAt(tv.dir, workName, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
		if err := errors.Join(err, err2); err != nil {
			up.Close()
			work.Close()
			for _, u := range out {
				u.Up.Close()
				u.Work.Close()
			}
			return nil, fmt.Errorf("cannot open the staged view of %s: %w", tv.mount, err)
		}
		out = append(out, Upper{Mount: tv.mount, Up: up, Work: work})
	}
	return out, nil
}
