package transact

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// historyName is the list of transactions that were removed, one JSON line each.
const historyName = "history"

// Verified ends a transaction: the old objects stay as the rollback generation,
// all else that was staged goes.
func (t *Tx) Verified() error {
	switch t.status.State {
	case journal.Swapped, journal.Boot, journal.Restarting, journal.Verified:
	default:
		return fmt.Errorf("cannot finish transaction %s: it is %s", t.ID(), t.status.State)
	}
	if err := t.setState(journal.Verified); err != nil {
		return err
	}
	if err := t.tidy(); err != nil {
		// The update stands; the next recovery tidies again.
		t.warn("transaction %s is verified, but its leftovers could not be removed: %v", t.ID(), err)
	}
	return nil
}

// tidy removes what a rollback does not need: ballast, work folder, whiteouts,
// what validators wrote. Running it twice changes nothing.
func (t *Tx) tidy() error {
	keep := make([]map[string]bool, len(t.vols))
	for i := range keep {
		keep[i] = map[string]bool{upName: true, delName: true}
	}
	for op, err := range t.journal.Ops.Where(journal.Moves) {
		if err != nil {
			return err
		}
		// An addition's staged name is where a rollback puts it.
		for p := op.Staged; p != "." && !keep[op.Volume][p]; p = path.Dir(p) {
			keep[op.Volume][p] = true
		}
	}
	tops := map[string]bool{}
	for op, err := range t.journal.Ops.Where(journal.Exchanges) {
		if err != nil {
			return err
		}
		tops[fmt.Sprint(op.Volume, op.Staged)] = true
	}
	for i := range t.vols {
		tv := &t.vols[i]
		if tv.dir == nil {
			continue
		}
		isTop := func(staged string) bool { return tops[fmt.Sprint(i, staged)] }
		if err := t.sweep(tv.dir, upName, keep[i], isTop); err != nil {
			return err
		}
	}
	if err := t.detachLinked(); err != nil {
		return err
	}
	// The root's work folder is last: where it is gone, nothing is left to do.
	for i := range slices.Backward(t.vols) {
		dir := t.vols[i].dir
		if dir == nil {
			continue
		}
		if err := t.keepSpare(dir); err != nil {
			return err
		}
		if err := t.s.k.RemoveAll(dir, workName); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what is not to be kept below a staged folder.
func (t *Tx) sweep(base *sys.FD, rel string, keep map[string]bool, isTop func(string) bool) error {
	dir, err := sys.OpenAt(base, rel, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		child := path.Join(rel, name)
		if !keep[child] {
			if err := t.s.k.RemoveAll(dir, name); err != nil {
				return err
			}
			continue
		}
		n, err := sys.Lstat(dir, name)
		if err != nil {
			return err
		}
		// An old folder that was exchanged is kept whole.
		if n.IsDir() && !isTop(child) {
			if err := t.sweep(base, child, keep, isTop); err != nil {
				return err
			}
		}
	}
	return nil
}

// detachLinked gives old files that have further names in the live tree inodes
// of their own: after a finished commit no live inode has a name under .liveupd.
// A link count of two would make cron refuse its table.
func (t *Tx) detachLinked() error {
	m := t.mover()
	defer m.close()
	names := map[string]uint32{}
	for op, err := range t.journal.Ops.Where(journal.OldLinked) {
		if err != nil {
			return err
		}
		if op.Staged != "" {
			names[fmt.Sprint(op.Volume, op.Old.Handle)]++
		}
	}
	for op, err := range t.journal.Ops.Where(journal.OldLinked) {
		if err != nil {
			return err
		}
		if op.Staged == "" || t.vols[op.Volume].dir == nil {
			continue
		}
		if names[fmt.Sprint(op.Volume, op.Old.Handle)] >= op.Old.Nlink {
			continue
		}
		m.dirs.trim()
		dir, name, err := m.dirs.parent(t.vols[op.Volume].dir, op.Staged)
		if err != nil {
			return err
		}
		found, err := look(dir, name)
		if err != nil {
			return err
		}
		if !same(op.Old, found) {
			continue // detached before
		}
		if err := t.detach(dir, name); err != nil {
			return fmt.Errorf("cannot keep a copy of %s: %w", op.Path, err)
		}
	}
	return nil
}

func (t *Tx) detach(dir *sys.FD, name string) error {
	const beside = ".liveupd-copy"
	k := t.s.k
	if err := k.RemoveAll(dir, beside); err != nil {
		return err
	}
	n, err := sys.Lstat(dir, name)
	if err != nil {
		return err
	}
	if n.Xattrs, err = sys.Xattrs(dir, name); err != nil {
		return err
	}
	in, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenNoLink, resolve)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := k.Create(dir, beside, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, _, err := hashing(in, make([]byte, copyBuffer), func(b []byte) error { return k.Write(out, b) }); err != nil {
		return err
	}
	if err := setMeta(k, dir, beside, n, nil); err != nil {
		return err
	}
	if err := k.Fsync(out); err != nil {
		return err
	}
	return k.Rename(dir, beside, dir, name, 0)
}

// Revert takes a swapped or verified transaction back: the tree is the old one
// again. What others changed since is laid beside (Warnings). Newer generations
// that stand must be taken back first. Once begun it is finished, by Recover if
// need be; ctx counts until then only.
func (t *Tx) Revert(ctx context.Context) error {
	switch t.status.State {
	case journal.Swapped, journal.Boot, journal.Restarting, journal.Verified, journal.RollingBack:
	default:
		return fmt.Errorf("cannot roll back transaction %s: it is %s", t.ID(), t.status.State)
	}
	if t.journal == nil {
		return fmt.Errorf("cannot roll back transaction %s: it was loaded without its journal", t.ID())
	}
	if missing := t.missing(); len(missing) > 0 {
		return fmt.Errorf("cannot roll back transaction %s: %s is not mounted", t.ID(), strings.Join(missing, ", "))
	}
	if err := t.refuseNewer(); err != nil {
		return err
	}
	m := t.mover()
	defer m.close()
	if t.status.State != journal.RollingBack {
		// What was committed a moment ago is not read again.
		if err := t.checkKept(ctx, t.status.State == journal.Verified && !t.keptRead, nil); err != nil {
			return err
		}
		st := t.status
		st.Before = st.State
		st.State, st.Attempts = journal.RollingBack, 0
		if err := t.writeStatus(st); err != nil {
			return err
		}
	}
	if err := t.back(m); err != nil {
		return t.stuck(err)
	}
	return nil
}

// refuseNewer: a later transaction's old objects are this one's new ones.
func (t *Tx) refuseNewer() error {
	ids, _, err := t.s.vols[0].ids()
	if err != nil {
		return err
	}
	var newer []string
	for _, id := range ids {
		if id <= t.ID() {
			continue
		}
		st, err := t.s.status(id)
		if err != nil {
			return err
		}
		if st.State != journal.Staging && st.State != journal.RolledBack {
			newer = append(newer, id)
		}
	}
	if len(newer) > 0 {
		slices.Reverse(newer)
		return change.WithHint(fmt.Errorf("cannot roll back transaction %s: newer ones stand: %s", t.ID(), strings.Join(newer, ", ")),
			"roll those back first, the newest first")
	}
	return nil
}

// List gives all transactions, newest first: those that lie in the store and, not
// retained, those that were removed.
func (s *Store) List() ([]change.Generation, error) {
	out, err := s.history()
	if err != nil {
		return nil, err
	}
	ids, _, err := s.vols[0].ids()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		g, err := s.generation(id)
		if err != nil {
			return nil, err
		}
		out = slices.DeleteFunc(out, func(old change.Generation) bool { return old.ID == id })
		out = append(out, g)
	}
	slices.SortStableFunc(out, func(a, b change.Generation) int { return strings.Compare(b.ID, a.ID) })
	return out, nil
}

func (s *Store) generation(id string) (change.Generation, error) {
	g := change.Generation{ID: id, State: string(journal.Staging)}
	st, err := s.status(id)
	if err != nil {
		return g, err
	}
	g.State, g.HostAction, g.Deferred, g.Waiting, g.Snapshot = string(st.State), st.HostAction, st.Deferred, st.Waiting, s.snapshotOf(id)
	dir, err := sys.OpenAt(s.vols[0].tx, id, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return g, fmt.Errorf("cannot list transaction %s: %w", id, err)
	}
	defer dir.Close()
	f, err := sys.OpenAt(dir, journal.FileName, sys.OpenRead|sys.OpenNoLink, resolve)
	if errors.Is(err, fs.ErrNotExist) {
		g.Time = st.Time
		return g, nil
	}
	if err != nil {
		return g, fmt.Errorf("cannot list transaction %s: %w", id, err)
	}
	defer f.Close()
	h, err := journal.ReadHeader(f, "the journal of transaction "+id)
	if err != nil && st.State == journal.Staging {
		g.Time = st.Time // a crash while it was written: it is to be removed
		return g, nil
	}
	if err != nil {
		return g, err
	}
	g.Time, g.Source, g.Name, g.Version, g.Sequence = h.Time, h.Source, h.Name, h.Release, h.Sequence
	g.PlanID, g.Changes = h.PlanID, h.Changes
	g.CarriedHost = st.CarriedHost
	boot := cmp.Or(st.PendingBoot, h.BootID)
	g.ThisBoot = boot != "" && boot == bootID()
	switch st.State {
	case journal.Swapped, journal.Boot, journal.Restarting, journal.Verified:
		g.Retained = true
	}
	return g, nil
}

// history reads the list of removed transactions; a line that a crash tore is left out.
func (s *Store) history() ([]change.Generation, error) {
	home := s.vols[0].home
	if home == nil {
		return nil, nil
	}
	f, err := sys.OpenAt(home, historyName, sys.OpenRead|sys.OpenNoLink, resolve)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the history: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("cannot read the history: %w", err)
	}
	var out []change.Generation
	for line := range bytes.Lines(b) {
		var g change.Generation
		if json.Unmarshal(line, &g) == nil && g.ID != "" {
			// A crash between the line and the removal wrote it twice.
			out = slices.DeleteFunc(out, func(old change.Generation) bool { return old.ID == g.ID })
			out = append(out, g)
		}
	}
	return out, nil
}

func (s *Store) remember(g change.Generation) error {
	g.Retained = false
	line, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("cannot write the history: %w", err)
	}
	f, err := s.k.OpenAppend(s.vols[0].home, historyName)
	if err != nil {
		return fmt.Errorf("cannot write the history: %w", err)
	}
	defer f.Close()
	if err := s.k.Write(f, slices.Concat([]byte{'\n'}, line, []byte{'\n'})); err != nil {
		return fmt.Errorf("cannot write the history: %w", err)
	}
	return s.k.Fsync(f)
}

// KeepNone has Collect remove the newest generation as well.
const KeepNone = -1

// Collect removes generations beyond the newest keep verified ones, and what was
// rolled back; it names what it removed. The newest verified one stays but for KeepNone. A
// crash leaves garbage that the next Collect or Recover removes.
func (s *Store) Collect(keep int) (freed []string, err error) {
	if err := s.removeGarbage(); err != nil {
		return nil, err
	}
	if keep != KeepNone {
		keep = max(keep, 1)
	}
	ids, _, err := s.vols[0].ids()
	if err != nil {
		return nil, err
	}
	for _, id := range slices.Backward(ids) {
		st, err := s.status(id)
		if err != nil {
			return freed, err
		}
		switch st.State {
		case journal.Verified:
			if keep > 0 {
				keep--
				continue
			}
		case journal.RolledBack:
		default:
			continue
		}
		g, err := s.generation(id)
		if err != nil {
			return freed, err
		}
		err = s.remember(g)
		if s.makeRoomOf(s.vols[0], id, err) {
			err = s.remember(g)
		}
		if err != nil {
			return freed, err
		}
		if err := s.remove(id); err != nil {
			return freed, err
		}
		freed = append(freed, id)
	}
	return freed, nil
}
