package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/sandbox"
	"github.com/liveupd/liveupd/source/apt"
)

// unitStates are what the packages' scripts are told of the machine's units: the state of each by
// all of its names, none on a root that does not run. nil where systemd does not say.
func (w *work) unitStates(ctx context.Context) map[string]string {
	if !w.s.req.Live() {
		return map[string]string{}
	}
	b := openBus(ctx, 0, false)
	defer b.close()
	units, err := b.Units(ctx)
	if err != nil || len(units) == 0 || b.all(ctx, change.FieldNames) != nil {
		return nil
	}
	out := make(map[string]string, len(units))
	for name, u := range units {
		out[name] = u.ActiveState
	}
	return out
}

// withSystemctl gives a command of the operator's the systemctl that packages' scripts have:
// vendors' installers say enable --now, too.
func (w *work) withSystemctl(ctx context.Context, spec *sandbox.Spec) {
	states := w.unitStates(ctx)
	if states == nil {
		return
	}
	lay(spec, 0o755, apt.Systemctl(states))
	spec.Keep = append(spec.Keep, apt.Keep...)
	for i, e := range spec.Env {
		if rest, ok := strings.CutPrefix(e, "PATH="); ok {
			spec.Env[i] = "PATH=" + apt.BinDir + ":" + rest
		}
	}
}

// lay adds files to a sandbox, by name.
func lay(spec *sandbox.Spec, mode uint32, files map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		spec.Files = append(spec.Files, sandbox.File{Path: name, Mode: mode, Content: files[name]})
	}
}

// tellStopped says of which units the packages' scripts wanted an end, and which the plan leaves
// running: nothing of what changes tells that they should not run.
func tellStopped(recorded *apt.Recorded, p *change.Plan, facts *change.Facts) {
	if facts == nil {
		return
	}
	for _, unit := range recorded.Stopped() {
		u := facts.Units[unit]
		if u == nil || !u.Active() || slices.ContainsFunc(p.Units, func(up change.UnitPlan) bool {
			return up.Unit == u.Name && up.Manager == "" && up.Action == change.ActionStop
		}) {
			continue
		}
		p.Warnings = append(p.Warnings, fmt.Sprintf("a script asks for %s to be stopped, which the update does not do; if it shall not run: systemctl stop %s", u.Name, u.Name))
	}
}

// aptWaysOut are what to do about refusals of apt's that name options of its own, or nothing.
var aptWaysOut = []struct{ says, hint string }{
	{"--allow-change-held-packages", "name the package no more, or take its hold off: apt-mark unhold NAME"},
	{"--allow-downgrades", "to permit it, put into a file of /etc/apt/apt.conf.d: APT::Get::allow-downgrades \"true\";"},
	{"--allow-remove-essential", "to permit it, put into a file of /etc/apt/apt.conf.d: APT::Get::allow-remove-essential \"true\";"},
	{"dpkg was interrupted", "finish what it began: dpkg --configure -a"},
	{"Unmet dependencies", "mend what is installed: apt-get --fix-broken install"},
	{"E: packages are left half-installed", "mend them first: apt-get install --reinstall NAME, or dpkg --configure NAME"},
}

func aptWayOut(out []byte) string {
	for _, w := range aptWaysOut {
		if strings.Contains(string(out), w.says) {
			return w.hint
		}
	}
	return ""
}
