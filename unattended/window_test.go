package unattended

import (
	"testing"
	"time"

	_ "time/tzdata" // the zones' rules, also where the machine has none

	"github.com/liveupd/liveupd/change"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

const (
	everyDay = 127
	sunday   = 1
	monday   = 1 << 1
	saturday = 1 << 6
)

func win(days uint8, from, to string) change.Window {
	minute := func(s string) int {
		at, err := time.Parse("15:04", s)
		if err != nil {
			return 24 * 60
		}
		return at.Hour()*60 + at.Minute()
	}
	return change.Window{Days: days, From: minute(from), To: minute(to)}
}

func TestOpen(t *testing.T) {
	berlin, york, kolkata := zone(t, "Europe/Berlin"), zone(t, "America/New_York"), zone(t, "Asia/Kolkata")
	odd := time.FixedZone("odd", 5*3600+37)
	night := []change.Window{win(everyDay, "22:00", "05:00")}
	early := []change.Window{win(everyDay, "02:00", "03:00")}
	for _, tt := range []struct {
		name    string
		windows []change.Window
		at      time.Time
		open    bool
		changes string // in the zone, "" for never
	}{
		{"none", nil, time.Date(2026, 11, 21, 3, 0, 0, 0, berlin), true, ""},
		{"all week", []change.Window{win(everyDay, "00:00", "24:00")}, time.Date(2026, 11, 21, 3, 0, 0, 0, berlin), true, ""},
		{"before", early, time.Date(2026, 11, 21, 1, 59, 59, 0, berlin), false, "2026-11-21 02:00:00"},
		{"its first second", early, time.Date(2026, 11, 21, 2, 0, 0, 0, berlin), true, "2026-11-21 03:00:00"},
		{"its last second", early, time.Date(2026, 11, 21, 2, 59, 59, 999, berlin), true, "2026-11-21 03:00:00"},
		{"its end", early, time.Date(2026, 11, 21, 3, 0, 0, 0, berlin), false, "2026-11-22 02:00:00"},
		{"before midnight", night, time.Date(2026, 11, 21, 23, 59, 0, 0, york), true, "2026-11-22 05:00:00"},
		{"after midnight", night, time.Date(2026, 11, 22, 0, 0, 0, 0, york), true, "2026-11-22 05:00:00"},
		{"half an hour from UTC", night, time.Date(2026, 11, 22, 4, 59, 0, 0, kolkata), true, "2026-11-22 05:00:00"},
		{"seconds from UTC", night, time.Date(2026, 11, 22, 4, 59, 59, 0, odd), true, "2026-11-22 05:00:00"},
		{"over midnight of its day", []change.Window{win(saturday, "23:00", "01:00")}, time.Date(2026, 11, 22, 0, 30, 0, 0, york), true, "2026-11-22 01:00:00"},
		{"over midnight of another day", []change.Window{win(saturday, "23:00", "01:00")}, time.Date(2026, 11, 21, 0, 30, 0, 0, york), false, "2026-11-21 23:00:00"},
		{"once a week", []change.Window{win(monday, "04:00", "05:00")}, time.Date(2026, 11, 16, 5, 0, 0, 0, york), false, "2026-11-23 04:00:00"},
		{"one goes on in the other", []change.Window{win(sunday, "22:00", "24:00"), win(monday, "00:00", "02:00")}, time.Date(2026, 11, 22, 23, 0, 0, 0, york), true, "2026-11-23 02:00:00"},

		// On 29 March 2026 the clocks of Berlin go from 02:00 to 03:00, on 25 October from 03:00 back to 02:00.
		{"spring, the hour that is not", early, time.Date(2026, 3, 29, 1, 59, 0, 0, berlin), false, "2026-03-30 02:00:00"},
		{"spring, half of it is", []change.Window{win(everyDay, "01:30", "03:30")}, time.Date(2026, 3, 29, 1, 45, 0, 0, berlin), true, "2026-03-29 03:30:00"},
		{"spring, over midnight", night, time.Date(2026, 3, 28, 23, 0, 0, 0, berlin), true, "2026-03-29 05:00:00"},
		{"autumn, the hour that is twice", early, time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC).In(berlin), true, "2026-10-25 03:00:00"},
		{"autumn, its second time", early, time.Date(2026, 10, 25, 1, 30, 0, 0, time.UTC).In(berlin), true, "2026-10-25 03:00:00"},
		// A weekly window in the hour that is skipped: the week after.
		{"spring, once a week", []change.Window{win(sunday, "02:10", "02:50")}, time.Date(2026, 3, 28, 12, 0, 0, 0, berlin), false, "2026-04-05 02:10:00"},
		// New York goes back on 1 November 2026 at 02:00 to 01:00.
		{"autumn in New York", []change.Window{win(everyDay, "01:30", "01:45")}, time.Date(2026, 11, 1, 5, 50, 0, 0, time.UTC).In(york), false, "2026-11-01 01:30:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Open(tt.windows, tt.at); got != tt.open {
				t.Errorf("Open(%v) = %v; want %v", tt.at, got, tt.open)
			}
			got := ""
			if next := Changes(tt.windows, tt.at); !next.IsZero() {
				got = next.Format("2006-01-02 15:04:05")
				if !next.After(tt.at) {
					t.Errorf("Changes(%v) = %v, which is not after it", tt.at, next)
				}
			}
			if got != tt.changes {
				t.Errorf("Changes(%v) = %q; want %q", tt.at, got, tt.changes)
			}
		})
	}
}

// Changes is the first minute at which Open differs, in a year of two zones with all their changes of clocks.
func TestChangesIsFirst(t *testing.T) {
	windows := []change.Window{win(everyDay, "01:45", "02:15"), win(sunday|saturday, "22:00", "03:10")}
	for _, name := range []string{"Europe/Berlin", "Australia/Lord_Howe"} {
		loc := zone(t, name)
		n := 0
		for at := time.Date(2026, 1, 1, 0, 0, 0, 0, loc); at.Year() == 2026; n++ {
			next := Changes(windows, at)
			for m := at.Add(time.Minute); m.Before(next); m = m.Add(time.Minute) {
				if Open(windows, m) != Open(windows, at) {
					t.Fatalf("%s: it changes at %v, and Changes(%v) says %v", name, m, at, next)
				}
			}
			if Open(windows, next) == Open(windows, at) {
				t.Fatalf("%s: nothing changes at %v", name, next)
			}
			at = next
		}
		t.Logf("%s: %d changes", name, n)
	}
}

func TestMeet(t *testing.T) {
	for _, tt := range []struct {
		a, b []change.Window
		want bool
	}{
		{nil, nil, true},
		{[]change.Window{win(monday, "01:00", "02:00")}, nil, true},
		{[]change.Window{win(monday, "01:00", "02:00")}, []change.Window{win(everyDay, "02:00", "03:00")}, false},
		{[]change.Window{win(monday, "01:00", "02:00")}, []change.Window{win(sunday, "22:00", "01:01")}, true},
	} {
		if got := meet(tt.a, tt.b); got != tt.want {
			t.Errorf("meet(%v, %v) = %v; want %v", tt.a, tt.b, got, tt.want)
		}
	}
}
