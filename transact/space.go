package transact

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// nearlyFull is what a file system has left, in bytes and inodes, when it is the one
// that was meant by an error that does not say: it keeps the last few for itself.
const (
	nearlyFullBytes  = 1 << 20
	nearlyFullInodes = 16
)

// plenty is so much that lack of space must be for another reason.
const plenty = 64 << 20

// spare is what stays of the ballast with a kept generation: on a disk that is full by
// then a rollback still has room for its state and for folders that grow.
// Less than a mebibyte would do on a full disk; a quota of btrfs counts a rename with
// all the tree blocks that it could come to write.
const spare = 1 << 20

// noRoom tells whether err is for lack of space, be it the disk's or a quota's.
func noRoom(err error) bool { return isErrno(err, syscall.ENOSPC) || isErrno(err, syscall.EDQUOT) }

// makeRoom gives a volume's ballast back where err is for lack of room; false where it
// is not, or where there is no ballast: then a second try is of no use.
func (t *Tx) makeRoom(vol int, err error) bool {
	tv := &t.vols[vol]
	return tv.dir != nil && t.s.makeRoom(tv.vol, tv.dir, err)
}

func (s *Store) makeRoom(v *volume, dir *sys.FD, err error) bool {
	if !noRoom(err) || s.k.Unlink(dir, ballast) != nil {
		return false
	}
	if isErrno(err, syscall.EDQUOT) {
		// btrfs takes what was freed off a quota when its own transaction ends, and not
		// before. The next try tells whether this helped.
		_ = s.k.Syncfs(v.sync)
	}
	return true
}

// makeRoomOf is makeRoom for a transaction that is about to go.
func (s *Store) makeRoomOf(v *volume, id string, err error) bool {
	if !noRoom(err) {
		return false
	}
	dir, oerr := sys.OpenAt(v.tx, id, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if oerr != nil {
		return false
	}
	defer dir.Close()
	if s.makeRoom(v, dir, err) {
		return true
	}
	// Removing takes no room, but giving another name does. What was never committed,
	// or is taken back, may lose what was staged for it first.
	st, serr := s.status(id)
	if serr != nil || st.State != journal.Staging && st.State != journal.RolledBack || s.k.RemoveAll(dir, upName) != nil {
		return false
	}
	_ = s.k.Syncfs(v.sync) // as above
	return true
}

func (t *Tx) keepSpare(dir *sys.FD) error {
	n, err := sys.Lstat(dir, ballast)
	if errors.Is(err, fs.ErrNotExist) || err == nil && n.Size <= spare {
		return nil // it was needed, or is small already
	}
	if err != nil {
		return err
	}
	return t.s.k.Truncate(dir, ballast, spare)
}

// describe names a file system: where it is mounted, its type and its device.
func (v *volume) describe() string {
	kind, source := "", ""
	if node, err := v.sync.Stat(); err == nil {
		// A btrfs subvolume has a device number of its own, and no line here.
		mounts, _ := sys.ReadMountinfo("/proc/self/mountinfo")
		for _, m := range mounts {
			if m.Dev == node.Dev {
				kind, source = m.FSType, m.Source
			}
		}
	}
	if kind == "" {
		kind = sys.FSType(v.sync)
	}
	switch {
	case kind == "":
		return v.Mount
	case source == "" || source == kind:
		return fmt.Sprintf("%s (%s)", v.Mount, kind)
	}
	return fmt.Sprintf("%s (%s on %s)", v.Mount, kind, source)
}

// mebibytes writes a size; what is not nothing is not shown as 0.
func mebibytes(n int64) string {
	const mib = 1 << 20
	return fmt.Sprintf("%d MiB", (max(n, 0)+mib-1)/mib)
}

// nameFull says of an error for lack of space which file system it was, and what can
// be done. Other errors it leaves alone.
func (t *Tx) nameFull(err error) error {
	quota := isErrno(err, syscall.EDQUOT)
	if _, said := errors.AsType[*change.HintError](err); said || !quota && !isErrno(err, syscall.ENOSPC) {
		return err
	}
	for i := range t.vols {
		tv := &t.vols[i]
		if tv.dir == nil && i != 0 {
			continue
		}
		space, serr := sys.Statfs(tv.vol.sync)
		few := serr == nil && space.Inodes > 0 && space.InodesFree < nearlyFullInodes
		if serr != nil || !quota && !few && space.Available >= nearlyFullBytes && len(t.vols) > 1 {
			continue
		}
		named := func(what string) error { return fmt.Errorf("%s %s: %w", tv.vol.describe(), what, err) }
		raise := "raise the quota, or free what counts against it, on " + tv.mount
		switch {
		case quota:
			return t.s.withHeld(tv.vol, raise, named("gives no more for its quota"))
		case few:
			err = named("has no inodes left")
		case space.Available >= plenty:
			// xfs says so of a project's quota, btrfs of its metadata.
			return t.s.withHeld(tv.vol, raise, named(fmt.Sprintf("gives no more, although %s are free, for a project's quota or a limit of its own", mebibytes(space.Available))))
		default:
			err = named("is full")
		}
		return t.s.full(tv.vol, 0, err)
	}
	return err
}

// full adds what can be done about a full file system; missing is how many bytes more
// are needed, 0 where that is not known.
func (s *Store) full(v *volume, missing int64, err error) error {
	hint := "free space on " + v.Mount
	if missing > 0 {
		hint = fmt.Sprintf("free %s on %s", mebibytes(missing), v.Mount)
	}
	return s.withHeld(v, hint, err)
}

// withHeld adds to a hint what liveupd itself holds on a volume.
func (s *Store) withHeld(v *volume, hint string, err error) error {
	old, kept, uerr := s.held(v)
	if uerr != nil {
		return errors.Join(change.WithHint(err, hint), uerr)
	}
	switch {
	case old.count > 0:
		hint += fmt.Sprintf("; %s of it are held by %d older updates, which liveupd clean removes", mebibytes(old.bytes), old.count)
	case kept.count > 0:
		hint += fmt.Sprintf("; the last update's old files hold %s of it: liveupd clean --keep 0 gives them up, and with them its rollback", mebibytes(kept.bytes))
	}
	return change.WithHint(err, hint)
}

// holding is what transactions occupy.
type holding struct {
	count int
	bytes int64
}

// held measures what transactions that are not under way hold on a volume: the newest
// committed one, and all the others.
func (s *Store) held(v *volume) (old, newest holding, err error) {
	ids, garbage, err := v.ids()
	if err != nil {
		return old, newest, err
	}
	first := true
	for _, id := range slices.Backward(ids) {
		st, err := s.status(id)
		if err != nil || st.State == journal.Staging {
			continue // the one that wants the space, or none of this root
		}
		n, err := sys.DiskUsage(v.tx, id)
		if err != nil {
			return old, newest, fmt.Errorf("cannot see what %s holds: %w", path.Join(v.homePath(), txName, id), err)
		}
		if first && st.State == journal.Verified {
			first = false
			newest = holding{1, n}
			continue
		}
		old.count++
		old.bytes += n
	}
	for _, name := range garbage {
		if n, err := sys.DiskUsage(v.tx, name); err == nil {
			old.count++
			old.bytes += n
		}
	}
	return old, newest, nil
}

// Held is how many bytes a transaction occupies on all volumes.
func (s *Store) Held(id string) (int64, error) {
	var sum int64
	for _, v := range s.vols {
		if v.tx == nil {
			continue
		}
		n, err := sys.DiskUsage(v.tx, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return sum, fmt.Errorf("cannot see what %s holds: %w", path.Join(v.homePath(), txName, id), err)
		}
		sum += n
	}
	return sum, nil
}
