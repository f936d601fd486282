package ui

import (
	"fmt"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
)

// when writes a time of the machine's zone.
func (t *text) when(at int64) string { return time.Unix(at, 0).In(t.zone).Format("2006-01-02 15:04") }

// age writes how long ago something was, in its largest unit.
func age(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return plural(int(d/(24*time.Hour)), "day")
	case d >= 2*time.Hour:
		return plural(int(d/time.Hour), "hour")
	case d < time.Minute:
		return "just now"
	}
	return plural(int(d/time.Minute), "minute")
}

// waiting tells of a unit that was put off, since when and why.
func (t *text) waiting(w change.Waiting) {
	t.printf("%s %s needs a %s, put off since %s (%s)\n", t.paint(yellow, "deferred:"), unitName(w.Manager, w.Unit), w.Needs, t.when(w.Since),
		age(t.now().Sub(time.Unix(w.Since, 0))))
	if why := w.Why(); why != "" {
		t.printf("          %s\n", clean(why))
	}
}

// resultColor is that of an unattended run's result.
func resultColor(result string) string {
	switch result {
	case change.NightDone, change.NightNothing:
		return green
	case change.NightFailed, change.NightRolledBack, change.NightPerson:
		return red
	}
	return yellow
}

// nightStatus is what status tells of unattended runs.
func (t *text) nightStatus(s *change.NightStatus) {
	if s == nil {
		return
	}
	if s.Note != "" {
		t.printf("Unattended runs: %s\n", clean(s.Note))
		return
	}
	if !s.Enabled && s.Last == nil && s.Phase == "" {
		return
	}
	enabled := "enabled"
	if !s.Enabled {
		enabled = "not enabled"
	}
	t.printf("Unattended runs: %s\n", enabled)
	if s.Phase != "" {
		t.printf("  %s since %s: %s\n", t.paint(yellow, "under way"), t.when(s.Since), clean(s.Phase))
	}
	if s.Last != nil {
		t.printf("  last run %s: ", t.when(s.Last.Ended))
		t.nightResult(s.Last)
	}
	if c := s.Changed; c != nil && (s.Last == nil || c.Began != s.Last.Began) {
		t.printf("  last change %s: ", t.when(c.Ended))
		t.nightResult(c)
	}
	t.backOff(s.BackOff)
}

// nightResult is one run's result, in the rest of a line and what is to be added.
func (t *text) nightResult(n *change.Night) {
	text := n.Result
	switch {
	case n.ID != "":
		text += ", transaction " + clean(n.ID)
	case n.Reason != "":
		text += ": " + clean(n.Reason)
	}
	t.printf("%s\n", t.paint(resultColor(n.Result), text))
	if n.Error != "" {
		first, _, _ := strings.Cut(n.Error, "\n")
		t.printf("    %s\n", clean(first))
	}
	if n.Hint != "" {
		t.printf("    %s\n", clean(n.Hint))
	}
}

func (t *text) backOff(list []change.BackOff) {
	for _, b := range list {
		what := b.Source
		switch {
		case len(b.Packages) > 0:
			var names []string
			for _, p := range b.Packages {
				names = append(names, p.Name+" "+p.To)
			}
			const most = 4
			if n := len(names) - most; n > 0 {
				names = append(names[:most], fmt.Sprintf("%d more", n))
			}
			what = strings.Join(names, ", ")
		case b.Version != "":
			what = b.Name + " " + b.Version
		}
		times := ""
		if b.Failures > 1 {
			times = fmt.Sprintf(" %d times", b.Failures)
		}
		first, _, _ := strings.Cut(b.Error, "\n")
		t.printf("  %s %s failed%s, tried again from %s (or with: liveupd unattended --retry)\n    %s\n", t.paint(yellow, "backed off:"),
			clean(what), times, t.when(b.Until), clean(first))
	}
}

// Night prints what came of an unattended run.
func (t *text) Night(n *change.Night) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.warnings(n.Warnings)
	verb := "unattended"
	if n.DryRun {
		verb = "a run now would be"
	}
	if n.Resumed != "" {
		t.printf("taken up: %s\n", clean(n.Resumed))
	}
	text := verb + ": " + n.Result
	if n.ID != "" {
		text += ", transaction " + clean(n.ID)
	}
	if n.Reason != "" {
		text += ": " + clean(n.Reason)
	}
	t.printf("%s\n", t.paint(resultColor(n.Result), text))
	if len(n.Held) > 0 {
		t.printf("kept back: %s\n", clean(strings.Join(n.Held, ", ")))
	}
	for _, w := range n.Deferred {
		t.waiting(w)
	}
	switch {
	case n.Reboot > 0:
		t.printf("%s the machine reboots at %s\n", t.paint(yellow, "reboot:"), t.when(n.Reboot))
	case n.HostAction > change.ActionDaemonReexec:
		t.printf("%s %s is still needed\n", t.paint(yellow, "pending:"), n.HostAction)
	}
}

// Policy prints what an unattended run may do, condition by condition and rule by rule.
func (t *text) Policy(p *change.PolicyReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.warnings(p.Warnings)
	if p.Allowed {
		t.printf("%s\n", t.paint(green, "At "+t.when(p.At)+" an unattended run may change something"))
	} else {
		t.printf("%s\n", t.paint(yellow, "At "+t.when(p.At)+" an unattended run may change nothing"))
	}
	for _, a := range p.Allowances {
		mark, color := "yes", green
		if !a.Allows {
			mark, color = "no", red
		}
		t.printf("  %s  %-10s  %s\n", t.paint(color, fmt.Sprintf("%-3s", mark)), a.What, clean(a.Detail))
	}
	t.printf("  %-3s  %-10s  up to a %s; what is above is put off\n", "", "max", clean(p.Max))
	if len(p.Rules) > 0 {
		t.printf("%s\n", t.paint(bold, "Rules, of which the last one that applies counts"))
	}
	for _, r := range p.Rules {
		t.ruleState(r)
	}
	if len(p.BackOff) > 0 {
		t.printf("%s\n", t.paint(bold, "Failed before, and left alone for a while"))
		t.backOff(p.BackOff)
	}
	for _, w := range p.Deferred {
		t.waiting(w)
	}
}

func (t *text) ruleState(r change.RuleState) {
	var about []string
	for _, part := range [][]string{r.Units, r.Paths, r.Packages} {
		if len(part) > 0 {
			about = append(about, strings.Join(part, " "))
		}
	}
	what := r.Action
	if what == "" {
		what = "as planned"
	}
	if len(r.Windows) > 0 {
		state, verb := "open", "closes"
		if !r.Open {
			state, verb = "closed: put off", "opens"
		}
		what += " in " + strings.Join(r.Windows, ", ") + " (" + state
		if r.Changes > 0 {
			what += ", " + verb + " " + t.when(r.Changes)
		}
		what += ")"
	}
	t.printf("  %s: %s\n", clean(strings.Join(about, ", with ")), clean(what))
	for _, line := range []string{r.Reason, r.Source} {
		if line != "" {
			t.printf("      %s\n", t.paint(dim, clean(line)))
		}
	}
	if len(r.Running) > 0 {
		const most = 6
		names := r.Running
		if n := len(names) - most; n > 0 {
			names = append(names[:most:most], fmt.Sprintf("%d more", n))
		}
		t.printf("      running: %s\n", clean(strings.Join(names, ", ")))
	}
	if r.Never != "" {
		t.printf("      %s\n", t.paint(red, "an unattended run can never do it: "+r.Never))
	}
}
