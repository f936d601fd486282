package tree

import (
	"fmt"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/trust"
)

// loadSigned reads the manifest of digests where there is one, and parses it
// only after a key has confirmed its signature.
func (t *Tree) loadSigned(keys *trust.Keyring) error {
	list, err := t.locate(ManifestName, maxManifest, nil)
	if err != nil {
		return err
	}
	sig, err := t.locate(ManifestName+sigSuffix, trust.MaxSignature, nil)
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
		return fmt.Errorf("cannot verify %s: there is a signature and no %s: %w", sig.path, ManifestName, change.ErrVerification)
	case sig.dir != list.dir || sig.name != list.name+sigSuffix:
		return fmt.Errorf("cannot verify %s: its signature stands elsewhere, at %s: %w", list.path, sig.path, change.ErrVerification)
	}
	signer, err := keys.Confirm(list.path, trust.Text(list.content), sig.path, sig.content)
	if err != nil {
		return err
	}
	t.signer = signer
	if t.list, err = parseManifest(list.content); err != nil {
		return fmt.Errorf("cannot read %s: %w: %w", list.path, err, change.ErrVerification)
	}
	return nil
}
