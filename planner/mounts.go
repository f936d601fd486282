package planner

import (
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// essential are folders of which a mount is never taken away under a running
// system; of the second ones neither anything below.
var (
	essential = []string{
		"/", "/usr", "/etc", "/var", "/var/lib", "/var/log", "/var/tmp", "/home", "/root", "/boot", "/boot/efi", "/efi",
		"/tmp", "/nix", "/nix/store", "/opt",
	}
	essentialBelow = []string{"/usr", "/run", "/dev", "/proc", "/sys"}
)

// heldMount tells why a mount cannot be taken away now, "" where nothing is
// known to hold it.
func (p *planning) heldMount(u *unit) string {
	where := last(u.old, "Mount", "Where")
	if where == "" {
		where = "/" + unescape(strings.TrimPrefix(strings.TrimSuffix(u.name, "."+u.kind()), "-"))
	}
	where = path.Clean(where)
	if slices.Contains(essential, where) || slices.ContainsFunc(essentialBelow, func(d string) bool { return below(where, d) }) {
		return "the system stands on this mount"
	}
	g := p.graph()
	along := map[string]bool{u.name: true}
	for _, r := range g.closure(&verdict{unit: u.name, stop: true}) {
		along[r.unit] = true
	}
	held := ""
	p.each(func(d *unit) {
		if held != "" || along[d.name] || d.done() || d.old == nil {
			return
		}
		for _, use := range d.old.Uses {
			if use.Path == where || below(use.Path, where) {
				held = d.name + " uses " + use.Path + " on it, and does not stop with it"
				return
			}
		}
		if kindOf(d.name) == "mount" && below(last(d.old, "Mount", "Where"), where) {
			held = d.name + " is mounted on it, and does not stop with it"
		}
	})
	return held
}

func readOnlyMount(u *change.Unit) bool {
	return slices.Contains(strings.Split(last(u, "Mount", "Options"), ","), "ro")
}

func below(name, dir string) bool {
	return strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

// shadowed tells whether a unit file or drop-in lies below another of its name
// in both trees, so that the manager reads neither the old nor the new one.
func (p *planning) shadowed(file string) bool {
	dir, name := path.Split(file)
	rank := p.rankOf(dir)
	if rank >= 0 {
		for _, t := range []*change.Tree{p.in.Old, p.in.New} {
			u := t.Units[name]
			if u == nil || u.Name != name || u.Fragment == "" || path.Base(u.Fragment) != name {
				return false
			}
			if r := p.rankOf(path.Dir(u.Fragment)); r < 0 || r >= rank {
				return false
			}
		}
		return true
	}
	folder := path.Base(dir)
	if rank = p.rankOf(path.Dir(path.Clean(dir))); rank < 0 || !strings.HasSuffix(folder, ".d") {
		return false
	}
	for _, t := range []*change.Tree{p.in.Old, p.in.New} {
		hidden := false
		for _, u := range t.Units {
			hidden = hidden || slices.ContainsFunc(u.DropIns, func(d string) bool {
				parent := path.Dir(d)
				r := p.rankOf(path.Dir(parent))
				return path.Base(d) == name && path.Base(parent) == folder && r >= 0 && r < rank
			})
		}
		if !hidden {
			return false
		}
	}
	return true
}

// dirRank is a folder's place in the load path, the highest first; -1 for others.
func dirRank(dir string) int {
	return slices.Index([]string{
		"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient", "/run/systemd/generator.early",
		"/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/usr/local/lib/systemd/system",
		"/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/generator.late",
	}, path.Clean(dir))
}
