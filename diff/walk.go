package diff

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
)

// pairing is a directory of the source and where it lands.
type pairing struct {
	src, live   *folder // live nil: the root has no such directory
	srcDir, dir string  // paths, "" for the top
	class       change.Class
	aliased     bool // it landed through a symlink
}

// encounter is one entry of the source and what is where it lands.
type encounter struct {
	*pairing
	name  string
	sn    *change.Node // the source's
	ln    *change.Node // the live one, nil where there is none
	class change.Class
}

func (e *encounter) path() string    { return join(e.dir, e.name) }
func (e *encounter) srcPath() string { return join(e.srcDir, e.name) }

// alias is a directory of the source that lands elsewhere.
type alias struct{ src, live string }

// pair does steps 1 to 3 for one directory, whose names become jobs in turn.
func (w *worker) pair(p pairing) error {
	if err := w.sl.Read(p.src.fd); err != nil {
		return fmt.Errorf("cannot list %s of the source: %w", shown(p.srcDir), err)
	}
	w.ll.Reset()
	if p.live != nil {
		if err := w.ll.Read(p.live.fd); err != nil {
			return fmt.Errorf("cannot list %s: %w", shown(p.dir), err)
		}
	}
	// The listings stay as they are until the end: what is met below gets
	// listings of its own or a job.
	s, l := 0, 0
	for s < w.sl.Len() || l < w.ll.Len() {
		order := -1
		switch {
		case s == w.sl.Len():
			order = 1
		case l < w.ll.Len():
			order = bytes.Compare(w.sl.Name(s), w.ll.Name(l))
		}
		if order > 0 || p.srcDir == "" && w.skipped(w.sl.Name(s)) {
			if order >= 0 {
				if err := w.extra(&p, w.ll.Name(l).String()); err != nil {
					return err
				}
				l++
			}
			if order <= 0 {
				s++
			}
			continue
		}
		if err := w.meet(&p, w.sl.Name(s), order == 0); err != nil {
			return err
		}
		s++
		if order == 0 {
			l++
		}
	}
	w.closeChunk(&p)
	w.stats.files.Add(int64(w.sl.Len()))
	return nil
}

// skipped tells whether a name at the top of the source describes the update
// and is not part of it.
func (w *worker) skipped(name sys.CName) bool { return w.src.Skip("/" + name.String()) }

// meet compares one entry of the source.
func (w *worker) meet(p *pairing, name sys.CName, inLive bool) error {
	if err := w.stat.Lstat(p.src.fd, name, &w.sn); err != nil {
		return fmt.Errorf("cannot read %s of the source: %w", join(p.srcDir, name.String()), err)
	}
	if inLive {
		dir, at := p.live.fd, name
		if p.live.inner != nil {
			if v := p.live.inner[string(name.Bytes())]; v != nil {
				dir, at = v.dir, sys.CName{0}
			}
		}
		err := w.stat.Lstat(dir, at, &w.ln)
		if isAbsent(err) {
			inLive = false
		} else if err != nil {
			return fmt.Errorf("cannot read %s: %w", join(p.dir, name.String()), err)
		}
	}
	if w.signed {
		if err := w.claim(p, name.String(), &w.sn); err != nil {
			return err
		}
	}
	if inLive && w.quick(p, name) {
		return nil
	}
	e := &encounter{pairing: p, name: name.String(), sn: clone(&w.sn)}
	if inLive {
		e.ln = clone(&w.ln)
	}
	return w.settle(e)
}

func clone(n *change.Node) *change.Node {
	c := *n
	return &c
}

// quick settles what is the same by all that is known without opening
// anything. False means only that this does not suffice.
func (w *worker) quick(p *pairing, name sys.CName) bool {
	s, l := &w.sn, &w.ln
	if s.Type != l.Type || s.Type == change.Directory || s.Type == change.Socket ||
		s.Size != l.Size || s.MtimeNS != l.MtimeNS || s.UID != l.UID || s.GID != l.GID || s.Rdev != l.Rdev ||
		s.Mode != l.Mode && s.Type != change.Symlink {
		return false
	}
	if !lookup(w.o.SourceIndex, p.src, s, w.signed) || !lookup(w.o.Index, p.live, l, false) {
		return false
	}
	w.unlabel(s)
	if s.Type == change.Regular && (s.Digest.IsZero() || s.Digest != l.Digest) {
		return false
	}
	if (s.Xattrs != nil || l.Xattrs != nil) && xattrDifference(s, l) != 0 {
		return false
	}
	if s.Type == change.Symlink {
		st, err := sys.ReadlinkInto(p.src.fd, name, w.targets[0])
		if err != nil {
			return false
		}
		lt, err := sys.ReadlinkInto(p.live.fd, name, w.targets[1])
		if err != nil || !bytes.Equal(st, lt) {
			return false
		}
		s.Target = string(st)
	}
	if s.Nlink > 1 || l.Nlink > 1 {
		e := encounter{pairing: p, name: name.String(), sn: s, ln: l}
		w.link(&e, 0)
	} else {
		w.identical++
	}
	w.recordInChunk(name.Bytes(), s)
	return true
}

// lookup takes attributes, and the digest unless it is there, from an index.
// keep leaves the attributes as they are: a claim has set them.
func lookup(x *catalog.Index, f *folder, n *change.Node, keep bool) bool {
	ino, ok := f.vol.key(n)
	if !ok {
		return false
	}
	d, xattrs, ok := x.Lookup(ino, n.CtimeNS, n.Size)
	if !ok {
		return keep
	}
	if !keep {
		n.Xattrs = xattrs
	}
	if n.Digest.IsZero() {
		n.Digest = d
	}
	return true
}

// settle compares an entry of which the listings and two descriptions did not
// settle it, and decides.
func (w *worker) settle(e *encounter) error {
	if w.live.isStore(e.dir, e.name) {
		return fmt.Errorf("cannot take %s of the source: it is where liveupd keeps its transactions", e.srcPath())
	}
	e.class = w.own.Class(e.path())
	if e.aliased && w.own.Class(e.srcPath()) == change.ClassNever {
		// A symlink in the root must not lead around what is the machine's.
		e.class = change.ClassNever
	}
	if err := w.layout(e); err != nil {
		return err
	}
	switch {
	case e.sn.Type == change.Directory:
		return w.settleFolder(e)
	case e.sn.Type == change.Socket:
		w.warn(fmt.Sprintf("%s of the source is a socket: left out", e.srcPath()))
		return nil
	case e.class == change.ClassNever:
		return nil
	case e.class == change.ClassAddOnly && e.ln != nil:
		return w.stays(e)
	}
	if err := w.describe(e); err != nil {
		return err
	}
	if !w.mustRead(e) {
		return w.decide(e)
	}
	// Reading is what takes long: it becomes a job of its own, so that a
	// folder of large files is shared among the workers.
	held := *e.pairing
	e.pairing = &held
	w.pool.push(job{run: func(w *worker) error {
		if err := w.read(e); err != nil {
			return err
		}
		return w.decide(e)
	}, held: [2]*folder{held.src, held.live}})
	return nil
}

// layout refuses a whole tree whose top level is laid out in another way: to
// apply it would move every path of the running system at once.
func (w *worker) layout(e *encounter) error {
	if !w.whole || e.dir != "" || e.class == change.ClassNever || e.ln == nil || e.sn.Type == e.ln.Type ||
		e.sn.Type != change.Symlink && e.ln.Type != change.Symlink {
		return nil
	}
	return change.WithHint(
		fmt.Errorf("cannot apply a tree of another layout: %s is a %s in it, and a %s in the root", e.path(), e.sn.Type, e.ln.Type),
		"both must have, or both lack, the links of a merged /usr")
}

// stays notes an entry that exists where only what is missing is added. It is
// not read: whatever it holds, it is not touched.
func (w *worker) stays(e *encounter) error {
	// The record is what verify compares with.
	if err := w.describeSource(e); err != nil {
		return err
	}
	w.record(e, e.sn)
	if e.sn.Type == e.ln.Type && e.sn.Size == e.ln.Size && e.sn.Mode == e.ln.Mode && e.sn.UID == e.ln.UID && e.sn.GID == e.ln.GID {
		w.identical++
		return nil
	}
	w.kept = append(w.kept, change.Kept{Path: e.path(), Reason: "it exists, and only what is missing is added here"})
	if e.sn.Type == change.Directory {
		return w.passOver(e.src, e.srcDir, e.dir, e.name, true)
	}
	return nil
}

// settleFolder does what settle does, for a directory of the source.
func (w *worker) settleFolder(e *encounter) error {
	if e.class == change.ClassNever {
		return w.never(e)
	}
	if e.ln != nil && e.ln.Type == change.Symlink {
		lands, err := w.landsElsewhere(e)
		if err != nil || lands {
			return err
		}
	}
	if err := w.describe(e); err != nil {
		return err
	}
	if e.ln != nil && e.ln.Type == change.Directory && w.o.Implied != nil && w.o.Implied(e.srcPath()) {
		n := clone(e.ln)
		n.Dev, n.Ino = e.sn.Dev, e.sn.Ino
		e.sn = n
	}
	if e.ln == nil || e.ln.Type != change.Directory {
		if e.ln != nil && e.class == change.ClassAddOnly {
			return w.stays(e)
		}
		return w.decide(e)
	}
	// Both are directories. Of the directory itself only metadata can differ.
	if e.class == change.ClassAddOnly {
		w.record(e, e.sn)
		w.identical++
	} else if err := w.decide(e); err != nil {
		return err
	}
	if e.aliased {
		w.queueAlias(alias{e.srcPath(), e.path()})
		return nil
	}
	return w.descend(e, true)
}

// landsElsewhere deals with a directory of the source that meets a symlink. It
// is false where the symlink is to be replaced like any other object.
func (w *worker) landsElsewhere(e *encounter) (bool, error) {
	target, node, err := w.live.resolve(e.path())
	if err != nil {
		return false, err
	}
	if !node.IsDir() {
		return false, nil
	}
	if w.whole && e.class == change.ClassWhole {
		// The image's own link became a directory. The target stays.
		return false, nil
	}
	w.queueAlias(alias{e.srcPath(), target})
	return true, nil
}

func (w *worker) queueAlias(a alias) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.aliases = append(w.aliases, a)
}

// descend makes a job of a directory's content; inLive tells whether the root has it.
func (w *worker) descend(e *encounter, inLive bool) error {
	p := pairing{srcDir: e.srcPath(), dir: e.path(), class: e.class, aliased: e.aliased}
	src, live, name := e.src, e.live, e.name
	srcDir, dir := e.srcDir, e.dir
	if !inLive {
		live = nil
	}
	w.pool.push(job{run: func(w *worker) error {
		p := p
		fd, err := sys.OpenDirAt(src.fd, name)
		if err != nil {
			return fmt.Errorf("cannot open %s of the source: %w", join(srcDir, name), err)
		}
		p.src = newFolder(fd, src.vol)
		defer p.src.release()
		if live != nil {
			if p.live, err = w.live.child(live, dir, name); err != nil {
				return err
			}
			defer p.live.release()
		}
		return w.pair(p)
	}, held: [2]*folder{src, live}})
	return nil
}

// never looks below a directory of ClassNever for what is owned all the same.
// The live side is opened only where something is.
func (w *worker) never(e *encounter) error {
	fd, err := sys.OpenDirAt(e.src.fd, e.name)
	if err != nil {
		return fmt.Errorf("cannot open %s of the source: %w", e.srcPath(), err)
	}
	p := &pairing{src: newFolder(fd, e.src.vol), srcDir: e.srcPath(), dir: e.path(), class: change.ClassNever, aliased: e.aliased}
	defer p.src.release()
	var list sys.Listing
	if err := list.Read(fd); err != nil {
		return fmt.Errorf("cannot list %s of the source: %w", p.srcDir, err)
	}
	opened := false
	defer func() { p.live.release() }()
	for i := range list.Len() {
		child := &encounter{pairing: p, name: list.Name(i).String(), sn: &change.Node{}}
		if err := w.stat.Lstat(fd, list.Name(i), child.sn); err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", child.srcPath(), err)
		}
		if w.signed {
			if err := w.claim(p, child.name, child.sn); err != nil {
				return err
			}
		}
		owned := w.own.Class(child.path()) != change.ClassNever && (!p.aliased || w.own.Class(child.srcPath()) != change.ClassNever)
		if !owned {
			if child.sn.IsDir() {
				if err := w.never(child); err != nil {
					return err
				}
			}
			continue
		}
		if !opened {
			opened = true
			elsewhere, err := w.openNever(p)
			if err != nil || elsewhere {
				return err
			}
		}
		if err := w.meetOwned(child); err != nil {
			return err
		}
	}
	return nil
}

// openNever opens where a directory of ClassNever lands. It is true where
// that is through a symlink: all of it then waits for step 4.
func (w *worker) openNever(p *pairing) (elsewhere bool, err error) {
	p.live, err = w.live.open(p.dir)
	switch {
	case err == nil:
		return false, nil
	case isAbsent(err):
		return false, w.addParents(p)
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR):
		target, node, err := w.live.resolve(p.dir)
		if err != nil {
			return false, err
		}
		if !node.IsDir() {
			return false, fmt.Errorf("cannot reach %s: it leads to no directory", p.dir)
		}
		w.queueAlias(alias{p.srcDir, target})
		return true, nil
	}
	return false, err
}

// addParents adds a directory of ClassNever that the root lacks, and those
// above it, because something below is owned.
func (w *worker) addParents(p *pairing) error {
	for end := 1; end <= len(p.dir); end++ {
		if end < len(p.dir) && p.dir[end] != '/' {
			continue
		}
		dir := p.dir[:end]
		if _, err := w.live.lstat(dir); !isAbsent(err) {
			continue
		}
		w.mu.Lock()
		again := w.parents[dir]
		w.parents[dir] = true
		w.mu.Unlock()
		if again {
			continue
		}
		// The tail of the two paths is the same, whatever is before it.
		srcDir := strings.TrimSuffix(p.srcDir, p.dir[end:])
		node, err := sys.LstatPath(w.src.Root(), srcDir[1:])
		if err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", srcDir, err)
		}
		w.entries = append(w.entries, change.Entry{Path: dir, Op: change.Add, New: node, From: srcDir})
	}
	return nil
}

// meetOwned settles an entry whose source side has been described.
func (w *worker) meetOwned(e *encounter) error {
	if e.live != nil {
		fd, name := e.live.at(e.name)
		n, err := sys.Lstat(fd, name)
		if err == nil {
			e.ln = n
		} else if !isAbsent(err) {
			return fmt.Errorf("cannot read %s: %w", e.path(), err)
		}
	}
	return w.settle(e)
}

// passOver goes through a directory of the source of which nothing lands:
// each path of a signed tree must be claimed, and what is the machine's by the
// three-way rule is recorded as shipped.
func (w *worker) passOver(src *folder, srcDir, dir, name string, record bool) error {
	if !w.signed && !record {
		return nil
	}
	fd, err := sys.OpenDirAt(src.fd, name)
	if err != nil {
		return fmt.Errorf("cannot open %s of the source: %w", join(srcDir, name), err)
	}
	p := &pairing{src: newFolder(fd, src.vol), srcDir: join(srcDir, name), dir: join(dir, name)}
	defer p.src.release()
	var list sys.Listing
	if err := list.Read(fd); err != nil {
		return fmt.Errorf("cannot list %s of the source: %w", p.srcDir, err)
	}
	for i := range list.Len() {
		e := &encounter{pairing: p, name: list.Name(i).String(), sn: &change.Node{}}
		if err := w.stat.Lstat(fd, list.Name(i), e.sn); err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", e.srcPath(), err)
		}
		if w.signed {
			if err := w.claim(p, e.name, e.sn); err != nil {
				return err
			}
		}
		if record {
			if err := w.describe(e); err != nil {
				return err
			}
			w.record(e, e.sn)
		}
		if e.sn.IsDir() {
			if err := w.passOver(p.src, p.srcDir, p.dir, e.name, record); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *worker) warn(text string) { w.warnings = append(w.warnings, text) }
