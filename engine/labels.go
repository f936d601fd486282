package engine

import (
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
