package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/source/apt"
)

// Live data. A package whose scripts change data that a process of the host has in use
// worked on a copy of it in the sandbox, and what the process writes meanwhile would be
// lost. It is refused, or, where live_data says so, made in two parts:
//
//  1. In the sandbox it is unpacked, and its postinst is left out; dpkg's database says
//     "unpacked", as it does between dpkg --unpack and dpkg --configure.
//  2. After the commit, last of all, the units that have the data open are stopped,
//     dpkg --configure runs on the live system, and they are started.
//
// The second part cannot be taken back: from its beginning on no failure takes the tree
// back, for the old programs may not understand the new data.

// liveData is what one package does to data in use.
type liveData struct {
	Package string
	Folders []string
	Units   []string // that have it open
	Others  []string // processes of no unit that have it open
}

// liveError is live data that stands in the way of an update.
type liveError struct {
	path, folder string
	who          string
	packages     []string // that may have changed it
}

func (e *liveError) Error() string {
	by := "a package"
	if len(e.packages) == 1 {
		by = e.packages[0]
	}
	return fmt.Sprintf("cannot take the update: %s changes %s, and %s uses %s now", by, e.path, e.who, e.folder)
}

// refuseLive refuses an update whose scripts changed data that is in use.
func (s *session) refuseLive(did *aptWork, live map[string][]string) error {
	if !s.req.Live() || len(live) == 0 {
		return nil
	}
	folders := slices.Sorted(maps.Keys(live))
	used := sys.Users(folders)
	var first *liveError
	for _, folder := range folders {
		who, ok := used[folder]
		if !ok {
			continue
		}
		e := &liveError{path: live[folder][0], folder: folder, who: who[0].String()}
		for _, p := range live[folder] {
			for _, name := range did.recorded.Changed.By(p, did.packages, did.postponed) {
				if !slices.Contains(e.packages, name) {
					e.packages = append(e.packages, name)
				}
			}
		}
		if first == nil {
			first = e
		}
		for _, name := range e.packages {
			did.addLive(name, folder)
		}
	}
	if first == nil {
		return nil
	}
	name := "NAME"
	if len(first.packages) == 1 {
		name = first.packages[0]
	}
	return change.WithHint(fmt.Errorf("%w; %w", first, ErrNothingCommitted),
		fmt.Sprintf("keep it back with --hold %s, or have it configured on the live system after the commit: --live-data after", name))
}

func (a *aptWork) addLive(name, folder string) {
	i := slices.IndexFunc(a.live, func(l liveData) bool { return l.Package == name })
	if i < 0 {
		i = len(a.live)
		a.live = append(a.live, liveData{Package: name})
	}
	if !slices.Contains(a.live[i].Folders, folder) {
		a.live[i].Folders = append(a.live[i].Folders, folder)
	}
}

// postponable tells whether the package manager can run on the live system.
func (s *session) postponable() error {
	root, err := sys.OpenRoot("/var/lib/dpkg")
	if err != nil {
		return fmt.Errorf("cannot look at the package manager's database: %w", err)
	}
	defer root.Close()
	if ro, err := sys.ReadOnly(root); err != nil || ro {
		return errors.Join(errors.New("cannot configure packages on the live system: /var/lib/dpkg is read-only there"), err)
	}
	if s.req.MaxSet && s.req.Max < change.ActionRestart {
		return fmt.Errorf("cannot configure packages on the live system: the units that use their data would restart, and no more than %s is permitted", s.req.Max)
	}
	return nil
}

// postpone makes the work anew where data in use stood in its way: with the packages
// that changed it only unpacked. It gives back the work to go on with.
func (s *session) postpone(ctx context.Context, w *work, o apt.Options, ev Events) (*work, *aptWork, error) {
	var live []liveData
	for {
		did, err := w.runApt(ctx, o, ev)
		if _, ok := errors.AsType[*liveError](err); !ok || !o.LiveAfter {
			if err == nil {
				did.live = live
			}
			return w, did, err
		}
		if perr := s.postponable(); perr != nil {
			return w, nil, change.WithHint(fmt.Errorf("%w; %w", err, perr), "keep that package back with --hold")
		}
		grown := false
		for _, l := range did.live {
			for _, folder := range l.Folders {
				(&aptWork{live: live}).addLive(l.Package, folder)
			}
			if !slices.Contains(o.Postponed, l.Package) {
				o.Postponed, live, grown = append(o.Postponed, l.Package), append(live, l), true
			}
		}
		if !grown {
			// What changed it was no postinst, or is not known.
			return w, nil, err
		}
		if cerr := w.close(); cerr != nil {
			return nil, nil, cerr
		}
		if w, err = s.openWork(); err != nil {
			return nil, nil, err
		}
		o.Again = true
	}
}

// configureVerb is a package's configuration on the live system, after the commit.
const configureVerb = "configure"

// tellLive adds the live part to a plan, after all other steps.
func (a *aptWork) tellLive(p *change.Plan, facts *change.Facts) {
	if len(a.live) == 0 {
		return
	}
	var stops, configures, starts []change.Step
	seen := map[string]bool{}
	for _, l := range a.live {
		units, others := l.users(facts)
		for _, unit := range units {
			l.interrupt(p, unit)
			if !seen[unit] {
				seen[unit] = true
				stops = append(stops, change.Step{Do: "stop", Target: unit, Undo: "start"})
				starts = append(starts, change.Step{Do: "start", Target: unit, Undo: "stop"})
			}
		}
		configures = append(configures, change.Step{Do: configureVerb, Target: l.Package, Irreversible: true})
		text := fmt.Sprintf("%s changes data in %s: it is configured on the live system after the commit, which cannot be taken back", l.Package, strings.Join(l.Folders, ", "))
		if len(others) > 0 {
			text += "; " + strings.Join(others, ", ") + " has it open meanwhile"
		}
		p.Warnings = append(p.Warnings, text)
	}
	p.Steps = slices.DeleteFunc(p.Steps, func(st change.Step) bool {
		return seen[st.Target] && slices.Contains([]string{"reload", "restart", "start"}, st.Do)
	})
	at := slices.IndexFunc(p.Steps, func(st change.Step) bool { return st.Do == "verify" })
	if at < 0 {
		at = len(p.Steps)
	}
	p.Steps = slices.Insert(p.Steps, at, slices.Concat(stops, configures, starts)...)
	for i := range p.Steps {
		p.Steps[i].Seq = i + 1
	}
}

// users are the units of the host's manager that have the data open, and other processes.
func (l *liveData) users(facts *change.Facts) (units, others []string) {
	for folder, all := range sys.Users(l.Folders) {
		for _, who := range all {
			unit := who.Unit
			if facts != nil && facts.Units[unit] != nil && strings.HasSuffix(unit, ".service") {
				if !slices.Contains(units, unit) {
					units = append(units, unit)
				}
				continue
			}
			others = append(others, fmt.Sprintf("%s (in %s)", who.Writer, folder))
		}
	}
	slices.Sort(units)
	slices.Sort(others)
	return units, slices.Compact(others)
}

// interrupt says in the plan that a unit is stopped and started.
func (l *liveData) interrupt(p *change.Plan, unit string) {
	var reasons []change.Reason
	for _, folder := range l.Folders {
		reasons = append(reasons, change.Reason{Kind: "data", Path: folder, Detail: "is changed by " + l.Package + " while the unit is stopped"})
	}
	i := slices.IndexFunc(p.Units, func(u change.UnitPlan) bool { return u.Unit == unit && u.Manager == "" })
	if i < 0 {
		p.Units = append(p.Units, change.UnitPlan{Unit: unit})
		i = len(p.Units) - 1
	}
	p.Units[i].Action, p.Units[i].Needs = change.ActionRestart, change.ActionNone
	p.Units[i].Propagated = false
	p.Units[i].Reasons = append(p.Units[i].Reasons, reasons...)
	slices.SortStableFunc(p.Units, func(a, b change.UnitPlan) int { return cmp.Compare(a.Unit, b.Unit) })
}

// liveSteps are the live part of a plan: what comes last, from the stop of the first
// unit on that has the data open.
func liveSteps(steps []change.Step) []change.Step {
	first := slices.IndexFunc(steps, func(st change.Step) bool { return st.Do == configureVerb })
	if first < 0 {
		return nil
	}
	for first > 0 && steps[first-1].Do == "stop" {
		first--
	}
	return slices.DeleteFunc(slices.Clone(steps[first:]), func(st change.Step) bool { return st.Do == "verify" })
}

// configureLive carries out the live part: all of it that is not recorded as done.
func (r *run) configureLive(ctx context.Context) error {
	steps := liveSteps(r.p.plan.Steps)
	if len(steps) == 0 {
		return nil
	}
	recorded, err := r.tx.Steps()
	if err != nil {
		return err
	}
	ended := func(st change.Step) bool {
		return slices.ContainsFunc(recorded, func(res change.StepResult) bool {
			return res.Step == st && (res.Result == "done" || res.Result == "skipped")
		})
	}
	owing := slices.ContainsFunc(steps, func(st change.Step) bool { return st.Do == configureVerb && !ended(st) })
	if owing && !r.s.req.Force {
		release, err := r.dpkgLocks()
		if err != nil {
			return err
		}
		defer release()
	}
	for _, st := range steps {
		switch {
		case st.Do == configureVerb && ended(st), st.Do == "stop" && !owing:
		case st.Do == configureVerb && r.s.req.Force:
			r.settleStep(st, "skipped", "given up by --force", time.Now())
		case st.Do == configureVerb:
			if err := r.configure(ctx, st); err != nil {
				return err
			}
		default:
			if _, err := r.runSteps(ctx, []change.Step{st}); err != nil {
				return err
			}
		}
	}
	return nil
}

// dpkgLocks holds the package manager's locks but the one that dpkg takes itself.
func (r *run) dpkgLocks() (release func(), err error) {
	if r.p.yield != nil {
		return r.p.yield()
	}
	locks, err := apt.Lock(r.s.volumeOf, true)
	if err != nil {
		return nil, err
	}
	locks.Yield()
	return locks.Release, nil
}

// configureLimit is how long we wait for a package's configuration; it goes on by itself.
const configureLimit = time.Hour

// configureUnit runs it: as a unit of its own it outlives us, and no second one runs beside it.
const configureUnit = "liveupd-configure"

// configure has dpkg configure one package of the live system.
func (r *run) configure(ctx context.Context, st change.Step) error {
	began := time.Now()
	if err := r.record(change.StepResult{Step: st, Result: "begun"}); err != nil {
		return err
	}
	r.ev.progress("configuring", 0, 0, "", st.Target)
	// Killed with us it was not, or somebody has seen to it by hand.
	if out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", st.Target).Output(); err == nil && string(out) == "installed" {
		r.settleStep(st, "done", "it is configured already", began)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, configureLimit)
	defer cancel()
	argv := []string{"systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--unit=" + configureUnit, "--property=KillMode=process"}
	for _, e := range apt.LiveEnvironment() {
		argv = append(argv, "--setenv="+e)
	}
	argv = append(argv, "dpkg", "--force-confdef", "--force-confold", "--configure", st.Target)
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err == nil {
		r.settleStep(st, "done", "", began)
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end within %s, and goes on as %s.service", configureLimit, configureUnit)
	}
	r.settleStep(st, "failed", err.Error(), began)
	return fmt.Errorf("cannot configure %s on the live system: %w%s", st.Target, err, quoteOutput(out))
}

func (r *run) settleStep(st change.Step, result, detail string, began time.Time) {
	res := change.StepResult{MessageType: "step", Step: st, Result: result, Detail: detail, USec: time.Since(began).Microseconds()}
	if err := r.record(res); err != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("a step was not recorded: %v", err))
	}
	r.report.Steps = append(r.report.Steps, res)
	r.ev.emit(res)
}

// stuck ends a run whose live part failed. The transaction stays unfinished: what has
// to follow is recorded, and recovery takes it up.
func (r *run) stuck(err error) error {
	err = change.WithHint(fmt.Errorf("%w: the new files stay, for data has been changed with them; %w", change.ErrNeedsPerson, err),
		"mend what it says, then run: liveupd recover; or give it up: liveupd rollback --force")
	r.report.Result, r.report.Error = "failed", err.Error()
	return err
}

// awaitsPerson tells whether the live part of an unfinished transaction has failed: only
// who has looked at it has it tried again.
func (s *session) awaitsPerson(id string) bool {
	tx, err := s.store.Load(id)
	if err != nil {
		return false
	}
	defer tx.Close()
	recorded, err := tx.Steps()
	if err != nil || tx.State() != journal.Restarting {
		return false
	}
	at := slices.IndexFunc(recorded, func(res change.StepResult) bool { return res.Step.Do == configureVerb && res.Result == "failed" })
	return at >= 0
}

// unconfigured tells whether a plan's live part has still to come.
func unconfigured(plan *change.Plan, recorded []change.StepResult) bool {
	return plan != nil && slices.ContainsFunc(liveSteps(plan.Steps), func(st change.Step) bool {
		return st.Do == configureVerb && !slices.ContainsFunc(recorded, func(res change.StepResult) bool {
			return res.Step == st && (res.Result == "done" || res.Result == "skipped")
		})
	})
}

// refuseIrreversible refuses a rollback past a step that nothing takes back.
func (s *session) refuseIrreversible(targets []change.Generation) error {
	for _, g := range targets {
		tx, err := s.store.Load(g.ID)
		if err != nil {
			return err
		}
		recorded, err := tx.Steps()
		tx.Close()
		if err != nil {
			return err
		}
		var names []string
		for _, res := range recorded {
			if res.Step.Irreversible && (res.Result == "done" || res.Result == "failed") && !slices.Contains(names, res.Step.Target) {
				names = append(names, res.Step.Target)
			}
		}
		if len(names) == 0 {
			continue
		}
		text := fmt.Sprintf("%s was configured on the live system, and what it did to its data is not taken back", strings.Join(names, ", "))
		if s.req.Force {
			s.warnings = append(s.warnings, text)
			continue
		}
		return change.WithHint(fmt.Errorf("cannot roll back %s: %s; %w", g.ID, text, ErrNothingCommitted),
			"restore the data from a backup, then: liveupd rollback --force")
	}
	return nil
}
