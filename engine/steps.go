package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/inspect"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/restart"
	"github.com/liveupd/liveupd/transact"
)

// unitSteps splits the plan's steps into the stops that come before the
// commit and what comes after it. A plan read from a tree alone says what a
// machine would have to do; there is none to do it to.
func (r *run) unitSteps() (before, after []change.Step) {
	if r.p.plan.Static || r.p.facts == nil || !r.p.facts.Running {
		return nil, nil
	}
	return splitSteps(r.p.plan.Steps)
}

func splitSteps(steps []change.Step) (before, after []change.Step) {
	committed := false
	live := liveSteps(steps)
	for _, st := range steps {
		if slices.Contains(live, st) {
			continue // after all of these
		}
		switch {
		case st.Do == "commit":
			committed = true
		case restart.Handles(st.Do):
			if committed {
				after = append(after, st)
			} else {
				before = append(before, st)
			}
		}
	}
	return before, after
}

// runSteps carries out unit steps. A step that did not come to "done" is an error.
func (r *run) runSteps(ctx context.Context, steps []change.Step) ([]change.StepResult, error) {
	if len(steps) == 0 {
		return nil, nil
	}
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	var unrecorded error
	for _, st := range steps {
		unrecorded = errors.Join(unrecorded, r.record(change.StepResult{Step: st, Result: "begun"}))
	}
	host, release, err := r.s.hostAccess(steps)
	if err != nil {
		return nil, err
	}
	defer release()
	o := restart.Options{Host: host, Users: usersBus{bus}, Along: r.along(), OnResult: func(res change.StepResult) {
		res.MessageType = "step"
		r.ev.emit(res)
		unrecorded = errors.Join(unrecorded, r.record(res))
	}}
	r.observe(&o)
	results, err := restart.Run(ctx, bus, steps, o)
	r.tellCommands(results)
	if unrecorded != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("a step was not recorded: %v", unrecorded))
	}
	r.report.Steps = append(r.report.Steps, results...)
	return results, err
}

// along are the units that systemd stops or starts by itself in the course of
// the plan's jobs.
func (r *run) along() map[string]change.Action {
	out := map[string]change.Action{}
	for _, u := range r.p.plan.Units {
		if u.Propagated && (u.Action == change.ActionStop || u.Action == change.ActionStart) {
			out[change.UnitKey(u.Manager, u.Unit)] = u.Action
		}
	}
	return out
}

// record keeps a step's course in the transaction, so that a run that is cut
// off is taken up where it was.
func (r *run) record(res change.StepResult) error {
	if r.tx == nil {
		return nil
	}
	return r.tx.RecordStep(res)
}

// undoSteps carries out the inverse of what was done.
func (r *run) undoSteps(done []change.StepResult) error {
	steps := restart.Inverse(done)
	if len(steps) == 0 {
		return nil
	}
	if r.watching != nil {
		r.watching.undoing = true
	}
	results, err := r.runSteps(context.Background(), steps)
	for i := range results {
		if results[i].Result == "done" {
			results[i].Result = "undone"
		}
	}
	if err != nil {
		return fmt.Errorf("cannot take the unit steps back: %w", err)
	}
	return nil
}

// finish goes from a committed tree to a verified transaction, or back.
func (r *run) finish(ctx context.Context, stopped []change.StepResult, after []change.Step) error {
	if err := r.tx.SetState(journal.Restarting); err != nil {
		return r.revert(ctx, err, stopped)
	}
	if len(after) > 0 {
		r.ev.progress("restarting", 0, int64(len(after)), "units", "")
	}
	done, err := r.runSteps(ctx, after)
	if err == nil {
		err = r.verified(ctx, len(stopped)+len(after) > 0)
	}
	if err != nil {
		return r.revert(ctx, err, append(slices.Clone(stopped), done...))
	}
	if err := r.configureLive(ctx); err != nil {
		return r.stuck(err)
	}
	r.stillThere(ctx)
	began := time.Now()
	r.conclude()
	r.lookAgain(ctx)
	r.compareGenerated()
	if err := r.tx.Verified(); err != nil {
		if liveSteps(r.p.plan.Steps) != nil {
			return r.stuck(err)
		}
		return r.revert(ctx, err, append(slices.Clone(stopped), done...))
	}
	r.step("verify", r.s.req.Root, "", began, nil)
	r.s.collect()
	return nil
}

// conclude fills the report of a run that succeeded.
func (r *run) conclude() {
	r.report.Result = "done"
	for _, u := range r.p.plan.Units {
		if u.Action == change.ActionDefer {
			r.report.Deferred = append(r.report.Deferred, u)
		}
	}
	r.concludeUsers()
	// A tree has nothing pending: no machine runs it.
	if host := r.p.plan.HostAction; r.s.req.Live() && host > change.ActionNone && !r.carriedOut(host) {
		r.report.HostAction = host
		r.report.Result = "pending"
	}
	if r.tx == nil || !r.s.req.Live() {
		return
	}
	if err := askReboot("/run", r.p.plan.RebootAsked); err != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("that packages ask for a reboot was not noted: %v", err))
	}
	own := r.s.waitingFor(r.report.Deferred, time.Now().Unix())
	for i := range own {
		own[i].By = r.tx.ID()
	}
	carried, deferred := r.s.carryOver(r.tx.ID(), own, r.carried)
	err := r.tx.SetPending(max(r.report.HostAction, carried), carried, deferred)
	if r.tx.State() == journal.RolledBack {
		err = errors.Join(err, noteRolledBack(deferred))
	}
	if err != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("what is pending was not recorded: %v", err))
	}
}

// carriedOut tells whether a host action was a step of this run: a
// daemon-reload or daemon-reexec that --max allowed.
func (r *run) carriedOut(host change.Action) bool {
	return slices.ContainsFunc(r.report.Steps, func(res change.StepResult) bool {
		return res.Step.Do == host.String() && res.Result == "done"
	})
}

// lookAgain scans the processes once more for what the plan should have
// ended: a unit that still runs old code is told, not hidden.
func (r *run) lookAgain(ctx context.Context) {
	if r.p.facts == nil || !r.p.facts.Running {
		return
	}
	r.ev.progress("verifying", 0, 0, "", "")
	var facts change.Facts
	b := openBus(ctx, 0, true)
	defer b.close()
	if err := r.s.readHost(ctx, b, r.p.delta, &facts); err != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("the processes were not looked at again: %v", err))
		return
	}
	acted := map[string]bool{}
	for _, u := range r.p.plan.Units {
		if u.Action == change.ActionRestart || u.Action == change.ActionStop {
			acted[change.UnitKey(u.Manager, u.Unit)] = true
		}
		if _, manager := systemd.UserUID(u.Unit); manager && u.Action == change.ActionReload {
			acted[change.UnitKey(u.Unit, "init.scope")] = true
		}
	}
	for _, u := range r.report.Deferred {
		delete(acted, change.UnitKey(u.Manager, u.Unit)) // it is told there
		delete(acted, change.UnitKey(u.Unit, "init.scope"))
	}
	for _, h := range facts.Hits {
		if h.Kind == "namespace" {
			continue // what is mounted upon a path of the new tree is mounted upon it as before
		}
		unit := h.Unit
		if h.UserUnit != "" {
			unit = change.UnitKey(h.Unit, h.UserUnit)
		}
		if acted[unit] && !h.Leftover && h.Comm != "(sd-pam)" {
			r.s.warnings = append(r.s.warnings, fmt.Sprintf("%s still uses the old %s (%s, %d) after its restart", unit, h.Path, h.Comm, h.PID))
		}
	}
}

// revert takes a committed transaction back: the tree first, then the units,
// so that they start from the old files.
func (r *run) revert(ctx context.Context, cause error, done []change.StepResult) error {
	r.ev.progress("reverting", 0, 0, "", cause.Error())
	inverse := restart.Inverse(done)
	if err := r.promise(inverse); err != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("what the units are owed was not recorded: %v", err))
	}
	began := time.Now()
	err := r.tx.Revert(ctx)
	r.step("revert", fmt.Sprintf("%d paths", len(r.p.delta.Entries)), "", began, err)
	if err != nil {
		return r.failedRevert(cause, err)
	}
	if err := errors.Join(r.undoSteps(done), r.reconnect(ctx)); err != nil {
		return r.failedRevert(cause, err)
	}
	id := r.tx.ID()
	if err := r.s.dropBases(func(b string) bool { return b >= id }); err != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("a record was not removed: %v", err))
	}
	r.report.Result = "rolled-back"
	r.report.Error = cause.Error()
	r.s.warnings = append(r.s.warnings, r.tx.Warnings()...)
	// Night after night may fail: what was staged does not wait for one that succeeds.
	r.s.collect()
	return fmt.Errorf("%w; everything was %w", cause, ErrRolledBack)
}

func (r *run) failedRevert(cause, err error) error {
	r.report.Result = "failed"
	err = errors.Join(cause, fmt.Errorf("cannot roll back: %w", err))
	r.report.Error = err.Error()
	return change.WithHint(fmt.Errorf("%w: %w", change.ErrNeedsPerson, err), "see what failed, then run: liveupd recover")
}

// oldInodes maps the objects of kept generations to the paths that they had,
// for processes that still use them.
func (s *session) oldInodes() (map[change.InodeKey]string, error) {
	if s.store == nil {
		return nil, nil
	}
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	out := map[change.InodeKey]string{}
	for _, g := range list {
		if g.State != "verified" || !g.Retained {
			continue
		}
		tx, err := s.store.Load(g.ID)
		if err != nil {
			return nil, err
		}
		err = s.kept(tx, out)
		tx.Close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// kept adds the objects that tx keeps for a rollback.
func (s *session) kept(tx *transact.Tx, out map[change.InodeKey]string) error {
	d, content, err := tx.OldObjects()
	if err != nil {
		return err
	}
	defer content.Close()
	for _, e := range d.Entries {
		if e.New == nil || e.Op == change.Metadata || e.From == "" || e.New.Type != change.Regular {
			continue
		}
		at, from := content, e.From
		if e.FromLive {
			at, from = s.volumeOf(from)
		}
		node, err := sys.Lstat(at, strings.TrimPrefix(from, "/"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		out[change.InodeKey{Dev: node.Dev, Ino: node.Ino}] = e.Path
	}
	return nil
}

// volumeOf gives the file system that a path of the root lies in, and the path there.
func (s *session) volumeOf(path string) (*sys.FD, string) {
	best := s.vols[0]
	for _, v := range s.vols[1:] {
		if len(v.Mount) > len(best.Mount) && strings.HasPrefix(path, v.Mount+"/") {
			best = v
		}
	}
	if best.Mount == "/" {
		return best.Dir, path
	}
	return best.Dir, strings.TrimPrefix(path, best.Mount)
}

func (e *Engine) stale(ctx context.Context, s *session, b *bus) (*inspect.StaleResult, error) {
	old, err := s.oldInodes()
	if err != nil {
		return nil, err
	}
	return inspect.Stale(ctx, inspect.StaleRequest{Retained: old, Manager: b, Own: ownUnits(), Count: len(s.req.Units) > 0})
}
