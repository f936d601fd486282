package unattended

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// matches tells whether one of the patterns is for a unit, by its key: a user's unit also by its own name.
func matches(patterns []string, key string) bool {
	_, name := change.SplitUnitKey(key)
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		whole, err2 := path.Match(p, key)
		return err == nil && ok || err2 == nil && whole
	})
}

// deferred does what earlier runs put off and what may be done now. The engine judges each unit
// anew: it knows the rules, and what a unit no longer needs.
func (r *run) deferred(ctx context.Context) error {
	groups := r.groups()
	for i, g := range groups {
		if !Open(r.cfg.Windows(), r.h.Now()) {
			return nil
		}
		var units []string
		for _, w := range r.waiting(ctx) {
			name := w.Key()
			if len(groups) == 1 || matches(g.units, name) && !r.inEarlier(i, name) || i == 0 && !r.inEarlier(len(groups), name) {
				units = append(units, name)
			}
		}
		if len(units) == 0 {
			continue
		}
		if err := r.phase(phaseDeferred); err != nil {
			return r.fails(err)
		}
		before := len(r.n.Units)
		if err := r.restart(ctx, units, len(groups)); err != nil {
			if errors.Is(err, engine.ErrLeft) {
				return err
			}
			return r.fails(change.WithHint(fmt.Errorf("what was put off could not be done: %w", err),
				"the update that it belongs to stands; to take it back: liveupd rollback"))
		}
		if r.n.Error != "" {
			return errors.New(r.n.Error) // the pre hook refused
		}
		if len(r.n.Units) == before {
			continue
		}
		if r.n.Result == "" || r.n.Result == change.NightNothing {
			r.n.Result = change.NightDone
		}
		if err := r.canary(context.WithoutCancel(ctx), g); err != nil {
			return r.fails(fmt.Errorf("after what had been put off was restarted: %w", err))
		}
	}
	return nil
}

// agreeRestart is asked before units that were put off are restarted.
func (r *run) agreeRestart(ctx context.Context, p *change.Plan) bool {
	acts := slices.ContainsFunc(p.Units, func(u change.UnitPlan) bool { return u.Action != change.ActionDefer })
	if !acts || !Open(r.cfg.Windows(), r.h.Now()) {
		return false
	}
	if err := r.pre(ctx, p); err != nil {
		_ = r.fails(err)
		return false
	}
	return true
}
