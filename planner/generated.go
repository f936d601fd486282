package planner

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// What generators will make at the daemon-reload is part of the new tree's
// units, as if it lay in files of the update. A reason names what it is made of.

// ofGenerated gives a reason that names a generated file in terms of the changed
// path which that comes of.
func (p *planning) ofGenerated(r change.Reason) change.Reason {
	if p.in.Generated == nil {
		return r
	}
	f, ok := p.in.Generated.Files[r.Path]
	if !ok {
		return r
	}
	r.Rule = cmp.Or(r.Rule, f.By+" makes "+r.Path)
	r.Path = cmp.Or(f.From, r.Path)
	return r
}

// generated tells whether a unit file is a generator's.
func (p *planning) generated(file string) bool {
	return strings.HasPrefix(file, "/run/systemd/generator") && p.in.Generated != nil
}

// generatedReload asks for a daemon-reload where that changes a generated unit.
func (p *planning) generatedReload(notes map[string][]string) {
	if p.in.Generated == nil {
		return
	}
	type of struct{ from, by string }
	made := map[of][]string{}
	for _, file := range slices.Sorted(maps.Keys(p.in.Generated.Files)) {
		f := p.in.Generated.Files[file]
		text := strings.Join(notes[file], ", ")
		if text == "" && !strings.Contains(strings.TrimPrefix(file, "/run/systemd/generator"), ".d/") {
			text = file[strings.LastIndexByte(file, '/')+1:]
		}
		delete(notes, file)
		key := of{cmp.Or(f.From, file), f.By}
		if text != "" && !slices.Contains(made[key], text) {
			made[key] = append(made[key], text)
		}
	}
	for key, list := range made {
		p.needHost(change.ActionDaemonReload, change.Reason{
			Kind: "unit-files", Path: key.from, Detail: fmt.Sprintf("%s makes something else of it: %s", key.by, few(list)),
		})
	}
}

// unsureGenerators tells of generators that a daemon-reload runs and of which is
// not known what they will make.
func (p *planning) unsureGenerators() {
	g := p.in.Generated
	if g == nil || p.managerStep() == change.ActionNone {
		return
	}
	if g.Unseen != "" {
		p.warn("what the generators will make was not seen beforehand: %s", g.Unseen)
	}
	for name, why := range g.Unsure {
		p.warn("what %s will make is not known beforehand: %s", name, why)
	}
}

// sameMount tells of a mount unit that a difference in what fstab(5) says is for
// the generator or the boot, and not for the kernel.
func (p *planning) sameMount(u *unit, d difference) bool {
	if u.kind() != "mount" || d.section != "Mount" || !p.generated(u.new.Fragment) {
		return false
	}
	switch was, is := last(u.old, "Mount", d.key), last(u.new, "Mount", d.key); d.key {
	case "Options":
		return slices.Equal(mountOptions(was), mountOptions(is))
	case "Type":
		return was == "" || is == "" || was == "auto" || is == "auto"
	}
	return false
}

// optional tells of a generated mount whose device need not be there: a start
// would wait for it.
func (p *planning) optional(def *change.Unit) bool {
	return p.generated(def.Fragment) && kindOf(def.Name) == "mount" && slices.Contains(strings.Split(last(def, "Mount", "Options"), ","), "nofail")
}
