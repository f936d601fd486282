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
			for _, w := range splitArgv(expand(s.Value, u.name)) {
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

// splitArgv splits a command line at blanks; quotes hold words together and a
// backslash takes the next byte as it is.
func splitArgv(s string) []string {
	var out []string
	var word strings.Builder
	inWord := false
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			word.WriteByte(s[i])
			inWord = true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteByte(c)
			}
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t':
			if inWord {
				out = append(out, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		out = append(out, word.String())
	}
	return out
}
