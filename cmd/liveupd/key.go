package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/internal/trust"
)

const keyHelp = `
EXIT STATUS
  0  done
  1  failed, and nothing changed
  2  the command line makes no sense
  6  the folder of keys cannot be trusted`

// keysDir is the folder of keys below the root.
func (o *options) keysDir() string { return filepath.Join(o.root, "/etc/liveupd/keys") }

func newKey(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "the keys whose signatures are believed",
		Long: `The keys are minisign's public keys, NAME.pub in /etc/liveupd/keys below --root. A key that
is revoked is never believed again, also where its file is still there or is added
again: its ID stands in the file "revoked" beside them.
` + keyHelp,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "list", Short: "list the trusted and the revoked keys", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return o.keyList() },
		},
		&cobra.Command{
			Use: "add FILE|-", Short: "trust the public key in FILE, or on the standard input", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return o.keyAdd(args[0]) },
		},
		&cobra.Command{
			Use: "remove NAME|ID", Short: "no longer trust a key", Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return o.keyRemove(args[0]) },
		},
		newKeyRevoke(o))
	return cmd
}

func newKeyRevoke(o *options) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "revoke NAME|ID", Short: "never trust a key again", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ring, err := trust.Open(o.keysDir())
			if err != nil {
				return err
			}
			id, err := ring.Revoke(args[0], reason, time.Now())
			if err != nil {
				return err
			}
			return o.keySay("revoked", trust.Key{ID: id, Name: args[0]})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever meets it")
	return cmd
}

// keyLine is what is printed of a key as JSON.
type keyLine struct {
	MessageType string `json:"message_type"` // "key"
	Action      string `json:"action,omitempty"`
	Name        string `json:"name"`
	ID          string `json:"id,omitempty"`
	Revoked     string `json:"revoked,omitempty"`
	Problem     string `json:"problem,omitempty"`
}

func (o *options) keySay(action string, k trust.Key) error {
	if o.json {
		line := keyLine{"key", action, k.Name, "", k.Revoked, k.Problem}
		if k.ID != 0 {
			line.ID = trust.IDText(k.ID)
		}
		return json.NewEncoder(os.Stdout).Encode(line)
	}
	text := fmt.Sprintf("%s  %-20s %s", trust.IDText(k.ID), k.Name, action)
	switch {
	case k.Problem != "":
		text = fmt.Sprintf("%-16s  %-20s cannot be used: %s", "-", k.Name, k.Problem)
	case k.Revoked != "":
		text = fmt.Sprintf("%s  %-20s revoked: %s", trust.IDText(k.ID), k.Name, k.Revoked)
	}
	_, err := fmt.Fprintln(os.Stdout, strings.TrimRight(text, " "))
	return err
}

func (o *options) keyList() error {
	ring, err := trust.Open(o.keysDir())
	if err != nil {
		return err
	}
	for _, k := range ring.Keys {
		if err := o.keySay("", k); err != nil {
			return err
		}
	}
	if len(ring.Keys) == 0 && !o.json {
		fmt.Fprintf(os.Stderr, "no key is trusted: %s holds none\n", ring.Dir)
	}
	return nil
}

// maxKey bounds what is read of a public key.
const maxKey = 64 << 10

func (o *options) keyAdd(file string) error {
	in, name := os.Stdin, "stdin"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("cannot read the key: %w", err)
		}
		defer f.Close()
		in, name = f, strings.TrimSuffix(filepath.Base(file), ".pub")
	}
	text, err := io.ReadAll(io.LimitReader(in, maxKey))
	if err != nil {
		return fmt.Errorf("cannot read the key: %w", err)
	}
	ring, err := trust.Open(o.keysDir())
	if err != nil {
		return err
	}
	if file == "-" {
		name = fmt.Sprintf("key-%d", len(ring.Keys)+1)
	}
	k, err := ring.Add(name, text)
	if err != nil {
		return err
	}
	return o.keySay("added", k)
}

func (o *options) keyRemove(which string) error {
	ring, err := trust.Open(o.keysDir())
	if err != nil {
		return err
	}
	k, err := ring.Remove(which)
	if err != nil {
		return err
	}
	return o.keySay("removed", k)
}
