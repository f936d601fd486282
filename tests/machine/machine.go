package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Options say what machine to boot.
type Options struct {
	// Root names the cached root: bookworm (the default) or trixie.
	Root string
	// ReadOnly: the root is mounted read-only, superblock and mount.
	ReadOnly bool
	// WritableVar: /var is an ext4 file system of its own, mounted read-write.
	WritableVar bool
	// FileSystem is the root's: ext4 where it is empty, btrfs or xfs.
	FileSystem string
	// Customize changes the copy of the root before the image is made.
	Customize func(root string) error
	// Programs are put into /usr/local/bin: host paths.
	Programs []string
	// Free is the room on the root file system, in bytes; 600 MiB if 0.
	Free int64
	// Emergency: the boot may end in the emergency target.
	Emergency bool
	// Boot options of systemd-nspawn beside the usual ones.
	Nspawn []string
}

// Machine is a booted machine. Its methods may be called from any goroutine,
// Start, Crash and Stop from one at a time.
type Machine struct {
	Name string

	t       testing.TB
	o       Options
	dir     string // image, var.img, mnt, var, console, lock
	lock    *os.File
	devices []string
	mounts  []string
	cgroup  string
	nspawn  *exec.Cmd
	exited  chan struct{}
	leader  int
}

var serial atomic.Int64

// bootLimit is how long a machine may take to come up when four of them share
// two slow processors.
const bootLimit = 120 * time.Second

// Boot makes a machine, boots it, waits until all its units have started or
// failed, and ends it with the test. It skips the test where machines cannot
// run.
func Boot(t testing.TB, o Options) *Machine {
	t.Helper()
	m := New(t, o)
	m.Start()
	return m
}

// New makes a machine without booting it.
func New(t testing.TB, o Options) *Machine {
	t.Helper()
	Require(t)
	sweep(t)
	if o.Root == "" {
		o.Root = "bookworm"
	}
	if o.FileSystem == "" {
		o.FileSystem = "ext4"
	}
	if _, err := exec.LookPath("mkfs." + o.FileSystem); err != nil {
		t.Skipf("boots a machine on %s: %v (run tests/setup/install.sh)", o.FileSystem, err)
	}
	if o.Free == 0 {
		o.Free = 600 << 20
	}
	m := &Machine{Name: fmt.Sprintf("lu-%d-%d", os.Getpid(), serial.Add(1)), t: t, o: o}
	m.dir = filepath.Join(machinesDir(), m.Name)
	t.Cleanup(m.remove)
	if err := m.build(); err != nil {
		t.Fatalf("cannot make machine %s: %v", m.Name, err)
	}
	return m
}

func machinesDir() string { return filepath.Join(CacheDir(), "machines") }

func (m *Machine) build() error {
	// The folder gets its name when its lock is held: a sweep sees no free one.
	fresh := filepath.Join(machinesDir(), "new-"+m.Name)
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return err
	}
	var err error
	if m.lock, err = lockFile(filepath.Join(fresh, "lock")); err != nil {
		return err
	}
	if err := os.Rename(fresh, m.dir); err != nil {
		return err
	}
	root := filepath.Join(m.dir, "root")
	CopyRoot(m.t, m.o.Root, root)
	if err := prepare(root, m.Name); err != nil {
		return err
	}
	for _, program := range m.o.Programs {
		if _, err := command("install", "-m", "0755", program, filepath.Join(root, "usr/local/bin", filepath.Base(program))); err != nil {
			return err
		}
	}
	if m.o.Customize != nil {
		if err := m.o.Customize(root); err != nil {
			return fmt.Errorf("cannot customize the root: %w", err)
		}
	}
	if m.o.WritableVar {
		varDir := filepath.Join(m.dir, "vardir")
		if err := os.Rename(filepath.Join(root, "var"), varDir); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(root, "var"), 0o755); err != nil {
			return err
		}
		if err := makeImage("ext4", varDir, filepath.Join(m.dir, "var.img"), m.o.Free); err != nil {
			return err
		}
		if err := os.RemoveAll(varDir); err != nil {
			return err
		}
	}
	if err := makeImage(m.o.FileSystem, root, filepath.Join(m.dir, "root.img"), m.o.Free); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// Start mounts the image and boots the machine from it.
func (m *Machine) Start() {
	m.t.Helper()
	if err := m.start(); err != nil {
		m.t.Fatalf("cannot boot machine %s: %v\n%s", m.Name, err, m.Console(40))
	}
}

func (m *Machine) start() error {
	mode := "rw"
	if m.o.ReadOnly {
		mode = "ro"
	}
	if err := m.mount("root.img", "mnt", mode); err != nil {
		return err
	}
	args := []string{
		"--directory=" + m.Image(), "--keep-unit", "--register=no", "--machine=" + m.Name, "--boot", "--private-network",
		"--timezone=off", "--resolv-conf=off", "--link-journal=no",
		"--capability=all",
		"--system-call-filter=fanotify_init fanotify_mark bpf keyctl open_by_handle_at name_to_handle_at statmount listmount",
	}
	switch {
	case m.o.WritableVar:
		if err := m.mount("var.img", "var", "rw"); err != nil {
			return err
		}
		args = append(args, "--bind="+filepath.Join(m.dir, "var")+":/var")
	case m.o.ReadOnly:
		args = append(args, "--tmpfs=/var/log:mode=0755", "--tmpfs=/var/tmp:mode=1777")
	}
	if m.o.ReadOnly {
		args = append(args, "--read-only")
	}
	args = append(args, m.o.Nspawn...)

	unified, err := unifiedCgroup()
	if err != nil {
		return err
	}
	m.cgroup = filepath.Join(unified, m.Name)
	if err := os.MkdirAll(m.cgroup, 0o755); err != nil {
		return err
	}
	cgroup, err := os.Open(m.cgroup)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	console, err := os.OpenFile(filepath.Join(m.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	cmd := exec.Command("systemd-nspawn", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended does not matter: it is looked at from inside
		close(exited)
	}()
	m.nspawn, m.exited = cmd, exited
	if err := m.awaitBoot(); err != nil {
		return err
	}
	return nil
}

func (m *Machine) mount(image, at, mode string) error {
	device, err := attach(filepath.Join(m.dir, image))
	if err != nil {
		return err
	}
	m.devices = append(m.devices, device)
	dir := filepath.Join(m.dir, at)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := command("mount", "-o", mode, device, dir); err != nil {
		return err
	}
	m.mounts = append(m.mounts, dir)
	return nil
}

// awaitBoot waits until PID 1 says that all jobs of the boot are done.
func (m *Machine) awaitBoot() error {
	deadline := time.Now().Add(bootLimit)
	state := "no PID 1"
	for time.Now().Before(deadline) {
		select {
		case <-m.exited:
			return errors.New("systemd-nspawn ended")
		case <-time.After(50 * time.Millisecond):
		}
		if m.leader == 0 {
			m.leader = findLeader(m.nspawn.Process.Pid)
			continue
		}
		if _, err := os.Stat(m.Path("/run/systemd/private")); err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		cmd := m.Command(ctx, "systemctl", "is-system-running")
		out, _ := cmd.Output() // it exits 1 for all but "running"
		cancel()
		state = strings.TrimSpace(string(out))
		if state == "running" || state == "degraded" || m.o.Emergency && state == "maintenance" {
			return nil
		}
	}
	return fmt.Errorf("it is still %q after %v", state, bootLimit)
}

// AwaitReboot waits until a machine has asked for its own reboot, and boots it again: nspawn
// itself does so only where /run is a file system of its own.
func (m *Machine) AwaitReboot() {
	m.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(bootLimit):
		m.t.Fatalf("machine %s does not reboot\n%s", m.Name, m.Console(40))
	}
	if console := m.Console(40); !strings.Contains(console, "being rebooted") {
		m.t.Fatalf("machine %s ended, and asked for no reboot\n%s", m.Name, console)
	}
	m.leader = 0 // its number may be another process's by now
	m.Crash()
	m.Start()
}

// findLeader returns the machine's PID 1 as the host numbers it, 0 while there
// is none: the child of nspawn that is init of its own PID namespace and runs systemd.
func findLeader(nspawn int) int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", nspawn))
	for _, file := range tasks {
		children, _ := os.ReadFile(file)
		for child := range strings.FieldsSeq(string(children)) {
			pid, _ := strconv.Atoi(child)
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if ids := namespacePIDs(pid); len(ids) > 1 && ids[len(ids)-1] == 1 && strings.TrimSpace(string(comm)) == "systemd" {
				return pid
			}
		}
	}
	return 0
}

// namespacePIDs are a process's numbers, from the host's namespace inwards.
func namespacePIDs(pid int) []int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			var ids []int
			for field := range strings.FieldsSeq(rest) {
				id, _ := strconv.Atoi(field)
				ids = append(ids, id)
			}
			return ids
		}
	}
	return nil
}

// Image is where the host has the root file system mounted: the same superblock
// as the machine's, with nothing mounted over any path.
func (m *Machine) Image() string { return filepath.Join(m.dir, "mnt") }

// Leader is the machine's PID 1 as the host numbers it.
func (m *Machine) Leader() int { return m.leader }

// Cgroup is the folder of the machine's own cgroup tree: what it calls /sys/fs/cgroup.
func (m *Machine) Cgroup() string { return filepath.Join(m.cgroup, "payload") }

// Path is a path of the machine as a host path: it is resolved in the mount
// namespace of the machine's PID 1, through that namespace's mounts.
func (m *Machine) Path(path string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.leader), path)
}

// Console returns the last lines that the machine printed while it booted.
func (m *Machine) Console(lines int) string {
	b, _ := os.ReadFile(filepath.Join(m.dir, "console"))
	all := bytes.Split(b, []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// Crash ends the machine at once, as a pulled plug does for its processes (what
// they wrote stays in the page cache). Start boots it again.
func (m *Machine) Crash() {
	m.t.Helper()
	if err := m.halt(); err != nil {
		m.t.Fatalf("cannot end machine %s: %v", m.Name, err)
	}
}

// Poweroff shuts the machine down in order; Start boots it again.
func (m *Machine) Poweroff() {
	m.t.Helper()
	if m.leader != 0 {
		const poweroff = syscall.Signal(34 + 4) // SIGRTMIN+4
		_ = syscall.Kill(m.leader, poweroff)
		select {
		case <-m.exited:
		case <-time.After(30 * time.Second):
			m.t.Errorf("machine %s does not power off", m.Name)
		}
	}
	m.Crash()
}

// Stop ends the machine and removes all of it. The test's end does that anyway.
func (m *Machine) Stop() { m.remove() }

// halt ends the processes, the mounts, the loop devices and the cgroup.
func (m *Machine) halt() error {
	var problems []error
	if m.nspawn != nil {
		if m.leader == 0 {
			m.leader = findLeader(m.nspawn.Process.Pid)
		}
		// The end of PID 1 ends all of its namespace, and nspawn then ends by itself.
		if m.leader != 0 {
			_ = syscall.Kill(m.leader, syscall.SIGKILL)
		} else {
			_ = m.nspawn.Process.Kill()
		}
		select {
		case <-m.exited:
		case <-time.After(20 * time.Second):
			_ = m.nspawn.Process.Kill()
			<-m.exited
		}
		m.nspawn, m.leader = nil, 0
	}
	for _, dir := range slices.Backward(m.mounts) {
		problems = append(problems, unmount(dir))
	}
	m.mounts = nil
	for _, device := range slices.Backward(m.devices) {
		problems = append(problems, eventually(func() error { return detach(device) }))
	}
	m.devices = nil
	if m.cgroup != "" {
		problems = append(problems, eventually(func() error { return removeCgroup(m.cgroup) }))
		m.cgroup = ""
	}
	_ = os.Remove(filepath.Join("/run/systemd/nspawn/propagate", m.Name))
	return errors.Join(problems...)
}

func (m *Machine) remove() {
	m.t.Helper()
	err := m.halt()
	if err == nil {
		err = os.RemoveAll(m.dir)
	}
	if err != nil {
		m.t.Errorf("cannot remove machine %s: %v", m.Name, err)
	}
	if m.lock != nil {
		m.lock.Close()
		m.lock = nil
	}
}

// unmount waits for the last user of a file system: the kernel takes the
// namespaces of killed processes down a little later.
func unmount(dir string) error {
	return eventually(func() error {
		err := syscall.Unmount(dir, 0)
		if errors.Is(err, syscall.EINVAL) { // it is no mount point
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot unmount %s: %w", dir, err)
		}
		return nil
	})
}

func eventually(do func() error) error {
	var err error
	for range 200 {
		if err = do(); err == nil {
			return nil
		}
		time.Sleep(25 * time.Millisecond)
	}
	return err
}

// unifiedCgroup is where the v2 hierarchy is mounted.
func unifiedCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if i := slices.Index(fields, "-"); i > 0 && len(fields) > i+1 && fields[i+1] == "cgroup2" && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup v2 hierarchy is mounted")
}

func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // what vanishes meanwhile is what is wanted
	})
	for _, path := range slices.Backward(dirs) {
		if e := syscall.Rmdir(path); e != nil && !errors.Is(e, syscall.ENOENT) {
			err = fmt.Errorf("cannot remove cgroup %s: %w", path, e)
		}
	}
	return err
}

// lockFile locks a file of the machine's folder for as long as this process lives.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return f, nil
}
