package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Edit changes a folder of keys: Dir is open for writing, Ring what it holds.
type Edit struct {
	Kernel *sys.Kernel
	Dir    *sys.FD
	Ring   *Keyring
}

// CheckName refuses a name that no key file can have.
func CheckName(name string) error {
	if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/\x00") || len(name) > 200 || CheckText(name) != nil {
		return fmt.Errorf("%q cannot be the name of a key", name)
	}
	return nil
}

// Add makes the key in text trusted, as NAME.pub; "" is named by its ID. It tells the key's
// file, and whether it is new.
func (e *Edit) Add(name string, text []byte) (k Key, added bool, err error) {
	if k.key, err = ParseKey(text); err != nil {
		return k, false, fmt.Errorf("cannot read the public key: %w", err)
	}
	k.ID = KeyID(k.key.ID())
	if name == "" {
		name = k.ID.String()
	}
	if err := CheckName(name); err != nil {
		return k, false, err
	}
	k.File = name + PubSuffix
	revoked, err := e.Ring.Revoked()
	if err != nil {
		return k, false, err
	}
	if r := findRevoked(revoked, k.key); r != nil {
		return k, false, fmt.Errorf("cannot add %s: %s: %w", &k, r, change.ErrVerification)
	}
	keys, err := e.Ring.Keys()
	if err != nil {
		return k, false, err
	}
	for _, old := range keys {
		switch {
		case old.Err == nil && old.key.Equal(k.key):
			return old, false, nil
		case old.File == k.File:
			return k, false, change.WithHint(fmt.Errorf("cannot add %s: another key lies there", &k), "give it another name with --name, or remove the old one: liveupd key remove "+name)
		case old.Err == nil && old.ID == k.ID:
			return k, false, change.WithHint(fmt.Errorf("cannot add %s: %s is another key with the same ID", &k, old.File), "make a new key: two cannot be told apart")
		}
	}
	if err := replaceFile(e.Kernel, e.Dir, k.File, publicText(k.key), 0o644); err != nil {
		return k, false, fmt.Errorf("cannot add the key: %w", err)
	}
	return k, true, nil
}

// find gives the keys that an ID or a name (with .pub or without) means; a name goes first.
func (e *Edit) find(which string) ([]Key, error) {
	keys, err := e.Ring.Keys()
	if err != nil {
		return nil, err
	}
	var out []Key
	for _, k := range keys {
		if k.File == which || k.File == which+PubSuffix {
			return []Key{k}, nil
		}
		if id, err := ParseKeyID(which); err == nil && k.Err == nil && k.ID == id {
			out = append(out, k)
		}
	}
	return out, nil
}

// Remove takes a key away by ID or name: what it has signed is no longer accepted. It
// may be added again; Revoke is for ever.
func (e *Edit) Remove(which string) ([]Key, error) {
	keys, err := e.find(which)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, change.WithHint(fmt.Errorf("cannot remove %q: no key in %s has this name or ID", which, e.Ring.Dir()), "see: liveupd key list")
	}
	for _, k := range keys {
		if err := e.Kernel.Unlink(e.Dir, k.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot remove %s: %w", k.File, err)
		}
	}
	if err := e.Kernel.Fsync(e.Dir); err != nil {
		return nil, fmt.Errorf("cannot remove %q: %w", which, err)
	}
	return keys, nil
}

// Revoke lists a key by ID or name as revoked. It need not lie in the folder, where an
// ID is given. It tells the revocations, and whether any is new.
func (e *Edit) Revoke(which, reason string, when int64) (out []Revocation, added bool, err error) {
	if err := CheckText(reason); err != nil {
		return nil, false, fmt.Errorf("cannot revoke %s: the reason: %w", which, err)
	}
	keys, err := e.find(which)
	if err != nil {
		return nil, false, err
	}
	wanted := make([]Revocation, 0, 1)
	for _, k := range keys {
		if k.Err == nil {
			wanted = append(wanted, Revocation{ID: k.ID, Time: when, Key: rawKey(k.key), Reason: reason})
		}
	}
	if len(wanted) == 0 {
		id, err := ParseKeyID(which)
		if err != nil {
			return nil, false, change.WithHint(fmt.Errorf("cannot revoke %q: no key in %s has this name, and it is no ID", which, e.Ring.Dir()), "see: liveupd key list")
		}
		wanted = append(wanted, Revocation{ID: id, Time: when, Reason: reason})
	}
	text, err := readFile(e.Dir, RevokedFile, maxRevoked)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("cannot read the list of revoked keys: %w", err)
	}
	listed, err := ParseRevoked(text)
	if err != nil {
		return nil, false, fmt.Errorf("cannot read the list of revoked keys: %w", err)
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	for _, r := range wanted {
		i := slices.IndexFunc(listed, func(old Revocation) bool {
			return old.ID == r.ID && (len(r.Key) == 0 || string(old.Key) == string(r.Key))
		})
		if i >= 0 {
			out = append(out, listed[i])
			continue
		}
		added = true
		out = append(out, r)
		text = append(text, formatRevocation(r)...)
	}
	if !added {
		return out, false, nil
	}
	if err := replaceFile(e.Kernel, e.Dir, RevokedFile, text, 0o644); err != nil {
		return nil, false, fmt.Errorf("cannot write the list of revoked keys: %w", err)
	}
	return out, true, nil
}

// publicText is the public key's file, as minisign writes it.
func publicText(key minisign.PublicKey) []byte {
	return fmt.Appendf(nil, "untrusted comment: minisign public key %X\n%s\n", key.ID(), key)
}
