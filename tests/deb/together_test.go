package deb

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// The files that live together lays.
const (
	dropIn     = "/etc/systemd/system/apt-daily-upgrade.service.d/50-liveupd.conf"
	aptConf    = "/etc/apt/apt.conf.d/99liveupd"
	keeperHook = "/etc/liveupd/hooks.d/50-etckeeper"
	enable     = "/etc/liveupd/liveupd.toml.d/unattended.toml"
)

// webPackage makes a version of a package that has a file in /etc. Its script waits, where
// it runs on the machine itself and was told to.
func webPackage(dir, version string) error {
	work, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"DEBIAN/control":   "Package: webby\nVersion: " + version + "\nArchitecture: all\nMaintainer: Test <t@example.com>\nDescription: a test\n",
		"DEBIAN/conffiles": "/etc/webby.conf\n",
		"DEBIAN/postinst":  "#!/bin/sh\nif [ -e /run/hold ]; then : >/run/held; while [ -e /run/hold ]; do sleep 0.1; done; fi\n",
		"etc/webby.conf":   "version = " + version + "\n",
	} {
		name = filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(name, []byte(content), mode); err != nil {
			return err
		}
	}
	out, err := exec.Command("dpkg-deb", "--root-owner-group", "-Znone", "--build", work, filepath.Join(dir, "webby_"+version+"_all.deb")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, out)
	}
	return nil
}

// archive makes a folder an archive of one version of the package, from an origin that
// unattended-upgrades takes.
func archive(dir, version string) error {
	deb := filepath.Join(dir, "webby_"+version+"_all.deb")
	control, err := exec.Command("dpkg-deb", "--field", deb).Output()
	if err != nil {
		return err
	}
	content, err := os.ReadFile(deb)
	if err != nil {
		return err
	}
	packages := fmt.Sprintf("%sFilename: ./%s\nSize: %d\nSHA256: %x\n", control, filepath.Base(deb), len(content), sha256.Sum256(content))
	release := fmt.Sprintf("Origin: Webby\nLabel: Webby\nSuite: stable\nCodename: stable\nDate: Sat, 21 Nov 2026 00:00:00 UTC\nSHA256:\n %x %d Packages\n", sha256.Sum256([]byte(packages)), len(packages))
	for name, text := range map[string]string{"Packages": packages, "Release": release} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// beside boots a machine with all that looks after updates, the package and webby 1.0.
func beside(t *testing.T) *machine.Machine {
	t.Helper()
	take := carry(t)
	return machine.Boot(t, machine.Options{Root: "together", Customize: func(root string) error {
		if err := take(root); err != nil {
			return err
		}
		dir := filepath.Join(root, "srv/archive")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, version := range []string{"1.0", "1.1", "1.2", "1.3", "1.4"} {
			if err := webPackage(dir, version); err != nil {
				return err
			}
		}
		for name, text := range map[string]string{
			"etc/apt/sources.list":      "deb [trusted=yes] file:/srv/archive ./\n",
			"etc/apt/apt.conf.d/51test": "Unattended-Upgrade::Origins-Pattern:: \"origin=Webby\";\nAcquire::Languages \"none\";\n",
		} {
			if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		run(t, "chroot", root, "dpkg", "-i", "/srv/archive/webby_1.0_all.deb", "/root/old.deb")
		return archive(dir, "1.0")
	}})
}

// offer has the machine's archive hold this version, and apt know of it.
func offer(t *testing.T, m *machine.Machine, version string) {
	t.Helper()
	if err := archive(m.Path("/srv/archive"), version); err != nil {
		t.Fatal(err)
	}
	m.Shell("apt-get -q update >/dev/null; rm -f /var/lib/apt/periodic/*")
}

func installed(t *testing.T, m *machine.Machine) string {
	t.Helper()
	return m.Shell("dpkg-query -W -f '${Version}' webby")
}

// daily is what the timer apt-daily-upgrade.timer starts.
func daily(t *testing.T, m *machine.Machine) {
	t.Helper()
	m.Shell("rm -f /var/lib/apt/periodic/*; systemctl start apt-daily-upgrade.service")
}

func setup(t *testing.T, m *machine.Machine, code int, args ...string) (*change.SetupReport, string) {
	t.Helper()
	out := want(t, m, code, append([]string{"liveupd", "--json", "setup"}, args...)...)
	var report change.SetupReport
	for line := range strings.Lines(out.Stdout) {
		if strings.Contains(line, `"verb":"setup"`) {
			if err := json.Unmarshal([]byte(line), &report); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &report, out.Stdout
}

func actions(r *change.SetupReport) map[string]string {
	out := map[string]string{}
	for _, it := range r.Items {
		if it.For != "" {
			out[it.Path] = it.Action
		}
	}
	return out
}

func there(m *machine.Machine, names ...string) string {
	var out []string
	for _, name := range names {
		if _, err := os.Lstat(m.Path(name)); err == nil {
			out = append(out, name)
		}
	}
	return strings.Join(out, " ")
}

// What else updates a machine: shown, changed with consent only, and taken back.
func TestTogether(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := beside(t)
	ours := []string{dropIn, aptConf, keeperHook, "/var/lib/liveupd/together.json", filepath.Dir(dropIn), filepath.Dir(keeperHook)}
	git := func(args string) string { return m.Shell("git -C /etc " + args) }
	git("status --porcelain >/dev/null")
	m.Shell("etckeeper commit begin >/dev/null || :")

	// Shown, and nothing done.
	report, _ := setup(t, m, 0)
	found := map[string]bool{}
	for _, n := range report.Neighbours {
		found[n.Name] = true
	}
	for _, name := range []string{"unattended-upgrades", "apt's timers", "needrestart", "etckeeper"} {
		if !found[name] {
			t.Errorf("setup does not tell of %s: %+v", name, report.Neighbours)
		}
	}
	if out := want(t, m, 1, "liveupd", "setup", "--live-together"); !strings.Contains(out.Stdout, "+ExecStartPre=") || !strings.Contains(out.Stdout, "+++ "+keeperHook) || !strings.Contains(out.Stderr, "--yes") {
		t.Errorf("without consent it says: %+v", out)
	}
	if got := there(m, ours...); got != "" {
		t.Errorf("without consent there is %s", got)
	}

	// Without consent both go on: liveupd takes what unattended-upgrades has not, and etckeeper
	// is not run in the sandbox.
	head := git("rev-parse HEAD")
	offer(t, m, "1.1")
	packaged(t, m, "apply").Want(t, 0)
	if got := installed(t, m); got != "1.1" {
		t.Errorf("webby is %s", got)
	}
	if got := git("rev-parse HEAD"); got != head {
		t.Error("without consent etckeeper has committed in the sandbox")
	}
	if got := git("status --porcelain"); !strings.Contains(got, "webby.conf") {
		t.Errorf("/etc: %q", got)
	}

	// With consent, liveupd's own mode off: unattended-upgrades goes on.
	report, _ = setup(t, m, 0, "--live-together", "--yes")
	if got := actions(report); got[dropIn] != "install" || got[keeperHook] != "install" || got[aptConf] != "" {
		t.Errorf("it has done %v", got)
	}
	if got := m.Shell("systemctl cat apt-daily-upgrade.service"); !strings.Contains(got, "setup --settle") {
		t.Errorf("systemd does not know of the drop-in: %s", got)
	}
	if again, text := setup(t, m, 0, "--live-together", "--yes"); again.Result != "nothing-to-do" {
		t.Errorf("once more: %s", text)
	}
	offer(t, m, "1.2")
	daily(t, m)
	if got := installed(t, m); got != "1.2" {
		t.Errorf("liveupd's mode is off, and unattended-upgrades left webby at %s: %s", got, m.Journal("apt-daily-upgrade.service"))
	}

	// On: it stands down, with the first run, and apt's own clean-up goes on.
	m.Shell("mkdir -p $(dirname " + enable + "); printf '[unattended]\\nenabled = true\\n' >" + enable)
	offer(t, m, "1.3")
	daily(t, m)
	if got := installed(t, m); got != "1.2" {
		t.Errorf("liveupd's mode is on, and unattended-upgrades took webby to %s", got)
	}
	if got := m.Shell("apt-config dump APT::Periodic::Unattended-Upgrade"); !strings.Contains(got, `"0"`) {
		t.Errorf("apt's configuration: %s", got)
	}

	// liveupd takes its place, and etckeeper commits before and after.
	m.Shell("echo 'mine = 1' >/etc/mine.conf")
	packaged(t, m, "apply").Want(t, 0)
	if got := installed(t, m); got != "1.3" {
		t.Errorf("webby is %s", got)
	}
	if got := git("status --porcelain"); got != "" {
		t.Errorf("/etc is not committed: %s", got)
	}
	if before, after := git("log -1 --format=%H -- mine.conf"), git("log -1 --format=%H -- webby.conf"); before == after || before == "" || after == "" {
		t.Errorf("what was changed before is in the commit %q, the update in %q", before, after)
	}

	// Off again: it comes back.
	m.Shell("rm " + enable)
	offer(t, m, "1.4")
	daily(t, m)
	if got := installed(t, m); got != "1.4" || there(m, aptConf) != "" {
		t.Errorf("liveupd's mode is off again, and webby is %s, and there is %q", got, there(m, aptConf))
	}

	// needrestart stays for apt by hand.
	if out := m.Shell(apt + "install --reinstall webby 2>&1"); !strings.Contains(out, "needrestart") && !strings.Contains(out, "No services need to be restarted") && !strings.Contains(out, "Scanning processes") {
		t.Errorf("needrestart has not run after apt by hand: %s", out)
	}

	// Undone exactly, but for what the administrator has edited: that stays, and is told.
	m.Shell("echo '# mine' >>" + keeperHook)
	report, _ = setup(t, m, 0, "--undo", "--live-together", "--yes")
	if got := actions(report); got[dropIn] != "remove" || got[keeperHook] != "keep" {
		t.Errorf("--undo has done %v", got)
	}
	if got := there(m, ours...); got != keeperHook+" "+filepath.Dir(keeperHook) {
		t.Errorf("undone, there is %s", got)
	}
	m.Shell("rm -r " + filepath.Dir(keeperHook))

	// And by the removal of the package.
	m.Shell("printf '[unattended]\\nenabled = true\\n' >" + enable)
	setup(t, m, 0, "--live-together", "--yes")
	if got := there(m, dropIn, aptConf, keeperHook); strings.Count(got, "/etc/") != 3 {
		t.Errorf("there is just %s", got)
	}
	m.Shell(apt + "remove liveupd")
	if got := there(m, ours...); got != "" {
		t.Errorf("the package is removed, and there is %s", got)
	}
	if got := m.Shell("systemctl cat apt-daily-upgrade.service; apt-config dump APT::Periodic::Unattended-Upgrade"); strings.Contains(got, "liveupd") || !strings.Contains(got, `"1"`) {
		t.Errorf("the package is removed, and unattended-upgrades: %s", got)
	}
}

// Both at the same time: who comes second finds the lock taken, says so, and breaks nothing.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := beside(t)

	// unattended-upgrades first.
	offer(t, m, "1.1")
	m.Shell(": >/run/hold; systemctl start --no-block apt-daily-upgrade.service")
	await(t, "unattended-upgrades at work", func() bool { return there(m, "/run/held") != "" })
	second := packaged(t, m, "apply").Want(t, 5)
	if !strings.Contains(second.Error, "lock") {
		t.Errorf("it says %q", second.Error)
	}
	m.Shell("rm /run/hold")
	await(t, "the end of unattended-upgrades", func() bool { return m.Unit("apt-daily-upgrade.service").ActiveState == "inactive" })
	if got := installed(t, m); got != "1.1" || m.Unit("apt-daily-upgrade.service").Result != "success" {
		t.Errorf("webby is %s: %s", got, m.Journal("apt-daily-upgrade.service"))
	}

	// liveupd first: it stands still while it has the locks.
	offer(t, m, "1.2")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := m.Command(ctx, "/usr/bin/liveupd", "--json", "apply")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var stopped []int
	await(t, "liveupd at work", func() bool {
		for _, pid := range m.Find("liveupd") {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.Contains(string(b), "worker-inside") && len(m.Find("liveupd-sandbox")) > 0 && syscall.Kill(pid, syscall.SIGSTOP) == nil {
				stopped = append(stopped, pid)
			}
		}
		return len(stopped) > 0
	})
	out := m.Run("/bin/sh", "-c", "unattended-upgrade --debug 2>&1")
	for _, pid := range stopped {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	_ = cmd.Wait()
	if !strings.Contains(strings.ToLower(out.Stdout), "lock") {
		t.Errorf("unattended-upgrades beside liveupd says %+v", out)
	}
	fixture.Parse(t, machine.Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}).Want(t, 0)
	if got := m.Shell("dpkg --audit; dpkg-query -W -f '${Version}' webby"); got != "1.2" {
		t.Errorf("webby is %q", got)
	}

	// Neither is the database exchanged under somebody who holds the locks; without him it is.
	somebody := func() (ends func()) {
		m.Shell("rm -f /run/locked; python3 -c 'import fcntl, os, time; f = open(\"/var/lib/dpkg/lock-frontend\", \"w\"); fcntl.lockf(f, fcntl.LOCK_EX); open(\"/run/locked\", \"w\").write(str(os.getpid())); time.sleep(600)' >/dev/null 2>&1 &")
		await(t, "somebody with apt's lock", func() bool { return m.Run("test", "-s", "/run/locked").Code == 0 })
		return func() { m.Shell("kill $(cat /run/locked)") }
	}
	locked := func(verb, want string, args ...string) {
		t.Helper()
		if out := packaged(t, m, append([]string{verb}, args...)...).Want(t, 5); !strings.Contains(out.Error, "lock-frontend") || installed(t, m) != want {
			t.Errorf("%s beside apt says %q, and webby is %s; want %s", verb, out.Error, installed(t, m), want)
		}
	}
	ends := somebody()
	locked("exec", "1.2", "--", "sed", "-i", "/^Package: webby$/,/^$/s/^Version: .*/Version: 7/", "/var/lib/dpkg/status")
	locked("rollback", "1.2")
	ends()
	packaged(t, m, "rollback").Want(t, 0)
	if got := installed(t, m); got != "1.1" {
		t.Errorf("after the rollback webby is %s", got)
	}

	// Nor is that which a killed rollback had begun gone on with; after a kill it waits by itself.
	packaged(t, m, "apply").Want(t, 0)
	began(t, m)
	ends = somebody()
	locked("recover", "1.2")
	m.Shell("systemd-run -q --unit=after-a-kill liveupd --json recover --if-unfinished")
	await(t, "the recovery's attempt", func() bool { return strings.Contains(m.Journal("after-a-kill.service"), "lock-frontend") })
	if got := installed(t, m); got != "1.2" || m.Unit("after-a-kill.service").ActiveState != "active" {
		t.Errorf("webby is %s beside apt; the recovery says %s", got, m.Journal("after-a-kill.service"))
	}
	ends()
	await(t, "the end of the recovery", func() bool { return m.Unit("after-a-kill.service").ActiveState != "active" })
	if got := installed(t, m); got != "1.1" {
		t.Errorf("after the recovery webby is %s: %s", got, m.Journal("after-a-kill.service"))
	}

	// The control: alone, each takes what there is.
	offer(t, m, "1.3")
	m.Shell("unattended-upgrade")
	if got := installed(t, m); got != "1.3" {
		t.Errorf("unattended-upgrades alone left webby at %s", got)
	}
}

// began leaves the newest transaction as a rollback does that is killed before it moves a name.
func began(t *testing.T, m *machine.Machine) {
	t.Helper()
	txs, err := filepath.Glob(filepath.Join(m.Image(), ".liveupd/tx/*"))
	if err != nil || len(txs) == 0 {
		t.Fatalf("no transaction: %v", err)
	}
	dir, err := sys.OpenRoot(slices.Max(txs))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	st, err := journal.ReadStatus(dir)
	if err != nil {
		t.Fatal(err)
	}
	st.Before, st.State = st.State, journal.RollingBack
	if err := journal.WriteStatus(&sys.Kernel{}, dir, st); err != nil {
		t.Fatal(err)
	}
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("%s: it did not come", what)
}
