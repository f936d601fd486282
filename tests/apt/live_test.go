package apt

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// mydb is a database's server: its configuration migrates data that the server has open, and
// must not meet it running.
//
// What it needs first has dpkg configure in more than one run. Its scripts change what is no data, too: an
// owner, and a flag that is made anew.
func mydb(version string) pack {
	return pack{name: "mydb", version: version, fields: "Pre-Depends: early (= " + version + ")\n", files: map[string]string{
		"usr/share/mydb/version":              version + "\n",
		"usr/bin/mydb":                        "#!/bin/sh\n# " + version + "\nexec 3>>/var/lib/mydb/data\nwhile sleep 0.2; do touch /var/lib/mydb/data; done\n",
		"usr/lib/systemd/system/mydb.service": "[Service]\nExecStart=/usr/bin/mydb\n[Install]\nWantedBy=multi-user.target\n",
	}, scripts: map[string]string{"preinst": `#!/bin/sh
set -e
[ "$1" != upgrade ] || chown daemon /var/lib/mydb/a-info
`, "postinst": `#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
mkdir -p /var/lib/mydb
[ -e /var/lib/mydb/data ] || echo live >/var/lib/mydb/data
[ -e /var/lib/mydb/a-info ] || echo info >/var/lib/mydb/a-info
rm -f /var/lib/mydb/a-flag
touch /var/lib/mydb/a-flag
systemctl enable mydb.service
[ -n "$2" ] || exit 0
if pgrep -x -f '/bin/sh /usr/bin/mydb' >/dev/null; then echo "mydb runs" >&2; exit 4; fi
[ ! -e /etc/mydb-slow ] || sleep 4
[ ! -e /run/mydb-fail ] || { echo "mydb cannot migrate" >&2; exit 3; }
echo "migrated from $2 to ` + version + `" >/var/lib/mydb/data
`}}
}

// A package that changes data in use is refused by name, or configured on the live system
// after the commit: told in the plan, taken up where it was cut off or failed, and past it no
// rollback but a forced one.
func TestLiveData(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	client := func(version string) pack {
		return pack{name: "client", version: version, fields: "Depends: mydb (= " + version + ")\n", files: map[string]string{"usr/share/client/version": version + "\n"}}
	}
	early := func(version string) pack {
		return pack{name: "early", version: version, files: map[string]string{"usr/share/early/version": version + "\n"}}
	}
	m := machine.Boot(t, machine.Options{Root: "bookworm", Programs: machine.Programs(t), Customize: func(root string) error {
		if err := installed(root, early("1")); err != nil {
			return err
		}
		if err := installed(root, mydb("1"), client("1")); err != nil {
			return err
		}
		return archive(root, []pack{mydb("2"), client("2"), early("2")})
	}})
	// As from a server, the lists are files of their own; the machine itself has never fetched them.
	m.Shell("systemctl reset-failed; sed -i 's/file:/copy:/' /etc/apt/sources.list")
	all := "cat /usr/share/mydb/version /usr/share/client/version /var/lib/mydb/data; systemctl is-active mydb.service || :; dpkg-query -W -f '${db:Status-Status} ' mydb client"
	check := func(when string, want ...string) {
		t.Helper()
		if got := m.Shell(all); got != strings.Join(want, "\n") {
			t.Errorf("%s: %q; want %q", when, got, want)
		}
	}
	check("at first", "1", "1", "live", "active", "installed installed")
	apply := []string{"apply", "--yes", "--live-data", "after"}

	refused := fixture.In(t, m, "apply", "--yes").Want(t, 1)
	if !strings.Contains(refused.Error, "mydb changes /var/lib/mydb/data") || !strings.Contains(refused.Hint, "--hold mydb") || !strings.Contains(refused.Hint, "--live-data after") {
		t.Errorf("the refusal says %q, %q", refused.Error, refused.Hint)
	}
	planned := fixture.In(t, m, "apply", "--plan", "--live-data", "after").Want(t, 0)
	var last []string
	for _, st := range planned.Plan.Steps[len(planned.Plan.Steps)-4:] {
		last = append(last, st.Do+" "+st.Target)
		if st.Irreversible != (st.Do == "configure") {
			t.Errorf("%+v: is it irreversible?", st)
		}
	}
	if !slices.Equal(last, []string{"stop mydb.service", "configure mydb", "start mydb.service", "verify /"}) {
		t.Errorf("the last steps are %q", last)
	}
	if !slices.ContainsFunc(planned.Plan.Units, func(u change.UnitPlan) bool {
		return u.Unit == "mydb.service" && u.Action == change.ActionRestart && slices.ContainsFunc(u.Reasons, func(r change.Reason) bool { return r.Kind == "data" && r.Path == "/var/lib/mydb" })
	}) {
		t.Errorf("the plan's units: %+v", planned.Plan.Units)
	}
	if text := m.Run("/usr/local/bin/liveupd", "apply", "--plan", "--live-data", "after", "-v").Stdout; !strings.Contains(text, "cannot be taken back") {
		t.Errorf("the text does not say that it cannot be taken back:\n%s", text)
	}
	check("after the plan", "1", "1", "live", "active", "installed installed")

	// It fails: the new files stay, the server is down, dpkg knows.
	m.Shell("touch /run/mydb-fail")
	failed := fixture.In(t, m, apply...).Want(t, 7)
	if !strings.Contains(failed.Error, "mydb cannot migrate") || !strings.Contains(failed.Hint, "liveupd recover") {
		t.Errorf("the failure says %q, %q", failed.Error, failed.Hint)
	}
	settled(t, m)
	down := []string{"2", "2", "live", "inactive", "installed half-configured"}
	check("after the failure", down...)
	fixture.In(t, m, "recover", "--if-unfinished").Want(t, 0)
	fixture.In(t, m, "recover").Want(t, 7)
	check("after a recovery that fails, too", down...)
	m.Shell("rm /run/mydb-fail")
	fixture.In(t, m, "recover").Want(t, 0)
	up := []string{"2", "2", "migrated from 1 to 2", "active", "installed installed"}
	check("after the recovery", up...)

	back := fixture.In(t, m, "rollback", "--yes").Want(t, 1)
	if !strings.Contains(back.Error, "mydb was configured on the live system") || !strings.Contains(back.Hint, "--force") {
		t.Errorf("the rollback says %q, %q", back.Error, back.Hint)
	}
	check("after the refused rollback", up...)
	fixture.In(t, m, "rollback", "--yes", "--force").Want(t, 0)
	check("after the forced one", "1", "1", "migrated from 1 to 2", "active", "installed installed")

	// All goes well, and just that unit is interrupted.
	m.Shell("echo live >/var/lib/mydb/data; rm -f /var/lib/dpkg/*.liveupd-saved")
	units := m.Units()
	done := fixture.In(t, m, apply...).Want(t, 0)
	if got := machine.Interrupted(units, m.Units()); !slices.Equal(got, []string{"mydb.service"}) {
		t.Errorf("interrupted were %v; the plan said %v", got, done.Actions())
	}
	check("after an apply", up...)
	if out := m.Shell("dpkg --audit; ls /.liveupd/sandbox"); strings.Contains(out, "work") || strings.Contains(out, "mydb") {
		t.Errorf("left is %q", out)
	}
	fixture.In(t, m, "rollback", "--yes", "--force").Want(t, 0)

	// Killed while it is configured: dpkg goes on by itself, and recovery finishes.
	m.Shell("echo live >/var/lib/mydb/data; touch /etc/mydb-slow")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := m.Command(ctx, append([]string{"/usr/local/bin/liveupd"}, apply...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.Shell("until systemctl is-active -q liveupd-configure.service; do sleep 0.1; done")
	for _, pid := range m.Find("liveupd") {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have just ended
	}
	_ = cmd.Wait()
	settled(t, m)
	m.Shell("while systemctl is-active -q liveupd-configure.service; do sleep 0.2; done")
	fixture.In(t, m, "recover").Want(t, 0)
	check("killed and recovered", up...)

	// A failed one can be given up.
	fixture.In(t, m, "rollback", "--yes", "--force").Want(t, 0)
	m.Shell("echo live >/var/lib/mydb/data; rm /etc/mydb-slow; touch /run/mydb-fail")
	fixture.In(t, m, apply...).Want(t, 7)
	settled(t, m)
	fixture.In(t, m, "rollback", "--yes", "--force").Want(t, 0)
	check("given up", "1", "1", "live", "active", "installed installed")
}
