package planner

import (
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
)

// knownDaemon is an entry of the table for a unit, and what the star of the
// pattern that fits stood for.
type knownDaemon struct {
	*daemon
	star string
}

// tableIndex finds the entries that may be a unit's by their places in the table.
type tableIndex struct {
	byName map[string][]int // by the names that they give exactly
	byExec map[string][]int
	globs  []int // with patterns: any name may fit
}

var index = sync.OnceValue(func() *tableIndex {
	x := &tableIndex{byName: map[string][]int{}, byExec: map[string][]int{}}
	for i, d := range daemons {
		for _, pattern := range d.units {
			if strings.ContainsAny(pattern, `*?[\`) {
				x.globs = append(x.globs, i)
			} else {
				x.byName[pattern] = append(x.byName[pattern], i)
			}
		}
		if d.exec != "" {
			x.byExec[d.exec] = append(x.byExec[d.exec], i)
		}
	}
	return x
})

// daemons are the table's entries for a unit, in the table's order.
func (u *unit) daemons() []knownDaemon {
	if u.looked {
		return u.known
	}
	u.looked = true
	names := u.names()
	x := index()
	may := slices.Clone(x.globs)
	for _, name := range names {
		may = append(may, x.byName[name]...)
	}
	if def := u.definition(); def != nil {
		for _, use := range def.Uses {
			if use.Kind == "exec" {
				may = append(may, x.byExec[use.Path]...)
			}
		}
	}
	slices.Sort(may)
	for _, i := range slices.Compact(may) {
		if star, ok := daemons[i].knows(u, names); ok {
			u.known = append(u.known, knownDaemon{&daemons[i], star})
		}
	}
	return u.known
}

// knows tells whether the entry is one for the unit, and what the star stood for.
func (d *daemon) knows(u *unit, names []string) (star string, ok bool) {
	for _, pattern := range d.units {
		for _, name := range names {
			if ok, err := path.Match(pattern, name); err != nil || !ok {
				continue
			}
			if before, after, found := strings.Cut(pattern, "*"); found {
				star = strings.TrimSuffix(strings.TrimPrefix(name, before), after)
			}
			return star, true
		}
	}
	if d.exec == "" || u.definition() == nil {
		return "", false
	}
	return "", slices.ContainsFunc(u.definition().Uses, func(use change.Use) bool {
		return use.Kind == "exec" && use.Path == d.exec
	})
}

// configuration is step 5 of the package comment.
func (p *planning) configuration() {
	p.each(func(u *unit) {
		known := map[string]bool{} // paths that the table has decided on
		table := false
		for _, d := range u.daemons() {
			table = true
			p.table(u, d.daemon, d.star, known)
		}
		for _, pattern := range u.watched() {
			for _, e := range p.changed.matching(pattern) {
				p.config(u, e.Path, true, "X-Liveupd-Watch=", "declared by the unit")
			}
		}
		p.owned(u, table)
		p.commandLine(u, known)
		p.initScript(u, known)
	})
	for i := range noUnit {
		for _, pattern := range noUnit[i].itself {
			for _, e := range p.changed.matching(pattern) {
				p.checks = append(p.checks, change.Check{Argv: noUnit[i].check, Path: e.Path})
			}
		}
	}
}

// table applies one entry to a unit that it knows.
func (p *planning) table(u *unit, d *daemon, star string, known map[string]bool) {
	rule := ""
	find := func(patterns []string, do func(*change.Entry)) {
		for _, pattern := range patterns {
			rule = "the built-in table: " + d.units[0] + " reads " + pattern
			pattern = expand(strings.ReplaceAll(pattern, "%*", star), u.name)
			for _, e := range p.changed.matching(pattern) {
				if !known[e.Path] {
					known[e.Path] = true
					do(e)
				}
			}
		}
	}
	decide := func(reload bool) func(*change.Entry) {
		return func(e *change.Entry) {
			p.config(u, e.Path, reload, rule, "")
			p.validate(u, d, star, e.Path)
		}
	}
	find(d.restart, decide(false))
	// What counts most is named most exactly: a folder whose files the daemon
	// looks at by itself may hold some that it does not.
	if len(d.reload) > 0 && len(d.itself) > 0 && within(d.itself, d.reload) {
		find(d.itself, func(e *change.Entry) { p.spareConfig(u, e.Path) })
	}
	find(d.reload, decide(true))
	find(d.itself, func(e *change.Entry) { p.spareConfig(u, e.Path) })
}

// within tells whether each of a is a pattern inside of a folder of b.
func within(a, b []string) bool {
	return !slices.ContainsFunc(a, func(x string) bool {
		return !slices.ContainsFunc(b, func(y string) bool { return y != x && match(y, x) })
	})
}

func (p *planning) spareConfig(u *unit, file string) {
	p.spare(u.name, change.Reason{Kind: "config", Path: file}, "the daemon takes it up by itself")
}

// commandLine finds files that the unit's own command line names: -c /etc/foo.conf.
// What the trees know to be more than configuration is decided elsewhere.
func (p *planning) commandLine(u *unit, known map[string]bool) {
	def := u.definition()
	if def == nil || u.kind() != "service" {
		return
	}
	for _, s := range def.Settings {
		if s.Section != "Service" || s.Key != "ExecStart" {
			continue
		}
		argv := change.SplitArgv(expand(s.Value, u.name))
		for i, arg := range argv {
			if i == 0 {
				continue // the program itself
			}
			if _, value, ok := strings.Cut(arg, "="); ok && strings.HasPrefix(arg, "-") {
				arg = value
			}
			arg = strings.TrimRight(arg, "/")
			if !path.IsAbs(arg) || path.Clean(arg) != arg || arg == "/" || strings.ContainsAny(arg, `*?[\`) {
				continue
			}
			found := p.changed.matching(arg)
			if strings.HasPrefix(arg, "/etc/") {
				// Elsewhere a folder is what the daemon serves, and not what it reads first.
				found = slices.Concat(found, p.changed.matching(arg+"/**"))
			}
			for _, e := range found {
				if known[e.Path] || isData(e.Path) || p.machineState(e.Path) || usedOtherwise(u, e.Path) {
					continue
				}
				known[e.Path] = true
				p.config(u, e.Path, true, "ExecStart=", "named in its command line")
			}
		}
	}
}

// machineState are places that a daemon is handed to write to.
func (p *planning) machineState(file string) bool {
	return !strings.HasPrefix(file, "/etc/") && !strings.HasPrefix(file, "/usr/") && !strings.HasPrefix(file, "/opt/")
}

func usedOtherwise(u *unit, file string) bool {
	for _, def := range []*change.Unit{u.old, u.new} {
		if def != nil && slices.ContainsFunc(def.Uses, func(use change.Use) bool { return use.Path == file && use.Kind != "config" }) {
			return true
		}
	}
	return false
}

// initScript is for units that systemd makes of a script in /etc/init.d: the
// script, and the settings that such scripts read.
func (p *planning) initScript(u *unit, known map[string]bool) {
	source := last(u.definition(), "Unit", "SourcePath")
	name, ok := strings.CutPrefix(source, "/etc/init.d/")
	if !ok || name == "" || strings.Contains(name, "/") {
		return
	}
	for _, file := range []string{source, "/etc/default/" + name} {
		if e := p.changed.byPath[file]; e != nil && contentChanges(e) && !known[file] {
			p.config(u, file, false, "SourcePath="+source, "")
		}
	}
}

func (p *planning) config(u *unit, file string, reload bool, rule, detail string) {
	rung := change.ActionRestart
	if reload && u.canReload() {
		rung = change.ActionReload
	}
	p.raise(u, rung, change.Reason{Kind: "config", Path: file, Detail: detail, Rule: rule})
}

// owned are configuration files that the trees attribute to the unit: those
// that it declares, and those of its package where the table does not know
// the daemon better.
func (p *planning) owned(u *unit, known bool) {
	for _, def := range []*change.Unit{u.old, u.new} {
		if def == nil {
			continue
		}
		for _, use := range def.Uses {
			if use.Kind != "config" || !p.changed.at(use.Path) || leftBeside(use.Path) ||
				directory(p.changed.byPath[use.Path]) {
				continue
			}
			if !strings.HasPrefix(use.Via, "package ") {
				p.config(u, use.Path, true, "X-Liveupd-Watch=", "declared by the unit")
				continue
			}
			if known || isData(use.Path) ||
				slices.ContainsFunc(readByOthers, func(pattern string) bool { return match(pattern, use.Path) }) {
				continue
			}
			p.config(u, use.Path, true, use.Via, "of its "+use.Via)
		}
	}
}

// validate asks for the daemon's own word on its files. The program is the
// one that the unit runs, where it is the same.
func (p *planning) validate(u *unit, d *daemon, star, file string) {
	if len(d.check) == 0 {
		return
	}
	argv := make([]string, len(d.check))
	for i, a := range d.check {
		argv[i] = strings.ReplaceAll(a, "%*", star)
	}
	if def := u.definition(); def != nil {
		for _, use := range def.Uses {
			if use.Kind == "exec" && path.Base(use.Path) == path.Base(argv[0]) {
				argv[0] = use.Path
				break
			}
		}
	}
	p.checks = append(p.checks, change.Check{Unit: u.name, Argv: argv, Path: file})
}

// collectChecks adds what the units themselves ask for, and keeps each
// command once, with the first path that calls for it.
func (p *planning) collectChecks() {
	for name, v := range p.verdicts {
		u := p.running[name]
		var def *change.Unit
		if u != nil {
			def = u.definition()
		} else if v.start {
			def = lookup(p.in.New, name)
		}
		if def == nil || v.stop || v.propagated || v.deferred {
			continue
		}
		for _, s := range def.Settings {
			if s.Key != "X-Liveupd-Check" {
				continue
			}
			if argv := change.SplitArgv(expand(s.Value, name)); len(argv) > 0 {
				p.checks = append(p.checks, change.Check{Unit: name, Argv: argv, Path: firstPath(v.reasons, s.File)})
			}
		}
	}
	slices.SortFunc(p.checks, func(a, b change.Check) int {
		if c := strings.Compare(a.Unit, b.Unit); c != 0 {
			return c
		}
		if c := slices.Compare(a.Argv, b.Argv); c != 0 {
			return c
		}
		return strings.Compare(a.Path, b.Path)
	})
	seen := map[string]bool{}
	p.checks = slices.DeleteFunc(p.checks, func(c change.Check) bool {
		key := strings.Join(c.Argv, "\x00")
		twice := seen[key]
		seen[key] = true
		return twice
	})
}

func firstPath(reasons []change.Reason, otherwise string) string {
	for _, r := range tidyReasons(reasons) {
		if r.Path != "" {
			return r.Path
		}
	}
	return otherwise
}
