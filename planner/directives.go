package planner

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/change/directive"
)

// difference is one setting whose effective values mean something else.
type difference struct {
	section, key string
	file         string // a file in which it is set, or was
	old, new     []string
	kind         directive.Kind
	since        int // the version of systemd that it came in; 0: an early one, or nobody knows
}

// differences compares effective settings, in the order of sections and keys.
// Specifiers stand for what they mean in the unit called name.
func differences(name string, old, new *change.Unit) []difference {
	type id struct{ section, key string }
	type values struct {
		list []string
		file string
	}
	read := func(u *change.Unit) map[id]values {
		out := make(map[id]values, len(u.Settings))
		for _, s := range u.Settings {
			k := id{}
			k.section, k.key = directive.Modern(s.Section, s.Key)
			v := out[k]
			out[k] = values{append(v.list, s.Value), s.File}
		}
		return out
	}
	a, b := read(old), read(new)
	keys := maps.Clone(b)
	maps.Copy(keys, a)
	var out []difference
	for k := range keys {
		x, y := a[k].list, b[k].list
		moved := old.Fragment != new.Fragment && slices.ContainsFunc(y, namesFragment)
		if slices.Equal(x, y) && !moved {
			continue
		}
		d, known := directive.Find(k.section, k.key)
		kind := directive.Lines
		if known {
			kind = d.Kind
		}
		if directive.Equal(kind, d.Default, expandAll(x, name, old), expandAll(y, name, new)) {
			continue
		}
		out = append(out, difference{
			section: k.section, key: k.key, old: x, new: y, kind: kind, since: d.Since,
			file: cmp.Or(extraFile(new, old, k.section, k.key), b[k].file, a[k].file),
		})
	}
	slices.SortFunc(out, func(a, b difference) int {
		return cmp.Or(cmp.Compare(a.section, b.section), cmp.Compare(a.key, b.key))
	})
	return out
}

// extraFile is the file of an assignment that only one of the two has: of the
// new unit where there is one, else of the old.
func extraFile(new, old *change.Unit, section, key string) string {
	is := func(s change.Setting) bool {
		sec, k := directive.Modern(s.Section, s.Key)
		return sec == section && k == key
	}
	for _, pair := range [][2]*change.Unit{{new, old}, {old, new}} {
		for _, s := range pair[0].Settings {
			if is(s) && !slices.ContainsFunc(pair[1].Settings, func(o change.Setting) bool { return is(o) && o.Value == s.Value }) {
				return s.File
			}
		}
	}
	return ""
}

// changedFile is the path that the update changes and that a difference comes
// of. Where a file goes, or hides another, that is not the file of the setting.
func (p *planning) changedFile(d *difference, old, new *change.Unit) string {
	if p.changedAt(d.file) {
		return d.file
	}
	best := ""
	for _, u := range []*change.Unit{new, old} {
		for _, f := range append([]string{u.Fragment}, u.DropIns...) {
			switch {
			case !p.changedAt(f):
			case path.Base(f) == path.Base(d.file):
				return f
			case best == "":
				best = f
			}
		}
	}
	return cmp.Or(best, d.file)
}

// changedAt knows a path by its name without the merged /usr as well.
func (p *planning) changedAt(file string) bool {
	return p.changed.at(file) || strings.HasPrefix(file, "/lib/") && p.changed.at("/usr"+file)
}

// says is the difference in words: the section, the key, the old and the new value.
func (d *difference) says() string {
	head := fmt.Sprintf("[%s] %s=", d.section, d.key)
	if strings.HasPrefix(d.key, "SetCredential") {
		return head + " (differs)" // its value is a secret
	}
	if d.kind.Scalar() || len(d.old) <= 1 && len(d.new) <= 1 {
		return fmt.Sprintf("%s (%s → %s)", head, d.show(d.old), d.show(d.new))
	}
	less, more := items(d.kind, d.old), items(d.kind, d.new)
	var parts []string
	for _, v := range less {
		if !slices.Contains(more, v) {
			parts = append(parts, "-"+d.show([]string{v}))
		}
	}
	for _, v := range more {
		if !slices.Contains(less, v) {
			parts = append(parts, "+"+d.show([]string{v}))
		}
	}
	if len(parts) == 0 {
		return head + " (in another order)"
	}
	return head + " (" + strings.Join(parts, ", ") + ")"
}

// items are what a list adds up of.
func items(kind directive.Kind, values []string) []string {
	switch kind {
	case directive.Lines, directive.Command, directive.Filter:
		return values
	}
	return directive.Normal(kind, values)
}

// show prints a value, short and on one line.
func (d *difference) show(values []string) string {
	if len(values) == 0 {
		return "unset"
	}
	v := values[len(values)-1]
	if d.kind == directive.Env {
		words := directive.Fields(v)
		for i, w := range words {
			if name, _, ok := strings.Cut(w, "="); ok && secret(name) {
				words[i] = name + "=…"
			}
		}
		v = strings.Join(words, " ")
	}
	const most = 120
	if r := []rune(v); len(r) > most {
		v = string(r[:most]) + "…"
	}
	if v == "" || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(v)
	}
	return v
}

// secret tells whether a variable's name lets its value look like one.
func secret(name string) bool {
	name = strings.ToUpper(name)
	for _, s := range []string{"PASS", "SECRET", "TOKEN", "KEY", "CRED", "PWD"} {
		if strings.Contains(name, s) {
			return true
		}
	}
	return false
}

// managerHears is false for a setting that came in after the manager that
// runs, which ignores it, unless the update brings another manager.
func (p *planning) managerHears(d difference) bool {
	if p.static || d.since == 0 || p.facts.SystemdVersion == 0 || d.since <= p.facts.SystemdVersion {
		return true
	}
	return slices.ContainsFunc(managerFiles, func(f string) bool { return len(p.changed.matching(f)) > 0 })
}

func namesFragment(v string) bool { return strings.Contains(v, "%y") || strings.Contains(v, "%Y") }

func expandAll(values []string, name string, def *change.Unit) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v
		if strings.Contains(v, "%") {
			out[i] = expand(v, name)
			if namesFragment(v) {
				out[i] = strings.NewReplacer("%%", "%%", "%y", def.Fragment, "%Y", path.Dir(def.Fragment)).Replace(out[i])
			}
		}
	}
	return out
}
