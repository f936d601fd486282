package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/unattended"
)

func newUnattended(o *options) *cobra.Command {
	var opt unattended.Options
	var resume bool
	cmd := &cobra.Command{
		Use:   "unattended [--dry-run]",
		Short: "update as the configuration allows, with nobody there",
		Long: `Applies what is pending, within what [unattended] of the configuration and the rules of
policy.d allow; then does what earlier updates put off and what may be done now. A failure
takes all of it back, and the next runs leave the same versions alone for a while.
liveupd.timer starts it once a day. It does nothing unless the configuration says

  unattended.enabled = true

With --dry-run it tells what it would do now, and changes nothing. liveupd policy tells
what is allowed when. A run that was cut off is taken up first.
` + exitHelp,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return runUnattended(cmd.Context(), o, opt, resume) },
	}
	f := cmd.Flags()
	f.BoolVar(&opt.DryRun, "dry-run", false, "tell what would be done now, and change nothing")
	f.BoolVar(&opt.Retry, "retry", false, "try also what has failed before and is left alone for a while")
	f.BoolVar(&opt.Wait, "wait", false, "wait until the window opens, and for the windows of what was put off, a day at most")
	f.BoolVar(&resume, "resume", false, "at boot: only see to a run that was cut off, and to the message of the day")
	return cmd
}

func runUnattended(ctx context.Context, o *options, opt unattended.Options, resume bool) error {
	if err := onlyLive(o, "unattended"); err != nil {
		return err
	}
	if resume && (opt.DryRun || opt.Retry || opt.Wait) {
		return engine.Usage(errors.New("--resume is for the boot: it goes with no other option"))
	}
	if os.Geteuid() != 0 {
		return change.WithHint(errNotRoot, "run it with sudo")
	}
	if !systemd.Booted() {
		return engine.Usage(errors.New("unattended runs need systemd as PID 1: use liveupd apply --unattended from a job of your own"))
	}
	host := unattended.System{}
	if resume {
		err := unattended.Refresh(ctx, host, "", true)
		if unattended.CutOff("") {
			err = errors.Join(err, startUnit(ctx, "liveupd.service"))
		}
		return err
	}
	stop := systemd.Ready("starting")
	defer stop()
	r := o.renderer()
	opt.Terminated, opt.Code = o.terminated, exitCode
	opt.Emit = func(v any) {
		switch v := v.(type) {
		case change.Progress:
			r.Progress(v)
		case *change.Plan:
			r.Plan(v)
		case change.StepResult:
			r.Step(v)
		}
	}
	opt.Ended = func(n *change.Night) {
		r.Night(n)
		o.code = n.Code
	}
	_, err := unattended.Run(ctx, host, opt)
	return err
}

func startUnit(ctx context.Context, unit string) error {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	return bus.StartNoWait(ctx, unit)
}

// onlyLive refuses --root for verbs that are about the running system.
func onlyLive(o *options, verb string) error {
	if o.root != "/" {
		return engine.Usage(fmt.Errorf("%s is about the running system: it takes no --root", verb))
	}
	return nil
}

// refreshNight brings the message of the day and the metrics up to date after an update by
// hand. Nothing that fails there makes the update a failure.
func (o *options) refreshNight(req engine.Request) {
	switch req.Verb {
	case "apply", "rollback", "restart", "exec", "recover":
	default:
		return
	}
	if !req.Live() || req.PlanOnly || req.IfUnfinished || os.Geteuid() != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := unattended.Refresh(ctx, unattended.System{}, "", false); err != nil && o.verbose {
		fmt.Fprintln(os.Stderr, "liveupd: the message of the day and the metrics are not up to date:", err)
	}
}
