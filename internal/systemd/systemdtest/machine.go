// Package systemdtest runs a package's tests inside a booted systemd machine:
// a container on a throw-away overlay of a cached Debian root.
//
// The test binary is copied in and executed in the container's namespaces with
// the environment variable that Inside reads. nsenter goes around the
// container's seccomp filter and capabilities: what runs is as free as on a
// host.
package systemdtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// variable is set for the tests inside the machine.
const variable = "LIVEUPD_INSIDE_MACHINE"

// roots is where cached Debian roots lie; tests/setup/root.sh makes them.
func roots() string {
	if dir := os.Getenv("LIVEUPD_CACHE"); dir != "" {
		return filepath.Join(dir, "roots")
	}
	return "/var/cache/liveupd/roots"
}

// Inside tells whether the test runs in the machine.
func Inside() bool { return os.Getenv(variable) != "" }

// NeedInside skips a test that is not in the machine.
func NeedInside(t testing.TB) {
	t.Helper()
	if !Inside() {
		t.Skip("runs inside a booted machine, by TestMachine")
	}
}

// Run boots the cached root of that name and runs the tests that match the
// pattern inside. It skips where that cannot be done.
func Run(t *testing.T, root, pattern string) {
	t.Helper()
	if Inside() {
		t.Skip("already inside the machine")
	}
	if testing.Short() {
		t.Skip("boots a machine")
	}
	m := boot(t, root)
	cmd := m.command("/test.bin", "-test.run="+pattern, "-test.v", "-test.timeout=120s")
	cmd.Env = append(os.Environ(), variable+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("inside %s:\n%s", root, out)
	if err != nil {
		t.Fatalf("the tests inside %s failed: %v", root, err)
	}
	if !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("no test ran inside %s", root)
	}
}

type machine struct{ leader int }

func (m *machine) command(argv ...string) *exec.Cmd {
	args := []string{"-t", strconv.Itoa(m.leader), "-m", "-u", "-i", "-p", "-n", "--"}
	return exec.Command("nsenter", append(args, argv...)...)
}

func boot(t *testing.T, root string) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to boot a machine")
	}
	lower, err := filepath.EvalSymlinks(filepath.Join(roots(), root))
	if err != nil {
		t.Skipf("no cached root: %v", err)
	}
	for _, program := range []string{"systemd-nspawn", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: %v", program, err)
		}
	}
	dir := t.TempDir()
	top := filepath.Join(dir, "root")
	for _, d := range []string{top, filepath.Join(dir, "up"), filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, filepath.Join(dir, "up"), filepath.Join(dir, "work"))
	if err := syscall.Mount("overlay", top, "overlay", 0, options); err != nil {
		t.Skipf("cannot mount an overlay here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(top, syscall.MNT_DETACH); err != nil {
			t.Errorf("cannot unmount %s: %v", top, err)
		}
	})
	prepare(t, top)
	return start(t, top)
}

func prepare(t *testing.T, top string) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(top, "test.bin"), self, 0o755); err != nil {
		t.Fatal(err)
	}
	// What only costs time at boot.
	for _, unit := range []string{
		"apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer", "systemd-networkd-wait-online.service",
		"console-getty.service", "e2scrub_reap.service",
	} {
		_ = os.Remove(filepath.Join(top, "etc/systemd/system", unit))
		if err := os.Symlink("/dev/null", filepath.Join(top, "etc/systemd/system", unit)); err != nil {
			t.Fatal(err)
		}
	}
}

func start(t *testing.T, top string) *machine {
	t.Helper()
	name := fmt.Sprintf("liveupd-test-%d", os.Getpid())
	argv := []string{
		"systemd-nspawn", "-D", top, "--keep-unit", "--register=no", "--machine=" + name,
		"--private-network", "--console=pipe", "--kill-signal=SIGRTMIN+4", "--boot",
	}
	// All machines would share /payload: each starts from a cgroup of its own.
	const unified = "/sys/fs/cgroup/unified"
	group := ""
	if _, err := os.Stat(unified); err == nil {
		group = filepath.Join(unified, name)
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Skipf("cannot make a cgroup: %v", err)
		}
		script := `echo $$ > "$0/cgroup.procs" && exec "$@"`
		argv = append([]string{"sh", "-c", script, group}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Skipf("cannot start systemd-nspawn: %v", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	m := &machine{}
	t.Cleanup(func() {
		if m.leader > 0 {
			// PID 1 of the container takes all of it along.
			_ = syscall.Kill(m.leader, syscall.SIGKILL)
		}
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("the machine's console:\n%s", log.String())
		}
		if group != "" {
			removeGroups(group)
		}
	})
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		select {
		case <-ended:
			t.Skipf("systemd-nspawn does not work here: %s", log.String())
		case <-time.After(100 * time.Millisecond):
		}
		if m.leader == 0 {
			m.leader = child(cmd.Process.Pid)
			continue
		}
		out, _ := m.command("systemctl", "is-system-running").Output()
		switch strings.TrimSpace(string(out)) {
		case "running", "degraded":
			return m
		}
	}
	t.Fatal("the machine did not come up in a minute")
	return nil
}

// child finds the container's PID 1: nspawn's only child with a PID namespace
// of its own.
func child(nspawn int) int {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", nspawn))
	if err != nil {
		return 0
	}
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nspawn, nspawn))
	for field := range strings.FieldsSeq(string(list)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns != own {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasSuffix(exe, "/systemd") {
				return pid
			}
		}
	}
	return 0
}

// removeGroups removes a cgroup and its children, which empty as processes end.
func removeGroups(group string) {
	for range 50 {
		var dirs []string
		_ = filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			_ = syscall.Rmdir(dir)
		}
		if _, err := os.Stat(group); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
