package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

const verifyHelp = `
EXIT STATUS
  0  no damage, or all of it was repaired; what the machine may change may differ
  1  there is damage, or it could not be repaired (what could be was), or it failed
  2  the command line makes no sense
  3  a repair failed after the commit, and was rolled back
  4  repaired; a host action (a reboot of some kind) is still pending
  5  another transaction, or apt or dpkg, holds the lock
  6  verification refused the source of a repair
  7  recovery needs a person`

func newVerify(o *options) *cobra.Command {
	req := engine.Request{Verb: "verify"}
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "compare the root with what the last update laid down, and repair it",
		Long: `Compares content, mode, owner, attributes and links of the root with the record of
the last committed update. Each difference is printed when it is found: damage is
what belongs to the image; what the machine may change (as in /etc) is none, and
printed with --verbose.

Files that the index knows and that nobody touched since are not read; --full reads
every file, and so finds what a disk altered by itself.

With --repair what is damaged is put back, as one transaction: planned (--plan shows
it and changes nothing), committed whole or not at all, followed by the restarts
that it needs, and rolled back by liveupd rollback. Content is taken only where its
digest is the recorded one: from a kept generation, from another path that has it, or
from the source of the update; --source names another place of that. What lies in
the image's own folders and no update laid down goes, and is kept for the rollback.
` + verifyHelp,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !req.Repair && (req.PlanOnly || req.Source != "") {
				return engine.Usage(errors.New("--plan and --source go with --repair"))
			}
			if req.Repair {
				o.quiesceConfigured(&req)
			}
			o.reads = !req.Repair || req.PlanOnly
			r := o.renderer()
			result, err := o.do(cmd.Context(), req, r)
			switch result := result.(type) {
			case *change.VerifyReport:
				if result != nil {
					r.Verify(result)
				}
			case *change.Plan:
				if result != nil {
					r.Plan(result)
				}
			}
			return o.finish(r, result, err)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&req.Full, "full", false, "read every file, also where the index knows it")
	f.BoolVar(&req.Repair, "repair", false, "put back what is damaged")
	f.BoolVar(&req.PlanOnly, "plan", false, "with --repair: print what would be done, and change nothing")
	f.StringVar(&req.Source, "source", "", "with --repair: where the update is now, `SPEC` as for apply")
	quiesceFlag(cmd, &req)
	o.yesFlag(cmd)
	return cmd
}
