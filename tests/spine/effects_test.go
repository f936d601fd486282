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

// What the cases of configuration and of the host's settings need beside the
// fixture's services. The roots have neither udev nor modules: what stands in
// for udevadm writes down how it was called.
var effectFiles = map[string]string{
	"etc/secret":                                   "one\n",
	"etc/bound.conf":                               "one\n",
	"etc/args.conf":                                "one\n",
	"etc/watched/a.conf":                           "one\n",
	"etc/health.conf":                              "good\n",
	"usr/lib/systemd/system/secret.service":        "[Service]\nLoadCredential=key:/etc/secret\nExecStart=/usr/bin/sleep infinity\n",
	"usr/lib/systemd/system/bound.service":         "[Service]\nBindReadOnlyPaths=/etc/bound.conf:/run/bound.conf\nExecStart=/usr/bin/sleep infinity\n",
	"usr/lib/systemd/system/watched.service":       "[Unit]\nX-Liveupd-Watch=/etc/watched\n[Service]\nExecStart=/usr/bin/sleep infinity\nExecReload=/usr/bin/touch /run/reloaded\n",
	"usr/lib/systemd/system/health.service":        "[Unit]\nX-Liveupd-Watch=/etc/health.conf\nX-Liveupd-Health=/usr/bin/grep -q good /etc/health.conf\n[Service]\nExecStart=/usr/bin/sleep infinity\n",
	"usr/lib/systemd/system/systemd-udevd.service": "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/bin/sleep infinity\n",
	"usr/lib/sysctl.d/10-app.conf":                 "net.ipv4.tcp_fin_timeout = 51\nnet.ipv4.tcp_keepalive_probes = 8\n",
	"usr/lib/sysctl.d/20-other.conf":               "net.ipv4.tcp_keepalive_probes = 7\n",
}

func effectServices(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	write := func(name, content string, mode os.FileMode) error {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return os.WriteFile(name, []byte(content), mode)
	}
	for name, content := range effectFiles {
		if err := write(name, content, 0o644); err != nil {
			return err
		}
		if unit := filepath.Base(name); strings.HasSuffix(unit, ".service") {
			wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants", unit)
			if err := os.Symlink("/"+name, wants); err != nil {
				return err
			}
		}
	}
	return write("usr/bin/udevadm", "#!/bin/sh\necho \"$*\" >>/run/udevadm.log\n", 0o755)
}

// Configuration and the host's own settings: what happened is the plan, and
// nothing more.
func TestEffects(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{ReadOnly: true, Customize: effectServices, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed")
	sysctl := func(key string) string {
		return strings.TrimSpace(m.Shell("cat /proc/sys/" + strings.ReplaceAll(key, ".", "/")))
	}
	m.Run("mount", "-o", "remount,rw,bind", "/proc/sys") // a machine's own kernel settings are its own
	m.Shell("echo 51 >/proc/sys/net/ipv4/tcp_fin_timeout; echo 7 >/proc/sys/net/ipv4/tcp_keepalive_probes")
	tests := []struct {
		name    string
		update  func(*fixture.Tree)
		units   map[string]string
		effects []string
		then    func(*testing.T) // after the apply
		back    func(*testing.T) // after the rollback
	}{
		{name: "what nobody holds: time zones, certificates, cron, logrotate, PAM, nsswitch, polkit", update: func(u *fixture.Tree) {
			u.File("usr/share/zoneinfo/Nowhere", "TZif2", 0o644).File("etc/ssl/certs/extra.pem", "x\n", 0o644).
				File("etc/cron.d/extra", "# none\n", 0o644).File("etc/logrotate.d/extra", "# none\n", 0o644).
				File("etc/pam.d/extra", "# none\n", 0o644).File("etc/polkit-1/rules.d/50-extra.rules", "// none\n", 0o644).
				File("etc/profile.d/extra.sh", "# none\n", 0o644).File("etc/modprobe.d/extra.conf", "# none\n", 0o644)
		}},
		{name: "the source of a credential", update: func(u *fixture.Tree) {
			u.File("etc/secret", "two\n", 0o644)
		}, units: map[string]string{"secret.service": "restart"}},
		{name: "the source of a bind mount", update: func(u *fixture.Tree) {
			u.File("etc/bound.conf", "two\n", 0o644)
		}, units: map[string]string{"bound.service": "restart"}},
		{name: "a declared folder, and a reload", update: func(u *fixture.Tree) {
			u.File("etc/watched/b.conf", "new\n", 0o644)
		}, units: map[string]string{"watched.service": "reload"}, then: func(t *testing.T) {
			if r := m.Run("test", "-e", "/run/reloaded"); r.Code != 0 {
				t.Error("watched.service was not reloaded")
			}
		}},
		{name: "a bus policy", update: func(u *fixture.Tree) {
			u.File("usr/share/dbus-1/system.d/extra.conf", "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig/>\n", 0o644)
		}, units: map[string]string{"dbus.service": "reload"}},
		{name: "a user, the folder that belongs to it and the service that runs as it", update: func(u *fixture.Tree) {
			u.File("usr/lib/sysusers.d/appd.conf", "u appd - \"An app\"\n", 0o644).
				File("usr/lib/tmpfiles.d/appd.conf", "d /run/appd 0750 appd appd -\n", 0o644).
				File("usr/lib/systemd/system/appd.service", "[Service]\nUser=appd\nWorkingDirectory=/run/appd\nExecStart=/usr/bin/sleep infinity\n", 0o644).
				Symlink("etc/systemd/system/multi-user.target.wants/appd.service", "/usr/lib/systemd/system/appd.service")
		}, units: map[string]string{"appd.service": "start"}, effects: []string{"sysusers appd.conf", "tmpfiles appd.conf"}, then: func(t *testing.T) {
			if got := strings.TrimSpace(m.Shell("stat -c '%U %a' /run/appd")); got != "appd 750" {
				t.Errorf("/run/appd is %q; want appd 750", got)
			}
			if u := m.Unit("appd.service"); u.ActiveState != "active" {
				t.Errorf("appd.service is %s", u.ActiveState)
			}
		}},
		{name: "kernel settings: the changed keys whose value counts, and no other", update: func(u *fixture.Tree) {
			u.File("usr/lib/sysctl.d/10-app.conf", "# changed\nnet.ipv4.tcp_fin_timeout = 47\nnet.ipv4.tcp_keepalive_probes = 3\nnet/ipv4/tcp_keepalive_intvl=71\nno.such.key = 1\n", 0o644)
		}, effects: []string{"sysctl net.ipv4.tcp_fin_timeout = 47", "sysctl net.ipv4.tcp_keepalive_intvl = 71"}, then: func(t *testing.T) {
			for key, want := range map[string]string{"net.ipv4.tcp_fin_timeout": "47", "net.ipv4.tcp_keepalive_intvl": "71", "net.ipv4.tcp_keepalive_probes": "7"} {
				if got := sysctl(key); got != want {
					t.Errorf("%s is %s; want %s", key, got, want)
				}
			}
		}, back: func(t *testing.T) {
			for key, want := range map[string]string{"net.ipv4.tcp_fin_timeout": "51", "net.ipv4.tcp_keepalive_intvl": "75", "net.ipv4.tcp_keepalive_probes": "7"} {
				if got := sysctl(key); got != want {
					t.Errorf("%s is %s after the rollback; want %s", key, got, want)
				}
			}
		}},
		{name: "udev rules: what they name", update: func(u *fixture.Tree) {
			u.File("usr/lib/udev/rules.d/90-extra.rules", "ACTION==\"remove\", GOTO=\"end\"\nSUBSYSTEM==\"tty\", TAG+=\"x\"\nSUBSYSTEM==\"block\", KERNEL==\"vd*\", TAG+=\"y\"\nLABEL=\"end\"\n", 0o644)
		}, effects: []string{"udev-reload rules", "udev-trigger --action=change --subsystem-match=block --sysname-match=vd*", "udev-trigger --action=change --subsystem-match=tty"}, then: func(t *testing.T) {
			want := "control --reload\ntrigger --action=change --subsystem-match=block --sysname-match=vd*\nsettle --timeout=30\n" +
				"trigger --action=change --subsystem-match=tty\nsettle --timeout=30"
			if diff := cmp.Diff(want, strings.TrimSpace(m.Shell("cat /run/udevadm.log"))); diff != "" {
				t.Errorf("udevadm was called (-want +got):\n%s", diff)
			}
		}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := fixture.NewTree(t, "bookworm")
			tt.update(up)
			units := m.Units()
			applied := apply(t, m, up.CopyTo(m, fmt.Sprintf("/run/effect%d", i))).Want(t, 0)
			if diff := cmp.Diff(orEmpty(tt.units), applied.Actions()); diff != "" {
				t.Errorf("the plan (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.effects, effectsOf(applied.Plan)); diff != "" {
				t.Errorf("the plan's effects (-want +got):\n%s", diff)
			}
			reasons(t, applied.Plan)
			after := m.Units()
			if got := machine.Interrupted(units, after); !equalSets(got, restarts(applied.Plan)) {
				t.Errorf("interrupted were %v; the plan said %v", got, restarts(applied.Plan))
			}
			planned := len(applied.Plan.Effects)
			for _, res := range applied.Report.Steps {
				if slices.ContainsFunc(applied.Plan.Effects, func(e change.Effect) bool { return e.Do == res.Step.Do && e.Target == res.Step.Target }) {
					planned--
					if res.Result != "done" {
						t.Errorf("%s %s was %s: %s", res.Step.Do, res.Step.Target, res.Result, res.Detail)
					}
				}
			}
			if planned != 0 {
				t.Errorf("%d effects of the plan were not carried out", planned)
			}
			if tt.then != nil {
				tt.then(t)
			}
			readOnlyNow(t, m)
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			if tt.back != nil {
				tt.back(t)
			}
			readOnlyNow(t, m)
		})
	}

	t.Run("what the administrator's rules put off stays pending until it is done", func(t *testing.T) {
		policy := func(text string) {
			m.Shell("mkdir -p /run/liveupd/policy.d; cat >/run/liveupd/policy.d/10.toml <<'EOF'\n" + text + "EOF")
		}
		waits := func() bool { return strings.Contains(fixture.In(t, m, "status").Want(t, 0).Stdout, "secret.service") }
		change := func(n int, path string) *fixture.Output {
			t.Helper()
			up := fixture.NewTree(t, "bookworm").File(path, fmt.Sprintln("ruled", n), 0o644)
			return apply(t, m, up.CopyTo(m, fmt.Sprintf("/run/ruled%d", n)))
		}
		defer m.Run("rm", "-r", "/run/liveupd/policy.d")
		before := treeOf(t, m)
		policy("[[rule]]\nunits = [\"secret.service\"]\naction = \"wait\"\n")
		if out := change(0, "etc/secret").Want(t, 2); !strings.Contains(out.Error, "/run/liveupd/policy.d/10.toml:3:10: ") || out.Hint == "" {
			t.Errorf("error %q with hint %q; want the place of the mistake and the way out", out.Error, out.Hint)
		}
		same(t, "after a refused policy", before, treeOf(t, m))

		policy("[[rule]]\nunits = [\"secret.service\"]\naction = \"defer\"\nreason = \"ask first\"\n")
		units := m.Units()
		out := change(1, "etc/secret").Want(t, 0)
		if diff := cmp.Diff(map[string]string{"secret.service": "defer"}, out.Actions()); diff != "" {
			t.Errorf("the plan (-want +got):\n%s", diff)
		}
		for n := 2; n < 5; n++ { // more than are kept
			change(n, "etc/bound.conf").Want(t, 0)
		}
		if got := machine.Interrupted(units, m.Units()); !slices.Equal(got, []string{"bound.service"}) {
			t.Errorf("interrupted were %v; want bound.service", got)
		}
		if !waits() {
			t.Error("status no longer tells of secret.service after further updates")
		}
		fixture.In(t, m, "restart", "--yes").Want(t, 0)
		if !waits() {
			t.Error("restart did what the rule puts off")
		}
		policy("[[rule]]\nunits = [\"*\"]\nwindows = [\"00:00-24:00\"]\n")
		units = m.Units()
		fixture.In(t, m, "restart", "--yes").Want(t, 0)
		if got := machine.Interrupted(units, m.Units()); !slices.Equal(got, []string{"secret.service"}) {
			t.Errorf("restart interrupted %v; want secret.service", got)
		}
		if waits() {
			t.Error("status still tells of secret.service after its restart")
		}
		now := strings.TrimSpace(m.Shell("date -d '+3 hours' +%H:%M; date -d '+4 hours' +%H:%M"))
		policy("[[rule]]\nunits = [\"*\"]\nwindows = [\"" + strings.ReplaceAll(now, "\n", "-") + "\"]\n")
		if diff := cmp.Diff(map[string]string{"bound.service": "defer"}, change(6, "etc/bound.conf").Want(t, 0).Actions()); diff != "" {
			t.Errorf("the plan outside of the window (-want +got):\n%s", diff)
		}
	})

	t.Run("a unit that is not well takes all of it back", func(t *testing.T) {
		before, units := treeOf(t, m), m.Units()
		up := fixture.NewTree(t, "bookworm").File("etc/health.conf", "bad\n", 0o644)
		out := apply(t, m, up.CopyTo(m, "/run/unwell")).Want(t, 3)
		if !strings.Contains(out.Error, "health.service is not well") {
			t.Errorf("the error is %q", out.Error)
		}
		if got := machine.Interrupted(units, m.Units()); !slices.Equal(got, []string{"health.service"}) {
			t.Errorf("interrupted were %v; want health.service", got)
		}
		same(t, "after the revert", before, treeOf(t, m))
		good := fixture.NewTree(t, "bookworm").File("etc/health.conf", "good too\n", 0o644)
		apply(t, m, good.CopyTo(m, "/run/well")).Want(t, 0)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	})

	t.Run("a setting that the kernel refuses takes all of it back", func(t *testing.T) {
		before := treeOf(t, m)
		up := fixture.NewTree(t, "bookworm").File("usr/lib/sysctl.d/10-app.conf", "net.ipv4.tcp_fin_timeout = 44\nnet.ipv4.tcp_keepalive_intvl = many\n", 0o644)
		out := apply(t, m, up.CopyTo(m, "/run/refused")).Want(t, 3)
		if !strings.Contains(out.Error, "net.ipv4.tcp_keepalive_intvl") {
			t.Errorf("the error %q does not name the setting", out.Error)
		}
		if got := sysctl("net.ipv4.tcp_fin_timeout"); got != "51" {
			t.Errorf("tcp_fin_timeout is %s; want 51, as before", got)
		}
		same(t, "after the revert", before, treeOf(t, m))
	})
}

func effectsOf(p *change.Plan) []string {
	var out []string
	for _, e := range p.Effects {
		out = append(out, e.Do+" "+e.Target)
	}
	return out
}
