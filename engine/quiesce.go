package engine

import (
	"cmp"
	"fmt"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/quiesce"
)

// frozenDir notes what stands still for a swap, for the recovery after a killed run.
const frozenDir = runDir + "/frozen"

// WatchdogArg is the hidden verb of the process that thaws what a dead run froze.
const WatchdogArg = quiesce.DogArg

// Watchdog is its main function.
func Watchdog() error { return quiesce.Watchdog() }

// quiesce prepares that the affected units stand still while names move. The swap goes
// on without it where it cannot be had: a service that meets both trees for some
// milliseconds is better than an update that is not applied. What is returned ends it,
// also where the swap never came.
func (r *run) quiesce() (end func()) {
	targets := r.quiesceTargets()
	if len(targets) == 0 {
		return func() {}
	}
	s, err := quiesce.Prepare(r.s.k, frozenDir, targets)
	if err != nil {
		r.s.warnings = append(r.s.warnings, err.Error())
	}
	if s == nil {
		return func() {}
	}
	ended := false
	thaw := func() {
		if ended {
			return
		}
		ended = true
		out := s.Thaw()
		r.report.Frozen, r.report.FrozenUSec = out.Frozen, out.USec
		r.s.warnings = append(r.s.warnings, out.Warnings...)
	}
	r.tx.Around(func() func() {
		if ended {
			return func() {} // a revert after the restarts: its units are stopped and started anyway
		}
		s.Freeze()
		return thaw
	})
	return thaw
}

// quiesceTargets are the running services that the plan interrupts or defers, and of
// which enough files change.
func (r *run) quiesceTargets() []quiesce.Target {
	req := r.s.req
	if req.Quiesce == "never" || r.p.plan.Static || r.p.facts == nil || !r.p.facts.Running {
		return nil
	}
	enough := cmp.Or(req.QuiesceFiles, quiesce.Files)
	if req.Quiesce == "always" {
		enough = 1
	}
	var out []quiesce.Target
	for _, u := range r.p.plan.Units {
		state := r.p.facts.Units[u.Unit]
		if u.Manager != "" || state == nil || state.ControlGroup == "" || !state.Active() {
			continue
		}
		if files := changedFiles(u.Reasons); files < enough {
			continue
		}
		if why := quiesce.Never(u.Unit, r.p.facts.Own); why != "" {
			if req.Quiesce == "always" {
				r.s.warnings = append(r.s.warnings, fmt.Sprintf("%s is not frozen for the swap: %s", u.Unit, why))
			}
			continue
		}
		out = append(out, quiesce.Target{Unit: u.Unit, Group: state.ControlGroup})
	}
	return out
}

// changedFiles counts the paths that a unit is affected by.
func changedFiles(reasons []change.Reason) int {
	paths := map[string]bool{}
	for _, reason := range reasons {
		if reason.Path != "" {
			paths[reason.Path] = true
		}
	}
	return len(paths)
}

// thawLeft lets go what a run that was killed left frozen.
func (s *session) thawLeft() error {
	if !s.req.Live() || !quiesce.Left(frozenDir) {
		return nil
	}
	if err := quiesce.Thaw(s.k, frozenDir); err != nil {
		return err
	}
	s.warnings = append(s.warnings, "a run that was cut off may have left units frozen: they run again")
	return nil
}
