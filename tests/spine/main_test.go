// Package spine holds the black-box tests of the main path: plan, apply,
// verify and roll back an update on booted machines with a read-only root.
package spine

import (
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// boot boots a machine with a read-only root, Debian's services and our own.
func boot(t *testing.T, root string) *machine.Machine {
	t.Helper()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: root, ReadOnly: true, Customize: fixture.Services, Programs: machine.Programs(t)})
	// Failures of before are not failures of what is tested.
	m.Shell("systemctl reset-failed")
	return m
}

// treeOf is the state of the machine's root file system, without what is liveupd's own.
// The root folder itself gains .liveupd, and with it a link and a time.
func treeOf(t *testing.T, m *machine.Machine) machine.Snapshot {
	t.Helper()
	return machine.TakeSnapshot(t, m.Image(), ".liveupd")
}

func same(t *testing.T, what string, before, after machine.Snapshot) {
	t.Helper()
	diff := slices.DeleteFunc(before.Diff(after), func(line string) bool {
		return strings.HasPrefix(strings.TrimLeft(line, "+-~ "), ". ") || strings.HasPrefix(line, ".:")
	})
	if len(diff) > 0 {
		t.Errorf("%s: the tree is not what it was:\n%s", what, strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

// equalSets compares without order.
func equalSets(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// readOnlyNow fails where the root's file system did not go back to read-only.
func readOnlyNow(t *testing.T, m *machine.Machine) {
	t.Helper()
	out := m.Run("findmnt", "-no", "VFS-OPTIONS,FS-OPTIONS", "/")
	fields := strings.Fields(out.Stdout)
	if len(fields) != 2 || !slices.Contains(strings.Split(fields[0], ","), "ro") || !slices.Contains(strings.Split(fields[1], ","), "ro") {
		t.Errorf("mount and file system options of / are %q; want ro in both", out.Stdout)
	}
}
