// Package trust knows which keys a machine trusts, and what they have signed.
//
// Keys are minisign's (https://jedisct1.github.io/minisign/): each *.pub of a folder,
// /etc/liveupd/keys, is trusted until its ID stands in the file "revoked" there, a line
// "KEYID DATE REASON" each. A revoked key confirms nothing, whether its file is there
// or comes again. The folder and its files must belong to root (or to who runs this) and
// be writable by nobody else: who can add a key can sign.
//
// minisign has two kinds of signature, over the message (Ed) and over its BLAKE2b hash
// (ED, prehashed, what minisign writes since 0.8). Both are accepted for what is read
// whole; a stream takes the latter alone. Neither can be turned into the other, because
// what a prehashed signature covers is 64 bytes, which are no manifest.
package trust

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
)

// RevokedName is the list of revoked keys in the folder of keys.
const RevokedName = "revoked"

// Key is a file of the folder of keys.
type Key struct {
	Name    string // of the file, without .pub
	ID      uint64
	Problem string // why it is not used; "" for none
	Revoked string // date and reason; "" for not

	key minisign.PublicKey
}

// IDText writes a key's ID as minisign does.
func IDText(id uint64) string { return fmt.Sprintf("%016X", id) }

// ParseID reads what IDText writes.
func ParseID(s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("cannot read the key ID %q: want 16 hexadecimal digits", s)
	}
	return id, nil
}

// Ring is the keys of a folder.
type Ring struct {
	Dir  string
	Keys []Key // by name; those with a problem too

	revoked map[uint64]string
}

// Signer is who has signed something.
type Signer struct {
	Name    string // the key's file
	ID      uint64
	Comment string // the trusted one
}

func (s Signer) String() string { return fmt.Sprintf("%s.pub (key %s)", s.Name, IDText(s.ID)) }

// Open reads the keys of dir. A folder that is not there holds none. A file that holds
// no key has a Problem: it must not keep the good ones from being used.
func Open(dir string) (*Ring, error) {
	r := &Ring{Dir: dir, revoked: map[uint64]string{}}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the keys: %w", err)
	}
	if err := guarded(dir); err != nil {
		return nil, err
	}
	if err := r.readRevoked(); err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".pub")
		if !ok {
			continue
		}
		k := Key{Name: name}
		path := filepath.Join(dir, e.Name())
		err := guarded(path)
		if err == nil {
			k.key, err = minisign.PublicKeyFromFile(path)
		}
		if err != nil {
			k.Problem = err.Error()
		} else {
			k.ID = k.key.ID()
			k.Revoked = r.revoked[k.ID]
		}
		r.Keys = append(r.Keys, k)
	}
	return r, nil
}

// guarded refuses what others than root and ourselves could have written.
func guarded(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("cannot read the keys: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() || info.Mode()&0o022 != 0 {
		return change.WithHint(fmt.Errorf("cannot trust %s: others than its owner root may write to it: %w", path, change.ErrVerification),
			fmt.Sprintf("find out what was put there, then: chown root:root %s; chmod go-w %s", path, path))
	}
	return nil
}

func (r *Ring) readRevoked() error {
	path := filepath.Join(r.Dir, RevokedName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the revoked keys: %w", err)
	}
	if err := guarded(path); err != nil {
		return err
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		text := strings.TrimSpace(sc.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		word, rest, _ := strings.Cut(text, " ")
		id, err := ParseID(word)
		if err != nil {
			// A line that cannot be read may be the one that matters.
			return fmt.Errorf("cannot read %s: line %d: %w: %w", path, n, err, change.ErrVerification)
		}
		r.revoked[id] = strings.TrimSpace(rest)
		if r.revoked[id] == "" {
			r.revoked[id] = "no reason given"
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	return nil
}

// Verify confirms the signature sig (of the file sigPath) over message by any one key;
// what names the message in errors, which match change.ErrVerification.
func (r *Ring) Verify(what string, message, sig []byte, sigPath string) (Signer, error) {
	return r.verify(what, sig, sigPath, func(k minisign.PublicKey) bool { return minisign.Verify(k, message, sig) })
}

// VerifyReader is Verify of a stream, which is read to its end.
func (r *Ring) VerifyReader(what string, message io.Reader, sig []byte, sigPath string) (Signer, error) {
	var s minisign.Signature
	if err := s.UnmarshalText(sig); err == nil && s.Algorithm != minisign.HashEdDSA {
		return Signer{}, change.WithHint(fmt.Errorf("cannot verify %s: the signature %s is of the old kind, over the whole file: %w", what, sigPath, change.ErrVerification),
			"sign it again with minisign 0.8 or newer, or minisign -H")
	}
	in := minisign.NewReader(message)
	if _, err := io.Copy(io.Discard, in); err != nil {
		return Signer{}, fmt.Errorf("cannot read %s: %w", what, err)
	}
	return r.verify(what, sig, sigPath, func(k minisign.PublicKey) bool { return in.Verify(k, sig) })
}

func (r *Ring) verify(what string, sig []byte, sigPath string, by func(minisign.PublicKey) bool) (Signer, error) {
	var s minisign.Signature
	if err := s.UnmarshalText(sig); err != nil {
		return Signer{}, fmt.Errorf("cannot read the signature %s: %w: %w", sigPath, err, change.ErrVerification)
	}
	var bad []string
	for _, k := range r.Keys {
		switch {
		case k.Problem != "":
			bad = append(bad, fmt.Sprintf("cannot use %s.pub: %s", k.Name, k.Problem))
		case k.ID != s.KeyID:
		case k.Revoked != "":
			bad = append(bad, fmt.Sprintf("%s.pub is revoked: %s", k.Name, k.Revoked))
		case !by(k.key):
			// IDs are chosen at random and prove nothing: another key may bear the same.
			bad = append(bad, k.Name+".pub does not confirm it")
		default:
			return Signer{k.Name, k.ID, s.TrustedComment}, nil
		}
	}
	why := fmt.Sprintf("no key in %s has signed it", r.Dir)
	if len(bad) > 0 {
		why += " (" + strings.Join(bad, "; ") + ")"
	}
	hint := fmt.Sprintf("the signature says that it is by key %s; a public key is trusted by: liveupd key add FILE", IDText(s.KeyID))
	if reason, ok := r.revoked[s.KeyID]; ok {
		hint = fmt.Sprintf("key %s is revoked here (%s): ask for an update that another key has signed", IDText(s.KeyID), reason)
	}
	return Signer{}, change.WithHint(fmt.Errorf("cannot verify %s: %s: %w", what, why, change.ErrVerification), hint)
}
