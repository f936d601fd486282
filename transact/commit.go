package transact

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// Commit makes the staged tree the live one. It gives the time in which a reader
// could meet both old and new names. After an error everything is as before,
// unless the error is change.ErrNeedsPerson; one that is change.ErrDrift names the
// path that changed since the plan. ctx counts until the commit point only.
func (t *Tx) Commit(ctx context.Context) (swap time.Duration, err error) {
	if t.status.State != journal.Staging || t.journal == nil {
		return 0, fmt.Errorf("cannot commit transaction %s: it is not prepared (%s)", t.ID(), t.status.State)
	}
	m := t.mover()
	defer m.close()
	if err := m.check(ctx); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := t.setState(journal.Committing); err != nil {
		// It may have reached the disk: nothing moved, and it must not be replayed.
		return 0, t.undo(m, err)
	}
	swap, err = m.swap()
	if err == nil {
		err = m.checkRemovedTrees()
	}
	if err == nil && !t.s.noDrift {
		err = m.checkOldFiles()
	}
	if err == nil && t.onSwap != nil {
		err = t.onSwap()
	}
	if err == nil {
		err = t.barrier()
	}
	if err != nil {
		return 0, t.undo(m, err)
	}
	if err := t.setState(journal.Swapped); err != nil {
		return 0, t.undo(m, err)
	}
	return swap, nil
}

// swap moves the names, and gives the time that it took.
func (m *mover) swap() (time.Duration, error) {
	defer m.t.moving()()
	start := time.Now()
	err := m.forward(m.do)
	return time.Since(start), err
}

// forward runs all operations in the journal's order.
func (m *mover) forward(do func(*journal.Op) error) error {
	for op, err := range m.t.journal.Ops.Where(journal.Moves | journal.InPlace) {
		if err != nil {
			return err
		}
		if m.t.vols[op.Volume].dir == nil {
			continue
		}
		m.dirs.trim()
		if err := do(op); err != nil {
			return err
		}
	}
	return m.folderTimes(journal.NewDir, func(op *journal.Op) *journal.Object { return op.New })
}

// folderTimes puts back the mtime of each folder that moved itself: xfs sets it
// when the folder's ".." changes. dirs and side give what lies at the live path.
func (m *mover) folderTimes(dirs journal.Mark, side func(*journal.Op) *journal.Object) error {
	for op, err := range m.t.journal.Ops.Where(dirs) {
		if err != nil {
			return err
		}
		if op.Kind == journal.Member || op.Staged == "" || m.t.vols[op.Volume].dir == nil {
			continue
		}
		want := side(op)
		m.dirs.trim()
		s, err := m.spot(op)
		if err != nil {
			return err
		}
		f, err := sys.OpenAt(s.live, s.liveName, sys.OpenPath|sys.OpenNoLink, resolve)
		if notHere(err) {
			continue
		}
		if err != nil {
			return named("change", op, err)
		}
		found, err := look(f, "")
		if err == nil && same(want, found) && found.Mtime != want.Mtime {
			err = m.t.s.k.SetMtimeFD(f, want.Mtime)
		}
		f.Close()
		if err != nil {
			return named("change", op, err)
		}
	}
	return nil
}

// undo takes a commit back after cause.
func (t *Tx) undo(m *mover, cause error) error {
	cause = t.nameFull(cause)
	if err := t.setState(journal.RollingBack); err != nil {
		// The disk says committing: what follows is not recorded, and the next
		// recovery makes the new tree. Both are whole.
		return t.stuck(errors.Join(cause, err))
	}
	if err := t.back(m); err != nil {
		return t.stuck(errors.Join(cause, err))
	}
	return cause
}

// stuck is for what only a recovery can finish.
func (t *Tx) stuck(err error) error {
	return change.WithHint(fmt.Errorf("transaction %s is unfinished: %w: %w", t.ID(), change.ErrNeedsPerson, err),
		"see the kernel's log for what the disk reports; when it works again, liveupd recover, or the next boot, makes the tree whole")
}

// back reverses everything and makes that durable.
func (t *Tx) back(m *mover) error {
	if err := m.swapBack(); err != nil {
		return err
	}
	if err := t.barrier(); err != nil {
		return err
	}
	return t.setState(journal.RolledBack)
}

func (m *mover) swapBack() error {
	defer m.t.moving()()
	return m.reverse()
}

// check is the look before the commit point. It also opens every folder, so that
// the swap has nothing to open.
func (m *mover) check(ctx context.Context) error {
	if missing := m.t.missing(); len(missing) > 0 {
		return fmt.Errorf("cannot commit transaction %s: %s is not mounted", m.t.ID(), strings.Join(missing, ", "))
	}
	cleaned := false
	for op, err := range m.t.journal.Ops.Where(journal.Moves | journal.InPlace) {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		m.dirs.trim()
		s, err := m.spot(op)
		if notHere(err) {
			return driftError(op.Path, "its folder is not what it was")
		}
		if err != nil {
			return err
		}
		if !m.t.s.noDrift {
			if err := m.checkLive(op, s); err != nil {
				return err
			}
		}
		if op.Kind == journal.Add || op.Kind == journal.Exchange {
			c, err := m.cleanStaged(op, s.staged, s.stagedName)
			if err != nil {
				return err
			}
			cleaned = cleaned || c
		}
	}
	if cleaned {
		return m.t.barrier()
	}
	return nil
}

func (m *mover) checkLive(op *journal.Op, s spot) error {
	live, err := look(s.live, s.liveName)
	if err != nil {
		return named("look at", op, err)
	}
	if op.Kind == journal.DirTimes {
		if !same(op.Old, live) {
			return driftError(op.Path, "it is another folder now")
		}
		return nil
	}
	if op.Old == nil || live == nil {
		if op.Old == nil && live == nil {
			return nil
		}
		if live == nil {
			return driftError(op.Path, "it is gone")
		}
		return driftError(op.Path, "something is there now")
	}
	planned := change.Node{
		Type: op.Old.Type, Mode: op.Old.Mode, UID: op.Old.UID, GID: op.Old.GID, Size: op.Old.Size, MtimeNS: op.Old.Mtime,
		Rdev: op.Old.Rdev, Target: op.Old.Target, CtimeNS: op.Old.Ctime,
	}
	if how := drift(&planned, live); how != "" {
		return driftError(op.Path, how)
	}
	if !same(op.Old, live) {
		return driftError(op.Path, "it was replaced")
	}
	if op.Kind == journal.Metadata {
		return nil
	}
	if op.Old.Type == change.Directory {
		how, err := m.treeDrift(op, s.live, s.liveName, true)
		if err != nil {
			return named("look at", op, err)
		}
		if how != "" {
			return driftError(op.Path, how)
		}
	}
	if op.Old.Type == change.Directory || op.Old.Type == change.Regular {
		return m.checkWriters(op, s)
	}
	return nil
}

// checkRemovedTrees looks into the folders that went: what somebody put there
// after the look before the commit must not go with them.
func (m *mover) checkRemovedTrees() error {
	for op, err := range m.t.journal.Ops.Where(journal.OldDir) {
		if err != nil {
			return err
		}
		if op.Kind == journal.Member || op.Staged == "" || m.t.vols[op.Volume].dir == nil {
			continue
		}
		m.dirs.trim()
		s, err := m.spot(op)
		if err != nil {
			return err
		}
		how, err := m.treeDrift(op, s.staged, s.stagedName, true)
		if err != nil {
			return named("look at", op, err)
		}
		if how != "" && !m.t.s.noDrift {
			return fmt.Errorf("cannot remove %s: %s: %w", op.Path, how, change.ErrDrift)
		}
	}
	return nil
}

// reverse undoes all operations whatever each one's state is: first the names, in
// reverse order, then the metadata, which moving names changed. It goes on after an
// error, so that as little as possible is left to a person.
func (m *mover) reverse() error {
	var errs []error
	for _, part := range []journal.Mark{journal.Moves, journal.InPlace} {
		for op, err := range m.t.journal.Ops.Backward(part) {
			if err != nil {
				errs = append(errs, err)
				break
			}
			if m.t.vols[op.Volume].dir == nil {
				continue
			}
			m.dirs.trim()
			if err := m.undo(op); err != nil {
				errs = append(errs, err)
			}
		}
		if part == journal.Moves {
			errs = append(errs, m.folderTimes(journal.OldDir, func(op *journal.Op) *journal.Object { return op.Old }))
		}
	}
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	// The first few tell what is wrong; thousands of the same do not tell more.
	return errors.Join(errs[:min(len(errs), 5)]...)
}
