package planner

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// fstab compares the units that systemd's generator makes of the old and the
// new table: options are remounted, another device is mounted anew, a new line
// is mounted. A line that goes leaves its mount: nobody asked for it to be
// taken away under whoever uses it.
func (p *planning) fstab(old, new *change.HostConfig) {
	const file = "/etc/fstab"
	if !p.changed.at(file) || p.in.Generated != nil && p.in.Generated.Unseen == "" {
		return // not in it, or told by the units that are made of it
	}
	before := mountsOf(old.Fstab)
	after := mountsOf(new.Fstab)
	for _, e := range new.Fstab {
		name, ok := mountUnit(e)
		if !ok || after[name] != e {
			continue
		}
		was, there := before[name]
		r := change.Reason{Kind: "unit-file", Path: file, Detail: e.Where}
		switch u := p.named(name); {
		case there && was == e:
		case !there && u == nil:
			p.newMount(name, e, r)
		case u == nil:
		case was.What != e.What || was.Type != e.Type && !(was.Type == "auto" || e.Type == "auto"):
			r.Detail = fmt.Sprintf("%s: %s in place of %s", e.Where, e.What, was.What)
			if why := p.heldMount(u); why != "" {
				r.Detail += "; " + why
				p.postpone(name, r)
				continue
			}
			p.raise(u, change.ActionRestart, r)
		default:
			a, b := mountOptions(was.Options), mountOptions(e.Options)
			if slices.Equal(a, b) {
				continue
			}
			r.Detail = fmt.Sprintf("%s: Options=%s", e.Where, strings.Join(b, ","))
			if name == "-.mount" && slices.Contains(a, "ro") != slices.Contains(b, "ro") {
				r.Detail += "; the next boot mounts it so"
				p.postpone(name, r)
				continue
			}
			p.raise(u, change.ActionReload, r)
		}
	}
	for _, e := range old.Fstab {
		name, ok := mountUnit(e)
		if _, stays := after[name]; ok && !stays && p.named(name) != nil {
			p.warn("%s: %s is no longer in it and stays mounted", file, e.Where)
		}
	}
}

func (p *planning) newMount(name string, e change.FstabEntry, r change.Reason) {
	options := strings.Split(e.Options, ",")
	switch {
	case slices.Contains(options, "noauto"), e.Type == "swap":
		return
	case slices.Contains(options, "x-systemd.automount"):
		name = strings.TrimSuffix(name, ".mount") + ".automount"
	case slices.Contains(options, "nofail"):
		// Its device need not be there, and a start would wait for it.
		p.warn("%s: %s is mounted at the next boot, or by: systemctl start %s", r.Path, e.Where, name)
		return
	}
	v := p.verdict(name)
	v.start = true
	v.reasons = append(v.reasons, r)
}

func mountsOf(list []change.FstabEntry) map[string]change.FstabEntry {
	out := map[string]change.FstabEntry{}
	for _, e := range list {
		if name, ok := mountUnit(e); ok {
			out[name] = e
		}
	}
	return out
}

// mountUnit is the unit that an entry becomes. Swap devices are left alone.
func mountUnit(e change.FstabEntry) (string, bool) {
	if !path.IsAbs(e.Where) || e.Type == "swap" || slices.Contains(strings.Split(e.Options, ","), "bind") && e.What == e.Where {
		return "", false
	}
	return escapePath(e.Where) + ".mount", true
}

// escapePath is systemd-escape --path (systemd.unit(5)).
func escapePath(p string) string {
	p = strings.Trim(path.Clean(p), "/")
	if p == "" {
		return "-"
	}
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch {
		case c == '/':
			b.WriteByte('-')
		case c == '.' && i == 0, c != '_' && c != '.' && c != ':' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z'):
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// mountOptions are the options that reach the kernel, sorted; the others are
// for the generator and for the boot.
func mountOptions(s string) []string {
	var out []string
	for o := range strings.SplitSeq(s, ",") {
		key, _, _ := strings.Cut(o, "=")
		switch key {
		case "", "defaults", "auto", "noauto", "nofail", "_netdev", "comment", "user", "users", "owner", "group", "nouser":
			continue
		}
		if !strings.HasPrefix(key, "x-") && !strings.HasPrefix(key, "X-") {
			out = append(out, o)
		}
	}
	slices.Sort(out)
	return out
}
