package transact

import (
	"fmt"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// walk visits all that lies below the folder name, a folder before what it
// holds; p is the path that the folder is known by. It visits nothing where name
// is no folder.
func walk(dir *sys.FD, name, p string, visit func(p string, dir *sys.FD, name string) error) error {
	n, err := sys.Lstat(dir, name)
	if err != nil {
		return err
	}
	if !n.IsDir() {
		return nil
	}
	sub, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return err
	}
	defer sub.Close()
	names, err := sys.ReadDirNames(sub)
	if err != nil {
		return err
	}
	for _, child := range names {
		below := path.Join(p, child)
		if err := visit(below, sub, child); err != nil {
			return err
		}
		if err := walk(sub, child, below, visit); err != nil {
			return err
		}
	}
	return nil
}

// treeDrift compares a folder that moves whole with the journal's members: how
// it differs, "" for not. old tells which side to compare with.
func (m *mover) treeDrift(op *journal.Op, dir *sys.FD, name string, old bool) (string, error) {
	seen, how := 0, ""
	err := walk(dir, name, op.Path, func(p string, dir *sys.FD, name string) error {
		if how != "" {
			return nil
		}
		member, err := m.members.find(p)
		if err != nil {
			return err
		}
		var want *journal.Object
		if member != nil {
			want = member.New
			if old {
				want = member.Old
			}
		}
		if want == nil {
			how = p + " is new there"
			return nil
		}
		seen++
		found, err := look(dir, name)
		if err != nil {
			return err
		}
		clean, err := pristine(dir, name, want, found)
		if err != nil {
			return err
		}
		// Before a commit a new mode goes with the old object, which is kept.
		if !clean || !old && otherMetadata(want, found) {
			how = p + " was modified"
		}
		return nil
	})
	if err != nil || how != "" {
		return how, err
	}
	want, err := m.members.countBelow(op.Path, old)
	if err != nil {
		return "", err
	}
	if seen != want {
		return fmt.Sprintf("%d of %d objects below it are gone", want-seen, want), nil
	}
	return "", nil
}

// cleanStaged makes a staged tree what the journal says again: programs that ran
// on the staged view may have left files in its new folders. What they changed
// of ours refuses the commit. It tells whether anything was removed.
func (m *mover) cleanStaged(op *journal.Op, dir *sys.FD, name string) (bool, error) {
	found, err := look(dir, name)
	if err != nil {
		return false, named("look at what is staged for", op, err)
	}
	altered := fmt.Errorf("cannot commit %s: a program changed it on the staged view: %w", op.Path, change.ErrVerification)
	if !same(op.New, found) || !sameContent(op.New, found) || found.Mode != op.New.Mode || found.UID != op.New.UID || found.GID != op.New.GID {
		return false, altered
	}
	if found.Type != change.Directory {
		if found.Mtime == op.New.Mtime && found.Ctime == op.New.Ctime {
			return false, nil
		}
		clean, err := pristine(dir, name, op.New, found)
		if err != nil {
			return false, named("look at what is staged for", op, err)
		}
		if !clean || found.Mtime != op.New.Mtime {
			return false, altered
		}
		return false, nil
	}
	return m.cleanFolder(op, dir, name, found)
}

func (m *mover) cleanFolder(op *journal.Op, dir *sys.FD, name string, found *journal.Object) (bool, error) {
	k := m.t.s.k
	fail := func(err error) (bool, error) { return false, named("clean what is staged for", op, err) }
	sub, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return fail(err)
	}
	defer sub.Close()
	names, err := sys.ReadDirNames(sub)
	if err != nil {
		return fail(err)
	}
	cleaned := false
	want := 0
	for _, child := range names {
		member, err := m.members.find(path.Join(op.Path, child))
		if err != nil {
			return fail(err)
		}
		if member == nil || member.New == nil {
			if err := k.RemoveAll(sub, child); err != nil {
				return fail(err)
			}
			cleaned = true
			continue
		}
		want++
		c, err := m.cleanStaged(member, sub, child)
		if err != nil {
			return false, err
		}
		cleaned = cleaned || c
	}
	have, err := m.members.countNew(op.Path)
	if err != nil {
		return fail(err)
	}
	if want != have {
		return false, fmt.Errorf("cannot commit %s: a program removed files from it on the staged view: %w", op.Path, change.ErrVerification)
	}
	if found.Ctime == op.New.Ctime && !cleaned {
		return false, nil
	}
	// An overlay writes attributes of its own to upper folders.
	xattrs, err := sys.Xattrs(dir, name)
	if err != nil {
		return fail(err)
	}
	for key := range xattrs {
		if strings.HasPrefix(key, "trusted.overlay.") {
			if err := k.RemoveXattr(dir, name, key); err != nil {
				return fail(err)
			}
			cleaned = true
		}
	}
	if now, err := sys.Lstat(dir, name); err != nil {
		return fail(err)
	} else if now.MtimeNS != op.New.Mtime {
		if err := k.SetMtime(dir, name, op.New.Mtime); err != nil {
			return fail(err)
		}
		cleaned = true
	}
	return cleaned, nil
}
