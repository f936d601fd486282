package diff

import (
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// alias compares the entries of a directory of the source that lands through a
// symlink. Its directories become aliases in turn: another directory of
// the source may land in them, too.
func (w *worker) alias(a alias) error {
	src, err := w.openSource(a.src)
	if err != nil {
		return err
	}
	defer src.release()
	live, err := w.live.open(a.live)
	if err != nil && !gone(err) {
		return err
	}
	// Gone: another directory of the source makes it. live is nil then.
	defer live.release()
	p := &pairing{src: src, live: live, srcDir: a.src, dir: a.live, class: w.own.Class(shown(a.live)), aliased: true}
	var list, liveList sys.Listing
	if err := list.Read(src.fd); err != nil {
		return fmt.Errorf("cannot list %s of the source: %w", a.src, err)
	}
	shipped := make(map[string]bool, list.Len())
	for i := range list.Len() {
		e := &encounter{pairing: p, name: list.Name(i).String(), sn: &change.Node{}}
		shipped[e.name] = true
		if err := w.stat.Lstat(src.fd, list.Name(i), e.sn); err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", e.srcPath(), err)
		}
		if w.signed {
			if err := w.claim(p, e.name, e.sn); err != nil {
				return err
			}
		}
		again, err := w.shared(e)
		if err != nil {
			return err
		}
		if again {
			continue
		}
		if err := w.meetOwned(e); err != nil {
			return err
		}
	}
	if live == nil || p.class != change.ClassWhole || w.ships(a.live) {
		return nil
	}
	if err := liveList.Read(live.fd); err != nil {
		return fmt.Errorf("cannot list %s: %w", a.live, err)
	}
	for i := range liveList.Len() {
		if name := liveList.Name(i).String(); !shipped[name] {
			if err := w.extra(p, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// ships tells whether the source has a directory at a path itself.
func (w *worker) ships(p string) bool {
	if p == "" {
		return true
	}
	n, err := sys.LstatPath(w.src.Root(), p[1:])
	return err == nil && n.IsDir()
}

// shared tells whether another entry of the source lands on the same path. Two
// that are not equal are refused.
func (w *worker) shared(e *encounter) (bool, error) {
	at := e.path()
	other, ok := w.landed[at]
	w.landed[at] = e.srcPath()
	if !ok {
		other = at
	}
	if other == e.srcPath() {
		return false, nil
	}
	dir, name := parent(other), other[strings.LastIndexByte(other, '/')+1:]
	f, err := w.openSource(dir)
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.release()
	n, err := sys.Lstat(f.fd, name)
	if isAbsent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read %s of the source: %w", other, err)
	}
	if n.IsDir() && e.sn.IsDir() {
		w.queueAlias(alias{e.srcPath(), at})
		return true, nil
	}
	o := &encounter{pairing: &pairing{src: f, srcDir: dir, dir: dir}, name: name, sn: n}
	if w.signed {
		if err := w.claim(o.pairing, name, n); err != nil {
			return false, err
		}
	}
	for _, x := range []*encounter{e, o} {
		if err := w.describe(x); err != nil {
			return false, err
		}
	}
	if n.Type == change.Regular && n.Size == e.sn.Size {
		for _, x := range []*encounter{e, o} {
			if unread(x.sn) {
				if err := w.digest(w.o.SourceIndex, x.src, x.name, x.sn); err != nil {
					return false, fmt.Errorf("cannot read %s of the source: %w", x.srcPath(), err)
				}
			}
		}
	}
	if !alike(n, e.sn) {
		return false, fmt.Errorf("cannot place both %q and %q of the source at %q: they differ", other, e.srcPath(), at)
	}
	return true, nil
}

// dropLanded takes back the removal of paths on which, or below which, an
// entry landed through a symlink.
func (w *worker) dropLanded() {
	if len(w.landed) == 0 {
		return
	}
	needed := map[string]bool{}
	for p := range w.landed {
		for ; p != "" && !needed[p]; p = parent(p) {
			needed[p] = true
		}
	}
	kept := w.entries[:0]
	for _, e := range w.entries {
		if e.Op != change.Remove || !needed[e.Path] {
			kept = append(kept, e)
		}
	}
	w.entries = kept
}
