package apt

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// mayDiffer lists what an upgrade in the sandbox and one by apt alone may leave
// otherwise; nothing else may.
func mayDiffer(p string) bool {
	under := func(dirs ...string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") })
	}
	switch {
	case under("var/log", "var/tmp", "run", "tmp", "dev", "proc", "sys"): // logs have times in them
	case under("var/cache/apt", "var/lib/apt/lists"): // what was downloaded, and apt's caches
	case under("var/cache/ldconfig"): // inode numbers and times
	case strings.HasSuffix(p, ".pyc"), strings.HasSuffix(p, "/__pycache__"): // the time of their source
	case under("var/lib/systemd/random-seed", "etc/machine-id", "srv"):
	case under("var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock", "var/lib/apt/daily_lock"):
	case under("usr/local/bin"): // the programs of the test
	case under("var/lib/liveupd"), p == "var/lib": // what liveupd tells at logins
	default:
		return false
	}
	return true
}

var times = regexp.MustCompile(` mtime=\S+`)

// timeless takes modification times out: files that scripts generate have that of the run.
func timeless(s machine.Snapshot) machine.Snapshot {
	out := machine.Snapshot{}
	for p, line := range s {
		out[p] = times.ReplaceAllString(line, "")
	}
	return out
}

// plainUpgrade is what apt by itself makes of a copy of the root, which does not run.
func plainUpgrade(t *testing.T, root string) {
	t.Helper()
	script := `set -e
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
mount -t proc proc /proc; mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system
trap 'umount /run /proc' EXIT
export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
apt-get -q update
apt-get -q -y -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-confdef dist-upgrade
rm /usr/sbin/policy-rc.d
`
	cmd := exec.Command("unshare", "--mount", "chroot", root, "/bin/sh", "-c", script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apt alone: %v\n%s", err, out)
	}
}

// All that Debian has published for a release, on a booted machine in one transaction:
// the plan interrupts what it says, the tree is what apt by itself makes of it, dpkg has
// nothing to complain of, and all of it goes back.
func TestUpgrade(t *testing.T) {
	t.Parallel() // not to keep the others waiting
	roots := [][2]string{{"bookworm", "ext4"}}
	if os.Getenv("LIVEUPD_LONG") == "1" {
		roots = append(roots, [][2]string{{"trixie", "ext4"}, {"bookworm", "btrfs"}, {"trixie", "xfs"}}...)
	}
	for _, root := range roots {
		name, fstype := root[0], root[1]
		t.Run(name+" on "+fstype, func(t *testing.T) {
			t.Parallel()
			machine.Require(t)
			debs := upgrades(t, name)
			prepare := func(root string) error {
				if err := fixture.Services(root); err != nil {
					return err
				}
				return archive(root, nil, debs...)
			}
			m := machine.Boot(t, machine.Options{Root: name, FileSystem: fstype, Customize: prepare, Programs: machine.Programs(t)})
			m.Shell("systemctl reset-failed")
			plain := filepath.Join(t.TempDir(), "plain")
			if err := os.Mkdir(plain, 0o755); err != nil {
				t.Fatal(err)
			}
			state := func() machine.Snapshot {
				return machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log", "var/tmp", "var/lib/systemd")
			}
			before, units := state(), m.Units()
			// What the machine's own services do to it meanwhile is not told from the update.
			if out, err := exec.Command("cp", "-a", "--one-file-system", m.Image()+"/.", plain).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}

			planned := fixture.In(t, m, "apply", "--plan", "--full-upgrade").Want(t, 0)
			if planned.Plan.Source != "apt" || len(planned.Plan.Packages) < len(debs)/2 {
				t.Fatalf("the plan has %d packages of %d, from %q", len(planned.Plan.Packages), len(debs), planned.Plan.Source)
			}
			same(t, "after --plan", before, state(), nil)
			if got := machine.Interrupted(units, m.Units()); len(got) > 0 {
				t.Errorf("--plan interrupted %v", got)
			}
			applied := fixture.In(t, m, "apply", "--full-upgrade", "--yes", "--expect", planned.Plan.ID)
			if applied.Code != 0 && applied.Code != 4 {
				applied.Want(t, 0)
			}
			var want []string
			for unit, action := range planned.Actions() {
				if action == "restart" || action == "stop" {
					want = append(want, unit)
				}
			}
			slices.Sort(want)
			got := slices.DeleteFunc(machine.Interrupted(units, m.Units()), func(u string) bool { return strings.HasSuffix(u, ".scope") })
			slices.Sort(got)
			if unsaid := slices.DeleteFunc(slices.Clone(got), func(u string) bool { return slices.Contains(want, u) }); len(unsaid) > 0 {
				t.Errorf("%v was interrupted, which the plan did not say: %v", unsaid, want)
			}
			t.Logf("%d packages, %+v; interrupted %v; apt alone would have asked for %v; host %s",
				len(planned.Plan.Packages), planned.Plan.Changes, got, planned.Plan.Asked, planned.Plan.HostAction)
			for _, check := range []string{"dpkg --audit", "apt-get -q check >/dev/null", "dpkg -V | grep -v var/lib/apt/lists || :"} {
				if out := m.Shell(check); out != "" {
					t.Errorf("%s: %s", check, out)
				}
			}
			if left := m.Shell("apt-get -q update >/dev/null; apt-get -s dist-upgrade | grep -c ^Inst || :"); left != "0" {
				t.Errorf("%s packages are still to be upgraded", left)
			}
			plainUpgrade(t, plain)
			same(t, "apt alone and the transaction", timeless(machine.TakeSnapshot(t, plain, ".liveupd")),
				timeless(machine.TakeSnapshot(t, m.Image(), ".liveupd")), mayDiffer)

			again := fixture.In(t, m, "apply", "--plan", "--full-upgrade", "--exit-code").Want(t, 0)
			if !again.Plan.Empty() {
				t.Errorf("a second plan: %+v", again.Plan.Changes)
			}
			fixture.In(t, m, "rollback", "--yes")
			same(t, "after the rollback", before, state(), mayDiffer)
			if out := m.Shell("dpkg --audit; apt-get -q check >/dev/null"); out != "" {
				t.Errorf("after the rollback dpkg says: %s", out)
			}
		})
	}
}
