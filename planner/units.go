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
	oneshot bool              // its work is done: no process belongs to it
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

// canReload tells whether a reload does anything: by the running manager's
// word, or by the definition.
func (u *unit) canReload() bool {
	if u.state != nil && u.state.CanReload || u.kind() == "mount" {
		return true
	}
	for _, d := range []*change.Unit{u.new, u.old} {
		if d != nil && (last(d, "Service", "ExecReload") != "" || last(d, "Service", "Type") == "notify-reload") {
			return true
		}
	}
	return false
}

// runtime tells whether the unit's definition lies in /run: generated or
// transient, so that no tree defines what runs.
func (u *unit) runtime() bool {
	return u.state != nil && strings.HasPrefix(u.state.FragmentPath, "/run/") &&
		(u.old == nil || u.old.Fragment != u.state.FragmentPath)
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
		names := append([]string{st.Name}, slices.Sorted(slices.Values(st.Names))...)
		u := &unit{name: st.Name, state: st, old: lookup(p.in.Old, names...), new: lookup(p.in.New, names...)}
		u.oneshot = u.kind() == "service" && (st.Type == "oneshot" || st.SubState == "exited")
		out[st.Name] = u
	}
	return out
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
