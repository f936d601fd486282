package sys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/liveupd/liveupd/change"
)

// A walk over a hundred thousand files spends its time in three calls for
// each: what is here works on byte slices that the caller keeps, so that
// nothing is allocated for a name.

// CName is a name with the NUL byte that the kernel wants behind it.
type CName []byte

// MakeCName makes a CName of a string that holds no NUL byte.
func MakeCName(s string) CName { return append(append(make(CName, 0, len(s)+1), s...), 0) }

// Bytes is the name without the NUL byte, valid as long as the CName.
func (c CName) Bytes() []byte { return c[:len(c)-1] }

func (c CName) String() string { return string(c.Bytes()) }

// Listing is the content of one directory, sorted bytewise, without . and .. .
// It is made to be used again: the names of the directory before are gone.
type Listing struct {
	raw   []byte
	names []byte
	ents  []listed
}

type listed struct {
	off uint32
	len uint16 // the NUL byte among them
}

// Len is the number of names.
func (l *Listing) Len() int { return len(l.ents) }

// Name is the ith name, valid until the next Read.
func (l *Listing) Name(i int) CName {
	e := l.ents[i]
	return l.names[e.off : e.off+uint32(e.len)]
}

// Read lists an open directory (not O_PATH), from its start.
func (l *Listing) Read(dir *FD) error {
	if l.raw == nil {
		l.raw = make([]byte, 64<<10)
	}
	l.names, l.ents = l.names[:0], l.ents[:0]
	if _, err := unix.Seek(dir.n, 0, 0); err != nil {
		return callError(Call{Name: "lseek", Path: dir.name}, err)
	}
	for {
		n, err := unix.Getdents(dir.n, l.raw)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return callError(Call{Name: "getdents64", Path: dir.name}, err)
		}
		if n <= 0 {
			break
		}
		if err := l.add(l.raw[:n]); err != nil {
			return callError(Call{Name: "getdents64", Path: dir.name}, err)
		}
	}
	runtime.KeepAlive(dir)
	slices.SortFunc(l.ents, func(a, b listed) int {
		// The NUL bytes take part and do not matter: no name holds one.
		return bytes.Compare(l.names[a.off:a.off+uint32(a.len)], l.names[b.off:b.off+uint32(b.len)])
	})
	return nil
}

// add takes names out of a buffer of struct linux_dirent64.
func (l *Listing) add(buf []byte) error {
	const nameOff = int(unsafe.Offsetof(unix.Dirent{}.Name))
	for len(buf) > 0 {
		reclen := int(*(*uint16)(unsafe.Pointer(&buf[unsafe.Offsetof(unix.Dirent{}.Reclen)])))
		if reclen <= nameOff || reclen > len(buf) {
			return fmt.Errorf("directory entry of %d bytes", reclen)
		}
		name := buf[nameOff:reclen]
		buf = buf[reclen:]
		end := bytes.IndexByte(name, 0)
		if end <= 0 || bytes.IndexByte(name[:end], '/') >= 0 {
			// A damaged or hostile file system: such a name would lead elsewhere.
			return fmt.Errorf("directory entry with the name %q", name[:max(end, 0)])
		}
		if name[0] == '.' && (end == 1 || end == 2 && name[1] == '.') {
			continue
		}
		l.ents = append(l.ents, listed{uint32(len(l.names)), uint16(end + 1)})
		l.names = append(l.names, name[:end+1]...)
	}
	return nil
}

// Stater describes objects into nodes that the caller owns. One for each goroutine.
type Stater struct{ st unix.Statx_t }

// Lstat describes the object name below dir without following it: all but the
// extended attributes, the digest and a symlink's target, which keep what they are not.
func (s *Stater) Lstat(dir *FD, name CName, n *change.Node) error {
	if len(name) == 0 || name[len(name)-1] != 0 {
		return callError(Call{Name: "statx", Path: string(name)}, unix.EINVAL)
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(dir.n), uintptr(unsafe.Pointer(&name[0])),
			unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&s.st)), 0)
		if errno == 0 {
			break
		}
		if errno != unix.EINTR {
			return callError(Call{Name: "statx", Path: name.String()}, errno)
		}
	}
	runtime.KeepAlive(dir)
	st := &s.st
	*n = change.Node{
		Type: typeOf(uint32(st.Mode)), Mode: uint32(st.Mode) & 0o7777, UID: st.Uid, GID: st.Gid,
		MtimeNS: st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec), CtimeNS: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec),
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Nlink: st.Nlink,
	}
	switch n.Type {
	case change.Regular:
		n.Size = int64(st.Size)
	case change.CharDevice, change.BlockDevice:
		n.Rdev = unix.Mkdev(st.Rdev_major, st.Rdev_minor)
	}
	return nil
}

// ReadlinkInto reads the symlink name below dir into buf, which must be longer
// than any target (PATH_MAX, 4096).
func ReadlinkInto(dir *FD, name CName, buf []byte) ([]byte, error) {
	if len(name) == 0 || name[len(name)-1] != 0 || len(buf) == 0 {
		return nil, callError(Call{Name: "readlinkat", Path: string(name)}, unix.EINVAL)
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(dir.n), uintptr(unsafe.Pointer(&name[0])),
			uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
		if errno == 0 {
			runtime.KeepAlive(dir)
			return buf[:n], nil
		}
		if errno != unix.EINTR {
			return nil, callError(Call{Name: "readlinkat", Path: name.String()}, errno)
		}
	}
}

// OpenContent opens the regular file name below dir for reading, without
// following it and, where the kernel lets us, without touching its access
// time: reading the live root must not write to it.
func OpenContent(dir *FD, name string) (*FD, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := OpenAt(dir, name, flags|unix.O_NOATIME, ResolveBeneath|ResolveNoSymlinks)
	if errors.Is(err, unix.EPERM) {
		// Not our file and no CAP_FOWNER.
		fd, err = OpenAt(dir, name, flags, ResolveBeneath|ResolveNoSymlinks)
	}
	return fd, err
}

// OpenDirAt opens the directory at a path below dir that goes through no symlink.
func OpenDirAt(dir *FD, name string) (*FD, error) {
	fd, err := OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME, ResolveBeneath|ResolveNoSymlinks)
	if errors.Is(err, unix.EPERM) {
		fd, err = OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, ResolveBeneath|ResolveNoSymlinks)
	}
	return fd, err
}

// Reset empties the listing.
func (l *Listing) Reset() { l.names, l.ents = l.names[:0], l.ents[:0] }

// ReadAt reads at an offset, as io.ReaderAt, but may read less than asked for
// without an error.
func (f *FD) ReadAt(b []byte, off int64) (int, error) {
	var n int
	err := retry("pread64", f.name, func() (err error) {
		n, err = unix.Pread(f.n, b, off)
		return err
	})
	runtime.KeepAlive(f)
	if err == nil && n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}
