package machine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// hostState is what a machine could leave behind.
func hostState(t *testing.T, name string) []string {
	t.Helper()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, name) {
			left = append(left, "mount "+line)
		}
	}
	loops, err := command("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(loops) {
		if strings.Contains(line, name) {
			left = append(left, "loop device "+line)
		}
	}
	unified, err := unifiedCgroup()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(unified, name), filepath.Join(machinesDir(), name), filepath.Join("/run/systemd/nspawn/propagate", name)} {
		if exists(path) {
			left = append(left, path)
		}
	}
	return left
}

func TestMachine(t *testing.T) {
	for _, root := range []string{"bookworm", "trixie"} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			m := Boot(t, Options{Root: root, ReadOnly: true, Customize: func(root string) error {
				return os.WriteFile(filepath.Join(root, "etc/customized"), []byte("yes\n"), 0o644)
			}})
			if state := hostState(t, m.Name); len(state) == 0 {
				t.Error("hostState sees nothing of a running machine: the control failed")
			}
			t.Run("run", func(t *testing.T) {
				r := m.Run("sh", "-c", "cat /etc/customized; echo bad >&2; exit 7")
				if r.Code != 7 || r.Stdout != "yes\n" || r.Stderr != "bad\n" {
					t.Errorf("Run = %+v; want code 7, yes, bad", r)
				}
				if got := m.Shell("hostname; id -u"); got != m.Name+"\n0" {
					t.Errorf("hostname, id = %q", got)
				}
				if got := m.Shell("grep ^0:: /proc/self/cgroup"); got != "0::/"+session {
					t.Errorf("cgroup = %q; want the operator's session", got)
				}
			})
			t.Run("units", func(t *testing.T) {
				if failed := m.Shell("systemctl --failed --plain --no-legend"); failed != "" {
					t.Errorf("failed units:\n%s", failed)
				}
				before := m.Units()
				for _, name := range []string{"nginx.service", "cron.service", "ssh.service", "dbus.service", "systemd-logind.service"} {
					u := before[name]
					if u.ActiveState != "active" || u.InvocationID == "" || u.MainPID == 0 {
						t.Errorf("%s = %+v; want it active with a main process", name, u)
					}
				}
				if pids := m.PIDs("nginx.service"); !slices.Contains(pids, m.HostPID(before["nginx.service"].MainPID)) {
					t.Errorf("PIDs(nginx.service) = %v; want the main process %d among them", pids, before["nginx.service"].MainPID)
				}
				m.Shell("systemctl restart cron.service; systemctl reload nginx.service")
				if got := Interrupted(before, m.Units()); !slices.Equal(got, []string{"cron.service"}) {
					t.Errorf("Interrupted = %v; want cron.service alone", got)
				}
			})
			t.Run("private namespace", func(t *testing.T) { writableInPrivate(t, m) })
			m.Stop()
			if state := leftBehind(t, m.Name); len(state) > 0 {
				t.Errorf("the machine left behind:\n%s", strings.Join(state, "\n"))
			}
		})
	}
}

// leftBehind is what stays: a loop device goes only when the last mount namespace does
// that another test cloned while the machine was mounted.
func leftBehind(t *testing.T, name string) []string {
	t.Helper()
	state := hostState(t, name)
	for deadline := time.Now().Add(3 * time.Minute); len(state) > 0 && time.Now().Before(deadline); state = hostState(t, name) {
		time.Sleep(200 * time.Millisecond)
	}
	return state
}

// writableInPrivate makes the root writable in a private namespace of a transient unit, as
// an update does: the prober sees nothing of it, the watcher and the snapshot see what
// was written, and a root that is made writable for all is noticed by the prober.
func writableInPrivate(t *testing.T, m *Machine) {
	before := TakeSnapshot(t, m.Image())
	prober := m.Probe()
	watcher := Watch(t, m.Image(), []string{"etc"}, []string{"etc/customized"})
	m.Shell(`systemd-run --quiet --pipe --wait unshare -m --propagation slave sh -euc '
		mount -o remount,rw / && mount -o remount,bind,rw /
		ln /etc/customized /usr/second
		mkdir -p /.liveupd/tx/1
		echo "x {\"state\":\"staging\"}" >/.liveupd/tx/1/state.new
		mv /.liveupd/tx/1/state.new /.liveupd/tx/1/state
		sleep 0.3
		chmod 0600 /etc/customized
		sleep 0.3
		echo "x {\"state\":\"committing\"}" >/.liveupd/tx/1/state.new
		mv /.liveupd/tx/1/state.new /.liveupd/tx/1/state
		sleep 0.3
		echo more >/etc/new
		mount -o remount,bind,ro / && mount -o remount,ro /'`)
	refused, violations := prober.Stop()
	if refused < 100 || len(violations) > 0 {
		t.Errorf("the prober was refused %d times; violations: %q", refused, violations)
	}
	if got := State(m.Image()); got != "committing" {
		t.Errorf("State = %q; want committing", got)
	}
	changes, committed := watcher.BeforeCommit()
	if !committed {
		t.Error("the watcher saw no commit point")
	}
	attribs, links := 0, 0
	for _, e := range changes {
		if e.Path != "etc/customized" {
			t.Errorf("before the commit point: %v; want etc/customized alone", e)
		}
		if strings.Contains(e.What, "attrib") {
			attribs++
		}
		if strings.Contains(e.What, "nlink") {
			links++
		}
	}
	if attribs == 0 || links == 0 {
		t.Errorf("before the commit point the watcher saw %v; want attrib and nlink", changes)
	}
	if !slices.ContainsFunc(watcher.Stop(), func(e Event) bool { return e.Path == "etc/new" }) {
		t.Error("the watcher did not see etc/new")
	}
	after := TakeSnapshot(t, m.Image())
	if got := before.Paths(after); !slices.Equal(got, []string{"etc", "etc/customized", "etc/new", "usr", "usr/second"}) {
		t.Errorf("the snapshots differ in %q", got)
	}
	if before.Digest() == after.Digest() {
		t.Error("the digest does not change with the tree")
	}

	prober = m.Probe("/etc")
	m.Shell("mount -o remount,rw /; mount -o remount,bind,rw /; sleep 0.2; mount -o remount,bind,ro /; for i in $(seq 100); do mount -o remount,ro / && exit; sleep 0.1; done; exit 1")
	if _, violations := prober.Stop(); len(violations) == 0 {
		t.Error("the prober did not notice a root that was writable for all")
	}
}

func TestKillCrashAndBootAgain(t *testing.T) {
	t.Parallel()
	m := Boot(t, Options{ReadOnly: true, WritableVar: true})
	if got := m.Shell("findmnt -no FSTYPE,OPTIONS /var"); !strings.HasPrefix(got, "ext4") || !strings.Contains(got, "rw") {
		t.Errorf("/var is %q; want a writable ext4", got)
	}
	m.Shell("systemd-run --quiet --unit=sleeper sh -c 'sleep 1000; true'; echo kept >/var/kept; sync")
	if got := len(m.Find("sleep")); got != 1 {
		t.Fatalf("%d sleep processes; want 1", got)
	}
	if got := m.KillWhen("sleep", 50*time.Millisecond, func() bool { return false }); got != 0 {
		t.Errorf("KillWhen killed %d processes without its condition", got)
	}
	if got := m.KillWhen("sleep", time.Second, func() bool { return exists(m.Path("/var/kept")) }); got != 1 {
		t.Errorf("KillWhen killed %d processes; want 1", got)
	}
	boot := m.Shell("cat /proc/sys/kernel/random/boot_id")
	m.Crash()
	if state := hostState(t, m.Name); len(state) != 1 {
		t.Errorf("after the crash there are %q; want the machine's folder alone", state)
	}
	m.Start()
	if got := m.Shell("cat /proc/sys/kernel/random/boot_id"); got == boot {
		t.Error("the boot id is the same after a crash and a boot")
	}
	if got := m.Shell("cat /var/kept"); got != "kept" {
		t.Errorf("/var/kept = %q", got)
	}
	m.Poweroff()
}

// A machine whose test was killed is swept away by the next one.
func TestSweep(t *testing.T) {
	m := Boot(t, Options{ReadOnly: true})
	m.lock.Close() // as the kernel does for a dead process
	m.lock = nil
	sweep(t)
	if state := leftBehind(t, m.Name); len(state) > 0 {
		t.Errorf("the sweep left behind:\n%s", strings.Join(state, "\n"))
	}
	<-m.exited
	m.nspawn, m.mounts, m.devices, m.cgroup, m.leader = nil, nil, nil, "", 0
}
