package ui

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
)

// text prints for a person.
type text struct {
	mu         sync.Mutex
	out, diag  io.Writer
	o          Options
	onProgress bool // the progress line is on the screen
}

// How much a plan shows where nobody asked for all of it.
const (
	reasonsShown = 3
	pathsShown   = 10
)

// SGR codes of ECMA-48.
const (
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	dim    = "2"
)

func (t *text) paint(code, s string) string {
	if !t.o.Color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (t *text) printf(format string, args ...any) { fmt.Fprintf(t.out, format, args...) }

// clear takes the progress line off the screen before something else is printed.
func (t *text) clear() {
	if t.onProgress {
		fmt.Fprint(t.diag, "\r\x1b[K")
		t.onProgress = false
	}
}

func (t *text) Progress(p change.Progress) {
	if t.o.Width == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	line := p.Phase
	switch {
	case p.Total > 0 && p.Unit == "bytes":
		line += fmt.Sprintf(" %s of %s (%d%%)", bytesText(p.Done), bytesText(p.Total), min(100, p.Done*100/p.Total))
	case p.Total > 0:
		line += fmt.Sprintf(" %s of %s %s", count(int(p.Done)), count(int(p.Total)), p.Unit)
	case p.Done > 0:
		line += fmt.Sprintf(" %s %s", count(int(p.Done)), p.Unit)
	}
	if p.Detail != "" {
		line += " " + p.Detail
	}
	line = clean(line)
	if r := []rune(line); len(r) >= t.o.Width {
		line = string(r[:t.o.Width-1])
	}
	fmt.Fprintf(t.diag, "\r\x1b[K%s", line)
	t.onProgress = true
}

func (t *text) Plan(p *change.Plan) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.planTitle(p)
	t.planUnits(p)
	t.planHost(p)
	t.planPaths(p)
	for _, w := range p.Warnings {
		t.printf("%s %s\n", t.paint(yellow, "warning:"), clean(w))
	}
	if p.Empty() {
		return
	}
	t.printf("Plan %s\n", t.paint(bold, p.ID))
}

func (t *text) planTitle(p *change.Plan) {
	title := clean(p.Source)
	if p.Name != "" {
		title = clean(strings.TrimSpace(p.Name + " " + p.Version))
		if p.Sequence != 0 {
			title += fmt.Sprintf(", sequence %d", p.Sequence)
		}
		title += " (" + clean(p.Source) + ")"
	}
	if p.Signed {
		title += ", signed by " + clean(p.SignedBy)
	}
	t.printf("%s on %s\n", t.paint(bold, title), clean(p.Root))
	if p.Empty() {
		t.printf("Nothing to do: %s paths are what they should be.\n", count(p.Changes.Identical))
		return
	}
	var parts []string
	for _, c := range []struct {
		n    int
		word string
	}{{p.Changes.Added, "added"}, {p.Changes.Replaced, "replaced"}, {p.Changes.Removed, "removed"}, {p.Changes.Metadata, "changed in place"}} {
		if c.n > 0 {
			parts = append(parts, count(c.n)+" "+c.word)
		}
	}
	if len(parts) == 0 {
		parts = []string{"none changed"}
	}
	t.printf("  paths: %s; %s the same; %s to write\n", strings.Join(parts, ", "), count(p.Changes.Identical), bytesText(p.Changes.Bytes))
}

// unitOrder lists first what hurts most.
func unitOrder(u change.UnitPlan) int {
	order := []change.Action{change.ActionStop, change.ActionRestart, change.ActionReload, change.ActionStart, change.ActionDefer}
	return slices.Index(order, u.Action)
}

func (t *text) planUnits(p *change.Plan) {
	units := slices.Clone(p.Units)
	slices.SortStableFunc(units, func(a, b change.UnitPlan) int {
		return cmp.Or(cmp.Compare(unitOrder(a), unitOrder(b)), cmp.Compare(a.Unit, b.Unit))
	})
	var act, later []change.UnitPlan
	interrupted := 0
	for _, u := range units {
		switch u.Action {
		case change.ActionDefer:
			later = append(later, u)
			continue
		case change.ActionRestart, change.ActionStop:
			interrupted++
		}
		act = append(act, u)
	}
	if p.Empty() {
		return
	}
	head := fmt.Sprintf("Interrupts %s", plural(interrupted, "unit"))
	if p.Static {
		head = fmt.Sprintf("A machine that runs this tree would interrupt %s", plural(interrupted, "unit"))
	}
	if interrupted == 0 {
		t.printf("\n%s\n", t.paint(green, head))
	} else {
		t.printf("\n%s\n", t.paint(bold, head))
	}
	t.unitList(act)
	if p.Unaffected > 0 {
		t.printf("  %s\n", t.paint(green, plural(p.Unaffected, "running service")+" untouched"))
	}
	if len(later) > 0 {
		t.printf("\n%s\n", t.paint(bold, "Deferred"))
		t.unitList(later)
	}
}

func (t *text) unitList(units []change.UnitPlan) {
	width := 0
	for _, u := range units {
		width = max(width, len(clean(u.Unit)))
	}
	for _, u := range units {
		took := ""
		if u.LastStartUSec > 0 && u.Action == change.ActionRestart {
			took = "last start took " + duration(u.LastStartUSec)
		}
		if u.Propagated {
			took = strings.TrimSuffix("by systemd, with the unit it depends on; "+took, "; ")
		}
		color := yellow
		if u.Action == change.ActionRestart || u.Action == change.ActionStop {
			color = red
		}
		line := fmt.Sprintf("  %s  %-*s  %s", t.paint(color, fmt.Sprintf("%-7s", u.Action)), width, clean(u.Unit), t.paint(dim, took))
		t.printf("%s\n", strings.TrimRight(line, " "))
		t.reasons(u.Reasons)
	}
}

func (t *text) reasons(reasons []change.Reason) {
	shown := reasons
	if !t.o.Verbose && len(shown) > reasonsShown {
		shown = shown[:reasonsShown]
	}
	for _, r := range shown {
		t.printf("             %s\n", t.paint(dim, reasonText(r)))
	}
	if more := len(reasons) - len(shown); more > 0 {
		t.printf("             %s\n", t.paint(dim, fmt.Sprintf("and %s more (-v shows all)", count(more))))
	}
}

func reasonText(r change.Reason) string {
	s := r.Kind
	switch {
	case r.Path != "":
		s += " " + r.Path
	case r.Unit != "":
		s += " " + r.Unit
	}
	if r.PID != 0 {
		s += fmt.Sprintf(" by %s (%d)", r.Comm, r.PID)
	}
	if r.Detail != "" {
		s += ": " + r.Detail
	}
	return clean(s)
}

func (t *text) planHost(p *change.Plan) {
	if p.HostAction == change.ActionNone {
		return
	}
	t.printf("\n%s %s\n", t.paint(bold, "Host:"), p.HostAction)
	t.reasons(p.HostReasons)
	for _, c := range p.Checks {
		t.printf("Before anything changes: %s must accept %s\n", clean(strings.Join(c.Argv, " ")), clean(c.Path))
	}
}

func (t *text) planPaths(p *change.Plan) {
	if p.HostAction == change.ActionNone {
		for _, c := range p.Checks {
			t.printf("\nBefore anything changes: %s must accept %s\n", clean(strings.Join(c.Argv, " ")), clean(c.Path))
		}
	}
	if len(p.Paths) == 0 {
		return
	}
	t.printf("\n%s\n", t.paint(bold, "Paths"))
	shown := p.Paths
	if !t.o.Verbose && len(shown) > pathsShown {
		shown = shown[:pathsShown]
	}
	for _, c := range shown {
		line := fmt.Sprintf("  %-8s  %s", c.Op, clean(c.Path))
		if c.Op == change.Metadata || t.o.Verbose && len(c.Aspects) > 0 {
			line += t.paint(dim, " ("+strings.Join(c.Aspects, ", ")+")")
		}
		t.printf("%s\n", line)
	}
	if more := len(p.Paths) - len(shown); more > 0 {
		t.printf("  %s\n", t.paint(dim, fmt.Sprintf("and %s more (-v shows all)", count(more))))
	}
	t.printf("\n")
}

func (t *text) Step(r change.StepResult) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	mark, color := "done", green
	if r.Result != "done" {
		mark, color = r.Result, yellow
	}
	if r.Result == "failed" {
		color = red
	}
	fmt.Fprintf(t.diag, "  %s  %s %s %s\n", t.paint(color, fmt.Sprintf("%-7s", mark)), r.Step.Do, clean(r.Step.Target),
		t.paint(dim, duration(uint64(max(0, r.USec)))))
	if r.Result == "failed" {
		if r.Detail != "" {
			fmt.Fprintf(t.diag, "           %s\n", cleanLines(r.Detail, "           "))
		}
		if r.Journal != "" {
			fmt.Fprintf(t.diag, "           its journal:\n           | %s\n", cleanLines(strings.TrimSpace(r.Journal), "           | "))
		}
	}
}

func (t *text) Error(err error, hint string, _ int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	fmt.Fprintf(t.diag, "liveupd: %s\n", cleanLines(err.Error(), "  "))
	if hint != "" {
		fmt.Fprintf(t.diag, "hint: %s\n", clean(hint))
	}
}
