// Package planner decides what an update interrupts: from what changes on
// disk (Delta), what the old and the new tree say of their units (Tree), what
// runs (Facts) and what the operator allows (Policy) to a Plan. It is pure:
// values in, values out, no I/O and no clock, and the order in which inputs
// are listed does not matter.
//
//  1. Which paths change in content. Metadata, a new inode with the same bytes
//     and a changed link count change no process's behaviour and give nothing.
//  2. Which units run. With facts: those that systemd says are active. Without
//     (a tree, or systemd is not PID 1): those that a boot of the old tree
//     reaches, oneshots aside, for they have ended.
//  3. Unit files: effective settings before and after, each difference by the
//     class of its directive (directives.go). Any change is a daemon-reload
//     of the host; only an execution context, a listening socket or a mount
//     reaches further. Units that vanish, or whose program does, are stopped, newly
//     reached ones started.
//  4. Code: with facts, the processes that use an inode which goes decide,
//     never a path; without, the static reach of what each unit runs. What no
//     process shows (imported modules, environment files, credentials, links
//     that lead elsewhere now) is taken from the reach in both cases.
//  5. Configuration: the built-in table of daemons (daemons.go), declared
//     files and those that the unit's package owns.
//  6. The host: kernel, initrd, microcode, PID 1 (host.go), and what systemd's
//     early programs apply at a boot: users, devices, kernel settings (effects.go).
//  7. What the unit bears (bears.go) and what its own X- keys ask for: a
//     reload in place of a restart, or a deferral.
//     The administrator's rules (policy.go) come over all of these.
//  8. Policy.Max: what is above it is deferred, with its reasons.
//  9. The closure: what systemd itself will restart or stop along with a unit.
//     Where that would reach a unit that must not be interrupted, the unit
//     that it starts from is deferred as well.
//  10. The same for the units of each user's manager that runs (users.go), whose jobs come last.
//  11. Steps in order, each with its inverse, and an ID over what will be done.
//
// Guarantees: a unit is acted on only if it runs (starts aside); every reason
// names a path or a unit; reasons only raise a unit on the ladder, so that a
// further change never lowers what an update does.
package planner

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// schema is the version of the plan's JSON layout.
const schema = 1

// verdict is what has been found out about one unit so far.
type verdict struct {
	unit    string
	manager string // the user@ unit whose manager it belongs to, "" for the system's
	rung    change.Action
	stop    bool
	start   bool
	// stopStart: stopped with the old definition before the commit, started after it.
	stopStart  bool
	deferred   bool
	propagated bool
	ruled      bool          // the administrator's rules have decided
	want       change.Action // what would be done if nothing kept it back
	held       bool          // rules keep back what some of the reasons ask for
	reasons    []change.Reason
}

// action is the verdict in one word.
func (v *verdict) action() change.Action {
	switch {
	case v.deferred:
		return change.ActionDefer
	case v.stop:
		return change.ActionStop
	case v.start:
		return change.ActionStart
	}
	return v.rung
}

// needs is the rung of the ladder that the verdict's action stands for.
func (v *verdict) needs() change.Action {
	switch {
	case v.stop:
		return change.ActionRestart
	case v.start:
		return change.ActionReload
	}
	return v.rung
}

// hostNeed is a host action that is called for.
type hostNeed struct {
	action change.Action
	reason change.Reason
}

// planning is one plan in the making, of the system's units or of one user's.
type planning struct {
	// manager is the user@ unit whose units these are, "" for the system's.
	manager  string
	problem  string               // why that manager could not be asked
	users    map[string]*planning // the users' own, by manager
	in       change.Input
	facts    *change.Facts
	static   bool
	changed  changes
	running  map[string]*unit // by canonical name
	verdicts map[string]*verdict
	host     []hostNeed
	effects  []change.Effect
	// noSoftReboot: why a soft-reboot will not do, where one is needed.
	noSoftReboot []change.Reason
	checks       []change.Check
	warnings     map[string]bool
	spared       map[string][]change.Reason // by unit
	// stale tells, where it is set, whether a need is one: the file changed after
	// the unit had read it.
	stale func(u *unit, rung change.Action, r change.Reason) bool
	lacks Lacks
}

// Make decides what an update does and in what order. Source, Root and what
// the manifest says are for the caller to fill in. Policy.Max is taken as it
// stands: ActionNone allows no interruption at all.
func Make(in change.Input) *change.Plan {
	plan, _ := Decide(in)
	return plan
}

// Decide is Make, and tells what it would have needed to know beside.
func Decide(in change.Input) (*change.Plan, Lacks) {
	p := newPlanning(in)
	p.unitFiles()
	p.starts()
	p.presets()
	p.code()
	p.reach()
	p.configuration()
	p.hostChanges()
	p.hostEffects()
	p.atRest()
	p.eachUser((*planning).userUnits)
	return p.finish(), p.lacks
}

func newPlanning(in change.Input) *planning {
	p := &planning{
		in: in, facts: in.Facts, verdicts: map[string]*verdict{}, warnings: map[string]bool{},
		spared: map[string][]change.Reason{}, users: map[string]*planning{}, lacks: Lacks{},
	}
	if p.in.Delta == nil {
		p.in.Delta = &change.Delta{}
	}
	if p.in.Old == nil {
		p.in.Old = &change.Tree{}
	}
	if p.in.New == nil {
		p.in.New = &change.Tree{}
	}
	if p.facts == nil {
		p.facts = &change.Facts{}
	}
	p.static = !p.facts.Running
	p.changed = newChanges(p.in.Delta)
	p.running = p.runningUnits()
	for _, m := range p.facts.Users {
		p.users[m.Unit] = p.userPlanning(m)
	}
	for _, list := range [][]string{p.in.Delta.Warnings, p.in.Old.Warnings, p.in.New.Warnings, p.facts.Warnings} {
		for _, w := range list {
			p.warnings[w] = true
		}
	}
	return p
}

func (p *planning) warn(format string, args ...any) {
	p.warnings[fmt.Sprintf(format, args...)] = true
}

func (p *planning) verdict(name string) *verdict {
	v := p.verdicts[name]
	if v == nil {
		v = &verdict{unit: name, manager: p.manager}
		p.verdicts[name] = v
	}
	return v
}

// raise lifts a running unit to a rung, never lowers it, and keeps the reason.
// A oneshot has done its work: it is not run again unless it asks for that.
func (p *planning) raise(u *unit, rung change.Action, r change.Reason) {
	r = p.ofGenerated(r)
	if p.stale != nil && !p.stale(u, rung, r) {
		return
	}
	if by := p.acceptedBy(u); by != "" && rung >= change.ActionReload {
		p.spare(u.name, r, "it serves one connection of "+by+", which an interruption would cut: the next one has what is new")
		return
	}
	asked := rung
	rung, r, left := p.governed(u, rung, r)
	if v := p.verdicts[u.name]; v != nil {
		v.want = max(v.want, asked)
	}
	if !left {
		return
	}
	if v := p.verdicts[u.name]; rung >= change.ActionRestart && (v == nil || !v.ruled) && u.done() && !u.optsIn() && !u.begins() {
		p.spare(u.name, r, "a oneshot has done its work, and is not run again unless it asks for that")
		return
	}
	v := p.verdict(u.name)
	v.rung, v.want = max(v.rung, rung), max(v.want, asked)
	v.reasons = append(v.reasons, r)
}

// postpone notes a need that cannot be met now.
func (p *planning) postpone(name string, r change.Reason) {
	r = p.ofGenerated(r)
	if rule := p.rule([]string{name}, r.Path); rule != nil {
		if action, why := p.ruling(rule); action == change.RuleIgnore {
			p.spare(name, r, why)
			return
		}
	}
	v := p.verdict(name)
	v.deferred = true
	v.reasons = append(v.reasons, r)
}

func (p *planning) needHost(a change.Action, r change.Reason) {
	p.host = append(p.host, hostNeed{a, p.ofGenerated(r)})
}

// hostAction is the highest of what the host needs.
func (p *planning) hostAction() change.Action {
	a := change.ActionNone
	for _, h := range p.host {
		a = max(a, h.action)
	}
	return a
}

// finish goes from needs to the plan: steps 7 to 10 of the package comment.
func (p *planning) finish() *change.Plan {
	p.leaveRuns()
	p.unstartable()
	p.bear()
	p.barSoftReboot()
	p.bound()
	p.propagate()
	p.settle()
	p.settleEffects()
	p.unsureGenerators()

	out := &change.Plan{
		MessageType: "plan", Schema: schema, Static: p.static,
		HostAction: p.hostAction(), HostReasons: p.hostReasons(),
		Effects: p.effects,
		Units:   []change.UnitPlan{}, Steps: []change.Step{},
	}
	out.Units = append(out.Units, p.unitPlans()...)
	p.eachUser(func(u *planning) {
		u.finishUser()
		out.Units = append(out.Units, u.unitPlans()...)
		out.Effects = append(out.Effects, u.effects...)
	})
	p.count(out)
	p.verifyUnits()
	p.collectChecks()
	out.Checks = p.checks
	out.Steps = p.steps()
	out.Unaffected = p.unaffected()
	out.Spared = p.left()
	out.ID, out.Content = p.id(out), p.content()
	out.Warnings = slices.Sorted(maps.Keys(p.warnings))
	if out.Warnings == nil {
		out.Warnings = []string{}
	}
	return out
}

// unitPlans are the verdicts as the plan has them.
func (p *planning) unitPlans() []change.UnitPlan {
	var out []change.UnitPlan
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		v := p.verdicts[name]
		plan := change.UnitPlan{
			Unit: v.unit, Manager: v.manager, Action: v.action(),
			Reasons: v.told(), Propagated: v.propagated,
		}
		if v.deferred {
			plan.Needs = max(v.want, v.needs())
		}
		if u := p.running[name]; u != nil && u.state != nil {
			plan.LastStartUSec = u.ask(change.FieldEntered).LastStartUSec
		}
		out = append(out, plan)
	}
	return out
}

// settle drops verdicts that come to nothing.
func (p *planning) settle() {
	maps.DeleteFunc(p.verdicts, func(name string, v *verdict) bool {
		a := v.action()
		if a == change.ActionDaemonReload {
			for _, r := range v.reasons {
				p.spare(name, r, "a daemon-reload takes it up")
			}
		}
		return a == change.ActionNone || a == change.ActionDaemonReload
	})
}

func (p *planning) count(out *change.Plan) {
	d := p.in.Delta
	out.Changes.Identical, out.Changes.Bytes = d.Identical, d.Bytes
	entries := p.changed.sorted
	for _, e := range entries {
		switch e.Op {
		case change.Add:
			out.Changes.Added++
		case change.Replace:
			out.Changes.Replaced++
		case change.Remove:
			out.Changes.Removed++
		case change.Metadata:
			out.Changes.Metadata++
		}
	}
	if len(entries) > change.PathsLimit {
		return
	}
	out.Paths = make([]change.PathChange, 0, len(entries))
	for _, e := range entries {
		out.Paths = append(out.Paths, change.PathChange{Path: e.Path, Op: e.Op, Aspects: e.Aspects.Names(), By: e.MadeBy})
	}
}

// unaffected counts the services that run and are not named in the plan.
func (p *planning) unaffected() int {
	n := 0
	for name, u := range p.running {
		if u.kind() == "service" && p.verdicts[name] == nil && !u.done() {
			n++
		}
	}
	return n
}

func (p *planning) hostReasons() []change.Reason {
	needs := slices.Clone(p.host)
	slices.SortStableFunc(needs, func(a, b hostNeed) int { return cmp.Compare(b.action, a.action) })
	out := []change.Reason{}
	for len(needs) > 0 {
		n := 1
		for n < len(needs) && needs[n].action == needs[0].action {
			n++
		}
		group := make([]change.Reason, 0, n)
		for _, h := range needs[:n] {
			group = append(group, h.reason)
		}
		out = append(out, tidyReasons(group)...)
		needs = needs[n:]
	}
	return out
}

// tidyReasons sorts reasons and folds those that say the same of several
// processes into one, which shows the process with the lowest number.
func tidyReasons(in []change.Reason) []change.Reason {
	list := slices.Clone(in)
	slices.SortFunc(list, func(a, b change.Reason) int {
		return cmp.Or(
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Unit, b.Unit),
			cmp.Compare(a.PID, b.PID), cmp.Compare(a.Comm, b.Comm), cmp.Compare(a.Detail, b.Detail))
	})
	out := make([]change.Reason, 0, len(list))
	more := 0
	note := func() {
		if more > 0 {
			r := &out[len(out)-1]
			text := fmt.Sprintf("and %d more of its processes", more)
			if more == 1 {
				text = "and one more of its processes"
			}
			r.Detail = join("; ", r.Detail, text)
		}
		more = 0
	}
	for i, r := range list {
		if i > 0 && r.Equal(list[i-1]) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Kind == r.Kind && out[n-1].Path == r.Path && out[n-1].Unit == r.Unit {
			switch {
			case r.PID != 0 && r.PID != list[i-1].PID:
				more++
				continue
			case r.PID != 0 || r.Detail == "":
				continue
			}
		}
		note()
		out = append(out, r)
	}
	note()
	return out
}

// join puts the non-empty parts together.
func join(sep string, parts ...string) string {
	out := ""
	for _, s := range parts {
		if s == "" {
			continue
		}
		if out != "" {
			out += sep
		}
		out += s
	}
	return out
}
