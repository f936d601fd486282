package apt

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// seed of what is random, printed.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("LIVEUPD_SEED"), 10, 64); err == nil {
		n = s
	}
	t.Logf("LIVEUPD_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// A machine whose root is read-only, of which apt by itself could not upgrade anything: the
// plan, the plan's apply, and death at any moment of it.
func TestReadOnlyRoot(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	service := func(version string) pack {
		return pack{name: "served", version: version, files: map[string]string{
			"usr/bin/served":                        "#!/bin/sh\n# " + version + "\nexec sleep infinity\n",
			"usr/lib/systemd/system/served.service": "[Service]\nExecStart=/usr/bin/served\n[Install]\nWantedBy=multi-user.target\n",
			"usr/share/served/" + version:           version + "\n",
			"usr/lib/served/all/" + version + "/a":  strings.Repeat(version, 4000),
		}, scripts: map[string]string{"postinst": "#!/bin/sh\nset -e\nsystemctl enable served.service\nsleep 0.3\nmkdir -p /var/lib/served\n"}}
	}
	m := machine.Boot(t, machine.Options{Root: "bookworm", ReadOnly: true, Programs: machine.Programs(t), Customize: func(root string) error {
		if err := installed(root, service("1")); err != nil {
			return err
		}
		return archive(root, []pack{service("2")})
	}})
	m.Shell("systemctl reset-failed")
	state := func() machine.Snapshot {
		return machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log", "var/lib/apt/lists")
	}
	old := state()
	planned := fixture.In(t, m, "apply", "--plan").Want(t, 0)
	same(t, "after --plan", old, state(), nil)
	if got := planned.Actions()["served.service"]; got != "restart" {
		t.Errorf("served.service is to %q; want restart", got)
	}
	units := m.Units()
	fixture.In(t, m, "apply", "--yes", "--expect", planned.Plan.ID).Want(t, 0)
	if got := machine.Interrupted(units, m.Units()); len(got) != 1 || got[0] != "served.service" {
		t.Errorf("interrupted were %v", got)
	}
	if got := m.Shell("cat /usr/share/served/2; dpkg --audit; touch /etc/x 2>/dev/null || echo read-only"); got != "2\nread-only" {
		t.Errorf("after the apply: %q", got)
	}
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	same(t, "after the rollback", old, state(), nil)

	moments := 4
	if os.Getenv("LIVEUPD_LONG") == "1" {
		moments = 20
	}
	random := seed(t)
	var oldTrees, newTrees int
	for range moments {
		after := time.Duration(random.Int64N(int64(5 * time.Second)))
		if m.Shell("cat /usr/share/served/*") == "2" {
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		cmd := m.Command(ctx, "/usr/local/bin/liveupd", "apply", "--yes")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		for _, program := range []string{"liveupd", "liveupd-sandbox", "exe"} {
			for _, pid := range m.Find(program) {
				// It may have ended by itself.
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = cmd.Wait()
		cancel()
		settled(t, m)
		m.Run("/usr/local/bin/liveupd", "recover")
		which := m.Shell("cat /usr/share/served/*")
		now := state()
		switch which {
		case "1":
			oldTrees++
			same(t, fmt.Sprintf("killed after %s: the old tree", after), old, now, nil)
		case "2":
			newTrees++
			if out := m.Shell("dpkg --audit; dpkg -s served | grep ^Status; grep -q '# 2' /usr/bin/served"); out != "Status: install ok installed" {
				t.Errorf("killed after %s: the new tree: %q", after, out)
			}
		default:
			t.Fatalf("killed after %s: versions %q lie side by side", after, which)
		}
		if out := m.Shell("ls -d /.liveupd/sandbox/work 2>/dev/null || :; grep sandbox /proc/mounts || :; pgrep -x apt-get || :; pgrep -x dpkg || :"); out != "" {
			t.Errorf("killed after %s: left were %q", after, out)
		}
	}
	t.Logf("%d kills: %d times the old tree, %d times the new one", moments, oldTrees, newTrees)
}

// settled waits until what a killed run's unit has systemd do has ended.
func settled(t *testing.T, m *machine.Machine) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if m.Shell("systemctl list-units --all --plain --no-legend 'liveupd-*.service' | grep -E 'activating|deactivating|running' || :") == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal("what was killed does not settle")
		}
	}
}
