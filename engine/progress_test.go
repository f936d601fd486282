package engine

import (
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

func TestMeter(t *testing.T) {
	clock := time.Unix(1000, 0)
	m := meter{now: func() time.Time { return clock }}
	tell := func(after time.Duration, phase string, done, total int64) (change.Progress, bool) {
		clock = clock.Add(after)
		p := change.Progress{Phase: phase, Done: done, Total: total, Unit: "bytes"}
		told := m.measure(&p)
		return p, told
	}
	for _, step := range []struct {
		after       time.Duration
		phase       string
		done, total int64
		told        bool
		rate, left  int64
	}{
		{0, "staging", 0, 10_000, true, 0, 0},
		{50 * time.Millisecond, "staging", 10, 10_000, false, 0, 0},
		{450 * time.Millisecond, "staging", 500, 10_000, true, 0, 0},
		{500 * time.Millisecond, "staging", 1000, 10_000, true, 1000, 10},
		{time.Second, "staging", 2000, 10_000, true, 1000, 9},
		// It becomes quicker: what was long ago no longer counts.
		{5 * time.Second, "staging", 7000, 10_000, true, 1000, 4},
		{time.Second, "staging", 9000, 10_000, true, 1166, 1},
		{time.Millisecond, "staging", 10_000, 10_000, true, 1333, 0},
		{time.Millisecond, "staging", 10_000, 10_000, false, 0, 0},
		// A new phase knows nothing of the last one.
		{time.Millisecond, "reading", 10, 0, true, 0, 0},
		{2 * time.Second, "reading", 30, 0, true, 10, 0},
		// It stands still.
		{10 * time.Second, "reading", 30, 0, true, 0, 0},
	} {
		p, told := tell(step.after, step.phase, step.done, step.total)
		if told != step.told || told && (p.Rate < step.rate*9/10 || p.Rate > step.rate*11/10+1 || p.LeftSec != step.left) {
			t.Errorf("after %v %s at %d: told %v, rate %d, %d s left; want %+v", step.after, step.phase, step.done, told, p.Rate, p.LeftSec, step)
		}
	}
}
