package tree

import (
	"fmt"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/trust"
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
func (t *Tree) verify(list, sig *found, keysDir string) error {
	ring, err := trust.Open(keysDir)
	if err != nil {
		return err
	}
	signer, err := ring.Verify(list.path, list.content, sig.content, sig.path)
	if err != nil {
		return err
	}
	t.signer, t.comment = signer.String(), signer.Comment
	return nil
}
