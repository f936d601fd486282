package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/source/apt"
	"github.com/liveupd/liveupd/transact"
)

// run is one transaction under way, and what came of it so far.
type run struct {
	s      *session
	ev     Events
	p      *planned
	tx     *transact.Tx
	report *change.Report
	before *nsmount.Picture // the mounts just before names move

	watching *watching // the network and the units; nil while nobody watches
	of       string    // whose steps are carried out, where its transaction is gone
	// carried is what a transaction that is taken back had taken over from earlier ones.
	carried change.Generation
}

func newReport(verb string) *change.Report {
	return &change.Report{MessageType: "report", Schema: Schema, Verb: verb, Steps: []change.StepResult{}, Warnings: []string{}}
}

func (e *Engine) apply(ctx context.Context, req Request, ev Events) (any, error) {
	s, err := openSession(e, req, readWrite)
	if err != nil {
		return nil, err
	}
	report := newReport("apply")
	defer s.leave(report)
	if err := s.recoverFirst(ctx, ev, report); err != nil {
		return nil, err
	}
	p, err := s.planSource(ctx, ev)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := expected(req, p.plan); err != nil {
		return nil, err
	}
	ev.emit(p.plan)
	report.PlanID = p.plan.ID
	if p.plan.Empty() {
		report.Result = "nothing-to-do"
		if err := errors.Join(s.recordUnchanged(p), s.acceptUnchanged(p)); err != nil {
			return report, err
		}
		return report, nil
	}
	if err := s.refuseUnrecovered(); err != nil {
		return nil, err
	}
	if ev.Confirm != nil && !ev.Confirm(p.plan) {
		return nil, ErrDeclined
	}
	post, err := s.preHooks(ctx, report, ev)
	if err != nil {
		return nil, err
	}
	r := &run{s: s, ev: ev, p: p, report: report}
	err = r.carryOut(ctx)
	post()
	if err != nil {
		return report, err
	}
	p.close()
	if err := errors.Join(s.dropCaches("archives"), s.boundCaches()); err != nil {
		s.warnings = append(s.warnings, err.Error())
	}
	return report, nil
}

// firstBase names the record of a source that changed nothing in a root
// without a committed update. It sorts before each transaction's.
const firstBase = "0"

// recordUnchanged keeps the base of a source that changes nothing: the next
// update of /etc is compared with it.
func (s *session) recordUnchanged(p *planned) error {
	if p.result == nil {
		return nil // no source says what the root should be
	}
	if p.base.Whole() == p.recordsWhole() && baseEqual(p.record(), p.base) {
		return nil
	}
	_, id, err := s.currentBase()
	if err != nil {
		return err
	}
	if id == "" {
		id = firstBase
	}
	dir, err := s.stateDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	return catalog.WriteBase(s.k, dir, basePrefix+id, p.recordsWhole(), p.record())
}

// baseEqual tells whether a record would be written as it stands.
func baseEqual(entries iter.Seq2[string, *change.Node], base *catalog.Base) bool {
	if base == nil {
		return false
	}
	n := 0
	for path, node := range entries {
		old, ok := base.Get(path)
		if !ok || old.Type != node.Type || old.Mode != node.Mode || old.UID != node.UID || old.GID != node.GID ||
			old.Digest != node.Digest || old.Target != node.Target || old.Rdev != node.Rdev || old.Link != node.Link ||
			!maps.EqualFunc(old.Xattrs, node.Xattrs, bytes.Equal) {
			return false
		}
		n++
	}
	return n == base.Len()
}

// carryOut stages, validates, commits, restarts and verifies p.
func (r *run) carryOut(ctx context.Context) (err error) {
	defer r.s.holdShutdown(ctx, "an update is being applied")()
	if err := r.s.openVolumes(r.p.delta); err != nil {
		return r.failedBefore(err, nil)
	}
	if r.p.yield == nil && changesDpkg(r.p.delta) {
		// A package manager that works now has more on its mind than what its database says.
		locks, err := apt.Lock(r.s.volumeOf, true)
		if err != nil {
			return r.failedBefore(err, nil)
		}
		defer locks.Release()
	}
	if err := r.s.useLabels(); err != nil {
		return r.failedBefore(err, nil)
	}
	if r.tx, err = r.s.store.Begin(transact.Header{
		Source: r.p.plan.Source, Name: r.p.plan.Name, Version: r.p.plan.Version, Sequence: r.p.plan.Sequence,
		PlanID: r.p.plan.ID, HostAction: r.p.plan.HostAction, Time: time.Now().Unix(), Reserve: r.s.recordsSize(r.p.delta),
	}); err != nil {
		return r.failedBefore(err, nil)
	}
	defer r.tx.Close()
	r.report.ID = r.tx.ID()
	if err := r.prepare(ctx); err != nil {
		return r.failedBefore(err, r.discard())
	}
	// Removed units are stopped with the definition that they were started
	// with; the inverse starts them again.
	stops, after := r.unitSteps()
	defer r.watch(ctx, append(slices.Clone(stops), after...))()
	stopped, err := r.runSteps(ctx, stops)
	if err == nil {
		err = r.connected(ctx, 0)
	}
	if err != nil {
		return r.failedBefore(err, errors.Join(r.undoSteps(stopped), r.reconnect(context.WithoutCancel(ctx)), r.discard()))
	}
	if err := errors.Join(ctx.Err(), r.guardMounts()); err != nil {
		return r.failedBefore(err, errors.Join(r.undoSteps(stopped), r.discard()))
	}
	defer r.quiesce()()
	r.ev.progress("committing", 0, 0, "", "")
	began := time.Now()
	swap, err := r.tx.Commit(ctx)
	r.step("commit", fmt.Sprintf("%d paths", len(r.p.delta.Entries)), "revert", began, err)
	if errors.Is(err, change.ErrNeedsPerson) {
		// Neither tree is whole: what was recorded stays for the recovery.
		r.report.Result, r.report.Error = "failed", err.Error()
		return err
	}
	if err != nil {
		return r.failedBefore(err, errors.Join(r.undoSteps(stopped), r.discard()))
	}
	r.report.SwapUSec = swap.Microseconds()
	// From here on an interrupt no longer stops the run: half of the restarts is worse than all.
	defer r.ev.goOn(ctx, "past the commit point")()
	return r.finish(context.WithoutCancel(ctx), stopped, after)
}

// prepare does all that can fail without having changed anything.
func (r *run) prepare(ctx context.Context) error {
	total, began := r.p.delta.Bytes, time.Now()
	r.ev.progress("staging", 0, total, "bytes", "")
	if err := r.p.src.take(r.tx); err != nil {
		return err
	}
	if r.p.takes {
		r.tx.TakeSource()
	}
	err := r.tx.Stage(ctx, r.p.delta, r.p.contents(), func(files, bytes int64) {
		r.ev.bytes("staging", files, bytes, total)
	})
	if err != nil {
		return err
	}
	r.tellPresets(began)
	dir, err := r.s.stateDir()
	if err != nil {
		return err
	}
	err = catalog.WriteBase(r.s.k, dir, basePrefix+r.tx.ID(), r.p.recordsWhole(), r.p.record())
	if err = errors.Join(err, dir.Close(), r.writeClaim()); err != nil {
		return err
	}
	if err := r.validate(ctx); err != nil {
		return err
	}
	if err := r.tx.Prepare(ctx, r.p.plan); err != nil {
		return err
	}
	return r.snapshot()
}

// discard removes the staging and what was recorded for it.
func (r *run) discard() error {
	id := r.tx.ID()
	if err := r.tx.Discard(); err != nil {
		return err
	}
	r.s.settleTrust()
	return r.s.dropBases(func(b string) bool { return b == id })
}

// failedBefore ends a run that has not committed; cleanup is what went wrong
// while it was taken back.
func (r *run) failedBefore(err, cleanup error) error {
	r.report.Result = "failed"
	if errors.Is(err, context.Canceled) {
		r.report.Result = "undone"
		err = change.WithHint(fmt.Errorf("interrupted before the commit point: %w", ErrNothingCommitted), "run the same command again")
	}
	if cleanup != nil {
		r.report.Result = "failed"
		err = change.WithHint(fmt.Errorf("%w; and it was not taken back whole: %w", err, cleanup), "run: liveupd recover")
	}
	r.report.Error = err.Error()
	return err
}

// step records and tells one step that is no unit job.
func (r *run) step(do, target, undo string, began time.Time, err error) {
	res := change.StepResult{
		MessageType: "step", Step: change.Step{Do: do, Target: target, Undo: undo},
		Result: "done", USec: time.Since(began).Microseconds(),
	}
	for _, st := range r.p.plan.Steps {
		if st.Do == do && (st.Target == target || do == "commit" || do == "verify") {
			res.Step = st
		}
	}
	if err != nil {
		res.Result, res.Detail = "failed", err.Error()
	}
	r.report.Steps = append(r.report.Steps, res)
	r.ev.emit(res)
}

// validate runs the plan's checks on the staged view.
func (r *run) validate(ctx context.Context) error {
	if len(r.p.plan.Checks) == 0 {
		return nil
	}
	var uppers []nsmount.ViewUpper
	staged, err := r.tx.Uppers()
	if err != nil {
		return err
	}
	for _, u := range staged {
		defer u.Up.Close()
		defer u.Work.Close()
		uppers = append(uppers, nsmount.ViewUpper{Mount: u.Mount, Up: u.Up, Work: u.Work})
	}
	view, err := nsmount.OpenView(ctx, r.s.k, nsmount.ViewOptions{Root: r.s.root, Uppers: uppers})
	if unsupported, ok := errors.AsType[*sys.UnsupportedError](err); ok {
		for _, c := range r.p.plan.Checks {
			r.s.warnings = append(r.s.warnings, fmt.Sprintf("%s was not validated: %v", c.Path, unsupported))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot open the staged view: %w", err)
	}
	defer view.Close()
	for i, c := range r.p.plan.Checks {
		r.ev.progress("checking", int64(i), int64(len(r.p.plan.Checks)), "checks", strings.Join(c.Argv, " "))
		began := time.Now()
		deadline, cancel := context.WithTimeout(ctx, checkTimeout)
		out, err := view.Run(deadline, c.Argv)
		if err != nil && deadline.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("it did not end within %s", checkTimeout)
		}
		cancel()
		r.step("check", strings.Join(c.Argv, " "), "", began, err)
		if err != nil {
			return fmt.Errorf("cannot accept the new %s: %s refuses it: %w%s",
				c.Path, strings.Join(c.Argv, " "), err, quoteOutput(about(c, out)))
		}
	}
	return nil
}

// about is what a validator says of what it was asked about: systemd-analyze tells of every
// unit that it meets.
func about(c change.Check, out []byte) []byte {
	if c.Argv[0] != "systemd-analyze" {
		return out
	}
	var lines []byte
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte(c.Unit)) || bytes.Contains(line, []byte(c.Path)) {
			lines = append(lines, line...)
		}
	}
	if len(lines) == 0 {
		return out
	}
	return lines
}

// checkTimeout is how long one validator may take.
const checkTimeout = 2 * time.Minute

func quoteOutput(out []byte) string {
	text := strings.TrimSpace(string(out))
	if text == "" {
		return ""
	}
	return "\n  " + strings.ReplaceAll(text, "\n", "\n  ")
}
