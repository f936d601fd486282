package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

const keyHelp = `
EXIT STATUS
  0  done, or nothing to do
  1  failed, and nothing changed
  2  the command line makes no sense
  5  a transaction, or apt or dpkg, holds the lock
  6  verification refused it: the key is revoked, or the folder of keys cannot be trusted`

func newKey(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "say whose updates are trusted",
		Long: `Whose updates a root trusts: minisign public keys, one for each *.pub file in
/etc/liveupd/keys of the root. The folder and its files must belong to root and be
writable for nobody else. What is revoked is listed in the file revoked beside them, and
never confirms an update again, whether its .pub is there or comes back.

To replace a key: sign an update with the old key that ships the new one as
/etc/liveupd/keys/NAME.pub; sign the next with the new key, and let it revoke the old
one (liveupd sign --revoke ID).
` + keyHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return engine.Usage(fmt.Errorf("key takes a verb: add, list, remove or revoke (see: %s --help)", cmd.CommandPath()))
		},
	}
	cmd.AddCommand(newKeyAdd(o), newKeyList(o), newKeyRemove(o), newRevoke(o))
	return cmd
}

// keys carries out what is to be done with keys.
func (o *options) keys(cmd *cobra.Command, req engine.KeysRequest) error {
	o.reads = req.Do == "list"
	r := o.renderer()
	result, err := o.do(cmd.Context(), engine.Request{Verb: "key", Keys: &req}, r)
	if err != nil {
		return err
	}
	r.Keys(result.(*change.KeyReport))
	return nil
}

func newKeyAdd(o *options) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "add FILE|-",
		Short: "trust a public key",
		Long: `Adds a minisign public key, from a file or from standard input, as NAME.pub. Without
--name it is called what the file is called, and by its ID where it comes from standard input. A
revoked key is refused.
` + keyHelp,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := engine.KeysRequest{Do: "add", Name: name}
			if args[0] != "-" && name == "" {
				req.Name = strings.TrimSuffix(filepath.Base(args[0]), ".pub")
			}
			var err error
			if req.Text, err = orInterrupt(cmd.Context(), func() ([]byte, error) { return keyText(args[0]) }); err != nil {
				return fmt.Errorf("cannot read the public key: %w", err)
			}
			return o.keys(cmd, req)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what to call it: its file is `NAME`.pub")
	return cmd
}

// keyText reads a key from a file or, for "-", from standard input.
func keyText(file string) ([]byte, error) {
	in := os.Stdin
	if file != "-" {
		var err error
		if in, err = os.Open(file); err != nil {
			return nil, err
		}
		defer in.Close()
	}
	// More than any key has: the rest tells that it is none.
	return io.ReadAll(io.LimitReader(in, 64<<10))
}

func newKeyList(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the keys, and those that were revoked",
		Long:  "Lists the keys with their IDs: trusted, revoked (when and why), or unusable (why). Changes nothing.\n" + keyHelp,
		Args:  takes(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.keys(cmd, engine.KeysRequest{Do: "list"})
		},
	}
}

func newKeyRemove(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID|NAME",
		Short: "no longer trust a key",
		Long: `Removes a key by its ID or by the name of its file. It may be added again; to forbid
that, revoke it.
` + keyHelp,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.keys(cmd, engine.KeysRequest{Do: "remove", Which: args[0]})
		},
	}
}

func newRevoke(o *options) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke ID|NAME",
		Short: "never trust a key again",
		Long: `Lists a key as revoked, with the day and the reason: nothing that it has signed is
accepted any more, whether its .pub stays, goes or comes back. An ID need not be known
here. There is no way back but to edit /etc/liveupd/keys/revoked.
` + keyHelp,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.keys(cmd, engine.KeysRequest{Do: "revoke", Which: args[0], Reason: reason})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, in a few words: it is shown to whoever meets the key")
	return cmd
}
