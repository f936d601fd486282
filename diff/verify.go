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
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
)

// verifyBatch is how many recorded paths a worker takes at a time: they follow
// each other, and so mostly lie in few folders.
const verifyBatch = 16 * catalog.Block

// checker is one run of Verify.
type checker struct {
	*comparison
	class func(string) change.Class
	base  *catalog.Base
	next  atomic.Int64 // the first recorded path that no worker has taken

	mu       sync.Mutex
	found    func(change.Damage)
	report   *change.VerifyReport
	linked   []linkSeen
	unknown  int // files without a recorded digest
	unknownP string
}

// linkSeen is a recorded name that belongs to a hard-link group in the record
// or in the root.
type linkSeen struct {
	path, group string
	live        change.InodeKey
	told        bool // it differs in what counts more
}

// Verify compares the live root with the recorded base: what is missing, what
// differs and, in folders that are wholly the image's, what should not be
// there. Files that the index knows are not read, unless Full says so.
// Problems of paths that the machine may change have the owner "machine".
//
// found is called with each as it is met, one call at a time, in no order;
// nothing is kept of what is in order, so that memory does not grow with the root
// beyond the record and the index.
func Verify(ctx context.Context, live Options, base *catalog.Base, class func(string) change.Class, found func(change.Damage)) (*change.VerifyReport, error) {
	tree, err := openLive(live)
	if err != nil {
		return nil, err
	}
	c := &checker{
		comparison: &comparison{o: live, live: tree, pool: newPool()}, class: class, base: base, found: found,
		report: &change.VerifyReport{MessageType: "report", Schema: 1, Verb: "verify", Checked: base.Len()},
	}
	defer c.stats.report(live.Progress)()
	// More than there are processors: those that wait for a disk leave them to the others.
	workers := make([]*worker, max(1, cmpOr(live.Workers, 4*runtime.GOMAXPROCS(0))))
	for i := range workers {
		workers[i] = newWorker(c.comparison)
		c.pool.push(job{run: func(w *worker) error { return c.work(ctx, w) }})
	}
	if err := c.pool.run(ctx, workers); err != nil {
		return nil, err
	}
	c.brokenLinks()
	if c.unknown > 0 {
		c.report.Warnings = append(c.report.Warnings, fmt.Sprintf(
			"%d files have no recorded digest, %s among them: only their size and metadata were compared", c.unknown, c.unknownP))
	}
	return c.report, nil
}

// work checks batches until none is left.
func (c *checker) work(ctx context.Context, w *worker) error {
	v := &visit{checker: c, worker: w}
	defer v.leave()
	for ctx.Err() == nil {
		from := int(c.next.Add(verifyBatch)) - verifyBatch
		if from >= c.base.Len() {
			return nil
		}
		for p, n := range c.base.Part(from, verifyBatch) {
			if err := v.check(p, n); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// visit is one worker's way through the record, with the folder that it is in.
type visit struct {
	*checker
	*worker
	dir  string
	f    *folder
	in   bool // f is the folder at dir; nil: there is none
	name []byte
	node change.Node
}

func (v *visit) leave() {
	v.f.release()
	v.f, v.in = nil, false
}

// enter opens the folder at dir.
func (v *visit) enter(dir string) error {
	if v.in && v.dir == dir {
		return nil
	}
	v.leave()
	f, err := v.checker.live.open(dir)
	if err != nil && !gone(err) {
		return err
	}
	v.f, v.dir, v.in = f, dir, true
	if err != nil {
		v.f = nil
	}
	return nil
}

func (v *visit) check(p string, want *change.Node) error {
	if err := v.enter(parent(p)); err != nil {
		return err
	}
	v.worker.stats.files.Add(1)
	name := path.Base(p)
	live, err := v.describe(name)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", p, err)
	}
	if live == nil {
		v.add(change.Damage{Path: p, Problem: "missing", Detail: "it was a " + want.Type.String() + v.beside(p, name)})
		return nil
	}
	if err := v.complete(p, name, want, live); err != nil {
		return fmt.Errorf("cannot read %s: %w", p, err)
	}
	a := difference(want, live)
	if a != 0 {
		v.add(change.Damage{Path: p, Problem: "differs", Aspects: a.Names(), Detail: detail(want, live, a) + v.beside(p, name)})
	}
	if live.Type == want.Type && (want.Link != "" || live.Nlink > 1 && !live.IsDir()) {
		v.checker.mu.Lock()
		v.linked = append(v.linked, linkSeen{p, want.Link, change.InodeKey{Dev: live.Dev, Ino: live.Ino}, a != 0})
		v.checker.mu.Unlock()
	}
	if live.IsDir() && want.IsDir() && v.class(p) == change.ClassWhole {
		return v.unexpected(name)
	}
	return nil
}

// describe is all that one call tells of an object; nil where there is none. The
// node is valid until the next call.
func (v *visit) describe(name string) (*change.Node, error) {
	if v.f == nil {
		return nil, nil
	}
	fd, at := v.f.at(name)
	v.name = append(append(v.name[:0], at...), 0)
	err := v.worker.stat.Lstat(fd, v.name, &v.node)
	if isAbsent(err) {
		return nil, nil
	}
	return &v.node, err
}

// complete adds attributes, target and digest to a live node. A file that the
// index knows in this state costs nothing more.
func (v *visit) complete(p, name string, want, live *change.Node) error {
	reads := live.Type == change.Regular && want.Type == change.Regular && live.Size == want.Size
	if reads && want.Digest.IsZero() {
		reads = false
		v.checker.mu.Lock()
		v.unknown++
		if v.unknownP == "" || p < v.unknownP {
			v.unknownP = p
		}
		v.checker.mu.Unlock()
	}
	if !reads {
		if err := v.describeLive(v.f, v.dir, name, live); err != nil {
			return err
		}
		live.Digest = change.Digest{}
		return nil
	}
	known := lookup(v.worker.o.Index, v.f, live, false)
	if known && !live.Digest.IsZero() && !v.worker.o.Full {
		return nil
	}
	return v.read(name, live, known)
}

// read reads a file whole, its attributes too. What was described before is
// looked at once more after it, and not in between.
func (v *visit) read(name string, live *change.Node, known bool) error {
	fd, err := sys.OpenContent(v.f.fd, name)
	if err != nil {
		return err
	}
	defer fd.Close()
	was := live.Digest
	if live.Xattrs, err = fd.Xattrs(); err != nil {
		return err
	}
	if live.Digest, err = v.sum(fd, live.Size); err != nil {
		return err
	}
	if err := sys.LstatInto(fd, "", &v.worker.ln); err != nil {
		return err
	}
	if state(&v.worker.ln) != state(live) {
		live.Digest = change.Digest{}
		return v.digest(v.worker.o.Index, v.f, name, live)
	}
	if ino, ok := v.f.vol.key(live); ok && (!known || was != live.Digest) {
		v.worker.o.Index.Put(ino, live.CtimeNS, live.Size, live.Digest, live.Xattrs)
	}
	return nil
}

// beside tells of the version that an update laid beside one of the machine's.
func (v *visit) beside(p, name string) string {
	if v.f == nil || v.class(p) != change.ClassThreeWay {
		return ""
	}
	if _, err := sys.Lstat(v.f.fd, name+besideSuffix); err != nil {
		return ""
	}
	return "; the update's version lies beside as " + name + besideSuffix
}

// detail says in a clause what a person would look at first.
func detail(want, have *change.Node, a change.Aspect) string {
	switch {
	case a&change.AspectType != 0:
		return fmt.Sprintf("it is a %s, and was a %s", have.Type, want.Type)
	case a&change.AspectContent != 0 && want.Type == change.Symlink:
		return fmt.Sprintf("it points to %q, and pointed to %q", have.Target, want.Target)
	case a&change.AspectContent != 0 && want.Size != have.Size:
		return fmt.Sprintf("it has %d bytes, and had %d", have.Size, want.Size)
	case a&change.AspectMode != 0:
		return fmt.Sprintf("its mode is %04o, and was %04o", have.Mode, want.Mode)
	case a&change.AspectOwner != 0:
		return fmt.Sprintf("its owner is %d:%d, and was %d:%d", have.UID, have.GID, want.UID, want.GID)
	}
	return ""
}

// add tells of a problem, with its owner.
func (c *checker) add(d change.Damage) {
	d.MessageType, d.Owner = "damage", "machine"
	switch c.class(d.Path) {
	case change.ClassWhole, change.ClassListed:
		d.Owner = "damage"
	}
	if d.Problem == "unexpected" && isSaved(d.Path) {
		d.Owner, d.Detail = "machine", "a version that a rollback kept: look at it, then remove it"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.Owner == "damage" {
		c.report.Damaged++
	} else {
		c.report.Machine++
	}
	if c.found != nil {
		c.found(d)
	}
}

// savedSuffix is what a rollback lays a changed version beside as; further ones
// get a number.
const savedSuffix = ".liveupd-saved"

func isSaved(p string) bool {
	_, rest, ok := strings.Cut(path.Base(p), savedSuffix)
	return ok && strings.Trim(rest, ".0123456789") == ""
}

// unexpected lists what is in a folder of the image and was not shipped. Of a
// folder that was not, only its own name is told.
func (v *visit) unexpected(name string) error {
	dir := join(v.dir, name)
	sub, err := v.checker.live.child(v.f, v.dir, name)
	if err != nil {
		return err
	}
	defer sub.release()
	if err := v.worker.ll.Read(sub.fd); err != nil {
		return fmt.Errorf("cannot list %s: %w", dir, err)
	}
	for i := range v.worker.ll.Len() {
		child := v.worker.ll.Name(i).String()
		p := join(dir, child)
		if v.base.Has(p) || v.class(p) != change.ClassWhole || v.checker.live.isStore(dir, child) {
			continue
		}
		d := change.Damage{Path: p, Problem: "unexpected"}
		if n, err := sys.Lstat(sub.fd, child); err == nil {
			d.Detail = "a " + n.Type.String() + " that no update laid down"
		}
		v.add(d)
	}
	return nil
}

// brokenLinks tells names that share an inode where the record does not say
// so, and names that should and do not. Names that differ otherwise are told
// already.
func (c *checker) brokenLinks() {
	groups := map[string]change.InodeKey{}
	inodes := map[change.InodeKey]string{} // the group, or the path where it has none
	first := map[change.InodeKey]string{}
	slices.SortFunc(c.linked, func(a, b linkSeen) int { return strings.Compare(a.path, b.path) })
	for _, s := range c.linked {
		if s.told {
			continue
		}
		id := s.group
		if id == "" {
			id = s.path
		}
		detail := ""
		if inode, ok := groups[id]; ok && inode != s.live {
			detail = "it no longer shares its inode with " + id
		}
		if other, ok := inodes[s.live]; ok && other != id {
			detail = "it shares its inode with " + first[s.live]
		}
		if _, ok := groups[id]; !ok {
			groups[id] = s.live
		}
		if _, ok := inodes[s.live]; !ok {
			inodes[s.live], first[s.live] = id, s.path
		}
		if detail != "" {
			c.add(change.Damage{Path: s.path, Problem: "differs", Aspects: change.AspectLinks.Names(), Detail: detail})
		}
	}
}
