package unattended

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// Times that a table may set.
const (
	defaultLimit   = 6 * time.Hour
	defaultStall   = 5 * time.Minute
	defaultWait    = time.Hour
	defaultHook    = 10 * time.Minute
	defaultCanary  = 5 * time.Minute
	defaultSettle  = 10 * time.Second
	defaultWarning = 5 * time.Minute
)

// look is how often the window and the worker are looked at.
const look = 500 * time.Millisecond

// request is what each of a run's requests has in common.
func (r *run) request(verb string) engine.Request {
	req := engine.Request{
		Verb: verb, Root: "/", Keep: r.cfg.Keep, Quiesce: r.cfg.Quiesce, QuiesceFiles: r.cfg.QuiesceFiles, Unattended: true,
		Max: r.u.Most(), MaxSet: true,
	}
	if never := r.u.NeverUnits(); len(never) > 0 {
		req.Rules = append(req.Rules, change.Rule{
			Units: never, Action: change.RuleNever, Reason: "never unattended", Source: "unattended.never",
		})
	}
	return req
}

// laterRules put off the units of the groups after one, until their turn.
func (r *run) laterRules(group int) []change.Rule {
	var out []change.Rule
	var before []string
	for i := range r.u.Groups {
		g := &r.u.Groups[i]
		if i > group {
			out = append(out, change.Rule{
				Units: g.Names(), Except: slices.Clone(before), Action: change.RuleLater, Source: "unattended.group",
				Reason: fmt.Sprintf("its group %s comes later in this run", g.Name),
			})
		}
		before = append(before, g.Names()...)
	}
	return out
}

// stopped is why a request was cancelled.
type stopped struct{ why atomic.Pointer[string] }

func (s *stopped) set(why string) { s.why.CompareAndSwap(nil, &why) }

func (s *stopped) reason() string {
	if p := s.why.Load(); p != nil {
		return *p
	}
	return ""
}

// do carries out a request of the engine under supervision: where bounded, it is cancelled when
// the window closes or its time is up, which before the commit undoes everything and after it stops
// nothing. A worker that somebody has stopped is ended after a while: the engine recovers what
// it had begun.
func (r *run) do(ctx context.Context, req engine.Request, ev engine.Events, bounded bool) (result any, why string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var s stopped
	var worker atomic.Pointer[string]
	ev.Terminated = r.o.Terminated
	emit := ev.Emit
	ev.Emit = func(v any) {
		if emit != nil {
			emit(v)
		}
		r.emit(v)
	}
	ev.Started = func(unit string) {
		worker.Store(&unit)
		r.p.Worker = unit
		if err := writeJSON(r.o.Dir, runName, r.p); err != nil {
			r.warn(err.Error())
		}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	var notes []string // the watcher's, until it has ended
	go func() {
		defer close(ended)
		began := time.Now()
		var since time.Time
		for {
			select {
			case <-done:
				return
			case <-time.After(look):
			}
			switch {
			case !bounded:
			case !Open(r.cfg.Windows(), r.h.Now()):
				s.set("the window closed")
				cancel()
			case time.Since(began) > r.u.Limit.Or(defaultLimit):
				s.set(fmt.Sprintf("it took longer than the %s that are allowed", r.u.Limit.Or(defaultLimit)))
				cancel()
			}
			if unit := worker.Load(); unit != nil {
				var note string
				if since, note = r.watch(ctx, *unit, since); note != "" {
					notes = append(notes, note)
				}
			}
		}
	}()
	result, err = r.h.Do(ctx, req, ev)
	close(done)
	<-ended
	for _, note := range notes {
		r.warn(note)
	}
	return result, s.reason(), err
}

// watch ends a worker that is stopped for longer than allowed; since is when that was seen first.
func (r *run) watch(ctx context.Context, unit string, since time.Time) (_ time.Time, note string) {
	_, halted := r.h.Alive(ctx, unit)
	switch {
	case !halted:
		return time.Time{}, ""
	case since.IsZero():
		return time.Now(), ""
	case time.Since(since) < r.u.Stall.Or(defaultStall):
		return since, ""
	}
	if err := r.h.End(context.WithoutCancel(ctx), unit); err != nil {
		return time.Time{}, err.Error()
	}
	return time.Time{}, fmt.Sprintf("%s was stopped by a signal for %s, and was ended", unit, r.u.Stall.Or(defaultStall))
}

// patiently repeats what others' locks refuse, for as long as that may be waited for.
func (r *run) patiently(ctx context.Context, do func() error) error {
	until := r.h.Now().Add(r.u.Wait.Or(defaultWait))
	for {
		err := do()
		if !errors.Is(err, change.ErrLocked) || !r.h.Now().Before(until) || ctx.Err() != nil {
			return err
		}
		r.h.Status("waiting: " + firstLine(err.Error()))
		if e := r.h.Sleep(ctx, 15*time.Second); e != nil {
			return err
		}
	}
}

// note takes over what a report of the engine tells.
func (r *run) note(result any) *change.Report {
	report, ok := result.(*change.Report)
	if !ok || report == nil {
		return nil
	}
	for _, w := range report.Warnings {
		r.warn(w)
	}
	for _, s := range report.Steps {
		switch s.Step.Do {
		case "restart", "reload", "stop", "start":
			name := change.UnitKey(s.Step.Manager, s.Step.Target)
			if s.Result == "done" && !slices.Contains(r.n.Units, name) {
				r.n.Units = append(r.n.Units, name)
			}
		}
	}
	return report
}

// waiting is what is put off now.
func (r *run) waiting(ctx context.Context) []change.Waiting {
	list, err := r.h.Look(ctx, engine.Request{Verb: "status", Unattended: true})
	if err != nil {
		r.warn(fmt.Sprintf("what is put off is not known: %v", err))
		return nil
	}
	return engine.Waiting(list)
}
