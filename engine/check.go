package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/inspect"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/planner"
)

func (e *Engine) check(ctx context.Context, req Request, ev Events) (any, error) {
	if !req.Live() {
		return nil, usage("check looks at what runs: it takes no --root")
	}
	// One look makes some 20 MB of garbage, and ends: nothing is collected before
	// the limit of the whole program.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	b := openBus(ctx, askedOfAll, true)
	defer b.close()
	s, gaps, err := openLook(e, req)
	if err != nil {
		return nil, err
	}
	defer s.close()
	ev.progress("reading", 0, 0, "processes", "")
	r, err := e.checkReport(ctx, s, b, nil)
	if err != nil {
		return nil, err
	}
	r.Gaps = append(r.Gaps, gaps...)
	r.Incomplete = len(r.Gaps) > 0
	if s.store != nil {
		generations, err := s.store.List()
		if err != nil {
			return nil, err
		}
		s.forgetDone(generations)
		for _, g := range generations {
			r.Waiting = append(r.Waiting, g.Deferred...)
		}
		slices.Sort(r.Waiting)
		r.Waiting = slices.Compact(r.Waiting)
	}
	r.Kernel, r.Microcode = inspect.Kernel("/"), inspect.Microcode("/")
	if len(req.Units) > 0 {
		if err := b.all(ctx, change.FieldNames); err != nil {
			return nil, err
		}
		err = explain(r, b.facts(), req.Units)
	}
	return r, err
}

// askedOfAll is what check needs to know of every service, for the built-in
// table and for what changed since each began.
const askedOfAll = change.FieldNames | change.FieldInvoked

func (e *Engine) checkReport(ctx context.Context, s *session, b *bus, waiting []change.UnitPlan) (*change.CheckReport, error) {
	found := planner.Found{Policy: change.Policy{Max: change.ActionReboot}, Waiting: waiting}
	s.govern(&found.Policy)
	// The units' files are read while the processes are looked at.
	var files sync.WaitGroup
	var filesErr error
	files.Go(func() {
		if found.Newer, filesErr = s.newer(ctx, b); filesErr == nil && found.Newer != nil {
			found.UserNewer, filesErr = s.userNewer(ctx, b, found.Newer.Epoch)
		}
	})
	res, err := e.stale(ctx, s, b)
	files.Wait()
	if err := errors.Join(err, filesErr); err != nil {
		return nil, err
	}
	found.Hits, found.Units, found.Examined, found.Warnings = res.Hits, b.units, res.Examined, res.Warnings
	found.Users = b.users
	gaps := append(res.Gaps, unreadable(found.Newer)...)
	r, lacks := planner.Find(found)
	for len(lacks) > 0 {
		if err := b.learn(ctx, lacks); err != nil {
			return nil, err
		}
		r, lacks = planner.Find(found)
	}
	r.Effects = staleManagers(b.users)
	r.Gaps, r.Incomplete, r.Unread = gaps, len(gaps) > 0, res.Unread
	r.Looked = res.Looked
	for name, u := range b.units {
		if u.NeedDaemonReload && name == u.Name {
			r.HostAction = max(r.HostAction, change.ActionDaemonReload)
			r.HostReasons = append(r.HostReasons, change.Reason{Kind: "unit-files", Unit: name, Path: u.FragmentPath, Detail: "changed since systemd read it"})
		}
	}
	slices.SortFunc(r.HostReasons, func(a, b change.Reason) int { return strings.Compare(a.Kind+a.Unit, b.Kind+b.Unit) })
	return r, nil
}

// restart does what check found.
func (e *Engine) restart(ctx context.Context, req Request, ev Events) (any, error) {
	if !req.Live() || !systemd.Booted() {
		return nil, usage("restart acts on a running systemd: it takes no --root, and there is none here")
	}
	s, err := openSession(e, req, readOnly)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if s.lock, err = takeLock(req); err != nil {
		return nil, err
	}
	waiting, err := s.waiting()
	if err != nil {
		return nil, err
	}
	b := openBus(ctx, askedOfAll, true)
	defer b.close()
	found, err := e.checkReport(ctx, s, b, waiting)
	if err != nil {
		return nil, err
	}
	report := newReport("restart")
	report.HostAction = change.ActionNone
	found.Warnings = append(found.Warnings, found.Gaps...)
	if len(req.Units) > 0 {
		found.Units = slices.DeleteFunc(found.Units, func(u change.Stale) bool { return !slices.Contains(req.Units, change.UnitKey(u.Manager, u.Unit)) })
	}
	plan := planner.RestartPlan(found, req.Max)
	plan.Root, plan.Source = req.Root, "check"
	ev.emit(plan)
	if plan.Empty() {
		report.Result = "nothing-to-do"
		return report, nil
	}
	if ev.Confirm != nil && !ev.Confirm(plan) {
		return nil, ErrDeclined
	}
	r := &run{s: s, ev: ev, p: &planned{plan: plan, delta: &change.Delta{}}, report: report}
	var steps []change.Step
	for _, st := range plan.Steps {
		switch st.Do {
		case "reload", "restart", "daemon-reload", "daemon-reexec":
			steps = append(steps, st)
		}
	}
	defer ev.goOn(ctx, "the restarts have begun")()
	defer r.watch(ctx, steps)()
	if r.watching != nil {
		r.watching.undoing = true // there is no tree to go back to
	}
	results, err := r.runSteps(context.WithoutCancel(ctx), steps)
	if e := s.noteReloaded(results); e != nil {
		report.Warnings = append(report.Warnings, e.Error())
	}
	if err == nil {
		if err = r.verified(context.WithoutCancel(ctx), true); err != nil {
			if back := r.reconnect(context.WithoutCancel(ctx)); back != nil {
				err = fmt.Errorf("%w; %w", err, back)
			}
		}
	}
	if err != nil {
		report.Result, report.Error = "failed", err.Error()
		return report, err
	}
	r.conclude()
	return report, nil
}
