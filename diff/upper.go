package diff

import (
	"context"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Upper is what programs left in the upper of an overlay over one file system of
// the live root.
type Upper struct {
	Mount string // of the file system
	From  string // the upper's path in the content that the Delta is read from
	Dir   *sys.FD
}

// Uppers finds what the uppers of overlays (Documentation/filesystems/overlayfs.rst)
// change in the live root, by content:
//
//  1. Only what an upper names is looked at. A character device 0:0 is a removal;
//     a folder with trusted.overlay.opaque hides what the root has there; one with
//     trusted.overlay.redirect is the root's folder of another place, renamed.
//  2. What equals the live object is dropped: a copy-up that changed nothing, a
//     file that was written anew as it was, the times of folders. What differs in
//     metadata only is changed in place.
//  3. Names of one inode in the upper become names of one inode in the root. A live
//     file of several names that was written to through one of them changes under
//     all, as it would have without the overlay: the names that nobody touched are
//     not in the upper.
//
// ignore tells of paths that are not to change, with all below. The overlay's own
// attributes are taken from the uppers' files: those may become the root's. The overlays are
// unmounted by now.
func Uppers(ctx context.Context, k *sys.Kernel, uppers []Upper, ignore func(path string) bool, o Options) (*change.Delta, error) {
	live, err := openLive(o)
	if err != nil {
		return nil, err
	}
	c := &comparison{o: o, live: live, pool: newPool()}
	defer c.stats.report(o.Progress)()
	u := &upperWalk{worker: newWorker(c), k: k, ignore: ignore}
	for _, up := range uppers {
		if err := u.volume(ctx, up); err != nil {
			return nil, err
		}
	}
	if err := u.settle(ctx); err != nil {
		return nil, err
	}
	d := &change.Delta{Entries: u.entries, Identical: u.identical, Warnings: u.warnings}
	if d.Entries, err = sortEntries(d.Entries); err != nil {
		return nil, err
	}
	for _, e := range d.Entries {
		if (e.Op == change.Add || e.Op == change.Replace) && e.New.Type == change.Regular && (e.New.Link == "" || e.New.Link == e.Path) {
			d.Bytes += e.New.Size
		}
	}
	if err := c.guard(d); err != nil {
		return nil, err
	}
	slices.Sort(d.Warnings)
	d.Warnings = slices.Compact(d.Warnings)
	return d, nil
}

// upperWalk is one run of Uppers.
type upperWalk struct {
	*worker
	k      *sys.Kernel
	ignore func(string) bool
	pairs  []*upperPair
}

// upperPair is a file of the upper, or one of the live root that was moved with its
// folder, and the live object at its new place.
type upperPair struct {
	path     string
	from     string // of the content, or of the live root
	fromLive bool
	copied   bool // it was copied up from a live file
	sf, lf   *folder
	sn, ln   *change.Node
}

const overlayPrefix = "trusted.overlay."

func (u *upperWalk) volume(ctx context.Context, up Upper) error {
	mount := strings.TrimSuffix(path.Clean(up.Mount), "/")
	// The upper lies on some file system; its numbers are not those of the live index.
	vol, err := newVolume("upper of "+up.Mount, up.Dir)
	if err != nil {
		return err
	}
	fd, err := sys.OpenDirAt(up.Dir, ".")
	if err != nil {
		return fmt.Errorf("cannot open what was written to %s: %w", shown(mount), err)
	}
	at := &upperDir{f: newFolder(fd, vol), from: strings.TrimSuffix(up.From, "/"), base: mount, path: mount, vol: mount}
	defer at.f.release()
	if at.live, err = u.live.open(mount); err != nil {
		return err
	}
	defer at.live.release()
	return u.dir(ctx, at)
}

// upperDir is a folder of an upper with what it stands over.
type upperDir struct {
	f    *folder // in the upper; nil for a live folder that was moved with the one above
	from string  // its path in the content
	// base is the live folder that shows through, by its path in the root; hidden: none does.
	base   string
	hidden bool
	path   string  // where it is in the root
	live   *folder // what the root has there; nil where that is no folder
	vol    string  // mount of the volume
}

// through tells whether the live folder at this very place shows through.
func (d *upperDir) through() bool { return !d.hidden && d.base == d.path }

func (u *upperWalk) dir(ctx context.Context, d *upperDir) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	seen := map[string]bool{}
	if d.f != nil {
		names, err := sys.ReadDirNames(d.f.fd)
		if err != nil {
			return fmt.Errorf("cannot list what was written to %s: %w", shown(d.path), err)
		}
		for _, name := range names {
			seen[name] = true
			if err := u.entry(ctx, d, name); err != nil {
				return err
			}
		}
	}
	if d.through() {
		return nil // what the upper does not name is as it was
	}
	moved := map[string]bool{}
	if !d.hidden {
		if err := u.movedNames(ctx, d, seen, moved); err != nil {
			return err
		}
	}
	if d.live == nil {
		return nil
	}
	names, err := sys.ReadDirNames(d.live.fd)
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", shown(d.path), err)
	}
	for _, name := range names {
		if !seen[name] && !moved[name] {
			if err := u.gone(d, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// skip tells names that are nobody's to change.
func (u *upperWalk) skip(d *upperDir, name string) bool {
	at := join(d.path, name)
	return u.live.isStore(d.path, name) || d.live != nil && d.live.inner[name] != nil || u.ignore(at)
}

// entry deals with one name of the upper.
func (u *upperWalk) entry(ctx context.Context, d *upperDir, name string) error {
	if u.skip(d, name) {
		return nil
	}
	u.stats.files.Add(1)
	at := join(d.path, name)
	n, err := sys.Lstat(d.f.fd, name)
	if err != nil {
		return fmt.Errorf("cannot read what was written to %s: %w", at, err)
	}
	if n.Type == change.CharDevice && n.Rdev == 0 {
		return u.gone(d, name)
	}
	own, err := u.describeUpper(d, name, n)
	if err != nil {
		return fmt.Errorf("cannot read what was written to %s: %w", at, err)
	}
	ln, err := u.liveNode(d, name)
	if err != nil {
		return err
	}
	if n.Type != change.Directory {
		if ln != nil && ln.Type == change.Directory {
			if err := u.below(d, name); err != nil {
				return err
			}
		}
		u.pairs = append(u.pairs, &upperPair{
			path: at, from: join(d.from, name), sf: held(d.f), lf: held(d.live), sn: n, ln: ln, copied: own["trusted.overlay.origin"] != nil,
		})
		return nil
	}
	sub := &upperDir{from: join(d.from, name), path: at, vol: d.vol, base: join(d.base, name), hidden: d.hidden}
	if own["trusted.overlay.opaque"] != nil {
		sub.hidden = true
	}
	if to := string(own["trusted.overlay.redirect"]); to != "" {
		sub.hidden = false
		if sub.base = join(d.base, to); strings.HasPrefix(to, "/") {
			sub.base = d.vol + path.Clean(to)
		}
	}
	fd, err := sys.OpenDirAt(d.f.fd, name)
	if err != nil {
		return fmt.Errorf("cannot open what was written to %s: %w", at, err)
	}
	sub.f = newFolder(fd, d.f.vol)
	defer sub.f.release()
	return u.enter(ctx, d, sub, name, n, ln, "")
}

// enter makes the entry of a folder and goes on below it. fromLive names the live
// folder that it was, where it comes from no upper.
func (u *upperWalk) enter(ctx context.Context, d, sub *upperDir, name string, n, ln *change.Node, fromLive string) error {
	e := change.Entry{Path: sub.path, Op: change.Add, Old: ln, From: sub.from}
	if fromLive != "" {
		e.From, e.FromLive = fromLive, true
	}
	switch {
	case ln == nil:
	case ln.Type == change.Directory:
		var err error
		if sub.live, err = u.live.child(d.live, d.path, name); err != nil {
			return err
		}
		defer sub.live.release()
		e.Op, e.From, e.FromLive = change.Metadata, "", false
		e.Aspects = difference(n, ln)
	default:
		e.Op, e.Aspects = change.Replace, difference(n, ln)
	}
	if e.Op != change.Metadata || e.Aspects != 0 {
		e.New = installed(n, ln, e.Op)
		u.entries = append(u.entries, e)
	} else {
		u.identical++
	}
	return u.dir(ctx, sub)
}

// movedNames deals with what a renamed folder brought along from where it was.
func (u *upperWalk) movedNames(ctx context.Context, d *upperDir, seen, moved map[string]bool) error {
	base, err := u.live.open(d.base)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer base.release()
	names, err := sys.ReadDirNames(base.fd)
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", shown(d.base), err)
	}
	for _, name := range names {
		if seen[name] || u.live.isStore(d.base, name) || base.inner[name] != nil {
			continue
		}
		moved[name] = true
		if u.skip(d, name) {
			continue
		}
		n, err := sys.Lstat(base.fd, name)
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", join(d.base, name), err)
		}
		if err := u.describeLive(base, d.base, name, n); err != nil {
			return err
		}
		ln, err := u.liveNode(d, name)
		if err != nil {
			return err
		}
		from := join(d.base, name)
		if n.Type == change.Directory {
			sub := &upperDir{base: from, path: join(d.path, name), vol: d.vol}
			if err := u.enter(ctx, d, sub, name, n, ln, from); err != nil {
				return err
			}
			continue
		}
		if ln != nil && ln.Type == change.Directory {
			if err := u.below(d, name); err != nil {
				return err
			}
		}
		// An inode of its own: the old name goes, and takes the old one along.
		n.Nlink = 1
		u.pairs = append(u.pairs, &upperPair{path: join(d.path, name), from: from, fromLive: true, sf: held(base), lf: held(d.live), sn: n, ln: ln})
	}
	return nil
}

// describeUpper completes a node of the upper, and gives the overlay's own attributes.
func (u *upperWalk) describeUpper(d *upperDir, name string, n *change.Node) (own map[string][]byte, err error) {
	if n.Type == change.Symlink {
		if n.Target, err = sys.Readlink(d.f.fd, name); err != nil {
			return nil, err
		}
	}
	all, err := sys.Xattrs(d.f.fd, name)
	if err != nil {
		return nil, err
	}
	for key, val := range all {
		if !strings.HasPrefix(key, overlayPrefix) {
			continue
		}
		if own == nil {
			own = map[string][]byte{}
		}
		own[key] = val
		delete(all, key)
		// Folders are made anew, and keep theirs for the next reading.
		if n.Type == change.Regular {
			if err := u.k.RemoveXattr(d.f.fd, name, key); err != nil {
				return nil, err
			}
		}
	}
	if len(all) > 0 {
		n.Xattrs = all
	}
	if n.Type == change.Regular && own != nil {
		// The removal changed its ctime.
		ctime := *n
		if err := sys.LstatInto(d.f.fd, name, &ctime); err != nil {
			return nil, err
		}
		n.CtimeNS = ctime.CtimeNS
	}
	return own, nil
}

// held is a folder that is held once more.
func held(f *folder) *folder {
	f.hold()
	return f
}

// liveNode describes what the root has at a name; nil for nothing.
func (u *upperWalk) liveNode(d *upperDir, name string) (*change.Node, error) {
	if d.live == nil {
		return nil, nil
	}
	n, err := sys.Lstat(d.live.fd, name)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", join(d.path, name), err)
	}
	return n, u.describeLive(d.live, d.path, name, n)
}

// gone removes what the root has at a name.
func (u *upperWalk) gone(d *upperDir, name string) error {
	if d.live == nil || u.skip(d, name) {
		return nil
	}
	n, err := u.liveNode(d, name)
	if n == nil || err != nil {
		return err
	}
	if n.Type == change.Directory {
		if err := u.below(d, name); err != nil {
			return err
		}
	}
	u.entries = append(u.entries, change.Entry{Path: join(d.path, name), Op: change.Remove, Old: n})
	return nil
}

// below removes what the live folder at a name holds.
func (u *upperWalk) below(d *upperDir, name string) error {
	at := join(d.path, name)
	sub, err := u.live.child(d.live, d.path, name)
	if err != nil {
		return err
	}
	defer sub.release()
	names, err := sys.ReadDirNames(sub.fd)
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", at, err)
	}
	for _, child := range names {
		if sub.inner[child] != nil {
			return fmt.Errorf("cannot remove %s: a file system is mounted on %s", at, join(at, child))
		}
		if err := u.gone(&upperDir{path: at, live: sub, hidden: true, vol: d.vol}, child); err != nil {
			return err
		}
	}
	return nil
}

// settle reads what has to be read, and decides on the files.
func (u *upperWalk) settle(ctx context.Context) error {
	defer func() {
		for _, p := range u.pairs {
			p.sf.release()
			p.lf.release()
		}
	}()
	if err := u.digests(ctx); err != nil {
		return err
	}
	written := map[change.InodeKey]*upperPair{} // live inodes of several names that were written to
	for _, p := range u.pairs {
		aspects := change.Aspect(0)
		if p.ln != nil {
			aspects = difference(p.sn, p.ln)
		}
		if p.ln != nil && p.copied && p.ln.Nlink > 1 && p.ln.Type == p.sn.Type && aspects != 0 {
			written[change.InodeKey{Dev: p.ln.Dev, Ino: p.ln.Ino}] = p
		}
		r := linkRecord{
			path: p.path, srcPath: p.from, aspects: aspects, srcLinks: p.sn.Nlink, sn: p.sn, ln: p.ln,
			src: change.InodeKey{Dev: p.sn.Dev, Ino: p.sn.Ino},
		}
		if p.ln != nil {
			r.live, r.liveLinks = change.InodeKey{Dev: p.ln.Dev, Ino: p.ln.Ino}, p.ln.Nlink
		}
		if p.copied && p.ln != nil && p.ln.Nlink > 1 {
			// The overlay's index has a name of it, too, and ties its names together.
			r.srcLinks = max(r.srcLinks, 2)
		}
		linked := p.sn.Nlink > 1 || p.ln != nil && p.ln.Type != change.Directory && p.ln.Nlink > 1
		switch {
		case linked && !p.fromLive:
			u.linked = append(u.linked, r)
		case p.ln != nil && aspects == 0:
			u.identical++
		default:
			e := change.Entry{Path: p.path, Op: change.Add, Old: p.ln, Aspects: aspects, From: p.from, FromLive: p.fromLive}
			if p.ln != nil {
				e.Op = change.Replace
				if aspects.InPlace() {
					e.Op, e.From, e.FromLive = change.Metadata, "", false
				}
			}
			e.New = installed(p.sn, p.ln, e.Op)
			u.entries = append(u.entries, e)
		}
	}
	if err := u.furtherNames(ctx, written); err != nil {
		return err
	}
	_, err := u.settleLinks(ctx)
	return err
}

// furtherNames lets the other names of a live file that was written to through one
// of them follow.
func (u *upperWalk) furtherNames(ctx context.Context, written map[change.InodeKey]*upperPair) error {
	if len(written) == 0 {
		return nil
	}
	wanted := map[change.InodeKey]bool{}
	for inode := range written {
		wanted[inode] = true
	}
	names, err := u.scan(ctx, wanted)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, r := range u.linked {
		known[r.path] = true
	}
	for _, e := range u.entries {
		known[e.Path] = true
	}
	for inode, list := range names {
		p := written[inode]
		for _, name := range list {
			if known[name] || u.ignore(name) {
				continue
			}
			ln, err := u.live.lstat(name)
			if err != nil {
				return fmt.Errorf("cannot read %s: %w", name, err)
			}
			ln.Xattrs, ln.Digest = p.ln.Xattrs, p.ln.Digest
			u.linked = append(u.linked, linkRecord{
				path: name, srcPath: p.from, aspects: difference(p.sn, ln), srcLinks: 2, sn: p.sn, ln: ln,
				src: change.InodeKey{Dev: p.sn.Dev, Ino: p.sn.Ino}, live: inode, liveLinks: ln.Nlink,
			})
		}
	}
	return nil
}

// digests reads the files of the uppers, and the live ones that they have to be
// compared with.
func (u *upperWalk) digests(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(len(u.pairs), max(1, cmpOr(u.o.Workers, runtime.GOMAXPROCS(0)))) {
		wg.Go(func() {
			w := newWorker(u.comparison)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(u.pairs) {
					return
				}
				if err := w.digestPair(u.pairs[i]); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (w *worker) digestPair(p *upperPair) error {
	name := func(at string) string { return at[strings.LastIndexByte(at, '/')+1:] }
	if p.sn.Type == change.Regular && unread(p.sn) {
		index := w.o.Index
		if !p.fromLive {
			index = nil
		}
		if err := w.digest(index, p.sf, name(p.from), p.sn); err != nil {
			return fmt.Errorf("cannot read what was written to %s: %w", p.path, err)
		}
	}
	if p.ln != nil && p.sn.Type == p.ln.Type && p.sn.Size == p.ln.Size && unread(p.ln) {
		if err := w.digest(w.o.Index, p.lf, name(p.path), p.ln); err != nil {
			return fmt.Errorf("cannot read %s: %w", p.path, err)
		}
	}
	return nil
}
