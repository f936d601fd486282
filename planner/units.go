package planner

import (
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// unit is one unit that runs, or would on a machine that booted the old tree.
type unit struct {
	name    string
	old     *change.Unit      // nil where the old tree does not define it
	new     *change.Unit      // nil where the new tree does not
	state   *change.UnitState // nil without a running system
	oneshot bool              // without one: its work is done, and no process belongs to it
	lacks   Lacks             // the planning's
	known   []knownDaemon     // what daemons() found
	looked  bool              // it did
}

// Lacks is what a decision needs to know of units and what their states do not
// say: it is made anew when that is known. An empty one means that the decision
// stands.
type Lacks map[*change.UnitState]change.UnitFields

// ask gives the unit's state and notes what of it is needed.
func (u *unit) ask(need change.UnitFields) *change.UnitState {
	if need &= u.state.Lacks; need != 0 && u.lacks != nil {
		u.lacks[u.state] |= need
	}
	return u.state
}

// names are all that the unit is known by.
func (u *unit) names() []string {
	if u.state == nil {
		return []string{u.name}
	}
	return append([]string{u.name}, u.ask(change.FieldNames).Names...)
}

// done tells whether it is a oneshot: its work is done, and no process belongs to it.
func (u *unit) done() bool {
	if u.state == nil || u.kind() != "service" {
		return u.oneshot
	}
	return u.state.SubState == "exited" || u.ask(change.FieldType).Type == "oneshot"
}

// acceptedBy is the running socket with Accept=yes that the manager started an instance
// for, with one connection of it; "" for all other units (systemd.socket(5)).
func (p *planning) acceptedBy(u *unit) string {
	if u.kind() != "service" || instance(u.name) == "" {
		return ""
	}
	at := strings.IndexByte(u.name, '@')
	s := p.named(u.name[:at] + ".socket")
	if s == nil || s.old == nil || !yes(last(s.old, "Socket", "Accept")) {
		return ""
	}
	return s.name
}

// begins tells whether it did its work once by what it was, and is a daemon by what
// it will be: that one does not run yet.
func (u *unit) begins() bool {
	return u.old != nil && u.new != nil && !u.new.Masked && u.kind() == "service" && !u.runtime() &&
		isOneshot(u.old) && !isOneshot(u.new) && len(u.new.Settings) > 0
}

// kind is the unit's type: the suffix of its name.
func (u *unit) kind() string { return kindOf(u.name) }

func kindOf(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// definition is what the unit will be started from, else what it was.
func (u *unit) definition() *change.Unit {
	if u.new != nil {
		return u.new
	}
	return u.old
}

// canReload tells whether a reload does anything: by the definition that the manager
// has then, and where no tree holds that, by its own word. A reload that the update
// takes away would be a restart.
func (u *unit) canReload() bool {
	if u.kind() == "mount" {
		return true
	}
	if d := u.new; d != nil && !d.Masked && !u.runtime() {
		if reloads(d) {
			return true
		}
		if reloads(u.old) {
			return false
		}
	}
	return reloads(u.old) || u.state != nil && u.ask(change.FieldCanReload).CanReload
}

// reloads tells whether a definition has a reload.
func reloads(d *change.Unit) bool {
	return d != nil && (last(d, "Service", "ExecReload") != "" || last(d, "Service", "Type") == "notify-reload")
}

// runtime tells whether the unit's definition lies in /run: generated or
// transient, so that no tree defines what runs.
func (u *unit) runtime() bool {
	if u.state == nil {
		return false
	}
	fragment := u.ask(change.FieldFragment).FragmentPath
	return strings.HasPrefix(fragment, "/run/") && (u.old == nil || u.old.Fragment != fragment)
}

// last is the value of the last assignment of a key, "" where there is none.
func last(u *change.Unit, section, key string) string {
	out := ""
	if u != nil {
		for _, s := range u.Settings {
			if s.Section == section && s.Key == key {
				out = s.Value
			}
		}
	}
	return out
}

// isTemplate tells whether a name is a template's: foo@.service.
func isTemplate(name string) bool { return strings.Contains(name, "@.") }

// template is the template that an instance is made from, "" for other names.
func template(name string) string {
	at := strings.IndexByte(name, '@')
	dot := strings.LastIndexByte(name, '.')
	if at < 0 || dot < at+1 {
		return ""
	}
	return name[:at+1] + name[dot:]
}

// instance is what stands between @ and the type.
func instance(name string) string {
	at := strings.IndexByte(name, '@')
	dot := strings.LastIndexByte(name, '.')
	if at < 0 || dot < at {
		return ""
	}
	return name[at+1 : dot]
}

// lookup finds a unit in a tree by any of its names, or by its template.
func lookup(t *change.Tree, names ...string) *change.Unit {
	for _, n := range names {
		if u := t.Units[n]; u != nil {
			return u
		}
	}
	for _, n := range names {
		if tpl := template(n); tpl != "" {
			if u := t.Units[tpl]; u != nil {
				return u
			}
		}
	}
	return nil
}

// runningUnits are the units that an update may have to act on.
func (p *planning) runningUnits() map[string]*unit {
	out := map[string]*unit{}
	if p.static {
		for name := range p.in.Old.Reached {
			def := lookup(p.in.Old, name)
			if def == nil || def.Masked || isTemplate(name) {
				continue
			}
			if p.in.Old.Units[name] != nil {
				name = def.Name
			}
			u := &unit{name: name, old: def, new: lookup(p.in.New, append([]string{name}, def.Aliases...)...)}
			if u.kind() == "service" && isOneshot(def) {
				if !yes(last(def, "Service", "RemainAfterExit")) {
					continue // it ran at boot and has ended
				}
				u.oneshot = true
			}
			out[name] = u
		}
		return out
	}
	for _, st := range p.facts.Units {
		if st == nil || !st.Active() {
			continue
		}
		u := &unit{name: st.Name, state: st, lacks: p.lacks}
		u.old, u.new = u.defined(p.in.Old), u.defined(p.in.New)
		out[st.Name] = u
	}
	return out
}

// defined finds the running unit in a tree, by its own name before the others.
func (u *unit) defined(t *change.Tree) *change.Unit {
	if len(t.Units) == 0 {
		return nil
	}
	if def := t.Units[u.name]; def != nil {
		return def
	}
	names := u.names()
	slices.Sort(names[1:])
	return lookup(t, names...)
}

// isOneshot follows systemd.service(5): without Type= and ExecStart= a
// service is a oneshot too.
func isOneshot(u *change.Unit) bool {
	t := last(u, "Service", "Type")
	return t == "oneshot" || t == "" && last(u, "Service", "ExecStart") == "" && len(u.Settings) > 0
}

// named finds a running unit by any of its names.
func (p *planning) named(name string) *unit {
	if u := p.running[name]; u != nil {
		return u
	}
	if p.static {
		if def := p.in.Old.Units[name]; def != nil {
			return p.running[def.Name]
		}
		return nil
	}
	if st := p.facts.Units[name]; st != nil {
		return p.running[st.Name]
	}
	return nil
}

// each walks the running units in order of their names.
func (p *planning) each(do func(*unit)) {
	for _, name := range slices.Sorted(maps.Keys(p.running)) {
		do(p.running[name])
	}
}
