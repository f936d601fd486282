package unattended

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// takeUp goes on with a run that was cut off, or that has rebooted the machine. settled tells
// that it has come to its end; else nothing of it stands, and a run may begin anew.
func (r *run) takeUp(ctx context.Context) (settled bool, err error) {
	if r.p == nil || r.p.Phase == phaseWaiting {
		r.p = nil
		return false, nil
	}
	p, fresh := r.p, r.n
	r.n = p.Night
	for _, w := range fresh.Warnings {
		r.warn(w)
	}
	sameBoot := p.Boot == r.h.Boot()
	r.n.Resumed = "it was cut off (" + p.Phase + ")"
	if p.Phase == phaseReboot {
		r.n.Resumed = "the machine was rebooted"
		if sameBoot {
			// The reboot was called off, or has not come yet: nothing of the run is left to do.
			r.n, r.p = fresh, nil
			return false, nil
		}
	}
	r.log(MessageResumed, "unattended run is taken up: "+r.n.Resumed, map[string]string{"LIVEUPD_PHASE": p.Phase})
	p.Boot = r.h.Boot()
	r.awaitWorker(ctx)
	if err := r.recover(ctx); err != nil {
		if errors.Is(err, engine.ErrLeft) {
			return false, err
		}
		return true, r.fails(fmt.Errorf("what a run that was cut off left cannot be recovered: %w", err))
	}
	tx, err := r.transaction(ctx)
	if err != nil {
		return true, r.fails(err)
	}
	settled, err = r.goOn(ctx, p, tx)
	if !settled && err == nil {
		// Nothing has changed; whoever prepared for it learns that.
		if p.Pre {
			r.n.Result, r.n.Reason = change.NightUndone, r.n.Resumed
			r.tell(ctx)
		}
		fresh.Resumed = r.n.Resumed + ", and had changed nothing"
		r.n, r.p = fresh, nil
	}
	return settled, err
}

// goOn takes a run up where it was, with what became of its transaction.
func (r *run) goOn(ctx context.Context, p *Progress, tx *change.Generation) (settled bool, err error) {
	gone := tx != nil && tx.State == "rolled-back"
	stands := tx != nil && tx.State == "verified"
	if stands || gone {
		r.n.ID = tx.ID
	}
	switch p.Phase {
	case phaseReboot:
		r.n.Reboot, r.n.HostAction = 0, change.ActionNone
		if len(r.u.Canary) == 0 {
			return true, nil
		}
		if err := r.canary(context.WithoutCancel(ctx), group{canary: r.u.Canary, wait: r.u.Settle.Or(defaultSettle)}); err != nil {
			err = fmt.Errorf("after the reboot: %w", err)
			if !stands {
				return true, r.fails(err)
			}
			return true, r.takeBack(ctx, err)
		}
		return true, nil
	case phaseRollback:
		cause := errors.New(p.Cause)
		if stands {
			return true, r.takeBack(ctx, cause)
		}
		return true, r.fails(fmt.Errorf("%w; everything was %w", cause, engine.ErrRolledBack))
	case phaseDeferred:
		if r.n.ID == "" {
			return false, nil
		}
		return true, r.deferred(ctx)
	}
	switch {
	case gone:
		err := fmt.Errorf("%s; everything was %w", r.n.Resumed, engine.ErrRolledBack)
		r.backOff(err)
		return true, r.fails(err)
	case !stands:
		return false, nil
	}
	r.n.Result = change.NightDone
	if err := r.committed(ctx, p.Group, p.Phase == phaseGroup); err != nil {
		return true, err
	}
	return true, nil
}

// awaitWorker waits for a worker that runs on without its caller, and ends one that is stopped.
func (r *run) awaitWorker(ctx context.Context) {
	unit := r.p.Worker
	if unit == "" {
		return
	}
	var since time.Time
	for alive, _ := r.h.Alive(ctx, unit); alive; alive, _ = r.h.Alive(ctx, unit) {
		r.h.Status("waiting for " + unit)
		var note string
		if since, note = r.watch(ctx, unit, since); note != "" {
			r.warn(note)
		}
		if r.h.Sleep(ctx, look) != nil {
			return
		}
	}
}

// recover has the engine finish or undo what was cut off.
func (r *run) recover(ctx context.Context) error {
	req := r.request("recover")
	req.IfUnfinished, req.NoPrompt = true, true
	return r.patiently(ctx, func() error {
		result, _, err := r.do(ctx, req, engine.Events{}, false)
		r.note(result)
		return err
	})
}

// transaction is the one that the run began, nil where it had not come to that.
func (r *run) transaction(ctx context.Context) (*change.Generation, error) {
	list, err := r.h.Look(ctx, engine.Request{Verb: "history", Unattended: true})
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].ID == r.n.ID || r.n.ID == "" && list[i].ID > r.p.Before {
			return &list[i], nil
		}
	}
	return nil, nil
}
