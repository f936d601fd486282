package engine

import (
	"time"

	"github.com/liveupd/liveupd/transact"
)

// canSnapshot refuses a wish for a snapshot that cannot be granted, with the plan.
func (s *session) canSnapshot() error {
	if !s.req.Snapshot {
		return nil
	}
	return transact.CanSnapshot(s.vols[0].Dir)
}

// snapshot makes the snapshot that was asked for.
func (r *run) snapshot() error {
	if !r.s.req.Snapshot {
		return nil
	}
	began := time.Now()
	err := r.tx.Snapshot()
	r.step("snapshot", "/", "remove", began, err)
	return err
}
