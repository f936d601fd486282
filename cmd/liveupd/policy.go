package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/unattended"
)

func newPolicy(o *options) *cobra.Command {
	var at string
	cmd := &cobra.Command{
		Use:   "policy [--at TIME]",
		Short: "tell what an unattended run may do now, and why; and how rules are written",
		Long: `Tells what an unattended run would be allowed now, or at another time: each
condition, each rule with its windows, what has failed before, and what is put off.
Changes nothing.

The administrator says in /etc/liveupd/policy.d/*.toml how units are to be
treated. /run and /usr/lib hold such a folder too; a file in /etc hides the one of the same
name there. The files are read in the order of their names, and the last rule
that applies counts. They come over what a unit asks for itself (X-Liveupd-On-Change=) and
over what liveupd knows of it.

  [[rule]]
  units = ["postgresql@*.service"]
  windows = ["Sat,Sun 02:00-04:30", "Mon..Fri 22:00-05:00"]
  reason = "the shop is open in the day"

  [[rule]]
  paths = ["/usr/lib/x86_64-linux-gnu/libcurl*", "/opt/app/"]
  action = "ignore"

units, packages: names, or patterns with * ? [a-z]; packages are those that own the path
which changes. paths: the same, or a folder with a slash at its end for all below it. Of
several of these lists each has to match.

A unit of a user is known by its own name and by that of its manager before it:
"module.service" and "user@1000.service/module.service"; "user@*.service/*" are all units of
all users. What a rule defers, never interrupts or ignores of "user@1000.service" it does of all
units of that user as well.

action is one of
  restart  also where a reload would do, or where liveupd would put it off
  reload   in place of a restart; put off where the unit has no reload
  defer    put off: told, and done by a person or by liveupd restart
  never    the same, and no other unit's restart takes it along
  ignore   no reason to do anything

windows are the local times at which the units may be interrupted; outside of them it is
put off. What is put off stays in liveupd status until it is done.

A mistake in a file ends every verb that would interrupt something, with file, line and
column, before anything is done.
` + exitHelp,
		Example: `  liveupd policy
  liveupd policy --at "2026-12-24 03:00"`,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := onlyLive(o, "policy"); err != nil {
				return err
			}
			when, err := parseAt(at, time.Now())
			if err != nil {
				return err
			}
			report, err := unattended.PolicyAt(cmd.Context(), unattended.System{}, "", when, runningNames(cmd.Context()))
			if err != nil {
				return err
			}
			o.renderer().Policy(report)
			return nil
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "another `TIME`, as YYYY-MM-DD HH:MM or HH:MM")
	return cmd
}

// parseAt reads a local time; one without a day is today's.
func parseAt(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return now, nil
	}
	if at, err := time.ParseInLocation("2006-01-02 15:04", strings.Replace(s, "T", " ", 1), now.Location()); err == nil {
		return at, nil
	}
	if at, err := time.ParseInLocation("15:04", s, now.Location()); err == nil {
		return time.Date(now.Year(), now.Month(), now.Day(), at.Hour(), at.Minute(), 0, 0, now.Location()), nil
	}
	return now, engine.Usage(fmt.Errorf("--at takes a time as 2026-12-24 03:00 or 03:00, not %q", s))
}

// runningNames are the units that run; none where nobody can tell.
func runningNames(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return nil
	}
	defer bus.Close()
	units, err := bus.Units(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for name, u := range units {
		if name == u.Name && u.Active() {
			out = append(out, name)
		}
	}
	return out
}
