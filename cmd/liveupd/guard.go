package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/engine"
)

// guardFlag adds --guard to a verb that interrupts units.
func guardFlag(cmd *cobra.Command, req *engine.Request) {
	cmd.Flags().Var((*guardValue)(&req.Guard), "guard", "`MODE` of the watch over the network: on takes an update back that cuts the machine off, report tells it, off does not look (default as configured, on)")
}

type guardValue string

func (g *guardValue) String() string { return string(*g) }
func (g *guardValue) Type() string   { return "string" }

func (g *guardValue) Set(s string) error {
	if !slices.Contains([]string{"on", "report", "off"}, s) {
		return fmt.Errorf("takes on, report or off")
	}
	*g = guardValue(s)
	return nil
}
