package engine

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/writable"
)

// repair puts back what verify calls damage, as an ordinary transaction: it is
// planned, staged, committed, followed by restarts, and can be rolled back. The
// content comes from where its digest is the record's: a kept generation, another
// path of the root, the source. What comes from nowhere is named, and stays.
func (e *Engine) repair(ctx context.Context, req Request, ev Events) (any, error) {
	how := readWrite
	if req.PlanOnly {
		how = cacheOnly
	}
	s, err := openSession(e, req, how)
	if err != nil {
		return nil, err
	}
	report := newReport("repair")
	defer s.leave(report)
	if req.PlanOnly {
		err = s.noteUnfinished()
	} else {
		err = s.recoverFirst(ctx, ev, report)
	}
	if err != nil {
		return nil, err
	}
	var damage []change.Damage
	base, seen, err := s.look(ctx, ev, func(d change.Damage) {
		if d.Owner == "damage" {
			damage = append(damage, d)
		}
	})
	if err != nil {
		return nil, err
	}
	ev.emit(seen)
	p, lost, err := s.planRepair(ctx, base, seen.Generation, damage, ev)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if req.PlanOnly {
		return p.plan, lost.err()
	}
	report.PlanID = p.plan.ID
	ev.emit(p.plan)
	if p.plan.Empty() {
		report.Result = "nothing-to-do"
		if err := lost.err(); err != nil {
			report.Result, report.Error = "failed", err.Error()
			return report, err
		}
		return report, nil
	}
	if ev.Confirm != nil && !ev.Confirm(p.plan) {
		return nil, ErrDeclined
	}
	r := &run{s: s, ev: ev, p: p, report: report}
	if err := r.carryOut(ctx); err != nil {
		return report, err
	}
	return report, lost.err()
}

// contents is where the entries of the Delta are read from.
func (p *planned) contents() *sys.FD {
	if p.src == nil {
		return p.root
	}
	return p.src.Root()
}

// record is what the root should hold once p is committed: a repair makes the
// root what was recorded before.
func (p *planned) record() iter.Seq2[string, *change.Node] {
	if p.records != nil {
		return p.records
	}
	if p.result == nil {
		return p.base.All()
	}
	return p.result.BaseEntries(p.base)
}

// recordsWhole tells whether what is recorded is all of a system: a part of one that is
// put upon a whole one leaves it whole.
func (p *planned) recordsWhole() bool {
	return p.base.Whole() || p.result != nil && p.src != nil && p.src.Whole()
}

// lostPaths are damaged paths that cannot be put back, with the reason.
type lostPaths []change.Damage

func (l lostPaths) err() error {
	if len(l) == 0 {
		return nil
	}
	slices.SortFunc(l, func(a, b change.Damage) int { return strings.Compare(a.Path, b.Path) })
	const shown = 20
	var text strings.Builder
	for _, d := range l[:min(len(l), shown)] {
		fmt.Fprintf(&text, "\n  %s: %s", d.Path, d.Detail)
	}
	if more := len(l) - shown; more > 0 {
		fmt.Fprintf(&text, "\n  and %d more", more)
	}
	return change.WithHint(fmt.Errorf("cannot repair %d damaged paths:%s", len(l), text.String()),
		"name the tree that the update came from: liveupd verify --repair --source SPEC")
}

// planRepair makes the plan of a repair.
func (s *session) planRepair(ctx context.Context, base *catalog.Base, id string, damage []change.Damage, ev Events) (_ *planned, lost lostPaths, err error) {
	p := &planned{base: base, root: s.vols[0].Dir}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	list, err := s.store.List()
	if err != nil {
		return nil, nil, err
	}
	var of change.Generation
	if i := slices.IndexFunc(list, func(g change.Generation) bool { return g.ID == id }); i >= 0 {
		of = list[i]
	}
	rules, err := writable.New(s.rulesOptions(base.Whole(), nil, nil, base))
	if err != nil {
		return nil, nil, err
	}
	m := &mender{s: s, base: base, class: rules.Class, entries: map[string]*change.Entry{}, covered: s.root.Covered()}
	defer m.close()
	var warnings []string
	if len(damage) > 0 {
		if p.src, err = s.mendFrom(ctx, of); err != nil {
			if s.req.Source != "" {
				return nil, nil, err
			}
			warnings = append(warnings, fmt.Sprintf("the source of the update is not at hand: %v", err))
			p.src, err = nil, nil
		}
	}
	m.src = p.src
	if err := m.keep(list); err != nil {
		return nil, nil, err
	}
	if p.delta, err = m.delta(ctx, damage); err != nil {
		return nil, nil, err
	}
	p.delta.Warnings = append(p.delta.Warnings, warnings...)
	if err := s.decide(ctx, p, p.contents(), change.Policy{Max: s.req.Max, AllowRemovals: true}, ev); err != nil {
		return nil, nil, err
	}
	p.plan.Source, p.plan.Name, p.plan.Version, p.plan.Sequence = repairSource+id, of.Name, of.Version, of.Sequence
	for _, d := range m.lost {
		p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf("%s stays damaged: %s", d.Path, d.Detail))
	}
	return p, m.lost, nil
}
