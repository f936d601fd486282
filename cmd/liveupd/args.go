package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// takes refuses another number of arguments than from min to max, in words that
// name the verb's own usage.
func takes(min, max int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) > max && max == 0:
			return fmt.Errorf("%s takes no argument: %q (see: %s --help)", cmd.Name(), args[0], cmd.CommandPath())
		case len(args) < min, len(args) > max:
			return fmt.Errorf("wrong number of arguments (%d); want: %s", len(args), strings.TrimSuffix(cmd.UseLine(), " [flags]"))
		}
		return nil
	}
}

// refuseEmpty refuses an option or argument that is there and says nothing. Nobody
// types that: it is a variable of a script that has no value, and --root="$DIR"
// would act on the running system, rollback "$ID" on the last update.
func refuseEmpty(cmd *cobra.Command, args []string) error {
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "string" && f.Value.String() == "" {
			err = engine.Usage(fmt.Errorf("--%s is given without a value", f.Name))
		}
	})
	if err == nil && cmd.Name() != "exec" && !cmd.Hidden && slices.Contains(args, "") {
		err = engine.Usage(fmt.Errorf("%s has an argument that is empty", cmd.Name()))
	}
	return err
}

// flagError words what pflag says of a value as the other errors are worded.
func flagError(cmd *cobra.Command, err error) error {
	if v, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		want := map[string]string{
			"int": "a whole number", "int64": "a whole number", "uint64": "a whole number", "bool": "no value", "duration": "a time such as 90s, 10m or 2h",
		}[v.GetFlag().Value.Type()]
		if cause := errors.Unwrap(v); want == "" && cause != nil {
			want = strings.TrimPrefix(cause.Error(), "takes ")
		}
		if want != "" {
			err = fmt.Errorf("--%s takes %s, not %q", v.GetFlag().Name, want, v.GetValue())
		}
	}
	return fmt.Errorf("%w (see: %s --help)", err, cmd.CommandPath())
}

// wantsJSON looks for --json where the command line makes no sense: an error is
// printed as was asked for, although the flags could not be read.
func wantsJSON(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--":
			return false
		case "--json", "--json=true", "--json=1":
			return true
		}
	}
	return false
}

// completions tells the shell what the verbs take where that is a fixed list, and
// that no file is meant where none is.
func completions(cmd *cobra.Command) {
	values := map[string][]string{"quiesce": quiesceWhen, "conffiles": {"old", "new"}}
	for _, a := range change.Ladder() {
		values["max"] = append(values["max"], a.String())
	}
	for _, c := range cmd.Commands() {
		completions(c)
		for name, list := range values {
			if c.Flags().Lookup(name) != nil {
				_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp))
			}
		}
		none := c.Args != nil && c.Args(c, nil) == nil && c.Args(c, []string{"x"}) != nil
		// Units, updates and keys are no files either.
		if c.ValidArgsFunction == nil && (none || slices.Contains([]string{"check", "rollback", "remove", "revoke"}, c.Name())) {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
}

// newHelp is cobra's own help but for this: what is unknown is an error.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "tell how a verb is used",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			of, _, err := cmd.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, sub := range of.Commands() {
				if !sub.Hidden {
					names = append(names, sub.Name()+"\t"+sub.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return engine.Usage(fmt.Errorf("there is no help on %q (see: liveupd --help)", strings.Join(args, " ")))
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// lossy is standard output, which remembers that it could not be written to. A
// reader that is gone wanted no more.
type lossy struct{ err error }

func (l *lossy) Write(b []byte) (int, error) {
	n, err := os.Stdout.Write(b)
	if err != nil && l.err == nil && !errors.Is(err, syscall.EPIPE) {
		l.err = err
	}
	return n, err
}
