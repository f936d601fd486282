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

// spare is what stays of the ballast with a kept generation: on a disk that is full by
// then a rollback still has room for its state and for folders that grow.
const spare = 256 << 10

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
		what := "is full"
		switch {
		case quota:
			what = "gives no more for its quota"
		case few:
			what = "has no inodes left"
		}
		return t.s.full(tv.vol, 0, fmt.Errorf("%s %s: %w", tv.vol.describe(), what, err))
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
