package planner

import (
	"slices"

	"github.com/liveupd/liveupd/change"
)

// needers are the settings by which a unit keeps another with StopWhenUnneeded= running
// (UNIT_ATOM_PINS_STOP_WHEN_UNNEEDED of src/core/unit.c).
var needers = append(slices.Concat(pullsHard, pullsSoft), "Requisite", "RequisiteOverridable")

// keeps tells whether a definition of the unit d keeps u running.
func (p *planning) keeps(d, u *unit, def *change.Unit) bool {
	return slices.ContainsFunc(dependencies(def, d.name, needers...), func(n string) bool { return p.named(n) == u })
}

// unneededNow finds the units that the manager stops as soon as it has read the new
// definitions: StopWhenUnneeded= is new, or nothing that runs needs them any more.
func (g *graph) unneededNow() {
	p := g.p
	p.each(func(u *unit) {
		if v := p.verdicts[u.name]; u.old == nil || u.new == nil || u.new.Masked || u.runtime() || v != nil && (v.stop || v.start) {
			return
		}
		const key = "StopWhenUnneeded"
		if !yes(last(u.new, "Unit", key)) {
			return
		}
		why := change.Reason{}
		if !yes(last(u.old, "Unit", key)) {
			why = change.Reason{Kind: "unit-file", Path: extraFile(u.new, u.old, "Unit", key), Detail: "[Unit] StopWhenUnneeded= is new, and nothing that runs needs this one"}
		}
		var told []string // by the manager, what no file says among it
		if u.state != nil {
			told = edgeNeeds.of(u)
		}
		needed := false
		p.each(func(d *unit) {
			if d == u || needed || !p.runs(d.name) {
				return
			}
			was := p.keeps(d, u, d.old)
			is := was
			if d.new != nil && !d.new.Masked && !d.runtime() {
				is = p.keeps(d, u, d.new)
			}
			switch {
			case is, !was && slices.Contains(told, d.name):
				needed = true
			case was:
				why = change.Reason{Kind: "propagated", Unit: d.name, Detail: "it needs this one no more, and nothing else does (StopWhenUnneeded=)"}
			}
		})
		if needed || why.Kind == "" {
			return
		}
		if v := p.verdicts[u.name]; v != nil {
			v.rung, v.stopStart = change.ActionNone, false // it would be stopped before its restart, or in it
		}
		g.stopFor(u.name, why)
	})
}
