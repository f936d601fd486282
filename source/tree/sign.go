package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
)

// loadSigned reads the manifest of digests where there is one, and parses it
// only after a key has confirmed its signature.
func (t *Tree) loadSigned(keysDir string) error {
	list, err := t.locate(manifestName, maxManifest, nil)
	if err != nil {
		return err
	}
	sig, err := t.locate(manifestName+sigSuffix, maxSig, nil)
	if err != nil {
		return err
	}
	switch {
	case sig == nil && list == nil:
		return nil
	case sig == nil:
		t.warnings = append(t.warnings, list.path+" has no signature and is not used")
		return nil
	case list == nil:
		return fmt.Errorf("cannot verify %s: there is a signature and no %s: %w", sig.path, manifestName, change.ErrVerification)
	case sig.dir != list.dir || sig.name != list.name+sigSuffix:
		return fmt.Errorf("cannot verify %s: its signature stands elsewhere, at %s: %w", list.path, sig.path, change.ErrVerification)
	}
	if err := t.verify(list, sig, keysDir); err != nil {
		return err
	}
	if t.list, err = parseManifest(list.content); err != nil {
		return fmt.Errorf("cannot read %s: %w: %w", list.path, err, change.ErrVerification)
	}
	return nil
}

// verify confirms the signature by any one key of keysDir.
//
// minisign has two kinds of signature, over the message (Ed) and over its
// BLAKE2b hash (ED, prehashed, what minisign writes since 0.8). Both are
// accepted: neither can be turned into the other, because what a prehashed
// signature covers is 64 bytes, which are no manifest.
func (t *Tree) verify(list, sig *found, keysDir string) error {
	var s minisign.Signature
	if err := s.UnmarshalText(sig.content); err != nil {
		return fmt.Errorf("cannot read the signature %s: %w: %w", sig.path, err, change.ErrVerification)
	}
	keys, bad, err := readKeys(keysDir)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.key.ID() != s.KeyID {
			continue
		}
		if !minisign.Verify(k.key, list.content, sig.content) {
			// Ids are chosen at random and prove nothing: another key may bear the same.
			bad = append(bad, fmt.Sprintf("%s does not confirm it", k.file))
			continue
		}
		t.signer = fmt.Sprintf("%s (key %016X)", k.file, k.key.ID())
		t.comment = s.TrustedComment
		return nil
	}
	why := fmt.Sprintf("no key in %s has signed it", keysDir)
	if len(bad) > 0 {
		why += " (" + strings.Join(bad, "; ") + ")"
	}
	return change.WithHint(
		fmt.Errorf("cannot verify %s: %s: %w", list.path, why, change.ErrVerification),
		fmt.Sprintf("the signature says that it is by key %016X; a public key is trusted once it lies in %s as NAME.pub", s.KeyID, keysDir))
}

type publicKey struct {
	file string // base name, for messages
	key  minisign.PublicKey
}

// readKeys reads all *.pub of dir, in the order of their names. A file that
// holds no key is told of in bad: it must not keep the good keys from being used.
func readKeys(dir string) (keys []publicKey, bad []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the keys: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".pub") {
			continue
		}
		key, err := minisign.PublicKeyFromFile(filepath.Join(dir, e.Name()))
		if err != nil {
			bad = append(bad, fmt.Sprintf("cannot use %s: %v", e.Name(), err))
			continue
		}
		keys = append(keys, publicKey{e.Name(), key})
	}
	return keys, bad, nil
}
