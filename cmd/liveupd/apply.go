package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

type applyOptions struct {
	plan, exitCode bool
	max            string
	req            engine.Request
	packages
}

func newApply(o *options) *cobra.Command {
	var a applyOptions
	cmd := &cobra.Command{
		Use:   "apply [--plan] [--source SPEC] [--max ACTION] [--expect ID] [PACKAGE...]",
		Short: "apply an update, or show what it would interrupt",
		Long: `Compares the source with the root, plans the smallest set of interruptions, and
applies it: all of it or nothing. With --plan it stops after the plan; nothing
but caches changes.

SPEC says where the update comes from. It is one of
  tree:DIR       a directory that holds the files of the update at their places
  tar:FILE       an archive of such a directory, plain or compressed with gzip, xz,
                 zstd or bzip2; or its address, http or https
  patch:FILE     what liveupd diff has made, for machines that have its old tree; or
                 its address
  apt            what the package manager's archives have for this machine, or of it
                 just PACKAGE...
  deb:FILE       a package file

Without a source, and where none is configured, it is apt where apt is. Packages are
downloaded and verified by apt, and unpacked and configured over a view of the root: no
script of theirs reaches the running system. One that fails, fails before anything has
changed. A package that changes data which a process has open (a database server's, as
a rule) is refused, unless --live-data after lets it be configured after the commit, on
the live system: its service is stopped for that, and no rollback takes it back. Where
it fails the new files stay (exit 7), and liveupd recover tries again.

ACTION is a rung of the ladder: none, daemon-reload, reload, restart, daemon-reexec,
soft-reboot, kexec, reboot; what is above it is deferred. At a terminal apply asks
before it changes anything.

For the moment of the swap the services of which many files change stand still
(--quiesce), so that none of them meets old and new files side by side.

An interrupt (Ctrl-C) before the commit point undoes everything; after it the
run goes on to its end, and says so.
` + exitHelp,
		Example: `  liveupd apply --plan
  liveupd apply nginx openssl
  liveupd apply --source tree:/srv/update --max reload
  liveupd apply --source tar:https://example.org/update.tar.zst --unattended`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.run(cmd, o, args) },
	}
	f := cmd.Flags()
	f.BoolVar(&a.plan, "plan", false, "show what would be done and stop")
	f.BoolVar(&a.exitCode, "exit-code", false, "with --plan: exit with 10 when there is something to do")
	f.StringVar(&a.req.Source, "source", "", "where the update comes from, as `SPEC`")
	f.StringVar(&a.max, "max", "", "the highest `ACTION` that may be done now")
	f.StringVar(&a.req.Expect, "expect", "", "refuse any plan but the one with this `ID`")
	f.BoolVar(&a.req.AllowUnsigned, "allow-unsigned", false, "accept a --source that nobody has signed; never one that is configured")
	f.BoolVar(&a.req.AllowRemovals, "allow-removals", false, "accept more than 1,000 removals, and removals of mount points")
	f.BoolVar(&a.req.Snapshot, "snapshot", false, "on a btrfs root: make a read-only snapshot of it before the commit")
	f.StringVar(&a.req.KeysDir, "keys", "", "the `DIR` of trusted minisign keys (default /etc/liveupd/keys of the root)")
	f.BoolVar(&a.req.Unattended, "unattended", false, "nobody is there to mend it: refuse where no recovery at boot is installed")
	f.IntVar(&a.req.Keep, "keep", 0, "how many generations to keep for a rollback (default 2)")
	a.packages.flags(cmd)
	quiesceFlag(cmd, &a.req)
	guardFlag(cmd, &a.req)
	o.yesFlag(cmd)
	return cmd
}

func (a *applyOptions) run(cmd *cobra.Command, o *options, args []string) error {
	if a.exitCode && !a.plan {
		return engine.Usage(fmt.Errorf("--exit-code goes with --plan"))
	}
	if a.req.Keep < 0 {
		return engine.Usage(fmt.Errorf("--keep takes a positive number, not %d", a.req.Keep))
	}
	if err := setMax(&a.req, a.max); err != nil {
		return err
	}
	if err := o.defaults(&a.req); err != nil {
		return err
	}
	if err := a.request(cmd, o.root, args, &a.req); err != nil {
		return err
	}
	r := o.renderer()
	a.req.Verb = "apply"
	if a.plan {
		a.req.Verb, o.reads = "plan", true
		result, err := o.do(cmd.Context(), a.req, r)
		if err != nil {
			return err
		}
		plan := result.(*change.Plan)
		r.Plan(plan)
		if a.exitCode && !plan.Empty() {
			o.code = exitSomething
		}
		return nil
	}
	result, err := o.do(cmd.Context(), a.req, r)
	return o.finish(r, result, err)
}

func ladder() string {
	var names []string
	for _, a := range change.Ladder() {
		names = append(names, a.String())
	}
	return strings.Join(names, ", ")
}

// setMax takes over --max.
func setMax(req *engine.Request, max string) error {
	if max == "" {
		return nil
	}
	if err := req.Max.UnmarshalText([]byte(max)); err != nil || !slices.Contains(change.Ladder(), req.Max) {
		return engine.Usage(fmt.Errorf("--max takes %s, not %q", ladder(), max))
	}
	req.MaxSet = true
	return nil
}
