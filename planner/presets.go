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
	for _, name := range slices.Sorted(maps.Keys(p.in.New.Units)) {
		def := p.in.New.Units[name]
		if def.Name != name && !isTemplate(name) || def.Masked || def.Fragment == "" || lookup(p.in.Old, append([]string{name}, def.Aliases...)...) != nil {
			continue
		}
		rule := presetFor(p.in.New.Presets, name)
		if rule == nil || rule.Do != "enable" {
			continue
		}
		for _, n := range presetInstances(def, name, rule) {
			p.startPreset(n, def, rule)
		}
	}
}

func (p *planning) startPreset(name string, def *change.Unit, rule *change.Preset) {
	if _, reached := p.in.New.Reached[name]; reached || p.named(name) != nil {
		return
	}
	for _, s := range def.Settings {
		if s.Section != "Install" || s.Key != "WantedBy" && s.Key != "RequiredBy" && s.Key != "UpheldBy" {
			continue
		}
		for w := range strings.FieldsSeq(s.Value) {
			by := expand(w, name)
			if p.named(by) == nil {
				continue
			}
			v := p.verdict(name)
			v.start = true
			v.reasons = append(v.reasons, change.Reason{
				Kind: "unit-added", Path: def.Fragment, Unit: by, Detail: rule.File + " enables it for " + by,
			})
			p.warn("%s: %s enables it, and no link in the tree does: to have it at the next boot, too, run: systemctl preset %s", name, rule.File, name)
			return
		}
	}
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
