package restart

import (
	"context"
	"maps"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// along is what systemd stops and starts in the course of the jobs, as the plan
// has said, and how it was before.
type along struct {
	names  []string
	before []*change.UnitState
}

// lookAlong reads the states of those units before the first job.
func (r *run) lookAlong(ctx context.Context) (*along, error) {
	a := &along{}
	for _, key := range slices.Sorted(maps.Keys(r.o.Along)) {
		if manager, _ := change.SplitUnitKey(key); manager == "" {
			a.names = append(a.names, key)
		}
	}
	if len(a.names) == 0 {
		return a, nil
	}
	var err error
	a.before, err = r.bus.States(ctx, a.names)
	return a, err
}

// noteAlong adds a result for each of them that was stopped or started, so that
// Inverse starts or stops it. It is called also where a step failed.
func (r *run) noteAlong(ctx context.Context, a *along) {
	if len(a.names) == 0 || a.before == nil {
		return
	}
	after, err := r.bus.States(ctx, a.names)
	if err != nil {
		return // without the manager nothing can be said, and no step succeeds
	}
	for i, name := range a.names {
		was, is := a.before[i].Active(), after[i].Active()
		var s change.Step
		switch {
		case was && !is && r.o.Along[name] == change.ActionStop:
			s = change.Step{Do: "stop", Target: name, Undo: "start", Manager: r.manager}
		case !was && is && r.o.Along[name] == change.ActionStart:
			s = change.Step{Do: "start", Target: name, Undo: "stop", Manager: r.manager}
		default:
			continue
		}
		res := change.StepResult{Step: s, Result: done, Detail: "by systemd, along with another unit of the plan"}
		r.record(&res)
		r.extra = append(r.extra, res)
	}
}
