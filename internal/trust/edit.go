package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
)

// Add trusts a public key, in minisign's text form, under a name. A key that is
// trusted or revoked already is refused.
func (r *Ring) Add(name string, text []byte) (Key, error) {
	if name == "" || strings.ContainsAny(name, "/\x00\n") || strings.HasPrefix(name, ".") {
		return Key{}, fmt.Errorf("cannot add the key %q: that is no name of a file", name)
	}
	var key minisign.PublicKey
	if err := key.UnmarshalText(text); err != nil {
		return Key{}, change.WithHint(fmt.Errorf("cannot add the key %s: it is no public key of minisign: %w", name, err), "give the .pub file that minisign -G or liveupd keygen made")
	}
	k := Key{Name: name, ID: key.ID(), key: key}
	if why := r.revoked[k.ID]; why != "" {
		return Key{}, change.WithHint(fmt.Errorf("cannot add the key %s: %s is revoked: %s", name, IDText(k.ID), why),
			fmt.Sprintf("to trust it again, remove its line from %s", filepath.Join(r.Dir, RevokedName)))
	}
	for _, old := range r.Keys {
		if old.ID == k.ID && old.Problem == "" {
			return Key{}, fmt.Errorf("cannot add the key %s: %s is trusted already, as %s", name, IDText(k.ID), old.Name)
		}
		if old.Name == name {
			return Key{}, fmt.Errorf("cannot add the key %s: there is another key of this name", name)
		}
	}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return Key{}, fmt.Errorf("cannot add the key %s: %w", name, err)
	}
	b, err := key.MarshalText()
	if err != nil {
		return Key{}, fmt.Errorf("cannot add the key %s: %w", name, err)
	}
	if err := r.write(name+".pub", append(b, '\n')); err != nil {
		return Key{}, fmt.Errorf("cannot add the key %s: %w", name, err)
	}
	r.Keys = append(r.Keys, k)
	return k, nil
}

// Find gives the key of a name or an ID.
func (r *Ring) Find(which string) (Key, error) {
	id, iderr := ParseID(which)
	for _, k := range r.Keys {
		if k.Name == strings.TrimSuffix(which, ".pub") || iderr == nil && k.ID == id {
			return k, nil
		}
	}
	return Key{}, change.WithHint(fmt.Errorf("there is no key %q in %s", which, r.Dir), "see: liveupd key list")
}

// Remove no longer trusts a key.
func (r *Ring) Remove(which string) (Key, error) {
	k, err := r.Find(which)
	if err != nil {
		return k, err
	}
	if err := os.Remove(filepath.Join(r.Dir, k.Name+".pub")); err != nil {
		return k, fmt.Errorf("cannot remove the key %s: %w", k.Name, err)
	}
	return k, nil
}

// Revoke never trusts a key again, whether its file is here or not. which is a name or an ID.
func (r *Ring) Revoke(which, reason string, when time.Time) (uint64, error) {
	id, err := ParseID(which)
	if err != nil {
		k, ferr := r.Find(which)
		if ferr != nil {
			return 0, ferr
		}
		if k.Problem != "" {
			return 0, fmt.Errorf("cannot revoke %s: %s", k.Name, k.Problem)
		}
		id = k.ID
	}
	if _, ok := r.revoked[id]; ok {
		return id, nil
	}
	reason = strings.Join(strings.Fields(reason), " ")
	if reason == "" {
		reason = "no reason given"
	}
	path := filepath.Join(r.Dir, RevokedName)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return id, fmt.Errorf("cannot revoke %s: %w", IDText(id), err)
	}
	if len(old) > 0 && old[len(old)-1] != '\n' {
		old = append(old, '\n')
	}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return id, fmt.Errorf("cannot revoke %s: %w", IDText(id), err)
	}
	line := fmt.Sprintf("%s %s %s\n", IDText(id), when.UTC().Format(time.DateOnly), reason)
	if err := r.write(RevokedName, append(old, line...)); err != nil {
		return id, fmt.Errorf("cannot revoke %s: %w", IDText(id), err)
	}
	return id, nil
}

// write replaces a file of the folder, durably and at once.
func (r *Ring) write(name string, b []byte) error {
	beside, err := os.CreateTemp(r.Dir, ".new-")
	if err != nil {
		return err
	}
	_, err = beside.Write(b)
	err = errors.Join(err, beside.Chmod(0o644), beside.Sync(), beside.Close())
	if err == nil {
		err = os.Rename(beside.Name(), filepath.Join(r.Dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(beside.Name()))
	}
	dir, err := os.Open(r.Dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
