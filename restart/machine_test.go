package restart_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/internal/systemd/systemdtest"
	"github.com/liveupd/liveupd/restart"
)

func TestMachine(t *testing.T) {
	for _, root := range []string{"bookworm", "trixie"} {
		t.Run(root, func(t *testing.T) { systemdtest.Run(t, root, "^TestInside") })
	}
}

type manager struct {
	*systemd.Conn
	t testing.TB
}

func connect(t testing.TB) manager {
	t.Helper()
	systemdtest.NeedInside(t)
	c, err := systemd.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return manager{c, t}
}

// write lays a unit file without making systemd read it.
func (m manager) write(name, content string) {
	m.t.Helper()
	path := filepath.Join("/run/systemd/system", name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		m.Do(context.Background(), []systemd.Job{{Kind: systemd.JobStop, Unit: name}})
		_ = m.ResetFailed(context.Background(), name)
		_ = os.Remove(path)
		_ = m.Reload(context.Background())
	})
}

func (m manager) start(names ...string) {
	m.t.Helper()
	if err := m.Reload(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	for _, name := range names {
		ends, _ := m.Do(m.t.Context(), []systemd.Job{{Kind: systemd.JobStart, Unit: name}})
		if ends[0].Err != nil || ends[0].Result != "done" {
			m.t.Fatalf("%+v", ends[0])
		}
	}
}

func (m manager) state(name string) *change.UnitState {
	m.t.Helper()
	states, err := m.States(m.t.Context(), []string{name})
	if err != nil {
		m.t.Fatal(err)
	}
	return states[0]
}

func (m manager) run(pairs ...string) ([]change.StepResult, error) {
	var steps []change.Step
	for _, p := range pairs {
		do, target, _ := strings.Cut(p, " ")
		steps = append(steps, change.Step{Seq: len(steps) + 1, Do: do, Target: target})
	}
	return restart.Run(m.t.Context(), m, steps, restart.Options{Settle: 500 * time.Millisecond})
}

const sleeper = "[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/true\n"

// A unit that cannot start with what an update brought is a failed step that
// says why; its inverse brings it back once the old definition is there again.
func TestInsideFailureAndInverse(t *testing.T) {
	m := connect(t)
	m.write("lu-ok.service", sleeper)
	m.write("lu-bad.service", sleeper)
	m.write("lu-loop.service", sleeper)
	m.start("lu-ok.service", "lu-bad.service", "lu-loop.service")
	ok := m.state("lu-ok.service")

	m.write("lu-bad.service", "[Service]\nExecStart=/bin/sh -c 'echo the new one says no; exit 9'\n")
	m.write("lu-loop.service", "[Service]\nExecStart=/bin/sh -c 'sleep 0.05; kill -SEGV $$$$'\nRestart=always\nRestartSec=50ms\nStartLimitIntervalSec=0\n")
	results, err := m.run("daemon-reload systemd", "restart lu-bad.service", "reload lu-ok.service", "restart lu-loop.service")
	if err == nil || len(results) != 4 {
		t.Fatalf("Run() = %+v, %v", results, err)
	}
	bad, loop := results[1], results[3]
	if bad.Result != "failed" || !strings.Contains(bad.Detail, "exit status 9") || !strings.Contains(bad.Journal, "the new one says no") {
		t.Errorf("the unit that ends: %+v", bad)
	}
	if loop.Result != "failed" || !strings.Contains(loop.Detail, "restarted by systemd") {
		t.Errorf("the unit that crashes again and again: %+v", loop)
	}
	if results[2].Result != "done" {
		t.Errorf("the unit that reloads: %+v", results[2])
	}
	if u := m.state("lu-ok.service"); u.InvocationID != ok.InvocationID || u.MainPID != ok.MainPID {
		t.Errorf("a reload restarted the unit: %+v", u)
	}

	// A unit whose step was done dies before the inverse.
	if ends, _ := m.Do(t.Context(), []systemd.Job{{Kind: systemd.JobStop, Unit: "lu-ok.service"}}); ends[0].Err != nil {
		t.Fatal(ends[0].Err)
	}
	m.write("lu-bad.service", sleeper)
	m.write("lu-loop.service", sleeper)
	undone, err := restart.Run(t.Context(), m, restart.Inverse(results), restart.Options{Settle: 300 * time.Millisecond})
	if err != nil {
		t.Errorf("the inverse: %+v, %v", undone, err)
	}
	for _, name := range []string{"lu-bad.service", "lu-loop.service", "lu-ok.service"} {
		// systemd may have had its own restart of the one that crashes on its way.
		if u := m.state(name); u.ActiveState != "active" || name != "lu-loop.service" && u.NRestarts != 0 {
			t.Errorf("%s after the inverse: %+v", name, u)
		}
	}
}

func TestInsideStoppedStaysStopped(t *testing.T) {
	m := connect(t)
	m.write("lu-off.service", sleeper)
	m.start()
	results, err := m.run("restart lu-off.service", "reload lu-off.service")
	if err != nil || results[0].Result != "skipped" || results[1].Result != "skipped" {
		t.Errorf("Run() = %+v, %v", results, err)
	}
	if u := m.state("lu-off.service"); u.ActiveState != "inactive" {
		t.Errorf("it was started: %+v", u)
	}
}

// One job for the unit at the root: what requires it is restarted once, by
// systemd, and a failure there is seen.
func TestInsidePropagation(t *testing.T) {
	m := connect(t)
	m.write("lu-base.service", sleeper)
	m.write("lu-top.service", "[Unit]\nRequires=lu-base.service\nAfter=lu-base.service\n"+sleeper)
	m.start("lu-base.service", "lu-top.service")
	before := m.state("lu-top.service")
	if results, err := m.run("restart lu-base.service"); err != nil {
		t.Fatalf("Run() = %+v, %v", results, err)
	}
	if after := m.state("lu-top.service"); after.ActiveState != "active" || after.InvocationID == before.InvocationID {
		t.Errorf("lu-top was %+v, is %+v", before, after)
	}

	m.write("lu-top.service", "[Unit]\nRequires=lu-base.service\nAfter=lu-base.service\n[Service]\nType=exec\nExecStart=/nonexistent\n")
	results, err := m.run("daemon-reload systemd", "restart lu-base.service")
	if err == nil || len(results) != 3 || results[2].Step.Target != "lu-top.service" || results[2].Result != "failed" {
		t.Fatalf("a propagated failure: %+v, %v", results, err)
	}
	m.write("lu-top.service", "[Unit]\nRequires=lu-base.service\nAfter=lu-base.service\n"+sleeper)
	if undone, err := restart.Run(t.Context(), m, restart.Inverse(results), restart.Options{Settle: -1}); err != nil {
		t.Errorf("the inverse: %+v, %v", undone, err)
	}
	if u := m.state("lu-top.service"); u.ActiveState != "active" {
		t.Errorf("lu-top after the inverse: %+v", u)
	}
}

// A socket refuses to start while its service runs: both go down, and the
// service comes back because it ran.
func TestInsideSocketAddress(t *testing.T) {
	m := connect(t)
	socket := func(path string) { m.write("lu-s.socket", "[Socket]\nListenStream="+path+"\n") }
	socket("/run/lu-s.old")
	m.write("lu-s.service", "[Service]\nExecStart=/bin/sleep infinity\n")
	m.start("lu-s.socket", "lu-s.service")
	socket("/run/lu-s.new")
	results, err := m.run("daemon-reload systemd", "restart lu-s.socket")
	if err != nil {
		t.Fatalf("Run() = %+v, %v", results, err)
	}
	conn, err := net.Dial("unix", "/run/lu-s.new")
	if err != nil {
		t.Errorf("the new address: %v", err)
	} else {
		conn.Close()
	}
	for _, name := range []string{"lu-s.socket", "lu-s.service"} {
		if u := m.state(name); u.ActiveState != "active" {
			t.Errorf("%s is %+v", name, u)
		}
	}
	// Negative control: systemd by itself does not get there.
	socket("/run/lu-s.third")
	if err := m.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	ends, _ := m.Do(t.Context(), []systemd.Job{{Kind: systemd.JobTryRestart, Unit: "lu-s.socket"}})
	if ends[0].Err == nil && ends[0].Result == "done" {
		t.Errorf("a plain restart of the socket succeeds: %+v", ends[0])
	}
}

func TestInsideRemovedUnitAndReexec(t *testing.T) {
	m := connect(t)
	flag := filepath.Join(t.TempDir(), "stopped")
	m.write("lu-gone.service", "[Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/touch "+flag+"\n")
	m.write("lu-new.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n")
	m.start("lu-gone.service")
	if err := os.Remove("/run/systemd/system/lu-gone.service"); err != nil {
		t.Fatal(err)
	}
	results, err := m.run("stop lu-gone.service", "daemon-reexec systemd", "start lu-new.service")
	if err != nil {
		t.Fatalf("Run() = %+v, %v", results, err)
	}
	if _, err := os.Stat(flag); err != nil {
		t.Errorf("the removed unit was not stopped by its old ExecStop: %v", err)
	}
	if u := m.state("lu-new.service"); u.ActiveState != "active" {
		t.Errorf("the new unit is %+v", u)
	}
}
