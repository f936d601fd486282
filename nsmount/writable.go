package nsmount

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// super is a file system whose own read-only flag MakeWritable cleared.
type super struct {
	dev    uint64 // as mountinfo has it
	mount  string // of the volume that led to it
	tree   *sys.FD
	rw     bool // the flag is cleared at present
	repeat []sys.Option
	flags  []flagged // mounts elsewhere that were given a read-only flag
	note   *note     // nil: none is kept
}

func (s *super) close() error {
	s.note.close()
	seen := map[*namespace]bool{}
	var errs []error
	for _, f := range s.flags {
		if !seen[f.ns] {
			seen[f.ns] = true
			errs = append(errs, f.ns.close())
		}
	}
	return errors.Join(errs...)
}

// MakeWritable makes the volumes writable through their Dir and through nothing
// else; only the named ones ("/", "/var") where any are named: a disk that was
// put in read-only and that no update writes to is best left alone. What is
// writable already is not touched. After an error everything is as before.
func (r *Root) MakeWritable(k *sys.Kernel, mounts ...string) error {
	for _, v := range r.vols {
		if len(mounts) > 0 && !slices.Contains(mounts, v.Mount) {
			continue
		}
		if err := r.makeWritable(k, v); err != nil {
			err = fmt.Errorf("cannot make %s (%s on %s) writable: %w", v.Mount, v.FSType, v.mount.Source, err)
			if _, rerr := r.restore(k); rerr != nil {
				err = errors.Join(err, rerr)
			}
			return err
		}
	}
	return nil
}

func (r *Root) makeWritable(k *sys.Kernel, v *volume) error {
	ro, err := sys.ReadOnly(v.Dir)
	if err != nil || !ro {
		return err
	}
	if err := v.neverWritable(); err != nil {
		return err
	}
	if v.tree == nil {
		return fmt.Errorf("it is read-only here, and its mounts cannot be changed without CAP_SYS_ADMIN: %w", fs.ErrPermission)
	}
	v.cleared = true
	if err := k.SetMountAttr(v.tree, 0, sys.MountReadOnly); err != nil {
		return err
	}
	// What still refuses writes now is the file system itself.
	ro, err = sys.ReadOnly(v.tree)
	if err != nil || !ro {
		return err
	}
	return r.openSuper(k, v)
}

// neverWritable names the kind of file system that no flag makes writable.
func (v *volume) neverWritable() error {
	if slices.Contains(imageTypes, v.FSType) {
		return errors.New("it is a read-only image by its format")
	}
	if v.FSType == "overlay" && !strings.Contains(","+v.mount.SuperOptions, ",upperdir=") {
		return errors.New("it is an overlay of read-only layers (ostree, composefs)")
	}
	ro, mapper := sys.BlockDeviceReadOnly(v.mount.Dev)
	switch {
	case strings.HasPrefix(mapper, "CRYPT-VERITY-"):
		return errors.New("its block device is protected by dm-verity")
	case ro:
		return errors.New("its block device is read-only")
	}
	return nil
}

// openSuper clears the read-only flag of the file system that v is on. Others
// keep being refused: their mounts have or get a flag of their own first. A
// mount that arrives in between is looked for afterwards.
func (r *Root) openSuper(k *sys.Kernel, v *volume) error {
	s := r.superOf(v.mount.Dev)
	if s == nil {
		s = &super{dev: v.mount.Dev, mount: v.Mount, tree: v.tree, repeat: repeatedOptions(&v.mount)}
		r.supers = append(r.supers, s)
	}
	if r.notes != "" && s.note == nil {
		n, err := r.newNote(v)
		if err != nil {
			return fmt.Errorf("cannot note that it was read-only: %w", err)
		}
		s.note = n
	}
	if err := s.protect(k); err != nil {
		return err
	}
	s.rw = true
	if err := k.Reconfigure(s.tree, append([]sys.Option{{Key: "rw"}}, s.repeat...)...); err != nil {
		s.rw = false
		return err
	}
	return s.protect(k)
}

// repeatedOptions are those that a file system would lose by a reconfiguration
// that does not name them: most keep what they have, these do not.
func repeatedOptions(m *sys.Mount) []sys.Option {
	var out []sys.Option
	for opt := range strings.SplitSeq(m.SuperOptions, ",") {
		key, val, _ := strings.Cut(opt, "=")
		switch {
		case m.FSType == "xfs" && (key == "inode32" || key == "inode64"): // xfs_fs_reconfigure
		case m.FSType == "f2fs" && key != "ro" && key != "rw": // f2fs_remount starts from the defaults
		default:
			continue
		}
		out = append(out, sys.Option{Key: key, Value: val})
	}
	return out
}

// Restore takes back all that MakeWritable did. Where a file system cannot go
// back yet it returns who holds it and an error that is syscall.EBUSY; nobody
// else can write to it even then, and Restore can be called again. Files that
// the caller itself has open for writing below a volume hold it too.
func (r *Root) Restore() ([]Holder, error) { return r.restore(nil) }

func (r *Root) restore(k *sys.Kernel) ([]Holder, error) {
	var errs []error
	busy := map[uint64]bool{}
	for _, v := range r.vols {
		if !v.cleared {
			continue
		}
		if err := k.SetMountAttr(v.tree, sys.MountReadOnly, 0); err != nil {
			busy[v.mount.Dev] = errors.Is(err, syscall.EBUSY)
			errs = append(errs, fmt.Errorf("cannot make our copy of %s read-only again: %w", v.Mount, err))
			continue
		}
		v.cleared = false
	}
	for _, s := range r.supers {
		if s.rw {
			if err := k.Reconfigure(s.tree, append([]sys.Option{{Key: "ro"}}, s.repeat...)...); err != nil {
				busy[s.dev] = busy[s.dev] || errors.Is(err, syscall.EBUSY)
				errs = append(errs, fmt.Errorf("cannot make the file system on %s read-only again: %w", s.mount, err))
				continue
			}
			s.rw = false
		}
		if err := s.unprotect(k); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := s.note.remove(); err != nil {
			errs = append(errs, fmt.Errorf("cannot forget that %s was read-only: %w", s.mount, err))
			continue
		}
		s.note = nil
	}
	var held []Holder
	for dev, is := range busy {
		if !is {
			continue
		}
		h, err := r.holders(dev)
		held = append(held, h...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		r.supers = nil
	}
	return held, errors.Join(errs...)
}
