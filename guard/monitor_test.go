package guard

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/liveupd/liveupd/change"
)

// What goes and comes, over time: Settle waits as long as it has to and no longer.
func TestSettle(t *testing.T) {
	const s = time.Second
	between := func(from, to time.Duration) func(time.Duration) bool {
		return func(at time.Duration) bool { return at >= from && at < to }
	}
	for _, tt := range []struct {
		name        string
		away        func(at time.Duration) bool
		lost        int
		least, most time.Duration
		back        int // how often it was away
	}{
		{"it stays", func(time.Duration) bool { return false }, 0, 5 * s, 6 * s, 0},
		{"a flap of two seconds", between(s, 3*s), 0, 5 * s, 6 * s, 1},
		{"a flap at the end", between(4*s, 12*s), 0, 12 * s, 14 * s, 1},
		{"it takes just the time that it has", between(s, 30*s), 0, 30 * s, 32 * s, 1},
		{"it is gone", func(at time.Duration) bool { return at >= s }, 1, 31 * s, 32 * s, 1},
		{"it was gone before", func(time.Duration) bool { return true }, 1, 30 * s, 31 * s, 1},
		{"it goes and comes", func(at time.Duration) bool { return at/(700*time.Millisecond)%2 == 0 }, -1, 60 * s, 68 * s, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, asked := time.Now(), 0
				m := newMonitor(server(), nil, func() (*change.Network, error) {
					n := server()
					if tt.away(time.Since(began)) {
						onLink("eth1", func(l *change.NetLink) { l.Master = "" })(n)
					}
					return n, nil
				}, func(*change.Network) { asked++ })
				lost, err := m.Settle(t.Context(), 5*s, 30*s)
				if err != nil || tt.lost >= 0 && len(lost) != tt.lost {
					t.Errorf("Settle() = %v, %v; want %d", lost, err, tt.lost)
				}
				if took := time.Since(began); took < tt.least || took > tt.most {
					t.Errorf("it took %s; want %s to %s", took, tt.least, tt.most)
				}
				if tt.lost == 0 && asked == 0 {
					t.Error("the routers were not asked")
				}
				for _, f := range m.Findings() {
					if f.What != "eth1 as a port of bond0" {
						if f.Result != change.NetKept {
							t.Errorf("%+v", f)
						}
						continue
					}
					if tt.back == 0 && f.Result != change.NetKept || tt.back == 1 && tt.lost == 0 && (f.Result != change.NetBack || f.USec == 0) {
						t.Errorf("%+v", f)
					}
				}
			})
		})
	}
}

func TestSettleBlind(t *testing.T) {
	m := newMonitor(server(), nil, func() (*change.Network, error) { return nil, errors.New("no answer") }, func(*change.Network) {})
	if _, err := m.Settle(t.Context(), time.Second, time.Second); err == nil {
		t.Error("nothing can be seen, and nothing is said")
	}
}

// A router that is being asked for ever ends the waiting in the end.
func TestSettleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		m := newMonitor(server(), nil, func() (*change.Network, error) {
			n := server()
			n.Neighbours[0].State = unknown
			return n, nil
		}, func(*change.Network) {})
		if lost, err := m.Settle(t.Context(), time.Second, 3*time.Second); err != nil || len(lost) > 0 {
			t.Errorf("Settle() = %v, %v", lost, err)
		}
		if took := time.Since(began); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
