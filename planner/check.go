package planner

import (
	"maps"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// Check decides what would bring a machine up to what its files hold, from the
// processes that still use objects which are gone. Units are the manager's, by
// name; they are empty where systemd is not PID 1, and then no process belongs
// to a unit.
func Check(hits []change.Hit, units map[string]*change.UnitState, examined int, warnings []string) *change.CheckReport {
	return CheckUnder(change.Policy{Max: change.ActionReboot}, nil, hits, units, examined, warnings)
}

// CheckUnder is Check under the administrator's rules, and with what earlier
// updates put off: that is judged anew.
func CheckUnder(policy change.Policy, waiting []change.UnitPlan, hits []change.Hit, units map[string]*change.UnitState, examined int, warnings []string) *change.CheckReport {
	p := newPlanning(change.Input{
		Facts:  &change.Facts{Running: true, Units: units, Hits: hits, Warnings: warnings},
		Policy: policy,
	})
	for _, w := range waiting {
		u := p.named(w.Unit)
		if u == nil || w.Manager != "" {
			continue
		}
		rung := change.ActionRestart
		if w.Needs == change.ActionReload && u.canReload() {
			rung = change.ActionReload
		}
		for _, r := range w.Reasons {
			r.Detail, r.PID, r.Comm = "an earlier update put it off", 0, ""
			p.raise(u, rung, r)
		}
	}
	sessions := []change.Hit{}
	var spared []change.Hit
	spare := func(h change.Hit, why string) {
		h.Detail = join("; ", h.Detail, why)
		spared = append(spared, h)
	}
	for _, h := range hits {
		switch {
		case h.Setuid:
			spare(h, "a set-id program ends with its command")
		case h.Kind == "mapped" && isData(h.Path):
			spare(h, "data, and no code")
		case h.Leftover || isSession(h):
			if h.Leftover {
				spare(h, "the process is older than the unit's present start, and a restart would not reach it")
			}
			sessions = append(sessions, h)
		default:
			p.hit(h)
		}
	}
	slices.SortFunc(sessions, compareHits)
	slices.SortFunc(spared, compareHits)
	p.bear()
	p.settle()
	out := &change.CheckReport{
		MessageType: "report", Schema: schema, Verb: "check", Units: []change.Stale{}, Sessions: sessions, Spared: spared,
		HostAction: p.hostAction(), HostReasons: p.hostReasons(), Examined: examined,
	}
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		v := p.verdicts[name]
		out.Units = append(out.Units, change.Stale{
			Unit: v.unit, Manager: v.manager, Action: v.action(), Reasons: tidyReasons(v.reasons),
		})
	}
	out.Warnings = slices.Sorted(maps.Keys(p.warnings))
	if out.Warnings == nil {
		out.Warnings = []string{}
	}
	return out
}

// RestartPlan is the plan that does what check found, up to a rung.
func RestartPlan(found *change.CheckReport, limit change.Action) *change.Plan {
	p := newPlanning(change.Input{Facts: &change.Facts{Running: true}, Policy: change.Policy{Max: limit}})
	for _, s := range found.Units {
		key := s.Unit
		if s.Manager != "" {
			key = s.Manager + "/" + s.Unit
		}
		v := p.verdict(key)
		v.unit, v.manager, v.reasons = s.Unit, s.Manager, slices.Clone(s.Reasons)
		switch s.Action {
		case change.ActionDefer:
			v.deferred = true
		default:
			v.rung = s.Action
		}
	}
	for _, r := range found.HostReasons {
		switch r.Kind {
		case "unit-files":
			p.needHost(change.ActionDaemonReload, r)
		case "pid1":
			p.needHost(change.ActionDaemonReexec, r)
		default:
			p.needHost(found.HostAction, r)
		}
	}
	for _, w := range found.Warnings {
		p.warnings[w] = true
	}
	return p.finish()
}
