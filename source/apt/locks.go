package apt

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// lockFiles are those that apt and dpkg take, in the order in which apt does.
var lockFiles = []string{
	"/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock",
}

// Locks are the package manager's locks, held.
type Locks struct{ held []*sys.FD }

// Lock takes the locks of the package manager; locate opens the file system of a
// path, and names the path in it; create makes those that are missing, which nobody
// holds (a plan changes nothing). The error is change.ErrLocked, and names the holder, where
// another process has one. Where they cannot be written to (a plan for a root
// that is read-only) nobody else can have them either, and none is taken.
func Lock(locate func(path string) (*sys.FD, string), create bool) (_ *Locks, err error) {
	l := &Locks{}
	defer func() {
		if err != nil {
			l.Release()
		}
	}()
	for _, name := range lockFiles {
		dir, rel := locate(name)
		f, err := sys.OpenLockFile(dir, rel, create)
		if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrNotExist) {
			continue // no folder for it: its part of apt was never used
		}
		if err != nil {
			return nil, fmt.Errorf("cannot open the package manager's lock %s: %w", name, err)
		}
		l.held = append(l.held, f)
		holder, err := sys.LockRecord(f)
		if err != nil {
			return nil, fmt.Errorf("cannot take the package manager's lock %s: %w", name, err)
		}
		if holder != 0 {
			return nil, change.WithHint(fmt.Errorf("%w: %s holds %s", change.ErrLocked, describe(holder), name),
				"wait until it ends, then run the same command again")
		}
	}
	return l, nil
}

func describe(pid int) string {
	if pid < 0 {
		return "a process that cannot be named"
	}
	comm, unit := sys.Describe(pid)
	text := fmt.Sprintf("process %d", pid)
	if comm != "" {
		text = fmt.Sprintf("%s (process %d)", comm, pid)
	}
	if unit != "" {
		text += " of " + unit
	}
	return text
}

// Yield gives back all but the frontend's, for a dpkg of our own.
func (l *Locks) Yield() {
	if l == nil || len(l.held) == 0 {
		return
	}
	for _, f := range l.held[1:] {
		f.Close()
	}
	l.held = l.held[:1]
}

// Release gives the locks back.
func (l *Locks) Release() {
	if l == nil {
		return
	}
	for _, f := range l.held {
		f.Close()
	}
	l.held = nil
}
