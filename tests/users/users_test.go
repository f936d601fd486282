package users

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// kase is a change on disk and what it does to the services of alice and bob.
type kase struct {
	name   string
	update func(t *testing.T, u *fixture.Tree)
	host   change.Action
	want   map[string]string // action by unit
	steps  []string          // that users' managers carry out, in order
	slim   bool              // tried in the short form, too, and on the older release
}

// of gives both users' units an action; "alice" and "bob" before a name are one's alone.
func of(pairs ...string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		who, name, one := strings.Cut(pairs[i], ":")
		if !one {
			name = pairs[i]
		}
		if !one || who == "alice" {
			out[change.UnitKey(aliceManager, name)] = pairs[i+1]
		}
		if !one || who == "bob" {
			out[change.UnitKey(bobManager, name)] = pairs[i+1]
		}
	}
	return out
}

var cases = []kase{
	{
		"a module", func(_ *testing.T, u *fixture.Tree) { u.File(modulePart, "x = 2\n", 0o644) }, change.ActionNone,
		of("module.service", "restart", "desk.service", "defer"),
		[]string{"restart user@1000.service/module.service", "restart user@1001.service/module.service"},
		true,
	},
	{
		"what a script of her own sources", func(_ *testing.T, u *fixture.Tree) { u.File("usr/lib/module/common.sh", "greeting=hi\n", 0o644) }, change.ActionNone,
		of("alice:own.service", "restart"),
		[]string{"restart user@1000.service/own.service"},
		false,
	},
	{
		"a library that is mapped", func(t *testing.T, u *fixture.Tree) { u.File(pluginPath, rebuilt(t, plugin(t, "trixie")), 0o755) }, change.ActionNone,
		of("plugin.service", "restart"),
		[]string{"restart user@1000.service/plugin.service", "restart user@1001.service/plugin.service"},
		false,
	},
	{"a description", func(_ *testing.T, u *fixture.Tree) {
		u.File(units+"plain.service", strings.Replace(files[units+"plain.service"], "A service", "Another", 1), 0o644)
	}, change.ActionNone, of(), []string{"daemon-reload user@1000.service/systemd", "daemon-reload user@1001.service/systemd"}, false},
	{"ExecStart=", func(_ *testing.T, u *fixture.Tree) {
		u.File(units+"plain.service", strings.Replace(files[units+"plain.service"], "infinity", "100000", 1), 0o644)
	}, change.ActionNone, of("plain.service", "restart"), []string{
		"daemon-reload user@1000.service/systemd", "restart user@1000.service/plain.service",
		"daemon-reload user@1001.service/systemd", "restart user@1001.service/plain.service",
	}, true},
	{"a unit that alice has another of", func(_ *testing.T, u *fixture.Tree) {
		u.File(units+"hidden.service", strings.Replace(files[units+"hidden.service"], "infinity", "100000", 1), 0o644)
	}, change.ActionNone, of("bob:hidden.service", "restart"), []string{
		"daemon-reload user@1001.service/systemd", "restart user@1001.service/hidden.service",
	}, false},
	{"a drop-in with the user's own folders", func(_ *testing.T, u *fixture.Tree) {
		u.File("etc/systemd/user/own.service.d/new.conf", "[Service]\nEnvironment=AT=%h\n", 0o644)
	}, change.ActionNone, of("alice:own.service", "restart"), []string{
		"daemon-reload user@1000.service/systemd", "restart user@1000.service/own.service", "daemon-reload user@1001.service/systemd",
	}, false},
	{
		"a unit that is masked", func(_ *testing.T, u *fixture.Tree) { u.Symlink("etc/systemd/user/plain.service", "/dev/null") }, change.ActionNone,
		of("plain.service", "stop"),
		[]string{
			"stop user@1000.service/plain.service", "stop user@1001.service/plain.service",
			"daemon-reload user@1000.service/systemd", "daemon-reload user@1001.service/systemd",
		},
		true,
	},
	{"a unit that is enabled for all", func(_ *testing.T, u *fixture.Tree) {
		u.File(units+"extra.service", unit("Another", "ExecStart=/usr/bin/sleep infinity"), 0o644).
			Symlink("etc/systemd/user/default.target.wants/extra.service", "/"+units+"extra.service")
	}, change.ActionNone, of("extra.service", "start"), []string{
		"daemon-reload user@1000.service/systemd", "start user@1000.service/extra.service",
		"daemon-reload user@1001.service/systemd", "start user@1001.service/extra.service",
	}, false},
}

// What a change on disk does to the services of two users, and its way back.
func TestCases(t *testing.T) {
	t.Parallel()
	long := os.Getenv("LIVEUPD_LONG") != ""
	for _, root := range []string{"trixie", "bookworm"} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			m := boot(t, root)
			for i, c := range cases {
				if c.slim || root == "trixie" && long {
					t.Run(c.name, func(t *testing.T) { try(t, m, root, i, c) })
				}
			}
			t.Run("the managers' own library", func(t *testing.T) { ownLibrary(t, m, root) })
			if root == "trixie" {
				more(t, m, root)
			}
		})
	}
}

func try(t *testing.T, m *machine.Machine, root string, i int, c kase) {
	up := fixture.NewTree(t, root)
	c.update(t, up)
	before, system := all(t, m), m.Units()
	applied := apply(t, m, up.CopyTo(m, fmt.Sprintf("/run/update%d", i))).Want(t, 0)
	if diff := cmp.Diff(c.want, applied.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	if applied.Plan.HostAction != c.host {
		t.Errorf("the host's action is %v; want %v", applied.Plan.HostAction, c.host)
	}
	if diff := cmp.Diff(c.steps, userSteps(applied)); diff != "" {
		t.Errorf("the steps (-want +got):\n%s", diff)
	}
	for _, res := range applied.Report.Steps {
		if res.Result != "done" {
			t.Errorf("%+v", res)
		}
	}
	for _, u := range applied.Plan.Units {
		if len(u.Reasons) == 0 {
			t.Errorf("%s of %s: %s without a reason", u.Unit, u.Manager, u.Action)
		}
	}
	after := all(t, m)
	hurt, started := split(c.want)
	if got := interrupted(before, after); !slices.Equal(got, hurt) {
		t.Errorf("interrupted were %v; want %v", got, hurt)
	}
	if got := interrupted(after, before); !slices.Equal(subtract(got, hurt), started) {
		t.Errorf("started were %v; want %v", got, started)
	}
	if got := machine.Interrupted(system, m.Units()); len(got) > 0 {
		t.Errorf("of the system's units %v were interrupted", got)
	}
	if warnings := applied.Report.Warnings; len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	if got := slices.Sorted(maps.Keys(all(t, m))); !slices.Equal(got, slices.Sorted(maps.Keys(before))) {
		t.Errorf("after the rollback %v run; want %v", got, slices.Sorted(maps.Keys(before)))
	}
}

// split sorts a plan's units into those that are interrupted and those that are started.
func split(actions map[string]string) (hurt, started []string) {
	for _, key := range slices.Sorted(maps.Keys(actions)) {
		switch actions[key] {
		case "restart", "stop":
			hurt = append(hurt, key)
		case "start":
			started = append(started, key)
		}
	}
	return hurt, started
}

// ownLibrary is what the managers themselves map: each executes itself anew, by its
// unit's reload or by a signal, and nothing of a user's is interrupted.
func ownLibrary(t *testing.T, m *machine.Machine, root string) {
	version := map[string]string{"trixie": "257", "bookworm": "252"}[root]
	lib := glob(t, root, "usr/lib/*/systemd/libsystemd-shared-"+version+".so")
	up := fixture.NewTree(t, root).File(lib, rebuilt(t, machine.CachedRoot(t, root)+"/"+lib), 0o644)
	before := all(t, m)
	applied := apply(t, m, up.CopyTo(m, "/run/library")).Want(t, 0)
	for _, manager := range []string{aliceManager, bobManager} {
		if got := applied.Actions()[manager]; got != "reload" {
			t.Errorf("the plan says %q for %s; want reload", got, manager)
		}
		if !slices.ContainsFunc(applied.Report.Steps, func(r change.StepResult) bool {
			return r.Step.Do == "reload" && r.Step.Target == manager && r.Result == "done"
		}) {
			t.Errorf("%s was not reloaded: %+v", manager, applied.Report.Steps)
		}
	}
	if got := interrupted(before, all(t, m)); len(got) > 0 {
		t.Errorf("interrupted were %v; want none", got)
	}
	for _, u := range fixture.In(t, m, "check").Want(t, 0).Check.Units {
		if strings.HasPrefix(u.Unit, "user@") {
			t.Errorf("check finds %s stale after it executed itself anew: %+v", u.Unit, u)
		}
	}
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	if got := interrupted(before, all(t, m)); len(got) > 0 {
		t.Errorf("after the rollback %v were interrupted; want none", got)
	}
}
