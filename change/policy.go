package change

import (
	"fmt"
	"strings"
)

// Policy is what the operator allows.
type Policy struct {
	// Max is the highest rung that may be done now; what is above is deferred.
	Max Action
	// AllowRemovals permits more than 1,000 removals.
	AllowRemovals bool
	// Snapshot asks for a snapshot of the root before the commit.
	Snapshot bool
	// Bootme: the update asks for a firmware reboot after it is applied.
	Bootme bool
	// Rules are the administrator's, in order: the last one that applies counts.
	Rules []Rule
	// Now is the machine's local time, for the windows of rules; nil where no
	// machine runs the tree, and then each window is open.
	Now *WeekTime
}

// Rule says how certain units are to be treated, or whatever certain paths or
// packages ask for. Each list that is given has to match.
type Rule struct {
	Units    []string // names or globs
	Except   []string // names or globs of units that it is not for, in spite of Units
	Paths    []string // paths, globs, or DIR/** for all below a folder
	Packages []string // names or globs; of the package that owns the path
	// Action is restart, reload, defer, never, ignore, or "" where only windows count.
	Action string
	// Windows are when the units may be interrupted; outside of them it is deferred.
	Windows []Window
	Reason  string
	Source  string // FILE:LINE
}

// The actions of a rule.
const (
	RuleRestart = "restart" // where a reload would do, and where the unit or the built-in table asks to be spared
	RuleReload  = "reload"  // instead of a restart; deferred where the unit has none
	RuleDefer   = "defer"   // told and left to a person
	RuleNever   = "never"   // the same, and no other unit's restart takes it along
	RuleIgnore  = "ignore"  // no reason to do anything
	// RuleLater is a run's own: the unit comes in a later step of the same run. Stops and starts are not
	// put off by it, and another unit's restart may take the unit along.
	RuleLater = "later"
)

// WeekTime is a moment of a week.
type WeekTime struct {
	Day    int // 0 is Sunday
	Minute int // of the day
}

// Window is a span of local time on certain days of the week. One whose end is
// not after its begin reaches into the next day.
type Window struct {
	Days     uint8 // a bit for each day, that of Sunday is 1
	From, To int   // minutes of the day; To may be 1440
}

// Holds tells whether a moment lies in the window. Its end does not.
func (w Window) Holds(t WeekTime) bool {
	on := func(day int) bool { return w.Days&(1<<((day+7)%7)) != 0 }
	if w.From < w.To {
		return on(t.Day) && t.Minute >= w.From && t.Minute < w.To
	}
	return on(t.Day) && t.Minute >= w.From || on(t.Day-1) && t.Minute < w.To
}

var dayNames = [...]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// DayNumber is the number of a day by the first three letters of its English
// name or by all of it, without regard to case; -1 for what is none.
func DayNumber(s string) int {
	for i, full := range [...]string{"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"} {
		if s = strings.ToLower(s); s == full || s == full[:3] {
			return i
		}
	}
	return -1
}

func (w Window) String() string {
	span := fmt.Sprintf("%02d:%02d-%02d:%02d", w.From/60, w.From%60, w.To/60, w.To%60)
	if w.Days == 127 {
		return span
	}
	var days []string
	for i := 1; i <= 7; i++ { // the week begins on Monday
		if w.Days&(1<<(i%7)) != 0 {
			days = append(days, dayNames[i%7])
		}
	}
	return strings.Join(days, ",") + " " + span
}
