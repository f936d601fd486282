package planner

import (
	"slices"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// A service is stale for a file that changed after it began, or for one that a
// reload reads after its last reload; another service that began later is not.
func TestNewer(t *testing.T) {
	const script, conf = "/opt/run.sh", "/etc/nginx/nginx.conf"
	s := machine()
	s.unit("early.service", "", change.Use{Path: script, Kind: "script"}).InvokedMonoUSec = 10
	s.unit("late.service", "", change.Use{Path: script, Kind: "script"}).InvokedMonoUSec = 30
	s.unit("unknown.service", "", change.Use{Path: script, Kind: "script"})
	nginx := s.unit("nginx.service", nginxUnit)
	nginx.InvokedMonoUSec, nginx.StateChangeMonoUSec = 10, 40
	found := func(changed map[string]int64) string {
		r := Check(Found{Policy: s.in.Policy, Units: s.in.Facts.Units, Newer: &Newer{Tree: s.in.Old, Changed: changed, Epoch: 1000}})
		var out string
		for _, u := range r.Units {
			out = join(", ", out, u.Action.String()+" "+u.Unit)
		}
		return out
	}
	for _, c := range []struct {
		name    string
		changed map[string]int64
		want    string
	}{
		{"nothing", nil, ""},
		{"before both", map[string]int64{script: 1000 + 9_000}, ""},
		{"between", map[string]int64{script: 1000 + 20_000}, "restart early.service"},
		{"after both", map[string]int64{script: 1000 + 31_000}, "restart early.service, restart late.service"},
		{"configuration before the last reload", map[string]int64{conf: 1000 + 39_000}, ""},
		{"configuration after it", map[string]int64{conf: 1000 + 41_000}, "reload nginx.service"},
		{"what nobody reads", map[string]int64{"/etc/other": 1 << 40}, ""},
	} {
		if got := found(c.changed); got != c.want {
			t.Errorf("%s: %q; want %q", c.name, got, c.want)
		}
	}
	reads := Reads(s.in.Old, s.in.Facts.Units)
	for _, want := range []string{script, "/etc/nginx/**"} {
		if !slices.Contains(reads, want) {
			t.Errorf("Reads() = %q; want %s in it", reads, want)
		}
	}
}

// A unit whose own program was removed is not to be restarted: it would not come back.
// A library that went is another matter, and a program at another path, too.
func TestProgramGone(t *testing.T) {
	for _, c := range []struct {
		name string
		hit  change.Hit
		want string
	}{
		{"the program", change.Hit{Kind: "exec", Path: "/usr/bin/a", Detail: "removed"}, "defer a.service"},
		{"the program, replaced", change.Hit{Kind: "exec", Path: "/usr/bin/a", Detail: "replaced"}, "restart a.service"},
		{"another program", change.Hit{Kind: "exec", Path: "/usr/bin/helper", Detail: "removed"}, "restart a.service"},
		{"a library", change.Hit{Kind: "mapped", Path: libssl, Detail: "removed"}, "restart a.service"},
	} {
		s := machine()
		s.unit("a.service", "[Service]\nExecStart=/bin/a -x\n")
		c.hit.Unit, c.hit.PID = "a.service", 5
		r := Check(Found{
			Policy: s.in.Policy, Units: s.in.Facts.Units, Hits: []change.Hit{c.hit},
			Newer: &Newer{Tree: s.in.Old, Warnings: []string{"a database"}},
		})
		if len(r.Units) != 1 || r.Units[0].Action.String()+" "+r.Units[0].Unit != c.want {
			t.Errorf("%s: %+v; want %s", c.name, r.Units, c.want)
		}
		if !slices.Equal(r.Warnings, []string{"a database"}) {
			t.Errorf("%s: warnings %q", c.name, r.Warnings)
		}
	}
}
