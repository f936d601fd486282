package planner

import (
	"maps"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// A start, and the start in a restart, brings what the unit wants or requires
// and what does not run (UNIT_ATOM_PULL_IN_START of src/core/transaction.c), and
// stops what it conflicts with. A job for a unit that runs already is dropped
// from the transaction, and what only that one would have pulled in with it.

// pulls are the settings that bring another unit up; the first ones fail
// together with it.
var (
	pullsHard = []string{"Requires", "BindsTo", "BindTo", "RequiresOverridable"}
	pullsSoft = []string{"Wants", "Upholds"}
)

// starts tells whether the verdict's job starts the unit, or starts it anew.
func (v *verdict) starts() bool {
	return !v.deferred && !v.stop && (v.start || v.stopStart || v.rung >= change.ActionRestart)
}

// pulled lists what a start of the unit brings up with it: hard and soft.
func (p *planning) pulled(name string) (hard, soft []string) {
	def := lookup(p.in.New, name)
	hard = dependencies(def, name, pullsHard...)
	soft = dependencies(def, name, pullsSoft...)
	if def != nil && kindOf(name) == "service" {
		for _, s := range def.Settings {
			if s.Section == "Service" && s.Key == "Sockets" {
				soft = append(soft, unitNames(s.Value, name)...)
			}
		}
	}
	return hard, soft
}

// conflicts lists the running units that a start of the unit stops.
func (g *graph) conflicts(name string) []string {
	set := map[string]bool{}
	for _, n := range dependencies(lookup(g.p.in.New, name), name, "Conflicts") {
		if d := g.p.named(n); d != nil && d.name != name {
			set[d.name] = true
		}
	}
	g.p.each(func(u *unit) {
		if u.name != name && u.new != nil && slices.Contains(dependencies(u.new, u.name, "Conflicts"), name) {
			set[u.name] = true
		}
	})
	return slices.Sorted(maps.Keys(set))
}

// runs tells whether a unit runs and will.
func (p *planning) runs(name string) bool {
	u := p.named(name)
	if u == nil {
		return false
	}
	v := p.verdicts[u.name]
	return v == nil || !v.stop || v.deferred
}

// cannotStart tells why systemd would refuse the unit's start, or what the start
// would stop that must not be, "" where there is nothing against it.
func (g *graph) cannotStart(name string) string {
	seen := map[string]bool{}
	queue := []string{name}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		for _, n := range g.conflicts(from) {
			if why := g.p.barred(n); why != "" {
				return "its start would stop " + n + ": " + why
			}
		}
		hard, soft := g.p.pulled(from)
		for _, n := range hard {
			if why := g.p.missing(n); why != "" && from == name {
				return "it requires " + n + ", which " + why
			}
		}
		for _, n := range append(hard, soft...) {
			if !seen[n] && g.p.named(n) == nil && g.p.startable(n) != nil {
				seen[n] = true
				queue = append(queue, n)
			}
		}
	}
	return ""
}

// missing tells why a unit that does not run cannot be started, "" where it can
// or where only the manager knows.
func (p *planning) missing(name string) string {
	switch kindOf(name) {
	case "service", "socket", "target", "timer", "path":
	default:
		return "" // generated, or made by the manager as it is needed
	}
	def := lookup(p.in.New, name)
	switch {
	case def != nil && def.Masked:
		return "is masked"
	case p.named(name) != nil || def != nil && def.Fragment != "":
		return ""
	case p.static || p.facts.Units[name] != nil:
		return ""
	}
	return "is not there"
}

// startable is the definition that a unit would be started from, nil where it
// would not.
func (p *planning) startable(name string) *change.Unit {
	if isTemplate(name) || kindOf(name) == "device" {
		return nil
	}
	def := lookup(p.in.New, name)
	if def == nil || def.Masked || def.Fragment == "" {
		return nil
	}
	return def
}

// pull notes what the starts and restarts of the plan bring up and stop.
func (g *graph) pull() {
	p := g.p
	var queue []string
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		if p.verdicts[name].starts() {
			queue = append(queue, name)
		}
	}
	done := map[string]bool{}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		if done[from] {
			continue
		}
		done[from] = true
		verb := "restart"
		if p.verdicts[from].start {
			verb = "start"
		}
		for _, n := range g.conflicts(from) {
			g.stopAlong(n, from, "its "+verb+" stops this one: they conflict")
		}
		hard, soft := p.pulled(from)
		for _, n := range append(hard, soft...) {
			def := p.startable(n)
			if def == nil || p.runs(n) || p.named(n) != nil {
				continue
			}
			if kindOf(def.Name) != kindOf(n) {
				continue
			}
			if !isTemplate(def.Name) {
				n = def.Name
			}
			v := p.verdict(n)
			if v.start && !v.deferred {
				continue
			}
			v.start, v.propagated, v.deferred = true, true, false
			v.reasons = append(v.reasons, change.Reason{Kind: "propagated", Unit: from, Detail: "its " + verb + " starts this one"})
			queue = append(queue, n)
		}
	}
}

// reloaded notes what the manager does as soon as it has read new definitions:
// it starts what a running unit upholds, and stops a unit that is bound to what
// does not run.
func (g *graph) reloaded() {
	p := g.p
	p.each(func(u *unit) {
		if v := p.verdicts[u.name]; u.old == nil || u.new == nil || u.new.Masked || u.runtime() || v != nil && v.stop {
			return
		}
		old := dependencies(u.old, u.name, "Upholds")
		for _, n := range dependencies(u.new, u.name, "Upholds") {
			if slices.Contains(old, n) || p.named(n) != nil || p.startable(n) == nil {
				continue
			}
			if v := p.verdict(n); !v.start || v.deferred {
				v.start, v.propagated, v.deferred = true, true, false
				v.reasons = append(v.reasons, change.Reason{Kind: "propagated", Unit: u.name, Detail: "it upholds this one now"})
			}
		}
		if v := p.verdicts[u.name]; v != nil && v.starts() {
			return // its start brings up what it is bound to
		}
		old = dependencies(u.old, u.name, "BindsTo", "BindTo")
		for _, n := range dependencies(u.new, u.name, "BindsTo", "BindTo") {
			if w := p.verdicts[n]; !slices.Contains(old, n) && p.named(n) == nil && (w == nil || !w.starts()) && kindOf(n) != "device" {
				g.stopAlong(u.name, n, "it is bound to that now, which does not run")
			}
		}
	})
}

// stopAlong notes that a unit is stopped in the course of another one's job, and
// what its stop takes along.
func (g *graph) stopAlong(name, from, detail string) {
	g.stopFor(name, change.Reason{Kind: "propagated", Unit: from, Detail: detail})
}

// stopFor is stopAlong for any reason.
func (g *graph) stopFor(name string, r change.Reason) {
	p := g.p
	v := p.verdict(name)
	if v.stop && !v.deferred || v.starts() && !v.propagated {
		return
	}
	v.stop, v.propagated, v.deferred = true, true, false
	v.reasons = append(v.reasons, r)
	for _, r := range g.closure(&verdict{unit: name, stop: true}) {
		p.carry(&verdict{unit: name, stop: true}, r)
	}
}

// unneeded finds the units with StopWhenUnneeded= that the stops leave without a
// unit that needs them.
func (g *graph) unneeded() {
	p := g.p
	for again := true; again; {
		again = false
		p.each(func(u *unit) {
			if v := p.verdicts[u.name]; u.old == nil || !yes(last(u.old, "Unit", "StopWhenUnneeded")) || v != nil && (v.stop || v.starts()) {
				return
			}
			gone := ""
			needed := false
			p.each(func(d *unit) {
				if d.name == u.name || !p.keeps(d, u, d.old) {
					return
				}
				if p.runs(d.name) {
					needed = true
				} else {
					gone = d.name
				}
			})
			if gone != "" && !needed {
				g.stopAlong(u.name, gone, "it stops, and nothing else needs this one (StopWhenUnneeded=)")
				again = true
			}
		})
	}
}
