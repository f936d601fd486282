package spine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// The reader looks at the first and the last of many files all the time. It notes each
// moment in which the one was new and stayed so while the other was old.
const (
	readerUnit = `[Service]
ExecStart=/usr/bin/python3 /usr/lib/reader/main.py
[Install]
WantedBy=multi-user.target
`
	readerMain = `import version
def read(name):
    with open("/usr/share/many/" + name) as f:
        return f.read().split()[0]
while True:
    first, last, again = read("0"), read("999"), read("0")
    if first == again != last:
        with open("/run/mixed", "a") as f:
            f.write(first + " " + last + "\n")
`
)

func reader(root string) error {
	if err := manyFiles(root); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"usr/lib/systemd/system/reader.service": readerUnit,
		"usr/lib/reader/main.py":                readerMain,
		"usr/lib/reader/version.py":             "version = 1\n",
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return os.Symlink("/usr/lib/systemd/system/reader.service", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/reader.service"))
}

const readerFreeze = "/sys/fs/cgroup/system.slice/reader.service/cgroup.freeze"

func TestQuiesce(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{ReadOnly: true, Customize: reader, Programs: machine.Programs(t)})
	tree := fixture.NewTree(t, "bookworm").File("usr/lib/reader/version.py", "version = 2\n", 0o644)
	for i := range many {
		tree.File(fmt.Sprintf("usr/share/many/%d", i), fmt.Sprintf("new %d\n", i), 0o644)
	}
	update := tree.CopyTo(m, "/run/update")
	mixed := func() string { return m.Shell("cat /run/mixed 2>/dev/null || true; rm -f /run/mixed") }
	frozen := func() bool { return strings.TrimSpace(m.Shell("cat "+readerFreeze)) == "1" }
	apply := func(t *testing.T, when string) *fixture.Output {
		t.Helper()
		return fixture.In(t, m, append([]string{"apply", "--yes", "--quiesce", when}, source(update)...)...).Want(t, 0)
	}
	rollback := func(t *testing.T, when string) *fixture.Output {
		t.Helper()
		return fixture.In(t, m, "rollback", "--yes", "--quiesce", when).Want(t, 0)
	}

	t.Run("never", func(t *testing.T) {
		// The negative control: it meets old and new side by side.
		apply(t, "never")
		rollback(t, "never")
		if mixed() == "" {
			t.Error("a reader that is not frozen met no mixture: the test proves nothing")
		}
	})
	t.Run("always", func(t *testing.T) {
		for range 2 {
			out := apply(t, "always")
			if !slices.Contains(out.Report.Frozen, "reader.service") || out.Report.FrozenUSec <= 0 {
				t.Errorf("frozen were %v for %d us", out.Report.Frozen, out.Report.FrozenUSec)
			}
			for _, never := range []string{"dbus.service", "systemd-journald.service", "ssh.service"} {
				if slices.Contains(out.Report.Frozen, never) {
					t.Errorf("%s was frozen", never)
				}
			}
			if out := rollback(t, "always"); !slices.Contains(out.Report.Frozen, "reader.service") {
				t.Errorf("for the rollback were frozen %v", out.Report.Frozen)
			}
		}
		if got := mixed(); got != "" {
			t.Errorf("the frozen reader met %q", got)
		}
	})
	t.Run("auto", func(t *testing.T) {
		// One file of the unit changes: that is not worth a freeze.
		if out := apply(t, "auto"); len(out.Report.Frozen) > 0 {
			t.Errorf("frozen were %v", out.Report.Frozen)
		}
		rollback(t, "auto")
		mixed()
	})
	t.Run("frozen before", func(t *testing.T) {
		m.Shell("echo 1 >" + readerFreeze)
		// Its restart, which would wait for ever, is put off.
		out := fixture.In(t, m, append([]string{"apply", "--yes", "--quiesce", "always", "--max", "none"}, source(update)...)...).Want(t, 0)
		if len(out.Report.Frozen) > 0 || !frozen() {
			t.Errorf("frozen were %v; still frozen by who froze it before: %v", out.Report.Frozen, frozen())
		}
		m.Shell("echo 0 >" + readerFreeze)
		rollback(t, "never")
		mixed()
	})
	committing := func(t *testing.T) (*running, []int) {
		t.Helper()
		r := start(t, m, append([]string{"apply", "--yes", "--json", "--quiesce", "always"}, source(update)...)...)
		workers := r.workers()
		r.await("the swap", func() bool { return r.state() == "committing" })
		return r, workers
	}
	t.Run("killed", func(t *testing.T) {
		r, workers := committing(t)
		kill(t, workers...)
		r.wait()
		settled(t, m)
		if frozen() {
			t.Error("the reader is frozen after the run was killed")
		}
		fixture.In(t, m, "verify").Want(t, 0)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	})
	t.Run("stopped", func(t *testing.T) {
		r, workers := committing(t)
		stopped := workers[:0]
		for _, pid := range workers {
			switch err := syscall.Kill(pid, syscall.SIGSTOP); {
			case err == nil:
				stopped = append(stopped, pid)
			case !errors.Is(err, syscall.ESRCH): // on a busy machine one may have ended
				t.Fatal(err)
			}
		}
		held := frozen()
		for deadline := time.Now().Add(time.Minute); frozen(); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("the reader is frozen, and nobody thaws it")
				break
			}
		}
		for _, pid := range stopped {
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
		got := r.wait()
		t.Logf("it was frozen when the run was stopped: %v", held)
		if got.Code != 0 {
			t.Errorf("exit code %d\n%s%s", got.Code, got.Stdout, got.Stderr)
		}
		settled(t, m)
		if frozen() {
			t.Error("the reader is frozen")
		}
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	})
}
