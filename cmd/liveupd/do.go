package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/config"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/ui"
)

// renderer prints to where the flags and the terminal say.
// The verb and its error share one: it takes its progress line away.
func (o *options) renderer() ui.Renderer {
	if o.screen != nil {
		return o.screen
	}
	width := sys.TerminalWidth(os.Stderr)
	if os.Getenv("TERM") == "dumb" {
		width = 0 // it cannot go back to the beginning of a line
	}
	plain := os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb"
	o.screen = ui.New(&o.out, os.Stderr, ui.Options{
		JSON: o.json, Verbose: o.verbose,
		Color: !plain && sys.TerminalWidth(os.Stdout) > 0,
		Width: width,
	})
	return o.screen
}

func (o *options) fail(err error) {
	hint := ""
	if h, ok := errors.AsType[*change.HintError](err); ok {
		hint = h.Hint
	}
	if o.out.err != nil {
		o.json, o.screen = false, nil // what goes to standard output is not read
	}
	o.renderer().Error(err, hint, exitCode(err))
}

// do carries out a request: on the running root in a worker of its own, on
// any other root here.
func (o *options) do(ctx context.Context, req engine.Request, r ui.Renderer) (any, error) {
	req.Root = o.root
	if req.Keep == 0 {
		// A recovery must not fail for a setting, nor collect what it says to keep.
		req.Keep = math.MaxInt
		if cfg, err := config.Load(o.root); err == nil {
			req.Keep = cfg.Keep
		}
	}
	if cfg, err := config.Load(o.root); err == nil {
		req.CacheMax = cfg.CacheBytes()
	}
	req, err := engine.Prepare(req)
	if err != nil {
		return nil, err
	}
	ev := engine.Events{Terminated: o.terminated, Emit: func(v any) {
		switch v := v.(type) {
		case change.Progress:
			r.Progress(v)
		case *change.Plan:
			r.Plan(v)
		case change.StepResult:
			r.Step(v)
		case change.Damage:
			r.Finding(v)
		case *change.VerifyReport:
			r.Verify(v)
		}
	}}
	if req.Exec != nil {
		ev.Input = os.Stdin
	}
	if o.asks() {
		ev.Confirm = func(*change.Plan) bool { return confirm(ctx) }
	} else {
		req.NoPrompt = true
	}
	if !req.Live() {
		return (&engine.Engine{}).Run(ctx, req, ev)
	}
	if os.Geteuid() != 0 && req.Verb != "check" {
		return nil, change.WithHint(errNotRoot, "run it with sudo, or name another tree with --root DIR")
	}
	switch req.Verb {
	case "history", "status", "check", "setup":
		return (&engine.Engine{}).Run(ctx, req, ev)
	}
	defer o.refreshNight(req)
	return engine.Spawn(ctx, req, ev)
}

// asks: only a person at a terminal can answer; a script has said what it wants.
func (o *options) asks() bool {
	return !o.yes && !o.json && sys.TerminalWidth(os.Stdin) > 0 && sys.TerminalWidth(os.Stderr) > 0
}

func confirm(ctx context.Context) bool {
	fmt.Fprint(os.Stderr, "Proceed? [y/N] ")
	line, err := orInterrupt(ctx, func() (string, error) { return bufio.NewReader(os.Stdin).ReadString('\n') })
	if err != nil {
		fmt.Fprintln(os.Stderr)
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return err == nil && (answer == "y" || answer == "yes")
}

// defaults fills a request from the configuration of the root.
func (o *options) defaults(req *engine.Request) error {
	cfg, err := config.Load(o.root)
	if err != nil {
		return err
	}
	if req.AllowUnsigned && cfg.Source != "" && (req.Source == "" || sameSource(req.Source, cfg.Source)) {
		return change.WithHint(engine.Usage(fmt.Errorf("--allow-unsigned is not for the source that is configured, %s: it is verified, always", cfg.Source)),
			"have it signed (liveupd sign), or name another place with --source")
	}
	if req.Source == "" {
		req.Source = cfg.Source
	}
	if req.Keep == 0 {
		req.Keep = cfg.Keep
	}
	quiesceDefaults(cfg, req)
	if !req.MaxSet && cfg.Max != "" {
		req.MaxSet = true
		return req.Max.UnmarshalText([]byte(cfg.Max))
	}
	return nil
}

// sameSource tells whether two SPECs name one place.
func sameSource(a, b string) bool {
	x, err := engine.Prepare(engine.Request{Source: a})
	y, err2 := engine.Prepare(engine.Request{Source: b})
	return err == nil && err2 == nil && x.Source == y.Source
}

func quiesceDefaults(cfg *config.Config, req *engine.Request) {
	if req.Quiesce == "" {
		req.Quiesce = cfg.Quiesce
	}
	req.QuiesceFiles = cfg.QuiesceFiles
}

// quiesceConfigured is for verbs that bring back what was there: no mistake in the
// configuration may hinder them, and an update may have brought it.
func (o *options) quiesceConfigured(req *engine.Request) {
	cfg, err := config.Load(o.root)
	if err != nil {
		fmt.Fprintf(os.Stderr, "liveupd: the defaults are used: %v\n", err)
		return
	}
	quiesceDefaults(cfg, req)
}

// quiesceFlag adds --quiesce to a verb that swaps.
func quiesceFlag(cmd *cobra.Command, req *engine.Request) {
	cmd.Flags().Var((*quiesceValue)(&req.Quiesce), "quiesce", "`WHEN` affected units stand still for the swap: auto, always or never (default auto)")
}

var quiesceWhen = []string{"auto", "always", "never"}

type quiesceValue string

func (q *quiesceValue) String() string { return string(*q) }
func (q *quiesceValue) Type() string   { return "string" }

func (q *quiesceValue) Set(s string) error {
	if !slices.Contains(quiesceWhen, s) {
		return fmt.Errorf("takes auto, always or never")
	}
	*q = quiesceValue(s)
	return nil
}

// finish prints a report and sets the exit code.
func (o *options) finish(r ui.Renderer, result any, err error) error {
	report, ok := result.(*change.Report)
	// Who said no knows what became of it.
	if ok && report != nil && !errors.Is(err, engine.ErrDeclined) {
		r.Report(report)
		if err == nil && report.Result == "pending" {
			o.code = exitPending
		}
	}
	return err
}
