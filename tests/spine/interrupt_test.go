package spine

import (
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// Two at once, and an interrupt before and after the commit point.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	m := boot(t, "trixie")
	before := treeOf(t, m)
	// Fifty seconds that nobody waits for, six that the second run needs.
	held := slowCheck(fixture.NewTree(t, "trixie"), "50").CopyTo(m, "/run/held")
	slow := slowCheck(fixture.NewTree(t, "trixie"), "6").CopyTo(m, "/run/slow")
	late := fixture.NewTree(t, "trixie").
		Replace(fixture.EnvappUnit, "[Service]\n", "[Service]\nExecStartPre=/usr/bin/sleep 3\n").CopyTo(m, "/run/late")

	t.Run("two at once", func(t *testing.T) {
		units := m.Units()
		first := start(t, m, append([]string{"apply", "--yes", "--json"}, source(slow)...)...)
		first.await("its check", func() bool { return inCheck(m, "6") })
		for _, args := range [][]string{
			append([]string{"apply", "--yes"}, source(held)...),
			{"rollback", "--yes"},
			{"recover"},
		} {
			out := fixture.In(t, m, args...).Want(t, 5)
			if !strings.Contains(out.Error, "liveupd apply (process ") {
				t.Errorf("%s: the error is %q; want who holds the lock", args[0], out.Error)
			}
		}
		// What only looks is not kept out.
		fixture.In(t, m, append([]string{"apply", "--plan"}, source(late)...)...).Want(t, 0)
		if got := m.Run("liveupd", "status"); got.Code != 0 {
			t.Errorf("status ends with %d: %s", got.Code, got.Stderr)
		}
		if !inCheck(m, "6") {
			t.Error("the first was through its check before the others were refused: this test shows nothing")
		}
		out := fixture.Parse(t, first.wait()).Want(t, 0)
		if out.Report == nil || out.Report.Result != "done" {
			t.Errorf("the first run's report: %+v", out.Report)
		}
		unharmed(t, m, units, "envapp.service")
		readOnlyNow(t, m)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		same(t, "after the rollback", before, treeOf(t, m))
	})

	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run("before the commit point, "+sig.String(), func(t *testing.T) {
			units := m.Units()
			r := start(t, m, append([]string{"apply", "--yes", "--json"}, source(held)...)...)
			r.await("its check", func() bool { return inCheck(m, "50") })
			interrupt(t, r, sig)
			out := fixture.Parse(t, r.wait()).Want(t, 1)
			if out.Report == nil || out.Report.Result != "undone" {
				t.Errorf("the report is %+v; want undone", out.Report)
			}
			settled(t, m)
			if inCheck(m, "50") {
				t.Error("the validator still runs")
			}
			same(t, "after the interrupt", before, treeOf(t, m))
			unharmed(t, m, units)
			nothingStaged(t, r)
			readOnlyNow(t, m)
		})
	}

	t.Run("after the commit point", func(t *testing.T) {
		units := m.Units()
		r := start(t, m, append([]string{"apply", "--yes"}, source(late)...)...)
		r.await("the restart", func() bool { return len(program(m, "sleep", "3")) > 0 })
		interrupt(t, r, syscall.SIGINT)
		got := r.wait()
		if got.Code != 0 {
			t.Errorf("exit code %d; want 0\n%s%s", got.Code, got.Stdout, got.Stderr)
		}
		if !strings.Contains(got.Stderr, "past the commit point: the run goes on to its end") {
			t.Errorf("the diagnostics do not tell what became of the interrupt: %s", got.Stderr)
		}
		unharmed(t, m, units, "envapp.service")
		if names := machine.Interrupted(units, m.Units()); len(names) != 1 {
			t.Errorf("interrupted were %v; want envapp.service", names)
		}
		fixture.In(t, m, "verify").Want(t, 0)
		readOnlyNow(t, m)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		same(t, "after the rollback", before, treeOf(t, m))
	})

	// Whoever ends the caller may wait for its end before he lets the run go on.
	t.Run("ended after the commit point", func(t *testing.T) {
		r := start(t, m, append([]string{"apply", "--yes"}, source(late)...)...)
		r.await("the restart", func() bool { return len(program(m, "sleep", "3")) > 0 })
		interrupt(t, r, syscall.SIGINT)
		interrupt(t, r, syscall.SIGTERM)
		// Not by waiting for it: the worker holds its output open.
		r.await("the caller's end", func() bool { return len(program(m, "liveupd", "apply")) == 0 })
		if len(program(m, "sleep", "3")) == 0 {
			t.Error("the caller stayed until the restart was done")
		}
		if got := r.wait(); got.Code != 128+int(syscall.SIGTERM) || !strings.Contains(got.Stderr, "the run goes on") {
			t.Errorf("exit code %d; want that of SIGTERM, and that the run goes on\n%s", got.Code, got.Stderr)
		}
		settled(t, m)
		fixture.In(t, m, "verify").Want(t, 0)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		same(t, "after the rollback", before, treeOf(t, m))
	})
}

func interrupt(t *testing.T, r *running, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(r.caller(), sig); err != nil {
		t.Fatal(err)
	}
}
