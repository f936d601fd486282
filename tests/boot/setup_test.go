package boot

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/machine"
)

// A machine without a recovery at boot is told so in each plan, and nobody's absence is
// made use of; setup installs it, again does nothing, and takes away what it installed.
func TestSetup(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{
		Root: "trixie", Programs: machine.Programs(t),
		Customize: func(root string) error { return manyFiles(root, many, share) },
	})
	dir := update(t, "trixie", many, share).CopyTo(m, "/run/update")
	const tells = "no recovery at boot is installed"
	source := []string{"--source", "tree:" + dir, "--allow-unsigned"}
	liveupd := func(code int, args ...string) machine.Result {
		t.Helper()
		out := m.Run(append([]string{"/usr/local/bin/liveupd"}, args...)...)
		if out.Code != code {
			t.Fatalf("liveupd %s: exit code %d; want %d\n%s%s", strings.Join(args, " "), out.Code, code, out.Stdout, out.Stderr)
		}
		return out
	}
	plan := func() string { t.Helper(); return liveupd(0, append([]string{"apply", "--plan"}, source...)...).Stdout }
	unattended := append([]string{"apply", "--unattended", "--json"}, source...)
	before := treeOf(t, m)

	if out := plan(); !strings.Contains(out, tells) || !strings.Contains(out, "run: liveupd setup") {
		t.Errorf("the plan does not tell of it:\n%s", out)
	}
	if out := liveupd(1, unattended...).Stdout; !strings.Contains(out, tells) || !strings.Contains(out, "liveupd setup") {
		t.Errorf("the refusal says %s", out)
	}
	if n := countNew(t, many, m.Path("/"+share)); n != 0 {
		t.Errorf("refused, and %d files are new", n)
	}
	if out := liveupd(1, "setup"); !strings.Contains(out.Stdout, "would be done") || !strings.Contains(out.Stderr, "--yes") {
		t.Errorf("without --yes: %+v", out)
	}
	same(t, "shown only", before, treeOf(t, m))

	var report change.SetupReport
	if out := liveupd(0, "setup", "--yes", "--json").Stdout; json.Unmarshal([]byte(out), &report) != nil || report.Result != "done" || report.Unit != "enabled" || !report.Container || len(report.Lacks) > 0 {
		t.Errorf("setup says %s", out)
	}
	if got := m.Run("systemctl", "is-enabled", "liveupd-recover.service").Stdout; strings.TrimSpace(got) != "enabled" {
		t.Errorf("the unit is %q", got)
	}
	// The manual pages that they name come with the package.
	if out := m.Run("systemd-analyze", "verify", "--man=no", "liveupd-recover.service", "liveupd-finish.service"); out.Code != 0 || strings.Contains(out.Stderr, "liveupd") {
		t.Errorf("the units: %+v", out)
	}
	installed := treeOf(t, m)
	if out := liveupd(0, "setup").Stdout; !strings.Contains(out, "Nothing to do") {
		t.Errorf("setup once more says %s", out)
	}
	same(t, "once more", installed, treeOf(t, m))
	if out := plan(); strings.Contains(out, tells) {
		t.Errorf("the plan still tells of it:\n%s", out)
	}
	if out := liveupd(0, "setup", "--remove", "--yes").Stdout; !strings.Contains(out, "remove") {
		t.Errorf("setup --remove says %s", out)
	}
	same(t, "removed", before, treeOf(t, m))
	liveupd(0, "setup", "--yes")
	liveupd(0, unattended...)
	if n := countNew(t, many, m.Path("/"+share)); n != many {
		t.Errorf("%d of %d files are new", n, many)
	}
}

// treeOf is what setup may change; folders get new times.
func treeOf(t *testing.T, m *machine.Machine) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(m.Shell(`find /etc /usr/local /var/lib/liveupd /usr/lib/dracut /usr/lib/liveupd \( -type f -o -type d -o -type l \) -printf '%p %y %m %l ' \( -type f -printf '%s' -o -true \) -printf '\n' 2>/dev/null || true`)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[name] = rest
	}
	return out
}

func same(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: %s is %q; want %q", what, name, got[name], text)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: there is %s", what, name)
		}
	}
}
