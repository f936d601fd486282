package spine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// What happens to files behind liveupd's back, on a booted machine with a writable
// root: before a commit, after it, to what it installed and to what it keeps.
func TestDamageAndDrift(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Customize: fixture.Services, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed")
	first := fixture.NewTree(t, "bookworm").Replace(fixture.PyappModule, "hello 1", "hello 2").Append(fixture.EnvappConf, "# one\n").CopyTo(m, "/run/first")
	next := func(name string) *fixture.Tree {
		return fixture.NewTree(t, "bookworm").Replace(fixture.PyappModule, "hello 1", "hello 3").Append(fixture.EnvappConf, "# two "+name+"\n")
	}
	apply(t, m, first).Want(t, 0)
	fixture.In(t, m, "verify", "--full").Want(t, 0)

	t.Run("repair", func(t *testing.T) {
		m.Shell("echo '# mine' >>/" + fixture.EnvappConf)
		m.Shell("sed -i 's/hello 2/hello X/' /" + fixture.PyappModule + " && systemctl restart pyapp")
		if got := fixture.Greeting(m); got != "hello X" {
			t.Fatalf("pyapp says %q", got)
		}
		found := fixture.In(t, m, "verify").Want(t, 1)
		owners := map[string]string{}
		for _, d := range found.Damage {
			owners[d.Path] = d.Owner
		}
		if len(owners) != 2 || owners["/"+fixture.PyappModule] != "damage" || owners["/"+fixture.EnvappConf] != "machine" || found.Verify == nil || found.Verify.Damaged != 1 {
			t.Errorf("verify finds %v, %+v", owners, found.Verify)
		}
		broken, units := machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log"), m.Units()
		plan := fixture.In(t, m, "verify", "--repair", "--plan").Want(t, 0)
		if got := plan.Actions()["pyapp.service"]; got != "restart" {
			t.Errorf("the repair is to %s pyapp.service; want restart", got)
		}
		same(t, "after --plan", broken, machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log"))
		unharmed(t, m, units)
		done := fixture.In(t, m, "verify", "--repair", "--yes").Want(t, 0)
		if done.Plan.ID != plan.Plan.ID || done.Report == nil || done.Report.Result != "done" {
			t.Errorf("the repair: plan %s, announced %s, report %+v", done.Plan.ID, plan.Plan.ID, done.Report)
		}
		unharmed(t, m, units, "pyapp.service", "follower.service")
		if got := fixture.Greeting(m); got != "hello 2" {
			t.Errorf("after the repair pyapp says %q", got)
		}
		fixture.In(t, m, "verify", "--full").Want(t, 0)
		if conf := m.Shell("tail -n 1 /" + fixture.EnvappConf); conf != "# mine" {
			t.Errorf("the machine's own change is gone: %q", conf)
		}
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		if got := fixture.Greeting(m); got != "hello X" {
			t.Errorf("after the rollback of the repair pyapp says %q", got)
		}
		m.Shell("sed -i '/# mine/d' /" + fixture.EnvappConf)
		fixture.In(t, m, "verify", "--repair", "--yes").Want(t, 0)
	})

	// While the new tree is validated somebody changes what the plan rests on.
	for _, tt := range []struct {
		name, do, undo string
		want           []string // in the error
	}{
		{"an edit", "echo '# mine' >>/" + fixture.EnvappConf, "sed -i '/# mine/d' /" + fixture.EnvappConf, []string{"/" + fixture.EnvappConf}},
		{
			"a writer", "systemd-run --unit=writer sh -c 'exec 3>>/" + fixture.EnvappConf + "; exec sleep 1000' && until test $(cat /proc/$(systemctl show -P MainPID writer)/comm) = sleep; do sleep 0.1; done",
			"systemctl stop writer",
			[]string{"/" + fixture.EnvappConf, "sleep (process "},
		},
		{
			// Its mounts reach nobody else: they would follow the old file.
			"a service's bind mount", "systemd-run --unit=binder -p BindReadOnlyPaths=/" + fixture.EnvappConf + ":/run/bound sleep 1000",
			"systemctl stop binder",
			[]string{"/" + fixture.EnvappConf, "mount namespace"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := strings.ReplaceAll(tt.name, " ", "-")
			up := slowCheck(next(name), "12").CopyTo(m, "/run/"+name)
			units := m.Units()
			r := start(t, m, append([]string{"apply", "--yes", "--json"}, source(up)...)...)
			r.await("the check", func() bool { return inCheck(m, "12") })
			m.Shell(tt.do)
			out := fixture.Parse(t, r.wait()).Want(t, 1)
			for _, text := range tt.want {
				if !strings.Contains(out.Error, text) {
					t.Errorf("the error %q does not name %s", out.Error, text)
				}
			}
			m.Shell(tt.undo)
			unharmed(t, m, units)
			nothingStaged(t, r)
			if got := fixture.Greeting(m); got != "hello 2" {
				t.Errorf("pyapp says %q", got)
			}
		})
	}

	t.Run("rollback", func(t *testing.T) {
		apply(t, m, next("rollback").CopyTo(m, "/run/next")).Want(t, 0)
		id := newest(t, m)
		kept := filepath.Join(m.Path("/.liveupd/tx"), id, "up", fixture.PyappModule)
		rot(t, kept)
		tree := machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log")
		out := fixture.In(t, m, "rollback", "--yes").Want(t, 6)
		if !strings.Contains(out.Error, "/"+fixture.PyappModule) || !strings.Contains(out.Hint, "liveupd rollback --source tree:/run/first") {
			t.Errorf("the refusal is %q, with the hint %q", out.Error, out.Hint)
		}
		same(t, "after the refusal", tree, machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log"))
		m.Shell("echo '# mine' >>/" + fixture.EnvappConf)
		done := fixture.In(t, m, "rollback", "--yes", "--source", "tree:/run/first").Want(t, 0)
		for what, list := range map[string][]string{"plan": done.Plan.Warnings, "report": done.Report.Warnings} {
			if !slices.ContainsFunc(list, func(w string) bool { return strings.Contains(w, "/"+fixture.EnvappConf+".liveupd-saved") }) {
				t.Errorf("the %s does not tell of the edit: %q", what, list)
			}
		}
		if saved := m.Shell("tail -n 1 /" + fixture.EnvappConf + ".liveupd-saved"); saved != "# mine" {
			t.Errorf("kept beside: %q", saved)
		}
		if got := fixture.Greeting(m); got != "hello 2" {
			t.Errorf("pyapp says %q", got)
		}
	})
}

// newest is the machine's last transaction.
func newest(t *testing.T, m *machine.Machine) string {
	t.Helper()
	dirs := transactions(m)
	if len(dirs) == 0 {
		t.Fatal("there is no transaction")
	}
	slices.Sort(dirs)
	return filepath.Base(dirs[len(dirs)-1])
}

// rot changes one bit of a file, which keeps its size and its modification time; a
// second time changes it back.
func rot(t *testing.T, name string) {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}
