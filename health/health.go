// Package health tells whether units do what they are for, by comparing what
// systemd and the kernel know of them before and after an update.
//
//  1. A unit that failed and had not is told; where it ran before, or is one that
//     the update interrupted, it is a failure.
//  2. A unit that ends and is started by systemd again and again is one, too;
//     not where that was its habit before.
//  3. A socket that a service of the update listened on and that nobody listens on any
//     more is one, unless the service's own configuration changed with the update.
//
// All of it is a function of values; Watch asks again until its time is over. What a
// unit's own commands say (X-Liveupd-Health=) is asked by package restart, in a unit of
// its own each.
package health

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
)

// Look is what is known of the machine at one moment.
type Look struct {
	MonoUSec  uint64 // the monotonic clock
	Units     map[string]*change.UnitState
	Listeners []change.Listener
}

// Touched are the units that the update acts on.
type Touched map[string]Touch

// Touch is what the update does to a unit.
type Touch struct {
	Configured bool // the unit's own configuration changes
	Started    bool // it is started anew, and not just reloaded
}

// Names of the checks.
const (
	CheckFailed    = "failed-units"
	CheckRestarts  = "restarts"
	CheckListeners = "listeners"
	CheckCommand   = "command"
)

// passing tells whether a unit is one of those that come and go by themselves: what
// somebody runs by hand, sessions, containers, and liveupd's own.
func passing(name string) bool {
	return strings.HasSuffix(name, ".scope") || strings.HasPrefix(name, "run-") || strings.HasPrefix(name, "liveupd-")
}

func ignored(name string, patterns []string) bool {
	return passing(name) || slices.ContainsFunc(patterns, func(glob string) bool { ok, _ := path.Match(glob, name); return ok })
}

// Failed are the units that have failed and had not before.
func Failed(before, after *Look, touched Touched, ignore []string) []change.HealthCheck {
	var out []change.HealthCheck
	for _, name := range slices.Sorted(maps.Keys(after.Units)) {
		u := after.Units[name]
		if name != u.Name || u.ActiveState != "failed" || ignored(name, ignore) {
			continue
		}
		was := before.Units[name]
		if was != nil && was.ActiveState == "failed" {
			continue
		}
		c := change.HealthCheck{Check: CheckFailed, Unit: name, Result: change.HealthNoted, Detail: "it failed" + because(u)}
		_, ours := touched[name]
		switch {
		case ours:
			c.Result = change.HealthFailed
		case was != nil && was.ActiveState == "active" && was.SubState != "exited":
			c.Result = change.HealthFailed
			c.Detail += "; the update does not touch it"
		default:
			c.Detail += "; it did not run before, and the update does not touch it"
		}
		out = append(out, c)
	}
	return out
}

func because(u *change.UnitState) string {
	switch {
	case u.Result == "" || u.Result == "success":
		return ""
	case u.ExecMainCode == 1:
		return fmt.Sprintf(": result %s, exit status %d", u.Result, u.ExecMainStatus)
	case u.ExecMainCode > 1:
		return fmt.Sprintf(": result %s, signal %d", u.Result, u.ExecMainStatus)
	}
	return ": result " + u.Result
}

// habit tells whether a unit ended and was started again all the time before the update.
func habit(before *Look, u *change.UnitState) bool {
	if u == nil {
		return false
	}
	const lately = 60e6
	return strings.HasPrefix(u.SubState, "auto-restart") ||
		u.NRestarts > 0 && u.InvokedMonoUSec > 0 && before.MonoUSec < u.InvokedMonoUSec+lately
}

// Restarts are the units that systemd had to start again by itself. A start by a job sets
// its counter to zero.
func Restarts(before, after *Look, touched Touched, ignore []string) []change.HealthCheck {
	var out []change.HealthCheck
	for _, name := range slices.Sorted(maps.Keys(after.Units)) {
		u := after.Units[name]
		if name != u.Name || ignored(name, ignore) {
			continue
		}
		touch, ours := touched[name]
		was, since, least := before.Units[name], uint32(0), uint32(2)
		if ours {
			least = 1
		}
		if was != nil && !(touch.Started && was.InvocationID != u.InvocationID) {
			since = was.NRestarts
		}
		waits := strings.HasPrefix(u.SubState, "auto-restart")
		times := uint32(0)
		if u.NRestarts > since {
			times = u.NRestarts - since
		}
		if waits && ours {
			times = max(times, 1)
		}
		if times < least {
			continue
		}
		c := change.HealthCheck{Check: CheckRestarts, Unit: name, Result: change.HealthFailed}
		c.Detail = fmt.Sprintf("it ended and systemd started it again, %s%s", count(times), because(u))
		if waits {
			c.Detail = "it ended and waits for systemd to start it again" + because(u)
		}
		if habit(before, was) {
			c.Result = change.HealthNoted
			c.Detail += "; it did so before the update"
		}
		out = append(out, c)
	}
	return out
}

func count(n uint32) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// Reader looks at the machine.
type Reader func(ctx context.Context) (*Look, error)

// Options are the times of a Watch.
type Options struct {
	Settle time.Duration // how long the units are watched
	Listen time.Duration // how long a socket may be away
	Ignore []string
	// Pulse is called at each look; nil for nobody.
	Pulse func()
}

// Watch looks at the units until their time is over, or something has failed that
// does not mend itself; at their sockets as long as one is missing and has time left.
func Watch(ctx context.Context, read Reader, before *Look, touched Touched, o Options) []change.HealthCheck {
	began := time.Now()
	const pause = 500 * time.Millisecond
	for {
		if o.Pulse != nil {
			o.Pulse()
		}
		now, err := read(ctx)
		over := time.Since(began)
		if err != nil {
			if over < o.Settle && ctx.Err() == nil { // PID 1 may be re-executing itself
				time.Sleep(pause)
				continue
			}
			return []change.HealthCheck{{Check: CheckFailed, Result: change.HealthSkipped, Detail: err.Error(), USec: over.Microseconds()}}
		}
		failed := Failed(before, now, touched, o.Ignore)
		restarts := Restarts(before, now, touched, o.Ignore)
		sockets := Vanished(before.Listeners, now.Listeners, touched, o.Ignore)
		bad := isBad(failed) || isBad(restarts)
		if !bad && ctx.Err() == nil && (over < o.Settle || isBad(sockets) && over < o.Listen) {
			time.Sleep(pause)
			continue
		}
		var out []change.HealthCheck
		for _, part := range []struct {
			check    string
			found    []change.HealthCheck
			deadline time.Duration
		}{{CheckFailed, failed, o.Settle}, {CheckRestarts, restarts, o.Settle}, {CheckListeners, sockets, o.Listen}} {
			if !isBad(part.found) {
				part.found = append([]change.HealthCheck{{Check: part.check, Result: change.HealthOK}}, part.found...)
			}
			for _, c := range part.found {
				c.USec, c.Deadline = over.Microseconds(), part.deadline.Microseconds()
				out = append(out, c)
			}
		}
		return out
	}
}

func isBad(list []change.HealthCheck) bool {
	return slices.ContainsFunc(list, func(c change.HealthCheck) bool { return c.Result == change.HealthFailed })
}

// Bad names what failed, "" where nothing did.
func Bad(list []change.HealthCheck) string {
	var parts []string
	for _, c := range list {
		if c.Result == change.HealthFailed {
			name := c.Unit
			if c.Check == CheckListeners {
				name += " " + c.What
			}
			parts = append(parts, strings.TrimSpace(name)+": "+c.Detail)
		}
	}
	const most = 3
	if len(parts) > most {
		parts = append(parts[:most], fmt.Sprintf("and %d more", len(parts)-most))
	}
	return strings.Join(parts, "; ")
}
