package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
	"github.com/liveupd/liveupd/source/tree"
)

// KeygenRequest says which key to make.
type KeygenRequest struct {
	Name  string // NAME.key and NAME.pub are written; it may have folders in front
	Force bool   // replace files that are there
	// Password encrypts the secret key; "" leaves it as it is.
	Password func() (string, error)
}

// Keygen makes a pair of keys for Sign.
func Keygen(req KeygenRequest) (*change.SignReport, error) {
	if base := filepath.Base(req.Name); req.Name == "" || strings.HasSuffix(req.Name, "/") || trust.CheckName(base) != nil {
		return nil, usage("%q cannot be the name of a key", req.Name)
	}
	files := []string{req.Name + ".key", req.Name + trust.PubSuffix}
	if !req.Force {
		for _, name := range files {
			if _, err := os.Lstat(name); err == nil {
				return nil, change.WithHint(fmt.Errorf("cannot make the key: %s is there already", name), "what it has signed needs it: take another name, or pass --force")
			}
		}
	}
	password, err := req.Password()
	if err != nil {
		return nil, err
	}
	secret, err := trust.GenerateSecret()
	if err != nil {
		return nil, err
	}
	text, err := secret.Text(password)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(replaceFile(files[0], text, 0o600), replaceFile(files[1], secret.Public(), 0o644)); err != nil {
		return nil, fmt.Errorf("cannot write the key: %w", err)
	}
	return &change.SignReport{
		MessageType: "report", Schema: Schema, Verb: "keygen", Key: secret.ID().String(),
		Public: strings.TrimSpace(string(bytes.SplitN(secret.Public(), []byte("\n"), 2)[1])), Files: files,
	}, nil
}

// SignRequest says what to sign, and with what.
type SignRequest struct {
	Target   string // a directory, or a file
	Key      string // the file of the secret key, minisign's or ours
	Password func() (string, error)
	Head     trust.Head // what is said beside liveupd.toml
	Comment  string     // signed with it
}

// Sign writes the manifest of a directory and its signature into it, or the signature of a file
// beside it. The same content, head and key give the same bytes.
func Sign(ctx context.Context, req SignRequest) (*change.SignReport, error) {
	target, err := filepath.Abs(req.Target)
	if err != nil {
		return nil, fmt.Errorf("cannot resolve %s: %w", req.Target, err)
	}
	st, err := os.Stat(target)
	if err != nil {
		return nil, fmt.Errorf("cannot sign: %w", err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot sign %s: it is neither a directory nor a file", target)
	}
	req.Head.Revokes = trust.SortKeyIDs(req.Head.Revokes)
	if err := req.Head.Check(); err != nil {
		return nil, usage("cannot sign %s: %v", req.Target, err)
	}
	text, err := os.ReadFile(req.Key)
	if err != nil {
		return nil, fmt.Errorf("cannot read the secret key: %w", err)
	}
	secret, err := trust.ReadSecret(text, req.Password)
	if err != nil {
		return nil, fmt.Errorf("cannot read the secret key %s: %w", req.Key, err)
	}
	report := &change.SignReport{MessageType: "report", Schema: Schema, Verb: "sign", Key: secret.ID().String()}
	if st.IsDir() {
		err = signTree(ctx, secret, target, &req, report)
	} else {
		err = signFile(ctx, secret, target, &req, report)
	}
	if err != nil {
		return nil, err
	}
	h := req.Head
	report.Name, report.Version, report.Sequence, report.Expires, report.Signed = h.Name, h.Version, h.Sequence, h.Expires, h.Signed
	for _, id := range h.Revokes {
		report.Revokes = append(report.Revokes, id.String())
		if id == secret.ID() {
			report.Warnings = append(report.Warnings, fmt.Sprintf("a key cannot revoke itself: %s stays trusted; sign with another", id))
		}
	}
	return report, nil
}

func signTree(ctx context.Context, secret *trust.Secret, dir string, req *SignRequest, report *change.SignReport) (err error) {
	var manifest bytes.Buffer
	if req.Head, err = tree.WriteSigned(ctx, dir, req.Head, &manifest); err != nil {
		return err
	}
	name := filepath.Join(dir, tree.ManifestName)
	comment, err := trust.Head{Signed: req.Head.Signed}.Comment(tree.ManifestName, req.Comment)
	if err != nil {
		return usage("cannot sign %s: %v", dir, err)
	}
	sig, err := secret.Sign(bytes.NewReader(manifest.Bytes()), comment)
	if err != nil {
		return fmt.Errorf("cannot sign %s: %w", dir, err)
	}
	report.Files = []string{name, name + sigSuffix}
	if err := errors.Join(replaceFile(name, manifest.Bytes(), 0o644), replaceFile(name+sigSuffix, sig, 0o644)); err != nil {
		return fmt.Errorf("cannot sign %s: %w", dir, err)
	}
	if req.Head.Sequence == 0 {
		report.Warnings = append(report.Warnings, "the update has no sequence: it can be replayed after newer ones; give it one in liveupd.toml, or with --sequence")
	}
	return nil
}

func signFile(ctx context.Context, secret *trust.Secret, file string, req *SignRequest, report *change.SignReport) error {
	comment, err := req.Head.Comment(filepath.Base(file), req.Comment)
	if err != nil {
		return usage("cannot sign %s: %v", file, err)
	}
	in, err := sys.OpenFile(file)
	if err != nil {
		return fmt.Errorf("cannot sign: %w", err)
	}
	defer in.Close()
	sig, err := secret.Sign(&ctxReader{ctx, in}, comment)
	if err == nil {
		err = replaceFile(file+sigSuffix, sig, 0o644)
	}
	if err != nil {
		return fmt.Errorf("cannot sign %s: %w", file, err)
	}
	report.Files = []string{file + sigSuffix}
	return nil
}

// replaceFile makes a file anew beside its old self, and puts it in its place. It is the
// signer's own and no part of a root.
func replaceFile(name string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
