package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
	"github.com/liveupd/liveupd/source/fetch"
)

// keyring is the keys that count for the root.
func (s *session) keyring() *trust.Keyring {
	return trust.NewKeyring(trust.Options{Root: s.req.Root, Dir: s.req.KeysDir, Revoked: func() ([]trust.Revocation, error) {
		seen, _, err := s.seen()
		if err != nil {
			return nil, err
		}
		return seen.Revoked, nil
	}})
}

// seen is what the root has seen of signed updates, with those that were verified and
// not yet recorded. settled are the transactions whose claims are done with.
func (s *session) seen() (st *trust.State, settled []string, err error) {
	dir, err := s.stateDir()
	if errors.Is(err, fs.ErrNotExist) {
		dir, err = nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read which updates were seen: %w", err)
	}
	if dir != nil {
		defer dir.Close()
	}
	if st, err = trust.ReadState(dir); err != nil {
		return nil, nil, err
	}
	claims, err := trust.ReadClaims(dir)
	if err != nil || len(claims) == 0 {
		return st, nil, err
	}
	list, err := s.store.List()
	if err != nil {
		return nil, nil, err
	}
	states := map[string]string{}
	for _, g := range list {
		states[g.ID] = g.State
	}
	now := s.e.Clock.At(st).Unix
	for id, c := range claims {
		switch states[id] {
		case "verified":
			st.Accept(c, now)
			settled = append(settled, id)
		case "rolled-back", "":
			settled = append(settled, id) // it was taken back: it has claimed for nothing
		}
	}
	return st, settled, nil
}

// settleTrust records what updates that are done with have claimed. What cannot be written
// is counted from the claims until it can.
func (s *session) settleTrust() {
	err := func() error {
		st, settled, err := s.seen()
		if err != nil || len(settled) == 0 {
			return err
		}
		dir, err := s.stateDir()
		if err != nil {
			return err
		}
		defer dir.Close()
		if err := st.Write(s.k, dir); err != nil {
			return err
		}
		for _, id := range settled {
			if err := trust.DropClaim(s.k, dir, id); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		s.warnings = append(s.warnings, err.Error())
	}
}

// judgeTrust refuses a signed update that is older than what the root has seen, or
// expired. It gives what is to be recorded once the update is verified; nil where nobody has
// signed it.
func (s *session) judgeTrust(u *update) (*trust.Claim, error) {
	signer := u.Signer()
	if signer == nil {
		return nil, nil
	}
	m := u.Manifest()
	st, _, err := s.seen()
	if err != nil {
		return nil, err
	}
	claim := &trust.Claim{Head: m.Head(), Signer: signer.ID}
	if err := st.Judge(s.req.Source, claim.Head, s.e.Clock.At(st)); err != nil {
		return nil, err
	}
	return claim, nil
}

// signedBy names the signer for a plan; "" for none.
func (u *update) signedBy() string {
	if s := u.Signer(); s != nil {
		return s.String()
	}
	return ""
}

// trustWarnings tell which keys the update will revoke.
func trustWarnings(c *trust.Claim) []string {
	if c == nil {
		return nil
	}
	var out []string
	for _, id := range c.Revokes {
		if id == c.Signer {
			out = append(out, fmt.Sprintf("the update revokes key %s, which has signed it: this is not done; an update by another key can, and: liveupd revoke %s", id, id))
			continue
		}
		out = append(out, fmt.Sprintf("once it is verified, the update revokes key %s", id))
	}
	return out
}

// writeClaim notes, before the commit, what is to be recorded after it.
func (r *run) writeClaim() error {
	if r.p.claim == nil {
		return nil
	}
	dir, err := r.s.stateDir()
	if err != nil {
		return err
	}
	return errors.Join(trust.WriteClaim(r.s.k, dir, r.tx.ID(), *r.p.claim), dir.Close())
}

// acceptUnchanged records an update that the root already holds: there is nothing to verify.
func (s *session) acceptUnchanged(p *planned) error {
	if p.claim == nil {
		return nil
	}
	st, _, err := s.seen()
	if err != nil || !st.Accept(*p.claim, s.e.Clock.At(st).Unix) {
		return err
	}
	dir, err := s.stateDir()
	if err != nil {
		return err
	}
	return errors.Join(st.Write(s.k, dir), dir.Close())
}

// archiveTrust is what the signature beside an archive says of it.
type archiveTrust struct {
	signer *trust.Signer
	head   trust.Head
	sum    change.Digest // of what was confirmed
}

// sigSuffix ends the name of a detached signature.
const sigSuffix = ".minisig"

// confirmArchive checks the signature that lies beside an archive, before anything of the archive
// is looked at; without one, what the archive holds must be signed. file is the archive, name
// where its SPEC says that it is.
func (s *session) confirmArchive(ctx context.Context, in *os.File, file, name, homePath string, home *sys.FD, ev Events) (*archiveTrust, error) {
	at, sigFile := name+sigSuffix, file+sigSuffix
	if isURL(name) {
		var err error
		at, sigFile, err = s.fetchSignature(ctx, name, homePath, home)
		if errors.Is(err, fetch.ErrNotFound) {
			return &archiveTrust{}, nil
		}
		if err != nil {
			return nil, err
		}
	}
	sig, err := readSignature(sigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return &archiveTrust{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the signature %s: %w: %w", at, err, change.ErrVerification)
	}
	ev.progress("verifying", 0, 0, "bytes", "")
	sum := sha256.New()
	message, err := trust.ReadStream(io.TeeReader(&ctxReader{ctx, in}, sum))
	if err == nil {
		_, err = in.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the archive %s: %w", name, err)
	}
	out := &archiveTrust{sum: change.Digest(sum.Sum(nil))}
	if out.signer, err = s.keyring().Confirm(name, message, at, sig); err != nil {
		return nil, err
	}
	if out.head, err = trust.ParseComment(out.signer.Comment); err != nil {
		return nil, fmt.Errorf("cannot accept %s: %w", name, err)
	}
	return out, nil
}

// unpackedIs refuses what was unpacked of other bytes than those that were confirmed.
func (a *archiveTrust) unpackedIs(where, digest string) error {
	if a.signer != nil && a.sum.String() != digest {
		return fmt.Errorf("cannot unpack %s: it changed after its signature was checked: %w: %w", where, change.ErrDrift, change.ErrVerification)
	}
	return nil
}

// ctxReader ends a long read with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// readSignature reads a small regular file.
func readSignature(name string) ([]byte, error) {
	f, err := sys.OpenFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, trust.MaxSignature+1))
}

// fetchSignature brings the signature of what lies at an address: the same with .minisig
// behind its path.
func (s *session) fetchSignature(ctx context.Context, address, homePath string, home *sys.FD) (at, file string, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", "", fmt.Errorf("cannot read the address: %w", err)
	}
	u.Path += sigSuffix
	if u.RawPath != "" {
		u.RawPath += sigSuffix
	}
	file, err = s.fetchFile(ctx, u.String(), homePath, home, fetch.Options{Anew: true, MaxBytes: trust.MaxSignature})
	return u.Redacted(), file, err
}
