package jobs

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// refusedName is a unit that runs, and of which bad definitions come.
const refusedName = "tr-refused.service"

// refusedUnits: a definition that the manager would not load is refused before the commit,
// where its restart would have had to be taken back; one that is not started harms nobody.
func refusedUnits(t *testing.T, m *machine.Machine, root string) {
	t.Helper()
	// systemd has no word for the name of this drop-in, and restarts the unit none the less.
	process := func() string { return m.Shell("cat /sys/fs/cgroup/system.slice/" + refusedName + "/cgroup.procs") }
	before := process()
	up := fixture.NewTree(t, root).File(dir+"/"+refusedName+".d/\xff\x1b.conf", "[Service]\nNice=1\n", 0o644)
	out := fixture.In(t, m, "apply", "--allow-unsigned", "--source", "tree:"+up.CopyTo(m, "/run/odd"), "--yes").Want(t, 0)
	if got := out.Actions()[refusedName]; got != "restart" {
		t.Errorf("a drop-in with an odd name: %s; want a restart", got)
	}
	if now := process(); now == "" || now == before {
		t.Errorf("it was not restarted: %q", now)
	}
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	for what, c := range map[string]struct {
		text, says string
		code       int
	}{
		"it starts nothing":           {"[Service]\nNice=3\n", "Refusing", 1},
		"a section is not closed":     {"[Service\nExecStart=/bin/sleep 99\n", "failed to load", 1},
		"a program without a root":    {"[Service]\nExecStart=./sleep 99\n", "absolute path", 1},
		"what systemd only complains": {sleeper + "Foo=bar\nMemoryMax=junk\nUMask=999\n", "", 0},
	} {
		before := m.Units()
		up := fixture.NewTree(t, root).File(dir+"/"+refusedName, c.text, 0o644)
		out := fixture.In(t, m, "apply", "--allow-unsigned", "--source", "tree:"+up.CopyTo(m, "/run/"+strings.ReplaceAll(what, " ", "-")), "--yes")
		if out.Code != c.code || !strings.Contains(out.Error, c.says) || strings.Contains(out.Error, "multi-user") {
			t.Errorf("%s: exit code %d, %s; want %d, %q", what, out.Code, out.Error, c.code, c.says)
		}
		if c.code == 0 {
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		} else if got := machine.Interrupted(before, m.Units()); len(got) > 0 {
			t.Errorf("%s: %v were interrupted", what, got)
		}
	}
}
