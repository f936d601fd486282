package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/sys"
)

const signHelp = `
EXIT STATUS
  0  done
  1  failed, and nothing changed
  2  the command line makes no sense`

// passwordEnv names a file that holds the password of secret keys, for scripts.
const passwordEnv = "LIVEUPD_PASSWORD_FILE"

const passwordHelp = `
The password is asked for at the terminal. Elsewhere it is the first line of the file
that --password-file or $` + passwordEnv + ` names: - is standard input, /dev/fd/3 an
open descriptor.
`

func newKeygen(o *options) *cobra.Command {
	req := engine.KeygenRequest{}
	var plain bool
	var file string
	cmd := &cobra.Command{
		Use:   "keygen NAME",
		Short: "make a pair of keys to sign updates with",
		Long: `Makes a key: NAME.key signs updates and stays with whoever makes them, NAME.pub goes
to each machine that is to trust it (liveupd key add NAME.pub). Both are minisign's
files. The secret key is encrypted with a password, which takes 1 GiB of memory for some
seconds.
` + passwordHelp + signHelp,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if plain && file != "" {
				return engine.Usage(errors.New("--no-password and --password-file contradict each other"))
			}
			req.Name = args[0]
			req.Password = func() (string, error) {
				if plain {
					return "", nil
				}
				return password(cmd.Context(), file, true)
			}
			report, err := engine.Keygen(req)
			return o.signed(report, err)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&plain, "no-password", false, "do not encrypt the secret key: who reads the file can sign")
	f.StringVar(&file, "password-file", "", "read the password from `FILE`")
	f.BoolVar(&req.Force, "force", false, "replace keys of this name")
	return cmd
}

func (o *options) signed(report *change.SignReport, err error) error {
	if err != nil {
		return err
	}
	o.renderer().Signed(report)
	return nil
}

// password gets the password of a secret key; twice asks a second time.
func password(ctx context.Context, file string, twice bool) (string, error) {
	if file == "" {
		file = os.Getenv(passwordEnv)
	}
	if file != "" {
		return orInterrupt(ctx, func() (string, error) { return passwordFrom(file) })
	}
	if sys.TerminalWidth(os.Stdin) == 0 {
		return "", change.WithHint(errors.New("cannot ask for the password: this is no terminal"),
			"name a file that holds it with --password-file or $"+passwordEnv+", or pass --no-password to keygen")
	}
	word, err := ask(ctx, "Password: ")
	if err != nil {
		return "", err
	}
	if word == "" {
		return "", change.WithHint(errors.New("the password is empty"), "pass --no-password to keygen where none is wanted")
	}
	if twice {
		again, err := ask(ctx, "The same again: ")
		if err != nil {
			return "", err
		}
		if again != word {
			return "", errors.New("the two passwords differ: nothing was written")
		}
	}
	return word, nil
}

func passwordFrom(file string) (string, error) {
	in := os.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("cannot read the password: %w", err)
		}
		defer f.Close()
		in = f
	}
	line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", fmt.Errorf("cannot read the password: the first line of %s is empty", file)
	}
	return line, nil
}

// orInterrupt waits for what is read from a person or a FIFO, or for an interrupt: such
// a read, and the open of a FIFO, cannot be interrupted, and are left behind.
func orInterrupt[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	came := make(chan answer, 1)
	go func() {
		v, err := read()
		came <- answer{v, err}
	}()
	select {
	case a := <-came:
		return a.v, a.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func ask(ctx context.Context, question string) (string, error) {
	fmt.Fprint(os.Stderr, question)
	restore, err := sys.EchoOff(os.Stdin)
	if err != nil {
		return "", err
	}
	defer restore()
	line, err := orInterrupt(ctx, func() (string, error) { return readLine(os.Stdin) })
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr)
		return "", err
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	return line, nil
}

// readLine reads a line and nothing behind it: the next question is another's.
func readLine(in io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for len(line) < 4096 {
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			break
		}
		line = append(line, b[0])
	}
	return strings.TrimRight(string(line), "\r"), nil
}
