package planner

import (
	"maps"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// Found is what was met on a running machine.
type Found struct {
	Hits []change.Hit // processes that use what is gone
	// Units are the manager's, by name; empty where systemd is not PID 1, and then
	// no process belongs to a unit.
	Units    map[string]*change.UnitState
	Examined int // processes
	Warnings []string
	Newer    *Newer // nil where nobody looked at files
	Policy   change.Policy
	Waiting  []change.UnitPlan // what earlier updates put off
	Users    []*change.UserManager
	// UserNewer is Newer for the units of each user's manager.
	UserNewer map[string]*Newer
}

// Check decides what would bring a machine up to what its files hold, from the
// processes that still use objects which are gone, from the files that changed
// since they were read, and from what earlier updates put off, judged anew.
func Check(f Found) *change.CheckReport {
	r, _ := Find(f)
	return r
}

// Find is Check, and tells what it would have needed to know beside.
func Find(f Found) (*change.CheckReport, Lacks) {
	p := newPlanning(change.Input{
		Facts:  &change.Facts{Running: true, Units: f.Units, Hits: f.Hits, Warnings: f.Warnings, Users: f.Users},
		Policy: f.Policy,
	})
	for _, w := range f.Waiting {
		q := p
		if w.Manager != "" {
			q = p.user(w.Manager)
		}
		u := q.named(w.Unit)
		if q.problem != "" {
			q.postpone(w.Unit, change.Reason{Kind: "deferred", Unit: w.Manager, Detail: "an earlier update put it off; " + q.problem})
		}
		if u == nil {
			continue
		}
		rung := change.ActionRestart
		if w.Needs == change.ActionReload && u.canReload() {
			rung = change.ActionReload
		}
		for _, r := range w.Reasons {
			r.Detail, r.PID, r.Comm = "an earlier update put it off", 0, ""
			q.raise(u, rung, r)
		}
	}
	p.newer(f.Newer)
	p.eachUser(func(u *planning) { u.newer(f.UserNewer[u.manager]) })
	sessions := []change.Hit{}
	var spared []change.Hit
	spare := func(h change.Hit, why string) {
		h.Detail = join("; ", h.Detail, why)
		spared = append(spared, h)
	}
	for _, h := range f.Hits {
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
	p.programGone()
	p.bear()
	p.settle()
	p.eachUser(func(u *planning) { u.programGone(); u.bear(); u.settle() })
	out := &change.CheckReport{
		MessageType: "report", Schema: schema, Verb: "check", Units: []change.Stale{}, Sessions: sessions, Spared: spared,
		HostAction: p.hostAction(), HostReasons: p.hostReasons(), Examined: f.Examined,
	}
	stale := func(p *planning) {
		for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
			v := p.verdicts[name]
			out.Units = append(out.Units, change.Stale{
				Unit: v.unit, Manager: v.manager, Action: v.action(), Reasons: v.told(),
			})
		}
	}
	stale(p)
	p.eachUser(stale)
	out.Warnings = slices.Sorted(maps.Keys(p.warnings))
	if out.Warnings == nil {
		out.Warnings = []string{}
	}
	return out, p.lacks
}

// programGone puts off the units whose own program is not there any more: what was told to
// be the cure would stop them for good.
func (p *planning) programGone() {
	for name, v := range p.verdicts {
		u := p.running[name]
		if u == nil || u.definition() == nil || v.rung < change.ActionRestart {
			continue
		}
		for _, s := range u.definition().Settings {
			if s.Section != "Service" || s.Key != "ExecStart" {
				continue
			}
			program := startedProgram(s.Value)
			for i := range v.reasons {
				r := &v.reasons[i]
				if program != "" && r.Kind == "exec" && r.Detail == "removed" && (r.Path == program || r.Path == "/usr"+program) {
					r.Detail = "removed: the unit could not be started again"
					v.deferred = true
				}
			}
		}
	}
}

// RestartPlan is the plan that does what check found, up to a rung.
func RestartPlan(found *change.CheckReport, limit change.Action) *change.Plan {
	p := newPlanning(change.Input{Facts: &change.Facts{Running: true}, Policy: change.Policy{Max: limit}})
	for _, s := range found.Units {
		q := p
		if s.Manager != "" {
			q = p.user(s.Manager)
		}
		v := q.verdict(s.Unit)
		v.reasons = slices.Clone(s.Reasons)
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
	for _, e := range found.Effects {
		q := p.user(e.Target)
		q.problem = "" // it answered when it was looked at
		for _, r := range e.Reasons {
			q.needHost(change.ActionDaemonReload, r)
		}
	}
	for _, w := range found.Warnings {
		p.warnings[w] = true
	}
	return p.finish()
}
