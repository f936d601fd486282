package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Attributes of one mount, for SetMountAttr and NewMount.
const (
	MountReadOnly = unix.MOUNT_ATTR_RDONLY
	MountNoSuid   = unix.MOUNT_ATTR_NOSUID
	MountNoDev    = unix.MOUNT_ATTR_NODEV
	MountNoExec   = unix.MOUNT_ATTR_NOEXEC
)

// OpenMount opens what path names below dir (nil: the working directory)
// without triggering an automount and, when path is "", dir itself. With clone
// the descriptor is the root of a detached copy of the mount there, without
// what is mounted below it, and the copy goes when the descriptor is closed:
// open_tree(2), Linux 5.2, CAP_SYS_ADMIN for a clone. The descriptor is one of
// O_PATH: OpenAt(fd, ".", ...) gives one that can be read.
func OpenMount(dir *FD, path string, clone, follow bool) (*FD, error) {
	flags := uint(unix.OPEN_TREE_CLOEXEC | unix.AT_NO_AUTOMOUNT)
	if clone {
		flags |= unix.OPEN_TREE_CLONE
	}
	if !follow {
		flags |= unix.AT_SYMLINK_NOFOLLOW
	}
	at, name := unix.AT_FDCWD, path
	if dir != nil {
		at = dir.n
		if path == "" {
			flags |= unix.AT_EMPTY_PATH
			name = dir.name
		}
	}
	var n int
	err := retry("open_tree", name, func() (err error) {
		n, err = unix.OpenTree(at, path, flags)
		return err
	})
	runtime.KeepAlive(dir)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return nil, &UnsupportedError{Feature: "open_tree", Needs: "Linux 5.2"}
		}
		return nil, err
	}
	return NewFD(n, name), nil
}

// SetMountAttr sets and clears attributes of the one mount that fd is the root
// of, and of no other: mount_setattr(2), Linux 5.12. The mount has to be
// detached or in the calling thread's mount namespace.
func (k *Kernel) SetMountAttr(fd *FD, set, clr uint64) error {
	defer runtime.KeepAlive(fd)
	err := k.do(Call{Name: "mount_setattr", Path: fd.name}, func() error {
		return unix.MountSetattr(fd.n, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: set, Attr_clr: clr})
	})
	if errors.Is(err, unix.ENOSYS) {
		return &UnsupportedError{Feature: "mount_setattr", Needs: "Linux 5.12"}
	}
	return err
}

// MakeSlave turns every mount of the calling thread's namespace into a slave of
// what it was a peer of: mounts and unmounts elsewhere arrive here, none
// leaves.
func (k *Kernel) MakeSlave() error {
	return k.do(Call{Name: "mount MS_SLAVE|MS_REC", Path: "/"}, func() error {
		return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	})
}

// Option is one parameter of a file system: a flag where Value is "".
type Option struct{ Key, Value string }

func (o Option) apply(fs int) error {
	if o.Value == "" {
		return unix.FsconfigSetFlag(fs, o.Key)
	}
	return unix.FsconfigSetString(fs, o.Key, o.Value)
}

// Reconfigure changes only the named parameters of the file system that fd is
// on: Option{Key: "rw"} makes the whole file system writable and touches no
// mount's own flags. mount(2)'s MS_REMOUNT would reset what it is not told.
func (k *Kernel) Reconfigure(fd *FD, opts ...Option) error {
	defer runtime.KeepAlive(fd)
	names := make([]string, len(opts))
	for i, o := range opts {
		names[i] = o.Key
	}
	return k.do(Call{Name: "fsconfig reconfigure", Path: fd.name, To: strings.Join(names, ",")}, func() error {
		fs, err := unix.Fspick(fd.n, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH|unix.FSPICK_NO_AUTOMOUNT)
		if err != nil {
			return fmt.Errorf("fspick: %w", err)
		}
		defer unix.Close(fs)
		for _, o := range opts {
			if err := o.apply(fs); err != nil {
				return fsError(fs, "option "+o.Key, err)
			}
		}
		if err := unix.FsconfigReconfigure(fs); err != nil {
			return fsError(fs, "reconfigure", err)
		}
		return nil
	})
}

// NewMount makes a new instance of a file system, mounted nowhere: fsopen(2),
// fsconfig(2), fsmount(2), Linux 5.2. attrs are attributes of the mount alone.
func (k *Kernel) NewMount(fstype string, attrs uint64, opts ...Option) (*FD, error) {
	var n int
	err := k.do(Call{Name: "fsmount", Path: fstype}, func() error {
		fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
		if err != nil {
			return fmt.Errorf("fsopen: %w", err)
		}
		defer unix.Close(fs)
		for _, o := range opts {
			if err := o.apply(fs); err != nil {
				return fsError(fs, "option "+o.Key+"="+o.Value, err)
			}
		}
		if err := unix.FsconfigCreate(fs); err != nil {
			return fsError(fs, "create", err)
		}
		n, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
		return err
	})
	if err != nil {
		return nil, err
	}
	return NewFD(n, fstype), nil
}

// fsError adds what the file system itself has to say, which it queues on the
// configuration descriptor as "e text".
func fsError(fs int, what string, err error) error {
	var said []string
	buf := make([]byte, 1024)
	for range 8 {
		n, rerr := unix.Read(fs, buf)
		if rerr != nil || n <= 0 {
			break
		}
		if msg, ok := strings.CutPrefix(string(buf[:n]), "e "); ok {
			said = append(said, strings.TrimSpace(msg))
		}
	}
	if len(said) == 0 {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%s)", what, err, strings.Join(said, "; "))
}

// AttachMount mounts a detached mount on the open directory or file target.
func (k *Kernel) AttachMount(mnt, target *FD) error {
	defer runtime.KeepAlive(mnt)
	defer runtime.KeepAlive(target)
	return k.do(Call{Name: "move_mount", Path: mnt.name, To: target.name}, func() error {
		return unix.MoveMount(mnt.n, "", target.n, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
}

// Unmount detaches the mount at path, and goes through with it when it is in
// use: umount2(2) with MNT_DETACH.
func (k *Kernel) Unmount(path string) error {
	return k.do(Call{Name: "umount2", Path: path}, func() error {
		return unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	})
}

// PivotTo makes the mount that dir is the root of the calling process's root,
// and drops the old root with all that is mounted below it.
func (k *Kernel) PivotTo(dir *FD) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "pivot_root", Path: dir.name}, func() error {
		if err := unix.Fchdir(dir.n); err != nil {
			return err
		}
		// With both names ".", the old root lands on top of the new one, and
		// needs no directory of its own there: pivot_root(2), NOTES.
		if err := unix.PivotRoot(".", "."); err != nil {
			return err
		}
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return err
		}
		return unix.Chdir("/")
	})
}

// MountID is the number that mountinfo gives the mount which fd is on:
// statx(2) with STATX_MNT_ID, Linux 5.8.
func MountID(fd *FD) (int, error) {
	var st unix.Statx_t
	err := retry("statx", fd.name, func() error {
		return unix.Statx(fd.n, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	})
	runtime.KeepAlive(fd)
	if err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, &UnsupportedError{Feature: "statx with STATX_MNT_ID", Needs: "Linux 5.8"}
	}
	return int(st.Mnt_id), nil
}

// ReadOnly tells whether writing through fd's mount is refused, be it by the
// mount's flag or by the file system's: statvfs(3) ST_RDONLY.
func ReadOnly(fd *FD) (bool, error) {
	st, err := fstatfs(fd)
	return st.Flags&unix.ST_RDONLY != 0, err
}

func fstatfs(fd *FD) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	err := retry("fstatfs", fd.name, func() error { return unix.Fstatfs(fd.n, &st) })
	runtime.KeepAlive(fd)
	return st, err
}

// DescribedPath is the path of an open object as the kernel describes it: from
// the root of its mount where that is mounted nowhere.
func (f *FD) DescribedPath() (string, error) {
	path, err := os.Readlink(f.ProcPath())
	runtime.KeepAlive(f)
	return path, err
}
