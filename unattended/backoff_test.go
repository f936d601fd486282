package unattended

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

func packages(list ...string) change.BackOff {
	b := change.BackOff{Source: "apt", Key: "packages"}
	for i := 0; i+1 < len(list); i += 2 {
		b.Packages = append(b.Packages, change.Package{Name: list[i], Arch: "amd64", From: "0", To: list[i+1]})
	}
	return b
}

func TestSame(t *testing.T) {
	whole := func(key string) change.BackOff { return change.BackOff{Source: "tar:/x", Key: key, Version: key} }
	other := packages("a", "1")
	other.Packages[0].Arch = "i386"
	for _, tt := range []struct {
		name        string
		failed, now change.BackOff
		same, over  bool
	}{
		{"the same packages", packages("a", "1", "b", "1"), packages("b", "1", "a", "1"), true, false},
		{"more come with them", packages("a", "1"), packages("a", "1", "c", "1"), true, false},
		{"one of them in another version", packages("a", "1", "b", "1"), packages("a", "2", "b", "1"), false, true},
		{"one of them is gone", packages("a", "1", "b", "1"), packages("a", "1"), false, false},
		{"another architecture", packages("a", "1"), other, false, false},
		{"others only", packages("a", "1"), packages("c", "1"), false, false},
		{"nothing", packages("a", "1"), change.BackOff{Source: "apt"}, false, false},
		{"the same version", whole("7"), whole("7"), true, false},
		{"another version", whole("7"), whole("8"), false, true},
		{"another source", change.BackOff{Source: "tar:/y", Key: "7"}, whole("7"), false, false},
		{"no key", change.BackOff{Source: "tar:/x"}, change.BackOff{Source: "tar:/x"}, false, false},
	} {
		if got := same(tt.failed, tt.now); got != tt.same {
			t.Errorf("%s: same = %v; want %v", tt.name, got, tt.same)
		}
		if got := superseded(tt.failed, tt.now); got != tt.over && tt.name != "no key" {
			t.Errorf("%s: superseded = %v; want %v", tt.name, got, tt.over)
		}
	}
}

// The same versions in a hundred nights in a row: each failure doubles the delay, up to a month.
func TestBackOffGrows(t *testing.T) {
	now := time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	update := packages("a", "1")
	var list []change.BackOff
	var tried []int
	for night := range 100 {
		if backedOff(list, update, now) == nil {
			tried = append(tried, night)
			list = fail(list, update, now, firstBackOff, errors.New("no").Error())
		}
		now = now.Add(24*time.Hour + time.Duration(night%7-3)*10*time.Minute)
	}
	want := []int{0, 2, 5, 12, 25, 49, 80}
	if len(tried) != len(want) {
		t.Fatalf("tried in the nights %v; want %v", tried, want)
	}
	for i := range want {
		if tried[i] != want[i] {
			t.Fatalf("tried in the nights %v; want %v", tried, want)
		}
	}
	if list[0].Failures != len(want) {
		t.Errorf("%d failures are counted; want %d", list[0].Failures, len(want))
	}
	if list = succeed(list, packages("a", "2")); len(list) != 0 {
		t.Errorf("after another version went well: %+v", list)
	}
}

// What failed twice, in two companies, is to blame; the rest is not held up by it.
func TestBlame(t *testing.T) {
	now := time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	list := fail(nil, packages("bad", "1", "good", "1", "fine", "1"), now, firstBackOff, "no")
	next := packages("bad", "1", "good", "2", "new", "1")
	if backedOff(list, next, now) != nil {
		t.Error("an update with another version waits")
	}
	list = fail(list, next, now.Add(24*time.Hour), firstBackOff, "no")
	if len(list) != 1 || len(list[0].Packages) != 1 || list[0].Packages[0].Name != "bad" || list[0].Failures != 2 {
		t.Fatalf("to blame are %+v; want bad alone", list)
	}
	if b := backedOff(list, packages("bad", "1", "good", "3"), now.Add(48*time.Hour)); b == nil || len(names(b)) != 1 {
		t.Errorf("back-off of the next update is %+v; want that of bad", b)
	}
	if backedOff(list, packages("good", "3"), now.Add(48*time.Hour)) != nil {
		t.Error("what is well has to wait")
	}
}

// A clock that goes far back does not lock an update out, and the list does not grow.
func TestBackOffBounded(t *testing.T) {
	now := time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	list := fail(nil, packages("a", "1"), now, firstBackOff, "no")
	if backedOff(list, packages("a", "1"), now.AddDate(-5, 0, 0)) != nil {
		t.Error("an update is locked out for years")
	}
	for i := range 200 {
		list = fail(list, packages("p", time.Duration(i).String()), now, firstBackOff, "no")
	}
	if len(list) > keptFailures {
		t.Errorf("%d failures are kept", len(list))
	}
	if list = tidyBackOff(list, now.AddDate(1, 0, 0)); len(list) != 0 {
		t.Errorf("%d failures are kept for a year", len(list))
	}
}

// Who asks for more than the longest delay gets it; a clock that went back locks nothing out.
func TestBackOffLong(t *testing.T) {
	now := time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	update := packages("a", "1")
	list := fail(nil, update, now, 90*day, "no")
	for _, tt := range []struct {
		name  string
		now   time.Time
		waits bool
	}{
		{"the next night", now.Add(day), true},
		{"two months later", now.Add(61 * day), true},
		{"in its time", now.Add(91 * day), false},
		{"one that went back for years", now.Add(-999 * day), false},
	} {
		if got := backedOff(list, update, tt.now) != nil; got != tt.waits {
			t.Errorf("%s: it waits: %v; want %v", tt.name, got, tt.waits)
		}
	}
	list = fail(list, update, now.Add(91*day), 90*day, "no")
	if left := time.Unix(list[0].Until, 0).Sub(now.Add(91 * day)); left != 90*day {
		t.Errorf("after the second failure it waits for %s", left)
	}
	// What is told waits just where a run would leave it alone.
	state := freshState()
	state.BackOff = fail(nil, update, now.Add(999*day), firstBackOff, "no")
	if got := Motd(state, nil, now); got != "" {
		t.Errorf("a failure of a day to come is told: %q", got)
	}
	// Nor does it tell an age that is wrong by the time that it is read.
	fresh := []change.Generation{{ID: "x", State: "verified", Waiting: []change.Waiting{{Unit: "b.service", Since: now.Unix()}}}}
	if got := Motd(freshState(), fresh, now); !strings.Contains(got, "since 2026-01-01 03:00:") {
		t.Errorf("what was put off just now is told so: %q", got)
	}
}
