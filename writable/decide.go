package writable

import (
	"bytes"
	"maps"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Shorthands: a decision without and with something to tell.
func take() change.Decision   { return change.Decision{Verdict: change.VerdictTake} }
func keep() change.Decision   { return change.Decision{Verdict: change.VerdictKeep} }
func remove() change.Decision { return change.Decision{Verdict: change.VerdictRemove} }

func because(v change.Verdict, reason string) change.Decision {
	return change.Decision{Verdict: v, Reason: reason}
}

func warn(v change.Verdict, reason string) change.Decision {
	return change.Decision{Verdict: v, Reason: reason, Warning: true}
}

// Decide tells what happens to one path: old lies there now, new is what the
// update ships; nil where there is none. In the three-way class the digests of
// regular files must have been read: content that is not known counts as changed.
func (r *Rules) Decide(p string, old, new *change.Node) change.Decision {
	if old == nil && new == nil {
		return keep()
	}
	switch r.Class(p) {
	case change.ClassWhole:
		return decideWhole(new)
	case change.ClassListed:
		return decideListed(new)
	case change.ClassThreeWay:
		return r.decideThreeWay(p, old, new)
	case change.ClassAddOnly:
		return decideAddOnly(old, new)
	}
	return decideNever(p, new)
}

func decideNever(p string, new *change.Node) change.Decision {
	// A whole tree has /proc, /home and the like as empty folders: nothing to tell.
	if new == nil || new.IsDir() {
		return keep()
	}
	if neverFiles[p] || strings.HasPrefix(p, hostKeys) {
		return because(change.VerdictKeep, "it makes this machine itself: an update never brings it")
	}
	return because(change.VerdictKeep, "it is the machine's alone")
}

func decideAddOnly(old, new *change.Node) change.Decision {
	switch {
	case old == nil:
		return take()
	case new == nil || new.IsDir() && old.IsDir() || alike(old, new):
		return keep()
	}
	return because(change.VerdictKeep, "an update only adds here, and it is there already")
}

func decideListed(new *change.Node) change.Decision {
	if new == nil {
		return keep()
	}
	return take()
}

func decideWhole(new *change.Node) change.Decision {
	if new == nil {
		return remove()
	}
	return take()
}

// decideThreeWay is the rule of /etc; see the table in the package comment.
func (r *Rules) decideThreeWay(p string, old, new *change.Node) change.Decision {
	var base *change.Node
	if r.base != nil {
		base, _ = r.base.Get(p)
	}
	switch {
	case new == nil:
		return r.decideGone(old, base)
	case old == nil:
		return decideAbsent(new, base)
	case same(old, new):
		return take()
	case base == nil:
		return r.decideUnknown(p, old, new)
	case same(old, base):
		return take()
	case new.IsDir() && old.IsDir():
		return because(change.VerdictKeep, "the machine changed the folder's owner, mode or attributes")
	case new.IsDir():
		return warn(change.VerdictKeep, "the machine put a "+old.Type.String()+" in the folder's place: nothing below it is taken")
	}
	return because(change.VerdictBeside, "the machine changed it")
}

// decideGone: the machine has it, the update does not ship it.
func (r *Rules) decideGone(old, base *change.Node) change.Decision {
	switch {
	case base == nil || !r.whole:
		return keep()
	case same(old, base):
		return remove()
	}
	return because(change.VerdictKeep, "the update no longer has it, and the machine changed it")
}

// decideAbsent: the update ships it, the machine does not have it.
func decideAbsent(new, base *change.Node) change.Decision {
	switch {
	case base == nil:
		return take()
	case new.IsDir():
		return because(change.VerdictKeep, "the machine removed the folder: nothing below it is taken")
	case same(new, base):
		return because(change.VerdictKeep, "the machine removed it")
	}
	return warn(change.VerdictBeside, "the machine removed it, and the update has a newer one")
}

// decideUnknown: both have it, they differ, and no base tells whose the machine's is.
func (r *Rules) decideUnknown(p string, old, new *change.Node) change.Decision {
	switch {
	case old.IsDir() && !new.IsDir():
		return warn(change.VerdictBeside, "the machine has a folder there, and what it holds may be its own")
	case r.whole && identityFiles[p] && !new.IsDir():
		return warn(change.VerdictBeside, "it says who this machine is and who may use it, and no recorded base tells what the machine changed")
	case old.IsDir() && p == etc && !r.whole:
		return keep() // as each folder that all systems share
	case old.IsDir():
		return warn(change.VerdictTake, "no recorded base: the folder gets the update's owner, mode and attributes")
	}
	return warn(change.VerdictTake, "no recorded base: replaced, the old copy is kept for a rollback")
}

// alike is same where contents were not read: only a reason to tell hangs on
// it, so size and modification time will do.
func alike(a, b *change.Node) bool {
	if a.Type == change.Regular && b.Type == change.Regular && (a.Digest.IsZero() || b.Digest.IsZero()) {
		return a.Size == b.Size && a.MtimeNS == b.MtimeNS
	}
	return same(a, b)
}

// same tells whether two objects are equal in all that a change means: not in
// their modification time, nor in labels that a machine gives by itself.
func same(a, b *change.Node) bool {
	if a == nil || b == nil {
		return a == b
	}
	if a.Type != b.Type || a.UID != b.UID || a.GID != b.GID || !sameXattrs(a.Xattrs, b.Xattrs) {
		return false
	}
	switch a.Type {
	case change.Symlink: // whose mode means nothing
		return a.Target == b.Target
	case change.Regular:
		// Content that nobody has read is not known to be the same.
		if a.Size != b.Size || a.Digest.IsZero() || a.Digest != b.Digest {
			return false
		}
	case change.CharDevice, change.BlockDevice:
		if a.Rdev != b.Rdev {
			return false
		}
	}
	return a.Mode == b.Mode
}

func sameXattrs(a, b map[string][]byte) bool {
	if len(a) == 0 && len(b) == 0 {
		return true
	}
	own := func(m map[string][]byte) map[string][]byte {
		m = maps.Clone(m)
		maps.DeleteFunc(m, func(key string, _ []byte) bool { return change.MachineXattr(key) })
		return m
	}
	return maps.EqualFunc(own(a), own(b), bytes.Equal)
}
