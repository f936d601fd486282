package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// check is what the report says of one look at the units.
func check(o *fixture.Output, kind, unit string) change.HealthCheck {
	if o.Report != nil {
		for _, c := range o.Report.Health {
			if c.Check == kind && c.Unit == unit {
				return c
			}
		}
	}
	return change.HealthCheck{}
}

// An update after which a unit is not well is rolled back, and the unit runs as before.
func testHealth(t *testing.T, m *machine.Machine) {
	mode := func(text string) map[string]string { return map[string]string{"usr/lib/app/mode.py": text} }
	tests := []struct {
		name    string
		short   bool
		changed map[string]string
		before  string // done in the machine first
		after   string // and at the end
		kind    string
		want    string // what the report says; "" where it is well
		unwell  string // a command of the machine that succeeds in the end where nobody looks
	}{
		{
			"it ends three seconds after its start", true, mode("crash = 3\nport = 8077\n"), "", "", "restarts", "systemd",
			`[ "$(systemctl show -P NRestarts app.service)" -gt 0 ]`,
		},
		{"nothing listens any more", true, mode("crash = 0\nport = 0\n"), "", "", "listeners", "tcp 127.0.0.1:8077", "! ss -ltn | grep -q :8077"},
		{"it listens elsewhere", false, mode("crash = 0\nport = 8078\n"), "", "", "listeners", "tcp 127.0.0.1:8077", "! ss -ltn | grep -q :8077"},
		// Its negative control is the case after it.
		{"its own command fails", true, mode("crash = 0\nport = 8077\n# 2\n"), "rm /run/well", "touch /run/well", "command", "exit status 1", ""},
		{"commands run as their units", false, map[string]string{"usr/lib/app/conf": "2\n"}, "", "[ $(sort /run/asked/names | xargs | tr ' ' ,) = root,www-data ]", "command", "", ""},
		{"it is well", false, mode("crash = 0\nport = 8077\n# 3\n"), "", "", "command", "", ""},
	}
	for _, tt := range tests {
		if !tt.short && !long() {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			if tt.before != "" {
				m.Shell(tt.before)
			}
			before := treeOf(t, m)
			dir := update(t, m, tt.changed)
			out := apply(t, m, dir)
			for _, c := range out.Report.Health {
				t.Logf("%+v", c)
			}
			if tt.after != "" {
				m.Shell(tt.after)
			}
			got := check(out, tt.kind, "app.service")
			if tt.want == "" {
				out.Want(t, 0)
				if got.Result != change.HealthOK {
					t.Errorf("the report says %+v", got)
				}
				rollback(t, m)
				sameTree(t, before, treeOf(t, m))
				return
			}
			out.Want(t, 3)
			if got.Result != change.HealthFailed || !strings.Contains(got.What+got.Detail, tt.want) || got.Deadline == 0 {
				t.Errorf("the report says %+v; want %q with a deadline", got, tt.want)
			}
			sameTree(t, before, treeOf(t, m))
			unharmed(t, m)
			if tt.unwell == "" || !long() {
				return
			}
			configure(t, m, healthOff)
			if out := apply(t, m, dir).Want(t, 0); check(out, tt.kind, "app.service").Check != "" {
				t.Errorf("the units are watched although they are not to be: %+v", out.Report.Health)
			}
			for deadline := time.Now().Add(30 * time.Second); m.Run("sh", "-c", tt.unwell).Code != 0; time.Sleep(200 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the unit is well without the look at its health: the update is no test of it")
				}
			}
			rollback(t, m)
		})
	}
}

// unharmed fails where the services do not run as they do at the beginning.
func unharmed(t *testing.T, m *machine.Machine) {
	t.Helper()
	for _, name := range []string{"app.service", "pyapp.service", "systemd-networkd.service", "nginx.service"} {
		if u := m.Unit(name); u.ActiveState != "active" || u.SubState != "running" {
			t.Errorf("%s is %s (%s)\n%s", name, u.ActiveState, u.SubState, m.Journal(name))
		}
	}
	if out := m.Run("python3", "-c", `import socket
for _ in range(50):
    try:
        socket.create_connection(("127.0.0.1", 8077), 1)
        break
    except OSError:
        import time; time.sleep(0.1)
else:
    raise SystemExit(1)`); out.Code != 0 {
		t.Errorf("app.service does not listen")
	}
}

// A restart has no tree to go back to: what is lost is brought back, and told as a failure.
func testRestart(t *testing.T, m *machine.Machine) {
	const mode = "/usr/lib/app/mode.py"
	m.Shell(`sleep 1; echo 'import subprocess; subprocess.run(["ip", "link", "set", "uplink0", "down"])' >>` + mode)
	out := fixture.In(t, m, "restart", "--yes")
	if out.Code != 1 || !strings.Contains(out.Report.Error, "default route via 10.77.0.1 dev uplink0 was lost after restart of app.service") {
		t.Errorf("exit code %d: %s", out.Code, out.Stdout)
	}
	if f := result(out, "link uplink0"); f.Result != change.NetPutBack && f.Result != change.NetRestored {
		t.Errorf("the report says %+v", f)
	}
	if !reached(m, "10.77.0.2") {
		t.Errorf("the machine is not reached:\n%s", network(m))
	}
	m.Shell("sed -i /subprocess/d " + mode + "; systemctl restart app.service")
}
