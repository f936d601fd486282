package deb

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

const apt = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 "

// packaged runs liveupd of the package in a machine.
func packaged(t *testing.T, m *machine.Machine, args ...string) *fixture.Output {
	t.Helper()
	return fixture.Parse(t, m.Run(append([]string{"/usr/bin/liveupd", "--json"}, args...)...))
}

// The package on a machine that never had it: installed by apt without what it recommends,
// working, upgraded by apt and by itself, removed, purged. Nothing is left.
func TestLife(t *testing.T) {
	roots := []string{"trixie"}
	if long() {
		roots = append(roots, "bookworm")
	}
	for _, name := range roots {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			machine.Require(t)
			m := machine.Boot(t, machine.Options{Root: name, Customize: carry(t)})
			state := func() machine.Snapshot {
				return machine.TakeSnapshot(t, m.Image(), "var/log", "var/tmp", "var/lib/systemd", "var/cache/apt", "var/lib/apt", "var/cache/ldconfig", "tmp", "run")
			}
			before := state()

			m.Shell(apt + "install /root/old.deb")
			if got := m.Shell("liveupd --version"); got != "liveupd "+oldVersion+"-1" {
				t.Errorf("the version is %q", got)
			}
			for _, unit := range []string{"liveupd-recover.service", "liveupd-finish.service", "liveupd-resume.service", "liveupd.timer"} {
				if got := strings.TrimSpace(m.Run("systemctl", "is-enabled", unit).Stdout); got != "enabled" {
					t.Errorf("%s is %q", unit, got)
				}
			}
			// The timer is there, and what it starts does nothing before the configuration says so.
			if got := m.Unit("liveupd.timer").ActiveState; got != "active" {
				t.Errorf("liveupd.timer is %s", got)
			}
			m.Shell("systemctl start liveupd.service")
			await(t, "the end of liveupd.service", func() bool { return m.Unit("liveupd.service").ActiveState == "inactive" })
			if u := m.Unit("liveupd.service"); u.Result != "success" || len(m.Find("liveupd")) > 0 {
				t.Errorf("not switched on, liveupd.service ends with %s: %s", u.Result, m.Journal("liveupd.service"))
			}
			if out := m.Shell("dpkg --verify liveupd; dpkg --audit"); out != "" {
				t.Errorf("dpkg says %s", out)
			}
			if out := want(t, m, 0, "liveupd", "setup"); !strings.Contains(out.Stdout, "Nothing to do") {
				t.Errorf("setup has something to do on a machine that has the package: %s", out.Stdout)
			}
			if out := m.Run("systemd-analyze", "verify", "--man=no", "liveupd-recover.service", "liveupd-finish.service", "liveupd-resume.service", "liveupd.service", "liveupd.timer"); out.Code != 0 || strings.Contains(out.Stderr, "liveupd") {
				t.Errorf("the units: %+v", out)
			}

			// It does its work, and finds its other programs where the package has them.
			m.Shell("mkdir -p /srv/up/usr/share/deb-test && echo 1 >/srv/up/usr/share/deb-test/file")
			packaged(t, m, "apply", "--source", "tree:/srv/up", "--allow-unsigned").Want(t, 0)
			packaged(t, m, "exec", "--", "sh", "-c", "echo 2 >/usr/share/deb-test/other").Want(t, 0)

			// A setting of the administrator's survives an upgrade.
			m.Shell("echo 'keep = 3' >>/etc/liveupd/liveupd.toml")
			m.Shell(apt + "install /root/new.deb")
			if got := m.Shell("liveupd --version; tail -n 1 /etc/liveupd/liveupd.toml"); got != "liveupd "+newVersion+"-1\nkeep = 3" {
				t.Errorf("after apt's upgrade: %q", got)
			}
			m.Shell(apt + "--allow-downgrades install /root/old.deb")

			// By itself: the program that does it is replaced while it does it.
			plan := packaged(t, m, "apply", "--no-refresh", "--plan", "/root/new.deb").Want(t, 0).Plan
			if i := slices.IndexFunc(plan.Packages, func(p change.Package) bool { return p.Name == "liveupd" && p.To == newVersion+"-1" }); i < 0 {
				t.Errorf("the plan's packages are %+v", plan.Packages)
			}
			if len(plan.Units) != 0 {
				t.Errorf("upgrading itself would interrupt %+v", plan.Units)
			}
			packaged(t, m, "apply", "--no-refresh", "/root/new.deb").Want(t, 0)
			if got := m.Shell("liveupd --version; dpkg --audit; dpkg --verify liveupd; tail -n 1 /etc/liveupd/liveupd.toml"); !strings.Contains(got, "liveupd "+newVersion+"-1") || !strings.HasSuffix(got, "keep = 3") {
				t.Errorf("after its own upgrade: %q", got)
			}
			// Its own removal it leaves to apt: nobody could finish it after a crash.
			for _, args := range [][]string{{"apply", "--no-refresh", "liveupd-"}, {"exec", "--", "rm", "/usr/bin/liveupd"}} {
				if out := packaged(t, m, args...).Want(t, 1); !strings.Contains(out.Error, "/usr/bin/liveupd") || !strings.Contains(out.Stdout+out.Stderr, "apt remove liveupd") {
					t.Errorf("%q says %q", args, out.Error)
				}
			}
			packaged(t, m, "rollback").Want(t, 0)
			if got := m.Shell("liveupd --version; dpkg --audit"); got != "liveupd "+oldVersion+"-1" {
				t.Errorf("after the rollback of its own upgrade: %q", got)
			}
			packaged(t, m, "verify").Want(t, 0)
			m.Shell("test -d /.liveupd/tx")

			// Removed, it leaves what only a purge takes.
			m.Shell(apt + "remove liveupd")
			if got := m.Shell("ls -d /.liveupd /etc/liveupd/liveupd.toml /usr/bin/liveupd /usr/lib/liveupd 2>/dev/null || true"); got != "/.liveupd\n/etc/liveupd/liveupd.toml" {
				t.Errorf("removed, there is %q", got)
			}
			if got := m.Shell("systemctl list-unit-files --no-legend 'liveupd*' || true; systemctl --failed --no-legend --plain"); strings.Contains(got, "liveupd") {
				t.Errorf("removed, systemd knows of %s", got)
			}
			m.Shell(apt + "purge liveupd; rm -r /srv/up /usr/share/deb-test")
			for _, line := range before.Diff(state()) {
				if !strings.Contains(line, "var/lib/dpkg") && !strings.Contains(line, "var/cache/debconf") && !strings.Contains(line, "mtime") {
					t.Errorf("purged, and yet: %s", line)
				}
			}
			if got := m.Shell("find / -xdev -iname '*liveupd*' ! -path '/var/lib/dpkg/*' ! -path '/var/log/*' 2>/dev/null"); got != "" {
				t.Errorf("purged, and there is %s", got)
			}
		})
	}
}

// A package is not removed, and nothing is purged, while an update is neither done nor
// taken back: without it nobody could finish it.
func TestUnfinished(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: "trixie", Customize: carry(t)})
	m.Shell(apt + "install /root/old.deb")
	m.Shell("mkdir -p /srv/up/usr/share/deb-test && echo 1 >/srv/up/usr/share/deb-test/file")
	// A hook that fails before refuses the update; one that does not is called after it, too.
	m.Shell(`mkdir -p /etc/liveupd/hooks.d; hook=/etc/liveupd/hooks.d/10-test
		printf '#!/bin/sh\necho "$1 $LIVEUPD_VERB $LIVEUPD_RESULT" >>/run/hooks.log\n[ ! -e /run/refuse ]\n' >$hook; chmod 755 $hook; : >/run/refuse`)
	if out := packaged(t, m, "apply", "--source", "tree:/srv/up", "--allow-unsigned").Want(t, 1); !strings.Contains(out.Error, "10-test") || there(m, "/usr/share/deb-test") != "" {
		t.Errorf("a hook refuses, and it says %q, and there is %q", out.Error, there(m, "/usr/share/deb-test"))
	}
	m.Shell("rm /run/refuse")
	packaged(t, m, "apply", "--source", "tree:/srv/up", "--allow-unsigned").Want(t, 0)
	if got := m.Shell("cat /run/hooks.log; rm /etc/liveupd/hooks.d/10-test"); got != "pre apply \npre apply \npost apply done" {
		t.Errorf("the hook was called so: %q", got)
	}
	states, err := filepath.Glob(m.Path("/.liveupd/tx/*/state"))
	if err != nil || len(states) != 1 {
		t.Fatalf("%v, %v", states, err)
	}
	was, err := os.ReadFile(states[0])
	if err != nil {
		t.Fatal(err)
	}
	broken := []string{"committing", "swapped", "boot", "restarting", "rolling-back"}
	if !long() {
		broken = broken[:2]
	}
	for _, unfinished := range broken {
		if err := os.WriteFile(states[0], []byte(strings.Replace(string(was), `"verified"`, `"`+unfinished+`"`, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, how := range []string{"--remove", "--purge"} {
			out := m.Run("/bin/sh", "-c", "dpkg "+how+" liveupd 2>&1")
			if out.Code == 0 || !strings.Contains(out.Stdout, "unfinished") || !strings.Contains(out.Stdout, "liveupd recover") {
				t.Errorf("%s while an update is %s: %+v", how, unfinished, out)
			}
			if got := m.Shell("dpkg-query -W -f '${db:Status-Status}' liveupd; test -x /usr/bin/liveupd && test -x /usr/lib/liveupd/liveupd-recover; systemctl is-enabled liveupd-recover.service"); got != "installedenabled" {
				t.Errorf("after a refused %s: %q", how, got)
			}
		}
	}
	// The control: the same, finished.
	if err := os.WriteFile(states[0], was, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Shell(apt + "purge liveupd")
	if _, err := os.Stat(m.Path("/.liveupd")); err == nil {
		t.Error("purged, and old generations are left")
	}
}

// On a machine whose root is read-only the packaged liveupd works and upgrades itself.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	take := carry(t)
	m := machine.Boot(t, machine.Options{Root: "trixie", ReadOnly: true, Customize: func(root string) error {
		if err := take(root); err != nil {
			return err
		}
		run(t, "chroot", root, "dpkg", "-i", "/root/old.deb")
		return nil
	}})
	if out := want(t, m, 0, "liveupd", "setup"); !strings.Contains(out.Stdout, "Nothing to do") {
		t.Errorf("setup: %s", out.Stdout)
	}
	packaged(t, m, "apply", "--no-refresh", "/root/new.deb").Want(t, 0)
	if got := m.Shell("liveupd --version; dpkg --audit"); got != "liveupd "+newVersion+"-1" {
		t.Errorf("%q", got)
	}
	if out := m.Run("touch", "/usr/x"); out.Code == 0 {
		t.Error("the root was left writable")
	}
}

// A purge takes what updates have kept on each file system of the machine, and leaves what
// belongs to another system's root that is mounted.
func TestPurgeVolumes(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: "trixie", WritableVar: true, Customize: carry(t)})
	m.Shell(apt + "install /root/old.deb")
	m.Shell("mkdir -p /srv/up/var/lib/deb-test /srv/up/usr/share/deb-test && echo 1 | tee /srv/up/var/lib/deb-test/file >/srv/up/usr/share/deb-test/file")
	packaged(t, m, "apply", "--source", "tree:/srv/up", "--allow-unsigned").Want(t, 0)
	if got := m.Shell("stat -c %a /.liveupd /var/.liveupd"); got != "700\n700" {
		t.Fatalf("the update has kept nothing on /var: %q", got)
	}
	m.Shell(`for name in foreign "a b"; do
			mkdir -p "/srv/$name" && mount --bind "/srv/$name" "/srv/$name" && mkdir -m 700 "/srv/$name/.liveupd"
		done
		cp -a /.liveupd/tx /.liveupd/history "/srv/foreign/.liveupd/" 2>/dev/null || cp -a /.liveupd/tx /srv/foreign/.liveupd/
		mkdir -p "/srv/a b/.liveupd/tx/1/up"`)
	m.Shell(apt + "purge liveupd")
	if got := m.Shell("ls -d /.liveupd /var/.liveupd /srv/foreign/.liveupd '/srv/a b/.liveupd' 2>/dev/null || :"); got != "/srv/foreign/.liveupd" {
		t.Errorf("purged, there is %q", got)
	}
}
