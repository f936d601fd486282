package planner

import (
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// A unit may say itself how it wants to be treated. The X- keys are NixOS's
// (nixos-rebuild's switch-to-configuration) and this program's own; systemd
// ignores keys with that prefix in every section.

// wish is the last value of an X- key in any section, "" where there is none.
func (u *unit) wish(key string) string {
	def := u.definition()
	if def == nil {
		return ""
	}
	out := ""
	for _, s := range def.Settings {
		if s.Key == key {
			out = s.Value
		}
	}
	return strings.TrimSpace(out)
}

// watched are the patterns of X-Liveupd-Watch=.
func (u *unit) watched() []string {
	def := u.definition()
	if def == nil {
		return nil
	}
	var out []string
	for _, s := range def.Settings {
		if s.Key == "X-Liveupd-Watch" {
			for _, w := range change.SplitArgv(expand(s.Value, u.name)) {
				if strings.HasPrefix(w, "/") {
					out = append(out, w)
				}
			}
		}
	}
	return out
}

// optsIn tells whether a oneshot asks to be run again.
func (u *unit) optsIn() bool {
	return u.wish("X-Liveupd-On-Change") == "restart" || u.wish("X-Restart-Triggers") != ""
}

// heed applies the unit's wishes to what has been found out about it.
func (p *planning) heed(u *unit, v *verdict) {
	if v.stop || v.rung < change.ActionReload && !v.deferred {
		return
	}
	switch wish := u.wish("X-Liveupd-On-Change"); wish {
	case "none":
		v.rung, v.deferred, v.reasons = change.ActionNone, false, nil
		return
	case "defer":
		v.deferred = true
		v.explain("the unit's X-Liveupd-On-Change= asks for it")
	case "restart":
		v.rung = change.ActionRestart
	case "reload":
		p.reloadInstead(u, v)
	case "":
	default:
		p.warn("%s: X-Liveupd-On-Change=%s is none of none, reload, restart, defer: ignored", u.name, wish)
	}
	if v.rung < change.ActionRestart {
		return
	}
	switch {
	case yes(u.wish("X-ReloadIfChanged")):
		p.reloadInstead(u, v)
	case no(u.wish("X-RestartIfChanged")):
		v.deferred = true
		v.explain("the unit's X-RestartIfChanged= asks for it")
	case yes(u.wish("X-StopIfChanged")):
		v.stopStart = slices.ContainsFunc(v.reasons, func(r change.Reason) bool { return r.Kind == "unit-file" })
	}
}

// reloadInstead lowers a restart to the reload that the unit promises is enough.
func (p *planning) reloadInstead(u *unit, v *verdict) {
	if v.rung < change.ActionRestart {
		return
	}
	if u.canReload() {
		v.rung = change.ActionReload
		return
	}
	v.deferred = true
	v.explain("it asks to be reloaded only, and has no reload")
}

// explain adds a clause to each reason.
func (v *verdict) explain(why string) {
	for i := range v.reasons {
		v.reasons[i].Detail = join("; ", v.reasons[i].Detail, why)
	}
}

// yes and no read a boolean as systemd does (systemd.syntax(7)).
func yes(s string) bool {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true
	}
	return false
}

func no(s string) bool {
	switch strings.ToLower(s) {
	case "0", "no", "n", "false", "f", "off":
		return true
	}
	return false
}

// healthOf are the commands of X-Liveupd-Health= which tell whether a unit that
// the plan interrupts or starts does what it is for.
func (p *planning) healthOf(name string) []string {
	v := p.verdicts[name]
	if v.deferred || v.stop || p.manager != "" || v.action() == change.ActionNone {
		return nil
	}
	def := lookup(p.in.New, name)
	if u := p.running[name]; u != nil {
		def = u.definition()
	}
	if def == nil {
		return nil
	}
	var out []string
	for _, s := range def.Settings {
		if s.Key == "X-Liveupd-Health" && strings.TrimSpace(s.Value) != "" {
			out = append(out, strings.TrimSpace(expand(s.Value, name)))
		}
	}
	return out
}
