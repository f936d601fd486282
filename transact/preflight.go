package transact

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// defaultBallast is what is reserved on each file system, so that a commit or a
// rollback on a disk that fills up meanwhile can still grow a folder.
const defaultBallast = 32 << 20

// spareInodes are for the journal, the state and skeleton folders that several
// entries share.
const spareInodes = 64

// preflight refuses what would fail later: space, inodes, inode flags.
func (t *Tx) preflight(st *staging, src *sys.FD) error {
	moves := t.movesSource(src)
	for i := range t.vols {
		if !st.used[i] && i != 0 {
			continue
		}
		if err := t.checkSpace(st, i, moves); err != nil {
			return err
		}
	}
	return t.checkFlags(st)
}

// movesSource tells whether the source's files are renamed to their staged names: they need no room beside
// what they have already.
func (t *Tx) movesSource(src *sys.FD) bool {
	if !t.takes || src == nil {
		return false
	}
	from, err := src.Stat()
	if err != nil {
		return false // what reads it says so
	}
	to, err := t.vols[0].dir.Stat()
	return err == nil && from.Dev == to.Dev
}

func (t *Tx) checkSpace(st *staging, vol int, moves bool) error {
	tv := &t.vols[vol]
	space, err := sys.Statfs(tv.vol.sync)
	if err != nil {
		return fmt.Errorf("cannot see what %s has left: %w", tv.mount, err)
	}
	need := t.ballastSize(space)
	if vol == 0 {
		need += t.reserved
	}
	inodes := int64(spareInodes)
	linked := map[string]bool{}
	skeleton := map[string]bool{}
	for i := range st.items {
		it := &st.items[i]
		// A line of the journal, on the root's file system.
		if vol == 0 {
			need += 1024
		}
		if it.vol != vol || it.inPlace() {
			continue
		}
		if it.under < 0 {
			for dir := path.Dir(it.rel); dir != "." && !skeleton[dir]; dir = path.Dir(dir) {
				skeleton[dir] = true
				inodes++
				need += space.BlockSize
			}
		}
		if it.New == nil || (it.New.Link != "" && linked[it.New.Link]) {
			continue
		}
		linked[it.New.Link] = true
		if moves && t.takesItem(it) && it.New.Link == "" {
			continue
		}
		inodes++
		need += (it.New.Size + space.BlockSize - 1) / space.BlockSize * space.BlockSize
		if it.New.Type != change.Regular || len(it.New.Xattrs) > 0 {
			need += space.BlockSize
		}
	}
	if need > space.Available {
		return t.s.full(tv.vol, need-space.Available, fmt.Errorf("cannot stage on %s: %s are needed, %s are free: %w",
			tv.vol.describe(), mebibytes(need), mebibytes(space.Available), syscall.ENOSPC))
	}
	if space.Inodes > 0 && inodes > space.InodesFree {
		return t.s.full(tv.vol, 0, fmt.Errorf("cannot stage on %s: %d inodes are needed, %d are free: %w",
			tv.vol.describe(), inodes, space.InodesFree, syscall.ENOSPC))
	}
	return nil
}

func (t *Tx) ballastSize(space sys.Space) int64 {
	if t.s.opts.Ballast > 0 {
		return t.s.opts.Ballast
	}
	return min(defaultBallast, space.Total/64/4096*4096)
}

// reserve writes the ballast of one volume.
func (t *Tx) reserve(vol int) error {
	tv := &t.vols[vol]
	space, err := sys.Statfs(tv.vol.sync)
	if err != nil {
		return fmt.Errorf("cannot see what %s has left: %w", tv.mount, err)
	}
	f, err := t.s.k.Create(tv.dir, ballast, 0o600)
	if err != nil {
		return fmt.Errorf("cannot reserve space on %s: %w", tv.mount, err)
	}
	defer f.Close()
	err = t.s.k.Fallocate(f, t.ballastSize(space))
	if isErrno(err, syscall.EOPNOTSUPP) {
		return nil // nothing can be reserved there; the preflight's sum stands
	}
	if err != nil {
		return t.s.full(tv.vol, t.ballastSize(space), fmt.Errorf("cannot reserve %s on %s: %w", mebibytes(t.ballastSize(space)), tv.vol.describe(), err))
	}
	return nil
}

// checkFlags finds immutable and append-only objects, and folders in which no
// name can move: the kernel would answer EPERM in the middle of the commit.
func (t *Tx) checkFlags(st *staging) error {
	checked := map[string]bool{}
	for i := range st.items {
		it := &st.items[i]
		dir := t.vols[it.vol].vol.Dir
		if it.Old != nil {
			if err := refuseFlags(dir, it.rel, it.Path); err != nil {
				return err
			}
		}
		if it.under >= 0 || it.inPlace() {
			continue
		}
		if parent := path.Dir(it.rel); !checked[fmt.Sprint(it.vol, parent)] {
			checked[fmt.Sprint(it.vol, parent)] = true
			err := refuseFlags(dir, parent, path.Dir(it.Path))
			// A parent that is new has no flags; one that should be there is missed when it is copied.
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func refuseFlags(dir *sys.FD, rel, name string) error {
	a, err := sys.StatAttrs(dir, rel)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot change %s: %w: %w", name, change.ErrDrift, err)
	}
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", name, err)
	}
	flag, word := "i", "immutable"
	switch {
	case a.Immutable:
	case a.Append:
		flag, word = "a", "append-only"
	default:
		return nil
	}
	return change.WithHint(fmt.Errorf("cannot change %s: it is %s: %w", name, word, syscall.EPERM),
		fmt.Sprintf("somebody set this on purpose; chattr -%s %s allows it", flag, name))
}
