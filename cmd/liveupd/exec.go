package main

import (
	"fmt"
	"os"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/config"
	"github.com/liveupd/liveupd/internal/sys"
)

type execOptions struct {
	plan, exitCode, shell bool
	max                   string
	limit                 time.Duration
	memory                string
	req                   engine.Request
	exec                  engine.ExecRequest
}

func newExec(o *options) *cobra.Command {
	var x execOptions
	cmd := &cobra.Command{
		Use:   "exec [--plan] [--network] [--] CMD [ARGS]",
		Short: "run a command over a view of the root, and commit what it changed as one update",
		Long: `Runs the command in a sandbox that shows the root as it is. What it writes goes
nowhere but into a transaction: when it succeeds, its changes are planned, shown and
committed, all of them or none, and liveupd rollback takes them back. When it fails, or is
interrupted, nothing has happened.

The command sees no process, socket or device of the running system, cannot set
its clock or its kernel, and has a loopback network only, unless --network gives
it the host's (and with it the host's abstract sockets). Its output goes to standard
error. What it writes to /tmp, /var/tmp and /run is not kept. What is piped
or redirected to liveupd it reads (patch -p1 <x.diff); a terminal it does not.

Its exit status is told, and is not liveupd's: where it fails that is 1.

With --plan the changes are shown and dropped. With --shell a shell is started at
the terminal; leave it with exit 0 to commit, with another status to drop everything.
` + exitHelp,
		Example: `  liveupd exec -- sed -i s/80/8080/ /etc/nginx/nginx.conf
  liveupd exec --network --plan -- ./install.sh`,
		RunE: func(cmd *cobra.Command, args []string) error { return x.run(cmd, o, args) },
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVar(&x.plan, "plan", false, "run the command, show what it would change, and drop it")
	f.BoolVar(&x.exitCode, "exit-code", false, "with --plan: exit with 10 when there is something to do")
	f.BoolVar(&x.shell, "shell", false, "start a shell at the terminal")
	f.BoolVar(&x.exec.Network, "network", false, "let the command use the host's network")
	f.DurationVar(&x.limit, "limit", 0, "how long the command may `RUN` (default 1h)")
	f.StringVar(&x.memory, "memory", "", "how much memory it may use, as `SIZE`: 512M, 2G (default three quarters of the machine's)")
	f.Int64Var(&x.exec.Tasks, "tasks", 0, "how many processes and threads it may have (default 8192)")
	f.StringVar(&x.max, "max", "", "the highest `ACTION` that may be done now")
	f.BoolVar(&x.req.Snapshot, "snapshot", false, "on a btrfs root: make a read-only snapshot of it before the commit")
	f.IntVar(&x.req.Keep, "keep", 0, "how many generations to keep for a rollback (default 2)")
	quiesceFlag(cmd, &x.req)
	guardFlag(cmd, &x.req)
	o.yesFlag(cmd)
	return cmd
}

func (x *execOptions) run(cmd *cobra.Command, o *options, args []string) error {
	switch {
	case x.exitCode && !x.plan:
		return engine.Usage(fmt.Errorf("--exit-code goes with --plan"))
	case x.limit < 0:
		return engine.Usage(fmt.Errorf("--limit takes a positive time, not %s", x.limit))
	case x.exec.Tasks < 0:
		return engine.Usage(fmt.Errorf("--tasks takes a positive number, not %d", x.exec.Tasks))
	case x.shell && len(args) > 0:
		return engine.Usage(fmt.Errorf("--shell takes no command: give one or the other"))
	case x.shell && (sys.TerminalWidth(os.Stderr) == 0 || o.json):
		return engine.Usage(fmt.Errorf("--shell needs a terminal"))
	case x.shell:
		args = []string{"/bin/sh"}
		if shell := os.Getenv("SHELL"); shell != "" {
			args[0] = shell
		}
		x.exec.Terminal = true
	case len(args) == 0:
		return engine.Usage(fmt.Errorf("no command is given: liveupd exec -- CMD [ARGS]"))
	}
	// On their way to the container what is not UTF-8 would become something else: libcontainer
	// sends them as JSON.
	if i := slices.IndexFunc(args, func(s string) bool { return !utf8.ValidString(s) }); i >= 0 {
		return change.WithHint(engine.Usage(fmt.Errorf("%q is not UTF-8: the sandbox cannot be given it as an argument", args[i])),
			"write the command into a script, and run that")
	}
	var err error
	if x.exec.Memory, err = config.ParseSize(x.memory); err != nil {
		return engine.Usage(fmt.Errorf("--memory takes a size such as 512M or 2G, not %q", x.memory))
	}
	if err := setMax(&x.req, x.max); err != nil {
		return err
	}
	if err := o.defaults(&x.req); err != nil {
		return err
	}
	x.req.Verb, x.req.Source, x.req.PlanOnly = "exec", "", x.plan
	x.exec.Argv, x.exec.Limit = args, x.limit
	x.exec.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return !utf8.ValidString(s) })
	if dir, err := os.Getwd(); err == nil && utf8.ValidString(dir) {
		x.exec.Dir = dir
	}
	mask := sys.Umask()
	x.exec.Umask = &mask
	if st, err := os.Stdin.Stat(); err == nil && !x.shell {
		x.exec.Input = sys.TerminalWidth(os.Stdin) == 0 && st.Mode()&os.ModeCharDevice == 0
	}
	x.req.Exec = &x.exec
	o.reads = x.plan
	r := o.renderer()
	result, err := o.do(cmd.Context(), x.req, r)
	if plan, ok := result.(*change.Plan); ok && x.plan && err == nil {
		r.Plan(plan)
		if x.exitCode && !plan.Empty() {
			o.code = exitSomething
		}
		return nil
	}
	return o.finish(r, result, err)
}
