package sys

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and flags of linux/fs.h that x/sys does not have.
const (
	fsIocFSGetXattr = 0x801c581f // _IOR('X', 31, struct fsxattr)
	fsIocFSSetXattr = 0x401c5820 // _IOW('X', 32, struct fsxattr)

	fsXflagProjInherit = 0x200
)

// Project is the quota project of an object.
type Project struct {
	ID      uint32
	Inherit bool // of a folder: what is made in it, or moved into it, is of the same
}

// fsxattr is struct fsxattr.
type fsxattr struct {
	flags, extSize, extents, project, cowExtSize uint32
	_                                            [8]byte
}

// ProjectOf reads the project of an open file or folder (not O_PATH); the zero
// value where the file system knows none.
func ProjectOf(f *FD) (Project, error) {
	var x fsxattr
	defer runtime.KeepAlive(f)
	err := ioctl(f, fsIocFSGetXattr, unsafe.Pointer(&x))
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return Project{}, nil
	}
	return Project{ID: x.project, Inherit: x.flags&fsXflagProjInherit != 0}, err
}

// SetProject sets the project of an open file or folder and leaves its other
// flags alone.
func (k *Kernel) SetProject(f *FD, p Project) error {
	defer runtime.KeepAlive(f)
	return k.do(Call{Name: "ioctl FS_IOC_FSSETXATTR", Path: f.name}, func() error {
		var x fsxattr
		if err := ioctl(f, fsIocFSGetXattr, unsafe.Pointer(&x)); err != nil {
			return err
		}
		x.project = p.ID
		x.flags &^= fsXflagProjInherit
		if p.Inherit {
			x.flags |= fsXflagProjInherit
		}
		return ioctl(f, fsIocFSSetXattr, unsafe.Pointer(&x))
	})
}
