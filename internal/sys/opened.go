package sys

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below want a descriptor that is open for reading or writing, not
// O_PATH. They name no path at all, which is what makes them cheap: whoever
// writes a hundred thousand files notices a look-up through /proc.

// Fchmod sets the permission, set-id and sticky bits of an open object.
func (k *Kernel) Fchmod(f *FD, mode uint32) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "fchmod", Path: f.name, Dir: f, On: true}, func() error { return unix.Fchmod(f.n, mode&0o7777) })
}

// Fsetxattr sets one extended attribute of an open object.
func (k *Kernel) Fsetxattr(f *FD, key string, val []byte) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "fsetxattr", Path: f.name, Dir: f, On: true, To: key}, func() error { return unix.Fsetxattr(f.n, key, val, 0) })
}

// Futimens sets the modification time of an open object, in nanoseconds since
// the epoch, and leaves the access time alone.
func (k *Kernel) Futimens(f *FD, mtimeNS int64) error {
	defer runtime.KeepAlive(f)
	sec := floorDiv(mtimeNS, 1e9)
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: mtimeNS - sec*1e9}}
	return k.do(Call{Name: "utimensat", Path: f.name, Dir: f, On: true}, func() error {
		// Without a path it is futimens(3); x/sys has no form for that.
		if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(f.n), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	})
}

// Ftruncate sets the size of an open regular file. What it gains is a hole.
func (k *Kernel) Ftruncate(f *FD, size int64) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "ftruncate", Path: f.name, Dir: f, On: true, Len: int(size)}, func() error { return unix.Ftruncate(f.n, size) })
}

// WriteAt writes all of b at an offset. What lies between the file's end and the
// offset becomes a hole.
func (k *Kernel) WriteAt(f *FD, b []byte, off int64) error {
	defer runtime.KeepAlive(f)
	for len(b) > 0 {
		c := Call{Name: "pwrite64", Path: f.name, Dir: f, On: true, Len: len(b)}
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
		n, err := unix.Pwrite(f.n, part, off)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return callError(c, err)
		}
		if n > 0 {
			b = b[n:]
			off += int64(n)
		}
	}
	return nil
}
