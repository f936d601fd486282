package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/ui"
)

var checkFormats = []string{"text", "json", "nagios", "openmetrics", "batch"}

func newCheck(o *options) *cobra.Command {
	var format, output string
	var batch, exitCode bool
	cmd := &cobra.Command{
		Use:   "check [UNIT...]",
		Short: "list the units that run code which is no longer on disk",
		Long: `Looks at every process and lists the units that run code which is no longer what
its path holds: by device and inode, never by name. Changes nothing. With names of
units it tells of these alone, with -v also what was looked at and why a unit is
left alone.

--format nagios prints a monitoring plugin's line and exits 0 (OK), 1 (WARNING: units
or sessions run what is gone), 2 (CRITICAL: the host as a whole must start anew) or
3 (UNKNOWN: nothing was found, and not all could be looked at). --format openmetrics prints metrics; with --output FILE they are put into
the file in one step, for a textfile collector. --format batch, or -b, prints the lines
of needrestart -b.

Without root it looks at what may be looked at, one's own processes above all, and says
how many others there are and that the answer is incomplete. So it does below hidepid=,
and as root without CAP_SYS_PTRACE. With --exit-code it exits 1 then, unless it found
something.
` + exitHelp,
		Example: `  liveupd check
  liveupd check -v nginx
  liveupd check --format openmetrics --output /var/lib/prometheus/node-exporter/liveupd.prom`,
		RunE: func(cmd *cobra.Command, units []string) error {
			switch {
			case batch && cmd.Flags().Changed("format"), o.json && (batch || cmd.Flags().Changed("format") && format != "json"):
				return engine.Usage(fmt.Errorf("-b, --json and --format name one format each: give one of them"))
			case batch:
				format = "batch"
			case !slices.Contains(checkFormats, format):
				return engine.Usage(fmt.Errorf("--format takes %s, and not %q", strings.Join(checkFormats, ", "), format))
			case format == "json":
				o.json = true
			}
			if output != "" && (format == "text" || format == "json" || o.json) {
				return engine.Usage(fmt.Errorf("--output is for the formats nagios, openmetrics and batch: send the others where you want with >"))
			}
			o.reads = true
			r := o.renderer()
			result, err := o.do(cmd.Context(), engine.Request{Verb: "check", Units: units}, quietIf(r, format))
			if err != nil {
				if format == "nagios" {
					return o.unknown(output, err)
				}
				return err
			}
			report := result.(*change.CheckReport)
			switch {
			case exitCode && stale(report):
				o.code = exitSomething
			case exitCode && report.Incomplete:
				o.code = exitFailed
			}
			var text []byte
			switch format {
			case "nagios":
				var line string
				line, o.code = ui.Nagios(report)
				text = []byte(line + "\n")
			case "openmetrics":
				text = ui.OpenMetrics(report, time.Now())
			case "batch":
				text = ui.Batch(report)
			default:
				r.Check(report)
				return nil
			}
			if format != "nagios" {
				for _, g := range report.Gaps {
					fmt.Fprintln(os.Stderr, "liveupd: incomplete:", g)
				}
			}
			return put(output, text)
		},
	}
	f := cmd.Flags()
	f.StringVar(&format, "format", "text", "`FORMAT`: "+strings.Join(checkFormats, ", "))
	f.StringVar(&output, "output", "", "put the result into `FILE`, whole or not at all")
	f.BoolVarP(&batch, "batch", "b", false, "print the lines of needrestart -b")
	f.BoolVar(&exitCode, "exit-code", false, "exit 10 where something is stale")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(checkFormats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// stale tells whether a check found anything that somebody can do.
func stale(r *change.CheckReport) bool {
	return len(r.Units) > 0 || len(r.Waiting) > 0 || len(r.Effects) > 0 || r.HostAction > change.ActionNone
}

// quietIf drops the progress line where the output is for a program.
func quietIf(r ui.Renderer, format string) ui.Renderer {
	if format == "text" || format == "json" {
		return r
	}
	return ui.New(os.Stdout, os.Stderr, ui.Options{})
}

// unknown is what a monitoring plugin says when it could not look.
func (o *options) unknown(output string, err error) error {
	o.code = ui.NagiosUnknown
	line, _, _ := strings.Cut(err.Error(), "\n")
	return put(output, []byte("UNKNOWN - "+strings.ReplaceAll(line, "|", "/")+"\n"))
}

// put prints text, or puts it into a file that a reader finds whole: what
// collects metrics reads whenever it likes.
func put(file string, text []byte) error {
	if file == "" {
		_, err := os.Stdout.Write(text)
		return err
	}
	if old, err := os.Lstat(file); err == nil && !old.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: nothing was written", file)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".")
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err // the name beside it is nobody's
		}
		return change.WithHint(fmt.Errorf("cannot write %s: %w", file, err), "make its directory, or name another file with --output")
	}
	defer os.Remove(tmp.Name())
	_, err = bytes.NewReader(text).WriteTo(tmp)
	if err == nil {
		err = tmp.Chmod(0o644) // another user collects it
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", file, err)
	}
	return nil
}

func newRestart(o *options) *cobra.Command {
	req := engine.Request{Verb: "restart"}
	cmd := &cobra.Command{
		Use:   "restart",
		Short: "do what check found",
		Long:  "Restarts the units that check lists, and no other.\n" + exitHelp,
		Args:  takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := o.renderer()
			result, err := o.do(cmd.Context(), req, r)
			return o.finish(r, result, err)
		},
	}
	guardFlag(cmd, &req)
	o.yesFlag(cmd)
	return cmd
}
