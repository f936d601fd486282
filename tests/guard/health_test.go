package guard

import (
	"strings"
	"testing"

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
func TestHealth(t *testing.T) {
	m := boot(t)
	mode := func(text string) map[string]string { return map[string]string{"usr/lib/app/mode.py": text} }
	tests := []struct {
		name    string
		changed map[string]string
		before  string // done in the machine first
		after   string // and at the end
		kind    string
		want    string // what the report says; "" where it is well
	}{
		{"it ends three seconds after its start", mode("crash = 3\nport = 8077\n"), "", "", "restarts", "systemd"},
		{"nothing listens any more", mode("crash = 0\nport = 0\n"), "", "", "listeners", "tcp 127.0.0.1:8077"},
		{"it listens elsewhere", mode("crash = 0\nport = 8078\n"), "", "", "listeners", "tcp 127.0.0.1:8077"},
		{"its own command fails", mode("crash = 0\nport = 8077\n# 2\n"), "rm /run/well", "touch /run/well", "command", "exit status 1"},
		{"it is well", mode("crash = 0\nport = 8077\n# 3\n"), "", "", "command", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before != "" {
				m.Shell(tt.before)
			}
			before := treeOf(t, m)
			out := apply(t, m, update(t, m, tt.changed))
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
				fixture.In(t, m, "rollback", "--yes").Want(t, 0)
				sameTree(t, before, treeOf(t, m))
				return
			}
			out.Want(t, 3)
			if got.Result != change.HealthFailed || !strings.Contains(got.What+got.Detail, tt.want) || got.Deadline == 0 {
				t.Errorf("the report says %+v; want %q with a deadline", got, tt.want)
			}
			sameTree(t, before, treeOf(t, m))
			unharmed(t, m)
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
