// Package restart carries out the unit steps of a plan over systemd's bus, and
// those on the host as a whole (Host).
//
// One run goes through the steps in this order, whatever order they are given
// in, because systemd itself must order the units:
//
//  1. Stops, all together: units that the new tree lacks or masks, still with
//     their old definition. A failure ends the run.
//  2. The host's own steps: users, files, devices, kernel settings. Then one
//     daemon-reexec or daemon-reload. A failure ends the run.
//  3. Sockets that are to be restarted are stopped together with the services
//     that they trigger: a socket refuses to start while its service runs.
//  4. All reload, restart and start jobs in one batch, so that ordering and
//     propagation between them are systemd's; then the end of each is awaited.
//  5. Settle: for a moment the units are watched. One that failed, restarts by
//     itself or ended is a failed step, with its result and its journal. Where
//     none failed, the units' own commands are asked (X-Liveupd-Health=), and at
//     last initrds are made anew.
//  6. The managers of users (users.go), all at once: themselves, then their units
//     in the order of 2 to 5. Their stops come after those of 1. No failure
//     of theirs ends the run or counts as one of it.
//
// What it guarantees:
//
//   - A unit that does not run is not started by a restart or reload: whoever
//     stopped it meanwhile keeps it stopped. Only a start step starts.
//   - A job that has been enqueued is awaited, also when the context ends; the
//     context is looked at before each of the five, never within.
//   - Each step has exactly one result, and a unit that systemd restarted by
//     propagation and that did not come back adds a failed result of its own.
package restart

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// Bus is what a run needs of systemd.
type Bus interface {
	// States reads units' states, in the order of the names.
	States(ctx context.Context, names []string) ([]*change.UnitState, error)
	// Do enqueues jobs together and awaits them, in the order of the jobs.
	Do(ctx context.Context, jobs []systemd.Job) ([]systemd.JobEnd, []systemd.Queued)
	Reload(ctx context.Context) error
	Reexec(ctx context.Context) error
	ResetFailed(ctx context.Context, unit string) error
	Journal(ctx context.Context, unit, since string, lines int) string
}

var _ Bus = (*systemd.Conn)(nil)

// Options tune a run. The zero value has sensible times.
type Options struct {
	// JobTimeout bounds the waiting for one batch of jobs; 0 is ten minutes.
	// systemd's own timeouts for each unit are usually shorter.
	JobTimeout time.Duration
	// Settle is how long units are watched after their jobs; 0 is one second,
	// less than 0 looks once.
	Settle time.Duration
	// HealthTimeout is how long a unit may take to be well after its job; 0 is
	// 20 seconds.
	HealthTimeout time.Duration
	// Along are units that systemd stops or starts in the course of the jobs, as
	// the plan says, by change.UnitKey. A stop among them is no failure.
	Along map[string]change.Action
	// Users reaches the managers of users; without it their steps are left out.
	Users Users
	// UserTimeout is how long the managers of users get, all together; 0 is
	// one minute.
	UserTimeout time.Duration
	// Host carries out the steps that are no unit's; nil is the host itself.
	Host *Host
	// OnResult is called with each result as it is known, from Run's goroutine.
	OnResult func(change.StepResult)
	// OnJobs is called before jobs are enqueued together.
	OnJobs func()
	// Between is called after each group of steps: those of one verb, and the unit jobs.
	// An error ends the run, as a failed step does.
	Between func(context.Context) error
	// Health runs a unit's own command; nil runs it as root on the host.
	Health func(ctx context.Context, unit string, argv []string) error
	// JournalLines is how much of a failed unit's journal is kept; 0 is 20.
	JournalLines int
}

// Results of a step.
const (
	done    = "done"
	failed  = "failed"
	skipped = "skipped"
)

// run is one walk over the steps.
type run struct {
	bus     Bus
	o       Options
	manager string               // the user@ unit, where it is a user's manager's
	all     []change.Step        // with those of users' managers
	steps   []change.Step        // the same, those of others left blank
	results []*change.StepResult // by step; nil while not known
	extra   []change.StepResult  // failed results of propagated units
	begin   time.Time            // wall clock, for the journal
}

// Run carries out the steps that it Handles, and leaves others alone. The results stand in the
// order of the steps. The error names the first step that failed.
//
// A restart and a start step for one unit together mean: run it anew, whether
// it runs or not. So Inverse asks for a unit that had run and that failed.
func Run(ctx context.Context, bus Bus, steps []change.Step, o Options) ([]change.StepResult, error) {
	if o.JobTimeout <= 0 {
		o.JobTimeout = 10 * time.Minute
	}
	if o.Settle == 0 {
		o.Settle = time.Second
	}
	if o.HealthTimeout <= 0 {
		o.HealthTimeout = 20 * time.Second
	}
	if o.Host == nil {
		o.Host = &Host{}
	}
	if o.JournalLines == 0 {
		o.JournalLines = 20
	}
	if o.UserTimeout <= 0 {
		o.UserTimeout = time.Minute
	}
	r := &run{bus: bus, o: o, begin: time.Now()}
	for _, s := range steps {
		if !Handles(s.Do) {
			continue
		}
		r.all = append(r.all, s)
		if ofUsers(s) {
			s = change.Step{}
		}
		r.steps = append(r.steps, s)
	}
	r.results = make([]*change.StepResult, len(r.steps))
	work := context.WithoutCancel(ctx)
	around, err := r.lookAlong(work)
	if err == nil {
		err = r.walk(ctx)
		r.noteAlong(work, around)
	}
	out := make([]change.StepResult, 0, len(r.steps)+len(r.extra))
	for i := range r.steps {
		if r.results[i] == nil {
			why := "an earlier step failed"
			if ctx.Err() != nil {
				why = "interrupted before it began"
			}
			r.settle(i, skipped, why, 0)
		}
		out = append(out, *r.results[i])
	}
	return append(out, r.extra...), err
}

func (r *run) walk(ctx context.Context) error {
	// Whatever is begun is finished: only the borders between phases look at
	// the caller's context.
	work := context.WithoutCancel(ctx)
	for _, phase := range []func(context.Context) error{r.stop, r.host, r.reload, r.jobs, r.health, r.initrds, r.users} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("cannot go on with the unit steps: %w", err)
		}
		before := r.known()
		if err := phase(work); err != nil {
			return err
		}
		if err := r.between(work, before); err != nil {
			return err
		}
	}
	return r.firstFailure()
}

// known counts the steps whose results are known.
func (r *run) known() int {
	n := len(r.extra)
	for _, res := range r.results {
		if res != nil {
			n++
		}
	}
	return n
}

// between lets the caller look, where more has been done than the steps of before. A
// failure of the steps themselves says more than what came of it.
func (r *run) between(ctx context.Context, before int) error {
	if r.o.Between == nil || r.known() == before || r.firstFailure() != nil {
		return nil
	}
	return r.o.Between(ctx)
}

// settle records what came of a step.
func (r *run) settle(i int, result, detail string, took time.Duration) {
	res := change.StepResult{Step: r.all[i], Result: result, Detail: detail, USec: took.Microseconds()}
	r.record(&res)
	r.results[i] = &res
}

// record completes a failed result and announces it.
func (r *run) record(res *change.StepResult) {
	if unit := unitOf(res.Step); res.Result == failed && unit != "" {
		since := fmt.Sprint(r.begin.UnixMicro())
		res.Journal = r.bus.Journal(context.Background(), unit, since, r.o.JournalLines)
	}
	if r.o.OnResult != nil {
		r.o.OnResult(*res)
	}
}

// unitOf is the unit that a step is about, "" where it is about none.
func unitOf(s change.Step) string {
	unit, _, _ := strings.Cut(s.Target, " ")
	if !strings.Contains(unit, ".") || slices.Contains(hostVerbs, s.Do) || s.Do == initrdVerb {
		return ""
	}
	return unit
}

func (r *run) firstFailure() error {
	var first *change.StepResult
	count := 0
	look := func(res *change.StepResult) {
		if res != nil && res.Result == failed && (r.manager != "" || !ofUsers(res.Step)) {
			if first == nil {
				first = res
			}
			count++
		}
	}
	for _, res := range r.results {
		look(res)
	}
	for i := range r.extra {
		look(&r.extra[i])
	}
	if first == nil {
		return nil
	}
	more := ""
	if count > 1 {
		more = fmt.Sprintf(" (and %d more failed)", count-1)
	}
	return fmt.Errorf("cannot %s %s: %s%s", first.Step.Do, first.Step.Target, first.Detail, more)
}

// each lists the indexes of the steps with one of the given verbs.
func (r *run) each(verbs ...string) []int {
	var out []int
	for i, s := range r.steps {
		for _, v := range verbs {
			if s.Do == v {
				out = append(out, i)
			}
		}
	}
	return out
}

// stop is phase 1.
func (r *run) stop(ctx context.Context) error {
	steps := r.each("stop")
	if len(steps) == 0 {
		return r.userStops(ctx)
	}
	jobs := make([]systemd.Job, len(steps))
	for n, i := range steps {
		jobs[n] = systemd.Job{Kind: systemd.JobStop, Unit: r.steps[i].Target}
	}
	ends, _ := r.do(ctx, jobs)
	for n, i := range steps {
		end := ends[n]
		switch {
		case end.Err != nil && errors.Is(end.Err, systemd.ErrNoSuchUnit):
			r.settle(i, skipped, "there is no such unit", end.Took)
		case end.Err != nil:
			r.settle(i, failed, end.Err.Error(), end.Took)
		case end.Result != done:
			r.settle(i, failed, jobDetail(end.Result), end.Took)
		default:
			r.settle(i, done, "", end.Took)
		}
	}
	if err := r.firstFailure(); err != nil {
		return err
	}
	return r.userStops(ctx)
}

// reload is phase 2. A re-execution reads the unit files as well.
func (r *run) reload(ctx context.Context) error {
	reexec := len(r.each("daemon-reexec")) > 0
	steps := r.each("daemon-reload", "daemon-reexec")
	if len(steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.o.JobTimeout)
	defer cancel()
	start := time.Now()
	var err error
	if reexec {
		err = r.bus.Reexec(ctx)
	} else {
		err = r.bus.Reload(ctx)
	}
	for _, i := range steps {
		if err != nil {
			r.settle(i, failed, err.Error(), time.Since(start))
		} else {
			r.settle(i, done, "", time.Since(start))
		}
	}
	return r.firstFailure()
}

func (r *run) do(ctx context.Context, jobs []systemd.Job) ([]systemd.JobEnd, []systemd.Queued) {
	ctx, cancel := context.WithTimeout(ctx, r.o.JobTimeout)
	defer cancel()
	if r.o.OnJobs != nil {
		r.o.OnJobs()
	}
	return r.bus.Do(ctx, jobs)
}

// jobDetail says in words how a job ended that was not done.
func jobDetail(result string) string {
	switch result {
	case "failed":
		return "its job failed"
	case "timeout":
		return "its job ran into its timeout"
	case "canceled":
		return "its job was cancelled by another one"
	case "dependency":
		return "a unit that it depends on failed"
	case "skipped":
		return "its job did not apply to the unit's state"
	case "assert":
		return "an assertion of its unit file does not hold"
	case "invalid":
		return "its job is invalid for this unit"
	case "unsupported":
		return "this system does not support this type of unit"
	}
	return fmt.Sprintf("its job ended with %q", result)
}
