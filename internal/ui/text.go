package ui

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/liveupd/liveupd/change"
)

// text prints for a person.
type text struct {
	mu         sync.Mutex
	out, diag  io.Writer
	o          Options
	zone       *time.Location
	now        func() time.Time
	onProgress bool // the progress line is on the screen
	nothing    bool // a plan has said that there is nothing to do
}

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

// Progress keeps one line at the foot of the terminal up to date.
func (t *text) Progress(p change.Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.Phase == change.PhaseInterrupted {
		// Whoever pressed Ctrl-C must learn what became of it, on a pipe too.
		t.clear()
		fmt.Fprintf(t.diag, "%s %s\n", t.paint(yellow, "interrupted,"), clean(p.Detail))
		return
	}
	if t.o.Width == 0 {
		return
	}
	line := p.Phase
	switch {
	case p.Total > 0 && p.Unit == "bytes":
		line += fmt.Sprintf(" %s of %s (%d%%)", bytesText(p.Done), bytesText(p.Total), min(100, p.Done*100/p.Total))
	case p.Total > 0:
		line += fmt.Sprintf(" %s of %s %s", count(int(p.Done)), count(int(p.Total)), p.Unit)
	case p.Done > 0:
		line += fmt.Sprintf(" %s %s", count(int(p.Done)), p.Unit)
	}
	if p.Files > 0 {
		line += ", " + plural(int(p.Files), "file")
	}
	if p.Rate > 0 && p.Unit == "bytes" {
		line += ", " + bytesText(p.Rate) + "/s"
	}
	if p.LeftSec > 0 {
		line += ", " + (time.Duration(p.LeftSec) * time.Second).String() + " left"
	}
	if p.Detail != "" {
		line += " " + p.Detail
	}
	// The last column stays free: some terminals wrap when it is written.
	line = cut(clean(line), t.o.Width-1)
	fmt.Fprintf(t.diag, "\r\x1b[K%s", line)
	t.onProgress = true
}

// cut shortens a line to a number of columns.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	r := []rune(s)
	return string(r[:max(width-1, 0)]) + "…"
}

// Step tells what came of one step. A unit that failed shows its journal.
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
	took := ""
	if r.USec > 0 {
		took = " " + t.paint(dim, duration(uint64(r.USec)))
	}
	fmt.Fprintf(t.diag, "  %s  %s %s%s\n", t.paint(color, fmt.Sprintf("%-7s", mark)), r.Step.Do, unitName(r.Step.Manager, r.Step.Target), took)
	if r.Result == "failed" || t.o.Verbose {
		if r.Detail != "" {
			fmt.Fprintf(t.diag, "           %s\n", cleanLines(r.Detail, "           "))
		}
		if r.Journal != "" {
			fmt.Fprintf(t.diag, "           its journal:\n           | %s\n", cleanLines(strings.TrimSpace(r.Journal), "           | "))
		}
	}
}

// Error prints the one line, and the hint where there is something to do.
func (t *text) Error(err error, hint string, _ int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	fmt.Fprintf(t.diag, "liveupd: %s\n", cleanLines(err.Error(), "  "))
	if hint != "" {
		fmt.Fprintf(t.diag, "hint: %s\n", clean(hint))
	}
}
