package engine

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/transact"
)

// A mount that stands upon a path, or shows it elsewhere, follows the old object
// when names are exchanged: a service's InaccessiblePaths= would no longer cover
// the path, a bind would go on showing the old version. Those that are there when
// the plan is made are part of it: their units restart. Here are those that come
// later. They make the plan one for another machine: it is refused, before the
// commit or, where one came in the midst of it, by taking everything back.

// picture is which mounts there are now; nil, with a warning, where they cannot be seen.
func (s *session) picture() *nsmount.Picture {
	p, err := s.root.Picture()
	if err != nil {
		s.warnings = append(s.warnings, fmt.Sprintf("mounts that come during the update are not looked for: %v", err))
		return nil
	}
	return p
}

// guardMounts refuses what was mounted since the plan was made, and sees to it
// that what is mounted during the swap takes the commit back.
func (r *run) guardMounts() error {
	if r.p.mounts == nil || r.s.e.noMounts {
		return nil
	}
	before := r.s.picture()
	if before == nil {
		return nil
	}
	r.before = before
	if list := before.Since(r.p.mounts, false, r.moves); len(list) > 0 {
		return arrived(list[0], list[0].Path, "since the plan was made")
	}
	r.tellCovers(before.Since(r.p.mounts, false, r.below))
	r.tx.OnSwap(func() error {
		after := r.s.picture()
		if after == nil {
			return nil
		}
		if list := after.Since(before, true, r.staged); len(list) > 0 {
			return arrived(list[0], r.oldPath(list[0].Path), "during the commit")
		}
		r.tellCovers(after.Since(before, true, r.below))
		return nil
	})
	return nil
}

func arrived(a nsmount.Arrival, p, when string) error {
	how := "something was mounted on it"
	if !a.Upon {
		how = "it was bound to " + a.Point
	}
	return change.WithHint(fmt.Errorf("cannot change %s: %s %s, in %s: %w", p, how, when, a.In, change.ErrDrift), "make a new plan")
}

// tellCovers warns of mounts that hide what changes: the file system below them
// is what an update is for.
func (r *run) tellCovers(list []nsmount.Arrival) {
	for _, a := range list {
		if a.Covers {
			r.s.warnings = append(r.s.warnings, fmt.Sprintf(
				"something was mounted on %s meanwhile, in %s: what changed below it is seen once that is unmounted", a.Path, a.In))
		}
	}
}

// below tells whether something below a path changes.
func (r *run) below(p string) bool {
	prefix := strings.TrimSuffix(p, "/") + "/"
	i, _ := slices.BinarySearchFunc(r.p.delta.Entries, prefix, func(e change.Entry, p string) int { return strings.Compare(e.Path, p) })
	return i < len(r.p.delta.Entries) && strings.HasPrefix(r.p.delta.Entries[i].Path, prefix)
}

// moves tells whether the object at a path, or a folder that it lies in, is
// exchanged or goes.
func (r *run) moves(p string) bool {
	for ; p != "/" && p != "."; p = path.Dir(p) {
		i, ok := slices.BinarySearchFunc(r.p.delta.Entries, p, func(e change.Entry, p string) int { return strings.Compare(e.Path, p) })
		if !ok {
			continue
		}
		e := &r.p.delta.Entries[i]
		if e.Op == change.Remove || e.Op == change.Replace && !(e.Old.IsDir() && e.New.IsDir()) {
			return true
		}
	}
	return false
}

// staged tells whether a path lies where the transaction keeps what it took away.
func (r *run) staged(p string) bool {
	_, _, ok := r.inStore(p)
	return ok
}

// inStore splits a path below the transaction's folder on some file system.
func (r *run) inStore(p string) (mount, rest string, ok bool) {
	mount, rest, ok = strings.Cut(p, "/"+transact.Dir+"/tx/"+r.tx.ID()+"/")
	return mount, rest, ok
}

// oldPath is where an object that the transaction took away was.
func (r *run) oldPath(p string) string {
	mount, rest, ok := r.inStore(p)
	if !ok {
		return p
	}
	if was, ok := strings.CutPrefix(rest, "up/"); ok {
		return path.Join("/", mount, was)
	}
	kept, err := r.tx.Kept()
	for _, k := range kept {
		if err == nil && (k.From == p || strings.HasPrefix(k.From, p+"/")) {
			return strings.TrimSuffix(k.Path, strings.TrimPrefix(k.From, p))
		}
	}
	return p
}

// tellMounts warns of what was mounted while a rollback went on: that is not
// taken back.
func (r *run) tellMounts() {
	if r.before == nil {
		return
	}
	after := r.s.picture()
	if after == nil {
		return
	}
	for _, a := range after.Since(r.before, true, r.staged) {
		text := "what was mounted on it is there no more"
		if !a.Upon {
			text = a.Point + " shows the version that was taken back"
		}
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("%s was mounted upon or bound during the rollback, in %s: %s; restart what uses it", r.oldPath(a.Path), a.In, text))
	}
}
