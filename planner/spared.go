package planner

import (
	"maps"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// spare notes that something which changes reaches a unit and asks for
// nothing, with why: what an operator wants to know of a unit that stays.
func (p *planning) spare(unit string, r change.Reason, why string) {
	r.Detail = join("; ", r.Detail, why)
	p.spared[unit] = append(p.spared[unit], r)
}

// spareHit does so for a process of a unit.
func (p *planning) spareHit(h change.Hit, why string) {
	if h.UserUnit != "" && isUserManager(h.Unit) {
		p.user(h.Unit).spareHit(ofUser(h), why)
		return
	}
	if h.Unit != "" {
		p.spare(h.Unit, change.Reason{Kind: h.Kind, Path: h.Path, PID: h.PID, Comm: h.Comm, Detail: h.Detail}, why)
	}
}

// atRest notes the services that would run or read what changes, and that do
// not run. The trees say what those use that anybody asked about.
func (p *planning) atRest() {
	for name, u := range p.in.New.Units {
		if name != u.Name || p.running[name] != nil {
			continue
		}
		for _, use := range u.Uses {
			if e := p.changed.byPath[use.Path]; e != nil && contentChanges(e) && !directory(e) {
				p.spare(name, used(name, u, use), "it does not run: its next start takes it")
			}
		}
	}
}

// left are the units that the plan leaves alone although something that
// changes reaches them.
func (p *planning) left() []change.UnitPlan {
	var out []change.UnitPlan
	for _, name := range slices.Sorted(maps.Keys(p.spared)) {
		if p.verdicts[name] == nil {
			out = append(out, change.UnitPlan{Unit: name, Manager: p.manager, Reasons: tidyReasons(p.spared[name])})
		}
	}
	p.eachUser(func(u *planning) { out = append(out, u.left()...) })
	return out
}
