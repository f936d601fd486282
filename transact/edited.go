package transact

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// Edited tells, for the plan of a rollback, what others changed since the commit
// and what a rollback would do about each: the same judgement as Revert's own.
func (t *Tx) Edited() ([]string, error) {
	if t.journal == nil {
		return nil, fmt.Errorf("cannot plan the rollback of transaction %s: it has no journal", t.ID())
	}
	if missing := t.missing(); len(missing) > 0 {
		return nil, fmt.Errorf("cannot plan the rollback of transaction %s: %s is not mounted", t.ID(), strings.Join(missing, ", "))
	}
	m := t.mover()
	defer m.close()
	var out []string
	for op, err := range t.journal.Ops.Where(journal.Moves | journal.InPlace) {
		if err != nil {
			return nil, err
		}
		if op.Kind == journal.DirTimes {
			continue
		}
		m.dirs.trim()
		text, err := m.edited(op)
		if err != nil {
			return nil, fmt.Errorf("cannot plan the rollback of %s: %w", op.Path, err)
		}
		out = append(out, text...)
	}
	return out, nil
}

// Changes tells whether the transaction exchanges a path or brings or removes it with a
// folder above, by its journal; one without a journal changes nothing.
func (t *Tx) Changes(p string) (bool, error) {
	if t.journal == nil {
		return false, nil
	}
	for op, err := range t.journal.Ops.Where(journal.Moves | journal.Below | journal.InPlace) {
		if err != nil {
			return false, fmt.Errorf("cannot tell whether transaction %s changes %s: %w", t.ID(), p, err)
		}
		if op.Path == p && op.Kind != journal.DirTimes {
			return true, nil
		}
	}
	return false, nil
}

func (m *mover) edited(op *journal.Op) ([]string, error) {
	s, err := m.spot(op)
	if notHere(err) {
		return nil, nil // Inverse says so, with the path
	}
	if err != nil {
		return nil, err
	}
	live, err := look(s.live, s.liveName)
	if err != nil {
		return nil, err
	}
	gone := func(then string) []string {
		return []string{fmt.Sprintf("%s was removed after the update: %s", op.Path, then)}
	}
	switch op.Kind {
	case journal.Metadata:
		return m.editedInPlace(op, s, live)
	case journal.Add:
		if live == nil {
			return nil, nil // it was to go anyway
		}
	case journal.Exchange:
		if live == nil {
			return gone("the old one returns"), nil
		}
	case journal.Remove:
		if live == nil {
			return nil, nil
		}
		return []string{fmt.Sprintf("%s was made again after the update: that version will be kept as %s", op.Path, m.freeBeside(op, s))}, nil
	}
	clean, err := m.pristineNew(op, s.live, s.liveName, live)
	if err != nil || clean {
		return nil, err
	}
	return []string{fmt.Sprintf("%s was changed after the update: that version will be kept as %s", op.Path, m.freeBeside(op, s))}, nil
}

func (m *mover) editedInPlace(op *journal.Op, s spot, live *journal.Object) ([]string, error) {
	if live == nil {
		return []string{fmt.Sprintf("%s was removed after the update: it stays away", op.Path)}, nil
	}
	if !same(op.New, live) {
		return []string{fmt.Sprintf("%s was replaced after the update: it stays as it is", op.Path)}, nil
	}
	var out []string
	if live.Type != change.Directory && live.Mtime != op.New.Mtime && live.Mtime != op.Old.Mtime {
		out = append(out, fmt.Sprintf("%s was modified after the update: its content and modification time stay", op.Path))
	}
	now, err := sys.Xattrs(s.live, s.liveName)
	if err != nil {
		return nil, err
	}
	_, told := theirs(op, live, now, op.Old, op.New)
	return append(out, told...), nil
}

// theirs gives want with what others changed in place since the update left
// alone, and tells of each. other is the side that stands if nobody did.
//
// A replay that was cut off leaves its own traces, which are not others': a
// change of owner clears set-id bits and capabilities, and modes and ACLs change
// each other.
func theirs(op *journal.Op, found *journal.Object, now map[string][]byte, want, other *journal.Object) (*journal.Object, []string) {
	kept := *want
	var told []string
	tell := func(format string, args ...any) {
		told = append(told, op.Path+" was given "+fmt.Sprintf(format, args...)+" after the update: that stays")
	}
	ours := func(mode uint32) bool {
		for _, side := range []*journal.Object{want, other} {
			if mode == side.Mode {
				return true
			}
			const setID = 0o6000
			owner := want.UID != other.UID || want.GID != other.GID
			if owner && mode == side.Mode&^setID {
				return true
			}
		}
		return false
	}
	if found.UID != want.UID && found.UID != other.UID || found.GID != want.GID && found.GID != other.GID {
		kept.UID, kept.GID = found.UID, found.GID
		tell("the owner %d:%d", found.UID, found.GID)
	}
	if found.Type != change.Symlink && !ours(found.Mode) {
		kept.Mode = found.Mode
		tell("the mode %04o", found.Mode)
	}
	for _, key := range sides(want.Xattrs, other.Xattrs) {
		if strings.HasPrefix(key, "system.posix_acl_") {
			continue
		}
		has, there := now[key]
		val, wanted := want.Xattrs[key]
		otherVal, others := other.Xattrs[key]
		switch {
		case there == wanted && bytes.Equal(has, val), there == others && bytes.Equal(has, otherVal):
			continue
		case !there && key == "security.capability" && (want.UID != other.UID || want.GID != other.GID):
			continue
		}
		kept.Xattrs = cloneWith(kept.Xattrs, key, has)
		if !there {
			delete(kept.Xattrs, key)
			told = append(told, fmt.Sprintf("%s lost the attribute %s after the update: it stays without", op.Path, key))
			continue
		}
		tell("another %s", key)
	}
	return &kept, told
}

// nothingLeft tells whether somebody has removed the very folder in which an
// operation added or changed something: there is nothing to take back there.
func (m *mover) nothingLeft(op *journal.Op) bool {
	switch op.Kind {
	case journal.Add, journal.Metadata, journal.DirTimes:
	default:
		return false
	}
	_, rel := locate(m.mounts, op.Path)
	_, _, err := m.dirs.parent(m.t.vols[op.Volume].vol.Dir, rel)
	return notHere(err)
}

// freeBeside is the path that a version which is kept would get now.
func (m *mover) freeBeside(op *journal.Op, s spot) string {
	for n := range savedTries {
		beside := besideName(s.liveName, n)
		if _, err := sys.Lstat(s.live, beside); err != nil {
			return path.Join(path.Dir(op.Path), beside)
		}
	}
	return besideName(op.Path, 0)
}

// savedTries is how many versions of one path are kept at most.
const savedTries = 1000

// besideName is the nth name that a version of theirs may get.
func besideName(name string, n int) string {
	suffix := savedSuffix
	if n > 0 {
		suffix = fmt.Sprintf("%s.%d", savedSuffix, n)
	}
	const nameMax = 255
	return name[:min(len(name), nameMax-len(suffix))] + suffix
}
