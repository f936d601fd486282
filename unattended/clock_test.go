package unattended

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

// A clock that goes back, by a week or by years, neither locks an update that failed out for longer than its
// delay, nor has it tried the very next night.
func TestBackOffClockBack(t *testing.T) {
	for name, back := range map[string]time.Duration{"an hour": time.Hour, "a week": 7 * 24 * time.Hour, "ten years": 3653 * 24 * time.Hour} {
		f := newFake(t, `canary = ["/p"]`)
		f.update("a=1")
		f.commands["canary"] = errors.New("bad")
		if n, _ := f.run(Options{}); n.Result != change.NightRolledBack {
			t.Fatalf("%s: the first night is %q", name, n.Result)
		}
		f.move(-back)
		var got []string
		for range 3 {
			f.update("a=1")
			n, _ := f.run(Options{})
			got = append(got, n.Result)
			for _, b := range n.BackOff {
				if b.Last > n.Ended || b.Until-b.Last > int64(mostBackOff/time.Second) {
					t.Errorf("%s: a failure is of the future: %+v at %d", name, b, n.Ended)
				}
			}
			f.move(24 * time.Hour)
		}
		if got[0] != change.NightBackedOff || got[2] == change.NightBackedOff && got[1] == change.NightBackedOff {
			t.Errorf("%s: the nights after it are %q; want one that leaves it alone, and one that tries it", name, got)
		}
	}
}

// backward is a machine whose clock goes back while a run waits.
type backward struct {
	*fake
	by    time.Duration
	slept int
}

func (b *backward) Sleep(ctx context.Context, d time.Duration) error {
	if b.slept++; b.slept == 3 {
		b.move(-b.by)
	}
	if b.slept > 100_000 {
		return errors.New("it waits for ever")
	}
	return b.fake.Sleep(ctx, d)
}

// A run that waits for its window looks anew where the clock goes back: it is not under way, and in the timer's
// way, for as long as the clock was ahead.
func TestWaitClockBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		by   time.Duration
		want string
	}{
		{"into the window", 22 * time.Hour, change.NightDone},                      // 05:00 of the day before
		{"to before the window", 5*365*24*time.Hour + time.Hour, change.NightDone}, // it waits for the next one
		{"a little", time.Second, change.NightDone},
	} {
		f := newFake(t, `windows = ["04:00-06:00"]`)
		f.update("a=1")
		began := f.Now()
		n, err := Run(t.Context(), &backward{fake: f, by: tt.by}, Options{Wait: true, Dir: f.dir, root: f.etc})
		if err != nil || n == nil || n.Result != tt.want {
			t.Errorf("%s: %+v, %v", tt.name, n, err)
			continue
		}
		if f.Now().Sub(began.Add(-tt.by)) > longestWait {
			t.Errorf("%s: it waited until %v", tt.name, f.Now())
		}
	}
}
