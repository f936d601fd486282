package planner

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// The units of users are planned as the system's are, for each user's manager by
// itself: by what its processes use, by its unit files (the system's for
// users and the user's own), by what its services read. What is another:
//
//   - The host is no matter of theirs: a change of unit files is a daemon-reload
//     of that manager.
//   - Nothing that a user wrote is run: no validator, no health command.
//   - What somebody works in is never ended: applications, what belongs to a
//     graphical session, what was started by hand, and what holds keys in memory.
//   - A manager that does not answer has its units deferred.

// userComponents come before the components that the system's units have in common
// with a user's.
var userComponents = []component{
	{[]string{"dbus.service", "dbus-broker.service", "dbus-daemon.service"}, bearsNothing, "every client of the user's bus would lose its connection, and a desktop ends with it"},
	{[]string{"app-*.service", "app-*.scope"}, bearsNothing, "an application that its user works with"},
	{[]string{
		"gnome-session*.service", "org.gnome.*.service", "plasma-*.service", "sway*.service", "wayfire*.service", "hyprland*.service",
		"xfce4-*.service", "cinnamon-*.service", "mate-*.service", "lxqt-*.service", "xdg-desktop-portal*.service", "at-spi-dbus-bus.service",
		"xsession*.service", "wayland-*.service",
	}, bearsNothing, "a graphical session stands on it"},
	{[]string{"ssh-agent*.service", "gpg-agent*.service", "gcr-ssh-agent*.service", "gnome-keyring-daemon*.service", "keepassxc*.service", "secret-service*.service"}, bearsNothing, "the keys that it holds in memory would be lost"},
	{[]string{"tmux*.service", "screen*.service", "emacs*.service", "zellij*.service", "vncserver*.service", "x11vnc*.service", "gnome-remote-desktop*.service", "xrdp*.service"}, bearsNothing, "its user works in it"},
}

// sessionTargets are the targets that a graphical session consists of.
var sessionTargets = []string{"graphical-session.target", "graphical-session-pre.target", "xdg-desktop-autostart.target"}

// interactive tells why a unit of a user is what somebody works with, "" where
// nothing shows that.
func (p *planning) interactive(u *unit) string {
	if u.state != nil && strings.Contains(u.state.FragmentPath, "/systemd/transient/") {
		return "it was started by hand, and nothing starts it anew as it was"
	}
	for _, target := range sessionTargets {
		if st := p.facts.Units[target]; st != nil {
			part := slices.Concat(st.ConsistsOf, st.BoundBy, st.RequiredBy, st.RequisiteOf)
			if slices.ContainsFunc(u.names(), func(n string) bool { return slices.Contains(part, n) }) {
				return "it is a part of a graphical session"
			}
		}
		for _, def := range []*change.Unit{u.old, u.new} {
			if slices.Contains(dependencies(def, u.name, "PartOf", "BindsTo", "Requires", "Requisite"), target) {
				return "it is a part of a graphical session"
			}
		}
	}
	return ""
}

// userPlanning begins the plan for the units of one user's manager.
func (p *planning) userPlanning(m *change.UserManager) *planning {
	u := &planning{
		manager: m.Unit, problem: m.Problem,
		in:    change.Input{Delta: p.in.Delta, Old: m.Old, New: m.New, Policy: p.in.Policy, Packages: p.in.Packages},
		facts: &change.Facts{Running: true, Units: m.Units, Own: p.facts.Own, SystemdVersion: m.Version},
		// Both plans warn into one list.
		changed: p.changed, warnings: p.warnings, verdicts: map[string]*verdict{}, spared: map[string][]change.Reason{},
	}
	if u.in.Old == nil {
		u.in.Old = &change.Tree{}
	}
	if u.in.New == nil {
		u.in.New = &change.Tree{}
	}
	for _, t := range []*change.Tree{u.in.Old, u.in.New} {
		for _, w := range t.Warnings {
			p.warnings[m.Unit+": "+w] = true
		}
	}
	u.running = u.runningUnits()
	return u
}

// user is the plan for the units of a manager, also of one that nobody asked.
func (p *planning) user(manager string) *planning {
	u := p.users[manager]
	if u == nil {
		u = p.userPlanning(&change.UserManager{Unit: manager, Problem: "its manager was not asked"})
		p.users[manager] = u
	}
	return u
}

// eachUser walks them in the order of their managers' names.
func (p *planning) eachUser(do func(*planning)) {
	for _, name := range slices.Sorted(maps.Keys(p.users)) {
		do(p.users[name])
	}
}

// ofUser is a process of a user's unit as that user's manager has it.
func ofUser(h change.Hit) change.Hit {
	h.Unit, h.UserUnit = h.UserUnit, ""
	return h
}

// userUnits is what Make does of the system's units, as far as it applies.
func (p *planning) userUnits() {
	if p.problem != "" {
		p.unasked()
		return
	}
	p.unitFiles()
	p.starts()
	p.reach()
	p.userConfiguration()
	p.atRest()
}

// unasked tells of a manager that cannot be told of its unit files.
func (p *planning) unasked() {
	for _, e := range p.changed.content {
		if !directory(e) && underUserDir(e.Path) {
			p.warn("%s: %s: it goes on with the old %s until it reads its unit files again", p.manager, p.problem, e.Path)
			return
		}
	}
}

// userDirs is where the managers of all users read units from, and the programs and
// tables that make them.
var userDirs = []string{
	"/etc/systemd/user/", "/etc/xdg/systemd/user/", "/usr/local/lib/systemd/user/", "/usr/local/share/systemd/user/",
	"/usr/lib/systemd/user/", "/usr/share/systemd/user/", "/lib/systemd/user/",
	"/etc/systemd/user-generators/", "/usr/local/lib/systemd/user-generators/", "/usr/lib/systemd/user-generators/",
	"/etc/systemd/user.conf.d/", "/usr/lib/systemd/user.conf.d/",
}

func underUserDir(name string) bool {
	return name == "/etc/systemd/user.conf" || slices.ContainsFunc(userDirs, func(dir string) bool { return strings.HasPrefix(name, dir) })
}

// definesUnits tells whether a file is among those that the manager makes its
// units of.
func (p *planning) definesUnits(name string) bool {
	if p.manager == "" {
		return underUnitDir(name) || slices.Contains(unitTables, name)
	}
	if underUserDir(name) {
		return true
	}
	for _, t := range []*change.Tree{p.in.Old, p.in.New} {
		if slices.ContainsFunc(t.Path, func(dir string) bool { return below(name, dir) }) {
			return true
		}
	}
	return false
}

// rankOf is a folder's place in the load path, the highest first; -1 for others.
func (p *planning) rankOf(dir string) int {
	if p.manager == "" {
		return dirRank(dir)
	}
	return slices.Index(p.in.New.Path, path.Clean(dir))
}

// userConfiguration are the files of /etc that a user's services read: by the
// packages that own them, and by the command lines. The built-in table is of
// the system's daemons.
func (p *planning) userConfiguration() {
	p.each(func(u *unit) {
		known := map[string]bool{}
		p.owned(u, false)
		p.commandLine(u, known)
	})
}

// finishUser goes from needs to verdicts, as finish does.
func (p *planning) finishUser() {
	p.unstartable()
	p.bear()
	p.bound()
	p.propagate()
	p.settle()
	p.effects = p.managerEffect()
}

// managerEffect is the daemon-reload of the user's manager, where it is called for
// and permitted.
func (p *planning) managerEffect() []change.Effect {
	if len(p.host) == 0 || p.problem != "" || p.in.Policy.Max < change.ActionDaemonReload {
		return nil
	}
	return []change.Effect{{
		Do: change.ActionDaemonReload.String(), Target: p.manager, Undo: change.ActionDaemonReload.String(), Reasons: p.hostReasons(),
	}}
}

// userSteps are what this manager does after the commit.
func (p *planning) userSteps() []change.Step {
	var out []change.Step
	for _, e := range p.effects {
		out = append(out, change.Step{Do: e.Do, Target: "systemd", Undo: e.Undo, Manager: p.manager})
	}
	return append(out, p.jobs()...)
}
