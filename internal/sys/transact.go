package sys

import (
	"errors"
	"io"
	"runtime"

	"golang.org/x/sys/unix"
)

// Space is what a file system has left.
type Space struct {
	BlockSize  int64
	Total      int64 // bytes
	Available  int64 // bytes, for this process: root may use the reserve
	Inodes     int64 // 0 where the file system does not count them
	InodesFree int64
}

// Statfs reads what the file system below dir has left: fstatfs(2).
func Statfs(dir *FD) (Space, error) {
	var st unix.Statfs_t
	err := retry("fstatfs", dir.name, func() error { return unix.Fstatfs(dir.n, &st) })
	runtime.KeepAlive(dir)
	if err != nil {
		return Space{}, err
	}
	free := st.Bavail
	if unix.Geteuid() == 0 {
		free = st.Bfree
	}
	return Space{
		BlockSize: st.Bsize, Total: int64(st.Blocks) * st.Bsize, Available: int64(free) * st.Bsize,
		Inodes: int64(st.Files), InodesFree: int64(st.Ffree),
	}, nil
}

// Attrs are the inode flags that make the kernel answer EPERM.
type Attrs struct {
	Immutable bool
	Append    bool
}

// StatAttrs reads the inode flags of name below dir without following it.
func StatAttrs(dir *FD, name string) (Attrs, error) {
	var st unix.Statx_t
	err := retry("statx", name, func() error {
		return unix.Statx(dir.n, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st)
	})
	runtime.KeepAlive(dir)
	if err != nil {
		return Attrs{}, err
	}
	set := st.Attributes & st.Attributes_mask
	return Attrs{Immutable: set&unix.STATX_ATTR_IMMUTABLE != 0, Append: set&unix.STATX_ATTR_APPEND != 0}, nil
}

// OpenForWriting tells whether any process holds the open regular file open for
// writing or mapped shared-writable, by asking for a read lease and giving it
// back: the kernel refuses one exactly then. Running executables do not count.
// Where leases are not to be had (another's file without CAP_LEASE, a file
// system without them) the answer is no.
func OpenForWriting(f *FD) (bool, error) {
	err := retry("fcntl F_SETLEASE", f.name, func() error {
		_, err := unix.FcntlInt(uintptr(f.n), unix.F_SETLEASE, unix.F_RDLCK)
		return err
	})
	switch {
	case errors.Is(err, unix.EAGAIN):
		return true, nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil:
		return false, err
	}
	_, err = unix.FcntlInt(uintptr(f.n), unix.F_SETLEASE, unix.F_UNLCK)
	runtime.KeepAlive(f)
	return false, callError(Call{Name: "fcntl F_SETLEASE", Path: f.name}, err)
}

// TryLock takes an exclusive flock(2) that the descriptor holds until it is
// closed; false: another holds it.
func TryLock(f *FD) (bool, error) {
	err := retry("flock", f.name, func() error { return unix.Flock(f.n, unix.LOCK_EX|unix.LOCK_NB) })
	runtime.KeepAlive(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// LockShared takes a shared flock(2) that the descriptor holds until it is closed; it
// waits while another has an exclusive one.
func LockShared(f *FD) error {
	err := retry("flock", f.name, func() error { return unix.Flock(f.n, unix.LOCK_SH) })
	runtime.KeepAlive(f)
	return err
}

// Read is an io.Reader's.
func (f *FD) Read(b []byte) (int, error) {
	var n int
	err := retry("read", f.name, func() (err error) {
		n, err = unix.Read(f.n, b)
		return err
	})
	runtime.KeepAlive(f)
	if err == nil && n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// StartWriteback asks the kernel to begin writing out an open file's dirty
// pages, so that the barrier later has less to wait for: sync_file_range(2).
// It promises nothing.
func (k *Kernel) StartWriteback(f *FD) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "sync_file_range", Path: f.name, Dir: f, On: true}, func() error {
		return unix.SyncFileRange(f.n, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// The calls below change the very object that is open, whatever its name leads
// to by now; an O_PATH descriptor will do. They go through the descriptor's
// magic link, because fchmod and fsetxattr refuse O_PATH.

// ChownFD sets the owner. It clears set-id bits and capabilities: call it before
// ChmodFD and SetXattrFD.
func (k *Kernel) ChownFD(f *FD, uid, gid uint32) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "fchownat", Path: f.name, Dir: f, On: true}, func() error {
		return unix.Fchownat(f.n, "", int(uid), int(gid), unix.AT_EMPTY_PATH)
	})
}

// ChmodFD sets the permission, set-id and sticky bits of what is no symlink.
func (k *Kernel) ChmodFD(f *FD, mode uint32) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "fchmodat", Path: f.name, Dir: f, On: true}, func() error {
		return unix.Fchmodat(unix.AT_FDCWD, f.ProcPath(), mode&0o7777, 0)
	})
}

// SetXattrFD sets one extended attribute.
func (k *Kernel) SetXattrFD(f *FD, key string, val []byte) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "setxattr", Path: f.name, To: key, Dir: f, On: true}, func() error {
		return unix.Setxattr(f.ProcPath(), key, val, 0)
	})
}

// RemoveXattrFD removes one extended attribute; its absence is no error.
func (k *Kernel) RemoveXattrFD(f *FD, key string) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "removexattr", Path: f.name, To: key, Dir: f, On: true}, func() error {
		if err := unix.Removexattr(f.ProcPath(), key); !errors.Is(err, unix.ENODATA) {
			return err
		}
		return nil
	})
}

// SetMtimeFD sets the modification time, in nanoseconds since the epoch.
func (k *Kernel) SetMtimeFD(f *FD, mtimeNS int64) error {
	defer runtime.KeepAlive(f)
	sec := floorDiv(mtimeNS, 1e9)
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: mtimeNS - sec*1e9}}
	return k.do(Call{Name: "utimensat", Path: f.name, Dir: f, On: true}, func() error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, f.ProcPath(), ts, 0)
	})
}

// FSType names the type of the file system below fd by its magic number, statfs(2); ""
// for one that is seldom a server's root.
func FSType(fd *FD) string {
	var st unix.Statfs_t
	err := retry("fstatfs", fd.name, func() error { return unix.Fstatfs(fd.n, &st) })
	runtime.KeepAlive(fd)
	if err != nil {
		return ""
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.MSDOS_SUPER_MAGIC:
		return "vfat"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	}
	return ""
}

// DiskUsage is what name below dir and all that it holds occupy, in bytes. A file with
// several names counts once; other file systems are not entered.
func DiskUsage(dir *FD, name string) (int64, error) {
	return diskUsage(dir, name, map[uint64]bool{})
}

func diskUsage(dir *FD, name string, seen map[uint64]bool) (int64, error) {
	var st unix.Stat_t
	err := retry("newfstatat", name, func() error { return unix.Fstatat(dir.n, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	runtime.KeepAlive(dir)
	if err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if st.Nlink > 1 && seen[st.Ino] {
			return 0, nil
		}
		seen[st.Ino] = true
		return st.Blocks * 512, nil
	}
	sum := st.Blocks * 512
	sub, err := OpenAt(dir, name, OpenRead|OpenDir|OpenNoLink, ResolveBeneath|ResolveNoXDev)
	if errors.Is(err, unix.EXDEV) {
		return sum, nil
	}
	if err != nil {
		return 0, err
	}
	defer sub.Close()
	names, err := ReadDirNames(sub)
	if err != nil {
		return 0, err
	}
	for _, child := range names {
		n, err := diskUsage(sub, child, seen)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
