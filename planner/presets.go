package planner

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// presets starts new units that a preset enables by name and that no link of the
// tree enables (systemd.preset(5)). Without a rule that names it a unit is left
// as the tree has it: who made the tree has decided.
func (p *planning) presets() {
	if p.in.Restore != nil {
		return // what comes back is no new unit: it was enabled, or was not
	}
	for _, l := range PresetLinks(p.in.Old, p.in.New) {
		p.startPreset(l)
	}
}

// Link is a symbolic link that enables a unit.
type Link struct {
	Path, Target string
	Unit         string // that it enables
	Rule         string // the preset file that asks for it
}

// byPreset is what Entry.MadeBy says of such links.
const byPreset = "preset"

// PresetLinks are the links that systemctl preset would make for the units that are new
// in the second tree and that a rule enables by name. A unit that the machine knew
// in any way, by a drop-in, a mask or a link, is the administrator's; one that
// the new tree enables is settled, too.
func PresetLinks(old, new *change.Tree) []Link {
	linked := map[string]bool{}
	for _, t := range []*change.Tree{old, new} {
		for _, u := range t.Units {
			for _, s := range u.Settings {
				switch path.Ext(path.Dir(s.File)) {
				case ".wants", ".requires", ".upholds":
					linked[s.Value] = true
				}
			}
		}
	}
	var out []Link
	done := map[string]bool{}
	var enable func(name string, def *change.Unit, rule string)
	enable = func(name string, def *change.Unit, rule string) {
		if done[name] {
			return
		}
		done[name] = true
		known := lookup(old, append([]string{name, def.Name}, def.Aliases...)...) != nil
		if known || def.Masked || def.Fragment == "" || linked[name] || old.Touched[name] || old.Touched[template(name)] {
			return
		}
		for _, s := range def.Settings {
			if s.Section != "Install" {
				continue
			}
			for w := range strings.FieldsSeq(s.Value) {
				by := expand(w, name)
				at := ""
				switch s.Key {
				case "WantedBy":
					at = by + ".wants/" + name
				case "RequiredBy":
					at = by + ".requires/" + name
				case "UpheldBy":
					at = by + ".upholds/" + name
				case "Alias":
					if kindOf(by) == kindOf(name) && by != name {
						at = by
					}
				case "Also":
					if also := new.Units[by]; also != nil {
						enable(by, also, rule)
					}
				}
				if at != "" && !strings.Contains(by, "/") {
					out = append(out, Link{Path: "/etc/systemd/system/" + at, Target: def.Fragment, Unit: name, Rule: rule})
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(new.Units)) {
		def := new.Units[name]
		if def.Name != name && !isTemplate(name) || def.Fragment == "" {
			continue
		}
		if rule := presetFor(new.Presets, name); rule != nil && rule.Do == "enable" {
			for _, n := range presetInstances(def, name, rule) {
				enable(n, def, rule.File)
			}
		}
	}
	slices.SortFunc(out, func(a, b Link) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(out, func(a, b Link) bool { return a.Path == b.Path })
}

// presetSteps are the units whose enablement comes with the update.
func (p *planning) presetSteps() []string {
	var out []string
	for _, e := range p.changed.sorted {
		if e.MadeBy == byPreset && e.Op == change.Add && isLink(e.New) {
			name := path.Base(e.Path)
			if dir := path.Ext(path.Dir(e.Path)); dir != ".wants" && dir != ".requires" && dir != ".upholds" {
				name = path.Base(e.New.Target) // an alias
			}
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *planning) startPreset(l Link) {
	by, dependency := strings.CutSuffix(path.Base(path.Dir(l.Path)), path.Ext(path.Dir(l.Path)))
	def := lookup(p.in.New, l.Unit)
	if _, reached := p.in.New.Reached[l.Unit]; reached || !dependency || def == nil || len(def.Unmet) > 0 || p.named(l.Unit) != nil || p.named(by) == nil {
		return
	}
	v := p.verdict(l.Unit)
	if v.start {
		return
	}
	v.start = true
	v.reasons = append(v.reasons, change.Reason{
		Kind: "unit-added", Path: def.Fragment, Unit: by, Detail: l.Rule + " enables it for " + by,
	})
	p.warn("%s: %s enables it, and no link in the tree does: to have it at the next boot, too, run: systemctl preset %s", l.Unit, l.Rule, l.Unit)
}

// presetFor is the first rule that names a unit, nil where none does.
func presetFor(rules []change.Preset, name string) *change.Preset {
	for i, r := range rules {
		if ok, err := path.Match(r.Pattern, name); err == nil && ok {
			return &rules[i]
		}
	}
	return nil
}

// presetInstances are the units that a rule enables: of a template the instances
// that the rule lists, else the template's default one.
func presetInstances(def *change.Unit, name string, rule *change.Preset) []string {
	if !isTemplate(name) {
		return []string{name}
	}
	instances := rule.Instances
	if d := last(def, "Install", "DefaultInstance"); len(instances) == 0 && d != "" {
		instances = []string{d}
	}
	out := make([]string, len(instances))
	for i, inst := range instances {
		at := strings.IndexByte(name, '@')
		out[i] = name[:at+1] + inst + name[at+1:]
	}
	return out
}
