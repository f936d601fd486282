package unattended

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/source/apt"
)

// decision is what came of the question whether a plan is to be carried out.
type decision struct {
	asked  bool
	agreed bool
	failed *change.BackOff // it has failed before, and its time has not come
	why    string          // it was refused for another reason
	err    error           // which is an error: the pre hook's
}

// update looks for an update, and applies it where everything allows that.
func (r *run) update(ctx context.Context) error {
	var held []string
	var before []change.BackOff // what is held back
	again := 0                  // runs that were repeated for a reason that is not the update's
	for {
		d := &decision{}
		var report *change.Report
		var why string
		err := r.patiently(ctx, func() error {
			var err error
			var result any
			result, why, err = r.do(ctx, r.applyRequest(held), engine.Events{Confirm: func(p *change.Plan) bool { return r.agree(ctx, p, d) }}, true)
			report = r.note(result)
			return err
		})
		switch {
		case errors.Is(err, engine.ErrLeft):
			return err
		case d.failed != nil && len(further(d.failed, held)) > 0:
			// The rest of it may go on without what has failed: more than one failure, perhaps.
			before, held = append(before, *d.failed), append(held, further(d.failed, held)...)
			continue
		case again < 2 && (errors.Is(err, change.ErrDrift) || errors.Is(err, engine.ErrWorkerGone) && errors.Is(err, engine.ErrNothingCommitted)):
			again++
			r.warn("tried again: " + firstLine(err.Error()))
			continue
		case err != nil:
			return r.updateFailed(d, why, report, err)
		}
		if len(before) > 0 {
			r.n.Held = held
			r.n.Result, r.n.Reason = change.NightBackedOff, backOffTexts(before)
		}
		if report == nil || report.Result == "nothing-to-do" {
			return nil // what failed stays known: its archive may be away for a while
		}
		r.n.ID, r.n.Result = report.ID, change.NightDone
		return r.committed(ctx, 0, false)
	}
}

func (r *run) applyRequest(held []string) engine.Request {
	req := r.request("apply")
	req.Source = r.cfg.Source
	req.Rules = append(req.Rules, r.laterRules(0)...)
	kind, _, _ := strings.Cut(req.Source, ":")
	if kind == "" || kind == "apt" {
		req.Apt = &apt.Options{
			Full: r.u.FullUpgrade, OnlySecurity: r.u.OnlySecurity, AutoRemove: r.u.AutoRemove, Unattended: true,
			Hold: slices.Concat(r.u.Hold, held), NewConf: r.cfg.Conffiles == "new",
			LiveAfter: r.cfg.LiveData == "after",
		}
		req.Env = os.Environ()
	}
	return req
}

// agree is asked when the plan is made and nothing has been done yet.
func (r *run) agree(ctx context.Context, p *change.Plan, d *decision) bool {
	d.asked = true
	r.p.Update = identify(p)
	if !r.o.Retry {
		if d.failed = backedOff(r.state.BackOff, r.p.Update, r.h.Now()); d.failed != nil {
			return false
		}
	}
	r.n.PlanID, r.n.Source, r.n.Name, r.n.Version = p.ID, p.Source, p.Name, p.Version
	r.n.Packages, r.n.Changes = p.Packages, p.Changes
	if !Open(r.cfg.Windows(), r.h.Now()) {
		d.why = "the window closed while the update was planned"
		return false
	}
	if d.err = r.pre(ctx, p); d.err != nil {
		return false
	}
	if !Open(r.cfg.Windows(), r.h.Now()) {
		d.why = "the window closed while the pre hook ran"
		return false
	}
	if d.err = r.phase(phaseUpdate); d.err != nil {
		return false
	}
	d.agreed = true
	return true
}

// updateFailed sorts out why nothing is committed, or why it was taken back.
func (r *run) updateFailed(d *decision, why string, report *change.Report, err error) error {
	if report != nil && report.ID != "" && errors.Is(err, engine.ErrRolledBack) {
		r.n.ID = report.ID
	}
	switch {
	case d.err != nil:
		return r.fails(d.err)
	case d.failed != nil:
		r.n.Result, r.n.Reason = change.NightBackedOff, backOffText(d.failed)
		return nil
	case d.why != "":
		r.n.Result, r.n.Reason = change.NightUndone, d.why
		return nil
	case why != "" && !errors.Is(err, engine.ErrRolledBack) && !errors.Is(err, change.ErrNeedsPerson):
		r.n.Result, r.n.Reason = change.NightUndone, why
		return nil
	case errors.Is(err, change.ErrLocked):
		r.n.Reason = err.Error()
		err = r.fails(err)
		r.n.Result = change.NightSkipped
		return err
	}
	select {
	case <-r.o.Terminated:
		r.n.Result, r.n.Reason = change.NightUndone, "it was told to end"
		return nil
	default:
	}
	if d.agreed && !errors.Is(err, change.ErrNeedsPerson) && !errors.Is(err, engine.ErrWorkerGone) && !errors.Is(err, change.ErrDrift) ||
		errors.Is(err, engine.ErrRolledBack) {
		r.backOff(err)
	}
	return r.fails(err)
}

// backOff notes that this run's update has failed.
func (r *run) backOff(err error) {
	r.state.BackOff = fail(r.state.BackOff, r.p.Update, r.h.Now(), r.u.BackOff.Or(firstBackOff), err.Error())
}

// backOffTexts tells of each update that waits.
func backOffTexts(list []change.BackOff) string {
	var out []string
	for i := range list {
		out = append(out, backOffText(&list[i]))
	}
	return strings.Join(out, "; ")
}

// backOffText tells that an update waits because it has failed.
func backOffText(b *change.BackOff) string {
	what := b.Key
	switch {
	case len(b.Packages) > 0:
		var list []string
		for _, p := range b.Packages {
			list = append(list, packageText(p))
		}
		what = some(list)
	case b.Version == "":
		what = b.Source
	}
	times := "has failed"
	if b.Failures > 1 {
		times = fmt.Sprintf("has failed %d times", b.Failures)
	}
	return fmt.Sprintf("%s %s, and is left alone until %s: %s", what, times, time.Unix(b.Until, 0).Format("2006-01-02 15:04"), firstLine(b.Error))
}

// group is one step of the restarts.
type group struct {
	name   string
	units  []string
	wait   time.Duration
	canary []string
}

// groups are those of the table, one of no name where it has none. The units of the first, and those
// of none, are restarted with the commit.
func (r *run) groups() []group {
	var out []group
	for i := range r.u.Groups {
		g := &r.u.Groups[i]
		one := group{g.Name, g.Names(), g.Wait.Or(0), g.Canary}
		if len(one.canary) == 0 {
			one.canary = r.u.Canary
		}
		if !g.Wait.Set && len(one.canary) > 0 {
			one.wait = r.u.Settle.Or(defaultSettle)
		}
		out = append(out, one)
	}
	if len(out) == 0 {
		out = append(out, group{canary: r.u.Canary})
		if len(r.u.Canary) > 0 {
			out[0].wait = r.u.Settle.Or(defaultSettle)
		}
	}
	return out
}

// committed goes on from a committed update: the canary of the first group, and then the other
// groups. from is the group to go on with, restart whether its units are still to be restarted.
func (r *run) committed(ctx context.Context, from int, restart bool) error {
	// What is committed is finished, whatever becomes of the window and of our caller.
	ctx = context.WithoutCancel(ctx)
	groups := r.groups()
	for i := from; i < len(groups); i++ {
		r.p.Group = i
		if restart || i > from {
			on, err := r.restartGroup(ctx, i, groups[i])
			if err != nil || !on {
				return err
			}
		}
		if err := r.canary(ctx, groups[i]); err != nil {
			return r.takeBack(ctx, err)
		}
	}
	r.state.BackOff = succeed(r.state.BackOff, r.p.Update)
	return nil
}

// restartGroup restarts what the update put off for a later group. on is false where the rest
// of the groups has to wait for another night.
func (r *run) restartGroup(ctx context.Context, i int, g group) (on bool, err error) {
	var units []string
	for _, w := range r.waiting(ctx) {
		if matches(g.units, w.Key()) && !r.inEarlier(i, w.Key()) {
			units = append(units, w.Key())
		}
	}
	if len(units) == 0 {
		return true, nil
	}
	if !Open(r.cfg.Windows(), r.h.Now()) {
		r.warn(fmt.Sprintf("the window closed before group %s: %s stays put off", g.name, some(units)))
		return false, nil
	}
	if err := r.phase(phaseGroup); err != nil {
		return false, r.takeBack(ctx, err)
	}
	if err := r.restart(ctx, units, i); err != nil {
		if errors.Is(err, engine.ErrLeft) {
			return false, err
		}
		return false, r.takeBack(ctx, fmt.Errorf("group %s: %w", g.name, err))
	}
	return true, nil
}

func (r *run) inEarlier(i int, unit string) bool {
	return slices.ContainsFunc(r.groups()[:i], func(g group) bool { return matches(g.units, unit) })
}

// restart restarts units that were put off. What policy forbids stays as it is.
func (r *run) restart(ctx context.Context, units []string, group int) error {
	req := r.request("restart")
	req.Units = units
	req.Rules = append(req.Rules, r.laterRules(group)...)
	again := false
	once := func() error {
		result, _, err := r.do(ctx, req, engine.Events{Confirm: func(p *change.Plan) bool { return r.agreeRestart(ctx, p) }}, false)
		r.note(result)
		return err
	}
	return r.patiently(ctx, func() error {
		err := once()
		if errors.Is(err, engine.ErrWorkerGone) && !again {
			// The engine looks anew at what is still to be restarted.
			again = true
			r.warn("tried again: " + firstLine(err.Error()))
			if err = errors.Join(once(), r.h.Settled(ctx, units)); errors.Is(err, engine.ErrDeclined) && r.n.Error == "" {
				return r.h.Settled(ctx, units)
			}
		}
		if errors.Is(err, engine.ErrDeclined) && r.n.Error == "" {
			return nil
		}
		return err
	})
}

// takeBack rolls the committed update back, for a cause.
func (r *run) takeBack(ctx context.Context, cause error) error {
	r.p.Cause = cause.Error()
	r.warnOf(r.phase(phaseRollback))
	r.backOff(cause)
	r.warnOf(writeJSON(r.o.Dir, stateName, r.state)) // a crash must not forget that it has failed
	req := r.request("rollback")
	req.ID, req.NoPrompt = r.n.ID, true
	err := r.patiently(ctx, func() error {
		result, _, err := r.do(ctx, req, engine.Events{}, false)
		r.note(result)
		return err
	})
	if errors.Is(err, engine.ErrLeft) {
		return err
	}
	if err != nil {
		return r.fails(change.WithHint(fmt.Errorf("%w: %w; and it could not be rolled back: %w", change.ErrNeedsPerson, cause, err),
			"see: liveupd status, then run: liveupd rollback"))
	}
	return r.fails(fmt.Errorf("%w; everything was %w", cause, engine.ErrRolledBack))
}

func (r *run) warnOf(err error) {
	if err != nil {
		r.warn(err.Error())
	}
}
