package sys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenLockFile opens a lock file for LockRecord; create makes it where it is missing.
func OpenLockFile(dir *FD, name string, create bool) (*FD, error) {
	name = strings.TrimPrefix(name, "/")
	parent, err := OpenAt(dir, path.Dir(name), OpenPath|OpenDir, ResolveBeneath)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	base := path.Base(name)
	fd, err := OpenAt(parent, base, unix.O_RDWR|unix.O_NOFOLLOW, ResolveBeneath|ResolveNoSymlinks)
	if !create || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	var n int
	err = retry("openat", base, func() error {
		n, err = unix.Openat(parent.n, base, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o640)
		return err
	})
	runtime.KeepAlive(parent)
	if err != nil {
		return nil, err
	}
	return NewFD(n, base), nil
}

// LockRecord takes a write lock on a whole file in the way of fcntl(2), F_SETLK. It
// is the process's: it ends when any descriptor of the file is closed. Where another
// process has it the lock is not taken, and holder is that process; -1 where it
// has no number here.
func LockRecord(f *FD) (holder int, err error) {
	defer runtime.KeepAlive(f)
	for range 3 {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		err := unix.FcntlFlock(uintptr(f.n), unix.F_SETLK, &lock)
		if err == nil {
			return 0, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return 0, os.NewSyscallError("fcntl F_SETLK", err)
		}
		lock = unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(uintptr(f.n), unix.F_GETLK, &lock); err != nil {
			return 0, os.NewSyscallError("fcntl F_GETLK", err)
		}
		if lock.Type == unix.F_UNLCK {
			continue // it was given back in between
		}
		if lock.Pid <= 0 {
			return -1, nil
		}
		return int(lock.Pid), nil
	}
	return -1, nil
}

// Describe gives a process's name and the unit that it belongs to, as far as they
// can be told.
func Describe(pid int) (comm, unit string) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	if b, err := os.ReadFile(dir + "comm"); err == nil {
		comm = string(bytes.TrimSpace(b))
	}
	b, err := os.ReadFile(dir + "cgroup")
	if err != nil {
		return comm, ""
	}
	for part := range strings.SplitSeq(strings.TrimSpace(string(b)), "/") {
		part = strings.TrimSpace(part)
		if ext := path.Ext(part); ext == ".service" || ext == ".scope" {
			unit = part
		}
	}
	return comm, unit
}

// User is a process that has something of a folder open or mapped.
type User struct {
	Writer
	Unit string // "" where it is in none
}

// Users lists, of folders, those in which some process has a file open or mapped, and
// the processes, this one left out.
func Users(folders []string) map[string][]User {
	out := map[string][]User{}
	if len(folders) == 0 {
		return out
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return out
	}
	for _, p := range procs {
		pid := 0
		if _, err := fmt.Sscanf(p.Name(), "%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		for _, folder := range folders {
			if uses(pid, folder) {
				comm, unit := Describe(pid)
				out[folder] = append(out[folder], User{Writer{PID: pid, Comm: comm}, unit})
			}
		}
	}
	return out
}

func uses(pid int, folder string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		to, err := os.Readlink(dir + "/" + fd.Name())
		if err == nil && strings.HasPrefix(to, folder+"/") {
			return true
		}
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	return err == nil && bytes.Contains(maps, []byte(" "+folder+"/"))
}
