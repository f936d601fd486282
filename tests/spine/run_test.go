package spine

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
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// running is a liveupd that was started in a machine and not waited for.
type running struct {
	t      *testing.T
	m      *machine.Machine
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
	ended  chan struct{}
	old    []string // transactions that were there before
}

func start(t *testing.T, m *machine.Machine, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	r := &running{t: t, m: m, cmd: m.Command(ctx, append([]string{"/usr/local/bin/liveupd"}, args...)...), ended: make(chan struct{}), old: transactions(m)}
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // its exit code is looked at by whoever wants it
		close(r.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
	})
	return r
}

// wait returns what came of it.
func (r *running) wait() machine.Result {
	r.t.Helper()
	<-r.ended
	return machine.Result{Stdout: r.stdout.String(), Stderr: r.stderr.String(), Code: r.cmd.ProcessState.ExitCode()}
}

func transactions(m *machine.Machine) []string {
	dirs, _ := filepath.Glob(filepath.Join(m.Image(), ".liveupd/tx/*"))
	return dirs
}

// transaction is the folder of the one that this run began, "" before.
func (r *running) transaction() string {
	for _, dir := range transactions(r.m) {
		if !slices.Contains(r.old, dir) {
			return dir
		}
	}
	return ""
}

// state of the transaction that this run began, "" before.
func (r *running) state() string {
	b, _ := os.ReadFile(filepath.Join(r.transaction(), "state"))
	_, rest, _ := strings.Cut(string(b), `"state":"`)
	state, _, _ := strings.Cut(rest, `"`)
	return state
}

// await polls until cond holds; the run's end, or a minute, ends the test.
func (r *running) await(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(50 * time.Microsecond) {
		select {
		case <-r.ended:
			got := r.wait()
			r.t.Fatalf("liveupd ended with %d before %s\n%s%s", got.Code, what, got.Stdout, got.Stderr)
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited a minute for %s", what)
		}
	}
}

// program tells whether a process of the machine runs with these arguments.
func program(m *machine.Machine, name string, args ...string) []int {
	var found []int
	for _, pid := range m.Find(name) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		argv := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		if len(argv) > len(args) && slices.Equal(argv[1:1+len(args)], args) {
			found = append(found, pid)
		}
	}
	return found
}

// caller is the process that the operator started.
func (r *running) caller() int {
	r.t.Helper()
	found := append(program(r.m, "liveupd", "apply"), program(r.m, "liveupd", "rollback")...)
	if len(found) != 1 {
		r.t.Fatalf("the callers are %v; want one", found)
	}
	return found[0]
}

// workers are the process of the transient unit and its child.
func (r *running) workers() []int {
	r.t.Helper()
	var found []int
	r.await("the workers", func() bool {
		found = append(program(r.m, "liveupd", "worker"), program(r.m, "liveupd", "worker-inside")...)
		return len(found) == 2
	})
	return found
}

// kill ends processes at once. The end of the first may have ended the others.
func kill(t *testing.T, pids ...int) {
	t.Helper()
	for i, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && (i == 0 || !errors.Is(err, syscall.ESRCH)) {
			t.Errorf("cannot kill %d: %v", pid, err)
		}
	}
}

// settled waits until no liveupd runs any more, a recovery included.
func settled(t *testing.T, m *machine.Machine) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if len(m.Find("liveupd")) == 0 && m.Shell("systemctl list-units --plain --no-legend 'liveupd-*'") == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("liveupd runs on: %s", m.Shell("systemctl status --no-pager 'liveupd-*'"))
		}
	}
}

// slowCheck makes the update's validation last so many seconds: a window
// before the commit point.
func slowCheck(up *fixture.Tree, seconds string) *fixture.Tree {
	return up.Replace(fixture.EnvappUnit, "[Service]\n", "[Service]\nEnvironment=NEW=1\nX-Liveupd-Check=/usr/bin/sleep "+seconds+"\n")
}

// inCheck tells whether that validation is under way.
func inCheck(m *machine.Machine, seconds string) bool {
	return len(program(m, "sleep", seconds)) > 0
}

// source are the flags of an apply of the tree that was copied to dir.
func source(dir string) []string { return []string{"--source", "tree:" + dir, "--allow-unsigned"} }

func apply(t *testing.T, m *machine.Machine, dir string) *fixture.Output {
	t.Helper()
	return fixture.In(t, m, append([]string{"apply", "--yes"}, source(dir)...)...)
}

// unharmed fails where the units are not what they were: those in except may have been restarted.
func unharmed(t *testing.T, m *machine.Machine, before map[string]machine.Unit, except ...string) {
	t.Helper()
	after := m.Units()
	for _, name := range machine.Interrupted(before, after) {
		if after[name].ActiveState != "active" {
			t.Errorf("%s is %s (%s)\n%s", name, after[name].ActiveState, after[name].Result, m.Journal(name))
		} else if !slices.Contains(except, name) {
			t.Errorf("%s was interrupted", name)
		}
	}
	if started := machine.Started(before, after); len(started) > 0 {
		t.Errorf("%v were started", started)
	}
}

// nothingStaged fails where a transaction has left its staging.
func nothingStaged(t *testing.T, r *running) {
	t.Helper()
	if dir := r.transaction(); dir != "" {
		t.Errorf("%s is left", dir)
	}
}

// restarts are the services that a plan restarts or stops.
func restarts(p *change.Plan) []string {
	units := map[string]bool{}
	for _, u := range p.Units {
		if u.Action == change.ActionRestart || u.Action == change.ActionStop {
			units[u.Unit] = true
		}
	}
	return slices.Sorted(maps.Keys(units))
}
