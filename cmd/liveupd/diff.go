package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

func newDiff(o *options) *cobra.Command {
	var req engine.DiffRequest
	cmd := &cobra.Command{
		Use:   "diff OLD NEW -o FILE",
		Short: "make a patch from one tree to another, for machines that have the first",
		Long: `Makes a patch: an update that holds just what turns the tree OLD into the tree NEW.
Each of them is a folder or an archive. Machines that have OLD apply it with
liveupd apply --source patch:FILE; one whose files are others refuses it, before
anything is written. Files below /etc and /var, of which a machine has its own, are in
it whole: keep a patch as those files are kept. Upon a machine that it was applied to, and
that still keeps the old files, it has nothing to do.

The same trees give the same patch, by the same encoder: the zstd program where it is
there, which packs better, else one that is built in. Sign it with liveupd sign.
` + exitHelp,
		Example: `  liveupd diff tar:debian-13.1.tar.zst tar:debian-13.2.tar.zst -o 13.1-13.2.patch
  liveupd sign --key ops.key 13.1-13.2.patch`,
		Args: takes(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("root") {
				return engine.Usage(errors.New("diff compares two trees: it takes no --root"))
			}
			req.Old, req.New = args[0], args[1]
			r := o.renderer()
			report, err := engine.Diff(cmd.Context(), req, engine.Events{Emit: func(v any) {
				if p, ok := v.(change.Progress); ok {
					r.Progress(p)
				}
			}})
			if err != nil {
				return err
			}
			r.Diffed(report)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.Out, "output", "o", "", "put the patch into `FILE`, whole or not at all")
	f.BoolVar(&req.Force, "force", false, "replace FILE where it is there")
	f.IntVar(&req.Level, "level", 0, "how hard to pack, a `LEVEL` of zstd from 1 to 22 (default 19)")
	return cmd
}
