package machine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"
)

// Snapshot is all that a tree holds, one line for each path: type, mode, owner,
// modification time, size, content digest or link target, device numbers,
// extended attributes (capabilities, ACLs and labels among them), and which other
// paths are the same inode. Inode numbers, access and change times are left out.
type Snapshot map[string]string

// TakeSnapshot reads the tree at root without leaving its file system. Paths (below
// root, without a leading slash) that equal or lie below one of except are left
// out; ".liveupd" always is, and the root's own modification time, which its
// making changes.
func TakeSnapshot(t testing.TB, root string, except ...string) Snapshot {
	t.Helper()
	s, err := takeSnapshot(root, except)
	if err != nil {
		t.Fatalf("cannot read the tree %s: %v", root, err)
	}
	return s
}

type inode struct {
	path string
	stat syscall.Stat_t
}

func takeSnapshot(root string, except []string) (Snapshot, error) {
	top, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	device := top.Sys().(*syscall.Stat_t).Dev
	var all []inode
	names := map[uint64][]string{} // of inodes with several names
	err = filepath.WalkDir(root, func(full string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		if excluded(rel, except) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		stat := *info.Sys().(*syscall.Stat_t)
		if stat.Dev != device {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		all = append(all, inode{rel, stat})
		if !e.IsDir() && stat.Nlink > 1 {
			names[stat.Ino] = append(names[stat.Ino], rel)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	lines := make([]string, len(all))
	problems := make([]error, len(all))
	var wait sync.WaitGroup
	next := make(chan int)
	for range runtime.NumCPU() {
		wait.Go(func() {
			for i := range next {
				lines[i], problems[i] = describe(root, all[i], names[all[i].stat.Ino])
			}
		})
	}
	for i := range all {
		next <- i
	}
	close(next)
	wait.Wait()
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	s := Snapshot{}
	for i := range all {
		s[all[i].path] = lines[i]
	}
	return s, nil
}

func excluded(rel string, except []string) bool {
	under := func(dir string) bool { return rel == dir || strings.HasPrefix(rel, dir+"/") }
	return rel != "." && (path.Base(rel) == ".liveupd" || slices.ContainsFunc(except, under))
}

func describe(root string, n inode, links []string) (string, error) {
	full := filepath.Join(root, n.path)
	st := n.stat
	var b strings.Builder
	fmt.Fprintf(&b, "mode=%06o owner=%d:%d", st.Mode, st.Uid, st.Gid)
	if n.path != "." {
		fmt.Fprintf(&b, " mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		digest, err := fileDigest(full)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " size=%d sha256=%s", st.Size, digest)
	case syscall.S_IFLNK:
		target, err := os.Readlink(full)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, " target=%q", target)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		fmt.Fprintf(&b, " device=%#x", st.Rdev)
	}
	if len(links) > 0 {
		fmt.Fprintf(&b, " nlink=%d same=%q", st.Nlink, links)
	}
	attrs, err := xattrs(full)
	if err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		fmt.Fprintf(&b, " %s=%x", name, attrs[name])
	}
	return b.String(), nil
}

func fileDigest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// xattrs reads the extended attributes of any object, symlinks too, for which package
// syscall has no call.
func xattrs(name string) (map[string][]byte, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return nil, err
	}
	list := make([]byte, 64<<10)
	n, _, errno := syscall.Syscall(syscall.SYS_LLISTXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)))
	if errno == syscall.ENOTSUP {
		return nil, nil
	}
	if errno != 0 {
		return nil, &os.PathError{Op: "llistxattr", Path: name, Err: errno}
	}
	attrs := map[string][]byte{}
	for attr := range bytes.SplitSeq(list[:n], []byte{0}) {
		if len(attr) == 0 {
			continue
		}
		a, err := syscall.BytePtrFromString(string(attr))
		if err != nil {
			return nil, err
		}
		value := make([]byte, 64<<10)
		n, _, errno := syscall.Syscall6(syscall.SYS_LGETXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(a)),
			uintptr(unsafe.Pointer(&value[0])), uintptr(len(value)), 0, 0)
		if errno != 0 {
			return nil, &os.PathError{Op: "lgetxattr " + string(attr), Path: name, Err: errno}
		}
		attrs[string(attr)] = value[:n]
	}
	return attrs, nil
}

// Digest is one value for the whole tree.
func (s Snapshot) Digest() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(h, "%q %s\n", name, s[name])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Diff says how two trees differ, a line or two for each path; empty where they do not.
func (s Snapshot) Diff(other Snapshot) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		now, ok := other[name]
		switch {
		case !ok:
			out = append(out, "- "+name+" "+s[name])
		case now != s[name]:
			out = append(out, "- "+name+" "+s[name], "+ "+name+" "+now)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(other)) {
		if _, ok := s[name]; !ok {
			out = append(out, "+ "+name+" "+other[name])
		}
	}
	return out
}

// Paths names the paths in which two trees differ, sorted.
func (s Snapshot) Paths(other Snapshot) []string {
	var out []string
	for _, line := range s.Diff(other) {
		name, _, _ := strings.Cut(line[2:], " ")
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
