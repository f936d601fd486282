package quiesce

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
)

// testDeadline is short: a test waits for it.
const testDeadline = 500 * time.Millisecond

func TestMain(m *testing.M) {
	dir := os.Getenv("LIVEUPD_FREEZE")
	switch {
	case len(os.Args) == 2 && os.Args[1] == DogArg:
		if err := watch(os.Stdin, os.Stdout, testDeadline); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	case dir != "":
		freezeAndHang(dir)
	default:
		m.Run()
	}
}

// freezeAndHang is a run that freezes a group and goes no further.
func freezeAndHang(dir string) {
	root, err := Hierarchy()
	if err == nil {
		var s *Session
		rel, _ := filepath.Rel(root, dir)
		if s, err = Prepare(nil, os.Getenv("LIVEUPD_NOTES"), []Target{{"a.service", rel}}); err == nil && s != nil {
			s.Freeze()
			fmt.Fprintln(os.Stdout, "frozen")
			select {}
		}
	}
	fmt.Fprintln(os.Stdout, "cannot:", err)
}

// worker is a process that counts, in a control group of its own.
type worker struct {
	t     *testing.T
	dir   string
	count string
}

func newWorker(t *testing.T) *worker {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes control groups")
	}
	root, err := Hierarchy()
	if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp(root, "liveupd-test-")
	if err != nil {
		t.Skipf("cannot make a control group here: %v", err)
	}
	w := &worker{t, dir, filepath.Join(t.TempDir(), "count")}
	cmd := exec.Command("sh", "-c", `echo $$ >"$1/cgroup.procs"; i=0; while :; do i=$((i+1)); echo $i >"$2"; done`, "sh", dir, w.count)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.write("0")
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		for range 100 {
			if err = os.Remove(dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("cannot remove %s: %v", dir, err)
	})
	w.await("the worker", func() bool { return len(w.procs()) > 0 && w.counted() > 0 })
	return w
}

func (w *worker) await(what string, cond func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (w *worker) procs() string {
	b, _ := os.ReadFile(filepath.Join(w.dir, "cgroup.procs"))
	return strings.TrimSpace(string(b))
}

func (w *worker) counted() int {
	b, _ := os.ReadFile(w.count)
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func (w *worker) write(value string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, "cgroup.freeze"), []byte(value), 0); err != nil {
		w.t.Error(err)
	}
}

func (w *worker) target() Target {
	root, err := Hierarchy()
	if err != nil {
		w.t.Fatal(err)
	}
	rel, err := filepath.Rel(root, w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return Target{"a.service", "/" + rel}
}

func (w *worker) frozen() bool { return group{dir: w.dir}.frozen() }

// runs waits until the worker counts on.
func (w *worker) runs() {
	w.t.Helper()
	before := w.counted()
	w.await("the worker to run on", func() bool { return w.counted() > before })
}

func TestFreezeAndThaw(t *testing.T) {
	w := newWorker(t)
	notes := filepath.Join(t.TempDir(), "frozen")
	s, err := Prepare(nil, notes, []Target{w.target(), {"gone.service", "/no/such/group"}, {"none.service", ""}})
	if err != nil {
		t.Fatal(err)
	}
	if !Left(notes) {
		t.Error("what is to be frozen is not noted")
	}
	w.runs()
	s.Freeze()
	if !w.frozen() {
		t.Fatal("it is not frozen")
	}
	before := w.counted()
	time.Sleep(20 * time.Millisecond)
	if after := w.counted(); after != before {
		t.Errorf("the frozen worker counted from %d to %d", before, after)
	}
	out := s.Thaw()
	if !slices.Equal(out.Frozen, []string{"a.service"}) || out.USec <= 0 || len(out.Warnings) > 0 {
		t.Errorf("outcome %+v", out)
	}
	w.runs()
	if Left(notes) {
		t.Error("the note is left")
	}
}

// Without Freeze there is nothing to thaw, and nobody watches on.
func TestPreparedForNothing(t *testing.T) {
	w := newWorker(t)
	notes := filepath.Join(t.TempDir(), "frozen")
	s, err := Prepare(nil, notes, []Target{w.target()})
	if err != nil {
		t.Fatal(err)
	}
	if out := s.Thaw(); len(out.Frozen) > 0 || out.USec != 0 || len(out.Warnings) > 0 || Left(notes) {
		t.Errorf("outcome %+v", out)
	}
	if s, err := Prepare(nil, notes, nil); s != nil || err != nil {
		t.Errorf("no targets give %v, %v", s, err)
	}
}

func TestFrozenBySomebodyElse(t *testing.T) {
	w := newWorker(t)
	w.write("1")
	w.await("the freeze", w.frozen)
	if s, err := Prepare(nil, t.TempDir(), []Target{w.target()}); s != nil || err != nil {
		t.Errorf("what somebody else froze gives %v, %v", s, err)
	}
	if !w.frozen() {
		t.Error("it was thawed")
	}
}

// The one that froze dies, or hangs: the watchdog thaws.
func TestWatchdog(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		t.Run(sig.String(), func(t *testing.T) {
			w := newWorker(t)
			notes := filepath.Join(t.TempDir(), "frozen")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "LIVEUPD_FREEZE="+w.dir, "LIVEUPD_NOTES="+notes)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait() // killed
			}()
			word := make([]byte, 7)
			if _, err := io.ReadFull(out, word); err != nil || string(word) != "frozen\n" {
				t.Fatalf("it says %q, %v", word, err)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			w.await("the watchdog", func() bool { return !w.frozen() })
			w.runs()
			// Its note is for the recovery, which finds nothing more to do.
			if !Left(notes) {
				t.Error("the dead run's note is gone")
			}
			if err := Thaw(nil, notes); err != nil || Left(notes) {
				t.Errorf("Thaw = %v, note left: %v", err, Left(notes))
			}
		})
	}
}

// Where even the watchdog was killed, the note leads the recovery.
func TestThawByTheNote(t *testing.T) {
	w := newWorker(t)
	notes := filepath.Join(t.TempDir(), "frozen")
	if err := Thaw(nil, notes); err != nil {
		t.Errorf("without a note: %v", err)
	}
	s, err := Prepare(nil, notes, []Target{w.target()})
	if err != nil {
		t.Fatal(err)
	}
	s.Freeze()
	if err := s.dog.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.dog.cmd.Wait() // killed
	if !w.frozen() {
		t.Fatal("it is not frozen")
	}
	if err := Thaw(nil, notes); err != nil {
		t.Fatal(err)
	}
	w.runs()
	if err := os.WriteFile(filepath.Join(notes, noteName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Thaw(nil, notes); err == nil {
		t.Error("a damaged note is no error")
	}
}

// A watchdog that is dead when the freeze begins guards nothing: nothing is frozen.
func TestNoFreezeWithoutTheWatchdog(t *testing.T) {
	w := newWorker(t)
	s, err := Prepare(nil, t.TempDir(), []Target{w.target()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.dog.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.dog.cmd.Wait() // killed
	s.Freeze()
	if w.frozen() {
		t.Error("it is frozen and nobody watches")
	}
	if out := s.Thaw(); len(out.Frozen) > 0 || len(out.Warnings) == 0 {
		t.Errorf("outcome %+v; want a warning", out)
	}
}

// A group that cannot be written to is told, and the others are frozen and thawed.
func TestOneThatCannotBeFrozen(t *testing.T) {
	w := newWorker(t)
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if strings.Contains(c.Path, w.dir) {
			return sys.Fault{Err: syscall.EIO}
		}
		return sys.Fault{}
	})
	other := newWorker(t)
	s, err := Prepare(k, t.TempDir(), []Target{w.target(), {"b.service", other.target().Group}})
	if err != nil {
		t.Fatal(err)
	}
	s.Freeze()
	if w.frozen() || !other.frozen() {
		t.Errorf("frozen: %v and %v; want the other alone", w.frozen(), other.frozen())
	}
	out := s.Thaw()
	if !slices.Equal(out.Frozen, []string{"b.service"}) || len(out.Warnings) == 0 || !strings.Contains(out.Warnings[0], "a.service") {
		t.Errorf("outcome %+v", out)
	}
	other.runs()
}

func TestWatchdogOfAMasterThatNeverFroze(t *testing.T) {
	var out bytes.Buffer
	if err := watch(strings.NewReader("/no/such/group\n"), &out, testDeadline); err != nil || out.Len() > 0 {
		t.Errorf("watch = %v, %q", err, out.String())
	}
	if err := watch(strings.NewReader("/no/such/group\n\nfreeze\n"), &out, testDeadline); err != nil || out.String() != "ready\n" {
		t.Errorf("watch = %v, %q", err, out.String())
	}
	in, master := io.Pipe()
	go func() { _, _ = master.Write([]byte("\nfreeze\ndone\n")) }()
	if err := watch(in, io.Discard, time.Hour); err != nil {
		t.Error(err)
	}
	if err := master.Close(); err != nil {
		t.Error(err)
	}
}

func TestNever(t *testing.T) {
	for _, unit := range []string{
		"init.scope", "dbus.service", "dbus-broker.service", "systemd-journald.service", "systemd-journald@x.service", "systemd-logind.service",
		"systemd-udevd.service", "user@0.service", "session-3.scope", "liveupd-apply-1.service", "iscsid.service", "multipathd.service",
		"docker.service", "machine-x.scope", "ssh.service", "nginx.socket", "system.slice",
	} {
		if Never(unit, []string{"ssh.service"}) == "" {
			t.Errorf("%s may be frozen", unit)
		}
	}
	for _, unit := range []string{"nginx.service", "postgresql@15-main.service", "cron.service", "ssh.service"} {
		if why := Never(unit, nil); why != "" {
			t.Errorf("%s is never frozen: %s", unit, why)
		}
	}
}

func TestHierarchyAbsent(t *testing.T) {
	old := hierarchies
	hierarchies = []string{t.TempDir()}
	defer func() { hierarchies = old }()
	if _, err := Prepare(nil, t.TempDir(), []Target{{"a.service", "/a"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v; want one that says what is missing", err)
	}
}
