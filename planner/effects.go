package planner

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Settings of the host as a whole are applied at boot by oneshots, which
// nobody runs again. What an update changes of them is applied by steps of its
// own, in this order: users before the files that belong to them, modules
// before the settings that they bring (a boot does the same), all of it before
// any unit starts. An initrd is made last, from what then lies in the root.
var effectOrder = []string{
	"sysusers", "tmpfiles", "hwdb", "udev-reload", "udev-trigger",
	"modules-load", "modules-unload", "sysctl", "binfmt", "apparmor", "selinux", "initrd",
}

// effect notes a step on the host. What two paths ask for is one step.
func (p *planning) effect(do, target, undo string, r change.Reason) {
	if rule := p.rule(nil, r.Path); rule != nil {
		switch action, why := p.ruling(rule); action {
		case change.RuleIgnore:
			return
		case change.RuleDefer, change.RuleNever:
			p.warn("%s: %s %s waits for the next boot: %s", r.Path, do, target, why)
			return
		}
	}
	for i := range p.effects {
		if e := &p.effects[i]; e.Do == do && e.Target == target {
			e.Reasons = append(e.Reasons, r)
			return
		}
	}
	p.effects = append(p.effects, change.Effect{Do: do, Target: target, Undo: undo, Reasons: []change.Reason{r}})
}

// hostEffects finds what the update changes of the host's own settings.
func (p *planning) hostEffects() {
	old, new := p.in.Old.Host, p.in.New.Host
	if old == nil {
		old = &change.HostConfig{}
	}
	if new == nil {
		new = &change.HostConfig{}
	}
	p.createdAtBoot(old, new)
	p.udev(old, new)
	p.modules(old, new)
	p.sysctl(old, new)
	p.binfmt(old, new)
	p.fstab(old, new)
	p.apparmor()
	p.selinux()
	p.initrd()
}

// settleEffects puts the steps into their order, within what is permitted:
// who allows nothing at all wants the running system left alone.
func (p *planning) settleEffects() {
	for i := range p.effects {
		p.effects[i].Reasons = tidyReasons(p.effects[i].Reasons)
	}
	slices.SortStableFunc(p.effects, func(a, b change.Effect) int {
		return cmp.Or(cmp.Compare(slices.Index(effectOrder, a.Do), slices.Index(effectOrder, b.Do)), cmp.Compare(a.Target, b.Target))
	})
	if p.in.Policy.Max < change.ActionDaemonReload {
		for _, e := range p.effects {
			p.warn("%s: %s %s is more than the permitted %s: it waits for the next boot", e.Reasons[0].Path, e.Do, e.Target, p.in.Policy.Max)
		}
		p.effects = nil
	}
}

// effective lists the file names of a kind of which the content that counts
// changes, and the path that changes it.
func (p *planning) effective(kind string, old, new *change.HostConfig) (names []string, by map[string]string) {
	by = map[string]string{}
	before, after := old.Effective[kind], new.Effective[kind]
	all := maps.Clone(after)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, before)
	for name := range all {
		was, is := before[name], after[name]
		switch {
		case is != "" && p.changed.at(is):
			by[name] = is
		case was != is:
			by[name] = cmp.Or(is, was)
			// The path that hides it, or no longer does, says more.
			for _, dir := range []string{"/etc/", "/run/", "/usr/local/lib/", "/usr/lib/"} {
				at := dir + path.Base(path.Dir(cmp.Or(is, was))) + "/" + name
				if p.changed.at(at) {
					by[name] = at
					break
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(by)), by
}

// createdAtBoot are users, groups and files that the update asks for. What it
// no longer asks for stays: something may belong to it by now.
func (p *planning) createdAtBoot(old, new *change.HostConfig) {
	for _, kind := range []struct{ name, undo, rule string }{
		{"sysusers", "", "systemd-sysusers reads it at a boot"},
		{"tmpfiles", "tmpfiles", "systemd-tmpfiles reads it at a boot"},
	} {
		names, by := p.effective(kind.name, old, new)
		for _, name := range names {
			r := change.Reason{Kind: kind.name, Path: by[name], Rule: kind.rule}
			if new.Effective[kind.name][name] == "" {
				continue
			}
			p.effect(kind.name, name, kind.undo, r)
		}
	}
}

// udev loads changed rules and asks for the events of the devices that they name.
func (p *planning) udev(old, new *change.HostConfig) {
	rules, by := p.effective("udev", old, new)
	links, byLink := p.effective("link", old, new)
	hwdb, byHwdb := p.effective("hwdb", old, new)
	if len(hwdb) > 0 && !p.changed.at("/etc/udev/hwdb.bin") && !p.changed.at("/usr/lib/udev/hwdb.bin") {
		for _, name := range hwdb {
			p.effect("hwdb", "update", "hwdb", change.Reason{Kind: "hwdb", Path: byHwdb[name], Detail: "the database of hardware is made of it"})
		}
	}
	if !p.static && p.named("systemd-udevd.service") == nil {
		return // it reads them when it starts
	}
	for _, name := range rules {
		p.effect("udev-reload", "rules", "udev-reload", change.Reason{Kind: "udev", Path: by[name]})
		p.udevTriggers(name, by[name], old, new)
	}
	for _, name := range links {
		p.effect("udev-reload", "rules", "udev-reload", change.Reason{
			Kind: "udev", Path: byLink[name], Detail: "it is for interfaces that appear from now on",
		})
	}
}

// udevTriggers asks for events where a rule comes, goes or changes.
func (p *planning) udevTriggers(name, by string, old, new *change.HostConfig) {
	before := old.Udev[old.Effective["udev"][name]]
	after := new.Udev[new.Effective["udev"][name]]
	changed := append(onlyRules(before, after), onlyRules(after, before)...)
	if slices.ContainsFunc(changed, func(r change.UdevRule) bool { return r.Flow }) {
		// A jump decides for all that follows.
		changed = append(slices.Clone(before), after...)
	}
	named := map[string][]string{} // subsystems of rules without a name, by action
	all := map[string]bool{}
	var single []change.UdevMatch
	for _, r := range changed {
		m := r.Match
		switch {
		case r.Idle || r.Flow && len(m.Subsystems) == 0 && len(m.Names) == 0:
		case len(m.Names) > 0:
			single = append(single, m)
		case len(m.Subsystems) > 0:
			named[m.Action] = append(named[m.Action], m.Subsystems...)
		default:
			all[m.Action] = true
		}
	}
	trigger := func(action string, subsystems, names []string, detail string) {
		argv := []string{"--action=" + action}
		slices.Sort(subsystems)
		for _, s := range slices.Compact(subsystems) {
			argv = append(argv, "--subsystem-match="+s)
		}
		slices.Sort(names)
		for _, n := range slices.Compact(names) {
			argv = append(argv, "--sysname-match="+n)
		}
		p.effect("udev-trigger", strings.Join(argv, " "), "udev-trigger", change.Reason{Kind: "udev", Path: by, Detail: detail})
	}
	for _, action := range []string{"add", "change"} {
		if all[action] {
			trigger(action, nil, nil, "a rule names no subsystem")
			continue
		}
		if len(named[action]) > 0 {
			trigger(action, named[action], nil, "")
		}
		for _, m := range single {
			if m.Action != action || len(m.Subsystems) > 0 && covers(named[action], m.Subsystems) {
				continue
			}
			trigger(action, slices.Clone(m.Subsystems), slices.Clone(m.Names), "")
		}
	}
}

func covers(all, some []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// onlyRules are the rules of a that b lacks.
func onlyRules(a, b []change.UdevRule) []change.UdevRule {
	count := map[string]int{}
	for _, r := range b {
		count[r.Text]++
	}
	var out []change.UdevRule
	for _, r := range a {
		if count[r.Text]--; count[r.Text] < 0 {
			out = append(out, r)
		}
	}
	return out
}

// modules loads what is newly named. What is no longer named stays loaded:
// somebody may use it.
func (p *planning) modules(old, new *change.HostConfig) {
	for _, m := range slices.Sorted(maps.Keys(new.Modules)) {
		if _, before := old.Modules[m]; before {
			continue
		}
		file := new.Modules[m]
		switch p.facts.Host.Modules[m] {
		case "loaded", "builtin":
		case "absent":
			p.warn("%s: the running kernel has no module %s: it is loaded at a boot with one that has it", file, m)
		default:
			p.effect("modules-load", m, "modules-unload", change.Reason{Kind: "modules-load", Path: file, Detail: "it names " + m})
		}
	}
	for _, m := range slices.Sorted(maps.Keys(old.Modules)) {
		if _, stays := new.Modules[m]; stays || p.static {
			continue
		}
		switch {
		case p.facts.Host.Modules[m] != "loaded":
		case slices.ContainsFunc(p.in.Restore, func(st change.Step) bool { return st.Do == "modules-load" && st.Target == m }):
			p.effect("modules-unload", m, "modules-load", change.Reason{Kind: "modules-load", Path: old.Modules[m], Detail: "the update had loaded it"})
		default:
			p.warn("%s: module %s is no longer named and stays loaded until the next boot", old.Modules[m], m)
		}
	}
}

// binfmt registers what is new or differs with the kernel, and takes away what
// is gone. "-NAME" stands for no rule.
func (p *planning) binfmt(old, new *change.HostConfig) {
	all := maps.Clone(old.Binfmt)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, new.Binfmt)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		was, is := old.Binfmt[name], new.Binfmt[name]
		if was == is {
			continue
		}
		file := cmp.Or(new.BinfmtFile[name], old.BinfmtFile[name])
		p.effect("binfmt", cmp.Or(is, "-"+name), cmp.Or(was, "-"+name), change.Reason{Kind: "binfmt", Path: file, Detail: "rule " + name})
	}
}

// apparmor loads changed profiles into the kernel, where it confines by them.
func (p *planning) apparmor() {
	if !p.static && !p.facts.Host.AppArmor {
		return
	}
	const dir = "/etc/apparmor.d/"
	for _, e := range p.changed.matching(dir + "**") {
		name := strings.TrimPrefix(e.Path, dir)
		sub, _, below := strings.Cut(name, "/")
		r := change.Reason{Kind: "apparmor", Path: e.Path}
		switch {
		case !below && e.New == nil:
			p.warn("%s: the profile is gone and stays loaded until the next boot", e.Path)
		case !below:
			p.effect("apparmor", e.Path, "apparmor", r)
			p.checks = append(p.checks, change.Check{Argv: []string{"/usr/sbin/apparmor_parser", "--skip-kernel-load", "--skip-cache", e.Path}, Path: e.Path})
		case sub == "disable" || sub == "force-complain":
			p.warn("%s: it counts for %s from the next boot", e.Path, path.Base(e.Path))
		default:
			// Profiles include it, and which ones is for the parser to say.
			if u := p.named("apparmor.service"); u != nil {
				p.raise(u, change.ActionReload, change.Reason{Kind: "config", Path: e.Path, Detail: "profiles include it"})
			}
		}
	}
}

// selinuxPolicy is what a changed policy consists of.
var selinuxPolicy = []string{"/etc/selinux/*/policy/policy.*", "/usr/share/selinux/*/policy.*"}

// selinux loads a changed policy. A soft-reboot would keep the old labels of
// what survives it: the host has to go further where it needs one.
func (p *planning) selinux() {
	if !p.static && !p.facts.Host.SELinux {
		return
	}
	for _, pattern := range selinuxPolicy {
		for _, e := range p.changed.matching(pattern) {
			r := change.Reason{Kind: "selinux", Path: e.Path, Detail: "the policy"}
			if e.New != nil {
				p.effect("selinux", "policy", "selinux", r)
			}
			p.noSoftReboot = append(p.noSoftReboot, r)
		}
	}
	for _, e := range p.changed.matching("/etc/selinux/config") {
		p.warn("%s: the mode and the policy that it names count from the next boot", e.Path)
	}
}

// barSoftReboot lifts a soft-reboot where the policy changed.
func (p *planning) barSoftReboot() {
	if p.hostAction() != change.ActionSoftReboot {
		return
	}
	for _, r := range p.noSoftReboot {
		r.Detail += " changed: a soft-reboot would keep what was labelled by the old one"
		p.needHost(change.ActionKexec, r)
	}
}

// initrd makes the initrds anew that hold a copy of what changes.
func (p *planning) initrd() {
	f := &p.facts.Host
	if len(f.Initrd) == 0 || len(f.Rebuild) == 0 {
		return
	}
	if len(p.changed.matching("/boot/initrd*"))+len(p.changed.matching("/boot/initramfs*")) > 0 {
		return // the update brings them
	}
	const most = 10
	for i, file := range f.Initrd {
		r := change.Reason{Kind: "initrd", Path: file, Detail: "an initrd holds a copy"}
		if i == most && len(f.Initrd) > most+1 {
			r.Detail = fmt.Sprintf("and %d more, of which an initrd holds a copy", len(f.Initrd)-most-1)
		}
		p.effect("initrd", strings.Join(f.Rebuild, " "), "initrd", r)
		if i == most {
			break
		}
	}
}
