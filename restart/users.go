package restart

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// The steps of users' managers. All managers are served at once, each over a
// connection of its own and within a time that all have together. Whatever
// becomes of them, the update stands: who may make a service of his own fail, or stop his
// manager, must not be able to keep the machine on its old files.

// Users reaches the managers of users.
type Users interface {
	// Connect opens a connection to the manager in user@UID.service.
	Connect(ctx context.Context, manager string) (UserBus, error)
	// Reexec makes it execute its binary anew, and returns when it answers again.
	Reexec(ctx context.Context, manager string) error
}

// UserBus is Bus for one user's manager.
type UserBus interface {
	Bus
	Close()
}

// Unreached begins the detail of a step that a user's manager did not carry out
// or has not ended: it is still to be done.
const Unreached = "not done: "

// ofUsers tells whether a step is a user's manager's, or that manager's own.
func ofUsers(s change.Step) bool {
	_, own := systemd.UserUID(s.Target)
	return s.Manager != "" || own && s.Do == "reload"
}

// boundUsers is how long the managers of users get.
func (r *run) boundUsers(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.o.UserTimeout)
}

// userStops are the stops of phase 1 in the managers of users.
func (r *run) userStops(ctx context.Context) error {
	if r.manager == "" {
		r.eachManager(ctx, func(s change.Step) bool { return s.Do == "stop" }, (*run).stop)
	}
	return nil
}

// users is the last phase.
func (r *run) users(ctx context.Context) error {
	if err := r.firstFailure(); err != nil {
		return err
	}
	r.reexecUsers(ctx)
	r.eachManager(ctx, func(s change.Step) bool { return s.Do != "stop" }, (*run).userWalk)
	return nil
}

func (r *run) userWalk(ctx context.Context) error {
	if err := r.reload(ctx); err != nil {
		return err
	}
	return r.jobs(ctx)
}

// reexecUsers has the managers themselves execute anew.
func (r *run) reexecUsers(ctx context.Context) {
	ctx, cancel := r.boundUsers(ctx)
	defer cancel()
	type ended struct {
		err  error
		took time.Duration
	}
	results := map[int]*ended{}
	var wg sync.WaitGroup
	for i, s := range r.all {
		if r.results[i] != nil || s.Manager != "" || !ofUsers(s) {
			continue
		}
		end := &ended{err: errNoUsers}
		results[i] = end
		if r.o.Users == nil {
			continue
		}
		wg.Go(func() {
			start := time.Now()
			end.err = r.o.Users.Reexec(ctx, s.Target)
			end.took = time.Since(start)
		})
	}
	wg.Wait()
	for i := range r.all {
		switch end := results[i]; {
		case end == nil:
		case errors.Is(end.err, systemd.ErrNotActive):
			r.settle(i, skipped, "its user has logged out", end.took)
		case end.err != nil:
			r.settle(i, skipped, Unreached+end.err.Error(), end.took)
		default:
			r.settle(i, done, "", end.took)
		}
	}
}

var errNoUsers = errors.New("the managers of users cannot be reached from here")

// eachManager walks a phase in every manager that has such steps.
func (r *run) eachManager(ctx context.Context, which func(change.Step) bool, phase func(*run, context.Context) error) {
	ctx, cancel := r.boundUsers(ctx)
	defer cancel()
	steps := map[string][]int{}
	var order []string
	for i, s := range r.all {
		if s.Manager == "" || r.results[i] != nil || !which(s) {
			continue
		}
		if steps[s.Manager] == nil {
			order = append(order, s.Manager)
		}
		steps[s.Manager] = append(steps[s.Manager], i)
	}
	results := make([][]change.StepResult, len(order))
	var wg sync.WaitGroup
	for n, manager := range order {
		own := make([]change.Step, len(steps[manager]))
		for k, i := range steps[manager] {
			own[k] = r.all[i]
		}
		wg.Go(func() { results[n] = r.inManager(ctx, manager, own, phase) })
	}
	wg.Wait()
	for n, manager := range order {
		for k, i := range steps[manager] {
			r.put(i, results[n][k])
		}
		for _, more := range results[n][len(steps[manager]):] {
			r.announce(more)
			r.extra = append(r.extra, more)
		}
	}
}

// inManager walks a phase in one manager: a result for each step, and those of
// units that were restarted along.
func (r *run) inManager(ctx context.Context, manager string, steps []change.Step, phase func(*run, context.Context) error) []change.StepResult {
	begin := time.Now()
	out := make([]change.StepResult, len(steps))
	var bus UserBus
	err := errNoUsers
	if r.o.Users != nil {
		bus, err = r.o.Users.Connect(ctx, manager)
	}
	if err != nil {
		detail := Unreached + err.Error()
		if errors.Is(err, systemd.ErrNotActive) {
			detail = "its user has logged out"
		}
		for k, s := range steps {
			out[k] = change.StepResult{Step: s, Result: skipped, Detail: detail, USec: time.Since(begin).Microseconds()}
		}
		return out
	}
	defer bus.Close()
	o := r.o
	o.OnResult, o.Along = nil, map[string]change.Action{}
	for key, action := range r.o.Along {
		if m, unit := change.SplitUnitKey(key); m == manager {
			o.Along[unit] = action
		}
	}
	if end, ok := ctx.Deadline(); ok {
		o.JobTimeout = time.Until(end)
	}
	u := &run{bus: bus, o: o, all: steps, steps: steps, results: make([]*change.StepResult, len(steps)), begin: r.begin, manager: manager}
	around, err := u.lookAlong(ctx)
	if err == nil {
		err = phase(u, ctx)
		u.noteAlong(ctx, around)
	}
	for k, s := range steps {
		switch res := u.results[k]; {
		case res == nil:
			why := "an earlier step failed"
			if err != nil {
				why = err.Error()
			}
			out[k] = change.StepResult{Step: s, Result: skipped, Detail: Unreached + why}
		case res.Result == failed && unended(ctx, res.Detail):
			out[k] = *res
			out[k].Result, out[k].Detail = skipped, Unreached+res.Detail
		default:
			out[k] = *res
		}
	}
	return append(out, u.extra...)
}

// unended tells whether a step failed because the time was over, and not by itself.
func unended(ctx context.Context, detail string) bool {
	return ctx.Err() != nil || strings.Contains(detail, context.DeadlineExceeded.Error())
}

// put keeps a result that is complete, and announces it.
func (r *run) put(i int, res change.StepResult) {
	r.announce(res)
	r.results[i] = &res
}

func (r *run) announce(res change.StepResult) {
	if r.o.OnResult != nil {
		r.o.OnResult(res)
	}
}
