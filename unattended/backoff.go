package unattended

import (
	"slices"
	"time"

	"github.com/liveupd/liveupd/change"
)

// The first delay after a failure is a day and a half: the next night's run, whenever in the
// night its timer fires, leaves the update alone, and the one after it tries again.
const (
	firstBackOff = 36 * time.Hour
	mostBackOff  = 30 * 24 * time.Hour
	// keptFailures and keptFor bound what is remembered.
	keptFailures = 20
	keptFor      = 120 * 24 * time.Hour
)

// identify names what a plan would bring, as a failure of it would be remembered.
func identify(p *change.Plan) change.BackOff {
	b := change.BackOff{Source: p.Source, Name: p.Name, Version: p.Version}
	for _, pkg := range p.Packages {
		b.Packages = append(b.Packages, change.Package{Name: pkg.Name, Arch: pkg.Arch, From: pkg.From, To: pkg.To})
	}
	switch {
	case len(b.Packages) > 0:
		b.Key = "packages"
	case b.Version != "":
		b.Key = b.Name + " " + b.Version
	default:
		b.Key = p.Content
	}
	return b
}

// same tells whether an update brings all that a failed one brought: of packages, each of
// them in the version that failed. One that is in another version now may be what was wrong.
func same(failed, now change.BackOff) bool {
	if failed.Source != now.Source || len(failed.Packages) == 0 != (len(now.Packages) == 0) {
		return false
	}
	if len(failed.Packages) == 0 {
		return failed.Key == now.Key && failed.Key != ""
	}
	return len(common(now, failed)) == len(failed.Packages)
}

// common are the packages that two updates bring in the same version.
func common(a, b change.BackOff) []change.Package {
	if a.Source != b.Source {
		return nil
	}
	var out []change.Package
	for _, p := range b.Packages {
		if slices.ContainsFunc(a.Packages, func(q change.Package) bool { return q.Name == p.Name && q.Arch == p.Arch && q.To == p.To }) {
			out = append(out, p)
		}
	}
	return out
}

// backedOff is the failure for which an update has to wait at now; nil where there is none.
func backedOff(list []change.BackOff, update change.BackOff, now time.Time) *change.BackOff {
	for i := range list {
		if waits(list[i], now) && same(list[i], update) {
			return &list[i]
		}
	}
	return nil
}

// waits tells whether the time of a failure has not come yet. A clock that went far back must not
// lock an update out: no delay is longer than the longest, or than it was made.
func waits(b change.BackOff, now time.Time) bool {
	left := time.Unix(b.Until, 0).Sub(now)
	return left > 0 && left <= max(mostBackOff, time.Duration(b.Until-b.Last)*time.Second)
}

// rebase has delays that began in the future, for the clock went back since, begin now: as
// long as they were meant to be, and no longer.
func rebase(list []change.BackOff, now time.Time) []change.BackOff {
	out := slices.Clone(list)
	for i := range out {
		if b := &out[i]; b.Last > now.Add(clockStep).Unix() {
			b.Last, b.Until = now.Unix(), now.Unix()+max(b.Until-b.Last, 0)
		}
	}
	return out
}

// fail notes that an update failed at now. Where a part of it has failed before, beside other
// packages or other versions of them, it is that part which is to blame: the rest need not wait with it.
func fail(list []change.BackOff, update change.BackOff, now time.Time, first time.Duration, why string) []change.BackOff {
	failures := 0
	for _, b := range list {
		if part := common(b, update); len(part) > 0 && len(part) < len(update.Packages) {
			update.Packages = part
			failures = max(failures, b.Failures)
		}
	}
	list = slices.DeleteFunc(slices.Clone(list), func(b change.BackOff) bool {
		again := same(b, update) || len(update.Packages) > 0 && len(common(b, update)) == len(update.Packages)
		if again {
			failures = max(failures, b.Failures)
		}
		return again
	})
	delay := first
	for range failures {
		delay = min(2*delay, max(first, mostBackOff))
	}
	const longest = 2000
	if len(why) > longest {
		why = why[:longest]
	}
	update.Failures, update.Last, update.Until, update.Error = failures+1, now.Unix(), now.Add(delay).Unix(), why
	return tidyBackOff(append([]change.BackOff{update}, list...), now)
}

// succeed drops what an update that went well has made good.
func succeed(list []change.BackOff, update change.BackOff) []change.BackOff {
	return slices.DeleteFunc(slices.Clone(list), func(b change.BackOff) bool { return same(b, update) || superseded(b, update) })
}

// takenBack notes that somebody has rolled back by hand what the last night brought: the next one
// must not bring it again at once. It tells whether there was anything to note.
func takenBack(s *State, list []change.Generation, now time.Time, first time.Duration) bool {
	n := s.Changed
	if n == nil || n.Result != change.NightDone || n.ID == "" || n.ID == s.TakenBack {
		return false
	}
	update := identify(&change.Plan{Source: n.Source, Name: n.Name, Version: n.Version, Packages: n.Packages})
	gone := slices.ContainsFunc(list, func(g change.Generation) bool { return g.ID == n.ID && g.State == "rolled-back" })
	if !gone || update.Key == "" {
		return false
	}
	s.TakenBack = n.ID
	s.BackOff = fail(s.BackOff, update, now, first, "it was rolled back by hand")
	return true
}

// superseded tells whether an update has what failed in another version: whole, or one of its packages.
func superseded(failed, update change.BackOff) bool {
	if failed.Source != update.Source {
		return false
	}
	if len(failed.Packages) == 0 {
		return len(update.Packages) == 0 && failed.Key != update.Key
	}
	return slices.ContainsFunc(failed.Packages, func(f change.Package) bool {
		return slices.ContainsFunc(update.Packages, func(n change.Package) bool {
			return n.Name == f.Name && n.Arch == f.Arch && n.To != f.To
		})
	})
}

// tidyBackOff drops what is too old and too much; the newest come first.
func tidyBackOff(list []change.BackOff, now time.Time) []change.BackOff {
	list = slices.DeleteFunc(list, func(b change.BackOff) bool { return now.Sub(time.Unix(b.Last, 0)) > keptFor })
	return list[:min(len(list), keptFailures)]
}

// further are the packages of a failed update that are not held back yet.
func further(b *change.BackOff, held []string) []string {
	return slices.DeleteFunc(names(b), func(name string) bool { return slices.Contains(held, name) })
}

// names are the packages of a failed update, as they are held back.
func names(b *change.BackOff) []string {
	var out []string
	for _, p := range b.Packages {
		if p.To != "" && !slices.Contains(out, p.Name) {
			out = append(out, p.Name)
		}
	}
	return out
}
