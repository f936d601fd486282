package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

const setupHelp = `
EXIT STATUS
  0  done, or nothing to do: an update that is cut short is recovered at the next boot
  1  failed, or not agreed to, or something still lacks: it is named
  2  the command line makes no sense
  4  installed; the initrds are still to be made anew: the command is named
  5  another transaction holds the lock`

func newSetup(o *options) *cobra.Command {
	req := engine.Request{Verb: "setup"}
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "install what recovers an update that is cut short, at the next boot",
		Long: `Shows what this root has and lacks to finish or take back, at its next boot, an
update that a power cut or a crash has cut in half; and, when agreed to, installs it:
liveupd-recover in every initrd (by initramfs-tools or dracut), and units for the
file systems that no initrd mounts. The initrds are made anew, and read to see that
they hold it. Doing it again does nothing.

A machine without an initrd boots with init=/usr/lib/liveupd/liveupd-init on the
kernel's command line instead (/usr/local/lib, where liveupd is not from a package).

It also shows what else updates this machine: unattended-upgrades, apt's own timers,
needrestart, etckeeper, snapper. By default all of them go on beside liveupd. With
--live-together it shows, as a diff, the files that make them fit together, and lays them
when agreed to: files of its own, never a change of somebody else's. unattended-upgrades
then stands down while [unattended] enabled = true, and comes back when that ends;
etckeeper and snapper are called before and after an update, by programs in
/etc/liveupd/hooks.d.

At a terminal it asks; elsewhere it shows, and --yes installs. --undo takes away
what it has installed, and no more: a file that was changed since stays, and is told.
` + setupHelp,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return setup(cmd, o, req) },
	}
	f := cmd.Flags()
	f.BoolVar(&req.Setup.Together, "live-together", false, "with unattended-upgrades, etckeeper and snapper; with --undo: just that")
	f.BoolVar(&req.Remove, "undo", false, "take away what setup has installed")
	f.BoolVar(&req.Remove, "remove", false, "the same")
	f.BoolVar(&req.Setup.NoInitrds, "no-initrds", false, "do not make the initrds anew")
	f.BoolVar(&req.Setup.Settle, "settle", false, "bring what --live-together has laid in line with the configuration")
	_ = f.MarkHidden("remove") // it is defined above
	_ = f.MarkHidden("settle")
	o.yesFlag(cmd)
	return cmd
}

func setup(cmd *cobra.Command, o *options, req engine.Request) error {
	r := o.renderer()
	if req.Setup.Settle {
		if req.Remove || req.Setup.Together {
			return engine.Usage(errors.New("--settle goes alone"))
		}
		// A service calls it each day: it has something to say only where it did something.
		result, err := o.do(cmd.Context(), req, r)
		if report, ok := result.(*change.SetupReport); ok && err == nil && report.Result == "done" {
			for _, it := range report.Items {
				if it.Action != "keep" {
					fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", it.Action, it.Path)
				}
			}
		}
		return err
	}
	if !o.yes {
		show := req
		show.PlanOnly = true
		result, err := o.do(cmd.Context(), show, r)
		if err != nil {
			return err
		}
		report := result.(*change.SetupReport)
		r.Setup(report)
		switch {
		case report.Result == "nothing-to-do":
			return setupEnd(o, req, report)
		case !o.asks():
			return change.WithHint(engine.ErrDeclined, "give --yes to do it")
		}
		if !confirm(cmd.Context()) {
			return engine.ErrDeclined
		}
	}
	result, err := o.do(cmd.Context(), req, r)
	report, ok := result.(*change.SetupReport)
	if ok && report != nil {
		r.Setup(report)
	}
	if err != nil {
		return err
	}
	return setupEnd(o, req, report)
}

// setupEnd maps what is there in the end to the exit code.
func setupEnd(o *options, req engine.Request, r *change.SetupReport) error {
	switch {
	case r.Result == "pending":
		o.code = exitPending
		return nil
	case req.Remove || len(r.Lacks) == 0:
		return nil
	}
	err := fmt.Errorf("an update that is cut short is not recovered at the next boot: %s", strings.Join(r.Lacks, ", "))
	for _, k := range r.Kernels {
		if k.Recovers == "none" {
			return change.WithHint(err, "boot it with init="+r.InitPath+" on its command line")
		}
	}
	if r.Tool == "none" && !r.Container {
		return change.WithHint(err, "boot with init="+r.InitPath+" on the kernel's command line")
	}
	return err
}
