package boot

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/machine"
)

// Ends of a machine that somebody asks for in the middle of the swap wait for its end. The
// worker stands still meanwhile, so that there is a middle.
func TestShutdownWaits(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	for _, verb := range []string{"poweroff", "soft-reboot"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			m, worker := inSwap(t, "")
			ask(t, m, verb)
			time.Sleep(5 * time.Second) // far longer than the machine takes without the worker
			if s := machine.State(m.Image()); s != "committing" || !alive(worker) {
				t.Fatalf("the state is %q while the worker stands still, and the worker lives: %v\n%s", s, alive(worker), m.Console(40))
			}
			if err := syscall.Kill(worker, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			await(t, m, "the end of the update", func() bool {
				s := machine.State(m.Image())
				return s == "verified" || s == "rolled-back"
			})
			if n := countNew(t, slow, filepath.Join(m.Image(), share)); machine.State(m.Image()) != "verified" || n != slow {
				t.Errorf("%d of %d files are new, and the state is %q\n%s", n, slow, machine.State(m.Image()), m.Console(40))
			}
			await(t, m, verb, func() bool {
				if verb == "poweroff" {
					return !alive(m.Leader())
				}
				return softReboots(m) == "1"
			})
		})
	}
	// The control: a unit that is ended like any other is cut in half.
	t.Run("without", func(t *testing.T) {
		t.Parallel()
		m, _ := inSwap(t, "[Service]\nTimeoutStopSec=1\nExecStopPost=\n")
		ask(t, m, "poweroff")
		await(t, m, "the power-off", func() bool { return !alive(m.Leader()) })
		if s := machine.State(m.Image()); s != "committing" {
			t.Errorf("the state is %q: the test above shows nothing", s)
		}
	})
}

// Where logind runs, a power-off is refused meanwhile, and told why; systemd 257 refuses root, too.
func TestShutdownRefused(t *testing.T) {
	t.Parallel()
	m, worker := inSwap(t, "")
	if m.Unit("systemd-logind.service").ActiveState != "active" {
		t.Skip("logind does not run in this machine")
	}
	if list := m.Run("systemd-inhibit", "--list", "--no-legend").Stdout; !strings.Contains(list, "liveupd") || !strings.Contains(list, "an update is being applied") {
		t.Errorf("logind's locks are:\n%s", list)
	}
	poweroff := func() machine.Result {
		return m.Run("busctl", "call", "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "PowerOff", "b", "false")
	}
	if out := poweroff(); out.Code == 0 {
		t.Errorf("a power-off is not refused: %+v", out)
	}
	if err := syscall.Kill(worker, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, m, "the end of the update", func() bool { return machine.State(m.Image()) == "verified" })
	await(t, m, "the end of the lock", func() bool {
		return !strings.Contains(m.Run("systemd-inhibit", "--list", "--no-legend").Stdout, "liveupd")
	})
	// The control: the same request, without the lock.
	if out := poweroff(); out.Code != 0 {
		t.Errorf("a power-off is refused afterwards: %+v", out)
	}
	await(t, m, "the power-off", func() bool { return !alive(m.Leader()) })
}

// softReboots is how many there have been. What PID 1 has not answered when it executes
// itself anew is never answered: it is asked again.
func softReboots(m *machine.Machine) string {
	return strings.TrimSpace(m.Run("timeout", "--signal=KILL", "5", "systemctl", "show", "--property=SoftRebootsCount", "--value").Stdout)
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// ask asks for an end of the machine, past logind.
func ask(t *testing.T, m *machine.Machine, verb string) {
	t.Helper()
	if out := m.Run("systemctl", "start", "--no-block", "--job-mode=replace-irreversibly", verb+".target"); out.Code != 0 {
		t.Fatalf("%s: %+v", verb, out)
	}
}

// inSwap boots a machine and starts an update, whose worker stands still in the
// middle of the swap. dropIn is one for its unit.
func inSwap(t *testing.T, dropIn string) (m *machine.Machine, worker int) {
	t.Helper()
	const folder = "/etc/systemd/system/liveupd-apply-.service.d"
	m = machine.Boot(t, machine.Options{
		Root: "trixie", ReadOnly: true, Programs: machine.Programs(t), Nspawn: []string{"--tmpfs=/var/lib/systemd"},
		Customize: func(root string) error {
			if dropIn != "" {
				if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(root, folder, "50-test.conf"), []byte(dropIn), 0o644); err != nil {
					return err
				}
			}
			return manyFiles(root, slow, share)
		},
	})
	dir := update(t, "trixie", slow, share).CopyTo(m, "/run/update")
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for try := 1; ; try++ {
		cmd := m.Command(ctx, "/usr/local/bin/liveupd", "apply", "--yes", "--source", "tree:"+dir, "--allow-unsigned")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait() // the machine may take it along
			close(ended)
		}()
		t.Cleanup(func() {
			cancel()
			<-ended
		})
		running := func() bool {
			select {
			case <-ended:
				return false
			case <-time.After(time.Millisecond):
				return true
			}
		}
		for worker == 0 && running() {
			for _, pid := range m.Find("liveupd") {
				b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
				if strings.Contains(string(b), "worker-inside") {
					worker = pid
				}
			}
		}
		for running() && machine.State(m.Image()) != "committing" {
		}
		if worker != 0 && syscall.Kill(worker, syscall.SIGSTOP) == nil && machine.State(m.Image()) == "committing" {
			t.Cleanup(func() { _ = syscall.Kill(worker, syscall.SIGCONT) })
			return m, worker
		}
		if try == 5 {
			t.Fatal("the swap was over too soon, five times")
		}
		if worker != 0 {
			_ = syscall.Kill(worker, syscall.SIGCONT) // it may have ended
		}
		<-ended
		m.Run("/usr/local/bin/liveupd", "rollback", "--yes")
		worker = 0
	}
}
