package ui

import (
	"fmt"
	"time"

	"github.com/liveupd/liveupd/change"
)

func (j *jsonRenderer) Keys(r *change.KeyReport) {
	c := *r
	c.MessageType = "report"
	c.Keys, c.Warnings = list(c.Keys), list(c.Warnings)
	j.line(c)
}

func (j *jsonRenderer) Signed(r *change.SignReport) {
	c := *r
	c.MessageType = "report"
	c.Files, c.Warnings = list(c.Files), list(c.Warnings)
	j.line(c)
}

// Keys tells what was done to which keys, or lists them.
func (t *text) Keys(r *change.KeyReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	if r.Verb == "key list" {
		t.listKeys(r)
	}
	for _, k := range r.Keys {
		name := "key " + k.ID
		if k.File != "" {
			name = fmt.Sprintf("%s (key %s)", clean(k.File), k.ID)
		}
		switch done := r.Result == "done"; {
		case r.Verb == "key add" && done:
			t.printf("%s is trusted from now on.\n", name)
		case r.Verb == "key add":
			t.printf("Nothing to do: %s is trusted already.\n", name)
		case r.Verb == "key remove" && k.State != "trusted":
			t.printf("%s is removed.\n", name)
		case r.Verb == "key remove":
			t.printf("%s is no longer trusted. It may be added again; to forbid that: liveupd key revoke %s\n", name, k.ID)
		case r.Verb == "key revoke" && done:
			t.printf("%s is revoked: it never confirms an update again.\n", name)
		case r.Verb == "key revoke":
			t.printf("Nothing to do: %s was revoked on %s.\n", name, t.day(k.Time))
		}
	}
	t.warnings(r.Warnings)
}

func (t *text) listKeys(r *change.KeyReport) {
	if len(r.Keys) == 0 {
		t.printf("No keys in %s: no signed update is accepted. Add one with: liveupd key add FILE\n", clean(r.Dir))
	}
	for _, k := range r.Keys {
		state, color := k.State, green
		switch k.State {
		case "revoked":
			state, color = "revoked on "+t.day(k.Time), red
		case "unusable":
			color = yellow
		}
		if k.Reason != "" {
			state += ": " + clean(k.Reason)
		}
		t.printf("%-16s  %-24s  %s\n", k.ID, clean(k.File), t.paint(color, state))
	}
}

func (t *text) day(unix int64) string {
	if unix == 0 {
		return "an unknown day"
	}
	return time.Unix(unix, 0).UTC().Format(time.DateOnly)
}

// Signed tells what keygen or sign has written.
func (t *text) Signed(r *change.SignReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	for _, f := range r.Files {
		t.printf("%s\n", clean(f))
	}
	t.warnings(r.Warnings)
}

func (j *jsonRenderer) Diffed(r *change.DiffReport) { j.line(r) }

// Diffed tells how much a patch holds and what it needs.
func (t *text) Diffed(r *change.DiffReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	if r.Result == "nothing-to-do" {
		t.printf("Nothing differs: no patch was written.\n")
		return
	}
	t.printf("%s\n", t.paint(bold, fmt.Sprintf("%s: %s", clean(r.Out), bytesText(r.Bytes))))
	t.printf("  %s changed or added, %s removed; whole they are %s\n", plural(r.Entries, "path"), count(r.Removed), bytesText(r.Content))
	t.printf("  %s of the old tree needed; made by %s\n", plural(r.Bases, "file"), clean(r.Encoder))
}
