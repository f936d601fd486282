package systemd_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/internal/systemd/systemdtest"
)

func ask(t testing.TB) *systemd.Asker {
	t.Helper()
	a, err := systemd.NewAsker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// What is asked property by property is what all properties together say.
func TestInsideAsker(t *testing.T) {
	systemdtest.NeedInside(t)
	c, a := connect(t), ask(t)
	var diff string
	for range 5 { // a unit may change its state in between
		list, err := a.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list {
			if u.Lacks != change.AllFields || len(u.Names) > 0 || u.FragmentPath != "" {
				t.Fatalf("before anything was asked: %+v", u)
			}
		}
		if err := a.Fill(t.Context(), list, change.AllFields); err != nil {
			t.Fatal(err)
		}
		all, err := c.Units(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, want := map[string]*change.UnitState{}, map[string]*change.UnitState{}
		for _, u := range list {
			got[u.Name] = u
		}
		for name, u := range all {
			if name != u.Name {
				continue
			}
			w := *u
			// How it fares is for those who act on it.
			w.RemainAfterExit, w.RefuseManualStart, w.NRestarts, w.Result, w.StatusText = false, false, 0, "", ""
			w.ExecMainCode, w.ExecMainStatus, w.ConditionUnmet = 0, 0, false
			want[name] = &w
		}
		if len(got) < 20 {
			t.Fatalf("%d units", len(got))
		}
		if diff = cmp.Diff(want, got); diff == "" {
			t.Logf("%d units", len(got))
			break
		}
	}
	if diff != "" {
		t.Errorf("units (-GetAll +asked):\n%s", diff)
	}
}

// When the units were read is told by the boot first, and by reloads then.
func TestInsideLoaded(t *testing.T) {
	systemdtest.NeedInside(t)
	c, a := connect(t), ask(t)
	version, boot, err := a.Manager(t.Context())
	if err != nil || version != c.Version() || boot.RealUSec == 0 || boot.MonoUSec == 0 {
		t.Fatalf("Manager() = %d, %+v, %v", version, boot, err)
	}
	before := uint64(time.Now().UnixMicro())
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, again, err := a.Manager(t.Context())
	if err != nil || again.RealUSec < before && version >= 250 {
		t.Errorf("after a reload at %d: %+v, %v", before, again, err)
	}
}

// A unit that has gone has nothing to tell, and stops nobody.
func TestInsideAskAboutWhatHasGone(t *testing.T) {
	systemdtest.NeedInside(t)
	a := ask(t)
	none := &change.UnitState{Name: "lu-is-not-there.service", Lacks: change.AllFields}
	journal := &change.UnitState{Name: "systemd-journald.service", Lacks: change.AllFields}
	if err := a.Fill(t.Context(), []*change.UnitState{none, journal}, change.AllFields); err != nil {
		t.Fatal(err)
	}
	if none.FragmentPath != "" || none.MainPID != 0 || journal.MainPID == 0 {
		t.Errorf("%+v\n%+v", none, journal)
	}
}

// An ordinary user asks over the bus.
func TestInsideAskerOfAUser(t *testing.T) {
	systemdtest.NeedInside(t)
	if os.Getenv("LIVEUPD_TEST_USER") != "" {
		list, err := ask(t).List(t.Context())
		if err != nil || len(list) < 20 || os.Geteuid() == 0 {
			t.Fatalf("%d units, %v, uid %d", len(list), err, os.Geteuid())
		}
		if err := ask(t).Fill(t.Context(), list, change.FieldInvoked|change.FieldNames); err != nil {
			t.Fatal(err)
		}
		return
	}
	self := filepath.Join(t.TempDir(), "test.bin") // the root folder of the machine may be closed to others
	if out, err := exec.Command("sh", "-c", "cp /proc/"+"$PPID"+"/exe "+self+" && chmod 755 "+self+" && chmod 755 "+filepath.Dir(self)+" "+filepath.Dir(filepath.Dir(self))).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(self, "-test.run=^TestInsideAskerOfAUser$", "-test.v")
	cmd.Env = append(os.Environ(), "LIVEUPD_TEST_USER=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestInsideAskerEnds(t *testing.T) {
	systemdtest.NeedInside(t)
	a := ask(t)
	list, err := a.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Fill(ended, list, change.FieldNeededBy); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// PID 1 closes the private socket when it executes itself anew.
	if err := connect(t).Reexec(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if _, err := a.List(deadline); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over a connection that was lost: %v", err)
	}
	if _, err := ask(t).List(t.Context()); err != nil {
		t.Error(err)
	}
}
