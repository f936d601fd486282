package transact

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// mover does and undoes operations.
type mover struct {
	t    *Tx
	dirs *dirs
	buf  []byte
	// members are the journal's objects below folders that move.
	members members
	mounts  []string
}

func (t *Tx) mover() *mover {
	m := &mover{t: t, dirs: newDirs(), members: members{ops: &t.journal.Ops}}
	for i := range t.vols {
		m.mounts = append(m.mounts, t.vols[i].mount)
	}
	return m
}

func (m *mover) close() { m.dirs.close() }

// spot is where an operation works: the live name and, for what moves, the staged one.
type spot struct {
	live, staged         *sys.FD
	liveName, stagedName string
}

func (m *mover) spot(op *journal.Op) (spot, error) {
	tv := &m.t.vols[op.Volume]
	vol, rel := locate(m.mounts, op.Path)
	if vol != op.Volume {
		return spot{}, fmt.Errorf("cannot find %s: the journal says volume %s: %w", op.Path, tv.mount, journal.ErrCorrupt)
	}
	var s spot
	var err error
	if s.live, s.liveName, err = m.dirs.parent(tv.vol.Dir, rel); err != nil {
		return s, fmt.Errorf("cannot find %s: %w", op.Path, err)
	}
	if op.Staged == "" {
		return s, nil
	}
	if s.staged, s.stagedName, err = m.dirs.parent(tv.dir, op.Staged); err != nil {
		return s, fmt.Errorf("cannot find what is staged for %s: %w", op.Path, err)
	}
	return s, nil
}

// rename moves names; a file system that is full, or whose quota is used up, gets
// its ballast and one more try.
func (m *mover) rename(op *journal.Op, from *sys.FD, fromName string, to *sys.FD, toName string, flags uint) error {
	err := m.t.s.k.Rename(from, fromName, to, toName, flags)
	if m.t.makeRoom(op.Volume, err) {
		err = m.t.s.k.Rename(from, fromName, to, toName, flags)
	}
	if isErrno(err, syscall.EBUSY) {
		return fmt.Errorf("something is mounted on it: %w: %w", change.ErrDrift, err)
	}
	return err
}

func changedError(op *journal.Op) error {
	return fmt.Errorf("%s changed during the commit: %w", op.Path, change.ErrDrift)
}

// do makes one operation for the first time: all was looked at just before, so
// only what comes out is looked at.
func (m *mover) do(op *journal.Op) error {
	s, err := m.spot(op)
	if err != nil {
		return err
	}
	switch op.Kind {
	case journal.Add:
		err := m.rename(op, s.staged, s.stagedName, s.live, s.liveName, sys.RenameNoReplace)
		if isErrno(err, syscall.EEXIST) {
			return changedError(op)
		}
		return named("add", op, err)
	case journal.Exchange:
		if err := m.rename(op, s.staged, s.stagedName, s.live, s.liveName, sys.RenameExchange); err != nil {
			return named("exchange", op, err)
		}
		return m.cameOut(op, s, func() error {
			return m.rename(op, s.staged, s.stagedName, s.live, s.liveName, sys.RenameExchange)
		})
	case journal.Remove:
		if err := m.rename(op, s.live, s.liveName, s.staged, s.stagedName, sys.RenameNoReplace); err != nil {
			return named("remove", op, err)
		}
		return m.cameOut(op, s, func() error {
			return m.rename(op, s.staged, s.stagedName, s.live, s.liveName, sys.RenameNoReplace)
		})
	case journal.Metadata, journal.DirTimes:
		return m.setInPlace(op, s, op.New, op.Old, false)
	}
	return nil
}

func named(verb string, op *journal.Op, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot %s %s: %w", verb, op.Path, err)
}

// cameOut looks at what an exchange or removal took from the live path. What the
// journal does not name is somebody's newer version: it goes back at once.
func (m *mover) cameOut(op *journal.Op, s spot, back func() error) error {
	var n change.Node
	err := sys.LstatInto(s.staged, s.stagedName, &n)
	if err != nil {
		return named("look at", op, err)
	}
	handle, err := sys.Handle(s.staged, s.stagedName)
	if err != nil {
		return named("look at", op, err)
	}
	if handle == op.Old.Handle && n.Type == op.Old.Type &&
		(n.IsDir() || n.Size == op.Old.Size && n.MtimeNS == op.Old.Mtime) {
		return nil
	}
	return errors.Join(changedError(op), named("put back", op, back()))
}

// redo makes one operation during recovery: done already, not done yet, or
// neither, which is an error. It judges by identity alone.
func (m *mover) redo(op *journal.Op) error {
	s, err := m.spot(op)
	if err != nil {
		return err
	}
	live, err := look(s.live, s.liveName)
	if err != nil {
		return named("look at", op, err)
	}
	if op.Kind == journal.Metadata || op.Kind == journal.DirTimes {
		return m.setInPlace(op, s, op.New, op.Old, false)
	}
	staged, err := look(s.staged, s.stagedName)
	if err != nil {
		return named("look at", op, err)
	}
	neither := fmt.Errorf("cannot finish %s: what is there is neither the old nor the new one: %w", op.Path, change.ErrDrift)
	switch op.Kind {
	case journal.Add:
		switch {
		case same(op.New, live) && staged == nil:
			return m.checkDigest(op, s.live, s.liveName, live)
		case live == nil && untouched(op.New, staged):
			if err := m.checkDigest(op, s.staged, s.stagedName, staged); err != nil {
				return err
			}
			return m.do(op)
		}
	case journal.Exchange:
		switch {
		case same(op.New, live) && same(op.Old, staged):
			return m.checkDigest(op, s.live, s.liveName, live)
		case untouched(op.Old, live) && untouched(op.New, staged):
			if err := m.checkDigest(op, s.staged, s.stagedName, staged); err != nil {
				return err
			}
			return m.do(op)
		}
	case journal.Remove:
		switch {
		case live == nil && same(op.Old, staged):
			return nil
		case staged == nil && untouched(op.Old, live):
			return m.do(op)
		}
	}
	return neither
}

// checkDigest hashes a new file during recovery: what did not reach the disk
// whole must not be committed. One that was edited since is not ours to judge.
func (m *mover) checkDigest(op *journal.Op, dir *sys.FD, name string, found *journal.Object) error {
	if op.New.Type == change.Directory {
		return m.checkMemberDigests(op, dir, name)
	}
	if op.New.Type != change.Regular || op.New.Digest.IsZero() || !untouched(op.New, found) {
		return nil
	}
	if m.buf == nil {
		m.buf = make([]byte, copyBuffer)
	}
	digest, err := digestAt(dir, name, m.buf)
	if err != nil {
		return named("read", op, err)
	}
	if digest != op.New.Digest {
		return fmt.Errorf("cannot finish %s: its digest is %s, not %s: %w", op.Path, digest, op.New.Digest, change.ErrVerification)
	}
	return nil
}

func (m *mover) checkMemberDigests(op *journal.Op, dir *sys.FD, name string) error {
	return walk(dir, name, op.Path, func(p string, dir *sys.FD, name string) error {
		member, err := m.members.find(p)
		if err != nil {
			return err
		}
		if member == nil || member.New == nil || member.New.Type != change.Regular {
			return nil
		}
		found, err := look(dir, name)
		if err != nil {
			return err
		}
		return m.checkDigest(member, dir, name, found)
	})
}

// setInPlace gives the object at the path the metadata of want. other is the
// other side: an attribute that neither side names belongs to somebody else and
// stays. With lenient, what somebody else changed since is left and told.
func (m *mover) setInPlace(op *journal.Op, s spot, want, other *journal.Object, lenient bool) error {
	f, err := sys.OpenAt(s.live, s.liveName, sys.OpenPath|sys.OpenNoLink, resolve)
	if err != nil {
		if lenient && notHere(err) {
			m.t.warn("%s is gone: its metadata was not put back", op.Path)
			return nil
		}
		return named("change", op, err)
	}
	defer f.Close()
	found, err := look(f, "")
	if err != nil {
		return named("change", op, err)
	}
	if !same(want, found) && !(want.Handle == "" && found.Type == want.Type) {
		if lenient {
			m.t.warn("%s was replaced since: its metadata was not put back", op.Path)
			return nil
		}
		return changedError(op)
	}
	// Content that was written since has the time of that write.
	edited := found.Type != change.Directory && found.Mtime != want.Mtime && found.Mtime != other.Mtime
	if edited {
		if !lenient {
			return changedError(op)
		}
		m.t.warn("%s was modified since: its content and modification time stay", op.Path)
	}
	if lenient && op.Kind == journal.Metadata {
		now, err := sys.Xattrs(s.live, s.liveName)
		if err != nil {
			return named("change", op, err)
		}
		var told []string
		want, told = theirs(op, found, now, want, other)
		for _, text := range told {
			m.t.warn("%s", text)
		}
	}
	err = m.set(op, f, s, found, want, other, edited)
	// An attribute may need a block.
	if m.t.makeRoom(op.Volume, err) {
		err = m.set(op, f, s, found, want, other, edited)
	}
	return named("change", op, err)
}

func (m *mover) set(op *journal.Op, f *sys.FD, s spot, found, want, other *journal.Object, edited bool) error {
	k := m.t.s.k
	if op.Kind == journal.Metadata {
		if found.UID != want.UID || found.GID != want.GID {
			if err := k.ChownFD(f, want.UID, want.GID); err != nil {
				return err
			}
			// It may have cleared set-id bits.
			now, err := sys.Lstat(f, "")
			if err != nil {
				return err
			}
			found.Mode = now.Mode
		}
		if found.Type != change.Symlink && found.Mode != want.Mode {
			if err := k.ChmodFD(f, want.Mode); err != nil {
				return err
			}
		}
		if err := m.setXattrs(f, s, want.Xattrs, other.Xattrs); err != nil {
			return err
		}
	}
	// The calls above leave the mtime alone.
	if found.Mtime != want.Mtime && !edited {
		return k.SetMtimeFD(f, want.Mtime)
	}
	return nil
}

func (m *mover) setXattrs(f *sys.FD, s spot, want, other map[string][]byte) error {
	if len(want) == 0 && len(other) == 0 {
		return nil
	}
	now, err := sys.Xattrs(s.live, s.liveName)
	if err != nil {
		return err
	}
	for _, key := range sides(want, other) {
		val, wanted := want[key]
		has, there := now[key]
		switch {
		case !wanted && there:
			err = m.t.s.k.RemoveXattrFD(f, key)
		case wanted && (!there || string(has) != string(val)):
			err = m.t.s.k.SetXattrFD(f, key, val)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sides are the attributes that either side names, sorted.
func sides(want, other map[string][]byte) []string {
	keys := make([]string, 0, len(want)+len(other))
	for key := range want {
		keys = append(keys, key)
	}
	for key := range other {
		if _, ok := want[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (t *Tx) warn(format string, args ...any) {
	t.warnings = append(t.warnings, fmt.Sprintf(format, args...))
}
