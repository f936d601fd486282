package main

import (
	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

func newCheck(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "list the units that run code which is no longer on disk",
		Long: `Looks at every process and lists the units that run code which is no longer what
its path holds: by device and inode, never by name. Changes nothing.
` + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := o.renderer()
			result, err := o.do(cmd.Context(), engine.Request{Verb: "check"}, r)
			if err != nil {
				return err
			}
			r.Check(result.(*change.CheckReport))
			return nil
		},
	}
}

func newRestart(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restart",
		Short: "do what check found",
		Long:  "Restarts the units that check lists, and no other.\n" + exitHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := o.renderer()
			result, err := o.do(cmd.Context(), engine.Request{Verb: "restart"}, r)
			return o.finish(r, result, err)
		},
	}
	o.yesFlag(cmd)
	return cmd
}
