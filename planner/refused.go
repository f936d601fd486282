package planner

import (
	"maps"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// verifyUnits has systemd's own program look at the definitions of the units that the
// plan starts or restarts, where the tree says that the manager would not load them: its
// refusal would come after the commit.
func (p *planning) verifyUnits() {
	if p.static || p.manager != "" {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		v := p.verdicts[name]
		def := lookup(p.in.New, name)
		if u := p.running[name]; u != nil {
			def = u.new
		}
		if def == nil || def.Refused == "" || !v.starts() || p.generated(def.Fragment) {
			continue
		}
		path := def.Fragment
		for _, f := range append([]string{def.Fragment}, def.DropIns...) {
			if p.changedAt(f) {
				path = f
			}
		}
		p.checks = append(p.checks, change.Check{Unit: name, Argv: []string{"systemd-analyze", "verify", "--man=no", name}, Path: path})
	}
}
