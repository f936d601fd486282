package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/quiesce"
	"github.com/liveupd/liveupd/source/apt"
	"github.com/liveupd/liveupd/transact"
)

// rollback takes generations back, the newest first, until the one asked for
// is undone. Each is a transaction of its own: a crash between two leaves a
// state that was once committed.
func (e *Engine) rollback(ctx context.Context, req Request, ev Events) (any, error) {
	s, err := openSession(e, req, readWrite)
	if err != nil {
		return nil, err
	}
	report := newReport("rollback")
	defer s.leave(report)
	if err := s.recoverFirst(ctx, ev, report); err != nil {
		return nil, err
	}
	targets, err := s.rollbackTargets(req.ID)
	if err != nil {
		return nil, err
	}
	err = s.refuseIrreversible(targets)
	var packages *change.Generation
	if err == nil {
		packages, err = s.newestOfPackages(targets)
	}
	if err == nil && packages != nil {
		// Whoever holds the package manager's locks is about to write to its database.
		var locks *apt.Locks
		locks, err = apt.Lock(s.volumeOf, true)
		defer locks.Release()
		if err == nil && !req.Force {
			err = s.refuseLaterDpkg(packages)
		}
	}
	if err != nil {
		report.Result, report.Error = "failed", err.Error()
		return report, err
	}
	// All of them are looked at before the first goes back.
	for _, g := range targets {
		if err := s.checkKept(ctx, g, ev); err != nil {
			report.ID, report.Result, report.Error = g.ID, "failed", err.Error()
			return report, err
		}
	}
	// Before it is planned: what the hooks write to is then what is compared.
	post, err := s.preHooks(ctx, report, ev)
	if err != nil {
		report.Result, report.Error = "failed", err.Error()
		return report, err
	}
	defer post()
	for i, g := range targets {
		if err := s.rollbackOne(ctx, g, report, ev); err != nil {
			return report, err
		}
		// One consent covers them all: who asked for the last one asked for those on the way.
		ev.Confirm = nil
		if i+1 < len(targets) && ctx.Err() != nil {
			return report, change.WithHint(fmt.Errorf("interrupted: %s was rolled back, %d more were not", g.ID, len(targets)-i-1),
				"run the same command again to go on")
		}
	}
	return report, nil
}

func (s *session) rollbackTargets(id string) ([]change.Generation, error) {
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	var targets []change.Generation
	for _, g := range list {
		if g.State != "verified" {
			continue
		}
		if !g.Retained {
			break
		}
		targets = append(targets, g)
		if id == "" || g.ID == id {
			return targets, nil
		}
	}
	if id == "" {
		return nil, change.WithHint(errors.New("cannot roll back: no committed update is kept"), "see: liveupd history")
	}
	return nil, change.WithHint(fmt.Errorf("cannot roll back %s: no kept generation has this id", id), "see: liveupd history")
}

// checkKept reads what a generation keeps: bit rot in it is found before
// anything is changed, and said with the way out.
func (s *session) checkKept(ctx context.Context, g change.Generation, ev Events) error {
	tx, err := s.store.Load(g.ID)
	if err != nil {
		return err
	}
	defer tx.Close()
	ev.progress("reading", 0, 0, "files", "what "+g.ID+" keeps")
	err = tx.CheckKept(ctx, func(files, _ int64) { ev.progress("reading", files, 0, "files", "") })
	if !errors.Is(err, change.ErrVerification) {
		return err
	}
	if damage, ok := errors.AsType[*transact.KeptError](err); ok && s.req.Source != "" {
		if merr := s.mendKept(ctx, tx, g, damage.Contents); merr != nil {
			return fmt.Errorf("%w; %w; %w", err, merr, ErrNothingCommitted)
		}
		if err = tx.CheckKept(ctx, nil); !errors.Is(err, change.ErrVerification) {
			return err
		}
	}
	source := "SPEC, the tree of the version before"
	if before, ok := s.generationBefore(g.ID); ok {
		source = before.Source
	}
	return change.WithHint(fmt.Errorf("%w; %w", err, ErrNothingCommitted),
		"the disk may be failing: look at its log; what is damaged can come from elsewhere: liveupd rollback --source "+source)
}

// repairSource begins the name of the source of a repair's transaction.
const repairSource = "repair:"

// generationBefore is the update that stood before this one, where it is known.
func (s *session) generationBefore(id string) (change.Generation, bool) {
	list, err := s.store.List()
	if err != nil {
		return change.Generation{}, false
	}
	for _, g := range list {
		if g.ID < id && g.State == "verified" && g.Source != "" && !strings.HasPrefix(g.Source, repairSource) {
			return g, true
		}
	}
	return change.Generation{}, false
}

func (s *session) rollbackOne(ctx context.Context, g change.Generation, report *change.Report, ev Events) error {
	tx, err := s.store.Load(g.ID)
	if err != nil {
		return err
	}
	defer tx.Close()
	p := &planned{restore: []change.Step{}}
	records, err := tx.Steps()
	if err != nil {
		return err
	}
	for _, rec := range records {
		if rec.Result == "done" {
			p.restore = append(p.restore, rec.Step)
		}
	}
	var content *sys.FD
	if p.delta, content, err = tx.Inverse(); err != nil {
		return err
	}
	defer content.Close()
	if err := s.keepsKernel(p.delta, "roll back "+g.ID, "boot the older kernel first, by the boot loader's menu"); err != nil {
		return err
	}
	edited, err := tx.Edited()
	if err != nil {
		return err
	}
	p.delta.Warnings = append(p.delta.Warnings, edited...)
	if err := s.decide(ctx, p, content, change.Policy{Max: s.req.Max, AllowRemovals: true}, ev); err != nil {
		return err
	}
	p.plan.Source, p.plan.Name, p.plan.Version, p.plan.Sequence = "rollback:"+g.ID, g.Name, g.Version, g.Sequence
	// The old tree was validated when it was made; it is not judged again.
	p.plan.Checks = nil
	p.plan.Steps = withoutChecks(p.plan.Steps)
	runAgain(p.plan, p.restore)
	ev.emit(p.plan)
	if ev.Confirm != nil && !ev.Confirm(p.plan) {
		return ErrDeclined
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("interrupted before anything was rolled back: %w", ErrNothingCommitted)
	}
	if err := s.openVolumes(p.delta); err != nil {
		return err
	}
	defer s.holdShutdown(ctx, "an update is being rolled back")()
	// No way back from here: a rollback that stops half-way helps nobody.
	defer ev.goOn(ctx, "half a rollback helps nobody")()
	ctx = context.WithoutCancel(ctx)
	report.ID, report.PlanID = g.ID, p.plan.ID
	r := &run{s: s, ev: ev, p: p, tx: tx, report: report, carried: carriedBy(g)}
	stops, after := r.unitSteps()
	defer r.watch(ctx, append(slices.Clone(stops), after...))()
	if r.watching != nil {
		r.watching.undoing = true // there is no other tree to go back to
	}
	stopped, err := r.runSteps(ctx, stops)
	if err != nil {
		return r.failedBefore(err, r.undoSteps(stopped))
	}
	if err := r.guardMounts(); err != nil {
		return r.failedBefore(err, r.undoSteps(stopped))
	}
	if err := r.promise(after); err != nil {
		return r.failedBefore(err, r.undoSteps(stopped))
	}
	defer r.quiesce()()
	ev.progress("committing", 0, 0, "", "")
	began := time.Now()
	err = tx.Revert(ctx)
	r.step("commit", fmt.Sprintf("%d paths", len(p.delta.Entries)), "", began, err)
	if err != nil && tx.State() == journal.Verified {
		// It was refused before anything moved.
		return r.failedBefore(err, r.undoSteps(stopped))
	}
	if err != nil {
		return r.failedRevert(fmt.Errorf("cannot roll back %s", g.ID), err)
	}
	s.warnings = append(s.warnings, tx.Warnings()...)
	r.tellMounts()
	if err := s.dropBases(func(id string) bool { return id >= g.ID }); err != nil {
		s.warnings = append(s.warnings, fmt.Sprintf("a record was not removed: %v", err))
	}
	_, err = r.runSteps(ctx, after)
	if err == nil {
		err = r.standsAlone(ctx, len(stops)+len(after) > 0)
	}
	if err != nil {
		// The old tree stands; a unit that does not come up with it needs a person.
		report.Result, report.Error = "failed", err.Error()
		return change.WithHint(fmt.Errorf("%w: the old files are back, but %w", change.ErrNeedsPerson, err),
			"see: systemctl status, then start the unit by hand")
	}
	r.compareGenerated()
	r.conclude()
	if was, err := tx.Plan(); err == nil && was != nil && s.req.Live() {
		if err := withdrawReboot("/run", was.RebootAsked); err != nil {
			s.warnings = append(s.warnings, fmt.Sprintf("a request for a reboot was not taken back: %v", err))
		}
	}
	return nil
}

func withoutChecks(steps []change.Step) []change.Step {
	out := []change.Step{}
	for _, st := range steps {
		if st.Do != "check" {
			st.Seq = len(out) + 1
			out = append(out, st)
		}
	}
	return out
}

func (e *Engine) recover(ctx context.Context, req Request, ev Events) (any, error) {
	if req.IfUnfinished {
		if again, err := e.needsRecovery(req); err != nil || !again {
			return nil, err
		}
	}
	s, err := openSession(e, req, readWrite)
	if err != nil {
		return nil, err
	}
	report := newReport("recover")
	defer s.leave(report)
	report.Result = "nothing-to-do"
	if err := s.thawLeft(); err != nil {
		s.warnings = append(s.warnings, err.Error())
	}
	if len(s.warnings) > 0 {
		report.Result = "done" // a file system goes back to read-only
	}
	err = s.recoverFirst(ctx, ev, report)
	if err == nil {
		err = s.reconnectLeft(ctx, ev, report)
	}
	if err != nil {
		report.Result, report.Error = "failed", err.Error()
		return report, err
	}
	return report, nil
}

// needsRecovery tells whether a run was cut off, without changing anything.
func (e *Engine) needsRecovery(req Request) (bool, error) {
	if req.Live() && quiesce.Left(frozenDir) {
		return true, nil
	}
	s, err := openSession(e, req, readOnly)
	if err != nil {
		return false, err
	}
	defer s.close()
	list, err := s.store.List()
	if err != nil {
		return false, err
	}
	g, cutOff := unfinished(list)
	if cutOff && s.awaitsPerson(g.ID) {
		return false, nil
	}
	if _, ok := left(); ok && req.Live() {
		return true, nil
	}
	if cutOff || s.root.LeftWritable(notesDir) || s.sandboxLeft() {
		return true, nil
	}
	_, owing, err := s.lateDebt()
	return owing, err
}

// recoverFirst finishes or undoes what a killed run left behind. Unit steps
// that had not been carried out are, unless the machine has booted since:
// then everything started from the new tree.
func (s *session) recoverFirst(ctx context.Context, ev Events, report *change.Report) error {
	if err := s.thawLeft(); err != nil {
		s.warnings = append(s.warnings, err.Error())
	}
	if err := s.dropSandbox(); err != nil {
		return err
	}
	list, err := s.store.List()
	if err != nil {
		return err
	}
	var d debt
	if g, cutOff := unfinished(list); cutOff {
		if d, err = s.findDebt(g.ID); err != nil {
			return err
		}
		locks, err := s.lockHalfDone(ctx, g, ev)
		if err != nil {
			return err
		}
		defer locks.Release()
	} else if late, owing, err := s.lateDebt(); err != nil {
		return err
	} else if owing {
		return s.pay(ctx, late, ev, report)
	}
	rec, err := s.store.Recover(ctx)
	s.warnings = append(s.warnings, rec.Warnings...)
	if err != nil {
		return err
	}
	if len(rec.Missing) > 0 {
		return change.WithHint(fmt.Errorf("%w: transaction %s needs %s", change.ErrNeedsPerson, rec.ID, strings.Join(rec.Missing, ", ")),
			"mount what is missing, then run: liveupd recover")
	}
	removed := map[string]bool{}
	for _, id := range rec.Removed {
		removed[id] = true
	}
	if rec.Tree == "old" {
		removed[rec.ID] = true
	}
	if err := s.dropOrphanBases(removed); err != nil {
		return err
	}
	if rec.ID == "" {
		return nil
	}
	ev.progress("recovering", 0, 0, "", rec.Did)
	report.ID, report.Result = rec.ID, "done"
	did := "the tree needed nothing"
	if rec.Did != "" {
		did = "it was " + rec.Did
	}
	s.warnings = append(s.warnings, fmt.Sprintf("transaction %s had been cut off (%s): %s, and the root holds the %s tree", rec.ID, rec.Found, did, rec.Tree))
	if rec.Tree == "old" && d.id == rec.ID {
		if err := s.pay(ctx, d, ev, report); err != nil {
			return err
		}
	}
	if !rec.Pending {
		if rec.Tree == "old" {
			s.collect()
		}
		return nil
	}
	tx, err := s.store.Load(rec.ID)
	if err != nil {
		return err
	}
	defer tx.Close()
	plan, err := tx.Plan()
	if err != nil {
		return err
	}
	if plan != nil && s.req.Live() && systemd.Booted() && tx.SameBoot() {
		return s.resume(ctx, tx, plan, true, ev, report)
	}
	if recorded, err := tx.Steps(); err != nil {
		return err
	} else if s.req.Live() && unconfigured(plan, recorded) {
		if s.req.IfUnfinished || !systemd.Booted() {
			s.warnings = append(s.warnings, "packages are left to be configured: run liveupd recover")
			return nil
		}
		return s.resume(ctx, tx, plan, false, ev, report)
	}
	if s.req.Live() && rec.Did != "" {
		// The machine came up from a tree that was neither old nor new: whatever
		// started then is not to be trusted.
		report.HostAction, report.Result = change.ActionReboot, "pending"
		s.warnings = append(s.warnings, "the machine started while the update was half done: reboot it")
		if err := tx.SetPending(change.ActionReboot, change.ActionNone, nil); err != nil {
			return err
		}
	}
	if err := tx.Verified(); err != nil {
		return err
	}
	s.collect()
	return nil
}

// resume carries out the unit steps of a committed transaction that was cut off,
// less those that are recorded as done. After another boot only the live part remains.
func (s *session) resume(ctx context.Context, tx *transact.Tx, plan *change.Plan, sameBoot bool, ev Events, report *change.Report) error {
	p := &planned{plan: plan, delta: &change.Delta{}, facts: &change.Facts{Running: true}}
	report.PlanID = plan.ID
	r := &run{s: s, ev: ev, p: p, tx: tx, report: report}
	stops, after := r.unitSteps()
	if !sameBoot {
		stops, after = nil, nil
	}
	defer r.watch(ctx, append(slices.Clone(stops), after...))()
	recorded, err := tx.Steps()
	if err != nil {
		return err
	}
	done := carriedOut(recorded)
	if r.watching != nil {
		r.watching.began(done)
	}
	report.Steps = append(report.Steps, done...)
	for _, res := range done {
		if res.Result == "done" {
			after = slices.DeleteFunc(after, func(st change.Step) bool { return st == res.Step })
		}
	}
	defer s.holdShutdown(ctx, "an update that was cut short is being finished")()
	defer ev.goOn(ctx, "past the commit point")()
	return r.finish(context.WithoutCancel(ctx), done, after)
}
