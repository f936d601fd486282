package main

import (
	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/engine"
)

func newRollback(o *options) *cobra.Command {
	req := engine.Request{Verb: "rollback"}
	cmd := &cobra.Command{
		Use:   "rollback [ID]",
		Short: "take the last update back, or all down to ID",
		Long: `Puts the old files back and restarts what uses the new ones. Without ID it takes
the last update back; with ID that one and all that came after it, the newest
first. See liveupd history for what is kept.

All that is kept is read first: where a disk has damaged it nothing is changed (exit
6), and --source names a tree that the damaged files can be taken from. What others
changed since the update is laid beside as NAME.liveupd-saved; the plan lists it.

An update that configured a package on the live system (apply --live-data after), or after
which dpkg has run, is not rolled back: data and database would no longer fit the files. --force does
it all the same, once you have seen to them.
` + exitHelp,
		Args: takes(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				req.ID = args[0]
			}
			o.quiesceConfigured(&req)
			r := o.renderer()
			result, err := o.do(cmd.Context(), req, r)
			return o.finish(r, result, err)
		},
	}
	quiesceFlag(cmd, &req)
	cmd.Flags().BoolVar(&req.Force, "force", false, "also past what is not taken back: packages configured on the live system, later runs of dpkg")
	guardFlag(cmd, &req)
	cmd.Flags().StringVar(&req.Source, "source", "", "where damaged old files come from, `SPEC` as for apply: the version before")
	o.yesFlag(cmd)
	return cmd
}

func newRecover(o *options) *cobra.Command {
	var ifUnfinished bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "finish or undo a transaction that was cut off",
		Long: `After a crash or a kill: leaves exactly the old tree or exactly the new one, and
carries out the unit steps that remain. Running it twice changes nothing. A package whose
configuration on the live system failed is configured again.
` + exitHelp,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := engine.Request{Verb: "recover", IfUnfinished: ifUnfinished}
			r := o.renderer()
			result, err := o.do(cmd.Context(), req, r)
			return o.finish(r, result, err)
		},
	}
	cmd.Flags().BoolVar(&ifUnfinished, "if-unfinished", false, "do nothing, and say nothing, where no transaction was cut off")
	return cmd
}
