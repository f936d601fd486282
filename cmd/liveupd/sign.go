package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/trust"
)

func newSign(o *options) *cobra.Command {
	var req engine.SignRequest
	var expires, signedAt, file string
	var revoke []string
	cmd := &cobra.Command{
		Use:   "sign --key FILE DIR|ARCHIVE",
		Short: "sign an update, so that other machines accept it",
		Long: `Signs a directory: writes liveupd.manifest into it, with the digest, owner, mode and
attributes of each path, and its signature liveupd.manifest.minisig. Or signs an
archive: writes ARCHIVE.minisig beside it. Both are minisign's signatures.

Machines refuse an update that is older than one of the same name which they have
applied (--sequence, or sequence in liveupd.toml), and one that has expired
(--expires). Where liveupd.toml says the same thing it must say it alike.

The output is the same for the same content, key and time. The time is --time, else
$SOURCE_DATE_EPOCH, else now.
` + passwordHelp + signHelp,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Target = args[0]
			if req.Key == "" {
				return engine.Usage(errors.New("no key is given: give one with --key NAME.key, or make one with: liveupd keygen NAME"))
			}
			var err error
			if expires != "" {
				if req.Head.Expires, err = trust.ParseTime(expires); err != nil {
					return engine.Usage(fmt.Errorf("--expires: %w", err))
				}
			}
			if req.Head.Signed, err = signTime(signedAt); err != nil {
				return engine.Usage(err)
			}
			for _, text := range revoke {
				id, err := trust.ParseKeyID(text)
				if err != nil {
					return engine.Usage(fmt.Errorf("--revoke: %w", err))
				}
				req.Head.Revokes = append(req.Head.Revokes, id)
			}
			req.Password = func() (string, error) { return password(cmd.Context(), file, false) }
			report, err := engine.Sign(cmd.Context(), req)
			return o.signed(report, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Key, "key", "", "the secret key, a `FILE` of liveupd keygen or of minisign")
	f.StringVar(&file, "password-file", "", "read the key's password from `FILE`")
	f.StringVar(&req.Head.Name, "name", "", "the `NAME` of the update: older ones of one name are refused")
	f.StringVar(&req.Head.Version, "version", "", "the `VERSION`, for people")
	f.Uint64Var(&req.Head.Sequence, "sequence", 0, "the number `N` that orders the updates of one name")
	f.StringVar(&expires, "expires", "", "refuse it from this `TIME` on: RFC 3339, or seconds since 1970")
	f.StringVar(&signedAt, "time", "", "when it was signed, a `TIME` as for --expires")
	f.StringArrayVar(&revoke, "revoke", nil, "the `ID` of a key that is no longer trusted once the update is verified; may be repeated")
	f.StringVar(&req.Comment, "comment", "", "a `TEXT` that is signed with it")
	return cmd
}

// signTime is when the update is signed.
func signTime(flag string) (int64, error) {
	if flag != "" {
		t, err := trust.ParseTime(flag)
		if err != nil {
			return 0, fmt.Errorf("--time: %w", err)
		}
		return t, nil
	}
	// https://reproducible-builds.org/specs/source-date-epoch/
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		t, err := trust.ParseTime(epoch)
		if err != nil {
			return 0, fmt.Errorf("$SOURCE_DATE_EPOCH: %w", err)
		}
		return t, nil
	}
	return time.Now().Unix(), nil
}
