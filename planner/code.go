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

// data are files that programs map and that are not code: a process that goes
// on with the old time zone or message catalogue is not stale.
var data = []string{
	"/usr/share/zoneinfo/**", "/usr/share/locale/**", "/usr/lib/locale/**", "/usr/share/i18n/**",
	"/usr/share/mime/**", "/usr/share/icons/**", "/usr/share/fonts/**", "/usr/share/ca-certificates/**",
	"/etc/ssl/certs/**", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/pam.d/**",
	"/usr/lib/*/gconv/gconv-modules.cache", "/usr/lib64/gconv/gconv-modules.cache",
}

func isData(p string) bool {
	return slices.ContainsFunc(data, func(pattern string) bool { return match(pattern, p) })
}

// bystanders are processes that use what goes and that no job on a unit
// reaches, by the unit or session that they belong to.
type bystanders map[string]map[string]int

func (b bystanders) add(group, comm string) {
	if b[group] == nil {
		b[group] = map[string]int{}
	}
	b[group][comm]++
}

// warn tells of each group once, with the names of its processes.
func (b bystanders) warn(p *planning, text string) {
	for _, group := range slices.Sorted(maps.Keys(b)) {
		p.warn("%s: %s (%s)", group, text, strings.Join(slices.Sorted(maps.Keys(b[group])), ", "))
	}
}

// code goes through the processes that use what goes.
func (p *planning) code() {
	hits := slices.Clone(p.facts.Hits)
	slices.SortFunc(hits, compareHits)
	sessions, leftovers := bystanders{}, bystanders{}
	for _, h := range hits {
		switch {
		case h.Kind != "namespace" && p.changed.same(h.Path):
			p.spareHit(h, p.changed.whySame(h.Path))
		case h.Kind == "mapped" && isData(h.Path):
			p.spareHit(h, "data, and no code")
		case h.Setuid:
			p.spareHit(h, "a set-id program ends with its command")
		case isSession(h):
			sessions.add(cmp.Or(h.Unit, "no unit"), h.Comm)
		case h.Leftover:
			p.spareHit(h, "the process is older than the unit's present start, and a restart would not reach it")
			leftovers.add(cmp.Or(h.Unit, "no unit"), h.Comm)
		default:
			p.hit(h)
		}
	}
	sessions.warn(p, "processes of a session keep what they have loaded until they end")
	leftovers.warn(p, "processes of an earlier start keep what they have loaded until they end")
}

func compareHits(a, b change.Hit) int {
	return cmp.Or(cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.UserUnit, b.UserUnit),
		cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Path, b.Path), cmp.Compare(a.PID, b.PID))
}

// isSession tells whether a process belongs to somebody who is logged in, or
// to no unit at all.
func isSession(h change.Hit) bool {
	if h.Container {
		return false
	}
	return h.Unit == "" && h.PID != 1 || kindOf(h.Unit) == "slice" ||
		strings.HasPrefix(h.Unit, "session-") && strings.HasSuffix(h.Unit, ".scope") ||
		isUserManager(h.Unit) && (h.Comm == "(sd-pam)" || kindOf(h.UserUnit) == "scope" && h.UserUnit != "init.scope")
}

func isUserManager(name string) bool { return template(name) == "user@.service" }

// hit is one process of a unit that uses what goes.
func (p *planning) hit(h change.Hit) {
	r := change.Reason{Kind: h.Kind, Path: h.Path, PID: h.PID, Comm: h.Comm, Detail: h.Detail}
	own := p.own(h.Unit) > 0
	switch u := p.named(h.Unit); {
	case h.PID == 1 || h.Unit == "init.scope":
		r.Kind = "pid1"
		r.Detail = join("; ", h.Kind, r.Detail)
		p.needHost(change.ActionDaemonReexec, r)
	case h.Container && h.Unit == "":
		p.warn("%s: a process of a container that shares the host's files keeps it until the container is started anew (%s, %d)", h.Path, h.Comm, h.PID)
	case h.Container:
		r.Detail = join("; ", "a container that shares the host's files", r.Detail)
		p.postpone(h.Unit, r)
	case isUserManager(h.Unit) && h.UserUnit != "" && h.UserUnit != "init.scope":
		p.user(h.Unit).hit(ofUser(h))
	case p.problem != "":
		r.Detail = join("; ", r.Detail, p.problem)
		p.postpone(h.Unit, r)
	case u == nil:
		// The unit has ended or is about to; its next start has the new code.
	case own && (kindOf(h.Unit) == "scope" || u.runtime()):
		// This very run: it ends by itself.
	case isRun(h.Unit):
		p.spareHit(h, runEnds)
	case isUserManager(h.Unit):
		p.raise(u, change.ActionReload, r)
	case u.kind() == "scope":
		r.Detail = join("; ", "a scope is started anew by whoever made it", r.Detail)
		p.postpone(u.name, r)
	case u.kind() != "service":
		r.Detail = join("; ", fmt.Sprintf("the %s's own helper runs it", u.kind()), r.Detail)
		p.postpone(u.name, r)
	case u.done() && !u.optsIn():
		r.Detail = join("; ", "a oneshot is not run again by itself", r.Detail)
		p.postpone(u.name, r)
	default:
		p.raise(u, change.ActionRestart, r)
	}
}

// Where processes can be looked at, only what they do not show is taken from
// the reach: a script is read, a module imported, a variable copied.
var unseen = map[string]bool{
	"script": true, "module": true, "environment": true, "credential": true, "bind": true, "root": true,
}

// unread tells whether no process would show a use. A module of machine code
// is mapped, and one that nobody has mapped is like any plugin.
func unread(use change.Use) bool {
	return unseen[use.Kind] && !(use.Kind == "module" && (strings.HasSuffix(use.Path, ".so") || strings.Contains(path.Base(use.Path), ".so.")))
}

// compiled tells whether a use is Python's cache of what it made of a source.
func compiled(use change.Use) bool {
	return use.Kind == "module" && strings.HasSuffix(use.Path, ".pyc") && path.Base(path.Dir(use.Path)) == "__pycache__"
}

// reach goes through what the trees say that services run and read.
func (p *planning) reach() {
	p.each(func(u *unit) {
		if u.kind() != "service" {
			return
		}
		for _, def := range []*change.Unit{u.old, u.new} {
			if def == nil {
				continue
			}
			for _, use := range def.Uses {
				p.use(u, def, use)
			}
		}
		if u.old != nil && u.new != nil && u.old != u.new && !u.runtime() {
			p.moved(u)
		}
	})
}

func (p *planning) use(u *unit, def *change.Unit, use change.Use) {
	if use.Kind == "config" || !p.changed.at(use.Path) {
		return
	}
	if p.changed.same(use.Path) {
		p.spare(u.name, used(u.name, def, use), p.changed.whySame(use.Path))
		return
	}
	if compiled(use) {
		// The interpreter compares it with its source, which has an entry of its
		// own where it changes.
		p.spare(u.name, used(u.name, def, use), "compiled from a source that stays, or that counts by itself")
		return
	}
	if !p.static && !unread(use) {
		// Where a process of it does, that decides.
		p.spare(u.name, used(u.name, def, use), "none of its processes uses it")
		return
	}
	if directory(p.changed.byPath[use.Path]) {
		return // what lies in it has its own entries, and a bound folder stays the same one
	}
	p.raise(u, change.ActionRestart, used(u.name, def, use))
	if !p.static || use.Kind != "soname" {
		return
	}
	for _, lib := range def.Chain(use.Path) {
		if managersOwn(lib) {
			// The manager stands on the same library and is no unit itself.
			p.needHost(change.ActionDaemonReexec, change.Reason{Kind: "pid1", Path: use.Path, Detail: "needed by " + path.Base(lib)})
			return
		}
	}
}

func managersOwn(lib string) bool {
	base := path.Base(lib)
	return strings.HasPrefix(base, "libsystemd-shared") || strings.HasPrefix(base, "libsystemd-core")
}

// moved finds uses that a changed link, or a changed order of library
// directories, leads elsewhere: no inode in use goes, and yet the next start
// would run something else. Where the old file itself changes, that is decided
// by the processes.
func (p *planning) moved(u *unit) {
	for _, kind := range []string{"exec", "interpreter", "soname"} {
		if kind == "exec" && execLines(u.old) != execLines(u.new) {
			continue // the unit file says it
		}
		was, is := only(u.old, u.new, kind), only(u.new, u.old, kind)
		for _, now := range is {
			i := slices.IndexFunc(was, func(before string) bool {
				return !p.changed.at(before) && (kind != "soname" || soname(before) == soname(now))
			})
			if i < 0 {
				continue
			}
			p.raise(u, change.ActionRestart, change.Reason{
				Kind: kind, Path: p.leadsTo(kind, now), Detail: fmt.Sprintf("%s in place of %s", now, was[i]),
			})
		}
	}
}

// execLines is all that a unit executes, for comparison.
func execLines(u *change.Unit) string {
	var b strings.Builder
	for _, s := range u.Settings {
		if s.Section == "Service" && strings.HasPrefix(s.Key, "Exec") {
			fmt.Fprintf(&b, "%s=%s\n", s.Key, s.Value)
		}
	}
	return b.String()
}

// only lists the paths of one kind that the first unit uses and the second does not.
func only(a, b *change.Unit, kind string) []string {
	set := map[string]bool{}
	for _, use := range a.Uses {
		if use.Kind == kind {
			set[use.Path] = true
		}
	}
	for _, use := range b.Uses {
		if use.Kind == kind {
			delete(set, use.Path)
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// soname is a library's name without its version: libz.so of libz.so.1.2.13.
func soname(lib string) string {
	base := path.Base(lib)
	if i := strings.Index(base, ".so"); i >= 0 {
		return base[:i+3]
	}
	return base
}

// leadsTo is the changed path for which another file is found now: a link, the
// file itself, or, of a library, what the loader finds its folders by.
func (p *planning) leadsTo(kind, now string) string {
	at := p.linkTo(now)
	if kind != "soname" || p.changed.at(at) {
		return at
	}
	for _, pattern := range []string{"/etc/ld.so.conf", "/etc/ld.so.conf.d/*", "/etc/ld.so.cache"} {
		if found := p.changed.matching(pattern); len(found) > 0 {
			return found[0].Path
		}
	}
	return at
}

// linkTo is the changed link that leads to a path, or the path itself.
func (p *planning) linkTo(to string) string {
	for _, e := range p.changed.links {
		if !isLink(e.New) {
			continue
		}
		target := e.New.Target
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(e.Path), target)
		}
		target = path.Clean(target)
		if to == target || strings.HasPrefix(to, target+"/") {
			return e.Path
		}
	}
	return to
}
