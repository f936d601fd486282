package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Result is what came of a command in a machine. Code is -1 where a signal ended it.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// session is the cgroup that commands run in: a login session's, so that they belong to
// an operator and to no service.
const session = "user.slice/user-0.slice/session-c1.scope"

// runLimit ends a command that hangs, so that the test fails with its output.
const runLimit = 3 * time.Minute

// Command is a command to be run in the machine: in all namespaces of its PID 1,
// with a clean environment, in an operator's cgroup.
func (m *Machine) Command(ctx context.Context, args ...string) *exec.Cmd {
	enter := []string{
		"--target", strconv.Itoa(m.leader), "--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup",
		"--root", "--wd", "--",
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0",
	}
	cmd.WaitDelay = 5 * time.Second
	dir := filepath.Join(m.Cgroup(), session)
	if err := os.MkdirAll(dir, 0o755); err == nil {
		// The descriptor is needed until the process is started; it goes with
		// the command's context, and the closure keeps it until then.
		if f, err := os.Open(dir); err == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
			cmd.Cancel = func() error { f.Close(); return cmd.Process.Kill() }
			context.AfterFunc(ctx, func() { f.Close() })
		}
	}
	return cmd
}

// Run runs a command in the machine to its end. A command that cannot be
// started, or does not end, fails the test; its exit code does not.
func (m *Machine) Run(args ...string) Result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cmd := m.Command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	if ctx.Err() != nil {
		m.t.Fatalf("%s does not end\n%s%s", strings.Join(args, " "), r.Stdout, r.Stderr)
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		m.t.Fatalf("cannot run %s in machine %s: %v", strings.Join(args, " "), m.Name, err)
	}
	r.Code = cmd.ProcessState.ExitCode()
	return r
}

// Shell runs a script in the machine, which must succeed, and returns its output.
func (m *Machine) Shell(script string) string {
	m.t.Helper()
	r := m.Run("/bin/sh", "-euc", script)
	if r.Code != 0 {
		m.t.Fatalf("the script failed with exit code %d:\n%s\n%s%s", r.Code, script, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// Unit is a unit as the machine's systemd holds it.
type Unit struct {
	ID, LoadState, ActiveState, SubState, InvocationID, ControlGroup, Result string
	MainPID                                                                  int // inside the machine; 0: none
	NRestarts                                                                int
	ActiveEnter, StateChange                                                 uint64 // monotonic, microseconds
}

const unitProperties = "Id,LoadState,ActiveState,SubState,InvocationID,ControlGroup,Result,MainPID,NRestarts,ActiveEnterTimestampMonotonic,StateChangeTimestampMonotonic"

// SystemctlShow returns properties of a unit as systemctl prints them; all of
// them where none is named.
func (m *Machine) SystemctlShow(unit string, properties ...string) map[string]string {
	m.t.Helper()
	args := []string{"systemctl", "show", "--no-pager"}
	if len(properties) > 0 {
		args = append(args, "--property="+strings.Join(properties, ","))
	}
	r := m.Run(append(args, "--", unit)...)
	if r.Code != 0 {
		m.t.Fatalf("cannot show %s: %s", unit, r.Stderr)
	}
	return parseProperties(r.Stdout)
}

func parseProperties(block string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(block) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			out[key] = value
		}
	}
	return out
}

// Unit returns one unit.
func (m *Machine) Unit(name string) Unit {
	m.t.Helper()
	return toUnit(m.SystemctlShow(name, unitProperties))
}

// Units returns all loaded services, sockets, timers, paths and targets by name.
func (m *Machine) Units() map[string]Unit {
	m.t.Helper()
	r := m.Run("systemctl", "show", "--no-pager", "--property="+unitProperties, "--",
		"*.service", "*.socket", "*.timer", "*.path", "*.target")
	if r.Code != 0 {
		m.t.Fatalf("cannot show the units: %s", r.Stderr)
	}
	units := map[string]Unit{}
	for block := range strings.SplitSeq(r.Stdout, "\n\n") {
		if u := toUnit(parseProperties(block)); u.ID != "" {
			units[u.ID] = u
		}
	}
	return units
}

func toUnit(p map[string]string) Unit {
	number := func(key string) int { n, _ := strconv.Atoi(p[key]); return n }
	clock := func(key string) uint64 { n, _ := strconv.ParseUint(p[key], 10, 64); return n }
	return Unit{
		ID: p["Id"], LoadState: p["LoadState"], ActiveState: p["ActiveState"], SubState: p["SubState"],
		InvocationID: p["InvocationID"], ControlGroup: p["ControlGroup"], Result: p["Result"],
		MainPID: number("MainPID"), NRestarts: number("NRestarts"),
		ActiveEnter: clock("ActiveEnterTimestampMonotonic"), StateChange: clock("StateChangeTimestampMonotonic"),
	}
}

// Interrupted names the units that were stopped, restarted, or whose main process
// is another one, between two calls of Units; sorted. A reload is no
// interruption. Units that were not active before are left out.
func Interrupted(before, after map[string]Unit) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		old, now := before[name], after[name]
		if old.ActiveState != "active" {
			continue
		}
		if now.ActiveState != "active" || now.InvocationID != old.InvocationID || now.MainPID != old.MainPID || now.NRestarts != old.NRestarts {
			names = append(names, name)
		}
	}
	return names
}

// Started names the units that are active after and were not before; sorted.
func Started(before, after map[string]Unit) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if after[name].ActiveState == "active" && before[name].ActiveState != "active" {
			names = append(names, name)
		}
	}
	return names
}

// Journal returns a unit's lines in the machine's journal.
func (m *Machine) Journal(unit string) string {
	m.t.Helper()
	return m.Run("journalctl", "--no-pager", "--output=cat", "--unit="+unit).Stdout
}

// HostPID turns a process number of the machine into the host's; 0 where there is
// no such process.
func (m *Machine) HostPID(pid int) int {
	for _, host := range cgroupPIDs(m.Cgroup()) {
		if ids := namespacePIDs(host); len(ids) > 1 && ids[1] == pid {
			return host
		}
	}
	return 0
}

// PIDs are the processes of one unit, as the host numbers them.
func (m *Machine) PIDs(unit string) []int {
	m.t.Helper()
	group := m.Unit(unit).ControlGroup
	if group == "" {
		return nil
	}
	return cgroupPIDs(filepath.Join(m.Cgroup(), group))
}

// Find are the processes of the machine, as the host numbers them, whose
// executable has this name.
func (m *Machine) Find(program string) []int {
	var found []int
	for _, pid := range cgroupPIDs(m.Cgroup()) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && strings.TrimSuffix(filepath.Base(exe), " (deleted)") == program {
			found = append(found, pid)
		}
	}
	return found
}

// KillWhen waits until cond holds, then kills (SIGKILL) at once all processes of the
// program in the machine, children included, and returns how many it
// killed: 0 where cond did not hold in time or none was running.
func (m *Machine) KillWhen(program string, limit time.Duration, cond func() bool) int {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		if !cond() {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		killed := map[int]bool{}
		// One that was killed may just have started another.
		for {
			fresh := false
			for _, pid := range m.Find(program) {
				if !killed[pid] && syscall.Kill(pid, syscall.SIGKILL) == nil {
					killed[pid], fresh = true, true
				}
			}
			if !fresh {
				return len(killed)
			}
		}
	}
	return 0
}
