package unattended

import (
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// The message IDs of journal entries: what a log filter or an alert can rely on. They stay as
// they are; docs/unattended.md lists them.
const (
	MessageStarted    = "34faa24853eb47639ecf34092ebcd6fe"
	MessageDone       = "c435da2faeee4802910d0e910f43a7f5"
	MessageNothing    = "847d0265c78d4b0eb5c5afa077dbee3f"
	MessageSkipped    = "653fb24498fc402d8a2283c08c1ce4a7"
	MessageBackedOff  = "19285488e491459195a62ba3d9d09d41"
	MessageUndone     = "3c5687f1eb6043f78a5e267cbe763300"
	MessageFailed     = "31237e3f3b6f42348f0a6d6095989297"
	MessageRolledBack = "802f0228aa5f480c9507008e2c66bf9e"
	MessagePerson     = "e72d04f4fad64a1481067def931d8859"
	MessageResumed    = "3697e9872c26420d8147d48e50a8ffe5"
	MessageDeferred   = "d5088a4f786c4916a07b5b390600edcb"
	MessageReboot     = "755f2dec8c084f20ba489f51bad9f35b"
	MessageHook       = "559b37ddf85449728def41f2cd28988c"
	MessageWaiting    = "94a99de77ebb4cfcb886eca8549c0b33"
)

var resultMessages = map[string]struct {
	id       string
	priority int
}{
	change.NightDone:       {MessageDone, systemd.PriorityNotice},
	change.NightNothing:    {MessageNothing, systemd.PriorityInfo},
	change.NightSkipped:    {MessageSkipped, systemd.PriorityNotice},
	change.NightBackedOff:  {MessageBackedOff, systemd.PriorityWarning},
	change.NightUndone:     {MessageUndone, systemd.PriorityNotice},
	change.NightFailed:     {MessageFailed, systemd.PriorityError},
	change.NightRolledBack: {MessageRolledBack, systemd.PriorityError},
	change.NightPerson:     {MessagePerson, systemd.PriorityError},
}

// fields are those of the journal's entries about a run.
func fields(n *change.Night) map[string]string {
	out := map[string]string{
		"LIVEUPD_RESULT": n.Result, "LIVEUPD_ID": n.ID, "LIVEUPD_SOURCE": n.Source, "LIVEUPD_NAME": n.Name, "LIVEUPD_VERSION": n.Version,
		"LIVEUPD_PLAN": n.PlanID, "LIVEUPD_ERROR": n.Error, "LIVEUPD_REASON": n.Reason, "LIVEUPD_UNITS": strings.Join(n.Units, " "),
		"LIVEUPD_DEFERRED": strings.Join(unitNames(n.Deferred), " "), "LIVEUPD_CODE": fmt.Sprint(n.Code),
	}
	if n.HostAction > change.ActionNone {
		out["LIVEUPD_HOST_ACTION"] = n.HostAction.String()
	}
	const most = 500 // of a release's upgrade; the rest is in liveupd status
	var packages []string
	for _, p := range n.Packages[:min(len(n.Packages), most)] {
		packages = append(packages, packageText(p))
	}
	out["LIVEUPD_PACKAGES"] = strings.Join(packages, " ")
	for name, value := range out {
		if value == "" {
			delete(out, name)
		}
	}
	return out
}

func packageText(p change.Package) string {
	switch {
	case p.To == "":
		return p.Name + "-"
	case p.From == "":
		return p.Name + "=" + p.To
	}
	return p.Name + "=" + p.From + ">" + p.To
}

func unitNames(list []change.Waiting) []string {
	var out []string
	for _, w := range list {
		out = append(out, w.Key())
	}
	return out
}

// Sentence is a run's result in a line.
func Sentence(n *change.Night) string {
	what := updateText(n)
	switch n.Result {
	case change.NightDone:
		text := "unattended run: done"
		if n.ID != "" {
			text = "unattended run: " + what + " applied, transaction " + n.ID
		}
		if len(n.Units) > 0 {
			text += "; " + some(n.Units) + " restarted or reloaded"
		}
		if len(n.Deferred) > 0 {
			text += "; put off: " + some(unitNames(n.Deferred))
		}
		if n.HostAction > change.ActionDaemonReexec {
			text += "; a " + n.HostAction.String() + " is pending"
		}
		return text
	case change.NightNothing:
		return "unattended run: nothing to do"
	case change.NightSkipped:
		return "unattended run skipped: " + n.Reason
	case change.NightBackedOff:
		return "unattended run: " + n.Reason
	case change.NightUndone:
		return "unattended run stopped before the commit, nothing changed: " + n.Reason
	case change.NightRolledBack:
		return "unattended run failed and was rolled back: " + firstLine(n.Error)
	case change.NightPerson:
		return "unattended run: " + firstLine(n.Error)
	}
	return "unattended run failed: " + firstLine(n.Error)
}

// updateText names an update.
func updateText(n *change.Night) string {
	switch {
	case len(n.Packages) == 1:
		return "1 package (" + packageText(n.Packages[0]) + ")"
	case len(n.Packages) > 0:
		return fmt.Sprintf("%d packages", len(n.Packages))
	case n.Version != "":
		return n.Name + " " + n.Version
	case n.Source != "":
		return n.Source
	}
	return "an update"
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// some shortens a list for one line.
func some(list []string) string {
	const most = 5
	if n := len(list) - most; n > 0 {
		return strings.Join(list[:most], ", ") + fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(list, ", ")
}
