package sys

import (
	"encoding/binary"
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxHandle is the kernel's MAX_HANDLE_SZ: no file system's handle is longer.
const maxHandle = 128

// Handle reads the file handle of name below dir without following it; "" reads
// dir itself. The handle is inode number and generation in the file system's own
// words: unlike (st_dev, st_ino) it holds across reboots and is not given to
// another object once this one is gone. It is four bytes of type in big endian
// and the handle's bytes. "" with no error: the file system has no handles.
func Handle(dir *FD, name string) (string, error) {
	// struct file_handle: u32 bytes, s32 type, then the bytes.
	var buf [8 + maxHandle]byte
	var mountID int32
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return "", callError(Call{Name: "name_to_handle_at", Path: name}, err)
	}
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	err = retry("name_to_handle_at", name, func() error {
		binary.NativeEndian.PutUint32(buf[:], maxHandle)
		_, _, errno := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dir.n), uintptr(unsafe.Pointer(path)),
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&mountID)), uintptr(flags), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	runtime.KeepAlive(dir)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	n := binary.NativeEndian.Uint32(buf[:])
	out := make([]byte, 4+n)
	binary.BigEndian.PutUint32(out, binary.NativeEndian.Uint32(buf[4:]))
	copy(out[4:], buf[8:8+n])
	return string(out), nil
}
