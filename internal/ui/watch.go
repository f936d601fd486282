package ui

import (
	"fmt"
	"time"

	"github.com/liveupd/liveupd/change"
)

// watched prints what the watch over the network and the units found, less what is as it was.
func (t *text) watched(r *change.Report) {
	for _, f := range r.Network {
		line := clean(f.What)
		switch f.Result {
		case change.NetKept:
			if t.o.Verbose {
				t.printf("%s %s is as it was\n", t.paint(dim, "network:"), line)
			}
			continue
		case change.NetChanged:
			t.printf("%s %s: %s\n", t.paint(yellow, "network:"), line, clean(f.Detail))
			continue
		case change.NetBack:
			line += fmt.Sprintf(" was away for %s", (time.Duration(f.USec) * time.Microsecond).Round(100*time.Millisecond))
		default:
			line += " was lost"
		}
		if f.After != "" {
			line += " after " + clean(f.After)
		}
		if f.Detail != "" {
			line += " (" + clean(f.Detail) + ")"
		}
		switch f.Result {
		case change.NetRestored:
			line += "; it came back with the rollback"
		case change.NetPutBack:
			line += "; it was put back as it was before"
		}
		colour := yellow
		if f.Result == change.NetLost {
			colour = red
		}
		t.printf("%s %s\n", t.paint(colour, "network:"), line)
	}
	for _, c := range r.Health {
		what := clean(c.Check)
		if c.Unit != "" {
			what = clean(c.Unit)
		}
		if c.What != "" {
			what += ", " + clean(c.What)
		}
		switch c.Result {
		case change.HealthFailed:
			t.printf("%s %s: %s\n", t.paint(red, "health:"), what, clean(c.Detail))
		case change.HealthNoted, change.HealthSkipped:
			t.printf("%s %s: %s\n", t.paint(yellow, "health:"), what, clean(c.Detail))
		case change.HealthOK:
			if t.o.Verbose {
				t.printf("%s %s: well\n", t.paint(dim, "health:"), what)
			}
		}
	}
}
