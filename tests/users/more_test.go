package users

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

const holdsPlugin = `import ctypes, time; ctypes.CDLL("/opt/plugin/libplug.so"); time.sleep(100000)`

func more(t *testing.T, m *machine.Machine, root string) {
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *machine.Machine, string)
	}{
		{"what somebody started by hand stays", byHand},
		{"the administrator's rules", policy},
		{"check and restart", checked},
		{"a service that fails keeps no update back", failing},
		{"a manager that hangs", hanging},
		{"a link to PID 1's socket", linked},
		{"a server of the user's own", impostor},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, m, root) })
	}
}

// module applies another version of what module.service imports.
func module(t *testing.T, m *machine.Machine, root, name, content string) *fixture.Output {
	t.Helper()
	return apply(t, m, fixture.NewTree(t, root).File(modulePart, content, 0o644).CopyTo(m, "/run/"+name)).Want(t, 0)
}

func rollback(t *testing.T, m *machine.Machine) {
	t.Helper()
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
}

func byHand(t *testing.T, m *machine.Machine, root string) {
	script := "/run/user/1000/hold.py"
	if r := as(m, alice, "sh", "-c", "echo '"+holdsPlugin+"' >"+script+
		"; systemd-run --user --unit=byhand -q python3 "+script+
		"; systemd-run --user --scope --unit=app-desk -q python3 "+script+" >/dev/null 2>&1 & sleep 1"); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	defer as(m, alice, "systemctl", "--user", "stop", "byhand.service", "app-desk.scope")
	await(t, "both", func() bool { return strings.Contains(m.Run("pgrep", "-fc", "hold.py").Stdout, "2") })
	pids := m.Run("pgrep", "-f", "hold.py").Stdout
	up := fixture.NewTree(t, root).File(pluginPath, rebuilt(t, plugin(t, root)), 0o755)
	out := apply(t, m, up.CopyTo(m, "/run/byhand")).Want(t, 0)
	if diff := cmp.Diff(of("plugin.service", "restart", "alice:byhand.service", "defer"), out.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	if !slices.ContainsFunc(out.Plan.Warnings, func(w string) bool { return strings.Contains(w, "processes of a session") }) {
		t.Errorf("the warnings %q do not tell of the scope", out.Plan.Warnings)
	}
	if got := m.Run("pgrep", "-f", "hold.py").Stdout; got != pids {
		t.Errorf("the processes are %q; want %q", got, pids)
	}
	rollback(t, m)
}

func policy(t *testing.T, m *machine.Machine, root string) {
	const file = "/etc/liveupd/policy.d/users.toml"
	defer m.Shell("rm -f " + file)
	rules := []struct {
		rule string
		want map[string]string
	}{
		{`units = ["user@1001.service"]` + "\naction = \"defer\"", of("alice:module.service", "restart", "bob:module.service", "defer", "desk.service", "defer")},
		{`units = ["user@1000.service/mod*"]` + "\naction = \"defer\"", of("bob:module.service", "restart", "alice:module.service", "defer", "desk.service", "defer")},
		{`units = ["module.service"]` + "\naction = \"ignore\"", of("desk.service", "defer")},
		{`units = ["user@*.service"]` + "\naction = \"restart\"", of("module.service", "restart", "desk.service", "defer")},
		{`units = ["desk.service"]` + "\naction = \"restart\"", of("module.service", "restart", "desk.service", "restart")},
	}
	if os.Getenv("LIVEUPD_LONG") == "" {
		rules = rules[:1]
	}
	for i, tt := range rules {
		m.Shell("mkdir -p /etc/liveupd/policy.d; printf '%s\\n' '[[rule]]' '" + tt.rule + "' >" + file)
		dir := fixture.NewTree(t, root).File(modulePart, fmt.Sprintf("x = 'rule %d'\n", i), 0o644).CopyTo(m, fmt.Sprintf("/run/rule%d", i))
		before := all(t, m)
		out := apply(t, m, dir).Want(t, 0)
		if diff := cmp.Diff(tt.want, out.Actions()); diff != "" {
			t.Errorf("%s: the plan (-want +got):\n%s", tt.rule, diff)
		}
		want, _ := split(tt.want)
		if got := interrupted(before, all(t, m)); !slices.Equal(got, want) {
			t.Errorf("%s: interrupted were %v; want %v", tt.rule, got, want)
		}
		m.Shell("rm " + file)
		rollback(t, m)
	}
}

// checked changes files by hand, as a package manager does, and her own unit file.
func checked(t *testing.T, m *machine.Machine, _ string) {
	settle(t, m)
	m.Shell("cd /usr/lib/module && cp part.py new && echo y=1 >>new && mv new part.py")
	as(m, alice, "sed", "-i", "s/Her own/Hers/", "/home/alice/.config/systemd/user/own.service")
	out := fixture.In(t, m, "check").Want(t, 0).Check
	var got []string
	for _, u := range out.Units {
		got = append(got, u.Action.String()+" "+change.UnitKey(u.Manager, u.Unit))
	}
	slices.Sort(got)
	want := []string{
		"defer user@1000.service/desk.service", "defer user@1001.service/desk.service",
		"restart user@1000.service/module.service", "restart user@1001.service/module.service",
	}
	if !slices.Equal(got, want) {
		t.Errorf("check finds %q; want %q", got, want)
	}
	if len(out.Effects) != 1 || out.Effects[0].Target != aliceManager || out.HostAction != change.ActionNone {
		t.Errorf("check finds for managers %+v, for the host %v; want a daemon-reload of %s", out.Effects, out.HostAction, aliceManager)
	}
	if one := fixture.In(t, m, "check", "user@1001.service/module").Want(t, 0).Check; len(one.Explanations) != 1 || one.Explanations[0].Manager != bobManager || len(one.Units) != 1 {
		t.Errorf("asked about one it tells %+v", one)
	}
	before, system := all(t, m), m.Units()
	done := fixture.In(t, m, "restart", "--yes").Want(t, 0)
	if diff := cmp.Diff([]string{
		"daemon-reload user@1000.service/systemd", "restart user@1000.service/module.service", "restart user@1001.service/module.service",
	}, userSteps(done)); diff != "" {
		t.Errorf("the steps (-want +got):\n%s", diff)
	}
	if got := interrupted(before, all(t, m)); !slices.Equal(got, []string{"user@1000.service/module.service", "user@1001.service/module.service"}) {
		t.Errorf("restart interrupted %v", got)
	}
	if got := machine.Interrupted(system, m.Units()); len(got) > 0 {
		t.Errorf("of the system's units %v were interrupted", got)
	}
	m.Shell("for u in 1000 1001; do setpriv --reuid=$u --regid=$u --clear-groups env XDG_RUNTIME_DIR=/run/user/$u systemctl --user restart desk.service; done")
	if left := fixture.In(t, m, "check").Want(t, 0).Check; len(left.Units)+len(left.Effects) > 0 {
		t.Errorf("afterwards check finds %+v", left)
	}
}

// settle brings what earlier cases put off up to date.
func settle(t *testing.T, m *machine.Machine) {
	t.Helper()
	for _, uid := range []int{alice, bob} {
		if r := as(m, uid, "systemctl", "--user", "restart", "desk.service", "module.service", "plugin.service"); r.Code != 0 {
			t.Fatalf("%+v", r)
		}
	}
	fixture.In(t, m, "restart", "--yes").Want(t, 0)
}

// failing: who makes a service of his own fail must not keep the machine on its old
// files. The control is a service of the system that fails in the same way.
func failing(t *testing.T, m *machine.Machine, root string) {
	out := module(t, m, root, "failing", "raise SystemExit(1)\n")
	var failed []string
	for _, res := range out.Report.Steps {
		if res.Result == "failed" {
			failed = append(failed, change.UnitKey(res.Step.Manager, res.Step.Target))
		}
	}
	if want := []string{"user@1000.service/module.service", "user@1001.service/module.service"}; !slices.Equal(failed, want) {
		t.Errorf("failed are %v; want %v", failed, want)
	}
	if got := out.Report.Warnings; len(got) != 2 || !strings.Contains(got[0], "module.service of user@1000.service") {
		t.Errorf("the warnings are %q", got)
	}
	if got := m.Shell("cat /" + modulePart); !strings.Contains(got, "SystemExit") {
		t.Errorf("the file is %q: the update was taken back", got)
	}
	rollback(t, m)
	for _, uid := range []int{alice, bob} {
		as(m, uid, "systemctl", "--user", "start", "module.service")
	}
	up := fixture.NewTree(t, root).File(fixture.PyappModule, "raise SystemExit(1)\n", 0o644)
	apply(t, m, up.CopyTo(m, "/run/control")).Want(t, 3)
}

// hanging: a manager that is stopped is told, put off, and done later.
func hanging(t *testing.T, m *machine.Machine, root string) {
	settle(t, m)
	lib := glob(t, root, "usr/lib/*/systemd/libsystemd-shared-257.so")
	dir := fixture.NewTree(t, root).File(lib, rebuilt(t, machine.CachedRoot(t, root)+"/"+lib), 0o644).
		File(pluginPath, rebuilt(t, plugin(t, root)), 0o755).CopyTo(m, "/run/hanging")
	before, bobs := invocations(t, m, alice), m.PIDs(bobManager)
	signal := func(name string) {
		m.Shell("systemctl kill --kill-whom=main --signal=" + name + " " + bobManager)
	}
	signal("STOP")
	defer signal("CONT")
	out := apply(t, m, dir).Want(t, 0)
	if got := interrupted(before, invocations(t, m, alice)); !slices.Equal(got, []string{"plugin.service"}) {
		t.Errorf("of alice's %v were interrupted; want plugin.service", got)
	}
	var put []string
	for _, u := range out.Report.Deferred {
		if u.Manager != "" || strings.HasPrefix(u.Unit, "user@") {
			put = append(put, change.UnitKey(u.Manager, u.Unit))
		}
		if len(u.Reasons) == 0 || u.Manager != "" && !strings.Contains(u.Reasons[0].Detail, "did not answer") {
			t.Errorf("%s is put off for %+v", u.Unit, u.Reasons)
		}
	}
	slices.Sort(put)
	if want := []string{bobManager, bobManager + "/plugin.service"}; !slices.Equal(put, want) {
		t.Errorf("put off are %v; want %v", put, want)
	}
	if got := m.Run("liveupd", "status").Stdout; !strings.Contains(got, "plugin.service of "+bobManager) {
		t.Errorf("status says %q", got)
	}
	signal("CONT")
	was := invocations(t, m, bob)
	fixture.In(t, m, "restart", "--yes").Want(t, 0)
	if got := interrupted(was, invocations(t, m, bob)); !slices.Equal(got, []string{"plugin.service"}) {
		t.Errorf("liveupd restart interrupted %v of bob's; want plugin.service", got)
	}
	if got := m.Run("liveupd", "status").Stdout; strings.Contains(got, bobManager) {
		t.Errorf("status still says %q", got)
	}
	if now := m.PIDs(bobManager); len(now) != len(bobs) {
		t.Errorf("bob has %d processes; want %d", len(now), len(bobs))
	}
	rollback(t, m)
}

// linked: alice puts a link to PID 1's socket in the place of her manager's, and the
// update concerns a unit of hers of which the system has a namesake.
func linked(t *testing.T, m *machine.Machine, root string) {
	as(m, alice, "sh", "-c", "cd /run/user/1000 && mv systemd kept && ln -s /run/systemd systemd")
	defer as(m, alice, "sh", "-c", "cd /run/user/1000 && rm systemd && mv kept systemd")
	m.Shell("systemd-run -q --unit=plugin.service sleep infinity")
	defer m.Shell("systemctl stop plugin.service")
	// The control: who follows the link speaks to PID 1.
	if got := m.Run("env", "XDG_RUNTIME_DIR=/run/user/1000", "systemctl", "--user", "show", "--property=UnitPath"); !strings.Contains(got.Stdout, "/etc/systemd/system") {
		t.Fatalf("the link does not lead to PID 1: this test shows nothing: %+v", got)
	}
	refused(t, m, root, "link")
}

// impostor: alice listens there herself.
func impostor(t *testing.T, m *machine.Machine, root string) {
	const server = `import socket, time
s = socket.socket(socket.AF_UNIX); s.bind("/run/user/1000/systemd/private"); s.listen(); open("/run/user/1000/ready", "w")
c, _ = s.accept(); open("/run/user/1000/asked", "wb").write(c.recv(1)); time.sleep(100000)
`
	as(m, alice, "sh", "-c", "mv /run/user/1000/systemd/private /run/user/1000/systemd/kept; echo '"+server+"' >/run/user/1000/server.py")
	m.Shell("systemd-run -q --unit=server.service --uid=alice --gid=alice python3 /run/user/1000/server.py")
	defer as(m, alice, "sh", "-c", "cd /run/user/1000/systemd && mv -f kept private")
	defer m.Shell("systemctl stop server.service")
	await(t, "the server", func() bool { return m.Run("test", "-e", "/run/user/1000/ready").Code == 0 })
	refused(t, m, root, "impostor")
	if m.Run("test", "-e", "/run/user/1000/asked").Code == 0 && m.Shell("stat -c %s /run/user/1000/asked") != "0" {
		t.Error("the impostor was spoken to")
	}
}

// refused: nothing was sent to whoever is in the place of alice's manager, and bob's was served.
func refused(t *testing.T, m *machine.Machine, root, name string) {
	t.Helper()
	before, system := invocations(t, m, bob), m.Units()
	up := fixture.NewTree(t, root).File(pluginPath, rebuilt(t, plugin(t, root)), 0o755)
	out := apply(t, m, up.CopyTo(m, "/run/"+name)).Want(t, 0)
	if diff := cmp.Diff(of("bob:plugin.service", "restart", "alice:plugin.service", "defer"), out.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	for _, u := range out.Plan.Units {
		if u.Manager == aliceManager && !strings.Contains(u.Reasons[0].Detail, "not the user's manager") {
			t.Errorf("the reason is %+v", u.Reasons)
		}
	}
	if got := machine.Interrupted(system, m.Units()); len(got) > 0 {
		t.Errorf("of the system's units %v were interrupted", got)
	}
	if got := interrupted(before, invocations(t, m, bob)); !slices.Equal(got, []string{"plugin.service"}) {
		t.Errorf("of bob's %v were interrupted; want plugin.service", got)
	}
	rollback(t, m)
}
