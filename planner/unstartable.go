package planner

import (
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// unstartable stops the units whose restart could not come to its end: the program that
// they start goes with the update (a package is removed, and its unit file stays or is
// another's), or what they start under a condition of. systemd would stop them and not
// start them again, which after the commit is a failure that takes all of it back.
func (p *planning) unstartable() {
	for name, v := range p.verdicts {
		u := p.running[name]
		if u == nil || u.new == nil || u.new.Masked || v.deferred || v.stop || v.rung < change.ActionRestart {
			continue
		}
		if r, ok := p.noStart(u.new); ok {
			v.stop = true
			v.reasons = append(v.reasons, r)
			continue
		}
		if len(u.new.Unmet) == 0 {
			continue
		}
		// What held it back before the update is not for the update to enforce.
		why := slices.IndexFunc(u.new.Unmet, func(s change.Setting) bool {
			return u.old == nil || !slices.ContainsFunc(u.old.Unmet, func(o change.Setting) bool { return o.Key == s.Key && o.Value == s.Value })
		})
		if v.stop = why >= 0; v.stop {
			v.reasons = append(v.reasons, unmet(u.new.Unmet[why]))
			continue
		}
		r := unmet(u.new.Unmet[0])
		r.Detail += ": a restart would stop it"
		v.deferred = true
		v.reasons = append(v.reasons, r)
	}
}

// unmet tells of a condition that does not hold in the new tree.
func unmet(s change.Setting) change.Reason {
	return change.Reason{Kind: "unit-file", Path: s.File, Detail: s.Key + "=" + s.Value + " does not hold"}
}

// noStart tells why a unit can be started no more once the update is there.
func (p *planning) noStart(u *change.Unit) (change.Reason, bool) {
	return p.settles(u, change.Remove, change.Add, "it is removed, and the unit starts nothing else", "no longer holds")
}

// canStartNow tells why a service that a boot starts, and that could not be started
// before, can be: what unstartable would have stopped it for comes back. An
// oneshot is left to the next boot.
func (p *planning) canStartNow(u *change.Unit) (change.Reason, bool) {
	if u == nil || u.Masked || kindOf(u.Name) != "service" || last(u, "Service", "Type") == "oneshot" {
		return change.Reason{}, false
	}
	if old := p.in.Old.Units[u.Name]; old != nil && old.Name == u.Name && isOneshot(old) && !isOneshot(u) && !yes(last(old, "Service", "RemainAfterExit")) {
		return change.Reason{Kind: "unit-file", Path: u.Fragment, Detail: "it was a oneshot and is a daemon now, and a boot would start it"}, true
	}
	return p.settles(u, change.Add, change.Remove, "it is there now, and a boot would start it", "holds now")
}

// settles finds what decides whether a unit can be started: a program that is op'ed, a
// condition on a path that is op'ed, or one against a path to which the contrary happens.
func (p *planning) settles(u *change.Unit, op, contrary change.Op, program, condition string) (change.Reason, bool) {
	for _, s := range u.Settings {
		switch {
		case s.Section == "Service" && s.Key == "ExecStart":
			if file := startedProgram(s.Value); p.happens(op, file) {
				return change.Reason{Kind: "exec", Path: file, Detail: program}, true
			}
		case s.Section == "Unit" && (strings.HasPrefix(s.Key, "Condition") || strings.HasPrefix(s.Key, "Assert")):
			file, not := conditionOn(s)
			if !not && p.happens(op, file) || not && p.happens(contrary, file) {
				return change.Reason{Kind: "unit-file", Path: s.File, Detail: s.Key + "=" + s.Value + " " + condition}, true
			}
		}
	}
	return change.Reason{}, false
}

// startedProgram is the program of an ExecStart= line (systemd.service(5), "COMMAND
// LINES"): "" where its absence is no failure, or where it is looked up.
func startedProgram(line string) string {
	file, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	rest := strings.TrimLeft(file, "@-:+!|")
	if strings.Contains(file[:len(file)-len(rest)], "-") || !path.IsAbs(rest) || strings.ContainsAny(rest, `%"'\$`) {
		return ""
	}
	return rest
}

// conditionOn is the path that a condition needs, or must not find (systemd.unit(5),
// "Conditions and Asserts"), "" where it is of something else.
func conditionOn(s change.Setting) (file string, not bool) {
	switch strings.TrimPrefix(strings.TrimPrefix(s.Key, "Condition"), "Assert") {
	case "PathExists", "PathIsDirectory", "PathIsReadWrite", "DirectoryNotEmpty", "FileNotEmpty", "FileIsExecutable":
	default:
		return "", false
	}
	file, not = strings.CutPrefix(s.Value, "!")
	if !path.IsAbs(file) || strings.Contains(file, "%") {
		return "", false // with "|" one of several is enough
	}
	return path.Clean(file), not
}

// happens tells whether a path comes or goes, also where a unit file names it as it was
// before /usr was merged.
func (p *planning) happens(op change.Op, file string) bool {
	if file == "" {
		return false
	}
	for _, name := range []string{file, "/usr" + file} {
		if e := p.changed.byPath[name]; e != nil && e.Op == op {
			return true
		}
	}
	return false
}
