package planner

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// steps is the order in which the plan is carried out. Whatever can fail
// without harm comes first; a unit that goes is stopped while its definition
// is still there; all jobs of one kind stand together, for systemd orders them.
func (p *planning) steps() []change.Step {
	list := []change.Step{}
	put := func(s change.Step) {
		s.Seq = len(list) + 1
		list = append(list, s)
	}
	add := func(do, target, undo string) { put(change.Step{Do: do, Target: target, Undo: undo}) }
	for _, c := range p.checks {
		add("check", strings.Join(c.Argv, " "), "")
	}
	for _, name := range p.presetSteps() {
		add(byPreset, name, "revert")
	}
	if p.in.Policy.Snapshot && len(p.changed.sorted) > 0 {
		add("snapshot", "/", "remove")
	}
	names := p.ordered()
	for _, s := range p.stops() {
		put(s)
	}
	p.eachUser(func(u *planning) {
		for _, s := range u.stops() {
			put(s)
		}
	})
	if n := len(p.changed.sorted); n > 0 {
		add("commit", paths(n), "revert")
	}
	for _, e := range p.effects {
		if e.Do != "initrd" {
			add(e.Do, e.Target, e.Undo)
		}
	}
	switch p.managerStep() {
	case change.ActionDaemonReexec:
		add("daemon-reexec", "systemd", "daemon-reexec")
	case change.ActionDaemonReload:
		add("daemon-reload", "systemd", "daemon-reload")
	}
	jobs := p.jobs()
	for _, s := range jobs {
		if !isUserManager(s.Target) {
			put(s)
		}
	}
	for _, name := range names {
		for _, line := range p.healthOf(name) {
			add("health", name+" "+line, "")
		}
	}
	for _, e := range p.effects {
		if e.Do == "initrd" {
			add(e.Do, e.Target, e.Undo)
		}
	}
	// The managers of users come last: none of them can keep the update from
	// being carried out.
	for _, s := range jobs {
		if isUserManager(s.Target) {
			put(s)
		}
	}
	p.eachUser(func(u *planning) {
		for _, s := range u.userSteps() {
			put(s)
		}
	})
	if len(list) > 0 {
		add("verify", "/", "")
	}
	// A reboot of any kind is no step of this run: apply and reboot are two
	// steps that can be called apart, and host_action tells what is pending.
	return list
}

// ordered are the verdicts' units: what liveupd itself and its caller run in
// comes last.
func (p *planning) ordered() []string {
	names := slices.Sorted(maps.Keys(p.verdicts))
	slices.SortStableFunc(names, func(a, b string) int { return p.own(a) - p.own(b) })
	return names
}

// stops are the stops before the commit.
func (p *planning) stops() []change.Step {
	var out []change.Step
	for _, name := range p.ordered() {
		if v := p.verdicts[name]; !v.deferred && !v.propagated && (v.stop || v.stopStart) {
			out = append(out, change.Step{Do: "stop", Target: name, Undo: "start", Manager: p.manager})
		}
	}
	return out
}

// jobs are the units' jobs after it, reloads first.
func (p *planning) jobs() []change.Step {
	var out []change.Step
	add := func(do, target, undo string) {
		out = append(out, change.Step{Do: do, Target: target, Undo: undo, Manager: p.manager})
	}
	names := p.ordered()
	for _, do := range []change.Action{change.ActionReload, change.ActionRestart, change.ActionStart} {
		for _, name := range names {
			switch v := p.verdicts[name]; {
			case v.deferred:
			case v.stopStart && !v.stop:
				if do == change.ActionStart {
					add("start", name, "stop")
				}
			case v.propagated || v.action() != do:
			case do == change.ActionStart:
				add("start", name, "stop")
			default:
				add(do.String(), name, do.String())
			}
		}
	}
	return out
}

// own tells whether a unit is liveupd's, or what the caller runs in.
func (p *planning) own(name string) int {
	if slices.Contains(p.facts.Own, name) || strings.HasPrefix(name, "liveupd-") || name == "liveupd.service" {
		return 1
	}
	return 0
}

// isRun tells whether a service is a run of liveupd: a worker, or what the timer starts.
// One that restarted it would end itself half-way.
func isRun(name string) bool {
	return name == "liveupd.service" || strings.HasPrefix(name, "liveupd-") && strings.HasSuffix(name, ".service")
}

// leaveRuns takes liveupd's own runs out of what is acted on: neither is one restarted or
// stopped, nor is one begun while this one holds the lock.
func (p *planning) leaveRuns() {
	maps.DeleteFunc(p.verdicts, func(name string, v *verdict) bool {
		if !isRun(name) {
			return false
		}
		for _, r := range v.reasons {
			p.spare(name, r, runEnds)
		}
		return true
	})
}

const runEnds = "a run of liveupd ends by itself, and the next one is the new program"

// managerStep is what PID 1 has to do now, within what is permitted: a
// re-execution reads the unit files too.
func (p *planning) managerStep() change.Action {
	step := change.ActionNone
	for _, h := range p.host {
		if h.action <= change.ActionDaemonReexec && h.action <= p.in.Policy.Max {
			step = max(step, h.action)
		}
	}
	return step
}

func paths(n int) string {
	if n == 1 {
		return "1 path"
	}
	return fmt.Sprintf("%d paths", n)
}

// content is a short digest of what an update brings: paths with what comes there. What
// was there before, what runs and when something was copied do not enter; so an update
// that was taken back is known again.
func (p *planning) content() string {
	if len(p.changed.sorted) == 0 {
		return ""
	}
	h := sha256.New()
	for _, e := range p.changed.sorted {
		fmt.Fprintf(h, "%q %s\n", e.Path, e.Op)
		if n := e.New; n != nil {
			fmt.Fprintf(h, "%d %o %d %d %d %d %q %q\n", n.Type, n.Mode, n.UID, n.GID, n.Size, n.Rdev, n.Target, n.Link)
			if n.Type == change.Regular {
				fmt.Fprintln(h, n.MtimeNS)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// id is a short digest of what will be done: the changes with their content
// and the actions. What the next minute may change (process numbers, times,
// who is logged in) does not enter; so the same update on the same machine has
// the same ID.
func (p *planning) id(out *change.Plan) string {
	type object struct {
		Type           change.Type
		Mode, UID, GID uint32
		Size, MtimeNS  int64
		CtimeNS        int64 // of what comes only
		Rdev           uint64
		Target, Links  []byte
		Xattrs         map[string][]byte
	}
	describe := func(n *change.Node) *object {
		if n == nil {
			return nil
		}
		o := &object{
			Type: n.Type, Mode: n.Mode, UID: n.UID, GID: n.GID, Size: n.Size, MtimeNS: n.MtimeNS, Rdev: n.Rdev,
			Target: []byte(n.Target), Links: []byte(n.Link), Xattrs: n.Xattrs,
		}
		if n.IsDir() {
			o.MtimeNS = 0 // the machine's own doings below it
		}
		return o
	}
	// Whether a digest is known depends on what an index happens to hold, so the
	// ID goes without: the time of the last change of what comes stands for its
	// content.
	coming := func(n *change.Node) *object {
		o := describe(n)
		if o != nil && !n.IsDir() {
			o.CtimeNS = n.CtimeNS
		}
		return o
	}
	made := func(e *change.Entry) *change.Digest {
		if e.Made == nil {
			return nil
		}
		return &e.New.Digest
	}
	h := sha256.New()
	enc := json.NewEncoder(h)
	put := func(v any) {
		// Only values of this package's own types are encoded: that cannot fail.
		if err := enc.Encode(v); err != nil {
			panic(err)
		}
	}
	for _, e := range p.changed.sorted {
		// As bytes: names need not be UTF-8.
		put(struct {
			Path     []byte
			Op       change.Op
			Aspects  change.Aspect
			Old, New *object
			Made     *change.Digest `json:",omitempty"`
		}{[]byte(e.Path), e.Op, e.Aspects, describe(e.Old), coming(e.New), made(e)})
	}
	for _, u := range out.Units {
		if u.Action != change.ActionDefer {
			put([]any{change.UnitKey(u.Manager, u.Unit), u.Action, u.Propagated})
		}
	}
	var steps []change.Step
	for _, s := range out.Steps {
		if s.Manager != "" && s.Do == change.ActionDaemonReload.String() {
			continue // it interrupts nothing, and comes and goes with who is logged in
		}
		s.Seq = len(steps) + 1
		steps = append(steps, s)
	}
	put([]any{out.HostAction, steps})
	return hex.EncodeToString(h.Sum(nil))[:16]
}
