package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/transact"
)

// clean removes what older updates keep for a rollback.
func (e *Engine) clean(ctx context.Context, req Request, ev Events) (any, error) {
	s, err := openSession(e, req, readWrite)
	if err != nil {
		return nil, err
	}
	report := newReport("clean")
	defer s.leave(report)
	if err := s.recoverFirst(ctx, ev, report); err != nil {
		return nil, err
	}
	caches := s.caches()
	if err := s.dropCaches(sandboxCaches...); err != nil {
		return nil, err
	}
	for _, c := range caches {
		if !slices.ContainsFunc(s.caches(), func(left change.Cache) bool { return left.Name == c.Name }) {
			report.FreedCaches = append(report.FreedCaches, c)
			report.FreedBytes += c.Bytes
		}
	}
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	held := map[string]int64{}
	for _, g := range list {
		if held[g.ID], err = s.store.Held(g.ID); err != nil {
			return nil, err
		}
	}
	keep := req.Keep
	if req.KeepNone {
		keep = transact.KeepNone
	}
	freed, err := s.collectTo(keep)
	for _, id := range freed {
		report.Freed = append(report.Freed, id)
		report.FreedBytes += held[id]
	}
	if err != nil {
		report.Result, report.Error = "failed", err.Error()
		return report, err
	}
	report.Result = "nothing-to-do"
	if len(freed)+len(report.FreedCaches) > 0 {
		report.Result = "done"
	}
	return report, nil
}

// collect drops old generations after an update.
func (s *session) collect() {
	s.settleTrust()
	if _, err := s.collectTo(s.req.Keep); err != nil {
		s.warnings = append(s.warnings, fmt.Sprintf("old generations were not collected: %v", err))
	}
}

// collectTo drops generations beyond the newest keep, and the bases that no kept one
// can return to.
func (s *session) collectTo(keep int) (freed []string, err error) {
	if freed, err = s.store.Collect(keep); err != nil {
		return freed, err
	}
	list, err := s.store.List()
	if err != nil {
		return freed, err
	}
	oldest := ""
	for _, g := range list {
		if g.Retained && (oldest == "" || g.ID < oldest) {
			oldest = g.ID
		}
	}
	ids, err := s.baseIDs()
	if err != nil {
		return freed, err
	}
	// A rollback of the oldest kept generation returns to the base before it. Where
	// none is kept, the current one alone counts.
	before := ""
	if oldest == "" {
		if _, before, err = s.currentBase(); err != nil {
			return freed, err
		}
	}
	for _, id := range ids {
		if id < oldest {
			before = id
		}
	}
	return freed, s.dropBases(func(id string) bool { return id < before })
}

// recordSize is what one path takes in the recorded base and in the index, in bytes,
// with ample room for its name and attributes.
const recordSize = 512

// recordsSize is about what an update of d writes beside its transaction: the record
// of what it ships and the index, each written beside the one that it replaces.
func (s *session) recordsSize(d *change.Delta) int64 {
	size := int64(len(d.Entries)+d.Identical) * recordSize
	dir, err := sys.OpenAt(s.vols[0].Dir, transact.Dir, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return size // there is none yet
	}
	defer dir.Close()
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return size
	}
	for _, name := range names {
		if n, err := sys.Lstat(dir, name); err == nil && n.Type == change.Regular {
			size = max(size, n.Size)
		}
	}
	return size
}
