package unattended

import (
	"slices"
	"time"

	"github.com/liveupd/liveupd/change"
)

// Times are walked minute by minute of real time and read as the local clock shows them. So a
// window in an hour that the clock skips in spring does not open on that day, one in the hour that
// it shows twice in autumn opens twice, and each zone's rules are those of the zone's file.

// WeekTime is the moment of the week that the clock shows at t, in t's zone.
func WeekTime(t time.Time) change.WeekTime {
	return change.WeekTime{Day: int(t.Weekday()), Minute: t.Hour()*60 + t.Minute()}
}

// Open tells whether a run is allowed at t. Without windows it always is.
func Open(windows []change.Window, t time.Time) bool {
	if len(windows) == 0 {
		return true
	}
	w := WeekTime(t)
	return slices.ContainsFunc(windows, func(win change.Window) bool { return win.Holds(w) })
}

// horizon is how far changes of windows are looked for: a week, and the hour that a
// zone's change of clocks may take from a window's only day, twice.
const horizon = 22 * 24 * time.Hour

// Changes is the first whole minute after t at which Open says otherwise; the zero time
// where it never does, as without windows, or with those that hold all week.
func Changes(windows []change.Window, t time.Time) time.Time {
	if len(windows) == 0 {
		return time.Time{}
	}
	now := Open(windows, t)
	// By the minutes of the local clock, which in some zones are not those of UTC.
	at := t.Truncate(time.Second).Add(-time.Duration(t.Second()) * time.Second)
	for end := at.Add(horizon); at.Before(end); {
		at = at.Add(time.Minute)
		if Open(windows, at) != now {
			return at
		}
	}
	return time.Time{}
}

// Opens is when the windows are open next: t itself where they are now; the zero time for never.
func Opens(windows []change.Window, t time.Time) time.Time {
	if Open(windows, t) {
		return t
	}
	return Changes(windows, t)
}

// meet tells whether two sets of windows have a minute in common in any week. None is always.
func meet(a, b []change.Window) bool {
	if len(a) == 0 || len(b) == 0 {
		return true
	}
	for day := range 7 {
		for minute := range 24 * 60 {
			w := change.WeekTime{Day: day, Minute: minute}
			holds := func(win change.Window) bool { return win.Holds(w) }
			if slices.ContainsFunc(a, holds) && slices.ContainsFunc(b, holds) {
				return true
			}
		}
	}
	return false
}
