package rootfs

import (
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// udevTerm is one KEY{attribute}OPERATOR"value" of a rule.
type udevTerm struct{ key, op, value string }

// parseUdev reads a rules file (udev(7)): what each rule names of the devices
// that it is for. A jump past devices of other subsystems, with which many
// files begin, narrows the rules up to its label.
func parseUdev(s string) []change.UdevRule {
	type jump struct {
		label      string
		subsystems []string
		names      []string
		add        bool
	}
	var jumps []jump
	var out []change.UdevRule
	for _, text := range udevLines(s) {
		terms := udevTerms(text)
		if len(terms) == 0 {
			continue
		}
		r := change.UdevRule{Text: text, Match: change.UdevMatch{Action: "change"}}
		var goTo string
		not := jump{}
		conditions := 0
		for _, t := range terms {
			switch {
			case t.key == "LABEL":
				r.Flow = true
				jumps = slices.DeleteFunc(jumps, func(j jump) bool { return j.label == t.value })
			case t.key == "GOTO":
				r.Flow = true
				goTo = t.value
			case t.op == "==" || t.op == "!=":
				conditions++
			}
			alternatives := strings.Split(t.value, "|")
			switch {
			case t.key == "SUBSYSTEM" && t.op == "==":
				r.Match.Subsystems = alternatives
			case t.key == "SUBSYSTEM" && t.op == "!=":
				not.subsystems = alternatives
			case t.key == "KERNEL" && t.op == "==":
				r.Match.Names = alternatives
			case t.key == "KERNEL" && t.op == "!=":
				not.names = alternatives
			case t.key == "ACTION" && t.op == "==":
				r.Match.Action, r.Idle = udevAction(alternatives)
			case t.key == "ACTION" && t.op == "!=":
				action, idle := udevAction(alternatives)
				not.add = action == "add" && !idle
			}
		}
		for _, j := range jumps {
			if r.Match.Subsystems == nil {
				r.Match.Subsystems = j.subsystems
			}
			if r.Match.Names == nil {
				r.Match.Names = j.names
			}
			if j.add {
				r.Match.Action = "add"
			}
		}
		out = append(out, r)
		// Only a jump on this condition alone says something of all that follow.
		if goTo != "" && conditions == 1 && (not.subsystems != nil || not.names != nil || not.add) {
			not.label = goTo
			jumps = append(jumps, not)
		}
	}
	return out
}

// udevAction picks the event to ask for.
func udevAction(actions []string) (action string, idle bool) {
	has := func(a string) bool {
		return slices.ContainsFunc(actions, func(pattern string) bool { return pattern == a || strings.Contains(pattern, "*") })
	}
	switch {
	case has("change"):
		return "change", false
	case has("add"), has("bind"):
		return "add", false
	}
	return "change", true
}

// udevLines joins continued lines, drops comments and folds blanks.
func udevLines(s string) []string {
	var out []string
	var rule strings.Builder
	for l := range strings.Lines(s) {
		l = strings.TrimSpace(l)
		if rule.Len() == 0 && (l == "" || l[0] == '#') {
			continue
		}
		if strings.HasPrefix(l, "#") {
			continue // a comment between continued lines is left out
		}
		more := strings.HasSuffix(l, `\`)
		rule.WriteString(strings.TrimSuffix(l, `\`))
		if !more {
			if text := strings.Join(strings.Fields(rule.String()), " "); text != "" {
				out = append(out, text)
			}
			rule.Reset()
		} else {
			rule.WriteByte(' ')
		}
	}
	if text := strings.Join(strings.Fields(rule.String()), " "); text != "" {
		out = append(out, text)
	}
	return out
}

// udevTerms splits a rule. What is no term is skipped, as udev does.
func udevTerms(s string) []udevTerm {
	var out []udevTerm
	for {
		s = strings.TrimLeft(s, " \t,")
		// An attribute's name in braces may hold what else is an operator.
		start := 0
		if brace := strings.IndexByte(s, '{'); brace >= 0 && brace < strings.IndexAny(s+"=", "=!+-:") {
			if n := strings.IndexByte(s[brace:], '}'); n > 0 {
				start = brace + n
			}
		}
		i := strings.IndexAny(s[start:], "=!+-:")
		if i < 0 || start+i == 0 {
			return out
		}
		i += start
		key, _, _ := strings.Cut(strings.TrimSpace(s[:i]), "{")
		rest := s[i:]
		n := strings.IndexByte(rest, '"')
		if n < 0 {
			return out
		}
		op := strings.TrimSpace(rest[:n])
		// e"..." and i"..." are quotes with C escapes and without regard to case.
		op = strings.TrimRight(op, "ei")
		rest = rest[n+1:]
		end := 0
		for end < len(rest) && rest[end] != '"' {
			if rest[end] == '\\' && end+1 < len(rest) {
				end++
			}
			end++
		}
		end = min(end, len(rest))
		out = append(out, udevTerm{key: key, op: op, value: rest[:end]})
		s = rest[min(end+1, len(rest)):]
	}
}
