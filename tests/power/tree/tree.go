// Package tree lays the trees of the power suites and describes what is found of them. It is used on the
// host and inside the virtual machines, so it needs nothing but the standard library.
package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// Busy is the folder, below the root, in which another program writes all the while. No update reaches
// into /srv, and Describe passes it over.
const Busy = "srv/busy"

// Describe tells of each object of a root: content, owner, mode, times, extended attributes and links,
// a line for each path. .liveupd, Busy and lost+found are left out, and of the root folder itself its times: .liveupd
// is made in it.
func Describe(root string) (map[string]string, error) {
	out := map[string]string{}
	links := map[[2]uint64]string{}
	err := filepath.WalkDir(root, func(full string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		if rel == ".liveupd" || rel == Busy || rel == "lost+found" {
			return filepath.SkipDir
		}
		line, err := describe(full, rel, links)
		out[rel] = line
		return err
	})
	return out, err
}

func describe(full, rel string, links map[[2]uint64]string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(full, &st); err != nil {
		return "", fmt.Errorf("cannot look at %s: %w", full, err)
	}
	line := fmt.Sprintf("%06o %d:%d", st.Mode, st.Uid, st.Gid)
	if rel != "." && rel != filepath.Dir(Busy) {
		line += fmt.Sprintf(" mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		digest, err := digestFile(full)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" size=%d content=%s", st.Size, digest)
	case syscall.S_IFLNK:
		target, err := os.Readlink(full)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" target=%q", target)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		line += fmt.Sprintf(" device=%x", st.Rdev)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		key := [2]uint64{st.Dev, st.Ino}
		if _, ok := links[key]; !ok {
			links[key] = rel
		}
		line += fmt.Sprintf(" links=%d with=%s", st.Nlink, links[key])
	}
	attributes, err := xattrs(full)
	return line + attributes, err
}

func digestFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// xattrs lists the extended attributes of one object, of a symlink its own.
func xattrs(name string) (string, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return "", err
	}
	list := make([]byte, 4096)
	n, _, errno := syscall.Syscall(syscall.SYS_LLISTXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)))
	if errno != 0 {
		return "", fmt.Errorf("cannot list the attributes of %s: %w", name, errno)
	}
	var lines []string
	for key := range bytes.SplitSeq(list[:n], []byte{0}) {
		if len(key) == 0 {
			continue
		}
		k, err := syscall.BytePtrFromString(string(key))
		if err != nil {
			return "", err
		}
		value := make([]byte, 4096)
		n, _, errno := syscall.Syscall6(syscall.SYS_LGETXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(k)), uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)), 0, 0)
		if errno != 0 {
			return "", fmt.Errorf("cannot read the attribute %s of %s: %w", key, name, errno)
		}
		lines = append(lines, fmt.Sprintf(" %s=%x", key, value[:n]))
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// Digest sums a description up.
func Digest(description map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(description)) {
		fmt.Fprintf(h, "%q %s\n", name, description[name])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Differ lists at most ten paths that two descriptions tell differently of.
func Differ(want, got map[string]string) string {
	var lines []string
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if want[name] != got[name] {
			lines = append(lines, fmt.Sprintf("%q\n  want %s\n  got  %s", name, want[name], got[name]))
		}
	}
	if len(lines) > 10 {
		lines = append(lines[:10], fmt.Sprintf("and %d more", len(lines)-10))
	}
	return strings.Join(lines, "\n")
}

// Age gives each object of a tree a time of its own, folders after what they hold.
func Age(root string, from time.Time) error {
	var names []string
	err := filepath.WalkDir(root, func(full string, _ fs.DirEntry, err error) error {
		names = append(names, full)
		return err
	})
	if err != nil {
		return err
	}
	for i, name := range slices.Backward(names) {
		ns := from.UnixNano() + int64(i)*1_000_000_007
		if err := setTimes(name, syscall.NsecToTimespec(ns)); err != nil {
			return fmt.Errorf("cannot set the times of %s: %w", name, err)
		}
	}
	return nil
}

// setTimes sets the times of an object, of a symlink its own.
func setTimes(name string, ts syscall.Timespec) error {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return err
	}
	const (
		atFDCWD    = -100
		noFollow   = 0x100 // AT_SYMLINK_NOFOLLOW
		utimensat  = 280
		noArgument = 0
	)
	times := [2]syscall.Timespec{ts, ts}
	at := atFDCWD
	_, _, errno := syscall.Syscall6(utimensat, uintptr(at), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&times)), noFollow, noArgument, noArgument)
	if errno != 0 {
		return errno
	}
	return nil
}

// A mark is a write of MarkSize bytes to the last sectors of the disk, behind the file system: MarkMagic and a text that ends
// with a zero.
const (
	MarkSize  = 512
	MarkMagic = "liveupd mark: "
)
