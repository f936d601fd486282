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
// each what was found, and why it is left alone where it is.
func explain(r *change.CheckReport, units map[string]*change.UnitState, asked []string) error {
	wanted := map[string]bool{}
	for _, name := range asked {
		if !slices.ContainsFunc(unitSuffixes, func(s string) bool { return strings.HasSuffix(name, s) }) {
			name += ".service"
		}
		x := change.Explanation{Unit: name, State: "not loaded", Reasons: []change.Reason{}, Spared: []change.Reason{}}
		u := units[name]
		if u != nil {
			x.Unit, x.State = u.Name, u.ActiveState
			if u.SubState != "" && u.SubState != u.ActiveState {
				x.State += " (" + u.SubState + ")"
			}
		}
		if !knownUnit(r, x.Unit) && (u == nil || u.LoadState == "not-found") {
			return change.WithHint(usage("systemd has no unit %s loaded", name), "see: systemctl list-units --all; or check without a name")
		}
		wanted[x.Unit] = true
		for _, s := range r.Units {
			if s.Unit == x.Unit {
				x.Action, x.Reasons = s.Action, append(x.Reasons, s.Reasons...)
			}
		}
		for _, h := range r.Spared {
			if h.Unit == x.Unit || h.UserUnit == x.Unit {
				x.Spared = append(x.Spared, change.Reason{Kind: h.Kind, Path: h.Path, PID: h.PID, Comm: h.Comm, Detail: h.Detail})
			}
		}
		c := r.Looked[x.Unit]
		x.Processes, x.Files = c.Processes, c.Files
		if u != nil && u.NeedDaemonReload {
			x.Spared = append(x.Spared, change.Reason{
				Kind: "unit-files", Path: u.FragmentPath, Detail: "changed since systemd read it: a daemon-reload of the host takes it up",
			})
		}
		r.Explanations = append(r.Explanations, x)
	}
	r.Units = slices.DeleteFunc(r.Units, func(s change.Stale) bool { return !wanted[s.Unit] })
	r.Sessions = slices.DeleteFunc(r.Sessions, func(h change.Hit) bool { return !wanted[h.Unit] })
	r.Waiting = slices.DeleteFunc(r.Waiting, func(name string) bool { return !wanted[name] })
	r.HostReasons = slices.DeleteFunc(r.HostReasons, func(h change.Reason) bool { return h.Unit != "" && !wanted[h.Unit] })
	if len(r.HostReasons) == 0 {
		r.HostAction = change.ActionNone
	}
	return nil
}

// knownUnit: a user's unit is in the report, and not among the system's.
func knownUnit(r *change.CheckReport, name string) bool {
	return slices.ContainsFunc(r.Units, func(s change.Stale) bool { return s.Unit == name })
}
