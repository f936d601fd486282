package apt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// misbehaving are packages whose scripts do what scripts should not; each is installed as 1
// and upgraded to 2.
var misbehaving = map[string]pack{
	"restarter": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
systemctl restart cron.service || :
systemctl stop nginx.service || :
deb-systemd-invoke restart nginx.service || :
invoke-rc.d cron restart || :
/etc/init.d/cron stop || :
busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager RestartUnit ss cron.service replace || :
`}},
	"killer": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
pkill -9 nginx || :
pkill -9 cron || :
for pid in $(seq 2 400); do [ $pid = $$ ] || [ $pid = $PPID ] || [ -e /proc/$pid ] || kill -9 $pid 2>/dev/null || :; done
`}},
	"clock": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
date -s 2031-01-01 || :
hostname elsewhere || :
`}},
	"kernel": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
(echo 4711 >/proc/sys/kernel/pid_max) || :
(echo u >/proc/sysrq-trigger) || :
(echo core >/proc/sys/kernel/core_pattern) || :
sysctl -w kernel.pid_max=4711 || :
modprobe dummy || :
`}},
	"daemon": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
setsid sh -c 'while :; do sleep 31337; done' >/dev/null 2>&1 &
`}},
	"switcher": {scripts: map[string]string{"postinst": `#!/bin/sh
set -e
[ "$2" = 1 ] || exit 0
! systemctl is-active --quiet spare.service
systemctl is-active --quiet extra
[ "$(ps -p 1 -o comm=)" = systemd ]
systemctl enable --now spare.service
systemctl disable --now extra
! systemctl is-active --quiet extra
`}},
	"asker": {fields: "Depends: debconf\n", scripts: map[string]string{
		"templates": "Template: asker/sure\nType: boolean\nDefault: true\nDescription: Sure?\n Really?\n",
		"config":    "#!/bin/sh\n. /usr/share/debconf/confmodule\ndb_input critical asker/sure || :\ndb_go || :\n",
		"postinst": `#!/bin/sh
. /usr/share/debconf/confmodule
db_get asker/sure
[ "$RET" = true ]
(read answer </dev/tty) 2>/dev/null || :
db_stop
`,
	}},
	"outside": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
mkdir -p /home/somebody /srv/data
echo x >/home/somebody/x; echo x >/root/x; echo x >/srv/data/x; echo x >/usr/local/bin/x; echo x >/tmp/x; echo x >/run/x; echo x >/var/tmp/x
`}},
	"failing": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
rm -rf /etc/nginx /usr/bin/perl
echo "failing says why" >&2
exit 7
`}},
	"filling": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
cat /dev/zero >/usr/share/filling || :
cat /dev/zero >/var/cache/filling || :
sync
exit 0
`}},
	"database": {scripts: map[string]string{"postinst": `#!/bin/sh
[ "$2" = 1 ] || exit 0
echo migrated >/var/lib/mydb/data
`}},
	"bomb": {scripts: map[string]string{"prerm": `#!/bin/sh
case $1 in upgrade | failed-upgrade) ;; *) exit 0 ;; esac
echo never >/etc/bomb
kill -9 $$
`}},
}

// Each package by itself on a booted machine: the upgrade ends as it should, and nothing of
// the running system is touched.
func TestMisbehaving(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: "bookworm", Programs: machine.Programs(t), Free: 900 << 20, Customize: func(root string) error {
		var old, now []pack
		for name, p := range misbehaving {
			p.name, p.version = name, "1"
			p.files = map[string]string{"usr/share/" + name + "/version": "1\n"}
			old = append(old, p)
			p.version = "2"
			p.files = map[string]string{"usr/share/" + name + "/version": "2\n"}
			now = append(now, p)
		}
		conf := pack{
			name: "conf", version: "1", conffiles: []string{"/etc/conf.d/conf", "/etc/conf.d/other", "/etc/conf.d/linked"},
			files: map[string]string{"etc/conf.d/conf": "one\n", "etc/conf.d/other": "one\n", "etc/conf.d/linked": "one\n"},
		}
		old = append(old, conf)
		conf.version, conf.files = "2", map[string]string{"etc/conf.d/conf": "two\n", "etc/conf.d/other": "two\n", "etc/conf.d/linked": "two\n"}
		now = append(now, conf)
		// What the scripts of the first version must not do, while it is installed without a sandbox.
		for i := range old {
			if old[i].name != "asker" {
				old[i].scripts = nil
			}
		}
		old[slices.IndexFunc(old, func(p pack) bool { return p.name == "bomb" })].scripts = misbehaving["bomb"].scripts
		if err := installed(root, old...); err != nil {
			return err
		}
		if err := put(root, map[string]string{
			"etc/conf.d/conf":                                  "mine\n",
			"var/lib/mydb/data":                                "live\n",
			"etc/systemd/system/mydb.service":                  "[Service]\nExecStart=/bin/sh -c 'exec 3>>/var/lib/mydb/data; exec sleep infinity'\n[Install]\nWantedBy=multi-user.target\n",
			"etc/systemd/system/multi-user.target.wants/.keep": "",
			"etc/systemd/system/spare.service":                 "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
			"etc/systemd/system/extra.service":                 "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
		}); err != nil {
			return err
		}
		// The administrator keeps one of the conffiles elsewhere.
		if err := os.Rename(filepath.Join(root, "etc/conf.d/linked"), filepath.Join(root, "etc/conf.d/mine")); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc/conf.d/mine"), []byte("linked\n"), 0o644); err != nil {
			return err
		}
		for name, target := range map[string]string{
			"etc/systemd/system/multi-user.target.wants/mydb.service":  "../mydb.service",
			"etc/systemd/system/multi-user.target.wants/extra.service": "../extra.service",
			"etc/conf.d/linked": "mine",
		} {
			if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
				return err
			}
		}
		return archive(root, now)
	}})
	m.Shell("systemctl reset-failed")
	units, pidMax := m.Units(), m.Shell("cat /proc/sys/kernel/pid_max")
	state := func() machine.Snapshot {
		return machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log", "var/lib/systemd", "var/tmp", "var/cache/apt/archives/lock", "var/lib/apt/lists")
	}
	version := func(name string) string { return m.Shell("cat /usr/share/" + name + "/version") }
	untouched := func(t *testing.T) {
		t.Helper()
		if got := machine.Interrupted(units, m.Units()); len(got) > 0 {
			t.Errorf("it interrupted %v", got)
		}
		if got := m.Shell("cat /proc/sys/kernel/pid_max"); got != pidMax {
			t.Errorf("it set pid_max to %s", got)
		}
		if out := m.Shell("pgrep -x -f 'sleep 31337' || :"); out != "" {
			t.Errorf("it left process %s", out)
		}
		if out := m.Shell("dpkg --audit; ls /.liveupd/sandbox"); strings.Contains(out, "work") {
			t.Errorf("it left: %s", out)
		}
	}
	for _, name := range []string{"restarter", "killer", "clock", "kernel", "daemon", "asker", "outside", "switcher"} {
		t.Run(name, func(t *testing.T) {
			host, clock := m.Shell("hostname"), time.Now()
			out := fixture.In(t, m, "apply", "--yes", name).Want(t, 0)
			if len(out.Plan.Packages) != 1 || out.Plan.Packages[0].Name != name || out.Plan.Packages[0].From != "1" || out.Plan.Packages[0].To != "2" {
				t.Errorf("the plan's packages: %+v", out.Plan.Packages)
			}
			if got := version(name); got != "2" {
				t.Errorf("version %s is installed", got)
			}
			untouched(t)
			if m.Shell("hostname") != host || time.Since(clock) < 0 || time.Since(clock) > time.Hour {
				t.Error("it changed the host's name or clock")
			}
			if name == "restarter" && !slices.ContainsFunc(out.Plan.Asked, func(s string) bool { return strings.HasPrefix(s, "nginx.service restart") }) {
				t.Errorf("what it asked for was not noted: %q", out.Plan.Asked)
			}
			if name == "switcher" {
				started(t, m, out)
			}
			if name == "outside" {
				if got := m.Shell("cat /home/somebody/x /root/x /srv/data/x /usr/local/bin/x; ls /tmp/x /run/x /var/tmp/x 2>/dev/null || :"); got != "x\nx\nx\nx" {
					t.Errorf("what it made elsewhere: %q", got)
				}
				fixture.In(t, m, "rollback", "--yes").Want(t, 0)
				if got := m.Shell("ls -d /home/somebody /root/x /srv/data 2>/dev/null || :"); got != "" {
					t.Errorf("after the rollback there is %s", got)
				}
			}
		})
	}
	for name, want := range map[string]string{
		"failing": "failing says why", "filling": "room", "database": "/var/lib/mydb", "bomb": "apt ended",
	} {
		t.Run(name, func(t *testing.T) {
			before := state()
			out := fixture.In(t, m, "apply", "--yes", name).Want(t, 1)
			if !strings.Contains(out.Error, want) || !strings.Contains(out.Error, "nothing was changed") {
				t.Errorf("the error is %q; want %q in it", out.Error, want)
			}
			same(t, "after it", before, state(), nil)
			untouched(t)
			if got := version(name); got != "1" {
				t.Errorf("version %s is installed", got)
			}
		})
	}
	t.Run("conf", func(t *testing.T) {
		out := fixture.In(t, m, "apply", "--yes", "conf").Want(t, 0)
		if len(out.Plan.Conffiles) != 2 || !strings.Contains(out.Plan.Conffiles[1].Diff, "\n-linked\n+two") || out.Plan.Conffiles[0].Path != "/etc/conf.d/conf" || !out.Plan.Conffiles[0].Kept ||
			!strings.Contains(out.Plan.Conffiles[0].Diff, "\n-mine\n+two") {
			t.Errorf("the plan's conffiles: %+v", out.Plan.Conffiles)
		}
		if got := m.Shell("cat /etc/conf.d/conf /etc/conf.d/other /etc/conf.d/conf.dpkg-dist"); got != "mine\ntwo\ntwo" {
			t.Errorf("the files: %q", got)
		}
		// By hand since: the rollback would leave dpkg's database of another tree.
		m.Shell("cd /srv/archive && dpkg -i killer_2_all.deb >/dev/null 2>&1; dpkg -r clock >/dev/null 2>&1")
		refused := fixture.In(t, m, "rollback", "--yes").Want(t, 1)
		if !strings.Contains(refused.Error, "dpkg has run since") {
			t.Errorf("the rollback says %q", refused.Error)
		}
		if got := m.Shell("cat /etc/conf.d/other; dpkg --audit"); got != "two" {
			t.Errorf("the refused rollback left %q", got)
		}
		// And liveupd goes on from there.
		next := fixture.In(t, m, "apply", "--plan", "clock").Want(t, 0)
		if len(next.Plan.Packages) != 1 || next.Plan.Packages[0].From != "" {
			t.Errorf("after apt was used by hand: %+v", next.Plan.Packages)
		}
	})
	// What an earlier run of dpkg has left is finished, as apt by itself does, and told.
	t.Run("unfinished", func(t *testing.T) {
		for how, leave := range map[string]string{
			"unpacked":        "dpkg --unpack /srv/archive/asker_2_all.deb",
			"half-configured": "mv /usr/share/debconf/confmodule /root; dpkg -i /srv/archive/asker_2_all.deb || :; mv /root/confmodule /usr/share/debconf",
		} {
			m.Shell("(" + leave + ") >/dev/null 2>&1")
			if got := m.Shell("dpkg-query -W -f '${db:Status-Status}' asker"); got != how {
				t.Fatalf("asker is %s; want %s", got, how)
			}
			out := fixture.In(t, m, "apply", "--yes", "asker").Want(t, 0)
			if !slices.ContainsFunc(out.Plan.Warnings, func(w string) bool { return strings.HasPrefix(w, "asker was left half-configured") }) {
				t.Errorf("%s: the plan warns %q", how, out.Plan.Warnings)
			}
			if got := m.Shell("dpkg --audit; dpkg-query -W -f '${db:Status-Status}' asker"); got != "installed" {
				t.Errorf("%s: it is %s", how, got)
			}
		}
	})
	t.Run("locks", func(t *testing.T) {
		// python's lockf is fcntl's F_SETLK, as apt's.
		m.Shell("systemd-run -q --unit=apt-daily-upgrade-test python3 -c 'import fcntl,time; f=open(\"/var/lib/dpkg/lock-frontend\",\"w\"); fcntl.lockf(f,fcntl.LOCK_EX); open(\"/run/held\",\"w\"); time.sleep(600)'; until [ -e /run/held ]; do sleep 0.1; done")
		out := fixture.In(t, m, "apply", "--yes", "clock").Want(t, 5)
		if !strings.Contains(out.Error, "lock-frontend") || !strings.Contains(out.Error, "apt-daily-upgrade-test.service") {
			t.Errorf("the error is %q", out.Error)
		}
		// Nor does anything else change dpkg's database under it.
		status := m.Shell("sha256sum /var/lib/dpkg/status")
		run := func(args ...string) *fixture.Output {
			return fixture.Parse(t, m.Run(append([]string{"/usr/local/bin/liveupd", "--json"}, args...)...))
		}
		for _, args := range [][]string{{"rollback", "--yes"}, {"exec", "--yes", "--", "sh", "-c", "echo >>/var/lib/dpkg/status"}} {
			if out := run(args...).Want(t, 5); !strings.Contains(out.Error, "apt-daily-upgrade-test.service") {
				t.Errorf("%s says %q", args[0], out.Error)
			}
		}
		run("exec", "--yes", "--", "sh", "-c", "echo >>/etc/motd").Want(t, 0)
		run("rollback", "--yes").Want(t, 0)
		if got := m.Shell("sha256sum /var/lib/dpkg/status"); got != status {
			t.Errorf("dpkg's database is %s; it was %s", got, status)
		}
		m.Shell("systemctl stop apt-daily-upgrade-test")
		// And theirs finds ours, while a package's script takes its time.
		m.Shell(`mkdir -p /srv/slow/DEBIAN && cd /srv/slow && printf 'Package: slow\nVersion: 1\nArchitecture: all\nMaintainer: t <t@x>\nDescription: x\n' >DEBIAN/control &&
			printf '#!/bin/sh\nsleep 8\n' >DEBIAN/postinst && chmod 755 DEBIAN/postinst && dpkg-deb -b . /srv/slow.deb >/dev/null
			systemd-run -q --unit=ours /usr/local/bin/liveupd apply --yes /srv/slow.deb
			until pgrep -f liveupd-sandbox >/dev/null; do sleep 0.1; done; sleep 2`)
		m.Shell("apt-get -q update >/dev/null 2>&1 || :")
		theirs := m.Run("apt-get", "install", "-y", "clock")
		if theirs.Code == 0 || !strings.Contains(theirs.Stderr, "liveupd") {
			t.Errorf("apt beside liveupd: %d, %q", theirs.Code, theirs.Stderr)
		}
		m.Shell("while systemctl is-active -q ours; do sleep 0.2; done; dpkg -s slow >/dev/null; apt-get -q update >/dev/null; apt-get install -y -q clock >/dev/null")
	})
}

// started looks at what a script asked systemctl for: what it enabled runs, what it disabled goes on and
// the plan says so.
func started(t *testing.T, m *machine.Machine, out *fixture.Output) {
	t.Helper()
	if got := m.Shell("systemctl is-active spare extra; systemctl is-enabled spare; systemctl is-enabled extra || :"); got != "active\nactive\nenabled\ndisabled" {
		t.Errorf("spare and extra are %q", got)
	}
	if !slices.ContainsFunc(out.Plan.Warnings, func(w string) bool { return strings.Contains(w, "asks for extra.service to be stopped") }) {
		t.Errorf("the plan does not say that extra goes on: %q", out.Plan.Warnings)
	}
	// So do vendors' installers.
	unit := "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
	exec := fixture.Parse(t, m.Run("/usr/local/bin/liveupd", "exec", "--yes", "--json", "--", "sh", "-c",
		"printf '"+unit+"' >/etc/systemd/system/vendor.service && systemctl enable --now vendor")).Want(t, 0)
	if got := m.Shell("systemctl is-active vendor"); got != "active" || !slices.Equal(exec.Plan.Asked, []string{"vendor.service start"}) {
		t.Errorf("vendor is %s, asked was %q", got, exec.Plan.Asked)
	}
}
