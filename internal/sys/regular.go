package sys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/liveupd/liveupd/change"
)

// RegularFile is an open regular file, for reading at any offset.
type RegularFile struct {
	fd   *FD
	node *change.Node
}

// OpenRegular opens a regular file below dir for reading. Anything else is
// refused: the open never blocks (a FIFO would) and never wakes a device's
// driver beyond its open.
func OpenRegular(dir *FD, name string, resolve uint64) (*RegularFile, error) {
	fd, err := OpenAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, resolve)
	if err != nil {
		return nil, err
	}
	node, err := fd.Stat()
	if err == nil && node.Type != change.Regular {
		err = fmt.Errorf("cannot read %s: it is a %s", name, node.Type)
	}
	if err != nil {
		fd.Close()
		return nil, err
	}
	return &RegularFile{fd: fd, node: node}, nil
}

// OpenFile opens a regular file by any path, through symlinks, for what a person
// named: a FIFO or a device of that name neither blocks nor is woken, but is refused.
func OpenFile(name string) (*os.File, error) {
	var f *os.File
	err := patiently(func() (err error) {
		f, err = os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("it is no file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Size is the file's size in bytes when it was opened.
func (f *RegularFile) Size() int64 { return f.node.Size }

// ReadAt reads at an offset: io.ReaderAt.
func (f *RegularFile) ReadAt(b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) {
		var n int
		err := retry("pread", f.fd.name, func() (err error) {
			n, err = unix.Pread(f.fd.n, b[done:], off+int64(done))
			return err
		})
		runtime.KeepAlive(f)
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// Close closes the file.
func (f *RegularFile) Close() error { return f.fd.Close() }

// LstatPath describes the object at a path below dir that goes through no
// symlink; a final symlink is described itself, with its target.
func LstatPath(dir *FD, name string) (*change.Node, error) {
	fd, err := OpenAt(dir, name, unix.O_PATH|unix.O_NOFOLLOW, ResolveBeneath|ResolveNoSymlinks)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	node, err := fd.Stat()
	if err == nil && node.Type == change.Symlink {
		node.Target, err = Readlink(fd, "")
	}
	return node, err
}
