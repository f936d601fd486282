package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// endedWithout says that the worker told nothing, and how it ended where that is known; in
// one line, for it becomes a warning.
func endedWithout(how error) error {
	if how == nil {
		return ErrWorkerGone
	}
	return fmt.Errorf("%w: %w", ErrWorkerGone, how)
}

// killed says what became of a run whose worker was killed: by now systemd has
// run the recovery, and the store knows.
func killed(req Request, before map[string]string, cause error) (any, error) {
	verb := req.Verb
	list, err := lookUp(req)
	if err != nil {
		return nil, change.WithHint(errors.Join(cause, err), "run: liveupd recover")
	}
	if g, cutOff := unfinished(list); cutOff {
		return nil, change.WithHint(fmt.Errorf("%w: %w; transaction %s is %s", change.ErrNeedsPerson, cause, g.ID, g.State), "run: liveupd recover")
	}
	if before == nil && commits(req) {
		return nil, change.WithHint(cause, "see what became of it: liveupd status")
	}
	if verb == "rollback" {
		return killedRollback(list, before, req.ID, cause)
	}
	return killedCommit(verb, list, before, cause)
}

// killedCommit tells of a transaction that was not there before, by its name and not by the
// time: the clock may have been set meanwhile.
func killedCommit(verb string, list []change.Generation, before map[string]string, cause error) (any, error) {
	for _, g := range list {
		if _, old := before[g.ID]; old || before == nil {
			continue
		}
		if g.State == "verified" {
			report := newReport(map[string]string{"verify": "repair"}[verb])
			if report.Verb == "" {
				report.Verb = verb
			}
			report.ID, report.PlanID, report.Result, report.HostAction = g.ID, g.PlanID, "done", g.HostAction
			if g.HostAction > change.ActionNone {
				report.Result = "pending"
			}
			report.Warnings = append(report.Warnings, cause.Error()+"; the recovery finished its work")
			return report, nil
		}
		if g.State == "rolled-back" {
			return nil, fmt.Errorf("%w; everything was %w", cause, ErrRolledBack)
		}
	}
	return nil, fmt.Errorf("%w: %w", cause, ErrNothingCommitted)
}

// lookUp lists the transactions. The service of unattended runs may not open the root's
// file systems itself.
func lookUp(req Request) ([]change.Generation, error) {
	look := Request{Verb: "history", Root: req.Root, Unattended: req.Unattended}
	run := (&Engine{}).Run
	if outlivesCaller(look) {
		run = Spawn
	}
	result, err := run(context.Background(), look, Events{})
	list, _ := result.([]change.Generation)
	return list, err
}

// commits tells whether a request may leave a transaction, or take one back.
func commits(req Request) bool {
	return slices.Contains([]string{"apply", "exec", "verify", "rollback"}, req.Verb) && !req.PlanOnly
}

// earlier is what each transaction was before a request that changes something.
func earlier(req Request) map[string]string {
	if !commits(req) {
		return nil
	}
	list, err := lookUp(req)
	if err != nil {
		return nil // the worker says what is wrong with the store
	}
	out := map[string]string{}
	for _, g := range list {
		out[g.ID] = g.State
	}
	return out
}

// killedRollback tells how far a rollback had come, of what was committed before.
func killedRollback(list []change.Generation, before map[string]string, target string, cause error) (any, error) {
	report := newReport("rollback")
	for _, g := range list {
		if g.State == "rolled-back" && before[g.ID] == "verified" {
			report.ID, report.PlanID = g.ID, g.PlanID
		}
	}
	if report.ID == "" {
		return nil, fmt.Errorf("%w: %w", cause, ErrNothingCommitted)
	}
	if target != "" && report.ID != target {
		report.Result, report.Error = "failed", cause.Error()
		return report, change.WithHint(fmt.Errorf("%w; everything down to %s was taken back, and not %s", cause, report.ID, target),
			"run the same command again")
	}
	report.Result = "done"
	report.Warnings = append(report.Warnings, cause.Error()+"; the recovery finished taking "+report.ID+" back")
	return report, nil
}
