package ui

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
)

func (t *text) warnings(list []string) {
	for _, w := range list {
		fmt.Fprintf(t.diag, "%s %s\n", t.paint(yellow, "warning:"), clean(w))
	}
}

// Report prints the outcome in one line, and what is left to be done.
func (t *text) Report(r *change.Report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.warnings(r.Warnings)
	switch r.Result {
	case "done", "pending":
		line := fmt.Sprintf("%s: done", r.Verb)
		if r.ID != "" {
			line += ", transaction " + clean(r.ID)
		}
		if r.Verb == "clean" {
			line = fmt.Sprintf("clean: %s removed, %s free again", removed(r), bytesText(r.FreedBytes))
		}
		if r.SwapUSec > 0 {
			line += fmt.Sprintf("; old and new could be met for %s", duration(uint64(r.SwapUSec)))
		}
		if len(r.Frozen) > 0 {
			line += fmt.Sprintf("; %s stood still for %s", plural(len(r.Frozen), "unit"), duration(uint64(r.FrozenUSec)))
		}
		t.printf("%s\n", t.paint(green, line))
	case "nothing-to-do":
		if !t.nothing {
			t.printf("Nothing to do.\n")
		}
	case "rolled-back":
		t.printf("%s\n", t.paint(red, r.Verb+": failed after the commit; the tree and the units are as they were before"))
	case "undone":
		t.printf("%s\n", t.paint(yellow, r.Verb+": interrupted before the commit point; nothing changed"))
	case "failed":
		// The error line says what.
	}
	t.watched(r)
	for _, u := range r.Deferred {
		t.printf("%s %s still runs what was there before\n", t.paint(yellow, "deferred:"), unitName(u.Manager, u.Unit))
		t.reasons(u.Reasons)
	}
	if r.HostAction > change.ActionNone {
		t.printf("%s %s is still needed\n", t.paint(yellow, "pending:"), r.HostAction)
	}
}

// Check prints the stale units with the processes that show it.
func (t *text) Check(r *change.CheckReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.warnings(r.Warnings)
	t.gaps(r)
	if len(r.Explanations) > 0 {
		for _, x := range r.Explanations {
			t.explain(x)
		}
		return
	}
	t.releases(r)
	if len(r.Waiting) > 0 {
		t.printf("%s\n", t.paint(bold, "Put off by an earlier update"))
		for _, name := range r.Waiting {
			t.printf("  %s\n", keyName(name))
		}
	}
	if len(r.Units) == 0 && len(r.Effects) == 0 && r.HostAction == change.ActionNone && len(r.Sessions) == 0 {
		if r.Incomplete {
			t.printf("%s\n", t.paint(yellow, fmt.Sprintf("Nothing stale among the %s that could be looked at: the answer is incomplete.", plural(r.Examined, "process"))))
			return
		}
		t.printf("%s\n", t.paint(green, fmt.Sprintf("Nothing stale: %s looked at.", plural(r.Examined, "process"))))
		return
	}
	if len(r.Units) > 0 {
		t.printf("%s\n", t.paint(bold, plural(len(r.Units), "stale unit")))
		for _, u := range r.Units {
			t.printf("  %s  %s\n", t.paint(actionColor(u.Action), fmt.Sprintf("%-7s", u.Action)), unitName(u.Manager, u.Unit))
			t.reasons(u.Reasons)
		}
	}
	if r.HostAction != change.ActionNone {
		t.printf("%s %s\n", t.paint(bold, "Host:"), r.HostAction)
		t.reasons(r.HostReasons)
	}
	for _, e := range r.Effects {
		t.printf("%s %s\n", t.paint(bold, clean(e.Target)+":"), e.Do)
		t.reasons(e.Reasons)
	}
	if len(r.Sessions) > 0 {
		t.printf("%s\n", t.paint(bold, "Processes of sessions, which end with them"))
		for _, g := range groupHits(r.Sessions) {
			t.printf("  %s\n", g)
		}
		if !t.o.Verbose {
			return
		}
		for _, h := range r.Sessions {
			t.printf("           %s\n", t.paint(dim, reasonText(change.Reason{Kind: h.Kind, Path: h.Path, PID: h.PID, Comm: h.Comm, Detail: h.Detail})))
		}
	}
}

// gaps tells what was not looked at.
func (t *text) gaps(r *change.CheckReport) {
	for _, g := range r.Gaps {
		fmt.Fprintf(t.diag, "%s %s\n", t.paint(yellow, "incomplete:"), clean(g))
	}
}

// releases tells where something newer is installed than what runs.
func (t *text) releases(r *change.CheckReport) {
	for _, k := range []struct {
		what string
		r    *change.Release
	}{{"Kernel", r.Kernel}, {"Microcode", r.Microcode}} {
		if k.r == nil || k.r.State == "current" || k.r.State == "unknown" {
			continue
		}
		line := fmt.Sprintf("%s: %s runs, %s is installed", k.what, clean(k.r.Running), clean(k.r.Newest))
		if k.r.Detail != "" {
			line += " (" + clean(k.r.Detail) + ")"
		}
		t.printf("%s\n", t.paint(yellow, line))
	}
}

// explain tells of one unit what was found, and why it is left alone.
func (t *text) explain(x change.Explanation) {
	verdict := t.paint(green, "nothing to do")
	switch {
	case x.Action != change.ActionNone:
		verdict = t.paint(actionColor(x.Action), x.Action.String())
	case x.Unread > 0:
		verdict = t.paint(yellow, "not known")
	}
	t.printf("%s  %s, %s\n", verdict, t.paint(bold, unitName(x.Manager, x.Unit)), clean(x.State))
	t.reasons(x.Reasons)
	switch {
	case x.Processes > 0:
		t.printf("%s%s\n", indent, t.paint(dim, fmt.Sprintf("looked at: %s with %s in use, each against what its path holds now",
			plural(x.Processes, "process"), plural(x.Files, "file"))))
	case x.Unread > 0:
	case x.Action == change.ActionNone:
		t.printf("%s%s\n", indent, t.paint(dim, "it has no process: its next start takes what is on disk"))
	}
	if x.Unread > 0 {
		t.printf("%s%s\n", indent, t.paint(yellow, plural(x.Unread, "process")+" of it could not be looked at"))
	}
	if t.o.Verbose || x.Action == change.ActionNone {
		for _, r := range x.Spared {
			t.printf("%s%s\n", indent, t.paint(dim, "left alone: "+reasonText(r)))
		}
	}
}

// groupHits tells of each session which of its processes are stale.
func groupHits(hits []change.Hit) []string {
	comms := map[string]map[string]bool{}
	for _, h := range hits {
		unit := h.Unit
		if unit == "" {
			unit = "no unit"
		}
		if comms[unit] == nil {
			comms[unit] = map[string]bool{}
		}
		comms[unit][fmt.Sprintf("%s (%d)", h.Comm, h.PID)] = true
	}
	var out []string
	for _, unit := range slices.Sorted(maps.Keys(comms)) {
		names := slices.Sorted(maps.Keys(comms[unit]))
		more := ""
		if len(names) > pathsShown {
			more = fmt.Sprintf(" and %s more", count(len(names)-pathsShown))
			names = names[:pathsShown]
		}
		out = append(out, clean(unit+": "+strings.Join(names, ", ")+more))
	}
	return out
}

// Finding prints one path that is not as recorded, when it is met; what the
// machine itself changed only where everything is asked for.
func (t *text) Finding(d change.Damage) {
	label, color := "damage", red
	if d.Owner == "machine" {
		label, color = "machine", dim
		if !t.o.Verbose {
			return
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	line := fmt.Sprintf("  %s  %s %s", t.paint(color, fmt.Sprintf("%-7s", label)), d.Problem, clean(d.Path))
	if len(d.Aspects) > 0 {
		line += ": " + strings.Join(d.Aspects, ", ")
	}
	if d.Detail != "" {
		line += " (" + clean(d.Detail) + ")"
	}
	t.printf("%s\n", line)
}

// Verify sums up; what the machine itself changed is counted.
func (t *text) Verify(r *change.VerifyReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.warnings(r.Warnings)
	line := fmt.Sprintf("%s checked against %s: ", plural(r.Checked, "path"), clean(r.Generation))
	if r.Damaged == 0 {
		t.printf("%s", t.paint(green, line+"no damage"))
	} else {
		t.printf("%s", t.paint(red, line+plural(r.Damaged, "path")+" damaged"))
	}
	if r.Machine > 0 {
		t.printf("; %s changed by the machine, as it may", plural(r.Machine, "path"))
	}
	t.printf("\n")
}

// History lists the transactions, the newest first.
func (t *text) History(list []change.Generation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	if len(list) == 0 {
		t.printf("No update has been applied to this root.\n")
		return
	}
	for _, g := range list {
		keep := ""
		if g.Retained && g.State == "verified" {
			keep = "can be rolled back"
		}
		line := fmt.Sprintf("%s  %s  %-12s", t.paint(bold, clean(g.ID)), time.Unix(g.Time, 0).In(t.zone).Format("2006-01-02 15:04"), g.State)
		if keep != "" {
			line += "  " + t.paint(dim, keep)
		}
		t.printf("%s\n", strings.TrimRight(line, " "))
		t.printf("    %s: %s\n", generationName(g), counts(g.Changes))
		if g.Snapshot != "" {
			t.printf("    snapshot from before it: %s\n", clean(g.Snapshot))
		}
	}
}

func generationName(g change.Generation) string {
	if g.Name != "" {
		return clean(g.Name + " " + g.Version)
	}
	return clean(g.Source)
}

func counts(c change.Counts) string {
	return fmt.Sprintf("%s added, %s replaced, %s removed, %s changed in place",
		count(c.Added), count(c.Replaced), count(c.Removed), count(c.Metadata))
}

// Status prints the last update, and what is unfinished, pending or deferred.
// removed names what clean has removed.
func removed(r *change.Report) string {
	var parts []string
	if len(r.Freed) > 0 {
		parts = append(parts, plural(len(r.Freed), "update"))
	}
	for _, c := range r.FreedCaches {
		parts = append(parts, clean(c.What))
	}
	return strings.Join(parts, ", ")
}

// caches tells what is kept on the disk for the next run.
func (t *text) caches(list []change.Cache) {
	var sum int64
	var parts []string
	for _, c := range list {
		sum += c.Bytes
		parts = append(parts, bytesText(c.Bytes)+" of "+clean(c.What))
	}
	if sum > 0 {
		t.printf("Caches: %s; liveupd clean removes them\n", strings.Join(parts, ", "))
	}
}

func (t *text) Status(list []change.Generation, night *change.NightStatus, caches []change.Cache) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	defer t.nightStatus(night)
	defer t.caches(caches)
	var last *change.Generation
	retained := 0
	for i := range list {
		g := &list[i]
		if g.State == "verified" {
			if last == nil {
				last = g
			}
			if g.Retained {
				retained++
			}
			continue
		}
		if g.State != "rolled-back" {
			if g.UnderWay {
				t.printf("%s transaction %s (%s)\n", t.paint(yellow, "under way:"), clean(g.ID), g.State)
				continue
			}
			t.printf("%s transaction %s was cut off (%s); run: liveupd recover\n", t.paint(red, "unfinished:"), clean(g.ID), g.State)
		}
	}
	if last == nil {
		t.printf("No update is committed to this root.\n")
		t.pending(list)
		return
	}
	t.printf("Last update: %s, %s (%s)\n", t.paint(bold, generationName(*last)), time.Unix(last.Time, 0).In(t.zone).Format("2006-01-02 15:04"), clean(last.ID))
	t.printf("  %s\n", counts(last.Changes))
	t.printf("  %s can be rolled back\n", plural(retained, "update"))
	if last.Snapshot != "" {
		t.printf("  snapshot from before it: %s\n", clean(last.Snapshot))
	}
	t.pending(list)
}

// pending tells what is still to be done. A later update takes over what an
// earlier one left: each is told once, with the first.
func (t *text) pending(list []change.Generation) {
	told := map[string]bool{}
	host := change.ActionDaemonReexec // the lower rungs are steps of the update itself
	for _, g := range slices.Backward(list) {
		if g.HostAction > host {
			host = g.HostAction
			what := "for "
			if g.State == "rolled-back" {
				what = "for the rollback of "
			}
			t.printf("%s %s, %s%s\n", t.paint(yellow, "pending:"), g.HostAction, what, clean(g.ID))
		}
		for _, w := range g.Waiting {
			if told[w.Key()] {
				continue
			}
			told[w.Key()] = true
			t.waiting(w)
		}
	}
}
