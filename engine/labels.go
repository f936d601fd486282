package engine

import (
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/labels"
	"github.com/liveupd/liveupd/transact"
)

// useLabels lets the store label by the rules of the root as it is: a type that
// only the update's own policy has is unknown until that is loaded.
func (s *session) useLabels() error {
	rules, err := labels.Load(s.vols[0].Dir)
	if err != nil || rules == nil {
		return err
	}
	s.store.SetOptions(transact.Options{Label: rules.Label})
	return nil
}

// strangeLabels tells whether the labels of a tree are those of the place where it
// lies, as in /root or /srv of a host with SELinux, and not of a root: the top of
// one that was labelled as a root is a root_t, in each policy. A tree whose top has
// no label was made on a host without SELinux: what labels there are were set. Those of
// an archive are what its headers have, whatever the kernel gave to the folder into
// which it was unpacked.
func strangeLabels(src *update) (bool, error) {
	if src.unpacked != nil {
		return false, nil
	}
	xattrs, err := sys.Xattrs(src.Root(), ".")
	if err != nil {
		return false, fmt.Errorf("cannot read the label of the source: %w", err)
	}
	label, ok := xattrs["security.selinux"]
	return ok && !strings.Contains(strings.TrimRight(string(label), "\x00")+":", ":root_t:"), nil
}
