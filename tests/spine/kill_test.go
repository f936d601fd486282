package spine

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// many is how many files the updates of these tests exchange: enough for a
// commit that takes some tens of milliseconds.
const many = 4000

func manyFiles(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	dir := filepath.Join(root, "usr/share/many")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for i := range many {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), fmt.Appendf(nil, "old %d\n", i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func manyUpdate(t *testing.T) *fixture.Tree {
	up := fixture.NewTree(t, "bookworm").Replace(fixture.PyappModule, "hello 1", "hello 2").
		Replace(fixture.BystanderUnit, "[Service]\n", "[Service]\nExecStartPre=/usr/bin/sleep 1\n")
	for i := range many {
		up.File(fmt.Sprintf("usr/share/many/%d", i), fmt.Sprintf("new %d\n", i), 0o644)
	}
	return up
}

// newTree is the tree after an update. The folders in which names moved have the
// time of the commit, which no two runs share.
func newTree(t *testing.T, m *machine.Machine) machine.Snapshot {
	t.Helper()
	s := treeOf(t, m)
	for _, folder := range []string{"usr/lib/pyapp", "usr/lib/systemd/system", "usr/share/many"} {
		s[folder] = regexp.MustCompile(` mtime=\S+`).ReplaceAllString(s[folder], "")
	}
	return s
}

// Killed in any phase, the machine ends with exactly the old tree or exactly
// the new one, its units run, and nobody can write to the root.
func TestKill(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{ReadOnly: true, Customize: manyFiles, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed")
	plain := manyUpdate(t).CopyTo(m, "/run/update")
	checked := slowCheck(manyUpdate(t), "30").CopyTo(m, "/run/checked")
	old := treeOf(t, m)
	apply(t, m, plain).Want(t, 0)
	fresh := newTree(t, m)
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	same(t, "after the rollback", old, treeOf(t, m))
	prober := m.Probe("/", "/usr/share/many")

	exists := func(r *running, name string) bool {
		dir := r.transaction()
		if dir == "" {
			return false
		}
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
	in := func(state string) func(r *running) bool {
		return func(r *running) bool { return r.state() == state }
	}
	tests := []struct {
		name   string
		update string
		when   func(r *running) bool
		tree   string // old, new, "" for either
	}{
		{"staging", plain, func(r *running) bool { return r.transaction() != "" }, "old"},
		{"staged files", plain, func(r *running) bool { return exists(r, "up/usr/share/many") }, "old"},
		{"checking", checked, func(*running) bool { return inCheck(m, "30") }, "old"},
		{"before the commit", plain, func(r *running) bool { return exists(r, "journal") }, ""},
		{"committing", plain, in("committing"), "new"},
		{"swapped", plain, func(r *running) bool { s := r.state(); return s == "swapped" || s == "restarting" }, "new"},
		{"restarting", plain, func(*running) bool { return len(program(m, "sleep", "1")) > 0 }, "new"},
		{"verified", plain, in("verified"), "new"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			units := m.Units()
			r := start(t, m, append([]string{"apply", "--yes", "--json"}, source(tt.update)...)...)
			workers := r.workers()
			r.await(tt.name, func() bool { return tt.when(r) })
			kill(t, workers...)
			found := r.state()
			got := r.wait()
			settled(t, m)
			t.Logf("killed in %q, found %q; exit code %d: %s", tt.name, found, got.Code, got.Stderr)
			readOnlyNow(t, m)
			tree := treeOf(t, m)
			isNew := len(old.Diff(tree)) > 0
			if isNew {
				same(t, "killed", fresh, newTree(t, m))
			}
			if tt.tree != "" && isNew != (tt.tree == "new") {
				t.Errorf("the tree is new: %v; want the %s one", isNew, tt.tree)
			}
			if want := map[bool]int{false: 1, true: 0}[isNew]; got.Code != want {
				t.Errorf("exit code %d; want %d: the tree is new: %v\n%s", got.Code, want, isNew, got.Stdout)
			}
			unharmed(t, m, units, "pyapp.service", "follower.service", "bystander.service")
			greeting := map[bool]string{false: "hello 1", true: "hello 2"}[isNew]
			if got := fixture.Greeting(m); got != greeting {
				t.Errorf("pyapp says %q; want %q", got, greeting)
			}
			now := m.Units()
			for range 2 {
				if out := fixture.In(t, m, "recover").Want(t, 0); out.Report.Result != "nothing-to-do" {
					t.Errorf("recover once more: %+v", out.Report)
				}
			}
			same(t, "after further recoveries", tree, treeOf(t, m))
			readOnlyNow(t, m)
			unharmed(t, m, now)
			if !isNew {
				nothingStaged(t, r)
				apply(t, m, plain).Want(t, 0)
				same(t, "after the next apply", fresh, newTree(t, m))
			}
			fixture.In(t, m, "verify").Want(t, 0)
			if check := fixture.In(t, m, "check").Want(t, 0); len(check.Check.Units) > 0 {
				t.Errorf("check finds %+v", check.Check.Units)
			}
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			same(t, "after the rollback", old, treeOf(t, m))
			readOnlyNow(t, m)
		})
	}

	for _, state := range []string{"rolling-back", "rolled-back"} {
		t.Run("a rollback, "+state, func(t *testing.T) {
			units := m.Units()
			apply(t, m, plain).Want(t, 0)
			r := start(t, m, "rollback", "--yes")
			workers := r.workers()
			r.await(state, func() bool { return machine.State(m.Image()) == state })
			kill(t, workers...)
			got := r.wait()
			settled(t, m)
			if got.Code != 0 {
				t.Errorf("exit code %d of a rollback that the recovery finished: %s", got.Code, got.Stderr)
			}
			same(t, "killed", old, treeOf(t, m))
			readOnlyNow(t, m)
			unharmed(t, m, units, "pyapp.service", "follower.service", "bystander.service")
			if got := fixture.Greeting(m); got != "hello 1" {
				t.Errorf("pyapp says %q", got)
			}
			if check := fixture.In(t, m, "check").Want(t, 0); len(check.Check.Units) > 0 || check.Check.HostAction != change.ActionNone {
				t.Errorf("check finds %+v", check.Check)
			}
			if out := fixture.In(t, m, "recover").Want(t, 0); out.Report.Result != "nothing-to-do" {
				t.Errorf("recover once more: %+v", out.Report)
			}
		})
	}

	// A caller that dies has agreed: the run goes on without it.
	for _, phase := range []struct {
		name   string
		update string
		when   func(r *running) bool
	}{
		{"staging", plain, func(r *running) bool { return r.transaction() != "" }},
		{"committing", plain, in("committing")},
		{"restarting", plain, in("restarting")},
	} {
		t.Run("the caller, "+phase.name, func(t *testing.T) {
			r := start(t, m, append([]string{"apply", "--yes"}, source(phase.update)...)...)
			r.workers()
			caller := r.caller()
			r.await(phase.name, func() bool { return phase.when(r) })
			kill(t, caller)
			if got := r.wait(); got.Code != 128+int(syscall.SIGKILL) && got.Code != -1 {
				t.Errorf("the caller ended with %d: %s", got.Code, got.Stderr)
			}
			settled(t, m)
			same(t, "without its caller", fresh, newTree(t, m))
			readOnlyNow(t, m)
			if got := fixture.Greeting(m); got != "hello 2" {
				t.Errorf("pyapp says %q", got)
			}
			if list := m.Run("liveupd", "history").Stdout; !strings.Contains(list, "verified") {
				t.Errorf("the history is %s", list)
			}
			fixture.In(t, m, "verify").Want(t, 0)
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			same(t, "after the rollback", old, treeOf(t, m))
		})
	}
	if refused, violations := prober.Stop(); refused == 0 || len(violations) > 0 {
		t.Errorf("writing from outside was refused %d times and allowed: %v", refused, violations)
	}
}
