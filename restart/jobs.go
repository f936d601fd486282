package restart

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// target is a unit with a reload, restart or start step, and what is known of it.
type target struct {
	unit   string
	steps  []int
	verbs  []string
	before *change.UnitState
	kind   systemd.JobKind
	end    systemd.JobEnd
	detail string // why no job is needed
	// restarts is how often systemd had restarted the unit by itself when its job was over.
	restarts uint32
	looked   bool
}

func (t *target) wants(verb string) bool { return slices.Contains(t.verbs, verb) }

// jobs is phases 3 to 5.
func (r *run) jobs(ctx context.Context) error {
	targets := r.targets()
	if len(targets) == 0 {
		return nil
	}
	names := make([]string, len(targets))
	for i, t := range targets {
		names[i] = t.unit
	}
	states, err := r.bus.States(ctx, names)
	if err != nil {
		return fmt.Errorf("cannot look at the units before their jobs: %w", err)
	}
	var active []*target
	for i, t := range targets {
		t.before = states[i]
		if t.choose() {
			active = append(active, t)
			// A unit's start limit counts our restarts too, and a unit that
			// failed by the update must be able to start again after it.
			_ = r.bus.ResetFailed(ctx, t.unit)
		} else {
			r.settleAll(t, skipped, t.detail)
		}
	}
	if len(active) == 0 {
		return nil
	}
	// What the jobs reach by propagation, as it is before them.
	reach, err := r.reach(ctx, active)
	if err != nil {
		return err
	}
	revive, err := r.stopSockets(ctx, active, reach)
	if err != nil {
		return err
	}
	// A restart may stop another unit (PropagatesStopTo=, Conflicts=) that is to
	// be started: the later job wins, so the starts come last.
	slices.SortStableFunc(active, func(a, b *target) int { return cmp.Compare(starts(a.kind), starts(b.kind)) })
	batch := make([]systemd.Job, 0, len(active)+len(revive))
	for _, t := range active {
		batch = append(batch, systemd.Job{Kind: t.kind, Unit: t.unit})
	}
	for _, unit := range revive {
		batch = append(batch, systemd.Job{Kind: systemd.JobStart, Unit: unit})
	}
	ends, queued := r.do(ctx, batch)
	for i, t := range active {
		t.end = ends[i]
	}
	around := touched(reach, queued, revive)
	maps.DeleteFunc(around, func(name string, _ *change.UnitState) bool { return r.o.Along[name] == change.ActionStop })
	r.watch(ctx, active, around)
	return nil
}

func starts(k systemd.JobKind) int {
	if k == systemd.JobStart {
		return 1
	}
	return 0
}

// targets groups the steps of phase 4 by unit.
func (r *run) targets() []*target {
	var out []*target
	byUnit := map[string]*target{}
	for _, i := range r.each("reload", "restart", "start") {
		s := r.steps[i]
		t := byUnit[s.Target]
		if t == nil {
			t = &target{unit: s.Target}
			byUnit[s.Target] = t
			out = append(out, t)
		}
		t.steps = append(t.steps, i)
		t.verbs = append(t.verbs, s.Do)
	}
	return out
}

// choose settles on the job; false where none is needed.
func (t *target) choose() bool {
	running := t.before.Active()
	switch {
	case t.wants("restart") && t.wants("start"):
		t.kind = systemd.JobRestart
	case t.wants("reload") && t.wants("start") && !running, !t.wants("reload") && !t.wants("restart"):
		t.kind = systemd.JobStart
	case !running:
		t.detail = "it does not run"
		if t.before.LoadState == "not-found" {
			t.detail = "there is no such unit any more"
		}
		return false
	case t.wants("restart"):
		t.kind = systemd.JobTryRestart
	default:
		t.kind = systemd.JobReloadOrTryRestart
	}
	return true
}

// fresh tells whether the step starts a unit that did not run.
func (t *target) fresh() bool { return t.wants("start") && !t.before.Active() }

func (t *target) isSocket() bool { return strings.HasSuffix(t.unit, ".socket") }

func (r *run) settleAll(t *target, result, detail string) {
	for _, i := range t.steps {
		r.settle(i, result, detail, t.end.Took)
	}
}

// stopSockets is phase 3. It returns the units, none of them a target, that
// ran and that the stop takes down: they are started again with the batch.
//
// Instances of an Accept=yes socket serve a connection that they were handed;
// they are no triggered unit of the socket and are left alone.
func (r *run) stopSockets(ctx context.Context, active []*target, reach map[string]*change.UnitState) ([]string, error) {
	byUnit := map[string]*target{}
	for _, t := range active {
		byUnit[t.unit] = t
	}
	var stops []systemd.Job
	revive := map[string]bool{}
	stopped := map[string]bool{}
	take := func(unit string) {
		if !stopped[unit] {
			stopped[unit] = true
			stops = append(stops, systemd.Job{Kind: systemd.JobStop, Unit: unit})
		}
	}
	for _, t := range active {
		if !t.isSocket() || t.kind != systemd.JobTryRestart && t.kind != systemd.JobRestart {
			continue
		}
		take(t.unit)
		t.kind = systemd.JobStart
		for _, svc := range t.before.Triggers {
			u := reach[svc]
			if u == nil || !u.Active() {
				continue
			}
			take(svc)
			// A stop, unlike a restart, does not bring back what it reaches.
			for _, name := range append([]string{svc}, closure(svc, reach)...) {
				if d := reach[name]; d == nil || !d.Active() {
					continue
				}
				if other := byUnit[name]; other != nil {
					if !other.isSocket() {
						other.kind = systemd.JobStart
					}
				} else {
					revive[name] = true
				}
			}
		}
	}
	if len(stops) == 0 {
		return nil, nil
	}
	ends, _ := r.do(ctx, stops)
	if err := r.stopsFailed(ends, active, revive); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(revive)), nil
}

// stopsFailed ends the run where a stop for a socket failed: each unit that it
// took down, or would have, gets a failed result, so that Inverse brings it back.
func (r *run) stopsFailed(ends []systemd.JobEnd, active []*target, revive map[string]bool) error {
	why := ""
	for _, end := range ends {
		switch {
		case why != "":
		case end.Err != nil:
			why = end.Err.Error()
		case end.Result != done:
			why = end.Unit + ": " + jobDetail(end.Result)
		}
	}
	if why == "" {
		return nil
	}
	for _, t := range active {
		if t.kind == systemd.JobStart && !t.fresh() {
			r.settleAll(t, failed, "it could not be stopped together with its socket: "+why)
		}
	}
	for _, unit := range slices.Sorted(maps.Keys(revive)) {
		res := change.StepResult{
			Step:   change.Step{Do: "restart", Target: unit, Undo: "restart", Manager: r.manager},
			Result: failed, Detail: "it was stopped for a socket that could not be: " + why,
		}
		r.record(&res)
		r.extra = append(r.extra, res)
	}
	return r.firstFailure()
}

// reach reads the units that jobs for the targets can reach by propagation,
// and the services of sockets, with the targets themselves.
func (r *run) reach(ctx context.Context, active []*target) (map[string]*change.UnitState, error) {
	known := map[string]*change.UnitState{}
	var frontier []string
	visit := func(u *change.UnitState) {
		for _, next := range neighbours(u) {
			if _, seen := known[next]; !seen {
				known[next] = nil
				frontier = append(frontier, next)
			}
		}
		if strings.HasSuffix(u.Name, ".socket") {
			for _, next := range u.Triggers {
				if _, seen := known[next]; !seen {
					known[next] = nil
					frontier = append(frontier, next)
				}
			}
		}
	}
	for _, t := range active {
		known[t.unit] = t.before
	}
	for _, t := range active {
		visit(t.before)
	}
	for len(frontier) > 0 {
		names := frontier
		frontier = nil
		states, err := r.bus.States(ctx, names)
		if err != nil {
			return nil, fmt.Errorf("cannot look at the units that a job reaches: %w", err)
		}
		for i, u := range states {
			known[names[i]] = u
			if u.Active() {
				visit(u)
			}
		}
	}
	return known, nil
}

// neighbours are the units that a stop, restart or reload of u passes on to.
func neighbours(u *change.UnitState) []string {
	return slices.Concat(u.RequiredBy, u.RequisiteOf, u.BoundBy, u.ConsistsOf, u.PropagatesStopTo, u.PropagatesReloadTo)
}

// closure is what a stop of unit takes down, by the states that were read.
func closure(unit string, known map[string]*change.UnitState) []string {
	seen := map[string]bool{unit: true}
	queue := []string{unit}
	var out []string
	for len(queue) > 0 {
		u := known[queue[0]]
		queue = queue[1:]
		if u == nil {
			continue
		}
		for _, next := range slices.Concat(u.RequiredBy, u.RequisiteOf, u.BoundBy, u.ConsistsOf, u.PropagatesStopTo) {
			if !seen[next] {
				seen[next] = true
				queue = append(queue, next)
				out = append(out, next)
			}
		}
	}
	return out
}

// touched are the active units within reach that a job was seen for.
func touched(reach map[string]*change.UnitState, queued []systemd.Queued, revive []string) map[string]*change.UnitState {
	out := map[string]*change.UnitState{}
	add := func(name string) {
		if u := reach[name]; u != nil && u.Active() {
			out[name] = u
		}
	}
	for _, q := range queued {
		add(q.Unit)
	}
	for _, name := range revive {
		add(name)
	}
	return out
}

// watch is phase 5: it gives each target its result.
func (r *run) watch(ctx context.Context, active []*target, around map[string]*change.UnitState) {
	var healthy []*target
	for _, t := range active {
		delete(around, t.unit)
		switch {
		case t.end.Err != nil && errors.Is(t.end.Err, systemd.ErrNoSuchUnit) && !t.wants("start"):
			r.settleAll(t, failed, "the unit runs but its unit file is gone")
		case t.end.Err != nil:
			r.settleAll(t, failed, t.end.Err.Error())
		default:
			healthy = append(healthy, t)
		}
	}
	deadline := time.Now().Add(r.o.Settle)
	pause := min(max(r.o.Settle/5, 10*time.Millisecond), 200*time.Millisecond)
	var verdicts map[string]verdict
	for {
		verdicts = r.look(ctx, healthy, around)
		// Also where one has failed already: of the others too it is to be
		// known how they are.
		pending := false
		for _, v := range verdicts {
			pending = pending || v.pending
		}
		left := time.Until(deadline)
		if pending && left <= 0 && time.Since(deadline) < r.o.JobTimeout {
			left = pause // still on its way: its own timeout ends it
		}
		if left <= 0 {
			break
		}
		time.Sleep(min(pause, left))
	}
	for _, t := range healthy {
		v := verdicts[t.unit]
		r.settleAll(t, v.result, v.detail)
	}
	for _, name := range slices.Sorted(maps.Keys(around)) {
		if v := verdicts[name]; v.result == failed {
			res := change.StepResult{
				Step:   change.Step{Do: "restart", Target: name, Undo: "restart", Manager: r.manager},
				Result: failed, Detail: v.detail + " (systemd restarted it with another unit of the plan)",
			}
			r.record(&res)
			r.extra = append(r.extra, res)
		}
	}
}

// look judges all units once.
func (r *run) look(ctx context.Context, healthy []*target, around map[string]*change.UnitState) map[string]verdict {
	names := make([]string, 0, len(healthy)+len(around))
	for _, t := range healthy {
		names = append(names, t.unit)
	}
	for name := range around {
		names = append(names, name)
	}
	out := make(map[string]verdict, len(names))
	if len(names) == 0 {
		return out
	}
	states, err := r.bus.States(ctx, names)
	if err != nil {
		for _, name := range names {
			out[name] = verdict{result: failed, detail: "its state cannot be read: " + err.Error()}
		}
		return out
	}
	for i, u := range states {
		if i < len(healthy) {
			healthy[i].count(u)
			out[names[i]] = judge(healthy[i], u)
		} else {
			out[names[i]] = judgeAround(around[names[i]], u)
		}
	}
	return out
}
