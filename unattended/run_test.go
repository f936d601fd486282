package unattended

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// Each case is a machine, and what a run on it asks for, in order.
func TestRun(t *testing.T) {
	rolledBack := fmt.Errorf("cannot restart a.service; everything was %w", engine.ErrRolledBack)
	for _, tt := range []struct {
		name   string
		config string
		make   func(*fake)
		result string
		log    string
		reason string // part of the reason, or of the error
	}{
		{"nothing", "", func(*fake) {}, change.NightNothing, "apply", ""},
		{"an update", "", func(f *fake) { f.update("a=1") }, change.NightDone, "apply", ""},
		{"not enabled", "", func(f *fake) { f.configure(""); f.update("a=1"); f.disable() }, change.NightSkipped, "", "not enabled"},
		{"on battery", "", func(f *fake) { f.update("a=1"); f.battery = true }, change.NightSkipped, "", "as the test says"},
		{"on battery, permitted", "on_battery = true", func(f *fake) { f.update("a=1"); f.battery = true }, change.NightDone, "apply", ""},
		{"metered", "", func(f *fake) { f.update("a=1"); f.metered = true }, change.NightSkipped, "", "metered"},
		{"metered, permitted", "on_metered = true", func(f *fake) { f.update("a=1"); f.metered = true }, change.NightDone, "apply", ""},
		{"said to be metered", `metered = "yes"`, func(f *fake) { f.update("a=1") }, change.NightSkipped, "", "unattended.metered says yes"},
		{"said not to be", `metered = "no"`, func(f *fake) { f.update("a=1"); f.metered = true }, change.NightDone, "apply", ""},
		{"closed", `windows = ["04:00-05:00"]`, func(f *fake) { f.update("a=1") }, change.NightSkipped, "", "opens"},
		{"never", `never = ["db.service"]`, func(f *fake) { f.update("a=1") }, change.NightDone, "apply never:db.service", ""},
		{
			"the window closes before the commit", `windows = ["02:00-03:10"]`,
			func(f *fake) { f.update("a=1"); f.closes("apply") }, change.NightUndone, "apply", "the window closed",
		},
		{
			"the pre hook takes as long as the window", "windows = [\"02:00-03:10\"]\npre = [\"/p\"]\npost = [\"/p\"]",
			func(f *fake) { f.update("a=1"); f.slow = "pre" }, change.NightUndone, "apply|pre|post", "while the pre hook ran",
		},
		{
			"hooks", "pre = [\"/p\"]\npost = [\"/p\"]\non_change = [\"/p\"]\non_failure = [\"/p\"]\ncanary = [\"/p\"]",
			func(f *fake) { f.update("a=1") }, change.NightDone, "apply|pre|canary|post|on_change", "",
		},
		{
			"hooks of a night without an update", "pre = [\"/p\"]\npost = [\"/p\"]\non_change = [\"/p\"]\ncanary = [\"/p\"]",
			func(*fake) {}, change.NightNothing, "apply", "",
		},
		{
			"the pre hook fails", "pre = [\"/p\"]\npost = [\"/p\"]\non_failure = [\"/p\"]\nmail = \"root\"",
			func(f *fake) { f.update("a=1"); f.commands["pre"] = errors.New("no") }, change.NightFailed, "apply|pre|post|on_failure|mail", "the pre hook refuses",
		},
		{
			"the canary fails", "canary = [\"/p\"]\non_failure = [\"/p\"]",
			func(f *fake) { f.update("a=1"); f.commands["canary"] = errors.New("no") }, change.NightRolledBack, "apply|canary|rollback tx001|on_failure", "the canary",
		},
		{
			"a unit fails", "canary = [\"/p\"]", func(f *fake) { f.update("a=1"); f.applyErr = rolledBack },
			change.NightRolledBack, "apply", "rolled back",
		},
		{
			"locked all the time", `wait = "30s"`, func(f *fake) { f.update("a=1"); f.during = fails("apply", change.ErrLocked, 99) },
			change.NightSkipped, "apply|apply|apply", "locked",
		},
		{
			"locked for a while", `wait = "30s"`, func(f *fake) { f.update("a=1"); f.during = fails("apply", change.ErrLocked, 1) },
			change.NightDone, "apply|apply", "",
		},
		{
			"the worker is killed once", "", func(f *fake) { f.update("a=1"); f.during = fails("apply", gone(), 1) },
			change.NightDone, "apply|apply", "",
		},
		{
			"the worker is killed each time", "", func(f *fake) { f.update("a=1"); f.during = fails("apply", gone(), 99) },
			change.NightFailed, "apply|apply|apply", "without a result",
		},
		{
			"groups", groupsConfig, func(f *fake) { f.update("a=1"); f.waiting = []string{"b1.service", "b2.service", "z.service"} },
			change.NightDone,
			"apply later:b*.service!a.service later:*!a.service,b*.service|canary|restart later:*!a.service,b*.service units:b1.service,b2.service|canary|restart units:z.service", "",
		},
		{
			"a group's canary fails", groupsConfig, func(f *fake) {
				f.update("a=1")
				f.waiting = []string{"b1.service"}
				f.during = func(verb string, _ context.Context) error {
					if verb == "restart" {
						f.commands["canary"] = errors.New("no")
					}
					return nil
				}
			}, change.NightRolledBack,
			"apply later:b*.service!a.service later:*!a.service,b*.service|canary|restart later:*!a.service,b*.service units:b1.service|canary|rollback tx001", "the canary of group two",
		},
		{
			"a group's restart fails", groupsConfig, func(f *fake) {
				f.update("a=1")
				f.waiting = []string{"b1.service"}
				f.during = fails("restart", errors.New("cannot restart b1.service"), 1)
			}, change.NightRolledBack,
			"apply later:b*.service!a.service later:*!a.service,b*.service|canary|restart later:*!a.service,b*.service units:b1.service|rollback tx001", "group two",
		},
		{
			"a group's worker is killed", groupsConfig, func(f *fake) {
				f.update("a=1")
				f.waiting = []string{"b1.service"}
				f.during = fails("restart", gone(), 1)
			}, change.NightDone,
			"apply later:b*.service!a.service later:*!a.service,b*.service|canary|restart later:*!a.service,b*.service units:b1.service|" +
				"restart later:*!a.service,b*.service units:b1.service|canary", "",
		},
		{
			"the window closes between groups", "windows = [\"02:00-03:10\"]\n" + groupsConfig, func(f *fake) {
				f.update("a=1")
				f.waiting = []string{"b1.service"}
				f.slow = "canary"
			}, change.NightDone, "apply later:b*.service!a.service later:*!a.service,b*.service|canary", "",
		},
		{
			"what was put off, without an update", "pre = [\"/p\"]\ncanary = [\"/p\"]", func(f *fake) { f.waiting = []string{"b.service"}; f.commit("verified") },
			change.NightDone, "apply|restart units:b.service|pre|canary", "",
		},
		{
			"what was put off fails", "canary = [\"/p\"]", func(f *fake) {
				f.waiting = []string{"b.service"}
				f.commit("verified")
				f.during = fails("restart", errors.New("cannot restart b.service"), 1)
			}, change.NightFailed, "apply|restart units:b.service", "what was put off could not be done",
		},
		{"a reboot, never", "", func(f *fake) { f.update("a=1"); f.host = change.ActionReboot }, change.NightDone, "apply", ""},
		{"a reboot", `reboot = "auto"`, func(f *fake) { f.update("a=1"); f.host = change.ActionReboot }, change.NightDone, "apply|reboot", ""},
		{"no reboot is pending", `reboot = "auto"`, func(f *fake) { f.update("a=1"); f.host = change.ActionDaemonReexec }, change.NightDone, "apply", ""},
		{
			"a reboot in the window", "reboot = \"window\"\nwindows = [\"02:00-04:00\"]", func(f *fake) { f.update("a=1"); f.host = change.ActionKexec },
			change.NightDone, "apply|reboot", "",
		},
		{
			"a reboot that does not fit, for somebody is there", "reboot = \"window\"\nwindows = [\"02:00-03:04\"]",
			func(f *fake) { f.update("a=1"); f.host = change.ActionKexec; f.users = []string{"eve"} }, change.NightDone, "apply", "",
		},
		{
			"after a failure no reboot", `reboot = "auto"`, func(f *fake) {
				f.host = change.ActionReboot
				f.commit("verified")
				f.update("a=1")
				f.applyErr = rolledBack
			}, change.NightRolledBack, "apply", "",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, tt.config)
			tt.make(f)
			n, err := f.run(Options{})
			if n == nil {
				t.Fatalf("no report: %v", err)
			}
			if n.Result != tt.result || strings.Join(f.log, "|") != tt.log {
				t.Errorf("%s: %s; want %s: %s\n(%s%s; %v)", n.Result, strings.Join(f.log, "|"), tt.result, tt.log, n.Reason, n.Error, err)
			}
			if !strings.Contains(n.Reason+n.Error, tt.reason) {
				t.Errorf("the reason is %q and the error %q; want %q", n.Reason, n.Error, tt.reason)
			}
			if _, err := os.Stat(filepath.Join(f.dir, runName)); err == nil != (n.Reboot > 0) {
				t.Errorf("the run is noted as under way: %v", err == nil)
			}
			if (Bad(n) || n.Code != 0) != (err != nil) && n.HostAction == change.ActionNone {
				t.Errorf("the error of a run that is %s is %v", n.Result, err)
			}
		})
	}
}

const groupsConfig = `settle = "0s"
[[unattended.group]]
name = "one"
units = ["a.service"]
canary = ["/p"]
[[unattended.group]]
name = "two"
units = ["b*.service"]
canary = ["/p"]
[[unattended.group]]
name = "three"
units = ["*"]
`

func (f *fake) disable() {
	name := filepath.Join(f.etc, "etc/liveupd/liveupd.toml")
	if err := os.WriteFile(name, []byte("[unattended]\nenabled = false\n"), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// closes moves the clock on while the verb is carried out, and waits to be cancelled.
func (f *fake) closes(verb string) {
	f.during = func(got string, ctx context.Context) error {
		if got == verb {
			f.move(time.Hour)
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
				f.t.Error("nothing was cancelled")
			}
		}
		return nil
	}
}

// fails has a verb fail so often.
func fails(verb string, err error, times int) func(string, context.Context) error {
	return func(got string, _ context.Context) error {
		if got != verb || times == 0 {
			return nil
		}
		times--
		return err
	}
}

func gone() error { return fmt.Errorf("%w: %w", engine.ErrWorkerGone, engine.ErrNothingCommitted) }

// A run that was cut off in any phase, with what the engine's recovery has made of its transaction.
func TestTakeUp(t *testing.T) {
	for _, tt := range []struct {
		name   string
		p      Progress
		state  string // of the transaction, "" for none
		boot   string
		config string
		result string
		log    string
	}{
		{"waiting", Progress{Phase: phaseWaiting}, "", "", "", change.NightDone, "apply"},
		{"planning", Progress{Phase: phasePlanning}, "", "", "", change.NightDone, "recover|apply"},
		{"pre", Progress{Phase: phasePre, Pre: true}, "", "", "post = [\"/p\"]", change.NightDone, "recover|post|apply"},
		{"update, nothing came of it", Progress{Phase: phaseUpdate}, "", "", "", change.NightDone, "recover|apply"},
		{"update, committed", Progress{Phase: phaseUpdate, Pre: true}, "verified", "", "canary = [\"/p\"]\npost = [\"/p\"]", change.NightDone, "recover|canary|post"},
		{"update, taken back", Progress{Phase: phaseUpdate}, "rolled-back", "", "", change.NightRolledBack, "recover"},
		{"update, and a boot", Progress{Phase: phaseUpdate}, "verified", "boot2", "canary = [\"/p\"]", change.NightDone, "recover|canary"},
		{"canary", Progress{Phase: phaseCanary}, "verified", "", "canary = [\"/p\"]", change.NightDone, "recover|canary"},
		{
			"the second group's canary",
			Progress{Phase: phaseCanary, Group: 1},
			"verified", "", groupsConfig, change.NightDone,
			"recover|canary|restart units:z.service",
		},
		{
			"the second group",
			Progress{Phase: phaseGroup, Group: 1},
			"verified", "", groupsConfig, change.NightDone,
			"recover|restart later:*!a.service,b*.service units:b1.service|canary|restart units:z.service",
		},
		{"rollback", Progress{Phase: phaseRollback, Cause: "the canary"}, "verified", "", "", change.NightRolledBack, "recover|rollback tx002"},
		{"rollback, done", Progress{Phase: phaseRollback, Cause: "the canary"}, "rolled-back", "", "", change.NightRolledBack, "recover"},
		{"deferred", Progress{Phase: phaseDeferred}, "", "", "", change.NightDone, "recover|apply"},
		{"reboot", Progress{Phase: phaseReboot}, "verified", "boot2", "canary = [\"/p\"]", change.NightDone, "recover|canary"},
		{"reboot that was called off", Progress{Phase: phaseReboot}, "verified", "", "", change.NightDone, "apply"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, tt.config)
			f.commit("verified") // an older one
			if tt.state != "" {
				if tt.name == "the second group" {
					f.waiting = []string{"b1.service", "z.service"}
				}
				if tt.name == "the second group's canary" {
					f.waiting = []string{"z.service"}
				}
				f.commit(tt.state)
			} else {
				f.update("a=1")
			}
			if tt.name == "reboot that was called off" {
				f.update("b=1")
			}
			tt.p.Version, tt.p.Boot, tt.p.Before = version, "boot1", "tx001"
			tt.p.Update = packages("a", "1")
			tt.p.Night = newNight(f.now)
			if tt.p.Phase == phaseReboot || tt.p.Phase == phaseCanary {
				tt.p.Night.ID, tt.p.Night.Result = "tx002", change.NightDone
			}
			if tt.boot != "" {
				f.boot = tt.boot
			}
			if err := writeJSON(f.dir, runName, &tt.p); err != nil {
				t.Fatal(err)
			}
			n, err := f.run(Options{})
			if n == nil {
				t.Fatal(err)
			}
			if n.Result != tt.result || strings.Join(f.log, "|") != tt.log {
				t.Errorf("%s: %s; want %s: %s (%s, %v)", n.Result, strings.Join(f.log, "|"), tt.result, tt.log, n.Resumed, err)
			}
			if CutOff(f.dir) {
				t.Error("it is still noted as under way")
			}
			wantBackOff := tt.state == "rolled-back" && tt.p.Phase == phaseUpdate || tt.p.Phase == phaseRollback && tt.state == "verified"
			if got := len(n.BackOff) == 1; got != wantBackOff {
				t.Errorf("backed off: %+v; want %v", n.BackOff, wantBackOff)
			}
			// And the next run knows of nothing.
			f.run(Options{})
			if strings.Contains(strings.Join(f.log, "|"), "recover") {
				t.Errorf("the next run recovers again: %v", f.log)
			}
		})
	}
}

// A caller that was told to end leaves the run to its worker: the note stays for the next start.
func TestLeft(t *testing.T) {
	f := newFake(t, "")
	f.update("a=1")
	f.during = fails("apply", engine.ErrLeft, 1)
	if n, err := f.run(Options{}); !errors.Is(err, engine.ErrLeft) || n != nil {
		t.Errorf("%+v, %v", n, err)
	}
	if !CutOff(f.dir) {
		t.Fatal("there is no note for the next start")
	}
	f.commit("verified")
	if n, err := f.run(Options{}); err != nil || n.ID != "tx001" || n.Result != change.NightDone {
		t.Errorf("%+v, %v", n, err)
	}
}

// With --wait the closed window is waited for, and then that of what was put off.
func TestWait(t *testing.T) {
	f := newFake(t, `windows = ["04:00-06:00"]`)
	f.rule("[[rule]]\nunits = [\"b.service\"]\nwindows = [\"05:30-07:00\"]\n")
	f.update("a=1")
	f.waiting = []string{"b.service"}
	allowed := false
	f.during = func(verb string, _ context.Context) error {
		if verb == "restart" && f.now.Hour() == 5 && f.now.Minute() == 30 {
			allowed = true
		} else if verb == "restart" {
			return engine.ErrDeclined // the engine knows the rule
		}
		return nil
	}
	var results []string
	n, err := f.run(Options{Wait: true, Ended: func(n *change.Night) {
		results = append(results, fmt.Sprintf("%s %s", f.now.Format("15:04"), n.Result))
	}})
	want := []string{"03:00 skipped", "04:00 done", "05:30 done"}
	if d := cmp.Diff(want, results); d != "" || err != nil || !allowed {
		t.Errorf("%v, %+v\n%s\n%v", err, n, d, f.log)
	}
	// A window that is too far away is left to the next timer.
	f.configure(`windows = ["Sun 02:00-02:30"]`)
	f.now = time.Date(2026, 11, 16, 3, 0, 0, 0, time.Local)
	if n, _ := f.run(Options{Wait: true}); n.Result != change.NightSkipped {
		t.Errorf("%+v", n)
	}
}

func (f *fake) rule(text string) {
	name := filepath.Join(f.etc, "etc/liveupd/policy.d/a.toml")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// Sixty nights with a clock moved forward: the same bad version is tried ever less often, a
// good package beside it is not held up, and what is kept stays small.
func TestNights(t *testing.T) {
	f := newFake(t, `canary = ["/p"]`)
	good := 0
	var bad []int
	f.during = func(verb string, _ context.Context) error {
		if verb == "apply" {
			f.commands["canary"] = nil
		}
		return nil
	}
	for night := range 60 {
		good++
		f.update("bad=1", fmt.Sprintf("good=%d", good))
		if backedOff(f.state().BackOff, identify(f.plan), f.now) == nil {
			bad = append(bad, night)
			f.during = func(verb string, _ context.Context) error {
				if verb == "apply" {
					f.commands["canary"] = errors.New("bad 1")
				}
				return nil
			}
		} else {
			f.during, f.commands["canary"] = nil, nil
		}
		n, _ := f.run(Options{})
		want := change.NightDone
		if len(bad) > 0 && bad[len(bad)-1] == night {
			want = change.NightRolledBack
		}
		if n.Result != want {
			t.Fatalf("night %d: %s; want %s: %v", night, n.Result, want, f.log)
		}
		f.now = f.now.Add(24 * time.Hour)
		f.list = f.list[:min(len(f.list), 3)]
		st, err := os.Stat(filepath.Join(f.dir, stateName))
		if err != nil || st.Size() > 20_000 {
			t.Fatalf("night %d: the state has %d bytes, %v", night, st.Size(), err)
		}
	}
	if len(bad) < 4 || len(bad) > 8 {
		t.Errorf("tried in the nights %v", bad)
	}
	names, err := os.ReadDir(f.dir)
	if err != nil || len(names) > 4 {
		t.Errorf("%d files are kept: %v", len(names), names)
	}
}

func (f *fake) state() *State {
	s, err := LoadState(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// What cannot be understood is set aside and told, and stops no night.
func TestDamagedState(t *testing.T) {
	f := newFake(t, "")
	for _, name := range []string{stateName, runName} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.update("a=1")
	n, err := f.run(Options{})
	if err != nil || n.Result != change.NightDone || len(n.Warnings) != 2 {
		t.Errorf("%+v, %v", n, err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, stateName), []byte(`{"version": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.run(Options{}); err == nil {
		t.Error("the state of a later version was taken")
	}
}

// A mistake in the configuration is a failure that is told like others.
func TestMisconfigured(t *testing.T) {
	f := newFake(t, `windows = ["night"]`)
	f.update("a=1")
	n, err := f.run(Options{})
	if !errors.Is(err, engine.ErrUsage) || n == nil || n.Result != change.NightFailed || n.Code != 2 || len(f.log) > 0 {
		t.Fatalf("%+v, %v, %v", n, err, f.log)
	}
	if b, err := os.ReadFile(filepath.Join(f.dir, motdName)); err != nil || !strings.Contains(string(b), "line 4") {
		t.Errorf("the motd is %q, %v", b, err)
	}
	f.configure("")
	if n, err := f.run(Options{}); err != nil || n.Result != change.NightDone {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := os.ReadFile(filepath.Join(f.dir, motdName)); err == nil {
		t.Error("there is still a motd")
	}
}

func TestOneAtATime(t *testing.T) {
	f := newFake(t, "")
	lock, err := takeLock(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := f.run(Options{}); !errors.Is(err, change.ErrLocked) {
		t.Errorf("a second run: %v", err)
	}
	if len(f.log) > 0 {
		t.Errorf("it did %v", f.log)
	}
}

// Two failures of other nights are both held back, and what is beside them goes on.
func TestTwoFailures(t *testing.T) {
	f := newFake(t, "")
	state := freshState()
	for _, bad := range []string{"a", "b"} {
		state.BackOff = fail(state.BackOff, packages(bad, "1"), f.now, firstBackOff, bad+" is broken")
		for i := range state.BackOff {
			state.BackOff[i].Packages[0].Arch = "all"
		}
	}
	if err := writeJSON(f.dir, stateName, state); err != nil {
		t.Fatal(err)
	}
	f.update("a=1", "b=1", "c=1")
	n, err := f.run(Options{DryRun: true})
	if err != nil || n.Result != change.NightBackedOff || len(n.Packages) != 1 || !strings.Contains(n.Reason, "a is broken") || !strings.Contains(n.Reason, "b is broken") {
		t.Errorf("a dry run: %+v, %v", n, err)
	}
	n, err = f.run(Options{})
	if err != nil || n.Result != change.NightDone || len(n.Packages) != 1 || n.Packages[0].Name != "c" {
		t.Errorf("%+v, %v, %v", n, err, f.log)
	}
	slices.Sort(n.Held)
	if !slices.Equal(n.Held, []string{"a", "b"}) {
		t.Errorf("held back: %q", n.Held)
	}
	f.update("a=1", "b=1")
	if n, err = f.run(Options{}); err != nil || n.Result != change.NightBackedOff || !strings.Contains(n.Reason, "b is broken") || !strings.Contains(n.Reason, "a is broken") {
		t.Errorf("%+v, %v, %v", n, err, f.log)
	}
	// The control: with --retry nothing is held back.
	f.update("a=1", "b=1")
	if n, err = f.run(Options{Retry: true}); err != nil || n.Result != change.NightDone || len(n.Held) > 0 || len(n.Packages) != 2 {
		t.Errorf("%+v, %v, %v", n, err, f.log)
	}
}

// What somebody rolls back by hand the next night does not bring again, and a newer version it does.
func TestTakenBack(t *testing.T) {
	f := newFake(t, "")
	f.update("a=1")
	if n, err := f.run(Options{}); err != nil || n.Result != change.NightDone {
		t.Fatalf("%+v, %v", n, err)
	}
	f.list[0].State = "rolled-back"
	for night := range 3 {
		f.update("a=1", "b=1")
		if night > 0 {
			f.update("a=1")
		}
		f.now = f.now.Add(10 * time.Hour)
		n, err := f.run(Options{})
		if err != nil || night == 0 && (n.Result != change.NightDone || len(n.Packages) != 1 || n.Packages[0].Name != "b") ||
			night > 0 && n.Result != change.NightBackedOff || !strings.Contains(n.Reason+backOffTexts(n.BackOff), "by hand") || len(n.BackOff) != 1 || n.BackOff[0].Failures != 1 {
			t.Errorf("night %d: %+v, %v, %v", night, n, err, f.log)
		}
	}
	f.update("a=2")
	if n, err := f.run(Options{}); err != nil || n.Result != change.NightDone || len(n.BackOff) != 0 {
		t.Errorf("another version: %+v, %v", n, err)
	}
}

func TestDryRun(t *testing.T) {
	f := newFake(t, `windows = ["04:00-05:00"]`)
	f.update("a=1")
	n, err := f.run(Options{DryRun: true})
	if err != nil || n.Result != change.NightSkipped || strings.Join(f.log, "|") != "plan" || !n.DryRun || len(n.Packages) != 1 {
		t.Errorf("%+v, %v, %v", n, f.log, err)
	}
	if names, _ := os.ReadDir(f.dir); len(names) > 0 {
		t.Errorf("it has written %v", names)
	}
}
