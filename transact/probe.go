package transact

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// probeFolders finds the folders that an overlay will not move: those that come
// from a lower layer, where it is mounted without redirect_dir=on, as containers'
// roots are. The commit would meet EXDEV in its middle. Nothing moves here: the
// target is a folder that is not empty, and the overlay answers EXDEV before it
// looks at the target, and ENOTEMPTY after it. With redirect_dir=on it would copy
// the folder up in between, which its parent's times show: that one is believed.
func (t *Tx) probeFolders(st *staging, vol int) error {
	tv := &t.vols[vol]
	if !tv.overlay {
		return nil
	}
	if redirects, err := sys.OverlayRedirects(tv.dir); err != nil || redirects {
		return err
	}
	k := t.s.k
	const full = "full"
	if err := k.Mkdir(tv.dir, full, 0o700); err != nil {
		return fmt.Errorf("cannot stage on %s: %w", tv.mount, err)
	}
	if err := k.Mkdir(tv.dir, full+"/x", 0o700); err != nil {
		return fmt.Errorf("cannot stage on %s: %w", tv.mount, err)
	}
	dirs := newDirs()
	defer dirs.close()
	for i := range st.items {
		it := &st.items[i]
		if it.vol != vol || it.under >= 0 || it.inPlace() || !it.Old.IsDir() {
			continue
		}
		dirs.trim()
		dir, name, err := dirs.parent(tv.vol.Dir, it.rel)
		if err == nil {
			err = k.Rename(dir, name, tv.dir, full, 0)
		}
		switch {
		case isErrno(err, syscall.ENOTEMPTY), isErrno(err, syscall.EEXIST), errors.Is(err, fs.ErrNotExist):
		case isErrno(err, syscall.EXDEV):
			err = fmt.Errorf("cannot %s the folder %s: it lies in a lower layer: %w", it.Op, it.Path,
				&sys.UnsupportedError{Feature: "moving a folder of a lower layer", Needs: "an overlay that is mounted with redirect_dir=on"})
			return change.WithHint(err, "keep the folder in the update and empty it, make a new image, or have the container's root mounted with redirect_dir=on")
		default:
			return fmt.Errorf("cannot see whether %s can be moved: %w", it.Path, err)
		}
	}
	return k.RemoveAll(tv.dir, full)
}

// tellApart refuses an exchange of two objects that a recovery could not tell from
// each other: where a file system has no handles, as an overlay, an object is
// known by its type, size and modification time.
func tellApart(old, fresh *journal.Object) error {
	if old == nil || fresh == nil || old.Handle != "" || fresh.Handle != "" || !same(old, fresh) {
		return nil
	}
	return change.WithHint(fmt.Errorf("the old and the new one have the same size and modification time: %w",
		&sys.UnsupportedError{Feature: "telling two such files apart after a crash", Needs: "a file system with file handles"}),
		"give the new one another modification time")
}

// joinProject gives a folder of up the project of the live folder, so that what is
// made in it belongs there: xfs and ext4 refuse to move into a folder that hands
// its project down (xfs_quota(8) project, chattr +P) what is of another one.
func (g *stager) joinProject(sk *skeleton) error {
	tv := &g.t.vols[sk.vol]
	live, err := sys.OpenAt(tv.vol.Dir, sk.rel, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if notHere(err) {
		return nil // it is new, and has inherited from the folder above
	}
	if err != nil {
		return fmt.Errorf("cannot stage below %s: %w", path.Join(tv.mount, sk.rel), err)
	}
	defer live.Close()
	p, err := sys.ProjectOf(live)
	if err != nil || !p.Inherit {
		return err
	}
	sk.joined = true
	return g.setProject(sk, p)
}

// leaveProject takes the flag from a folder of up that stays there: what comes out
// of an exchange may be of another project.
func (g *stager) leaveProject(sk *skeleton) error {
	if !sk.joined {
		return nil
	}
	return g.setProject(sk, sys.Project{})
}

func (g *stager) setProject(sk *skeleton, p sys.Project) error {
	tv := &g.t.vols[sk.vol]
	up, err := sys.OpenAt(tv.dir, path.Join(upName, sk.rel), sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err == nil {
		err = g.t.s.k.SetProject(up, p)
		up.Close()
	}
	if err != nil {
		return fmt.Errorf("cannot give what is staged for %s its project: %w", path.Join(tv.mount, sk.rel), err)
	}
	return nil
}
