package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

// A control group that another run has made, and has no process in yet, is not taken for one
// that a killed runner left; what was left is removed by the last run that ends.
func TestGroupsOfOthers(t *testing.T) {
	for _, level := range []string{"", "memory", "a.slice", "a.slice/b.slice/c.service"} {
		root := t.TempDir()
		group := filepath.Join(root, level, "liveupd-0123456789ab-0")
		other := filepath.Join(root, level, "liveupd-other")
		for _, dir := range []string{group, other} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		first, second := holdGroups(root), holdGroups(root)
		first.release()
		if _, err := os.Stat(group); err != nil {
			t.Errorf("in %q: one run ended, and the other's group is gone: %v", level, err)
		}
		second.release()
		if _, err := os.Stat(group); err == nil {
			t.Errorf("in %q: the last run ended, and what a killed one left is there", level)
		}
		if _, err := os.Stat(other); err != nil {
			t.Errorf("in %q: a group of another name is gone: %v", level, err)
		}
	}
	none := holdGroups(filepath.Join(t.TempDir(), "none"))
	none.release()
}
