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
// has a job of its own; before, the restart was passed on. A reload reaches
// PropagatesReloadTo= alone.

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
	oldDeps, newDeps := p.dependents(false), p.dependents(true)
	for again := true; again; {
		again = false
		for _, v := range p.direct(change.ActionRestart) {
			for _, r := range p.closure(v, oldDeps, newDeps) {
				if why := p.barred(r.unit); why != "" {
					v.deferred = true
					v.explain("it would take " + r.unit + " along: " + why)
					again = true
					break
				}
			}
		}
	}
	for _, v := range p.direct(change.ActionRestart) {
		for _, r := range p.closure(v, oldDeps, newDeps) {
			p.carry(v, r)
		}
	}
	for _, v := range p.direct(change.ActionReload) {
		if v.needs() != change.ActionReload || v.start {
			continue
		}
		for _, r := range p.reloadReach(v.unit) {
			d := p.running[r.unit]
			if w := p.verdicts[r.unit]; d == nil || !d.canReload() || w != nil {
				continue
			}
			w := p.verdict(r.unit)
			w.rung, w.propagated = change.ActionReload, true
			w.reasons = []change.Reason{{Kind: "propagated", Unit: r.from, Detail: "its reload reloads this one"}}
		}
	}
}

// direct are the verdicts that get a job of their own, of at least one rung.
func (p *planning) direct(rung change.Action) []*verdict {
	var out []*verdict
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		v := p.verdicts[name]
		if !v.deferred && !v.propagated && !v.start && v.needs() >= rung {
			out = append(out, v)
		}
	}
	return out
}

// carry notes that one unit's job takes another along.
func (p *planning) carry(origin *verdict, r reachedFrom) {
	v := p.verdict(r.unit)
	if !v.deferred && !v.propagated && v.needs() >= change.ActionRestart {
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
	does, why := u.treat()
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
func (p *planning) closure(v *verdict, oldDeps, newDeps map[string][]string) []reachedFrom {
	stop := v.stop || v.stopStart
	seen := map[string]bool{v.unit: true}
	walk := func(start string, stop, note bool) (out []reachedFrom) {
		queue := []string{start}
		for len(queue) > 0 {
			from := queue[0]
			queue = queue[1:]
			for _, name := range p.dependsOn(from, stop, oldDeps, newDeps) {
				if !seen[name] {
					seen[name] = true
					queue = append(queue, name)
					out = append(out, reachedFrom{name, from, note})
				}
			}
		}
		return out
	}
	out := walk(v.unit, stop, false)
	if stop || p.facts.SystemdVersion < gracefulStop {
		return out
	}
	for _, r := range append([]reachedFrom{{unit: v.unit}}, out...) {
		u := p.running[r.unit]
		if u == nil || u.state == nil {
			continue
		}
		for _, n := range slices.Sorted(slices.Values(u.state.PropagatesStopTo)) {
			if d := p.named(n); d != nil && !seen[d.name] {
				seen[d.name] = true
				out = append(out, reachedFrom{d.name, r.unit, true})
				out = append(out, walk(d.name, true, true)...)
			}
		}
	}
	return out
}

// dependsOn lists the running units that a stop or restart of one takes along
// directly. A stop comes before the new definitions, a restart after them.
func (p *planning) dependsOn(name string, stop bool, oldDeps, newDeps map[string][]string) []string {
	set := map[string]bool{}
	u := p.running[name]
	if u != nil && u.state != nil {
		lists := [][]string{u.state.RequiredBy, u.state.RequisiteOf, u.state.BoundBy, u.state.ConsistsOf}
		if stop || p.facts.SystemdVersion < gracefulStop {
			lists = append(lists, u.state.PropagatesStopTo)
		}
		for _, list := range lists {
			for _, n := range list {
				if d := p.named(n); d != nil {
					set[d.name] = true
				}
			}
		}
	}
	if stop {
		if p.static {
			for _, n := range oldDeps[name] {
				set[n] = true
			}
		}
		return slices.Sorted(maps.Keys(set))
	}
	for _, n := range oldDeps[name] {
		if !slices.Contains(newDeps[name], n) {
			delete(set, n)
		}
	}
	for _, n := range newDeps[name] {
		set[n] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// dependents inverts the trees' own dependencies, for running units that both
// trees define; the rest is for the manager to say.
func (p *planning) dependents(new bool) map[string][]string {
	out := map[string][]string{}
	p.each(func(u *unit) {
		def := u.old
		if new {
			def = u.new
		}
		if u.old == nil || u.new == nil || u.runtime() {
			return
		}
		for _, s := range def.Settings {
			if s.Section != "Unit" {
				continue
			}
			switch s.Key {
			case "Requires", "Requisite", "BindsTo", "PartOf":
			default:
				continue
			}
			for w := range strings.FieldsSeq(s.Value) {
				on := expand(w, u.name)
				if isTemplate(on) {
					at := strings.IndexByte(on, '@')
					on = on[:at+1] + cmp.Or(instance(u.name), strings.TrimSuffix(u.name, "."+u.kind())) + on[at+1:]
				}
				if d := p.named(on); d != nil && !slices.Contains(out[d.name], u.name) {
					out[d.name] = append(out[d.name], u.name)
				}
			}
		}
	})
	return out
}

// reloadReach is all that a unit's reload reloads as well.
func (p *planning) reloadReach(name string) []reachedFrom {
	var out []reachedFrom
	seen := map[string]bool{name: true}
	queue := []string{name}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		var next []string
		if u := p.running[from]; u != nil {
			if u.state != nil {
				next = append(next, u.state.PropagatesReloadTo...)
			} else {
				next = append(next, strings.Fields(last(u.definition(), "Unit", "PropagatesReloadTo"))...)
				p.each(func(d *unit) {
					if slices.Contains(strings.Fields(last(d.definition(), "Unit", "ReloadPropagatedFrom")), from) {
						next = append(next, d.name)
					}
				})
			}
		}
		slices.Sort(next)
		for _, n := range next {
			if d := p.named(n); d != nil && !seen[d.name] {
				seen[d.name] = true
				queue = append(queue, d.name)
				out = append(out, reachedFrom{d.name, from, false})
			}
		}
	}
	return out
}
