package spine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

const extraUnit = "[Unit]\nDescription=Another service\n\n[Service]\nExecStart=/usr/bin/sleep infinity\n"

// ownedUnits is a folder of units that an update's manifest can own wholly.
const ownedUnits = "usr/local/lib/systemd/system"

func unitToRemove(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, ownedUnits), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, ownedUnits, "owned.service"), []byte(extraUnit), 0o644); err != nil {
		return err
	}
	return os.Symlink("/"+ownedUnits+"/owned.service", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/owned.service"))
}

// What a change on disk interrupts, and that the way back interrupts no more.
func TestCases(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{ReadOnly: true, Customize: unitToRemove, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed")
	tests := []struct {
		name    string
		update  func(*fixture.Tree)
		host    change.Action
		units   map[string]string // action by unit, as planned
		started []string
	}{
		{"the same bytes with a new time", func(u *fixture.Tree) {
			u.Keep(fixture.PyappModule, fixture.GuardedMain, fixture.EnvappConf)
		}, change.ActionNone, nil, nil},
		{"only the mode", func(u *fixture.Tree) {
			u.File(fixture.GuardedMain, "import threading\n\nthreading.Event().wait()\n", 0o755)
		}, change.ActionNone, nil, nil},
		{"a module that is imported, and who needs its service", func(u *fixture.Tree) {
			u.Replace(fixture.PyappModule, "hello 1", "hello 2")
		}, change.ActionNone, map[string]string{"pyapp.service": "restart", "follower.service": "restart"}, nil},
		{"a module that nobody imports", func(u *fixture.Tree) {
			u.File("usr/lib/pyapp/unused.py", "x = 1\n", 0o644)
		}, change.ActionNone, nil, nil},
		{"a service with PrivateTmp", func(u *fixture.Tree) {
			u.Append(fixture.GuardedMain, "# changed\n")
		}, change.ActionNone, map[string]string{"guarded.service": "restart"}, nil},
		{"an environment file", func(u *fixture.Tree) {
			u.Replace(fixture.EnvappConf, "green", "red")
		}, change.ActionNone, map[string]string{"envapp.service": "restart"}, nil},
		{"the script of a service", func(u *fixture.Tree) {
			u.Append(fixture.FollowerScript, "# changed\n")
		}, change.ActionNone, map[string]string{"follower.service": "restart"}, nil},
		{"a description", func(u *fixture.Tree) {
			u.Replace(fixture.PyappUnit, "Description=A Python service", "Description=Another")
		}, change.ActionDaemonReload, nil, nil},
		{"a timer", func(u *fixture.Tree) {
			u.Replace(fixture.HeartbeatTimer, "hourly", "daily")
		}, change.ActionDaemonReload, nil, nil},
		{"a masked unit", func(u *fixture.Tree) {
			u.Symlink("etc/systemd/system/bystander.service", "/dev/null")
		}, change.ActionDaemonReload, map[string]string{"bystander.service": "stop"}, nil},
		{"a drop-in", func(u *fixture.Tree) {
			u.File("etc/systemd/system/bystander.service.d/new.conf", "[Service]\nEnvironment=NEW=1\n", 0o644)
		}, change.ActionDaemonReload, map[string]string{"bystander.service": "restart"}, nil},
		{"a newly enabled unit", func(u *fixture.Tree) {
			u.File("usr/lib/systemd/system/extra.service", extraUnit, 0o644).
				Symlink("etc/systemd/system/multi-user.target.wants/extra.service", "/usr/lib/systemd/system/extra.service")
		}, change.ActionDaemonReload, map[string]string{"extra.service": "start"}, []string{"extra.service"}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := fixture.NewTree(t, "bookworm")
			tt.update(up)
			before, units := treeOf(t, m), m.Units()
			applied := apply(t, m, up.CopyTo(m, fmt.Sprintf("/run/update%d", i))).Want(t, 0)
			if diff := cmp.Diff(orEmpty(tt.units), applied.Actions()); diff != "" {
				t.Errorf("the plan (-want +got):\n%s", diff)
			}
			if applied.Plan.HostAction != tt.host {
				t.Errorf("the host's action is %v; want %v", applied.Plan.HostAction, tt.host)
			}
			reasons(t, applied.Plan)
			after := m.Units()
			if got := machine.Interrupted(units, after); !equalSets(got, restarts(applied.Plan)) {
				t.Errorf("interrupted were %v; the plan said %v", got, restarts(applied.Plan))
			}
			if got := machine.Started(units, after); !equalSets(got, tt.started) {
				t.Errorf("started were %v; want %v", got, tt.started)
			}
			for unit, action := range tt.units {
				if active := after[unit].ActiveState == "active"; active != (action != "stop") {
					t.Errorf("%s is %s after its %s", unit, after[unit].ActiveState, action)
				}
			}
			if !applied.Plan.Empty() {
				fixture.In(t, m, "verify").Want(t, 0)
				readOnlyNow(t, m)
				rolled := fixture.In(t, m, "rollback", "--yes").Want(t, 0)
				if got := machine.Interrupted(after, m.Units()); !equalSets(got, restarts(rolled.Plan)) {
					t.Errorf("the rollback interrupted %v; its plan said %v", got, restarts(rolled.Plan))
				}
			}
			same(t, "after the rollback", before, treeOf(t, m))
			back := m.Units()
			for name, u := range units {
				if u.ActiveState == "active" && back[name].ActiveState != "active" {
					t.Errorf("%s is %s after the rollback", name, back[name].ActiveState)
				}
			}
			if extra := machine.Started(units, back); len(extra) > 0 {
				t.Errorf("%v run after the rollback", extra)
			}
			if fixture.Greeting(m) != "hello 1" {
				t.Error("pyapp does not greet as before")
			}
			readOnlyNow(t, m)
		})
	}

	t.Run("a removed unit", func(t *testing.T) {
		before, units := treeOf(t, m), m.Units()
		up := fixture.NewTree(t, "bookworm").File("liveupd.toml", "name = \"units\"\nowns = [\"/"+ownedUnits+"\"]\n", 0o644).
			File(ownedUnits+"/other.service", extraUnit, 0o644)
		applied := apply(t, m, up.CopyTo(m, "/run/removal")).Want(t, 0)
		if diff := cmp.Diff(map[string]string{"owned.service": "stop"}, applied.Actions()); diff != "" {
			t.Errorf("the plan (-want +got):\n%s", diff)
		}
		after := m.Units()
		if got := machine.Interrupted(units, after); !slices.Equal(got, []string{"owned.service"}) {
			t.Errorf("interrupted were %v; want owned.service", got)
		}
		fixture.In(t, m, "verify").Want(t, 0)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		same(t, "after the rollback", before, treeOf(t, m))
		if got := machine.Started(after, m.Units()); !slices.Equal(got, []string{"owned.service"}) {
			t.Errorf("the rollback started %v; want owned.service", got)
		}
	})

	t.Run("what presets enable", func(t *testing.T) { presetUnits(t, m) })

	// A process of a session keeps a file that no name leads to any more: the
	// kernel cannot turn the file system read-only, and who it is, is told.
	t.Run("a holder", func(t *testing.T) {
		hold := m.Shell("sh -c 'exec 3</etc/envapp.conf; exec sleep 600' >/dev/null 2>&1 & echo $!")
		defer m.Run("kill", hold)
		var last *fixture.Output
		for i := range 4 {
			up := fixture.NewTree(t, "bookworm").Replace(fixture.EnvappConf, "green", fmt.Sprint("colour", i))
			last = apply(t, m, up.CopyTo(m, fmt.Sprintf("/run/held%d", i))).Want(t, 0)
		}
		if !slices.ContainsFunc(last.Report.Warnings, func(w string) bool { return strings.Contains(w, "sleep ("+hold+")") }) {
			t.Errorf("the warnings %q do not name the holder, %s", last.Report.Warnings, hold)
		}
		if r := m.Run("touch", "/etc/written"); !strings.Contains(r.Stderr, "Read-only") {
			t.Errorf("writing to the root: %d %s", r.Code, r.Stderr)
		}
		m.Shell("kill " + hold)
		if out := fixture.In(t, m, "recover").Want(t, 0); out.Report.Result != "done" {
			t.Errorf("recover: %+v; want that it put the file system back", out.Report)
		}
		readOnlyNow(t, m)
	})
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
