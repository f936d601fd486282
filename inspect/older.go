package inspect

import (
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// alreadyOlder is what a person is told of it.
const alreadyOlder = "what it runs lay there before, and is gone from the disk already"

// older finds the processes that run what lay at a changed path before what
// lies there now: no inode of theirs goes, and yet the change leaves them with
// something else than the path will hold. Here alone the name of a mapping
// counts, and only where its object has no name any more or was renamed aside, in
// a process that has the host's own root.
type older struct {
	roots map[change.InodeKey]bool // PID 1's and our own, which is a clone of it
	news  map[string]*change.Node
	// at are the same paths by what lies there now, and dirs their folders.
	at   map[change.InodeKey]string
	dirs map[string]bool
	// began is the host's.
	began int64
	// known are the changed paths of the objects met so far, "" for none.
	known map[change.InodeKey]string
}

func newOlder(h *host, d *change.Delta) *older {
	o := &older{
		news: map[string]*change.Node{}, known: map[change.InodeKey]string{},
		at: map[change.InodeKey]string{}, dirs: map[string]bool{}, began: h.began,
	}
	o.roots = h.roots()
	for i := range d.Entries {
		e := &d.Entries[i]
		if goes(e) && !e.FromLive && e.Old.Type == change.Regular &&
			(e.Op == change.Remove || e.Aspects == 0 || e.Aspects&(change.AspectContent|change.AspectType) != 0) {
			o.news[e.Path] = e.New
			o.at[change.InodeKey{Dev: e.Old.Dev, Ino: e.Old.Ino}] = e.Path
			o.dirs[path.Dir(e.Path)] = true
		}
	}
	return o
}

// roots are the host's own root: PID 1's and ours.
func (h *host) roots() map[change.InodeKey]bool {
	out := map[change.InodeKey]bool{}
	for _, pid := range []int{1, os.Getpid()} {
		p, err := sys.OpenProc(h.proc, pid)
		if err != nil {
			continue
		}
		var n change.Node
		if p.StatInto("root", &n) == nil {
			out[change.InodeKey{Dev: n.Dev, Ino: n.Ino}] = true
		}
		p.Close()
	}
	return out
}

// olderPath is the changed path that an object lay at, "" where it did not; none
// where it did not for anybody.
func (c *collector) olderPath(p *sys.Proc, key change.InodeKey, link, name func() string) (at string, none bool) {
	o := c.older
	c.mu.Lock()
	at, ok := o.known[key]
	c.mu.Unlock()
	if !ok {
		at = o.judge(p, link(), name())
		c.mu.Lock()
		o.known[key] = at
		c.mu.Unlock()
	}
	if at == "" {
		return "", true
	}
	var root change.Node
	if p.StatInto("root", &root) != nil || !o.roots[change.InodeKey{Dev: root.Dev, Ino: root.Ino}] {
		return "", false // a container's own
	}
	return at, false
}

// aside is the changed path that a library was renamed away from: what its own
// name leads to in its folder.
func (o *older) aside(p *sys.Proc, link, name string) (string, bool) {
	if !o.dirs[path.Dir(name)] {
		return "", false
	}
	// Giving a file another name changes its inode.
	var n change.Node
	if err := p.StatInto(link, &n); err != nil || n.CtimeNS <= o.began {
		return "", false
	}
	own := ownName(p, link)
	if own == "" || own == path.Base(name) {
		return "", false
	}
	root, err := p.Open("root", sys.OpenPath|sys.OpenDir)
	if err != nil {
		return "", false
	}
	defer root.Close()
	there, err := statIn(root, path.Join(path.Dir(name), own))
	if err != nil {
		return "", false
	}
	at, ok := o.at[change.InodeKey{Dev: there.Dev, Ino: there.Ino}]
	return at, ok
}

func (o *older) judge(p *sys.Proc, link, name string) string {
	at, deleted := strings.CutSuffix(name, " (deleted)")
	if original, kept := originalPath(at); kept {
		at, deleted = original, true
	}
	if !deleted {
		at, deleted = o.aside(p, link, name)
	}
	next, changes := o.news[at]
	if !deleted || !changes {
		return ""
	}
	if next != nil && !next.Digest.IsZero() {
		if f, err := p.Open(link, sys.OpenRead|syscall.O_NONBLOCK); err == nil {
			defer f.Close()
			// Anybody can map a file of any size by this name, in a namespace of his own:
			// as much is read as the new one has, and no more.
			if n, err := f.Stat(); err != nil || n.Type != change.Regular || n.Size != next.Size {
				return at
			}
			if d, err := digest(f); err == nil && d == next.Digest {
				return "" // the change brings back what it runs
			}
		}
	}
	return at
}
