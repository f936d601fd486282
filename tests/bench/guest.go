package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// guest is a booted Debian: systemd as PID 1 in a container of systemd-nspawn, its root a
// directory of the bench's own ext4 file system.
type guest struct {
	root   string
	cgroup string // its own: two containers that start in one cgroup share their units'
	nspawn *exec.Cmd
	ended  chan struct{}
	leader int
}

// boot copies a cached root and boots it.
func (b *bench) boot(from, root string, prepare func(root string) error) (*guest, error) {
	if _, err := tool("cp", "-a", "--reflink=auto", from+"/.", root); err != nil {
		return nil, err
	}
	// What works by itself would spoil the figures.
	for _, unit := range []string{"apt-daily.timer", "apt-daily-upgrade.timer", "man-db.timer", "console-getty.service"} {
		link := filepath.Join(root, "etc/systemd/system", unit)
		if err := errors.Join(os.RemoveAll(link), os.Symlink("/dev/null", link)); err != nil {
			return nil, err
		}
	}
	if err := prepare(root); err != nil {
		return nil, err
	}
	g := &guest{root: root, ended: make(chan struct{})}
	name := "liveupd-bench-" + strconv.Itoa(os.Getpid())
	args := []string{
		"systemd-nspawn", "-D", root, "--keep-unit", "--register=no", "--machine=" + name, "--private-network",
		"--console=pipe", "--kill-signal=SIGRTMIN+4", "--timezone=off", "--resolv-conf=off", "--capability=all", "--boot",
	}
	if unified := "/sys/fs/cgroup/unified"; exists(unified) {
		g.cgroup = filepath.Join(unified, name)
		if err := os.Mkdir(g.cgroup, 0o755); err != nil {
			return nil, err
		}
		args = append([]string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, g.cgroup}, args...)
	}
	g.nspawn = exec.Command(args[0], args[1:]...)
	g.nspawn.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	var console bytes.Buffer
	g.nspawn.Stdout, g.nspawn.Stderr = &console, &console
	if err := g.nspawn.Start(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	go func() {
		_ = g.nspawn.Wait() // what it printed says why
		close(g.ended)
	}()
	deadline := time.Now().Add(5 * time.Minute) // 400 units of five processes start meanwhile
	for time.Now().Before(deadline) && b.ctx.Err() == nil {
		select {
		case <-g.ended:
			return nil, errors.Join(fmt.Errorf("systemd-nspawn ended: %s", console.String()), g.Close())
		case <-time.After(200 * time.Millisecond):
		}
		if g.leader == 0 {
			g.leader = initOf(g.nspawn.Process.Pid)
			continue
		}
		out, _ := exec.Command("nsenter", g.enter("systemctl", "is-system-running")...).Output()
		if state := strings.TrimSpace(string(out)); state == "running" || state == "degraded" {
			return g, nil
		}
	}
	return nil, errors.Join(b.ctx.Err(), errors.New("the machine did not come up"), g.Close())
}

// enter is nsenter's arguments that run a command in the machine.
func (g *guest) enter(args ...string) []string {
	return append([]string{"-t", strconv.Itoa(g.leader), "-m", "-u", "-i", "-p", "-n", "-C", "--"}, args...)
}

// Close ends the machine and removes its cgroups.
func (g *guest) Close() error {
	if g.leader > 0 {
		// PID 1 of the container takes all of it along.
		_ = syscall.Kill(g.leader, syscall.SIGKILL)
	}
	if g.nspawn.Process != nil {
		select {
		case <-g.ended:
		case <-time.After(20 * time.Second):
			_ = g.nspawn.Process.Kill()
			<-g.ended
		}
	}
	if g.cgroup == "" {
		return nil
	}
	for range 50 {
		// find prints the innermost first; those that are in use empty as processes end.
		_ = exec.Command("find", g.cgroup, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
		if !exists(g.cgroup) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("the cgroup %s did not empty", g.cgroup)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// initOf finds the container's PID 1: nspawn's child in a PID namespace of its own.
func initOf(nspawn int) int {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", nspawn))
	if err != nil {
		return 0
	}
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", nspawn, nspawn))
	for field := range strings.FieldsSeq(string(list)) {
		pid, _ := strconv.Atoi(field)
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err != nil || ns == own {
			continue
		}
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasSuffix(exe, "/systemd") {
			return pid
		}
	}
	return 0
}
