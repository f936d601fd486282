package transact

import (
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// savedSuffix marks what others changed after a commit, when it is taken back.
const savedSuffix = ".liveupd-saved"

// undo takes one operation back, whether it was done, half done or not done. What
// is at the path and is neither the journal's old nor its untouched new object
// is somebody's: it is laid beside.
func (m *mover) undo(op *journal.Op) error {
	s, err := m.spot(op)
	if notHere(err) && m.nothingLeft(op) {
		return nil
	}
	if err != nil {
		return err
	}
	switch op.Kind {
	case journal.Metadata, journal.DirTimes:
		return m.setInPlace(op, s, op.Old, op.New, true)
	}
	live, err := look(s.live, s.liveName)
	if err != nil {
		return named("look at", op, err)
	}
	staged, err := look(s.staged, s.stagedName)
	if err != nil {
		return named("look at", op, err)
	}
	switch op.Kind {
	case journal.Add:
		return m.undoAdd(op, s, live, staged)
	case journal.Exchange:
		return m.undoExchange(op, s, live, staged)
	case journal.Remove:
		return m.undoRemove(op, s, live, staged)
	}
	return nil
}

// pristineNew tells whether the object, live or staged, is the new one as it was
// committed, with all that lies below it.
func (m *mover) pristineNew(op *journal.Op, dir *sys.FD, name string, found *journal.Object) (bool, error) {
	clean, err := pristine(dir, name, op.New, found)
	if err != nil || !clean || otherMetadata(op.New, found) {
		return false, err
	}
	if op.New.Type != change.Directory {
		return true, nil
	}
	how, err := m.treeDrift(op, dir, name, false)
	return how == "", err
}

// otherMetadata tells whether somebody gave an object another mode or owner.
func otherMetadata(want, found *journal.Object) bool {
	return want.Mode != found.Mode || want.UID != found.UID || want.GID != found.GID
}

func (m *mover) undoAdd(op *journal.Op, s spot, live, staged *journal.Object) error {
	if live == nil || staged != nil {
		// Not added, taken back already, or removed by somebody. What is live beside
		// a staged object came before the addition could.
		return nil
	}
	clean, err := m.pristineNew(op, s.live, s.liveName, live)
	if err != nil {
		return named("look at", op, err)
	}
	if !clean {
		return m.save(op, s.live, s.liveName, s)
	}
	return named("take back", op, m.rename(op, s.live, s.liveName, s.staged, s.stagedName, sys.RenameNoReplace))
}

func (m *mover) undoExchange(op *journal.Op, s spot, live, staged *journal.Object) error {
	exchange := func() error {
		return named("take back", op, m.rename(op, s.staged, s.stagedName, s.live, s.liveName, sys.RenameExchange))
	}
	if retained(op.Old, staged) {
		if err := m.relabel(op, s.staged, s.stagedName); err != nil {
			return named("look at", op, err)
		}
	}
	restored := same(op.Old, live) || (live != nil && !same(op.New, live) && retained(op.Old, live))
	switch {
	case same(op.New, staged) && !restored:
		// Not done, and somebody changed or removed the path before: theirs stays.
		return nil
	case staged == nil:
		if restored {
			return nil
		}
		return fmt.Errorf("cannot take back %s: its old version is lost: %w", op.Path, fs.ErrNotExist)
	case restored:
		// Not done, or taken back. What somebody made of the new one goes beside.
		if same(op.New, staged) {
			clean, err := m.pristineNew(op, s.staged, s.stagedName, staged)
			if err != nil {
				return named("look at", op, err)
			}
			if clean {
				return nil
			}
		}
		return m.save(op, s.staged, s.stagedName, s)
	case live == nil:
		return named("take back", op, m.rename(op, s.staged, s.stagedName, s.live, s.liveName, sys.RenameNoReplace))
	}
	clean, err := m.pristineNew(op, s.live, s.liveName, live)
	if err != nil {
		return named("look at", op, err)
	}
	if clean {
		// What is staged is the old one, or what an exchange that met somebody's
		// newer version brought out: both belong to the path.
		return exchange()
	}
	if !retained(op.Old, staged) {
		return fmt.Errorf("cannot take back %s: neither it nor what was kept of it is known: %w", op.Path, change.ErrDrift)
	}
	if err := exchange(); err != nil {
		return err
	}
	return m.save(op, s.staged, s.stagedName, s)
}

func (m *mover) undoRemove(op *journal.Op, s spot, live, staged *journal.Object) error {
	if staged == nil {
		if live == nil {
			return fmt.Errorf("cannot take back %s: its old version is lost: %w", op.Path, fs.ErrNotExist)
		}
		return nil // not removed, or back already
	}
	if err := m.relabel(op, s.staged, s.stagedName); err != nil {
		return named("look at", op, err)
	}
	if live != nil {
		if err := m.save(op, s.live, s.liveName, s); err != nil {
			return err
		}
	}
	return named("take back", op, m.rename(op, s.staged, s.stagedName, s.live, s.liveName, sys.RenameNoReplace))
}

// save lays somebody's version of a path beside it.
func (m *mover) save(op *journal.Op, dir *sys.FD, name string, s spot) error {
	for n := range savedTries {
		beside := besideName(s.liveName, n)
		err := m.rename(op, dir, name, s.live, beside, sys.RenameNoReplace)
		if isErrno(err, syscall.EEXIST) {
			continue
		}
		if err != nil {
			return named("keep the changed version of", op, err)
		}
		m.t.warn("%s was changed after the update: that version is kept as %s", op.Path, path.Join(path.Dir(op.Path), beside))
		return nil
	}
	return fmt.Errorf("cannot keep the changed version of %s: a thousand are there already", op.Path)
}
