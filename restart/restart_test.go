package restart

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// recorder is a Bus of units in memory. Its log reads like the calls made.
type recorder struct {
	units map[string]*change.UnitState
	log   []string
	// ends overrides a job's end, by "Kind unit".
	ends map[string]systemd.JobEnd
	// after changes a unit when its job is done, by unit.
	after map[string]func(u *change.UnitState)
	// later changes a unit once it has been looked at after its job.
	later map[string]func(u *change.UnitState)
	// queued are jobs that the batch brings along.
	queued    []systemd.Queued
	reloadErr error
}

func (r *recorder) States(_ context.Context, names []string) ([]*change.UnitState, error) {
	out := make([]*change.UnitState, len(names))
	for i, name := range names {
		if u := r.units[name]; u != nil {
			c := *u
			out[i] = &c
			if f := r.later[name]; f != nil && strings.HasSuffix(u.InvocationID, "'") {
				f(u)
			}
		} else {
			out[i] = &change.UnitState{Name: name, LoadState: "not-found", ActiveState: "inactive"}
		}
	}
	return out, nil
}

func (r *recorder) Do(_ context.Context, jobs []systemd.Job) ([]systemd.JobEnd, []systemd.Queued) {
	ends := make([]systemd.JobEnd, len(jobs))
	var names []string
	for i, j := range jobs {
		names = append(names, string(j.Kind)+" "+j.Unit)
		ends[i] = systemd.JobEnd{Job: j, Result: "done", Took: time.Millisecond}
		if end, ok := r.ends[names[i]]; ok {
			end.Job = j
			ends[i] = end
		}
		u := r.units[j.Unit]
		if u == nil || ends[i].Result != "done" {
			continue
		}
		switch j.Kind {
		case systemd.JobStop:
			u.ActiveState, u.SubState = "inactive", "dead"
		default:
			u.ActiveState, u.SubState, u.NRestarts = "active", "running", 0
			u.InvocationID += "'"
		}
		if f := r.after[j.Unit]; f != nil && j.Kind != systemd.JobStop {
			f(u)
		}
	}
	for _, q := range r.queued {
		if f := r.after[q.Unit]; f != nil && r.units[q.Unit] != nil {
			f(r.units[q.Unit])
		}
	}
	r.log = append(r.log, "jobs "+strings.Join(names, ", "))
	return ends, r.queued
}

func (r *recorder) Reload(context.Context) error {
	r.log = append(r.log, "reload")
	return r.reloadErr
}

func (r *recorder) Reexec(context.Context) error {
	r.log = append(r.log, "reexec")
	return r.reloadErr
}

func (r *recorder) ResetFailed(context.Context, string) error { return nil }

func (r *recorder) Journal(_ context.Context, unit, _ string, lines int) string {
	return fmt.Sprintf("%d lines of %s", lines, unit)
}

func active(name string, more ...func(*change.UnitState)) *change.UnitState {
	u := &change.UnitState{Name: name, LoadState: "loaded", ActiveState: "active", SubState: "running", InvocationID: name, Type: "simple", Result: "success"}
	for _, f := range more {
		f(u)
	}
	return u
}

func inactive(name string, more ...func(*change.UnitState)) *change.UnitState {
	return active(name, append(more, func(u *change.UnitState) { u.ActiveState, u.SubState = "inactive", "dead" })...)
}

func fleet(units ...*change.UnitState) map[string]*change.UnitState {
	out := map[string]*change.UnitState{}
	for _, u := range units {
		out[u.Name] = u
	}
	return out
}

func steps(pairs ...string) []change.Step {
	var out []change.Step
	for _, p := range pairs {
		do, target, _ := strings.Cut(p, " ")
		out = append(out, change.Step{Seq: len(out) + 1, Do: do, Target: target})
	}
	return out
}

// brief renders results for comparison.
func brief(results []change.StepResult) []string {
	var out []string
	for _, r := range results {
		line := r.Step.Do + " " + r.Step.Target + ": " + r.Result
		if r.Detail != "" {
			line += ": " + r.Detail
		}
		out = append(out, line)
	}
	return out
}

func TestRun(t *testing.T) {
	failedWith := func(status int32) func(*change.UnitState) {
		return func(u *change.UnitState) {
			u.ActiveState, u.SubState, u.Result, u.ExecMainCode, u.ExecMainStatus = "failed", "failed", "exit-code", 1, status
		}
	}
	triggers := func(names ...string) func(*change.UnitState) {
		return func(u *change.UnitState) { u.Triggers = names }
	}
	requiredBy := func(names ...string) func(*change.UnitState) {
		return func(u *change.UnitState) { u.RequiredBy = names }
	}
	tests := []struct {
		name  string
		bus   recorder
		steps []change.Step
		log   []string
		want  []string
		err   string
	}{
		{
			name: "all jobs in one batch after one reload",
			bus:  recorder{units: fleet(active("a.service"), active("b.service"), inactive("c.service"))},
			steps: steps("check nginx.service", "commit /", "daemon-reload systemd", "reload a.service", "restart b.service",
				"start c.service", "verify /"),
			log:  []string{"reload", "jobs ReloadOrTryRestartUnit a.service, TryRestartUnit b.service, StartUnit c.service"},
			want: []string{"daemon-reload systemd: done", "reload a.service: done", "restart b.service: done", "start c.service: done"},
		},
		{
			name:  "stops come first, in any order given",
			bus:   recorder{units: fleet(active("a.service"), active("old.service"))},
			steps: steps("restart a.service", "daemon-reexec systemd", "stop old.service"),
			log:   []string{"jobs StopUnit old.service", "reexec", "jobs TryRestartUnit a.service"},
			want:  []string{"restart a.service: done", "daemon-reexec systemd: done", "stop old.service: done"},
		},
		{
			name:  "what somebody stopped stays stopped",
			bus:   recorder{units: fleet(inactive("a.service"), active("b.service", failedWith(1)))},
			steps: steps("restart a.service", "reload b.service", "restart gone.service"),
			want: []string{
				"restart a.service: skipped: it does not run", "reload b.service: skipped: it does not run",
				"restart gone.service: skipped: there is no such unit any more",
			},
		},
		{
			name: "a failed stop ends the run",
			bus: recorder{
				units: fleet(active("old.service"), active("a.service")),
				ends:  map[string]systemd.JobEnd{"StopUnit old.service": {Result: "timeout"}},
			},
			steps: steps("stop old.service", "daemon-reload systemd", "restart a.service"),
			log:   []string{"jobs StopUnit old.service"},
			want: []string{
				"stop old.service: failed: its job ran into its timeout", "daemon-reload systemd: skipped: an earlier step failed",
				"restart a.service: skipped: an earlier step failed",
			},
			err: "cannot stop old.service: its job ran into its timeout",
		},
		{
			name:  "a failed reload ends the run",
			bus:   recorder{units: fleet(active("a.service")), reloadErr: errors.New("no")},
			steps: steps("daemon-reload systemd", "restart a.service"),
			log:   []string{"reload"},
			want:  []string{"daemon-reload systemd: failed: no", "restart a.service: skipped: an earlier step failed"},
			err:   "cannot daemon-reload systemd: no",
		},
		{
			name: "failures",
			bus: recorder{
				units: fleet(active("exit.service"), active("loop.service"), active("again.service"), active("end.service"),
					active("masked.service"), active("dep.service"), active("fine.service")),
				ends: map[string]systemd.JobEnd{
					"TryRestartUnit masked.service": {Err: fmt.Errorf("cannot enqueue: %w", systemd.ErrMasked)},
					"TryRestartUnit dep.service":    {Result: "dependency"},
				},
				after: map[string]func(*change.UnitState){
					"exit.service": failedWith(203),
					"loop.service": func(u *change.UnitState) {
						u.ActiveState, u.SubState, u.Result, u.ExecMainCode, u.ExecMainStatus = "activating", "auto-restart", "signal", 2, 11
					},
					"again.service": func(u *change.UnitState) { u.NRestarts, u.StatusText = 1, "no config" },
					"end.service":   func(u *change.UnitState) { u.ActiveState = "inactive" },
				},
			},
			steps: steps("restart exit.service", "restart loop.service", "restart again.service", "restart end.service",
				"restart masked.service", "restart dep.service", "restart fine.service"),
			log: []string{"jobs TryRestartUnit exit.service, TryRestartUnit loop.service, TryRestartUnit again.service, " +
				"TryRestartUnit end.service, TryRestartUnit masked.service, TryRestartUnit dep.service, TryRestartUnit fine.service"},
			want: []string{
				"restart exit.service: failed: it failed: result exit-code, exit status 203 (EXEC)",
				"restart loop.service: failed: it ended and is being restarted by systemd: result signal, killed by signal 11",
				`restart again.service: failed: it ended and was restarted by systemd: it said "no config"`,
				"restart end.service: failed: it ran before and has ended by itself",
				"restart masked.service: failed: cannot enqueue: the unit is masked",
				"restart dep.service: failed: a unit that it depends on failed",
				"restart fine.service: done",
			},
			err: "cannot restart exit.service: it failed: result exit-code, exit status 203 (EXEC) (and 5 more failed)",
		},
		{
			name: "a unit that systemd was restarting already",
			bus: recorder{
				units: fleet(active("waits.service", func(u *change.UnitState) { u.ActiveState, u.SubState = "activating", "auto-restart" }),
					active("loops.service", func(u *change.UnitState) { u.NRestarts = 4 })),
				after: map[string]func(*change.UnitState){
					"waits.service": func(u *change.UnitState) { u.NRestarts = 1 },
					"loops.service": func(u *change.UnitState) { u.NRestarts = 1 },
				},
				later: map[string]func(*change.UnitState){"loops.service": func(u *change.UnitState) { u.NRestarts = 2 }},
			},
			steps: steps("restart waits.service", "restart loops.service"),
			log:   []string{"jobs TryRestartUnit waits.service, TryRestartUnit loops.service"},
			want: []string{
				"restart waits.service: done",
				"restart loops.service: failed: it ended and was restarted by systemd",
			},
			err: "cannot restart loops.service: it ended and was restarted by systemd",
		},
		{
			name: "what may be inactive after its job",
			bus: recorder{
				units: fleet(active("once.service", func(u *change.UnitState) { u.Type = "oneshot" }),
					active("idle.service", func(u *change.UnitState) { u.TriggeredBy = []string{"idle.socket"} }), inactive("cond.service")),
				after: map[string]func(*change.UnitState){
					"once.service": func(u *change.UnitState) { u.ActiveState = "inactive" },
					"idle.service": func(u *change.UnitState) { u.ActiveState = "inactive" },
					"cond.service": func(u *change.UnitState) { u.ActiveState, u.ConditionUnmet = "inactive", true },
				},
			},
			steps: steps("restart once.service", "restart idle.service", "start cond.service"),
			log:   []string{"jobs TryRestartUnit once.service, TryRestartUnit idle.service, StartUnit cond.service"},
			want: []string{
				"restart once.service: done", "restart idle.service: done",
				"start cond.service: skipped: a condition of its unit file does not hold",
			},
		},
		{
			name:  "restart and start together run a failed unit anew",
			bus:   recorder{units: fleet(active("a.service", failedWith(1)), active("b.service"))},
			steps: steps("restart a.service", "start a.service", "reload b.service", "start b.service"),
			log:   []string{"jobs RestartUnit a.service, ReloadOrTryRestartUnit b.service"},
			want:  []string{"restart a.service: done", "start a.service: done", "reload b.service: done", "start b.service: done"},
		},
		{
			name: "a socket, its service, and what requires that",
			bus: recorder{units: fleet(active("s.socket", triggers("s.service")), active("s.service", requiredBy("web.service", "off.service")),
				active("web.service"), inactive("off.service"), active("z.service"))},
			steps: steps("restart s.socket", "restart z.service"),
			log: []string{
				"jobs StopUnit s.socket, StopUnit s.service",
				"jobs TryRestartUnit z.service, StartUnit s.socket, StartUnit s.service, StartUnit web.service",
			},
			want: []string{"restart s.socket: done", "restart z.service: done"},
		},
		{
			name:  "a socket whose service does not run",
			bus:   recorder{units: fleet(active("s.socket", triggers("s.service")), inactive("s.service"))},
			steps: steps("restart s.socket"),
			log:   []string{"jobs StopUnit s.socket", "jobs StartUnit s.socket"},
			want:  []string{"restart s.socket: done"},
		},
		{
			name: "a socket that cannot be stopped",
			bus: recorder{
				units: fleet(active("s.socket", triggers("s.service")), active("s.service"), active("z.service")),
				ends:  map[string]systemd.JobEnd{"StopUnit s.service": {Result: "timeout"}},
			},
			steps: steps("restart s.socket", "restart z.service"),
			log:   []string{"jobs StopUnit s.socket, StopUnit s.service"},
			want: []string{
				"restart s.socket: failed: it could not be stopped together with its socket: s.service: its job ran into its timeout",
				"restart z.service: skipped: an earlier step failed",
				"restart s.service: failed: it was stopped for a socket that could not be: s.service: its job ran into its timeout",
			},
			err: "cannot restart s.socket: it could not be stopped together with its socket: s.service: its job ran into its timeout (and 1 more failed)",
		},
		{
			name: "a propagated restart that fails",
			bus: recorder{
				units:  fleet(active("db.service", requiredBy("web.service")), active("web.service"), active("other.service")),
				queued: []systemd.Queued{{ID: 1, Unit: "db.service"}, {ID: 2, Unit: "web.service"}, {ID: 3, Unit: "other.service"}},
				after:  map[string]func(*change.UnitState){"web.service": failedWith(7), "other.service": failedWith(8)},
			},
			steps: steps("restart db.service"),
			log:   []string{"jobs TryRestartUnit db.service"},
			want: []string{
				"restart db.service: done",
				"restart web.service: failed: it failed: result exit-code, exit status 7 (systemd restarted it with another unit of the plan)",
			},
			err: "cannot restart web.service: it failed: result exit-code, exit status 7 (systemd restarted it with another unit of the plan)",
		},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			var announced []change.StepResult
			o := Options{OnResult: func(r change.StepResult) { announced = append(announced, r) }}
			got, err := Run(t.Context(), &tt.bus, tt.steps, o)
			if diff := cmp.Diff(tt.want, brief(got)); diff != "" {
				t.Errorf("%s: results (-want +got):\n%s", tt.name, diff)
			}
			if diff := cmp.Diff(tt.log, tt.bus.log); diff != "" {
				t.Errorf("%s: calls (-want +got):\n%s", tt.name, diff)
			}
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != tt.err {
				t.Errorf("%s: error %q; want %q", tt.name, text, tt.err)
			}
			if len(announced) != len(got) {
				t.Errorf("%s: %d results announced, %d returned", tt.name, len(announced), len(got))
			}
			for _, r := range got {
				if hasJournal := r.Journal != ""; hasJournal != (r.Result == failed && strings.Contains(r.Step.Target, ".")) {
					t.Errorf("%s: %s has the journal %q", tt.name, r.Step.Target, r.Journal)
				}
			}
		})
	}
}

// A unit that fails only after its job was done is found while it settles, and
// one that is still reloading is waited for.
func TestRunSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := &slow{recorder: recorder{units: fleet(active("late.service"))}, changes: map[int]string{3: "failed"}}
		got, err := Run(t.Context(), bus, steps("restart late.service"), Options{Settle: time.Second})
		if err == nil || got[0].Result != failed {
			t.Errorf("a unit that fails while it settles: %+v, %v", got, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		bus := &slow{recorder: recorder{units: fleet(active("r.service"))}, changes: map[int]string{2: "reloading", 20: "active"}}
		start := time.Now()
		got, err := Run(t.Context(), bus, steps("reload r.service"), Options{Settle: time.Second})
		if err != nil || got[0].Result != done {
			t.Errorf("a unit that reloads slowly: %+v, %v", got, err)
		}
		if time.Since(start) < 2*time.Second {
			t.Errorf("it was not waited for: %v", time.Since(start))
		}
	})
}

// slow changes its unit's state at the nth look.
type slow struct {
	recorder
	looks   int
	changes map[int]string
}

func (s *slow) States(ctx context.Context, names []string) ([]*change.UnitState, error) {
	s.looks++
	if state, ok := s.changes[s.looks]; ok {
		for _, u := range s.units {
			u.ActiveState = state
		}
	}
	return s.recorder.States(ctx, names)
}

func TestRunInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	bus := &recorder{units: fleet(active("a.service"))}
	got, err := Run(ctx, bus, steps("restart a.service"), Options{})
	if !errors.Is(err, context.Canceled) || len(bus.log) != 0 {
		t.Errorf("Run() = %v after %v", err, bus.log)
	}
	if diff := cmp.Diff([]string{"restart a.service: skipped: interrupted before it began"}, brief(got)); diff != "" {
		t.Error(diff)
	}
	// Interrupted within a phase: its jobs are awaited, the next does not begin.
	ctx, cancel = context.WithCancel(t.Context())
	bus = &recorder{units: fleet(active("a.service"), active("b.service"))}
	bus.after = map[string]func(*change.UnitState){}
	got, err = Run(ctx, interrupting{bus, cancel}, steps("stop a.service", "restart b.service"), Options{})
	if !errors.Is(err, context.Canceled) || len(bus.log) != 1 {
		t.Errorf("Run() = %v after %v", err, bus.log)
	}
	if diff := cmp.Diff([]string{"stop a.service: done", "restart b.service: skipped: interrupted before it began"}, brief(got)); diff != "" {
		t.Error(diff)
	}
}

type interrupting struct {
	*recorder
	cancel func()
}

func (i interrupting) Do(ctx context.Context, jobs []systemd.Job) ([]systemd.JobEnd, []systemd.Queued) {
	i.cancel()
	if ctx.Err() != nil {
		panic("the jobs were not shielded from the caller's context")
	}
	return i.recorder.Do(ctx, jobs)
}

func TestInverse(t *testing.T) {
	results := []change.StepResult{}
	for _, r := range []string{
		"stop old.service done", "daemon-reload systemd done", "reload n.service done", "restart a.service done",
		"restart f.service failed", "reload g.service failed", "start new.service done", "restart i.service skipped", "start h.service failed",
	} {
		f := strings.Fields(r)
		results = append(results, change.StepResult{Step: change.Step{Do: f[0], Target: f[1]}, Result: f[2]})
	}
	var got []string
	for i, s := range Inverse(results) {
		if s.Seq != i+1 {
			t.Errorf("step %d has the number %d", i+1, s.Seq)
		}
		got = append(got, s.Do+" "+s.Target)
	}
	want := []string{
		"stop h.service", "stop new.service", "restart g.service", "start g.service", "restart f.service", "start f.service",
		"restart a.service", "start a.service", "reload n.service", "start n.service", "daemon-reload systemd", "start old.service",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Inverse() (-want +got):\n%s", diff)
	}
}
