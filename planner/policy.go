package planner

import (
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// The administrator's rules come last and count most: over what a unit asks
// for itself, and over the built-in table of what components bear. Only the
// message bus stays what it is: nothing that a rule could say makes its
// clients survive.

// rule is the last one that applies to a unit's need because of a path; nil
// where none does. A path of "" is that of a reason which names a unit.
func (p *planning) rule(names []string, file string) *change.Rule {
	rules := p.in.Policy.Rules
	names = p.namesOf(names...)
	for i := range slices.Backward(rules) {
		if rules[i].Action != change.RuleLater && (p.applies(&rules[i], names, file) || p.appliesToAll(&rules[i], file)) {
			return &rules[i]
		}
	}
	return nil
}

// appliesToAll tells whether a rule keeps a user's manager from being
// interrupted: it does so for all of its units as well.
func (p *planning) appliesToAll(r *change.Rule, file string) bool {
	if p.manager == "" || len(r.Units) == 0 {
		return false
	}
	switch r.Action {
	case change.RuleDefer, change.RuleNever, change.RuleIgnore, "":
		return p.applies(r, []string{p.manager}, file)
	}
	return false
}

// later tells why a unit that may be interrupted comes in a later step of the same run,
// "" where it does not.
func (p *planning) later(u *unit) string {
	for i := range p.in.Policy.Rules {
		if r := &p.in.Policy.Rules[i]; r.Action == change.RuleLater && p.applies(r, p.namesOf(u.names()...), "") {
			return r.Reason
		}
	}
	return ""
}

func (p *planning) applies(r *change.Rule, names []string, file string) bool {
	if len(r.Units) > 0 && !slices.ContainsFunc(r.Units, func(pattern string) bool { return matchesAny(pattern, names) }) {
		return false
	}
	if slices.ContainsFunc(r.Except, func(pattern string) bool { return matchesAny(pattern, names) }) {
		return false
	}
	if len(r.Paths) > 0 && !slices.ContainsFunc(r.Paths, func(pattern string) bool { return match(pattern, file) }) {
		return false
	}
	return len(r.Packages) == 0 || slices.ContainsFunc(r.Packages, func(pattern string) bool {
		return matchesAny(pattern, p.in.Packages[file])
	})
}

func matchesAny(pattern string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		ok, err := path.Match(pattern, n)
		return err == nil && ok
	})
}

// namesOf adds to a unit's names those that tell it from another manager's:
// MANAGER/UNIT for a unit of a user.
func (p *planning) namesOf(names ...string) []string {
	if p.manager != "" {
		for _, n := range slices.Clone(names) {
			names = append(names, change.UnitKey(p.manager, n))
		}
	}
	return names
}

// ruling is what a rule comes to now, and why in one clause.
func (p *planning) ruling(r *change.Rule) (action, why string) {
	why = join(": ", "the policy of "+r.Source, r.Reason)
	if len(r.Windows) == 0 || p.in.Policy.Now == nil {
		return r.Action, why
	}
	var spans []string
	for _, w := range r.Windows {
		if w.Holds(*p.in.Policy.Now) {
			return r.Action, why
		}
		spans = append(spans, w.String())
	}
	return change.RuleDefer, join("; ", why, "it waits for "+strings.Join(spans, " or "))
}

// governed applies the rules to one need of a unit: the rung that is left of
// it, and whether anything is.
func (p *planning) governed(u *unit, rung change.Action, r change.Reason) (change.Action, change.Reason, bool) {
	rung, r, left := p.ruled(u, rung, r)
	why := p.later(u)
	if !left || why == "" || rung < change.ActionReload {
		return rung, r, left
	}
	r.Detail = join("; ", r.Detail, why)
	v := p.verdict(u.name)
	v.deferred = true
	v.reasons = append(v.reasons, r)
	return rung, r, false
}

// ruled is what the administrator's rules alone make of a need.
func (p *planning) ruled(u *unit, rung change.Action, r change.Reason) (change.Action, change.Reason, bool) {
	rule := p.rule(u.names(), r.Path)
	if rule == nil {
		return rung, r, true
	}
	action, why := p.ruling(rule)
	if action != "" {
		r.Rule = join("; ", r.Rule, "policy "+rule.Source)
	}
	switch action {
	case change.RuleIgnore:
		p.spare(u.name, r, why)
		return rung, r, false
	case change.RuleDefer, change.RuleNever:
		r.Detail = join("; ", r.Detail, why)
		v := p.verdict(u.name)
		v.reasons = append(v.reasons, r)
		if len(rule.Units) > 0 {
			// Outside of a window the unit's own wishes still count.
			v.deferred, v.ruled = true, v.ruled || rule.Action != ""
		} else {
			// It waits for what this path asks; another's need may be met.
			v.held = true
		}
		return rung, r, false
	case change.RuleRestart:
		p.verdict(u.name).ruled = true
		if rung < change.ActionRestart {
			r.Detail = join("; ", r.Detail, why)
		}
		return change.ActionRestart, r, true
	case change.RuleReload:
		v := p.verdict(u.name)
		v.ruled = true
		if rung < change.ActionRestart {
			break
		}
		r.Detail = join("; ", r.Detail, why)
		if u.canReload() {
			return change.ActionReload, r, true
		}
		r.Detail = join("; ", r.Detail, "and the unit has no reload")
		v.deferred = true
		v.reasons = append(v.reasons, r)
		return rung, r, false
	}
	return rung, r, true
}

// ruleStops applies the rules to units that come or go. It tells whether the
// verdict is settled.
func (p *planning) ruleStops(name string, v *verdict) bool {
	if !v.stop && !v.start {
		return false
	}
	file := firstPath(v.reasons, "")
	rule := p.rule([]string{name}, file)
	if rule == nil {
		return false
	}
	switch action, why := p.ruling(rule); action {
	case change.RuleIgnore:
		for _, r := range v.reasons {
			p.spare(name, r, why)
		}
		delete(p.verdicts, name)
		return true
	case change.RuleDefer, change.RuleNever:
		v.deferred = true
		v.explain(why)
		return true
	}
	return false
}

// protected tells why the rules keep a unit from being taken along by another
// one's job, "" where they do not.
func (p *planning) protected(u *unit) string {
	rules := p.in.Policy.Rules
	for i := range slices.Backward(rules) {
		r := &rules[i]
		if r.Action == change.RuleLater || len(r.Units) == 0 || len(r.Paths) > 0 || len(r.Packages) > 0 ||
			!p.applies(r, p.namesOf(u.names()...), "") && !p.appliesToAll(r, "") {
			continue
		}
		switch action, why := p.ruling(r); action {
		case change.RuleDefer, change.RuleNever:
			return why
		}
		return ""
	}
	return ""
}
