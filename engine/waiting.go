package engine

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// What was put off. A transaction records which units it left with the old state, since
// when, why, and which run of each unit that is: by systemd's invocation ID and not by a
// time, for a clock may be set. A later transaction takes over what still waits.

// forgetDone drops from the list what is no longer pending: a host action
// until the machine has booted, a deferral until its unit was started anew, or reloaded
// where that was enough. A tree that no machine runs has nothing pending; what was taken
// back has what the rollback left to be done.
func (s *session) forgetDone(list []change.Generation) {
	var facts *change.Facts
	var reloaded map[string]string
	for i := range list {
		g := &list[i]
		if !s.req.Live() || g.State != "verified" && g.State != "rolled-back" || !g.ThisBoot {
			g.HostAction, g.Deferred, g.Waiting = change.ActionNone, nil, nil
		}
		if len(g.Waiting) == 0 {
			g.Deferred = nil
			continue
		}
		if facts == nil {
			facts = runningUnits(deferredUnits(list)...)
			reloaded = readReloaded()
		}
		g.Waiting = slices.DeleteFunc(g.Waiting, func(w change.Waiting) bool {
			u, known := stateOf(facts, w.Key())
			return known && !stillWaits(w, u) || w.Needs == change.ActionReload && g.ID <= reloaded[w.Key()]
		})
		g.Deferred = nil
		for _, w := range g.Waiting {
			g.Deferred = append(g.Deferred, w.Key())
		}
	}
}

// deferredUnits are all units that any transaction put off.
func deferredUnits(list []change.Generation) []string {
	var out []string
	for _, g := range list {
		for _, w := range g.Waiting {
			out = append(out, w.Key())
		}
	}
	return out
}

// stillWaits tells whether a unit runs what it ran when it was put off. One that does
// not run takes what is there with its next start.
func stillWaits(w change.Waiting, u *change.UnitState) bool {
	if u == nil || !u.Active() {
		return false
	}
	if w.Invocation == "" {
		// Its manager did not answer then: the time has to do.
		clocks, err := sys.ReadClocks()
		return err != nil || clocks.Real-clocks.Monotonic+int64(u.InvokedMonoUSec)*1000 <= w.Since*1e9
	}
	return u.InvocationID == w.Invocation
}

// waitingFor makes the records of what a plan puts off.
func (s *session) waitingFor(deferred []change.UnitPlan, now int64) []change.Waiting {
	if len(deferred) == 0 {
		return nil
	}
	keys := make([]string, 0, len(deferred))
	for _, u := range deferred {
		keys = append(keys, change.UnitKey(u.Manager, u.Unit))
	}
	facts := runningUnits(keys...)
	var out []change.Waiting
	for _, u := range deferred {
		const most = 4
		w := change.Waiting{Unit: u.Unit, Manager: u.Manager, Since: now, Needs: max(u.Needs, change.ActionReload), Reasons: u.Reasons}
		if w.Needs != change.ActionReload {
			w.Needs = change.ActionRestart
		}
		if len(w.Reasons) > most {
			w.Reasons = w.Reasons[:most]
		}
		if st, _ := stateOf(facts, w.Key()); st != nil {
			w.Invocation = st.InvocationID
		}
		out = append(out, w)
	}
	return out
}

// waiting is what earlier updates put off and what still has to be done, as units of a plan.
func (s *session) waiting() ([]change.UnitPlan, error) {
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	s.forgetDone(list)
	var out []change.UnitPlan
	for _, w := range Waiting(list) {
		u := change.UnitPlan{Unit: w.Unit, Manager: w.Manager, Action: change.ActionDefer, Reasons: w.Reasons, Needs: w.Needs}
		if len(u.Reasons) == 0 {
			u.Reasons = []change.Reason{{Kind: "deferred", Unit: w.Unit}}
		}
		out = append(out, u)
	}
	return out, nil
}

// Waiting sums up what transactions left to be done: each unit once, since the first of
// them that put it off, with what it needs at most, sorted by name.
func Waiting(list []change.Generation) []change.Waiting {
	found := map[string]change.Waiting{}
	for _, g := range list {
		for _, w := range g.Waiting {
			old, ok := found[w.Key()]
			if !ok {
				found[w.Key()] = w
				continue
			}
			if w.Since < old.Since {
				old.Since, old.By = w.Since, w.By
			}
			old.Needs = max(old.Needs, w.Needs)
			found[w.Key()] = old
		}
	}
	out := make([]change.Waiting, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[name])
	}
	return out
}

// carryOver adds what earlier updates left to be done, and what this one did
// not do either: their records go when they are collected. carried is what this one
// itself had taken over, where it is taken back now.
func (s *session) carryOver(id string, deferred []change.Waiting, carried change.Generation) (host change.Action, _ []change.Waiting) {
	list, err := s.store.List()
	if err != nil {
		s.warnings = append(s.warnings, fmt.Sprintf("what earlier updates left to be done is not known: %v", err))
		return host, deferred
	}
	list = slices.DeleteFunc(list, func(g change.Generation) bool { return g.ID == id })
	if carried.ID != "" {
		list = slices.Insert(list, 0, carried)
	}
	s.forgetDone(list)
	for _, g := range list {
		if g.HostAction >= change.ActionSoftReboot {
			host = max(host, g.HostAction)
		}
	}
	// As a transaction of its own, the first of the list: its reasons are the latest.
	return host, Waiting(append([]change.Generation{{Waiting: deferred}}, list...))
}

// carriedBy is what a transaction, which is about to be taken back, has taken over.
func carriedBy(g change.Generation) change.Generation {
	g.HostAction = g.CarriedHost
	g.Waiting = slices.DeleteFunc(slices.Clone(g.Waiting), func(w change.Waiting) bool { return w.By == g.ID })
	return g
}

// reloadedFile tells up to which transaction a unit was reloaded: a reload leaves no other
// trace. It goes with the boot, as the deferrals do.
const reloadedFile = runDir + "/reloaded.json"

func readReloaded() map[string]string {
	out := map[string]string{}
	b, err := os.ReadFile(reloadedFile)
	if err != nil || json.Unmarshal(b, &out) != nil {
		return map[string]string{} // a unit is reloaded once more
	}
	return out
}

// noteReloaded records that units took up all that is committed now.
func (s *session) noteReloaded(results []change.StepResult) error {
	list, err := s.store.List()
	if err != nil || len(list) == 0 {
		return err
	}
	all, changed := readReloaded(), false
	for _, r := range results {
		if r.Step.Do == "reload" && r.Result == "done" {
			all[change.UnitKey(r.Step.Manager, r.Step.Target)], changed = list[0].ID, true
		}
	}
	if !changed {
		return nil
	}
	return writeReloaded(all)
}

func writeReloaded(all map[string]string) error {
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	tmp := filepath.Join(runDir, ".reloaded")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("cannot note what was reloaded: %w", err)
	}
	return os.Rename(tmp, reloadedFile)
}

// noteRolledBack takes back that units were reloaded since a transaction that is
// rolled back now: they wait for a reload after that.
func noteRolledBack(waiting []change.Waiting) error {
	all, changed := readReloaded(), false
	for i := range waiting {
		if _, ok := all[waiting[i].Key()]; ok {
			delete(all, waiting[i].Key())
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return writeReloaded(all)
}
