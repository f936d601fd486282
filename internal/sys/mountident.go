package sys

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's requests for a file system's UUID, each older than the next
// common one; none needs a privilege. x/sys has none of them.
const (
	fsIocGetFSUUID     = 0x80111500 // _IOR(0x15, 0, struct fsuuid2): Linux 6.9, most file systems
	ext4IocGetFSUUID   = 0x8008662c // _IOR('f', 44, struct fsuuid): Linux 6.0
	btrfsIocFSInfo     = 0x8400941f // _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)
	btrfsIocInoLookup  = 0xd0009412 // _IOWR(0x94, 18, struct btrfs_ioctl_ino_lookup_args)
	xfsIocFSGeometryV1 = 0x80705864 // _IOR('X', 100, struct xfs_fsop_geom_v1)

	ext4SuperUUID        = 1024 + 0x68 // byte offset in the block device
	btrfsFirstFreeObject = 256         // the inode number of a subvolume's root
)

// FileSystemID names the file system below dir so that it is found again after
// a reboot: its UUID in the usual form, and on btrfs ":SUBVOLID" behind it,
// because no object moves between subvolumes. dev is its block device as
// mountinfo has it, 0 where unknown. A file system without a UUID (tmpfs,
// overlay) gets "fsid:" and statfs's f_fsid, which holds until it is unmounted.
//
// All ways to the UUID give the same one, so that a new kernel finds what an
// old one wrote.
func FileSystemID(dir *FD, dev uint64) (string, error) {
	st, err := fstatfs(dir)
	if err != nil {
		return "", err
	}
	defer runtime.KeepAlive(dir)
	switch int64(st.Type) {
	case unix.BTRFS_SUPER_MAGIC:
		var info [1024]byte // max_id, num_devices, then fsid
		if err := ioctl(dir, btrfsIocFSInfo, unsafe.Pointer(&info)); err != nil {
			return "", err
		}
		subvol, err := Subvolume(dir)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s:%d", formatUUID(info[16:32]), subvol), nil
	case unix.XFS_SUPER_MAGIC:
		var geom [112]byte // eight 32-bit words, four 64-bit words, then uuid
		if err := ioctl(dir, xfsIocFSGeometryV1, unsafe.Pointer(&geom)); err != nil {
			return "", err
		}
		return formatUUID(geom[64:80]), nil
	}
	generic := [17]byte{} // length, uuid
	if ioctl(dir, fsIocGetFSUUID, unsafe.Pointer(&generic)) == nil && generic[0] == 16 {
		return formatUUID(generic[1:]), nil
	}
	if int64(st.Type) == unix.EXT4_SUPER_MAGIC {
		var ext [24]byte // length, flags, uuid
		binary.NativeEndian.PutUint32(ext[:], 16)
		if ioctl(dir, ext4IocGetFSUUID, unsafe.Pointer(&ext)) == nil {
			return formatUUID(ext[8:]), nil
		}
		if uuid, err := Ext4UUID(dev); err == nil {
			return uuid, nil
		}
	}
	return fmt.Sprintf("fsid:%08x%08x", uint32(st.Fsid.Val[0]), uint32(st.Fsid.Val[1])), nil
}

// Ext4UUID reads the superblock of an ext2, ext3 or ext4 from its block device,
// for Linux before 6.0. The UUID of a mounted one changes by tune2fs alone.
func Ext4UUID(dev uint64) (string, error) {
	// By its name: the links of /dev/block are udev's, and not in every initrd.
	event, err := os.ReadFile(sysDevBlock(dev) + "/uevent")
	if err != nil {
		return "", err
	}
	_, name, found := strings.Cut(string(event), "DEVNAME=")
	if !found {
		return "", fmt.Errorf("cannot read the superblock: block device %d:%d has no name", unix.Major(dev), unix.Minor(dev))
	}
	name, _, _ = strings.Cut(name, "\n")
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	uuid := make([]byte, 16)
	if _, err := f.ReadAt(uuid, ext4SuperUUID); err != nil {
		return "", fmt.Errorf("cannot read the superblock: %w", err)
	}
	return formatUUID(uuid), nil
}

// Subvolume is the number of the btrfs subvolume that dir lies in.
func Subvolume(dir *FD) (uint64, error) {
	var args [4096]byte // treeid (0: that of dir; filled in), objectid, name
	binary.NativeEndian.PutUint64(args[8:], btrfsFirstFreeObject)
	if err := ioctl(dir, btrfsIocInoLookup, unsafe.Pointer(&args)); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(args[:]), nil
}

// IsSubvolumeRoot tells whether dir, on btrfs, is the root of a subvolume.
func IsSubvolumeRoot(dir *FD) (bool, error) {
	n, err := dir.Stat()
	if err != nil {
		return false, err
	}
	return n.Ino == btrfsFirstFreeObject, nil
}

func ioctl(f *FD, req uintptr, arg unsafe.Pointer) error {
	return retry("ioctl", f.name, func() error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.n), req, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	})
}

func formatUUID(b []byte) string {
	s := hex.EncodeToString(b[:16])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
