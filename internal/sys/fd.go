package sys

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// FD is an open file descriptor that its holder closes. Hold descriptors, not
// paths, across a check and its use.
type FD struct {
	n    int
	name string
}

// NewFD takes ownership of n.
func NewFD(n int, name string) *FD {
	fd := &FD{n: n, name: name}
	runtime.SetFinalizer(fd, (*FD).Close)
	return fd
}

// Int is the descriptor's number, valid until Close.
func (f *FD) Int() int { return f.n }

// Name is the path that the descriptor was opened with, for messages.
func (f *FD) Name() string { return f.name }

// ProcPath is the descriptor's magic link, for calls that take only paths.
func (f *FD) ProcPath() string { return "/proc/self/fd/" + strconv.Itoa(f.n) }

// Close closes the descriptor; closing twice is harmless.
func (f *FD) Close() error {
	if f == nil || f.n < 0 {
		return nil
	}
	n := f.n
	f.n = -1
	runtime.SetFinalizer(f, nil)
	if err := unix.Close(n); err != nil {
		return &os.PathError{Op: "close", Path: f.name, Err: err}
	}
	return nil
}

// Open flags that callers need without x/sys.
const (
	OpenRead   = unix.O_RDONLY
	OpenPath   = unix.O_PATH
	OpenDir    = unix.O_DIRECTORY
	OpenNoLink = unix.O_NOFOLLOW
)

// OpenRoot opens a directory by its path in the caller's mount namespace.
func OpenRoot(path string) (*FD, error) {
	var n int
	err := retry("open", path, func() (err error) {
		n, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return NewFD(n, path), nil
}

// Resolve flags of openat2(2).
const (
	ResolveBeneath    = unix.RESOLVE_BENEATH
	ResolveInRoot     = unix.RESOLVE_IN_ROOT
	ResolveNoSymlinks = unix.RESOLVE_NO_SYMLINKS
	ResolveNoXDev     = unix.RESOLVE_NO_XDEV
	ResolveNoMagic    = unix.RESOLVE_NO_MAGICLINKS
)

// OpenAt opens an existing object below dir for reading (flags without O_CREAT) by openat2(2):
// name is relative ("usr/lib/x", "." for dir itself) and cannot leave dir when resolve says so.
func OpenAt(dir *FD, name string, flags int, resolve uint64) (*FD, error) {
	var n int
	err := patiently(func() error {
		return retry("openat2", name, func() (err error) {
			n, err = unix.Openat2(dir.n, name, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve})
			return err
		})
	})
	runtime.KeepAlive(dir)
	if err != nil {
		return nil, err
	}
	return NewFD(n, name), nil
}

// leaseTime is longer than the kernel lets anyone keep a lease that another asks for:
// /proc/sys/fs/lease-break-time has 45 seconds.
const leaseTime = time.Minute

// patiently repeats an open that is refused for now: a client of this machine's NFS or
// SMB server holds a lease on the file, and has been asked for it (we open with
// O_NONBLOCK, for what is a FIFO by now), or a rename was in the way of openat2(2).
func patiently(open func() error) error {
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if err := open(); !errors.Is(err, unix.EAGAIN) || time.Since(began) > leaseTime {
			return err
		}
	}
}
