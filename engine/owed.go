package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/restart"
)

// What is owed to units. When a tree is about to go back, the unit steps that
// have to follow are recorded in the transaction first, with this result; each
// gets a record of its own when it has been carried out. A run that is killed in
// between thus leaves a list that recovery can finish.
const promised = "planned"

// promise records that steps will be carried out.
func (r *run) promise(steps []change.Step) error {
	for _, st := range steps {
		if err := r.record(change.StepResult{Step: st, Result: promised}); err != nil {
			return err
		}
	}
	return nil
}

// owed lists the promised steps that have not been carried out, in order.
func owed(records []change.StepResult) []change.Step {
	var out []change.Step
	for _, rec := range records {
		switch rec.Result {
		case promised:
			out = append(out, rec.Step)
		case "done", "skipped", "failed", "undone":
			if i := slices.Index(out, rec.Step); i >= 0 {
				out = slices.Delete(out, i, i+1)
			}
		}
	}
	return out
}

// carriedOut lists the recorded steps that changed something.
func carriedOut(records []change.StepResult) []change.StepResult {
	var out []change.StepResult
	for _, rec := range records {
		if rec.Result == "done" || rec.Result == "failed" {
			out = append(out, rec)
		}
	}
	return out
}

// debt is what a transaction owes to the units of the running system.
type debt struct {
	id      string
	records []change.StepResult
}

// findDebt reads the records of the transaction id, where they are of this
// boot: after another boot every unit has started anew.
func (s *session) findDebt(id string) (debt, error) {
	d := debt{id: id}
	if !s.req.Live() || !systemd.Booted() {
		return d, nil
	}
	tx, err := s.store.Load(id)
	if err != nil {
		// Recovery itself says what is wrong with it.
		return d, nil
	}
	defer tx.Close()
	if !tx.SameBoot() {
		return d, nil
	}
	d.records, err = tx.Steps()
	return d, err
}

// steps are what has to be done now that the tree is the old one: what was
// promised, or else the inverse of what had been done before the commit.
func (d debt) steps() []change.Step {
	if slices.ContainsFunc(d.records, func(r change.StepResult) bool { return r.Result == promised }) {
		return owed(d.records)
	}
	return restart.Inverse(carriedOut(d.records))
}

// pay carries out what is owed. The transaction may be gone.
func (s *session) pay(ctx context.Context, d debt, ev Events, report *change.Report) error {
	steps := d.steps()
	if len(steps) == 0 {
		return nil
	}
	r := &run{s: s, ev: ev, p: &planned{plan: &change.Plan{}, delta: &change.Delta{}}, report: report, of: d.id}
	if tx, err := s.store.Load(d.id); err == nil {
		defer tx.Close()
		r.tx = tx
	}
	defer r.watch(ctx, steps)()
	if r.watching != nil {
		r.watching.undoing = true
	}
	_, err := r.runSteps(context.WithoutCancel(ctx), steps)
	if err = errors.Join(err, r.reconnect(context.WithoutCancel(ctx))); err != nil {
		return change.WithHint(fmt.Errorf("%w: the old files are back, but %w", change.ErrNeedsPerson, err),
			"see: systemctl status, then start the unit by hand")
	}
	report.ID, report.Result = d.id, "done"
	return nil
}

// lateDebt is that of the newest transaction, where its tree went back and its
// units were not served yet.
func (s *session) lateDebt() (debt, bool, error) {
	list, err := s.store.List()
	if err != nil || len(list) == 0 || !s.req.Live() {
		return debt{}, false, err
	}
	for _, g := range list {
		if g.State != "rolled-back" {
			continue
		}
		d, err := s.findDebt(g.ID)
		return d, err == nil && len(owed(d.records)) > 0, err
	}
	return debt{}, false, nil
}
