package machine

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// sweep removes the machines of test binaries that were killed: those whose lock
// is free. What it ends are processes in the machine's own cgroup, by their id.
func sweep(t testing.TB) {
	t.Helper()
	dirs, _ := filepath.Glob(filepath.Join(machinesDir(), "lu-*"))
	for _, dir := range dirs {
		lock, err := lockFile(filepath.Join(dir, "lock"))
		if err != nil {
			continue // it lives, or was swept by another
		}
		t.Logf("removes machine %s, which a killed test left", filepath.Base(dir))
		sweepOne(t, dir)
		lock.Close()
	}
}

func sweepOne(t testing.TB, dir string) {
	t.Helper()
	m := &Machine{Name: filepath.Base(dir), t: t, dir: dir}
	if unified, err := unifiedCgroup(); err == nil {
		if cgroup := filepath.Join(unified, m.Name); exists(cgroup) {
			m.cgroup = cgroup
			_ = eventually(func() error { return killCgroup(cgroup) })
		}
	}
	for _, at := range []string{"mnt", "var"} {
		if path := filepath.Join(dir, at); exists(path) {
			m.mounts = append(m.mounts, path)
		}
	}
	if out, err := command("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"); err == nil {
		for line := range strings.Lines(out) {
			if device, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(strings.TrimSpace(file), dir+"/") {
				m.devices = append(m.devices, device)
			}
		}
	}
	m.remove()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// killCgroup ends all processes below a cgroup and fails while one is left.
func killCgroup(dir string) error {
	for _, pid := range cgroupPIDs(dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if len(cgroupPIDs(dir)) > 0 {
		return os.ErrExist
	}
	return nil
}

// cgroupPIDs are the processes in a cgroup and all below it, as the host numbers them.
func cgroupPIDs(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil // a cgroup may go while it is read
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}
