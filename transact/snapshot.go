package transact

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// snapshotsName is the folder of the root's .liveupd that holds snapshots, each by
// the name of its transaction.
const snapshotsName = "snapshots"

// CanSnapshot refuses a root of which no snapshot can be made: one that is not
// the root of a btrfs subvolume.
func CanSnapshot(root *sys.FD) error {
	ok, err := sys.OnBtrfs(root)
	if err != nil {
		return fmt.Errorf("cannot make a snapshot of the root: %w", err)
	}
	if !ok {
		err = &sys.UnsupportedError{Feature: "a snapshot of the root", Needs: "a root on btrfs"}
	} else if ok, err = sys.IsSubvolumeRoot(root); err == nil && !ok {
		err = &sys.UnsupportedError{Feature: "a snapshot of the root", Needs: "a root that is a btrfs subvolume, and not a folder in one"}
	}
	if err != nil {
		return change.WithHint(fmt.Errorf("cannot make a snapshot: %w", err), "leave --snapshot out: each update can be rolled back without one")
	}
	return nil
}

// Snapshot makes a read-only snapshot of the root's btrfs subvolume as it is before
// the commit: a second way back, for where the root itself can no longer be
// started or repaired. It holds nothing of other subvolumes and file systems. The
// transaction is still being staged in it: who boots it, or a copy, has that
// staging removed. It goes with the transaction. It is durable on return.
func (t *Tx) Snapshot() error {
	if t.status.State != journal.Staging {
		return fmt.Errorf("cannot make a snapshot for transaction %s: it is %s", t.ID(), t.status.State)
	}
	root := t.s.vols[0]
	fail := func(err error) error {
		return fmt.Errorf("cannot make snapshot %s: %w", t.s.snapshotPath(t.ID()), err)
	}
	if err := CanSnapshot(root.Dir); err != nil {
		return err
	}
	if err := t.s.k.Mkdir(root.home, snapshotsName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(err)
	}
	dir, err := t.s.snapshots()
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	if err := t.s.k.Snapshot(root.sync, dir, t.ID()); err != nil {
		return fail(err)
	}
	if err := t.s.k.Fsync(root.home); err != nil {
		return fail(err)
	}
	return nil
}

func (s *Store) snapshotPath(id string) string {
	return path.Join(s.vols[0].homePath(), snapshotsName, id)
}

func (s *Store) snapshots() (*sys.FD, error) {
	return sys.OpenAt(s.vols[0].home, snapshotsName, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
}

// snapshotOf is the path of a transaction's snapshot, "" where it has none.
func (s *Store) snapshotOf(id string) string {
	if _, err := sys.LstatPath(s.vols[0].home, path.Join(snapshotsName, id)); err != nil {
		return ""
	}
	return s.snapshotPath(id)
}

// removeSnapshot removes a transaction's snapshot, where it has one: before the
// transaction itself goes, so that a crash leaves none that nothing names.
func (s *Store) removeSnapshot(id string) error {
	if s.vols[0].home == nil || s.snapshotOf(id) == "" {
		return nil
	}
	dir, err := s.snapshots()
	if err != nil {
		return fmt.Errorf("cannot remove snapshot %s: %w", s.snapshotPath(id), err)
	}
	defer dir.Close()
	if err := s.k.RemoveSubvolume(dir, id); err != nil {
		return fmt.Errorf("cannot remove snapshot %s: %w", s.snapshotPath(id), err)
	}
	return s.k.Fsync(dir)
}
