package ui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/liveupd/liveupd/change"
)

// How much is shown where nobody asked for all of it.
const (
	reasonsShown = 3
	pathsShown   = 10
)

// indent is where reasons stand: below the unit's name.
const indent = "           "

// Plan prints what will be interrupted, why and for how long, what stays, and
// only then what changes on disk.
func (t *text) Plan(p *change.Plan) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.planTitle(p)
	if p.Empty() {
		t.planWarnings(p)
		return
	}
	t.planUnits(p)
	t.planHost(p)
	t.planEffects(p)
	t.planChecks(p)
	t.planPackages(p)
	t.planPaths(p)
	if t.o.Verbose {
		t.planSteps(p)
	}
	t.planWarnings(p)
	t.printf("\nPlan %s\n", t.paint(bold, clean(p.ID)))
}

func (t *text) planWarnings(p *change.Plan) {
	if len(p.Warnings) > 0 {
		t.printf("\n")
	}
	for _, w := range p.Warnings {
		t.printf("%s %s\n", t.paint(yellow, "warning:"), clean(w))
	}
}

func (t *text) planTitle(p *change.Plan) {
	title := clean(p.Source)
	if p.Name != "" {
		title = clean(strings.TrimSpace(p.Name + " " + p.Version))
		if p.Sequence != 0 {
			title += fmt.Sprintf(", sequence %d", p.Sequence)
		}
		if p.Source != "" {
			title += " (" + clean(p.Source) + ")"
		}
	}
	signed := ""
	if p.Signed {
		signed = ", signed by " + clean(p.SignedBy)
	}
	t.printf("%s on %s%s\n", t.paint(bold, title), clean(p.Root), signed)
	if !p.Empty() {
		return
	}
	t.nothing = true
	if p.Changes.Identical == 0 {
		t.printf("Nothing to do.\n")
	} else {
		t.printf("Nothing to do: %s what %s should be.\n", are(p.Changes.Identical, "path"), they(p.Changes.Identical))
	}
}

func are(n int, noun string) string {
	if n == 1 {
		return "1 " + noun + " is"
	}
	return plural(n, noun) + " are"
}

func they(n int) string {
	if n == 1 {
		return "it"
	}
	return "they"
}

// unitOrder lists first what hurts most.
var unitOrder = []change.Action{
	change.ActionStop, change.ActionRestart, change.ActionReload, change.ActionStart, change.ActionDefer,
}

func (t *text) planUnits(p *change.Plan) {
	units := slices.Clone(p.Units)
	slices.SortStableFunc(units, func(a, b change.UnitPlan) int {
		return cmp.Or(
			cmp.Compare(slices.Index(unitOrder, a.Action), slices.Index(unitOrder, b.Action)),
			cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.Manager, b.Manager))
	})
	var hurt, gentle, later []change.UnitPlan
	var longest uint64
	for _, u := range units {
		switch u.Action {
		case change.ActionDefer:
			later = append(later, u)
		case change.ActionRestart, change.ActionStop:
			hurt = append(hurt, u)
			longest = max(longest, u.LastStartUSec)
		default:
			gentle = append(gentle, u)
		}
	}
	head, color := "Interrupts "+plural(len(hurt), "unit"), bold
	if p.Static {
		head = "A machine that runs this tree would interrupt " + plural(len(hurt), "unit")
	}
	if len(hurt) == 0 {
		color = green
		head = strings.Replace(head, "0 units", "no unit", 1)
	}
	t.printf("\n%s", t.paint(color, head))
	if longest > 0 {
		t.printf("; the longest of their last starts took %s", duration(longest))
	}
	t.printf("\n")
	t.unitList(hurt)
	if len(gentle) > 0 {
		t.printf("\n%s\n", t.paint(bold, "Without an interruption"))
		t.unitList(gentle)
	}
	if p.Unaffected > 0 {
		t.printf("\n%s\n", t.paint(green, plural(p.Unaffected, "running service")+" untouched"))
	}
	if t.o.Verbose && len(p.Spared) > 0 {
		t.printf("\n%s\n", t.paint(bold, "Left alone, although something that changes reaches it"))
		for _, u := range p.Spared {
			t.printf("  %s\n", unitName(u.Manager, u.Unit))
			t.reasons(u.Reasons)
		}
	}
	if len(later) > 0 {
		t.printf("\n%s\n", t.paint(bold, "Deferred: what runs there stays as it is"))
		t.unitList(later)
	}
}

// unitName names a user's unit with its manager.
func unitName(manager, unit string) string {
	if manager == "" {
		return clean(unit)
	}
	return clean(unit + " of " + manager)
}

// keyName names a unit by its change.UnitKey.
func keyName(key string) string { return unitName(change.SplitUnitKey(key)) }

func actionColor(a change.Action) string {
	switch a {
	case change.ActionRestart, change.ActionStop:
		return red
	case change.ActionStart, change.ActionReload:
		return green
	}
	return yellow
}

func (t *text) unitList(units []change.UnitPlan) {
	width := 0
	for _, u := range units {
		width = max(width, utf8.RuneCountInString(unitName(u.Manager, u.Unit)))
	}
	for _, u := range units {
		var notes []string
		if u.LastStartUSec > 0 && u.Action == change.ActionRestart {
			notes = append(notes, "its last start took "+duration(u.LastStartUSec))
		}
		if u.Propagated {
			notes = append(notes, "systemd takes it along")
		}
		name := unitName(u.Manager, u.Unit)
		pad := strings.Repeat(" ", width-utf8.RuneCountInString(name))
		line := fmt.Sprintf("  %s  %s%s", t.paint(actionColor(u.Action), fmt.Sprintf("%-7s", u.Action)), name, pad)
		if len(notes) > 0 {
			line += "  " + t.paint(dim, strings.Join(notes, ", "))
		}
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
		line := reasonText(r)
		if t.o.Verbose && r.Rule != "" {
			line += " (" + clean(r.Rule) + ")"
		}
		t.printf("%s%s\n", indent, t.paint(dim, line))
		if t.o.Verbose && len(r.Via) > 1 {
			t.printf("%s%s%s\n", indent, indent[:4], t.paint(dim, wayText(r)))
		}
	}
	if more := len(reasons) - len(shown); more > 0 {
		t.printf("%s%s\n", indent, t.paint(dim, fmt.Sprintf("and %s more (-v shows all)", count(more))))
	}
}

// phrases say what a path is to a unit or to the host. Where a process shows
// it, "by NAME (PID)" follows.
var phrases = map[string]string{
	"mapped":       "mapped",
	"exec":         "executed",
	"soname":       "loaded as a library",
	"interpreter":  "run as its interpreter",
	"script":       "run as its script",
	"module":       "imported",
	"config":       "its configuration",
	"environment":  "its environment",
	"credential":   "its credential",
	"bind":         "mounted into it",
	"root":         "its root",
	"namespace":    "mounted over in its namespace",
	"unit-file":    "its unit file",
	"unit-files":   "a unit file",
	"unit-removed": "its unit file, removed",
	"unit-masked":  "masks it",
	"unit-added":   "enables it",
	"pid1":         "in use",
	"dbus":         "in use by the message bus",
	"propagated":   "takes it along",
	"triggered":    "hands it its connections",
	"bootme":       "the manifest",
	"sysusers":     "users and groups",
	"tmpfiles":     "files and folders",
	"sysctl":       "sets it",
	"modules-load": "modules to load",
	"binfmt":       "formats of programs",
	"udev":         "device rules",
	"hwdb":         "hardware",
	"apparmor":     "a profile",
}

// reasonText is one reason in one line: the path or unit, what it is, by whom.
func reasonText(r change.Reason) string {
	what := phrases[r.Kind]
	if what == "" {
		what = r.Kind
	}
	s := cmp.Or(r.Path, r.Unit)
	if s != "" {
		s += ": "
	}
	s += what
	switch {
	case r.PID != 0 && r.Kind == "dbus":
		s += fmt.Sprintf(", %s (%d)", r.Comm, r.PID)
	case r.PID != 0:
		s += fmt.Sprintf(" by %s (%d)", r.Comm, r.PID)
	case r.Kind == "pid1":
		s += " by PID 1"
	}
	if r.Detail != "" {
		s += "; " + r.Detail
	}
	return clean(s)
}

func (t *text) planHost(p *change.Plan) {
	if p.HostAction == change.ActionNone {
		return
	}
	t.printf("\n%s %s\n", t.paint(bold, "Host:"), p.HostAction)
	t.reasons(p.HostReasons)
}

// planEffects tells what is done to the running host beside its units.
func (t *text) planEffects(p *change.Plan) {
	if len(p.Effects) == 0 {
		return
	}
	title := "Applied to the running host"
	if p.Static {
		title = "A machine that runs this tree would apply"
	}
	t.printf("\n%s\n", t.paint(bold, title))
	for _, e := range p.Effects {
		t.printf("  %-12s  %s\n", e.Do, clean(e.Target))
		t.reasons(e.Reasons)
	}
}

func (t *text) planChecks(p *change.Plan) {
	if len(p.Checks) == 0 {
		return
	}
	t.printf("\n%s\n", t.paint(bold, "Before anything changes"))
	for _, c := range p.Checks {
		t.printf("  %s must accept %s\n", clean(strings.Join(c.Argv, " ")), clean(c.Path))
	}
}

func (t *text) planPaths(p *change.Plan) {
	var parts []string
	for _, c := range []struct {
		n    int
		word string
	}{
		{p.Changes.Added, "added"},
		{p.Changes.Replaced, "replaced"},
		{p.Changes.Removed, "removed"},
		{p.Changes.Metadata, "changed in place"},
	} {
		if c.n > 0 {
			parts = append(parts, count(c.n)+" "+c.word)
		}
	}
	if len(parts) == 0 {
		return
	}
	t.printf("\n%s %s; %s the same; %s to write\n", t.paint(bold, "Paths:"), strings.Join(parts, ", "),
		count(p.Changes.Identical), bytesText(p.Changes.Bytes))
	shown := p.Paths
	if !t.o.Verbose && len(shown) > pathsShown {
		shown = shown[:pathsShown]
	}
	for _, c := range shown {
		line := fmt.Sprintf("  %-8s  %s", c.Op, clean(c.Path))
		if len(c.Aspects) > 0 && (c.Op == change.Metadata || t.o.Verbose) {
			line += t.paint(dim, " ("+strings.Join(c.Aspects, ", ")+")")
		}
		if c.By != "" {
			line += t.paint(dim, ", made by "+c.By)
		}
		t.printf("%s\n", line)
	}
	all := p.Changes.Added + p.Changes.Replaced + p.Changes.Removed + p.Changes.Metadata
	switch more := all - len(shown); {
	case more > 0 && len(p.Paths) == all:
		t.printf("  %s\n", t.paint(dim, fmt.Sprintf("and %s more (-v shows all)", count(more))))
	case more > 0:
		t.printf("  %s\n", t.paint(dim, fmt.Sprintf("too many to list: %s", plural(all, "path"))))
	}
}

func (t *text) planSteps(p *change.Plan) {
	if len(p.Steps) == 0 {
		return
	}
	t.printf("\n%s\n", t.paint(bold, "Steps"))
	for _, st := range p.Steps {
		undo := ""
		if st.Undo != "" {
			undo = t.paint(dim, " (taken back by: "+clean(st.Undo)+")")
		}
		if st.Irreversible {
			undo = t.paint(bold, " (cannot be taken back)")
		}
		t.printf("  %3d  %s %s%s\n", st.Seq, st.Do, unitName(st.Manager, st.Target), undo)
	}
}
