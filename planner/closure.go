package planner

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// systemd's transaction for a stop or restart takes along what Requires,
// Requisite, BindsTo or PartOf leads to it (src/core/transaction.c,
// transaction_add_job_and_dependencies). PropagatesStopTo= passes a stop on,
// and since systemd 254 it stops the other unit on a restart too, unless that
// has a job of its own. A reload reaches PropagatesReloadTo= alone.

// gracefulStop is the first version in which a restart stops what
// PropagatesStopTo= names.
const gracefulStop = 254

// reachedFrom is one step of a closure: who is reached, and from whom.
type reachedFrom struct {
	unit, from string
	stop       bool // by a stop, whatever it began with
}

// propagate is step 9 of the package comment.
func (p *planning) propagate() {
	g := p.graph()
	for again := true; again; {
		again = false
		for _, v := range p.direct(change.ActionReload) {
			if why := g.forbidden(v); why != "" {
				v.deferred = true
				v.explain(why)
				again = true
			}
		}
	}
	for _, v := range p.direct(change.ActionRestart) {
		for _, r := range g.closure(v) {
			p.carry(v, r)
		}
	}
	g.reloaded()
	g.unneededNow()
	g.pull()
	for _, v := range p.direct(change.ActionReload) {
		if v.needs() != change.ActionReload || v.start {
			continue
		}
		for _, r := range g.reloadReach(v.unit) {
			d := p.running[r.unit]
			if w := p.verdicts[r.unit]; d == nil || !d.canReload() || w != nil {
				continue
			}
			w := p.verdict(r.unit)
			w.rung, w.propagated = change.ActionReload, true
			w.reasons = []change.Reason{{Kind: "propagated", Unit: r.from, Detail: "its reload reloads this one"}}
		}
	}
	g.unneeded()
}

// forbidden tells why a unit's own job must not be sent, for what it would take along.
func (g *graph) forbidden(v *verdict) string {
	p := g.p
	if v.needs() >= change.ActionRestart && !v.start {
		for _, r := range g.closure(v) {
			if why := p.barred(r.unit); why != "" {
				return "it would take " + r.unit + " along: " + why
			}
		}
	}
	if v.starts() {
		return g.cannotStart(v.unit)
	}
	return ""
}

// direct are the verdicts that get a job of their own, of at least one rung.
func (p *planning) direct(rung change.Action) []*verdict {
	var out []*verdict
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		v := p.verdicts[name]
		if !v.deferred && !v.propagated && v.needs() >= rung {
			out = append(out, v)
		}
	}
	return out
}

// carry notes that one unit's job takes another along.
func (p *planning) carry(origin *verdict, r reachedFrom) {
	v := p.verdict(r.unit)
	if !v.deferred && !v.propagated && (v.needs() >= change.ActionRestart || v.start) {
		return // it has a job of its own
	}
	detail := "its restart restarts this one"
	switch {
	case origin.stop:
		detail = "it stops, and this one needs it"
		v.stop = true
	case r.stop:
		detail = "its restart stops this one"
		v.stop = true
	}
	v.deferred, v.propagated = false, true
	v.rung = change.ActionRestart
	v.stopStart = v.stopStart || origin.stopStart
	v.reasons = append(v.reasons, change.Reason{Kind: "propagated", Unit: r.from, Detail: detail})
}

// barred tells why a unit must not be taken along, "" where it may be.
func (p *planning) barred(name string) string {
	u := p.running[name]
	if u == nil {
		return ""
	}
	if why := p.protected(u); why != "" {
		return why
	}
	if u.wish("X-Liveupd-On-Change") == "defer" {
		return "its X-Liveupd-On-Change= asks not to be interrupted"
	}
	does, why := p.treat(u)
	switch does {
	case bearsNothing, bearsReboot, bearsReload:
		return why
	case bearsIdle:
		if v := p.verdicts[name]; !p.static && (v == nil || !idle(v)) {
			return why
		}
	}
	return ""
}

// closure is all that a unit's stop or restart takes along, nearest first.
func (g *graph) closure(v *verdict) []reachedFrom {
	old := v.stop || v.stopStart
	seen := map[string]bool{v.unit: true}
	walk := func(start string, stops, old, note bool) (out []reachedFrom) {
		queue := []string{start}
		for len(queue) > 0 {
			from := queue[0]
			queue = queue[1:]
			next := g.reached(from, edgeNeeds, old)
			if stops {
				next = append(next, g.reached(from, edgeStops, old)...)
			}
			for _, name := range next {
				if !seen[name] {
					seen[name] = true
					queue = append(queue, name)
					out = append(out, reachedFrom{name, from, note})
				}
			}
		}
		return out
	}
	if old {
		return walk(v.unit, true, true, false)
	}
	out := walk(v.unit, false, false, false)
	if g.p.facts.SystemdVersion > 0 && g.p.facts.SystemdVersion < gracefulStop {
		return out
	}
	for _, r := range append([]reachedFrom{{unit: v.unit}}, out...) {
		for _, n := range g.reached(r.unit, edgeStops, false) {
			if !seen[n] {
				seen[n] = true
				out = append(out, reachedFrom{n, r.unit, true})
				out = append(out, walk(n, true, false, true)...)
			}
		}
	}
	return out
}

// reached lists the running units that a job for one reaches along one kind of
// edge. A stop comes before the new definitions, all else after them.
func (g *graph) reached(name string, e edge, old bool) []string {
	set := map[string]bool{}
	u := g.p.running[name]
	if u != nil && u.state != nil {
		for _, n := range e.of(u) {
			if d := g.p.named(n); d != nil {
				set[d.name] = true
			}
		}
	}
	switch {
	case !old:
		for _, n := range g.old[e][name] {
			if !slices.Contains(g.new[e][name], n) {
				delete(set, n)
			}
		}
		for _, n := range g.new[e][name] {
			set[n] = true
		}
	case g.p.static:
		for _, n := range g.old[e][name] {
			set[n] = true
		}
	}
	delete(set, name)
	return slices.Sorted(maps.Keys(set))
}

// edge is a kind of way on which a job reaches another unit.
type edge uint8

const (
	edgeNeeds   edge = iota // Requires=, Requisite=, BindsTo=, PartOf=, backwards
	edgeStops               // PropagatesStopTo=
	edgeReloads             // PropagatesReloadTo=
	edges
)

// of is what the running manager says of an edge.
func (e edge) of(u *unit) []string {
	switch e {
	case edgeStops:
		return u.ask(change.FieldPropagates).PropagatesStopTo
	case edgeReloads:
		return u.ask(change.FieldPropagates).PropagatesReloadTo
	}
	s := u.ask(change.FieldNeededBy)
	return slices.Concat(s.RequiredBy, s.RequisiteOf, s.BoundBy, s.ConsistsOf)
}

// forward and backward are the settings that make an edge: in the unit that it
// leads from, and in the one that it leads to.
var (
	forward  = [edges][]string{edgeStops: {"PropagatesStopTo"}, edgeReloads: {"PropagatesReloadTo", "PropagateReloadTo"}}
	backward = [edges][]string{
		edgeNeeds:   {"Requires", "Requisite", "BindsTo", "BindTo", "PartOf", "RequiresOverridable", "RequisiteOverridable"},
		edgeStops:   {"StopPropagatedFrom"},
		edgeReloads: {"ReloadPropagatedFrom", "PropagateReloadFrom"},
	}
)

// graph is the edges between running units by the trees' own definitions; the
// rest (implicit dependencies) is for the manager to say.
type graph struct {
	p        *planning
	old, new [edges]map[string][]string
}

func (p *planning) graph() *graph {
	g := &graph{p: p}
	for e := range edges {
		g.old[e], g.new[e] = map[string][]string{}, map[string][]string{}
	}
	p.each(func(u *unit) {
		if u.old == nil || u.new == nil || u.runtime() {
			return
		}
		g.add(g.old, u, u.old)
		g.add(g.new, u, u.new)
	})
	return g
}

func (g *graph) add(to [edges]map[string][]string, u *unit, def *change.Unit) {
	for e := range edges {
		for _, n := range dependencies(def, u.name, forward[e]...) {
			if d := g.p.named(n); d != nil {
				to[e][u.name] = append(to[e][u.name], d.name)
			}
		}
		for _, n := range dependencies(def, u.name, backward[e]...) {
			if d := g.p.named(n); d != nil {
				to[e][d.name] = append(to[e][d.name], u.name)
			}
		}
	}
}

// dependencies are the units that a definition names in some settings of
// [Unit], as the unit called name means them.
func dependencies(def *change.Unit, name string, keys ...string) []string {
	if def == nil {
		return nil
	}
	var out []string
	for _, s := range def.Settings {
		if s.Section == "Unit" && slices.Contains(keys, s.Key) {
			out = append(out, unitNames(s.Value, name)...)
		}
	}
	return out
}

// unitNames splits a value into names of units. A template stands for the
// instance that the unit itself is, or for one of the unit's own name.
func unitNames(value, of string) []string {
	var out []string
	for w := range strings.FieldsSeq(value) {
		n := expand(w, of)
		if isTemplate(n) {
			at := strings.IndexByte(n, '@')
			n = n[:at+1] + cmp.Or(instance(of), strings.TrimSuffix(of, "."+kindOf(of))) + n[at+1:]
		}
		out = append(out, n)
	}
	return out
}

// reloadReach is all that a unit's reload reloads as well. Reloads come after
// the new definitions.
func (g *graph) reloadReach(name string) []reachedFrom {
	var out []reachedFrom
	seen := map[string]bool{name: true}
	queue := []string{name}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		for _, n := range g.reached(from, edgeReloads, false) {
			if !seen[n] {
				seen[n] = true
				queue = append(queue, n)
				out = append(out, reachedFrom{n, from, false})
			}
		}
	}
	return out
}
