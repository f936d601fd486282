package power

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/liveupd/liveupd/tests/vm"
)

// replay applies the update once, undisturbed, and then tries the states that the disk went through.
func replay(t *testing.T, r *rig) {
	random := choose(t)
	disk, log := r.path("disk"), r.path("log")
	if err := sparseCopy(r.base, disk); err != nil {
		t.Fatal(err)
	}
	m := r.machine(t, "apply", "", vm.Drive{Path: disk, Log: log})
	m.WaitFor(`ready\r?\n`, limit)
	m.Send("\n")
	if code := m.WaitFor(`exit (-?\d+)\r?\n`, limit)[1]; code != "0" {
		t.Fatalf("the apply in the guest ended with %s\n%s", code, m.Console())
	}
	fsyncs := m.WaitFor(`fsyncs (\d+)\r?\n`, limit)[1]
	m.Wait(limit)
	if err := os.Remove(disk); err != nil {
		t.Fatal(err)
	}
	l, err := readLog(log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all := l.barriers()
	start, commit, done := l.index("start"), l.index("committing"), l.index("exit 0")
	t.Logf("%d writes, %d flushes; writes before the apply %d, before the commit %d, at the end of the apply %d; fsyncs of the other program: %s",
		len(l.writes), len(all), start, commit, done, fsyncs)
	if done == len(l.writes) {
		t.Fatal("the log holds no mark of the end")
	}
	points := all
	if !long() {
		points = sample(all, commit, done, random)
	}
	s := &states{t: t, r: r, l: l, random: random, start: start, commit: commit, done: done}
	s.walk(points)
	if r.kind.mixes && s.mixed == 0 {
		// The sample was unlucky: all that is between the commit and the end.
		s.newAt = 0
		s.walk(slices.DeleteFunc(all, func(i int) bool { return i < commit || i > done }))
	}
	t.Logf("%s: %v", r.kind.name, &s.tally)
	if r.kind.mixes && s.mixed == 0 {
		t.Error("no state was a mixture before the recovery: the suite would not see what it is for")
	}
}

// sample takes 25 points, most of them between the commit point and the end.
func sample(all []int, commit, done int, random *rand.Rand) []int {
	const within, outside = 17, 8
	var in, out []int
	for _, i := range all {
		if i > commit && i < done {
			in = append(in, i)
		} else {
			out = append(out, i)
		}
	}
	take := func(from []int, n int) []int {
		random.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		return from[:min(n, len(from))]
	}
	points := append(take(in, within), take(out, outside)...)
	slices.Sort(points)
	return points
}

// states makes the states of a disk one after another and tries them.
type states struct {
	tally
	t                   *testing.T
	r                   *rig
	l                   *writeLog
	random              *rand.Rand
	start, commit, done int
	newAt               int // the first point that was the new tree, 0 for none
}

// walk tries the state at each point, and another in which a part of what comes between it and the next flush
// has reached the disk, too.
func (s *states) walk(points []int) {
	now := s.r.path("now")
	if err := sparseCopy(s.r.base, now); err != nil {
		s.t.Fatal(err)
	}
	defer os.Remove(now)
	f, err := os.OpenFile(now, os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	at := 0
	for _, point := range points {
		for ; at <= point; at++ {
			if err := s.l.replay(f, s.l.writes[at], nil); err != nil {
				s.t.Fatal(err)
			}
		}
		s.points++
		after := s.try(now, point, 0)
		if after == "old" && s.newAt > 0 {
			s.t.Errorf("flush %d recovers to the old tree, and flush %d before it to the new one", point, s.newAt)
		}
		if after == "new" && s.newAt == 0 {
			s.newAt = point
		}
		next := at
		for next < len(s.l.writes) && !s.l.writes[next].barrier() {
			next++
		}
		if next > at && (long() || s.random.IntN(2) == 0) {
			s.subsets++
			s.try(now, point, next)
		}
	}
}

// try recovers a copy of the disk as it is at a point, with a part of the writes up to end.
func (s *states) try(now string, point, end int) (after string) {
	s.t.Helper()
	work := s.r.path("work")
	if err := sparseCopy(now, work); err != nil {
		s.t.Fatal(err)
	}
	defer os.Remove(work)
	f, err := os.OpenFile(work, os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := point + 1; i < end && err == nil; i++ {
		err = s.l.lossy(f, s.l.writes[i], s.random)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	f.Close()
	o, err := s.r.settle(work)
	if err != nil {
		s.t.Errorf("flush %d of writes up to %d (commit %d, end %d): %v", point, end, s.commit, s.done, err)
		return ""
	}
	s.count(o)
	switch {
	case point < s.commit && max(point, end) < s.commit && o.after != "old":
		s.t.Errorf("flush %d is before the commit (%d), and it recovers to the %s tree", point, s.commit, o.after)
	case point > s.done && (o.after != "new" || o.before != "new"):
		s.t.Errorf("flush %d is after the program's success (%d), and the tree is %s, and after the recovery %s", point, s.done, o.before, o.after)
	case o.before == "mixed" && o.found != "committing":
		s.t.Errorf("flush %d: a mixture in the state %q", point, o.found)
	}
	return o.after
}
