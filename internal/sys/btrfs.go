package sys

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of linux/btrfs.h that x/sys does not have.
const (
	btrfsIocSubvolGetFlags = 0x80089419 // _IOR(0x94, 25, __u64)
	btrfsIocSnapCreateV2   = 0x50009417 // _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
	btrfsIocSnapDestroy    = 0x5000940f // _IOW(0x94, 15, struct btrfs_ioctl_vol_args)

	btrfsSubvolReadOnly = 1 << 1

	btrfsArgsSize   = 4096 // of both vol_args
	btrfsArgsFlags  = 16   // vol_args_v2: fd, transid, flags
	btrfsArgsNameV2 = 56
	btrfsMaxName    = 255 // BTRFS_VOL_NAME_MAX
)

// SubvolumeReadOnly tells whether dir is the root of a btrfs subvolume that has the
// property ro=true. A mount's read-only flag is another matter, and the kernel does
// not say it of a folder in a subvolume.
func SubvolumeReadOnly(dir *FD) (bool, error) {
	var flags uint64
	defer runtime.KeepAlive(dir)
	if root, err := IsSubvolumeRoot(dir); err != nil || !root {
		return false, err
	}
	if err := ioctl(dir, btrfsIocSubvolGetFlags, unsafe.Pointer(&flags)); err != nil {
		return false, err
	}
	return flags&btrfsSubvolReadOnly != 0, nil
}

// Snapshot makes a read-only snapshot of the btrfs subvolume whose root is
// subvol, as name in dir: BTRFS_IOC_SNAP_CREATE_V2. It writes out the subvolume's
// delayed data and is part of the file system's next commit: Fsync of dir or
// Syncfs makes it durable. Subvolumes that lie inside it are empty folders there.
func (k *Kernel) Snapshot(subvol, dir *FD, name string) error {
	args, err := btrfsArgs(name, btrfsArgsNameV2)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(subvol)
	defer runtime.KeepAlive(dir)
	binary.NativeEndian.PutUint64(args[:], uint64(subvol.n))
	binary.NativeEndian.PutUint64(args[btrfsArgsFlags:], btrfsSubvolReadOnly)
	return k.do(Call{Name: "ioctl BTRFS_IOC_SNAP_CREATE_V2", Path: subvol.name, To: name}, func() error {
		return ioctl(dir, btrfsIocSnapCreateV2, unsafe.Pointer(args))
	})
}

// RemoveSubvolume removes the subvolume name in dir with all that it holds:
// BTRFS_IOC_SNAP_DESTROY. What shares its blocks stays; the space comes back
// later, by the kernel's cleaner.
func (k *Kernel) RemoveSubvolume(dir *FD, name string) error {
	args, err := btrfsArgs(name, 8)
	if err != nil {
		return err
	}
	defer runtime.KeepAlive(dir)
	return k.do(Call{Name: "ioctl BTRFS_IOC_SNAP_DESTROY", Path: name}, func() error {
		return ioctl(dir, btrfsIocSnapDestroy, unsafe.Pointer(args))
	})
}

func btrfsArgs(name string, at int) (*[btrfsArgsSize]byte, error) {
	if len(name) == 0 || len(name) > btrfsMaxName {
		return nil, fmt.Errorf("cannot name a subvolume %q: want 1 to %d bytes", name, btrfsMaxName)
	}
	args := new([btrfsArgsSize]byte)
	copy(args[at:], name)
	return args, nil
}

// OnBtrfs tells whether dir lies on btrfs.
func OnBtrfs(dir *FD) (bool, error) {
	st, err := fstatfs(dir)
	runtime.KeepAlive(dir)
	return int64(st.Type) == unix.BTRFS_SUPER_MAGIC, err
}
