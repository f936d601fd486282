package diff

import (
	"context"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
)

// verifyBatch is how many recorded paths a worker takes at a time.
const verifyBatch = 256

// checker is one run of Verify.
type checker struct {
	*comparison
	class func(string) change.Class
	base  *catalog.Base
}

// checked is what one batch found.
type checked struct {
	damage   []change.Damage
	warnings []string
	linked   []linkSeen
}

// linkSeen is a recorded name that belongs to a hard-link group in the record
// or in the root.
type linkSeen struct {
	path, group string
	live        change.InodeKey
}

// Verify compares the live root with the recorded base: what is missing, what
// differs and, in folders that are wholly the image's, what should not be
// there. Files that the index knows are not read, unless Full says so.
// Problems of paths that the machine may change have the owner "machine".
func Verify(ctx context.Context, live Options, base *catalog.Base, class func(string) change.Class) (*change.VerifyReport, error) {
	tree, err := openLive(live)
	if err != nil {
		return nil, err
	}
	c := &checker{comparison: &comparison{o: live, live: tree, pool: newPool()}, class: class, base: base}
	defer c.stats.report(live.Progress)()

	var batches []*checked
	var todo []recordedNode
	flush := func() {
		if len(todo) == 0 {
			return
		}
		batch, out := todo, &checked{}
		todo = nil
		batches = append(batches, out)
		c.pool.push(job{run: func(w *worker) error { return c.batch(w, batch, out) }})
	}
	for p, n := range base.All() {
		if todo = append(todo, recordedNode{p, n}); len(todo) == verifyBatch {
			flush()
		}
	}
	flush()
	workers := make([]*worker, max(1, cmpOr(live.Workers, runtime.GOMAXPROCS(0))))
	for i := range workers {
		workers[i] = newWorker(c.comparison)
	}
	if err := c.pool.run(ctx, workers); err != nil {
		return nil, err
	}

	r := &change.VerifyReport{MessageType: "report", Schema: 1, Verb: "verify", Checked: base.Len()}
	var linked []linkSeen
	for _, b := range batches {
		r.Damage = append(r.Damage, b.damage...)
		r.Warnings = append(r.Warnings, b.warnings...)
		linked = append(linked, b.linked...)
	}
	r.Damage = append(r.Damage, c.brokenLinks(linked, r.Damage)...)
	slices.SortStableFunc(r.Damage, func(a, b change.Damage) int { return strings.Compare(a.Path, b.Path) })
	return r, nil
}

type recordedNode struct {
	path string
	node *change.Node
}

// batch checks recorded paths that follow each other, and so mostly lie in few folders.
func (c *checker) batch(w *worker, batch []recordedNode, out *checked) error {
	var f *folder
	var dir string
	known := false // whether f is the folder at dir; nil: there is none
	defer func() { f.release() }()
	for _, r := range batch {
		if d := parent(r.path); !known || d != dir {
			f.release()
			f, dir, known = nil, d, true
			var err error
			if f, err = c.live.open(d); err != nil && !gone(err) {
				return err
			}
		}
		if err := c.check(w, f, dir, r, out); err != nil {
			return err
		}
		w.stats.files.Add(1)
	}
	return nil
}

func (c *checker) check(w *worker, f *folder, dir string, r recordedNode, out *checked) error {
	name := path.Base(r.path)
	missing := change.Damage{Path: r.path, Problem: "missing", Detail: "it was a " + r.node.Type.String()}
	if f == nil {
		c.add(out, missing)
		return nil
	}
	fd, at := f.at(name)
	live, err := sys.Lstat(fd, at)
	if isAbsent(err) {
		c.add(out, missing)
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", r.path, err)
	}
	if err := w.describeLive(f, dir, name, live); err != nil {
		return err
	}
	if live.Type == change.Regular && r.node.Type == change.Regular && live.Size == r.node.Size {
		if r.node.Digest.IsZero() {
			out.warnings = append(out.warnings, r.path+": no digest is recorded: only its size was compared")
			live.Digest = change.Digest{}
		} else if c.o.Full || live.Digest.IsZero() {
			live.Digest = change.Digest{}
			if err := w.digest(w.o.Index, f, name, live); err != nil {
				return fmt.Errorf("cannot read %s: %w", r.path, err)
			}
		}
	}
	if a := difference(r.node, live); a != 0 {
		c.add(out, change.Damage{Path: r.path, Problem: "differs", Aspects: a.Names(), Detail: detail(r.node, live, a)})
	}
	if live.Type == r.node.Type && (r.node.Link != "" || live.Nlink > 1 && !live.IsDir()) {
		out.linked = append(out.linked, linkSeen{r.path, r.node.Link, change.InodeKey{Dev: live.Dev, Ino: live.Ino}})
	}
	if live.IsDir() && r.node.IsDir() && c.class(r.path) == change.ClassWhole {
		return c.unexpected(f, dir, name, out)
	}
	return nil
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

// add notes damage with its owner.
func (c *checker) add(out *checked, d change.Damage) {
	d.Owner = "machine"
	switch c.class(d.Path) {
	case change.ClassWhole, change.ClassListed:
		d.Owner = "damage"
	}
	out.damage = append(out.damage, d)
}

// unexpected lists what is in a folder of the image and was not shipped. Of a
// folder that was not, only its own name is told.
func (c *checker) unexpected(f *folder, dir, name string, out *checked) error {
	sub, err := c.live.child(f, dir, name)
	if err != nil {
		return err
	}
	defer sub.release()
	names, err := sys.ReadDirNames(sub.fd)
	if err != nil {
		return fmt.Errorf("cannot list %s: %w", join(dir, name), err)
	}
	for _, child := range names {
		p := join(join(dir, name), child)
		if c.base.Has(p) || c.class(p) != change.ClassWhole || c.live.isStore(join(dir, name), child) {
			continue
		}
		d := change.Damage{Path: p, Problem: "unexpected"}
		if n, err := sys.Lstat(sub.fd, child); err == nil {
			d.Detail = "a " + n.Type.String() + " that no update laid down"
		}
		c.add(out, d)
	}
	return nil
}

// brokenLinks tells names that share an inode where the record does not say
// so, and names that should and do not. Names of which the content differs are
// told already.
func (c *checker) brokenLinks(seen []linkSeen, damage []change.Damage) []change.Damage {
	told := map[string]bool{}
	for _, d := range damage {
		told[d.Path] = true
	}
	groups := map[string]change.InodeKey{}
	inodes := map[change.InodeKey]string{} // the group, or the path where it has none
	first := map[change.InodeKey]string{}
	slices.SortFunc(seen, func(a, b linkSeen) int { return strings.Compare(a.path, b.path) })
	out := &checked{}
	for _, s := range seen {
		if told[s.path] {
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
			c.add(out, change.Damage{Path: s.path, Problem: "differs", Aspects: change.AspectLinks.Names(), Detail: detail})
		}
	}
	return out.damage
}
