package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/engine"
)

func newClean(o *options) *cobra.Command {
	req := engine.Request{Verb: "clean"}
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "remove what older updates keep for a rollback",
		Long: `Each update keeps the old files, so that it can be rolled back. This removes those of
all but the last update, or the last N. With --keep 0 nothing is kept: the last update
can no longer be rolled back. The system itself does not change.

What plans and sandboxes have kept for the next run goes, too: package lists, packages, and
what a plan prepared for its apply. By themselves they keep to cache_max of the
configuration (1G; 0 for nothing), and liveupd status tells what they hold.
` + exitHelp,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Keep < 0 {
				return engine.Usage(fmt.Errorf("--keep takes a number from 0 on, not %d", req.Keep))
			}
			// 0 means "not said" further down.
			req.KeepNone = req.Keep == 0
			if req.KeepNone {
				req.Keep = 1
			}
			r := o.renderer()
			result, err := o.do(cmd.Context(), req, r)
			return o.finish(r, result, err)
		},
	}
	cmd.Flags().IntVar(&req.Keep, "keep", 1, "how many of the last updates can still be rolled back")
	return cmd
}
