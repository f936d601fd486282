package sandbox

import (
	"os"
	"path/filepath"

	"github.com/liveupd/liveupd/internal/sys"
)

// groupRoot is where control groups are.
const groupRoot = "/sys/fs/cgroup"

// groupPattern is how the runner names control groups, where systemd makes none for it.
const groupPattern = "liveupd-[0-9a-f]*-[0-9]"

// groups keeps the sweeper away while a run may have a control group that no process is in
// yet: each run holds a shared lock on the hierarchy's root, which all of this kernel's
// runs see, and the sweeper an exclusive one. A killed run's ends with it.
type groups struct{ lock *sys.FD }

// holdGroups is called before a runner is started. Where there are no control groups, or
// they cannot be locked, nobody sweeps.
func holdGroups(root string) *groups {
	fd, err := sys.OpenRoot(root)
	if err != nil {
		return &groups{}
	}
	if err := sys.LockShared(fd); err != nil {
		fd.Close()
		return &groups{}
	}
	return &groups{fd}
}

// release gives the lock back, and where no other run is under way removes the control
// groups that killed runners left: the last of several runs does.
func (g *groups) release() {
	if g.lock == nil {
		return
	}
	defer g.lock.Close()
	// The shared lock is given up first, as flock(2) has it: of several that end together the
	// last finds none other.
	if free, err := sys.TryLock(g.lock); err == nil && free {
		sweepGroups(g.lock.Name())
	}
}

// sweepGroups removes control groups that nobody uses. One with processes in it belongs to
// what a killed runner started and the kernel is about to end: it stays for the next.
func sweepGroups(root string) {
	for _, level := range []string{"", "*", "*/*", "*/*/*"} {
		groups, err := filepath.Glob(filepath.Join(root, level, groupPattern))
		if err != nil {
			return
		}
		for _, g := range groups {
			// Not os.RemoveAll: a group's files cannot be removed, and it goes with them.
			_ = os.Remove(g)
		}
	}
}
