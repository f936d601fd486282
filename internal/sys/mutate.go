package sys

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// Rename flags of renameat2(2).
const (
	RenameNoReplace = unix.RENAME_NOREPLACE
	RenameExchange  = unix.RENAME_EXCHANGE
)

// Rename moves or exchanges names: renameat2(2).
func (k *Kernel) Rename(oldDir *FD, oldName string, newDir *FD, newName string, flags uint) error {
	defer runtime.KeepAlive(oldDir)
	defer runtime.KeepAlive(newDir)
	return k.do(Call{Name: "renameat2", Path: oldName, To: newName, Dir: oldDir, ToDir: newDir, Flags: flags}, func() error {
		return unix.Renameat2(oldDir.n, oldName, newDir.n, newName, flags)
	})
}

// Mkdir makes a directory with exactly this mode, whatever the umask.
func (k *Kernel) Mkdir(dir *FD, name string, mode uint32) error {
	defer runtime.KeepAlive(dir)
	if err := k.do(Call{Name: "mkdirat", Path: name, Dir: dir}, func() error { return unix.Mkdirat(dir.n, name, mode&0o777) }); err != nil {
		return err
	}
	return k.Chmod(dir, name, mode)
}

// Create makes a new regular file, which must not exist, opened for writing.
func (k *Kernel) Create(dir *FD, name string, mode uint32) (*FD, error) {
	defer runtime.KeepAlive(dir)
	var n int
	err := k.do(Call{Name: "openat", Path: name, Dir: dir}, func() (err error) {
		n, err = unix.Openat(dir.n, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return NewFD(n, name), nil
}

// OpenAppend opens or makes a regular file for appending, mode 0600.
func (k *Kernel) OpenAppend(dir *FD, name string) (*FD, error) {
	defer runtime.KeepAlive(dir)
	var n int
	err := k.do(Call{Name: "openat", Path: name, Dir: dir}, func() (err error) {
		n, err = unix.Openat(dir.n, name, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return NewFD(n, name), nil
}

// OpenRewrite opens an existing regular file for writing, with its content cut off:
// the inode stays.
func (k *Kernel) OpenRewrite(dir *FD, name string) (*FD, error) {
	defer runtime.KeepAlive(dir)
	var n int
	err := k.do(Call{Name: "openat", Path: name, Dir: dir}, func() (err error) {
		n, err = unix.Openat(dir.n, name, unix.O_WRONLY|unix.O_TRUNC|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return NewFD(n, name), nil
}

// Write writes all of b.
func (k *Kernel) Write(f *FD, b []byte) error {
	defer runtime.KeepAlive(f)
	for len(b) > 0 {
		c := Call{Name: "write", Path: f.name, Len: len(b), Dir: f, On: true}
		part := b
		fault := k.fault(c)
		if fault.Short > 0 && fault.Short < len(b) {
			part = b[:fault.Short]
		}
		if errors.Is(fault.Err, unix.EINTR) {
			continue
		}
		if fault.Err != nil {
			return callError(c, fault.Err)
		}
		n, err := unix.Write(f.n, part)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return callError(c, err)
		}
		if n > 0 {
			b = b[n:]
		}
	}
	return nil
}

// Symlink makes a symlink.
func (k *Kernel) Symlink(target string, dir *FD, name string) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "symlinkat", Path: target, To: name, ToDir: dir}, func() error {
		return unix.Symlinkat(target, dir.n, name)
	})
}

// Link makes a hard link. Never on a live inode: it changes the link count and
// the ctime, and fires inotify, before the commit point.
func (k *Kernel) Link(oldDir *FD, oldName string, newDir *FD, newName string) error {
	defer runtime.KeepAlive(oldDir)
	defer runtime.KeepAlive(newDir)
	return k.do(Call{Name: "linkat", Path: oldName, To: newName, Dir: oldDir, ToDir: newDir}, func() error {
		return unix.Linkat(oldDir.n, oldName, newDir.n, newName, 0)
	})
}

// Mknod makes a device, a FIFO or a socket; mode holds the type bits.
func (k *Kernel) Mknod(dir *FD, name string, mode uint32, rdev uint64) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "mknodat", Path: name, Dir: dir}, func() error {
		return unix.Mknodat(dir.n, name, mode, int(rdev))
	})
}

// Unlink removes a name that is no directory.
func (k *Kernel) Unlink(dir *FD, name string) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "unlinkat", Path: name, Dir: dir}, func() error { return unix.Unlinkat(dir.n, name, 0) })
}

// Rmdir removes an empty directory.
func (k *Kernel) Rmdir(dir *FD, name string) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "unlinkat", Path: name, Dir: dir}, func() error {
		return unix.Unlinkat(dir.n, name, unix.AT_REMOVEDIR)
	})
}

// Chmod sets the permission, set-id and sticky bits of what is no symlink.
func (k *Kernel) Chmod(dir *FD, name string, mode uint32) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "fchmodat", Path: name, Dir: dir}, func() error { return unix.Fchmodat(dir.n, name, mode&0o7777, 0) })
}

// Chown sets the owner without following a symlink. It clears set-id bits and
// capabilities: call it before Chmod and SetXattr.
func (k *Kernel) Chown(dir *FD, name string, uid, gid uint32) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "fchownat", Path: name, Dir: dir}, func() error {
		return unix.Fchownat(dir.n, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	})
}

// SetMtime sets the modification time, in nanoseconds since the epoch, and
// leaves the access time alone. It does not follow a symlink.
func (k *Kernel) SetMtime(dir *FD, name string, mtimeNS int64) error {
	defer runtime.KeepAlive(dir)
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: floorDiv(mtimeNS, 1e9), Nsec: mtimeNS - floorDiv(mtimeNS, 1e9)*1e9}}
	return k.do(Call{Name: "utimensat", Path: name, Dir: dir}, func() error {
		return unix.UtimesNanoAt(dir.n, name, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// SetXattr sets one extended attribute without following a symlink.
func (k *Kernel) SetXattr(dir *FD, name, key string, val []byte) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "lsetxattr", Path: name, To: key, Dir: dir}, func() error {
		return unix.Lsetxattr(dir.ProcPath()+"/"+name, key, val, 0)
	})
}

// RemoveXattr removes one extended attribute; its absence is no error.
func (k *Kernel) RemoveXattr(dir *FD, name, key string) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "lremovexattr", Path: name, To: key, Dir: dir}, func() error {
		err := unix.Lremovexattr(dir.ProcPath()+"/"+name, key)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		return err
	})
}

// Fsync makes an open file or directory durable. A failed fsync is never
// retried: the kernel has dropped the error with the pages.
func (k *Kernel) Fsync(f *FD) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "fsync", Path: f.name, Dir: f, On: true}, func() error { return unix.Fsync(f.n) })
}

// Syncfs makes a file system durable. It reports write errors that happened
// since f was opened (Linux 5.8), so open f before the first write.
func (k *Kernel) Syncfs(f *FD) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "syncfs", Path: f.name, Dir: f, On: true}, func() error { return unix.Syncfs(f.n) })
}

// Fallocate reserves bytes for an open file.
func (k *Kernel) Fallocate(f *FD, bytes int64) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "fallocate", Path: f.name, Len: int(bytes), Dir: f, On: true}, func() error {
		return unix.Fallocate(f.n, 0, 0, bytes)
	})
}

// Truncate cuts a regular file to a size, in bytes.
func (k *Kernel) Truncate(dir *FD, name string, size int64) error {
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "ftruncate", Path: name, Dir: dir}, func() error {
		fd, err := OpenAt(dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, ResolveBeneath|ResolveNoSymlinks)
		if err != nil {
			return err
		}
		return errors.Join(unix.Ftruncate(fd.n, size), fd.Close())
	})
}

// RemoveAll removes name below dir and all that it holds, never crossing into
// another file system and never following a symlink. Its absence is no error.
func (k *Kernel) RemoveAll(dir *FD, name string) error {
	node, err := Lstat(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if !node.IsDir() {
		return k.Unlink(dir, name)
	}
	sub, err := OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, ResolveBeneath|ResolveNoXDev)
	if err != nil {
		return err
	}
	names, err := ReadDirNames(sub)
	if err != nil {
		sub.Close()
		return err
	}
	for _, child := range names {
		if err := k.RemoveAll(sub, child); err != nil {
			sub.Close()
			return err
		}
	}
	if err := sub.Close(); err != nil {
		return err
	}
	return k.Rmdir(dir, name)
}

// WriteControl writes a value to a control file of the kernel (in /sys/fs/cgroup), in one call.
func (k *Kernel) WriteControl(path, value string) error {
	return k.do(Call{Name: "write", Path: path, Len: len(value)}, func() error {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, []byte(value))
		return errors.Join(err, unix.Close(fd))
	})
}
