package sys

import (
	"bytes"
	"errors"
	"runtime"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/liveupd/liveupd/change"
)

// Lstat describes the object name below dir without following it: all but the
// extended attributes, the digest and a symlink's target.
func Lstat(dir *FD, name string) (*change.Node, error) {
	n := new(change.Node)
	if err := LstatInto(dir, name, n); err != nil {
		return nil, err
	}
	return n, nil
}

// LstatInto is Lstat into a node that the caller owns, for walks that must not allocate.
func LstatInto(dir *FD, name string, n *change.Node) error {
	var st unix.Stat_t
	err := retry("fstatat", name, func() error {
		return unix.Fstatat(dir.n, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	})
	runtime.KeepAlive(dir)
	if err != nil {
		return err
	}
	fillNode(n, &st)
	return nil
}

// Stat describes the open object.
func (f *FD) Stat() (*change.Node, error) { return Lstat(f, "") }

func fillNode(n *change.Node, st *unix.Stat_t) {
	*n = change.Node{
		Type: typeOf(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		MtimeNS: st.Mtim.Sec*1e9 + st.Mtim.Nsec, CtimeNS: st.Ctim.Sec*1e9 + st.Ctim.Nsec,
		Dev: st.Dev, Ino: st.Ino, Nlink: uint32(st.Nlink),
	}
	switch n.Type {
	case change.Regular:
		n.Size = st.Size
	case change.CharDevice, change.BlockDevice:
		n.Rdev = st.Rdev
	}
}

func typeOf(mode uint32) change.Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return change.Regular
	case unix.S_IFDIR:
		return change.Directory
	case unix.S_IFLNK:
		return change.Symlink
	case unix.S_IFCHR:
		return change.CharDevice
	case unix.S_IFBLK:
		return change.BlockDevice
	case unix.S_IFIFO:
		return change.FIFO
	case unix.S_IFSOCK:
		return change.Socket
	}
	return 0
}

// Readlink reads the symlink name below dir; "" reads the open symlink itself.
func Readlink(dir *FD, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := retry("readlinkat", name, func() (err error) {
		n, err = unix.Readlinkat(dir.n, name, buf)
		return err
	})
	runtime.KeepAlive(dir)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Xattrs reads all extended attributes of name below dir without following a
// symlink; nil when there are none or the file system has none.
func Xattrs(dir *FD, name string) (map[string][]byte, error) {
	// lgetxattr through the directory's magic link works for every type of
	// object; fgetxattr would need the object opened.
	path := dir.ProcPath()
	if name != "" && name != "." {
		path += "/" + name
	} else {
		path += "/."
	}
	defer runtime.KeepAlive(dir)
	buf := make([]byte, 256)
	var n int
	for {
		err := retry("llistxattr", name, func() (err error) {
			n, err = unix.Llistxattr(path, buf)
			return err
		})
		switch {
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 65536)
			continue
		case err != nil:
			return nil, err
		}
		break
	}
	if n == 0 {
		return nil, nil
	}
	out := map[string][]byte{}
	for key := range bytes.SplitSeq(bytes.TrimRight(buf[:n], "\x00"), []byte{0}) {
		val, err := lgetxattr(path, string(key))
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[string(key)] = val
	}
	return out, nil
}

// Xattrs reads all extended attributes of an object that is open for reading; nil
// when there are none or the file system has none.
func (f *FD) Xattrs() (map[string][]byte, error) {
	defer runtime.KeepAlive(f)
	var small [256]byte
	buf := small[:]
	n, err := f.listxattr(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 65536)
		n, err = f.listxattr(buf)
	}
	if err == nil && n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	val := make([]byte, 65536)
	for key := range bytes.SplitSeq(bytes.TrimRight(buf[:n], "\x00"), []byte{0}) {
		var size int
		err := retry("fgetxattr", f.name, func() (err error) {
			size, err = unix.Fgetxattr(f.n, string(key), val)
			return err
		})
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[string(key)] = bytes.Clone(val[:size])
	}
	return out, nil
}

func (f *FD) listxattr(buf []byte) (n int, err error) {
	err = retry("flistxattr", f.name, func() (err error) {
		n, err = unix.Flistxattr(f.n, buf)
		return err
	})
	return n, err
}

func lgetxattr(path, key string) ([]byte, error) {
	buf := make([]byte, 1024)
	for {
		var n int
		err := retry("lgetxattr", path, func() (err error) {
			n, err = unix.Lgetxattr(path, key, buf)
			return err
		})
		if errors.Is(err, unix.ERANGE) {
			buf = make([]byte, 65536)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n:n], nil
	}
}

// ReadDirNames lists the names in an open directory (not O_PATH), sorted,
// without . and .. .
func ReadDirNames(dir *FD) ([]string, error) {
	buf := make([]byte, 32768)
	var names []string
	if _, err := unix.Seek(dir.n, 0, 0); err != nil {
		return nil, callError(Call{Name: "lseek", Path: dir.name}, err)
	}
	for {
		var n int
		err := retry("getdents64", dir.name, func() (err error) {
			n, err = unix.Getdents(dir.n, buf)
			return err
		})
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	runtime.KeepAlive(dir)
	sort.Strings(names)
	return names, nil
}
