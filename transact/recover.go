package transact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// maxAttempts is how often recovery tries before it asks for a person.
const maxAttempts = 3

// Recovery is what Recover found and did.
type Recovery struct {
	ID    string // the transaction that was unfinished; "" for none
	Found string // its state
	Did   string // "", removed, finished, reversed
	Tree  string // old or new: which one the root holds of that transaction; "" where none was unfinished
	// Pending: the tree is new and the plan's remaining steps are to be done.
	Pending bool
	// Missing are mounts of the transaction that were not among the store's
	// volumes: their part is still to be recovered.
	Missing  []string
	Removed  []string // stagings that were removed
	Warnings []string
}

// Recover finishes or undoes what a crash cut, by the state found; without the
// source, and as often as it is called. change.ErrNeedsPerson: it cannot.
func (s *Store) Recover(ctx context.Context) (Recovery, error) {
	var r Recovery
	if s.readOnly {
		return r, errors.New("cannot recover: the store is open for reading")
	}
	if err := s.removeGarbage(); err != nil {
		return r, err
	}
	ids, _, err := s.vols[0].ids()
	if err != nil {
		return r, err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		st, err := s.status(id)
		if err != nil {
			return r, needsPerson(id, err)
		}
		switch st.State {
		case journal.Staging:
			if err := s.remove(id); err != nil {
				return r, err
			}
			r.Removed = append(r.Removed, id)
		case journal.RolledBack:
		case journal.Verified:
			if err := s.retidy(id); err != nil {
				r.Warnings = append(r.Warnings, err.Error())
			}
		default:
			if err := s.recoverOne(id, st, &r); err != nil {
				return r, err
			}
		}
	}
	orphans, err := s.removeOrphans()
	r.Removed = append(r.Removed, orphans...)
	if r.ID == "" && len(r.Removed) > 0 {
		r.ID, r.Found, r.Did, r.Tree = r.Removed[0], string(journal.Staging), "removed", "old"
	}
	return r, err
}

func needsPerson(id string, err error) error {
	return change.WithHint(fmt.Errorf("cannot recover transaction %s: %w: %w", id, change.ErrNeedsPerson, err),
		"nothing more was changed; look at .liveupd/tx/"+id+" and at the disk before you run liveupd recover again")
}

// recoverOne brings one transaction that was past its commit point to an end.
func (s *Store) recoverOne(id string, st journal.Status, r *Recovery) error {
	r.ID, r.Found = id, string(st.State)
	t, err := s.Load(id)
	if err != nil {
		return needsPerson(id, err)
	}
	defer t.Close()
	defer func() { r.Warnings = append(r.Warnings, t.warnings...) }()
	r.Missing = t.missing()
	switch st.State {
	case journal.Committing, journal.RollingBack:
	default:
		r.Tree, r.Pending = "new", true
		return nil
	}
	if st.Attempts >= maxAttempts {
		return needsPerson(id, fmt.Errorf("%d recoveries were begun and did not end", st.Attempts))
	}
	st.Attempts++
	if err := t.writeStatus(st); err != nil {
		return err
	}
	m := t.mover()
	defer m.close()
	if st.State == journal.Committing {
		err := m.forward(m.redo)
		if err == nil {
			err = m.checkRemovedTrees()
		}
		if err == nil {
			return t.finishForward(r)
		}
		r.Warnings = append(r.Warnings, "the update could not be finished, it is taken back: "+err.Error())
		if err := t.setRollingBack(); err != nil {
			return t.endedAttempt(err)
		}
	}
	if err := m.reverse(); err != nil {
		return t.endedAttempt(err)
	}
	if err := t.barrier(); err != nil {
		return t.endedAttempt(err)
	}
	r.Did, r.Tree = "reversed", "old"
	if len(r.Missing) > 0 {
		return t.resetAttempts()
	}
	if err := t.setState(journal.RolledBack); err != nil {
		return needsPerson(id, err)
	}
	return nil
}

// endedAttempt is an attempt that did not succeed but came to its end: it does
// not count. The counter is for those that take the machine down with them;
// who has mended what this one met may try as often as it takes.
func (t *Tx) endedAttempt(err error) error {
	return needsPerson(t.ID(), errors.Join(err, t.resetAttempts()))
}

// setRollingBack keeps the count of attempts: a reversal that dies is an attempt too.
func (t *Tx) setRollingBack() error {
	st := t.status
	st.Before, st.State = st.State, journal.RollingBack
	return t.writeStatus(st)
}

// finishForward ends a forward replay. Where a volume is still to come, the state
// stays, and what comes later goes on from it.
func (t *Tx) finishForward(r *Recovery) error {
	if err := t.barrier(); err != nil {
		return needsPerson(t.ID(), err)
	}
	r.Did, r.Tree = "finished", "new"
	if len(r.Missing) > 0 {
		return t.resetAttempts()
	}
	if err := t.setState(journal.Swapped); err != nil {
		return needsPerson(t.ID(), err)
	}
	r.Pending = true
	return nil
}

func (t *Tx) resetAttempts() error {
	st := t.status
	st.Attempts = 0
	return t.writeStatus(st)
}

// retidy finishes the tidying of a verified transaction that a crash cut.
func (s *Store) retidy(id string) error {
	t, err := s.load(id)
	if err != nil {
		return err
	}
	defer t.Close()
	if _, err := sys.Lstat(t.vols[0].dir, workName); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := t.readJournal(); err != nil {
		return err
	}
	return t.tidy()
}

// removeOrphans removes transactions' folders on other volumes that the root does
// not know: it lost them in a crash, or removed them first. A folder of another
// root (a shared /var) is not ours.
func (s *Store) removeOrphans() ([]string, error) {
	var removed []string
	known, _, err := s.vols[0].ids()
	if err != nil {
		return nil, err
	}
	for _, v := range s.vols[1:] {
		ids, _, err := v.ids()
		if err != nil {
			return removed, err
		}
		for _, id := range ids {
			if slices.Contains(known, id) {
				continue
			}
			ours, err := s.owns(v, id)
			if err != nil {
				return removed, err
			}
			if !ours {
				continue
			}
			if err := s.k.RemoveAll(v.tx, id); err != nil {
				return removed, fmt.Errorf("cannot remove %s/tx/%s: %w", v.homePath(), id, err)
			}
			removed = append(removed, id)
		}
	}
	return removed, nil
}

func (s *Store) owns(v *volume, id string) (bool, error) {
	token, err := s.token()
	if err != nil {
		return false, err
	}
	f, err := sys.OpenAt(v.tx, id+"/"+ownerName, sys.OpenRead|sys.OpenNoLink, resolve)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot look at %s/tx/%s: %w", v.homePath(), id, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	return string(b) == token, err
}
