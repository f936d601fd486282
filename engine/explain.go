package engine

import (
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// unitSuffixes are what the name of a unit may end with (systemd.unit(5)).
var unitSuffixes = []string{
	".service", ".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice", ".scope",
}

// explain narrows a report to the units that were asked about, and says of
// each what was found, and why it is left alone where it is. A name is also that of
// users' units; MANAGER/UNIT is one user's alone.
func explain(r *change.CheckReport, facts *change.Facts, asked []string) error {
	wanted := map[string]bool{}
	for _, name := range asked {
		if !slices.ContainsFunc(unitSuffixes, func(s string) bool { return strings.HasSuffix(name, s) }) {
			name += ".service"
		}
		found := namesakes(r, facts, name)
		if len(found) == 0 {
			return change.WithHint(usage("systemd has no unit %s loaded", name), "see: systemctl list-units --all; or check without a name")
		}
		for _, x := range found {
			key := change.UnitKey(x.Manager, x.Unit)
			wanted[key] = true
			r.Explanations = append(r.Explanations, explained(r, facts, x))
		}
	}
	r.Units = slices.DeleteFunc(r.Units, func(s change.Stale) bool { return !wanted[change.UnitKey(s.Manager, s.Unit)] })
	r.Sessions = slices.DeleteFunc(r.Sessions, func(h change.Hit) bool { return !wanted[h.Unit] && !wanted[change.UnitKey(h.Unit, h.UserUnit)] })
	r.Waiting = slices.DeleteFunc(r.Waiting, func(name string) bool { return !wanted[name] })
	r.HostReasons = slices.DeleteFunc(r.HostReasons, func(h change.Reason) bool { return h.Unit != "" && !wanted[h.Unit] })
	for i := range r.Effects {
		e := &r.Effects[i]
		e.Reasons = slices.DeleteFunc(e.Reasons, func(h change.Reason) bool { return !wanted[change.UnitKey(e.Target, h.Unit)] })
	}
	r.Effects = slices.DeleteFunc(r.Effects, func(e change.Effect) bool { return len(e.Reasons) == 0 })
	if len(r.HostReasons) == 0 {
		r.HostAction = change.ActionNone
	}
	return nil
}

// namesakes are the units of a name: the system's, and those of users.
func namesakes(r *change.CheckReport, facts *change.Facts, name string) []change.Explanation {
	var out []change.Explanation
	only, unit := change.SplitUnitKey(name)
	add := func(manager string, units map[string]*change.UnitState) {
		if only != "" && only != manager {
			return
		}
		u := units[unit]
		x := change.Explanation{Unit: unit, Manager: manager, State: "not loaded"}
		if u != nil && u.LoadState != "not-found" {
			x.Unit = u.Name
		} else if !slices.ContainsFunc(r.Units, func(s change.Stale) bool { return s.Unit == unit && s.Manager == manager }) {
			return
		}
		out = append(out, x)
	}
	add("", facts.Units)
	for _, m := range facts.Users {
		add(m.Unit, m.Units)
	}
	return out
}

// explained fills in what was found about a unit.
func explained(r *change.CheckReport, facts *change.Facts, x change.Explanation) change.Explanation {
	key := change.UnitKey(x.Manager, x.Unit)
	x.Reasons, x.Spared = []change.Reason{}, []change.Reason{}
	u, _ := stateOf(facts, key)
	if u != nil {
		x.State = u.ActiveState
		if u.SubState != "" && u.SubState != u.ActiveState {
			x.State += " (" + u.SubState + ")"
		}
	}
	for _, s := range r.Units {
		if s.Unit == x.Unit && s.Manager == x.Manager {
			x.Action, x.Reasons = s.Action, append(x.Reasons, s.Reasons...)
		}
	}
	for _, h := range r.Spared {
		if x.Manager == "" && h.Unit == x.Unit || x.Manager != "" && change.UnitKey(h.Unit, h.UserUnit) == key {
			x.Spared = append(x.Spared, change.Reason{Kind: h.Kind, Path: h.Path, PID: h.PID, Comm: h.Comm, Detail: h.Detail})
		}
	}
	c := r.Looked[key]
	x.Processes, x.Unread, x.Files = c.Processes, c.Unread, c.Files
	if u != nil && u.NeedDaemonReload {
		whose := "the host"
		if x.Manager != "" {
			whose = "its user's manager"
		}
		x.Spared = append(x.Spared, change.Reason{
			Kind: "unit-files", Path: u.FragmentPath, Detail: "changed since systemd read it: a daemon-reload of " + whose + " takes it up",
		})
	}
	return x
}
