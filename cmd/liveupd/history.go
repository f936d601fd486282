package main

import (
	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/unattended"
)

func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "show what is installed, what is pending and what was cut off",
		Long: "Shows the last update, what still waits for a reboot or was put off, since when and why, whether a transaction\n" +
			"was cut off, and what came of the last unattended run. Changes nothing.\n" + exitHelp,
		Args: takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listGenerations(cmd, o, "status")
		},
	}
}

func newHistory(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "history",
		Short: "list the updates and whether they can be rolled back",
		Long:  "Lists the transactions, the newest first. Those that are kept can be rolled back. Changes nothing.\n" + exitHelp,
		Args:  takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listGenerations(cmd, o, "history")
		},
	}
}

func listGenerations(cmd *cobra.Command, o *options, verb string) error {
	o.reads = true
	r := o.renderer()
	result, err := o.do(cmd.Context(), engine.Request{Verb: verb}, r)
	if err != nil {
		return err
	}
	list := result.([]change.Generation)
	if o.root == "/" {
		unattended.MarkUnderWay(list)
	}
	if verb == "history" {
		r.History(list)
		return nil
	}
	r.Status(list, o.nightStatus(), engine.Caches(o.root))
	for _, g := range list {
		if g.HostAction > change.ActionDaemonReexec {
			o.code = exitPending
		}
	}
	return nil
}

// nightStatus is what is known of unattended runs; nil where the root is not the running one.
func (o *options) nightStatus() *change.NightStatus {
	if o.root != "/" {
		return nil
	}
	s, err := unattended.Status("")
	if err != nil {
		s = &change.NightStatus{BackOff: []change.BackOff{}, Note: "not known: " + err.Error()}
	}
	return s
}
