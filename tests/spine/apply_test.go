package spine

import (
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// A new libssl, a changed unit and a changed nginx.conf on a booted machine:
// what the plan says is what happens, nobody else sees a thing before the
// commit or can ever write, and all of it goes back.
func TestApply(t *testing.T) {
	for _, root := range []string{"bookworm", "trixie"} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			m := boot(t, root)
			up := fixture.NewTree(t, root).
				Upgrade(fixture.LibSSL(root), "usr/lib/*/libssl.so.3", "usr/lib/*/libcrypto.so.3").
				Replace(fixture.EnvappUnit, "[Service]\n", "[Service]\nEnvironment=NEW=1\n").
				Append(fixture.NginxConf, "# changed\n")
			dir := up.CopyTo(m, "/run/update")
			args := []string{"--source", "tree:" + dir, "--allow-unsigned"}

			before, units := treeOf(t, m), m.Units()
			planned := fixture.In(t, m, append([]string{"apply", "--plan"}, args...)...).Want(t, 0)
			if planned.Plan == nil {
				t.Fatalf("no plan line in %s", planned.Stdout)
			}
			same(t, "after --plan", before, treeOf(t, m))
			if got := machine.Interrupted(units, m.Units()); len(got) > 0 {
				t.Errorf("--plan interrupted %v", got)
			}
			want := mapped(m, up)
			var restarts []string
			for unit, action := range planned.Actions() {
				if action == "restart" && strings.HasSuffix(unit, ".service") {
					restarts = append(restarts, unit)
				}
			}
			want = append(want, "envapp.service")
			if !equalSets(restarts, want) {
				t.Errorf("the plan restarts %v; want %v", restarts, want)
			}
			if got := planned.Actions()["nginx.service"]; got != "restart" {
				t.Errorf("nginx.service maps libssl and is to %s; want restart", got)
			}
			t.Logf("plan: %v, host %s; expected restarts: %v", planned.Actions(), planned.Plan.HostAction, want)
			reasons(t, planned.Plan)

			prober := m.Probe("/", "/usr/lib", "/etc")
			watcher := machine.Watch(t, m.Path("/"), []string{"etc", "usr/lib/systemd/system"}, up.Paths())
			applied := fixture.In(t, m, append([]string{"apply", "--yes", "--expect", planned.Plan.ID}, args...)...)
			refused, violations := prober.Stop()
			changes, committed := watcher.BeforeCommit()
			applied.Want(t, 0)
			if refused == 0 || len(violations) > 0 {
				t.Errorf("writing from outside was refused %d times and allowed: %v", refused, violations)
			}
			if !committed || len(changes) > 0 {
				t.Errorf("the watcher saw a commit: %v; changes before it: %v", committed, changes)
			}
			after := m.Units()
			if got := machine.Interrupted(units, after); !equalSets(got, restarts) {
				t.Errorf("interrupted were %v; the plan said %v", got, restarts)
			}
			if applied.Plan == nil || applied.Plan.ID != planned.Plan.ID {
				t.Error("apply printed another plan than --plan")
			}
			readOnlyNow(t, m)
			fixture.In(t, m, "verify").Want(t, 0)
			if check := fixture.In(t, m, "check").Want(t, 0); len(check.Check.Units) > 0 {
				t.Errorf("check finds %+v stale after the apply", check.Check.Units)
			}
			again := fixture.In(t, m, append([]string{"apply", "--plan", "--exit-code"}, args...)...).Want(t, 0)
			if !again.Plan.Empty() {
				t.Errorf("the same source again: %+v; want nothing to do", again.Plan.Changes)
			}

			rolled := fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			same(t, "after the rollback", before, treeOf(t, m))
			readOnlyNow(t, m)
			back := m.Units()
			for _, unit := range want {
				if u := back[unit]; u.ActiveState != "active" {
					t.Errorf("%s is %s after the rollback", unit, u.ActiveState)
				}
			}
			var inverse []string
			for unit, action := range rolled.Actions() {
				if action == "restart" && strings.HasSuffix(unit, ".service") {
					inverse = append(inverse, unit)
				}
			}
			if got := machine.Interrupted(after, back); !equalSets(got, inverse) {
				t.Errorf("the rollback interrupted %v; its plan said %v", got, inverse)
			}
		})
	}
}

// mapped are the services whose processes map a file that the update replaces.
func mapped(m *machine.Machine, up *fixture.Tree) []string {
	var out []string
	for name, u := range m.Units() {
		if !strings.HasSuffix(name, ".service") || u.MainPID == 0 {
			continue
		}
		for _, path := range up.Paths() {
			if !strings.Contains(path, ".so") {
				continue
			}
			if strings.Contains(m.Run("sh", "-c", "for p in $(cat /sys/fs/cgroup"+u.ControlGroup+"/cgroup.procs); do cat /proc/$p/maps; done").Stdout, path) {
				out = append(out, name)
				break
			}
		}
	}
	return out
}

// reasons: each action has one, and each names a path or a unit.
func reasons(t *testing.T, p *change.Plan) {
	t.Helper()
	for _, u := range p.Units {
		if len(u.Reasons) == 0 {
			t.Errorf("%s of %s has no reason", u.Action, u.Unit)
		}
		if i := slices.IndexFunc(u.Reasons, func(r change.Reason) bool { return r.Path == "" && r.Unit == "" }); i >= 0 {
			t.Errorf("%s of %s: the reason %+v names neither a path nor a unit", u.Action, u.Unit, u.Reasons[i])
		}
	}
}
