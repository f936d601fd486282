package sandbox

import (
	"os"
	"path/filepath"
)

// groupPattern is how the runner names control groups, where systemd makes none for it.
const groupPattern = "liveupd-[0-9a-f]*-[0-9]"

// sweepGroups removes the control groups that killed runners left. One with processes in it
// belongs to a sandbox that runs, and the kernel keeps it.
func sweepGroups() {
	const root = "/sys/fs/cgroup"
	for _, level := range []string{"*", "*/*", "*/*/*"} {
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
