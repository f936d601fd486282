package planner

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/change/directive"
)

// unitDirs is where the system manager reads units from (systemd.unit(5)), and
// the programs and tables that make units.
var unitDirs = []string{
	"/etc/systemd/system/", "/etc/systemd/system.control/", "/usr/local/lib/systemd/system/",
	"/usr/lib/systemd/system/", "/lib/systemd/system/",
	"/etc/systemd/system-generators/", "/usr/local/lib/systemd/system-generators/",
	"/usr/lib/systemd/system-generators/", "/lib/systemd/system-generators/",
	// The manager reads its own settings again at a daemon-reload.
	"/etc/systemd/system.conf.d/", "/usr/lib/systemd/system.conf.d/",
}

// unitTables are read by systemd's own generators and by the manager itself.
var unitTables = []string{"/etc/fstab", "/etc/crypttab", "/etc/veritytab", "/etc/integritytab", "/etc/systemd/system.conf"}

// unitFiles is step 3 of the package comment, starts aside.
func (p *planning) unitFiles() {
	p.each(p.unitFile)
	p.daemonReload()
}

// unitFile looks at the definition of one running unit.
func (p *planning) unitFile(u *unit) {
	if u.old == nil || u.old.Masked || u.runtime() {
		return
	}
	if kind, file := vanishes(u); kind != "" {
		p.vanish(u, change.Reason{Kind: kind, Path: file})
		return
	}
	if u.new == nil || u.new.Masked {
		return
	}
	byFile := map[string][]string{}
	worst := directive.Inert
	for _, d := range differences(u.name, u.old, u.new) {
		d.file = p.changedFile(&d, u.old, u.new)
		p.trigger(u, d)
		c := directive.ClassOf(u.kind(), d.section, d.key)
		if c < directive.Exec || !p.managerHears(d) || p.sameMount(u, d) {
			continue
		}
		worst = max(worst, c)
		byFile[d.file] = append(byFile[d.file], d.says())
	}
	rung, why := change.ActionRestart, ""
	switch {
	case worst == directive.Inert:
		return
	case worst == directive.Remount:
		rung = change.ActionReload
	case worst == directive.Swap:
		why = "switching it off would bring all its pages back into memory"
	case u.kind() == "mount":
		why = p.heldMount(u)
	}
	if worst == directive.Remount && u.name == "-.mount" && readOnlyMount(u.old) != readOnlyMount(u.new) {
		why = "the next boot mounts it so"
	}
	for _, file := range slices.Sorted(maps.Keys(byFile)) {
		r := change.Reason{Kind: "unit-file", Path: file, Detail: join("; ", strings.Join(byFile[file], "; "), why)}
		if why != "" {
			p.postpone(u.name, r)
			continue
		}
		p.raise(u, rung, r)
	}
	if u.kind() == "socket" && why == "" {
		for _, s := range p.triggeredBy(u) {
			p.raise(s, change.ActionRestart, change.Reason{
				Kind: "triggered", Unit: u.name,
				Detail: "a socket cannot be opened anew while its service runs",
			})
		}
	}
}

// trigger obeys NixOS's trigger keys: their values stand for what the service reads.
func (p *planning) trigger(u *unit, d difference) {
	r := change.Reason{Kind: "unit-file", Path: d.file, Detail: d.says()}
	switch d.key {
	case "X-Restart-Triggers":
		p.raise(u, change.ActionRestart, r)
	case "X-Reload-Triggers":
		rung := change.ActionRestart
		if u.canReload() {
			rung = change.ActionReload
		}
		p.raise(u, rung, r)
	}
}

// vanishes tells whether the new tree lacks or masks the unit, and by which path.
func vanishes(u *unit) (kind, file string) {
	if u.old.Fragment == "" {
		return "", "" // made by the manager itself: no tree defines it
	}
	switch {
	case u.new == nil || u.new.Fragment == "" && !u.new.Masked:
		return "unit-removed", u.old.Fragment
	case u.new.Masked:
		return "unit-masked", cmp.Or(u.new.Fragment, u.old.Fragment)
	}
	return "", ""
}

func (p *planning) vanish(u *unit, r change.Reason) {
	r = p.ofGenerated(r)
	if p.generated(u.old.Fragment) && (u.kind() == "mount" || u.kind() == "swap") {
		p.warn("%s: %s is no longer in it and stays", r.Path, u.name)
		return
	}
	switch u.kind() {
	case "service", "socket", "timer", "path", "automount":
	case "mount":
		if r.Detail = p.heldMount(u); r.Detail != "" {
			p.postpone(u.name, r)
			return
		}
	case "swap":
		r.Detail = "switching it off would bring all its pages back into memory"
		p.postpone(u.name, r)
		return
	default:
		return // a target or slice groups other units: it is not stopped for its own sake
	}
	v := p.verdict(u.name)
	v.stop = true
	v.reasons = append(v.reasons, r)
}

// triggeredBy are the running services that a socket hands its connections
// to. Instances of an Accept=yes socket have one of their own and stay.
func (p *planning) triggeredBy(u *unit) []*unit {
	if yes(last(u.definition(), "Socket", "Accept")) {
		return nil
	}
	var names []string
	if u.state != nil {
		names = slices.Sorted(slices.Values(u.ask(change.FieldTriggers).Triggers))
	} else {
		name := last(u.definition(), "Socket", "Service")
		names = []string{cmp.Or(name, strings.TrimSuffix(u.name, ".socket")+".service")}
	}
	var out []*unit
	for _, n := range names {
		if s := p.named(n); s != nil && !isTemplate(n) {
			out = append(out, s)
		}
	}
	return out
}

// daemonReload finds the files of unit definitions that change. The manager
// compares times, not content, and so calls a unit outdated whose file changed
// in a comment only: its copy is renewed as well, which interrupts nothing.
func (p *planning) daemonReload() {
	files := map[string]bool{}
	notes := map[string][]string{}
	for _, t := range []*change.Tree{p.in.Old, p.in.New} {
		for _, u := range t.Units {
			files[u.Fragment] = true
			for _, f := range u.DropIns {
				files[f] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.in.New.Units)) {
		old, new := p.in.Old.Units[name], p.in.New.Units[name]
		if old == nil || new.Name != name || new.Masked {
			continue
		}
		says := map[string][]string{}
		for _, d := range differences(name, old, new) {
			file := p.changedFile(&d, old, new)
			says[file] = append(says[file], d.says())
		}
		for file, list := range says {
			files[file] = true
			notes[file] = append(notes[file], name+": "+strings.Join(list, "; "))
		}
	}
	delete(files, "") // of units that have drop-ins only
	for _, e := range p.changed.content {
		if directory(e) || leftBeside(e.Path) {
			continue
		}
		short, merged := strings.CutPrefix(e.Path, "/usr")
		if !merged {
			short = ""
		}
		if !files[e.Path] && !files[short] && !p.definesUnits(e.Path) {
			continue
		}
		if len(notes[e.Path])+len(notes[short]) == 0 && p.shadowed(e.Path) {
			continue
		}
		detail := few(append(notes[e.Path], notes[short]...))
		if detail == "" && files[e.Path] && e.Op == change.Replace {
			detail = "no setting differs"
		}
		p.needHost(change.ActionDaemonReload, change.Reason{Kind: "unit-files", Path: e.Path, Detail: detail})
		delete(notes, e.Path)
		delete(notes, short)
	}
	p.generatedReload(notes)
	// A definition may lie outside of the unit directories, behind a link.
	for _, file := range slices.Sorted(maps.Keys(notes)) {
		if file != "" {
			p.needHost(change.ActionDaemonReload, change.Reason{Kind: "unit-files", Path: file, Detail: few(notes[file])})
		}
	}
}

// few joins what several units have of one file: a drop-in of a type is every
// service's.
func few(notes []string) string {
	const most = 3
	if more := len(notes) - most; more > 1 {
		return strings.Join(notes[:most], ", ") + fmt.Sprintf(", and %d more units", more)
	}
	return strings.Join(notes, ", ")
}

func underUnitDir(name string) bool {
	return slices.ContainsFunc(unitDirs, func(dir string) bool { return strings.HasPrefix(name, dir) })
}

// starts finds what the new tree reaches at a boot and the old one does not.
// What a timer, socket or path will trigger waits for its event.
func (p *planning) starts() {
	added := map[string]bool{}
	for again := true; again; {
		again = false
		for _, name := range slices.Sorted(maps.Keys(p.in.New.Reached)) {
			if !added[name] && p.newlyReached(name, added) {
				added[name], again = true, true
			}
		}
	}
	wanted := p.newlyWanted(added)
	for _, name := range slices.Sorted(maps.Keys(added)) {
		switch kindOf(name) {
		case "service", "socket", "timer", "path", "mount", "automount", "target":
		default:
			continue
		}
		by := cmp.Or(wanted[name], p.in.New.Reached[name])
		def := p.in.New.Units[name]
		if def == nil {
			def = lookup(p.in.New, name)
		}
		if p.optional(def) {
			p.warn("%s: %s is mounted at the next boot, or by: systemctl start %s", p.ofGenerated(change.Reason{Path: def.Fragment}).Path, last(def, "Mount", "Where"), name)
			continue
		}
		r := change.Reason{Kind: "unit-added", Path: def.Fragment, Unit: by, Detail: by + " wants it now"}
		if w := p.in.New.Units[by]; w != nil {
			if f := wantedIn(w, name); f != "" {
				r.Path = f
			}
		}
		if came, ok := p.canStartNow(def); ok && p.in.Old.Reached[name] != "" {
			r = came
		}
		if len(def.Unmet) > 0 {
			p.spare(name, r, unmet(def.Unmet[0]).Detail)
			continue
		}
		v := p.verdict(name)
		v.start = true
		if yes(last(def, "Unit", "RefuseManualStart")) {
			// Unless what needs it is started as well: then that brings it.
			v.deferred = true
			r.Detail += "; systemd refuses to start it by hand"
		}
		v.reasons = append(v.reasons, p.ofGenerated(r))
	}
}

// newlyWanted adds what a unit that runs, though no boot reaches it, wants or
// requires now and did not before.
func (p *planning) newlyWanted(added map[string]bool) map[string]string {
	by := map[string]string{}
	p.each(func(u *unit) {
		if u.old == nil || u.new == nil || u.new.Masked || u.runtime() {
			return
		}
		if kindOf(u.name) != "target" {
			return // what else wants a unit starts it when it is started itself
		}
		keys := append(slices.Concat(pullsHard, pullsSoft), "Requisite")
		old := dependencies(u.old, u.name, keys...)
		for _, n := range dependencies(u.new, u.name, slices.Concat(pullsHard, pullsSoft)...) {
			if !added[n] && !slices.Contains(old, n) && p.named(n) == nil && p.startable(n) != nil && !isTemplate(n) {
				added[n], by[n] = true, u.name
			}
		}
	})
	return by
}

func (p *planning) newlyReached(name string, added map[string]bool) bool {
	def := lookup(p.in.New, name)
	if def == nil || def.Masked || def.Fragment == "" || isTemplate(name) || p.named(name) != nil {
		return false
	}
	for _, n := range append([]string{name}, def.Aliases...) {
		if _, before := p.in.Old.Reached[n]; before {
			if _, comes := p.canStartNow(def); !comes {
				return false
			}
		}
		if p.named(n) != nil {
			return false
		}
	}
	by := p.in.New.Reached[name]
	switch kindOf(by) {
	case "timer", "socket", "path", "automount":
		return false
	case "target":
		// A target that this boot did not enter starts nothing.
		return p.static || added[by] || p.named(by) != nil
	}
	_, reached := p.in.Old.Reached[by]
	return reached || added[by] || p.named(by) != nil
}

// wantedIn is the file in which a unit says that it wants another.
func wantedIn(u *change.Unit, name string) string {
	for _, s := range u.Settings {
		switch s.Key {
		case "Wants", "Requires", "BindsTo", "Upholds", "Requisite":
			for w := range strings.FieldsSeq(s.Value) {
				if expand(w, u.Name) == name {
					return s.File
				}
			}
		}
	}
	return ""
}
