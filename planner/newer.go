package planner

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Newer is what became of files since the services that read them began.
type Newer struct {
	Tree *change.Tree // the root as it is, with what its services use
	// Changed are the files that Reads names and that changed since the first of
	// the services began, with when, in nanoseconds since the epoch.
	Changed map[string]int64
	// Denied are the files and folders of which we were not permitted to see when
	// they changed.
	Denied []string
	// Warnings tell what could not be found out about who reads them.
	Warnings []string
	// Epoch is when the monotonic clock stood at zero, in nanoseconds since the epoch.
	Epoch int64
}

// Reads lists what a machine's running services read that no process shows, once
// each: paths, and patterns as path.Match has them or DIR/**.
func Reads(tree *change.Tree, units map[string]*change.UnitState) []string {
	p := newPlanning(change.Input{Old: tree, New: tree, Facts: &change.Facts{Running: true, Units: units}})
	set := map[string]bool{}
	p.each(func(u *unit) {
		if u.kind() != "service" || u.definition() == nil {
			return
		}
		for _, use := range u.definition().Uses {
			if unread(use) && !compiled(use) || use.Kind == "config" {
				set[use.Path] = true
			}
		}
		for _, d := range u.daemons() {
			for _, pattern := range slices.Concat(d.reload, d.restart) {
				set[expand(strings.ReplaceAll(pattern, "%*", d.star), u.name)] = true
			}
		}
		for _, pattern := range u.watched() {
			set[pattern] = true
		}
	})
	out := make([]string, 0, len(set))
	for name := range set {
		if strings.HasPrefix(name, "/") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// UserReads is Reads for the units of a user's manager. Only single files are
// among them: a user could name patterns without an end.
func UserReads(tree *change.Tree, units map[string]*change.UnitState) []string {
	set := map[string]bool{}
	for name, st := range units {
		def := lookup(tree, name)
		if def == nil || !st.Active() {
			continue
		}
		for _, use := range def.Uses {
			if (unread(use) && !compiled(use) || use.Kind == "config") && path.IsAbs(use.Path) {
				set[use.Path] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// newer goes through what the services read, as if all that changed were part
// of an update, and keeps of each what changed after it began.
func (p *planning) newer(n *Newer) {
	if n == nil || n.Tree == nil {
		return
	}
	d := &change.Delta{}
	for name := range n.Changed {
		d.Entries = append(d.Entries, change.Entry{
			Path: name, Op: change.Replace, Old: &change.Node{}, New: &change.Node{}, Aspects: change.AspectContent,
		})
	}
	for _, w := range n.Warnings {
		p.warn("%s", w)
	}
	p.in.Delta, p.in.Old, p.in.New = d, n.Tree, n.Tree
	p.changed = newChanges(d)
	p.running = p.runningUnits()
	p.stale = func(u *unit, rung change.Action, r change.Reason) bool {
		if u.state == nil || u.ask(change.FieldInvoked).InvokedMonoUSec == 0 {
			return false // when it began is not known
		}
		since := u.state.InvokedMonoUSec
		if rung == change.ActionReload {
			since = max(since, u.ask(change.FieldChanged).StateChangeMonoUSec) // a reload is a change of state
		}
		return n.Changed[r.Path] > n.Epoch+int64(since)*1000
	}
	p.reach()
	if p.manager == "" {
		p.configuration()
	} else {
		p.userConfiguration()
	}
	p.stale = nil
	p.checks = nil
	clear(p.spared)
}
