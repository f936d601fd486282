package diff

import (
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// decide settles an encounter of which all is known that is needed.
func (w *worker) decide(e *encounter) error {
	if e.ln != nil && difference(e.sn, e.ln) == 0 {
		w.record(e, e.sn)
		if e.sn.Type != change.Directory && (e.sn.Nlink > 1 || e.ln.Nlink > 1) {
			w.link(e, 0)
		} else {
			w.identical++
		}
		return nil
	}
	if e.class != change.ClassThreeWay {
		return w.take(e)
	}
	d := w.own.Decide(e.path(), e.ln, e.sn)
	w.tell(e.path(), d)
	switch d.Verdict {
	case change.VerdictTake:
		return w.take(e)
	case change.VerdictBeside:
		if e.sn.Type != change.Directory {
			return w.beside(e, d)
		}
		// A whole folder is not laid beside: what is below would be half of
		// one version and half of the other.
	}
	w.record(e, e.sn)
	if d.Reason != "" {
		w.kept = append(w.kept, change.Kept{Path: e.path(), Reason: d.Reason})
	}
	if e.sn.Type == change.Directory && (e.ln == nil || e.ln.Type != change.Directory) {
		return w.passOver(e.src, e.srcDir, e.dir, e.name, true)
	}
	return nil
}

// tell passes on what an owner wants said.
func (w *worker) tell(path string, d change.Decision) {
	if d.Warning && d.Reason != "" {
		w.warn(path + ": " + d.Reason)
	}
}

// take makes an entry of the Delta.
func (w *worker) take(e *encounter) error {
	w.record(e, e.sn)
	entry := change.Entry{Path: e.path(), Op: change.Add, Old: e.ln, From: e.srcPath()}
	if e.ln != nil {
		entry.Aspects = difference(e.sn, e.ln)
		entry.Op = change.Replace
		if entry.Aspects.InPlace() {
			entry.Op, entry.From = change.Metadata, ""
		}
		if e.ln.Type == change.Directory && e.sn.Type != change.Directory {
			if err := w.emptied(e); err != nil {
				return err
			}
		}
	}
	entry.New = installed(e.sn, e.ln, entry.Op)
	if e.sn.Type != change.Directory && (e.sn.Nlink > 1 || e.ln != nil && e.ln.Type != change.Directory && e.ln.Nlink > 1) {
		w.link(e, entry.Aspects)
		return nil
	}
	w.entries = append(w.entries, entry)
	if e.sn.Type == change.Directory && (e.ln == nil || e.ln.Type != change.Directory) {
		return w.descend(e, false)
	}
	return nil
}

// beside lays the source's object beside the live one.
func (w *worker) beside(e *encounter, d change.Decision) error {
	w.record(e, e.sn)
	name := e.name + besideSuffix
	at := join(e.dir, name)
	w.kept = append(w.kept, change.Kept{Path: e.path(), Reason: d.Reason, Beside: at})
	entry := change.Entry{Path: at, Op: change.Add, From: e.srcPath()}
	if e.live != nil {
		old, err := sys.Lstat(e.live.fd, name)
		switch {
		case isAbsent(err):
		case err != nil:
			return fmt.Errorf("cannot read %s: %w", at, err)
		case old.Type == change.Directory:
			return fmt.Errorf("cannot lay the new %s beside it: %s is a directory", e.path(), at)
		default:
			if err := w.describeLive(e.live, e.dir, name, old); err != nil {
				return err
			}
			if unread(old) && old.Size == e.sn.Size {
				if err := w.digest(w.o.Index, e.live, name, old); err != nil {
					return fmt.Errorf("cannot read %s: %w", at, err)
				}
			}
			entry.Aspects = difference(e.sn, old)
			if entry.Aspects&(change.AspectContent|change.AspectType) == 0 {
				return nil
			}
			entry.Op, entry.Old = change.Replace, old
		}
	}
	entry.New = installed(e.sn, entry.Old, entry.Op)
	w.entries = append(w.entries, entry)
	return nil
}

// extra deals with a live name that the source lacks.
func (w *worker) extra(p *pairing, name string) error {
	if w.live.isStore(p.dir, name) {
		return nil
	}
	at := join(p.dir, name)
	if w.own.Class(at) != change.ClassWhole {
		return nil
	}
	_, err := w.remove(p.live, p.dir, name)
	return err
}

// remove takes a live object, and all below it, out of the root as far as it
// is the update's. It tells the first path that stays, "" where all goes.
func (w *worker) remove(f *folder, dir, name string) (stays string, err error) {
	at := join(dir, name)
	class := w.own.Class(at)
	if f.inner[name] != nil || class != change.ClassWhole && class != change.ClassThreeWay {
		return at, nil
	}
	n, err := sys.Lstat(f.fd, name)
	if isAbsent(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read %s: %w", at, err)
	}
	if err := w.describeLive(f, dir, name, n); err != nil {
		return "", err
	}
	if n.Type == change.Directory {
		if stays, err = w.removeBelow(f, dir, name); err != nil || stays != "" {
			return stays, err
		}
	}
	if class == change.ClassThreeWay {
		if unread(n) {
			if err := w.digest(w.o.Index, f, name, n); err != nil {
				return "", fmt.Errorf("cannot read %s: %w", at, err)
			}
		}
		d := w.own.Decide(at, n, nil)
		w.tell(at, d)
		if d.Verdict != change.VerdictRemove {
			if d.Reason != "" {
				w.kept = append(w.kept, change.Kept{Path: at, Reason: d.Reason})
			}
			return at, nil
		}
	}
	w.entries = append(w.entries, change.Entry{Path: at, Op: change.Remove, Old: n})
	return "", nil
}

// removeBelow removes what a live directory holds, as far as it is the update's.
func (w *worker) removeBelow(f *folder, dir, name string) (stays string, err error) {
	sub, err := w.live.child(f, dir, name)
	if err != nil {
		return "", err
	}
	defer sub.release()
	names, err := sys.ReadDirNames(sub.fd)
	if err != nil {
		return "", fmt.Errorf("cannot list %s: %w", join(dir, name), err)
	}
	for _, child := range names {
		first, err := w.remove(sub, join(dir, name), child)
		if err != nil {
			return "", err
		}
		if stays == "" {
			stays = first
		}
	}
	return stays, nil
}

// emptied removes what a live directory holds that becomes something else. A
// path in it that is not the update's would be lost: that is refused.
func (w *worker) emptied(e *encounter) error {
	if e.live.inner[e.name] != nil {
		return fmt.Errorf("cannot replace %s by a %s: a file system is mounted on it", e.path(), e.sn.Type)
	}
	stays, err := w.removeBelow(e.live, e.dir, e.name)
	if err != nil {
		return err
	}
	if stays != "" {
		return change.WithHint(
			fmt.Errorf("cannot replace the folder %s by a %s: %s in it is not the update's", e.path(), e.sn.Type, stays),
			"move it elsewhere first")
	}
	return nil
}

// recorded puts the recorded paths that the source lacks to the owner, the
// deepest first, so that a folder is asked about after what it holds.
func (w *worker) recorded() (map[string]bool, error) {
	lacking := w.lacking()
	if len(lacking) == 0 {
		return lacking, nil
	}
	removed := map[string]bool{}
	for _, e := range w.entries {
		if e.Op == change.Remove {
			removed[e.Path] = true
		}
	}
	for _, p := range sortedDescending(lacking) {
		if removed[p] {
			continue
		}
		n, err := w.live.lstat(p)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", p, err)
		}
		gone, err := w.forgotten(p, n, removed)
		if err != nil {
			return nil, err
		}
		if gone {
			removed[p] = true
			w.entries = append(w.entries, change.Entry{Path: p, Op: change.Remove, Old: n})
		}
	}
	return lacking, nil
}

// forgotten tells whether a recorded object that the source lacks goes.
func (w *worker) forgotten(p string, n *change.Node, removed map[string]bool) (bool, error) {
	dir, name := parent(p), p[strings.LastIndexByte(p, '/')+1:]
	f, err := w.live.open(dir)
	if err != nil {
		return false, err
	}
	defer f.release()
	if f.inner[name] != nil {
		return false, nil
	}
	if err := w.describeLive(f, dir, name, n); err != nil {
		return false, err
	}
	if unread(n) {
		if err := w.digest(w.o.Index, f, name, n); err != nil {
			return false, fmt.Errorf("cannot read %s: %w", p, err)
		}
	}
	d := w.own.Decide(p, n, nil)
	if d.Verdict == change.VerdictRemove && n.Type == change.Directory {
		sub, err := w.live.child(f, dir, name)
		if err != nil {
			return false, err
		}
		defer sub.release()
		names, err := sys.ReadDirNames(sub.fd)
		if err != nil {
			return false, fmt.Errorf("cannot list %s: %w", p, err)
		}
		for _, child := range names {
			if !removed[join(p, child)] {
				// The machine put something into it.
				return false, nil
			}
		}
	}
	w.tell(p, d)
	if d.Verdict != change.VerdictRemove && d.Reason != "" {
		w.kept = append(w.kept, change.Kept{Path: p, Reason: d.Reason})
	}
	return d.Verdict == change.VerdictRemove, nil
}
