package planner

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// AskedSysctl are the names, with wildcards, of the kernel settings of which
// the old and the new tree have other lines: those that facts are needed of.
func AskedSysctl(old, new *change.HostConfig) []string {
	type line struct {
		key, value string
		exclude    bool
	}
	collect := func(h *change.HostConfig) map[line]bool {
		out := map[line]bool{}
		if h != nil {
			for _, l := range h.Sysctl {
				out[line{l.Key, l.Value, l.Exclude}] = true
			}
		}
		return out
	}
	a, b := collect(old), collect(new)
	keys := map[string]bool{}
	for l := range a {
		if !b[l] {
			keys[l.key] = true
		}
	}
	for l := range b {
		if !a[l] {
			keys[l.key] = true
		}
	}
	// The order of equal lines may differ.
	if old != nil && new != nil && len(keys) == 0 && !slices.EqualFunc(old.Sysctl, new.Sysctl, func(x, y change.SysctlLine) bool {
		return x.Key == y.Key && x.Value == y.Value
	}) {
		for l := range a {
			keys[l.key] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// AskedModules are the modules that one tree names and the other does not.
func AskedModules(old, new *change.HostConfig) []string {
	out := map[string]bool{}
	note := func(a, b *change.HostConfig) {
		if a == nil {
			return
		}
		for m := range a.Modules {
			if b == nil || b.Modules[m] == "" {
				out[m] = true
			}
		}
	}
	note(old, new)
	note(new, old)
	return slices.Sorted(maps.Keys(out))
}

// MatchSysctl tells whether a setting's name is one that a pattern names.
func MatchSysctl(pattern, key string) bool {
	// A star stays within one part, as in a path.
	ok, err := path.Match(strings.ReplaceAll(swapSeparators(pattern), "//", "/"), swapSeparators(key))
	return err == nil && ok
}

// swapSeparators makes a path of a dotted name, and the other way round.
func swapSeparators(key string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}

// setting is the line that decides for a key, nil where none does: its own
// last line, else the last wildcard that reaches it (sysctl.d(5)).
func setting(h *change.HostConfig, key string) *change.SysctlLine {
	var own, wild *change.SysctlLine
	for i := range h.Sysctl {
		l := &h.Sysctl[i]
		switch {
		case l.Key == key:
			own = l
		case !l.Exclude && strings.ContainsAny(l.Key, "*?[") && MatchSysctl(l.Key, key):
			wild = l
		}
	}
	switch {
	case own == nil:
		return wild
	case own.Exclude:
		return nil
	}
	return own
}

// sysctl sets the keys of which the value that counts changes, and no other.
func (p *planning) sysctl(old, new *change.HostConfig) {
	keys := map[string]bool{}
	for _, k := range AskedSysctl(old, new) {
		if !strings.ContainsAny(k, "*?[") {
			keys[k] = true
		}
	}
	for k := range p.facts.Host.Sysctl {
		keys[k] = true
	}
	loads := slices.ContainsFunc(p.effects, func(e change.Effect) bool { return e.Do == "modules-load" })
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		was, is := setting(old, key), setting(new, key)
		now, known := p.facts.Host.Sysctl[key]
		switch {
		case is == nil && was != nil:
			p.unset(key, was, now, known)
		case is == nil, was != nil && sameValue(was.Value, is.Value):
		case known && sameValue(now, is.Value):
			// Somebody has set it already.
		case !p.static && !known && !loads:
			p.warn("%s: the running kernel has no setting %s", is.File, key)
		default:
			undo := ""
			if known {
				undo = key + " = " + fold(now)
			}
			mark := ""
			if is.Lenient {
				mark = "-"
			}
			p.effect("sysctl", mark+key+" = "+fold(is.Value), undo, change.Reason{Kind: "sysctl", Path: is.File, Rule: "its last line for " + key + " counts"})
		}
	}
}

// unset is a key that no file sets any more. What it was before anybody set it
// is known only where the step that set it recorded it.
func (p *planning) unset(key string, was *change.SysctlLine, now string, known bool) {
	if p.static || !known {
		return
	}
	for _, st := range slices.Backward(p.in.Restore) {
		before, value := Assignment(st.Undo)
		if st.Do != "sysctl" || before != key {
			continue
		}
		if _, set := Assignment(st.Target); sameValue(set, now) && !sameValue(value, now) {
			p.effect("sysctl", key+" = "+value, key+" = "+fold(now), change.Reason{
				Kind: "sysctl", Path: was.File, Detail: key + ", as it was before the update",
			})
		}
		return
	}
	p.warn("%s: %s is set by no file any more and stays %s until the next boot", was.File, key, fold(now))
}

// Assignment splits the target of a sysctl step.
func Assignment(s string) (key, value string) {
	key, value, _ = strings.Cut(strings.TrimPrefix(s, "-"), "=")
	return strings.TrimSpace(key), strings.TrimSpace(value)
}

// fold makes one blank of what separates a setting's numbers.
func fold(s string) string { return strings.Join(strings.Fields(s), " ") }

func sameValue(a, b string) bool { return fold(a) == fold(b) }
