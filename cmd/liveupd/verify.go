package main

import (
	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

func newVerify(o *options) *cobra.Command {
	var full bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "compare the root with what the last update laid down",
		Long: `Compares content, mode, owner and attributes of the root with the record of the
last committed update, and tells the machine's own changes from damage. Damage
exits with 1.
` + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := o.renderer()
			result, err := o.do(cmd.Context(), engine.Request{Verb: "verify", Full: full}, r)
			if report, ok := result.(*change.VerifyReport); ok && report != nil {
				r.Verify(report)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "read every file, also where the index knows it")
	return cmd
}
