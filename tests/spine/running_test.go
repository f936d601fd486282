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

// What the services of TestRunning hang on. The library is libz under its own name, in a
// folder of its own, so that nothing else of the machine uses it.
const (
	ownLib    = "usr/lib/mapped/libz.so.1"
	upperConf = "etc/bound/upper.conf"
	lowerConf = "etc/bound/lower.conf"
	hidden    = "etc/bound/hidden.conf"
)

const madeCode = `import ctypes, mmap, os, threading
keep = []
for fd in (os.memfd_create("jit"), os.open("/tmp/jit-code", os.O_RDWR | os.O_CREAT, 0o700), os.open("/var/tmp/plugin", os.O_RDWR | os.O_CREAT, 0o700), os.open("/dev/shm/code", os.O_RDWR | os.O_CREAT, 0o700)):
    os.ftruncate(fd, 4096)
    keep.append(mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
keep.append(mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
for name in ("/tmp/jit-code", "/var/tmp/plugin", "/dev/shm/code"):
    os.unlink(name)
threading.Event().wait()
`

// runningServices are services that show what runs and not just what lies on disk.
func runningServices(root string) error {
	if err := sshKeys(root); err != nil {
		return err
	}
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*/libz.so.1"))
	if err != nil || len(libs) != 1 {
		return fmt.Errorf("libz: %v %w", libs, err)
	}
	lib, err := os.ReadFile(libs[0])
	if err != nil {
		return err
	}
	service := func(body string) string { return "[Unit]\nDescription=What runs\n\n[Service]\n" + body + "\n" }
	for name, content := range map[string]string{
		ownLib:                                    string(lib),
		"usr/lib/systemd/system/mapped.service":   service(`ExecStart=/usr/bin/python3 -c "import ctypes, threading; ctypes.CDLL('/` + ownLib + `'); threading.Event().wait()"`),
		"usr/lib/systemd/system/made.service":     service("ExecStart=/usr/bin/python3 /usr/lib/made/main.py"),
		"usr/lib/made/main.py":                    madeCode,
		"usr/lib/systemd/system/helped.service":   service(`ExecStart=/bin/sh -c "su nobody -s /bin/sh -c 'sleep infinity'; true"`),
		"usr/lib/systemd/system/over.service":     service("BindReadOnlyPaths=/" + upperConf + ":/" + lowerConf + "\nExecStart=/usr/bin/sleep infinity"),
		"usr/lib/systemd/system/barred.service":   service("InaccessiblePaths=/" + hidden + "\nExecStart=/usr/bin/sleep infinity"),
		upperConf:                                 "upper\n",
		lowerConf:                                 "lower\n",
		hidden:                                    "secret\n",
		"etc/ssh/sshd_config.d/pam.conf":          "UsePAM no\n", // its sessions stay in its own cgroup
		"usr/lib/modules/1.2.3-other/kernel/x.ko": "a module\n",
		"usr/lib/modules/1.2.3-other/vmlinuz":     "a kernel\n",
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			return err
		}
		if unit, ok := strings.CutPrefix(name, "usr/lib/systemd/system/"); ok {
			if err := os.Symlink("/"+name, filepath.Join(root, "etc/systemd/system/multi-user.target.wants", unit)); err != nil {
				return err
			}
		}
	}
	return nil
}

// What is right where the disk alone does not tell: what runs is looked at.
func TestRunning(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Customize: runningServices, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed")
	lib, err := os.ReadFile(filepath.Join(m.Image(), ownLib))
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		name string
		run  func(*testing.T, *machine.Machine, func(int) string)
	}{
		{"a library that was put aside", putAside},
		{"a library that was written over in place", inPlace},
		{"a set-id program that runs", setID},
		{"code that was made at run time", madeAtRunTime},
		{"a file that a mount stands upon", mountedOver},
		{"what only a boot takes up", bootOnly},
		{"what a rollback leaves to be done", rollbackLeaves},
		{"an old session of ssh", oldSession},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.run(t, m, func(n int) string { return build(lib, 16*i+n+1) })
		})
	}
}

// build is a version of a library: other code, with another build-id.
func build(lib []byte, n int) string {
	b := slices.Clone(lib)
	b[len(b)/2] ^= byte(n)
	return string(b) + fmt.Sprint(n)
}

// stale are what check names, with the warnings.
func stale(t *testing.T, m *machine.Machine) (units []string, warnings []string) {
	t.Helper()
	out := fixture.In(t, m, "check").Want(t, 0).Check
	for _, u := range out.Units {
		units = append(units, u.Action.String()+" "+u.Unit)
	}
	return units, out.Warnings
}

// byHand puts content at a path of the machine.
func byHand(t *testing.T, m *machine.Machine, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.Image(), name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantStale(t *testing.T, m *machine.Machine, want ...string) {
	t.Helper()
	if got, _ := stale(t, m); !slices.Equal(got, want) {
		t.Errorf("check finds %q; want %q", got, want)
	}
}

// putAside: the old copy is still there, under another name.
func putAside(t *testing.T, m *machine.Machine, version func(int) string) {
	m.Shell("cd /usr/lib/mapped && mv libz.so.1 libz.so.1.aside")
	byHand(t, m, ownLib, version(0))
	wantStale(t, m, "restart mapped.service")
	// An update of that path concerns the service all the same.
	up := fixture.NewTree(t, "bookworm").File(ownLib, version(1), 0o644)
	before := m.Units()
	applied := apply(t, m, up.CopyTo(m, "/run/aside")).Want(t, 0)
	if diff := cmp.Diff(map[string]string{"mapped.service": "restart"}, applied.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	if got := machine.Interrupted(before, m.Units()); !slices.Equal(got, []string{"mapped.service"}) {
		t.Errorf("interrupted were %v; want mapped.service", got)
	}
	wantStale(t, m)
	m.Shell("rm /usr/lib/mapped/libz.so.1.aside")
}

// inPlace: the mapping follows what is written into the file itself.
func inPlace(t *testing.T, m *machine.Machine, version func(int) string) {
	m.Shell("systemctl restart mapped; sleep 3")
	wantStale(t, m)
	before := m.Shell("stat -c %i /" + ownLib)
	byHand(t, m, ownLib, version(0))
	if after := m.Shell("stat -c %i /" + ownLib); after != before {
		t.Fatalf("the inode is %s, and was %s: this test shows nothing", after, before)
	}
	units, warnings := stale(t, m)
	if !slices.Equal(units, []string{"restart mapped.service"}) {
		t.Errorf("check finds %q; want mapped.service", units)
	}
	if !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, "/"+ownLib+" was written in place") }) {
		t.Errorf("the warnings %q do not tell of it", warnings)
	}
	fixture.In(t, m, "restart", "--yes").Want(t, 0)
	wantStale(t, m)
}

// setID: su waits for its command in a service and in a session.
func setID(t *testing.T, m *machine.Machine, _ func(int) string) {
	m.Shell("su nobody -s /bin/sh -c 'sleep 1000000' >/dev/null 2>&1 & sleep 1")
	pids := m.Shell("pgrep -x su")
	if len(strings.Fields(pids)) < 2 {
		t.Fatalf("su runs as %q: this test shows nothing", pids)
	}
	su, err := os.ReadFile(filepath.Join(m.Image(), "usr/bin/su"))
	if err != nil {
		t.Fatal(err)
	}
	up := fixture.NewTree(t, "bookworm").File("usr/bin/su", build(su, 1), 0o4755)
	before := m.Units()
	applied := apply(t, m, up.CopyTo(m, "/run/setid")).Want(t, 0)
	if got := applied.Actions(); len(got) > 0 || applied.Plan.HostAction != change.ActionNone {
		t.Errorf("the plan is %v, host %v; want nothing", got, applied.Plan.HostAction)
	}
	if got := machine.Interrupted(before, m.Units()); len(got) > 0 {
		t.Errorf("interrupted were %v", got)
	}
	wantStale(t, m)
	if got := m.Shell("pgrep -x su"); got != pids {
		t.Errorf("su runs as %q; want %q", got, pids)
	}
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	m.Shell("pkill -x -f 'sleep 1000000'")
}

// madeAtRunTime: code in memory, in /tmp and in shared memory never came from the disk.
func madeAtRunTime(t *testing.T, m *machine.Machine, version func(int) string) {
	pid := m.Unit("made.service").MainPID
	maps := m.Shell(fmt.Sprintf("cat /proc/%d/maps", pid))
	for _, name := range []string{"/memfd:jit (deleted)", "/tmp/jit-code (deleted)", "/var/tmp/plugin (deleted)", "/dev/shm/code (deleted)"} {
		if !strings.Contains(maps, name) {
			t.Fatalf("%s is not mapped: this test shows nothing", name)
		}
	}
	wantStale(t, m)
	up := fixture.NewTree(t, "bookworm").File(ownLib, version(0), 0o644)
	applied := apply(t, m, up.CopyTo(m, "/run/made")).Want(t, 0)
	if diff := cmp.Diff(map[string]string{"mapped.service": "restart"}, applied.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	if got := m.Unit("made.service").MainPID; got != pid {
		t.Errorf("made.service runs as %d; want %d", got, pid)
	}
	wantStale(t, m)
}

// mountedOver: the mount goes with the old file, and the service would see what it was to
// be kept from. It is restarted in the same run.
func mountedOver(t *testing.T, m *machine.Machine, _ func(int) string) {
	sees := func(unit, name string) string {
		return m.Run("nsenter", "-t", fmt.Sprint(m.Unit(unit).MainPID), "-m", "cat", "/"+name).Stdout
	}
	if got := sees("over.service", lowerConf) + sees("barred.service", hidden); got != "upper\n" {
		t.Fatalf("the services see %q: this test shows nothing", got)
	}
	up := fixture.NewTree(t, "bookworm").File(lowerConf, "lower 2\n", 0o644).File(hidden, "secret 2\n", 0o644)
	applied := apply(t, m, up.CopyTo(m, "/run/over")).Want(t, 0)
	if diff := cmp.Diff(map[string]string{"over.service": "restart", "barred.service": "restart"}, applied.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	if strings.Contains(strings.Join(applied.Report.Warnings, "\n"), "still uses") {
		t.Errorf("after their restart: %q", applied.Report.Warnings)
	}
	for _, u := range applied.Plan.Units {
		if !slices.ContainsFunc(u.Reasons, func(r change.Reason) bool { return r.Kind == "namespace" }) {
			t.Errorf("%s: the reasons are %+v; want its namespace", u.Unit, u.Reasons)
		}
	}
	if got := sees("over.service", lowerConf) + sees("barred.service", hidden); got != "upper\n" {
		t.Errorf("the services see %q after the update", got)
	}
	if got := m.Shell("cat /" + lowerConf + " /" + hidden); got != "lower 2\nsecret 2" {
		t.Errorf("the host has %q", got)
	}
	up = fixture.NewTree(t, "bookworm").File(upperConf, "upper 2\n", 0o644)
	apply(t, m, up.CopyTo(m, "/run/upper")).Want(t, 0)
	if got := sees("over.service", lowerConf); got != "upper 2\n" {
		t.Errorf("the service sees %q after its source was replaced", got)
	}
}

// bootOnly: what the plan says of what only a boot takes up.
func bootOnly(t *testing.T, m *machine.Machine, _ func(int) string) {
	kernel := m.Shell("uname -r")
	for i, c := range []struct {
		name, file string
		want       change.Action
		kind       string
	}{
		{"a kernel", "boot/vmlinuz-6.99.0-1-amd64", change.ActionKexec, "kernel"},
		{"a kernel below /usr", "usr/lib/modules/6.99.0/vmlinuz", change.ActionKexec, "kernel"},
		{"an initrd", "boot/initrd.img-6.99.0-1-amd64", change.ActionKexec, "initrd"},
		{"the kernel's arguments", "etc/kernel/cmdline", change.ActionKexec, "kernel"},
		{"a module of the running kernel", "usr/lib/modules/" + kernel + "/kernel/x.ko", change.ActionKexec, "kernel"},
		{"a module of another kernel", "usr/lib/modules/1.2.3-other/kernel/x.ko", change.ActionNone, ""},
		{"firmware", "usr/lib/firmware/iwlwifi/x.ucode", change.ActionKexec, "firmware"},
		{"microcode of Intel", "usr/lib/firmware/intel-ucode/06-9e-0d", change.ActionReboot, "microcode"},
		{"microcode of AMD", "usr/lib/firmware/amd-ucode/microcode_amd.bin", change.ActionReboot, "microcode"},
	} {
		up := fixture.NewTree(t, "bookworm").File(c.file, "new\n", 0o644)
		plan := fixture.In(t, m, append([]string{"apply", "--plan"}, source(up.CopyTo(m, fmt.Sprintf("/run/boot%d", i)))...)...).Want(t, 0).Plan
		if plan.HostAction != c.want || len(plan.Units) > 0 {
			t.Errorf("%s: host %v, units %v; want %v and none", c.name, plan.HostAction, plan.Units, c.want)
		}
		if c.want > change.ActionNone && (len(plan.HostReasons) == 0 || plan.HostReasons[0].Kind != c.kind || !strings.HasPrefix("/"+c.file, plan.HostReasons[0].Path)) {
			t.Errorf("%s: the reasons are %+v; want %s of /%s", c.name, plan.HostReasons, c.kind, c.file)
		}
		for _, s := range plan.Steps {
			if s.Do == "kexec" || s.Do == "reboot" {
				t.Errorf("%s: a boot is a step of the run: %+v", c.name, s)
			}
		}
	}
}

// rollbackLeaves: what a rollback puts off, and what it needs of the host, is told until it is done.
func rollbackLeaves(t *testing.T, m *machine.Machine, version func(int) string) {
	status := func() string { return m.Run("liveupd", "status").Stdout }
	up := fixture.NewTree(t, "bookworm").File(ownLib, version(0), 0o644).File("usr/lib/modules/1.2.3-other/vmlinuz", "another kernel\n", 0o644)
	apply(t, m, up.CopyTo(m, "/run/leaves")).Want(t, 4)
	if got := status(); !strings.Contains(got, "pending: kexec") || strings.Contains(got, "deferred:") {
		t.Errorf("after the apply status says %q", got)
	}
	m.Shell("mkdir -p /etc/liveupd/policy.d; printf '[[rule]]\\nunits = [\"mapped.service\"]\\naction = \"defer\"\\n' >/etc/liveupd/policy.d/mapped.toml")
	fixture.In(t, m, "rollback", "--yes").Want(t, 4)
	m.Shell("rm /etc/liveupd/policy.d/mapped.toml")
	for range 2 {
		if got := status(); !strings.Contains(got, "pending: kexec, for the rollback of") || !strings.Contains(got, "deferred: mapped.service") {
			t.Errorf("after the rollback status says %q", got)
		}
		// A later update takes over what is left.
		apply(t, m, fixture.NewTree(t, "bookworm").File("usr/share/leaves", "x\n", 0o644).CopyTo(m, "/run/later")).Want(t, 0)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	}
	fixture.In(t, m, "restart", "--yes").Want(t, 0)
	if got := status(); strings.Contains(got, "mapped.service") || !strings.Contains(got, "pending: kexec") {
		t.Errorf("after the restart status says %q", got)
	}
}

// oldSession: the session was begun by the sshd of before, in whose cgroup it stays.
func oldSession(t *testing.T, m *machine.Machine, _ func(int) string) {
	m.Shell("ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes root@127.0.0.1 sleep 1234567 >/dev/null 2>&1 & " +
		"for i in $(seq 300); do pgrep -fx 'sleep 1234567' >/dev/null && exit 0; sleep 0.1; done; exit 1")
	sleeper := m.Shell("pgrep -fx 'sleep 1234567'")
	defer m.Run("pkill", "-fx", "sleep 1234567")
	if got := m.Shell("cat /proc/" + sleeper + "/cgroup"); !strings.Contains(got, "ssh.service") {
		t.Fatalf("the session is in %q: this test shows nothing", got)
	}
	up := fixture.NewTree(t, "bookworm").Upgrade(fixture.LibSSL("bookworm"), "usr/lib/*/libcrypto.so.3")
	applied := apply(t, m, up.CopyTo(m, "/run/ssh")).Want(t, 0)
	if applied.Actions()["ssh.service"] != "restart" {
		t.Errorf("the plan is %v; want that ssh.service is restarted", applied.Actions())
	}
	if got := m.Shell("pgrep -fx 'sleep 1234567'"); got != sleeper {
		t.Errorf("the session's command is %q; want %q", got, sleeper)
	}
	check := fixture.In(t, m, "check").Want(t, 0).Check
	for _, u := range check.Units {
		t.Errorf("check finds %s %s stale: %+v", u.Action, u.Unit, u.Reasons)
	}
	if !slices.ContainsFunc(check.Sessions, func(h change.Hit) bool { return h.Unit == "ssh.service" && h.Leftover }) {
		t.Errorf("the sessions %+v do not tell of the old one", check.Sessions)
	}
	before := m.Units()
	for range 3 {
		if out := fixture.In(t, m, "restart", "--yes").Want(t, 0); out.Report.Result != "nothing-to-do" {
			t.Errorf("liveupd restart: %+v", out.Report)
		}
	}
	if got := machine.Interrupted(before, m.Units()); len(got) > 0 {
		t.Errorf("interrupted were %v", got)
	}
}
