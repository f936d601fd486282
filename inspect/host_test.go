package inspect

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func TestParseStat(t *testing.T) {
	text := "4021 (a (b) c) S 17 4021 4021 0 -1 4194304 100 0 0 0 0 0 0 0 20 0 1 0 123456 1000 100 18446744073709551615"
	got, err := parseStat([]byte(text))
	if err != nil || got != (procStat{comm: "a (b) c", state: 'S', flags: 4194304, parent: 17, startTicks: 123456}) {
		t.Errorf("parseStat() = %+v, %v", got, err)
	}
	for _, bad := range []string{"", "1 x S 1", "1 (x) S 1", "1 )x( S", text[:40]} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) = %+v", bad, got)
		}
	}
}

func TestLeftover(t *testing.T) {
	// The machine slept for 100 s: boot time is ahead of monotonic time.
	h := &host{
		clocks: sys.Clocks{Boot: 1100e9, Monotonic: 1000e9},
		units: map[string]*change.UnitState{
			"ssh.service":     {ActiveState: "active", MainPID: 10, InvokedMonoUSec: 500e6},
			"stopped.service": {ActiveState: "inactive", InvokedMonoUSec: 500e6},
			"s.scope":         {ActiveState: "active", InvokedMonoUSec: 500e6},
		},
	}
	ticks := func(monotonic float64) procStat {
		return procStat{startTicks: uint64((monotonic + 100) * sys.TicksPerSecond)}
	}
	tests := []struct {
		name string
		hit  change.Hit
		st   procStat
		want bool
	}{
		{"older than the invocation", change.Hit{Unit: "ssh.service", PID: 20}, ticks(400), true},
		{"younger", change.Hit{Unit: "ssh.service", PID: 20}, ticks(501), false},
		{"forked just before systemd noted the time", change.Hit{Unit: "ssh.service", PID: 20}, ticks(499.5), false},
		{"the main process", change.Hit{Unit: "ssh.service", PID: 10}, ticks(400), false},
		{"of a service that was stopped", change.Hit{Unit: "stopped.service", PID: 20}, ticks(600), true},
		{"a scope's processes are older than it", change.Hit{Unit: "s.scope", PID: 20}, ticks(400), false},
		{"of a unit that is not known", change.Hit{Unit: "x.service", PID: 20}, ticks(400), false},
	}
	for _, tt := range tests {
		if got := h.leftover(&tt.hit, h.monotonic(tt.st)); got != tt.want {
			t.Errorf("%s: leftover() = %v", tt.name, got)
		}
	}
}

func TestTidy(t *testing.T) {
	hits := []change.Hit{
		{Unit: "b.service", PID: 5, Kind: "mapped", Path: "/x"},
		{Unit: "a.service", PID: 9, Kind: "mapped", Path: "/x"},
		{Unit: "a.service", PID: 7, Kind: "mapped", Path: "/x"},
		{Unit: "a.service", PID: 8, Kind: "mapped", Path: "/x", Leftover: true},
		{Unit: "session-1.scope", PID: 3, Kind: "mapped", Path: "/x"},
		{Unit: "session-1.scope", PID: 4, Kind: "mapped", Path: "/x"},
		{Unit: "session-1.scope", PID: 4, Kind: "mapped", Path: "/x"},
	}
	want := []change.Hit{
		{Unit: "a.service", PID: 7, Kind: "mapped", Path: "/x"},
		{Unit: "a.service", PID: 8, Kind: "mapped", Path: "/x", Leftover: true},
		{Unit: "b.service", PID: 5, Kind: "mapped", Path: "/x"},
		{Unit: "session-1.scope", PID: 3, Kind: "mapped", Path: "/x"},
		{Unit: "session-1.scope", PID: 4, Kind: "mapped", Path: "/x"},
	}
	if diff := cmp.Diff(want, tidy(hits)); diff != "" {
		t.Errorf("tidy() (-want +got):\n%s", diff)
	}
}

func TestDamaged(t *testing.T) {
	const dev, other = 10, 11
	mounts := []sys.Mount{
		{ID: 1, Parent: 0, Dev: dev, Root: "/@", Point: "/"},
		{ID: 2, Parent: 1, Dev: other, Root: "/", Point: "/etc/a"},
		{ID: 3, Parent: 1, Dev: dev, Root: "/@/etc/b", Point: "/srv/b"},
		{ID: 4, Parent: 1, Dev: dev, Root: "/@/etc/c//deleted", Point: "/srv/c"},
		{ID: 5, Parent: 1, Dev: other, Root: "/etc/d", Point: "/srv/d"}, // the same path of another file system
		{ID: 6, Parent: 1, Dev: other, Root: "/", Point: "/mnt"},
		{ID: 7, Parent: 6, Dev: dev, Root: "/@/x", Point: "/mnt/etc/e"}, // upon another file system's /etc/e
	}
	d := &change.Delta{}
	for _, p := range []string{"/etc/a", "/etc/b", "/etc/c", "/etc/d", "/etc/e", "/etc/f"} {
		d.Entries = append(d.Entries, change.Entry{Path: p, Op: change.Remove, Old: &change.Node{Type: change.Regular}})
	}
	// A path below a foreign mount is looked up on the volume that it covers.
	moved := movedPlaces(d, mounts, []Volume{{Mount: "/"}})
	got := damaged(mounts, moved)
	want := []damagedMount{
		{path: "/etc/a", point: "/etc/a"},
		{path: "/etc/b", point: "/srv/b", bind: true},
		{path: "/etc/c", point: "/srv/c", bind: true},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(damagedMount{})); diff != "" {
		t.Errorf("damaged() (-want +got):\n%s", diff)
	}
}
