package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/diff"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/writable"
)

// verify compares the root with the record of the last committed update. Each
// finding is told when it is met.
func (e *Engine) verify(ctx context.Context, req Request, ev Events) (any, error) {
	if req.Repair {
		return e.repair(ctx, req, ev)
	}
	s, err := openSession(e, req, cacheOnly)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.noteUnfinished(); err != nil {
		return nil, err
	}
	_, report, err := s.look(ctx, ev, nil)
	if err != nil {
		return nil, err
	}
	report.Warnings = append(report.Warnings, s.warnings...)
	if report.Checked == 0 {
		// Packages and commands say what they change, and not what the root should be.
		report.Warnings = append(report.Warnings, "no path is recorded: only trees, archives and patches say what a root should be; for packages run: dpkg --verify")
	}
	if report.Damaged > 0 {
		return report, change.WithHint(fmt.Errorf("damage: %d of %d paths are not what the update laid down", report.Damaged, report.Checked),
			"liveupd verify --repair puts them back")
	}
	return report, nil
}

// look verifies the root and hands on each finding; with also, that gets them, too.
func (s *session) look(ctx context.Context, ev Events, also func(change.Damage)) (*catalog.Base, *change.VerifyReport, error) {
	base, id, err := s.currentBase()
	if err != nil {
		return nil, nil, err
	}
	if base == nil {
		return nil, nil, change.WithHint(errors.New("cannot verify: no committed update is recorded for this root"), "see: liveupd history")
	}
	rules, err := writable.New(s.rulesOptions(base.Whole(), nil, nil, base))
	if err != nil {
		return nil, nil, err
	}
	o := s.diffOptions(ev)
	o.Full = s.req.Full
	report, err := diff.Verify(ctx, o, base, rules.Class, func(d change.Damage) {
		ev.emit(d)
		if also != nil {
			also(d)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	s.saveIndexes(nil, "")
	report.MessageType, report.Schema, report.Verb, report.Generation = "report", Schema, "verify", id
	return base, report, nil
}
