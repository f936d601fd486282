// Package ui prints what the engine tells: as text for a person, or as NDJSON
// for a program, from the same values. Results go to the first writer,
// progress and diagnostics to the second. Colour and the progress line appear
// only where the options say that a terminal can show them.
package ui

import (
	"io"
	"time"

	"github.com/liveupd/liveupd/change"
)

// Renderer prints one verb's course and result.
type Renderer interface {
	Progress(change.Progress)
	Plan(*change.Plan)
	Step(change.StepResult)
	Report(*change.Report)
	Check(*change.CheckReport)
	// Finding is one path that verify met, Verify the sum of them.
	Finding(change.Damage)
	Verify(*change.VerifyReport)
	History([]change.Generation)
	Status([]change.Generation, *change.NightStatus, []change.Cache)
	Night(*change.Night)
	Policy(*change.PolicyReport)
	Setup(*change.SetupReport)
	Keys(*change.KeyReport)
	Signed(*change.SignReport)
	Diffed(*change.DiffReport)
	// Error prints what went wrong, what to do about it ("" for nothing), and
	// the exit code to come.
	Error(err error, hint string, code int)
}

// Options say what the writers can show.
type Options struct {
	JSON    bool
	Verbose bool
	Color   bool
	Width   int // columns of the diagnostics' terminal; 0 is no terminal: no progress line
}

// New makes the renderer that the options ask for.
func New(out, diag io.Writer, o Options) Renderer {
	if o.JSON {
		return &jsonRenderer{out: out}
	}
	return &text{out: out, diag: diag, o: o, zone: time.Local, now: time.Now}
}
