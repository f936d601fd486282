// Command liveupd updates a running Linux server in place and interrupts only
// what the update touches. Each verb has a file of its own: its flags become
// an engine request, its errors an exit code.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/ui"
	"github.com/liveupd/liveupd/nsmount"
)

func main() {
	if nsmount.ChildMain() {
		return
	}
	saveMemory()
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case engine.WorkerArg:
			os.Exit(work(engine.Worker))
		case engine.WorkerInsideArg:
			os.Exit(work(engine.WorkerInside))
		case engine.WatchdogArg:
			os.Exit(work(engine.Watchdog))
		}
	}
	os.Exit(run(os.Args[1:]))
}

// work is the life of a worker: deaf to the terminal's hangup and to a caller
// that no longer listens, so that a restart of the caller's session does not
// cut a commit in half. Interrupts reach it as a message from the caller.
func work(main func() error) int {
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGINT)
	if err := main(); err != nil {
		fmt.Fprintln(os.Stderr, "liveupd:", err)
		return exitFailed
	}
	return exitDone
}

func run(args []string) int {
	ctx, terminated, stop := interruptible()
	defer stop()
	// The session that a run was called from may end through its own update.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	root, state := newRoot()
	state.terminated = terminated
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil && state.reads && state.out.err != nil {
		err = fmt.Errorf("cannot write the result: %w", state.out.err)
	}
	if err == nil {
		return state.code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) && exitCode(err) == exitFailed {
		// Whatever was being read or asked: that it is not done is no failure of it.
		err = change.WithHint(errInterrupted, "run the same command again")
	}
	if !state.ran {
		// cobra's own errors: unknown flags, verbs and arguments.
		err = engine.Usage(err)
		state.json = state.json || wantsJSON(args)
	}
	state.fail(err)
	return exitCode(err)
}

// interruptible is cancelled by the first interrupt or SIGTERM; terminated is
// closed by the first SIGTERM, which asks for the end of this process.
func interruptible() (ctx context.Context, terminated <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	term := make(chan struct{})
	came := make(chan os.Signal, 2)
	signal.Notify(came, os.Interrupt, syscall.SIGTERM)
	go func() {
		for sig := range came {
			cancel()
			if sig == syscall.SIGTERM {
				close(term)
				return
			}
		}
	}()
	return ctx, term, cancel
}

// options are the flags that all verbs share.
type options struct {
	root    string
	json    bool
	yes     bool
	verbose bool

	terminated <-chan struct{} // closed by SIGTERM

	ran   bool // flags were parsed and a verb began
	reads bool // nothing changes: a result that cannot be written is a failure
	out   lossy
	// screen is what prints, once the flags are known.
	screen ui.Renderer
	code   int // what to exit with when there is no error
}

func newRoot() (*cobra.Command, *options) {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "liveupd",
		Short: "update a running server in place, and interrupt only what the update touches",
		Long: `liveupd updates a running Linux server in place. It tells before anything
changes which services will be interrupted and why, it commits all of the
update or none of it, and it can take it back without a reboot.

Start with:   liveupd apply --plan
` + exitHelp,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			o.ran = true
			return refuseEmpty(cmd, args)
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&o.root, "root", "/", "the root `DIR` to act on; anything but / touches no running system")
	f.BoolVar(&o.json, "json", false, "print one JSON object a line")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print every path and every reason")
	cmd.AddCommand(newApply(o), newCheck(o), newRestart(o), newStatus(o), newHistory(o), newRollback(o), newVerify(o), newRecover(o), newClean(o), newSetup(o), newExec(o))
	cmd.AddCommand(newPolicy(o), newUnattended(o), newManPages())
	cmd.Version = programVersion()
	cmd.SetVersionTemplate("liveupd {{.Version}}\n")
	cmd.AddCommand(newKey(o), newRevoke(o), newKeygen(o), newSign(o), newDiff(o))
	cmd.CompletionOptions.HiddenDefaultCmd = true
	completions(cmd)
	cmd.SetHelpCommand(newHelp())
	cmd.SetFlagErrorFunc(flagError)
	return cmd, o
}

// yesFlag adds --yes to a verb that asks.
func (o *options) yesFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask at the terminal")
}

var errInterrupted = errors.New("interrupted")

var errNotRoot = errors.New("this needs root: nothing was done")
