package power

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
)

// tally counts what was tried.
type tally struct {
	points, subsets int // states after a flush, and such with a part of the later writes
	mixed, old, new int // mixtures before the recovery; what it made
	found           map[string]int
}

func (c *tally) count(o outcome) {
	if c.found == nil {
		c.found = map[string]int{}
	}
	c.found[o.found]++
	if o.before == "mixed" {
		c.mixed++
	}
	if o.after == "old" {
		c.old++
	} else {
		c.new++
	}
}

func (c *tally) String() string {
	return fmt.Sprintf("%d states after a flush, %d with a part of the later writes: recovered to the old tree %d, to the new one %d; a mixture before the recovery: %d; states found: %v",
		c.points, c.subsets, c.old, c.new, c.mixed, c.found)
}

// states makes the states of a disk one after another, from what it held first and the log of what was written, and
// tries them.
type states struct {
	tally
	t      *testing.T
	r      *rig
	base   string
	l      *writeLog
	random *rand.Rand
	keep   int      // how many to keep that are in the middle of the commit
	kept   []string // disks as they were before the recovery
	newAt  int      // the first point that was the new tree, 0 for none
	want   string   // the tree that each state must become, where the log is not that of an apply
	// control: what is wrong is expected, and only counted.
	control  bool
	problems []string
}

// wrong notes a state that must not be.
func (s *states) wrong(format string, args ...any) {
	s.t.Helper()
	if s.problems = append(s.problems, fmt.Sprintf(format, args...)); !s.control {
		s.t.Errorf(format, args...)
	}
}

// image is the disk, to which the writes are done in their order.
type image struct {
	name string
	file *os.File
	next int // the first write that is not done
}

func (s *states) open(name string) *image {
	s.t.Helper()
	i := &image{name: s.r.path(name)}
	err := sparseCopy(s.base, i.name)
	if err == nil {
		i.file, err = os.OpenFile(i.name, os.O_RDWR, 0)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return i
}

func (i *image) close() {
	i.file.Close()
	os.Remove(i.name)
}

// forward does all writes up to and with the one of this number.
func (s *states) forward(i *image, point int) {
	s.t.Helper()
	for ; i.next <= point; i.next++ {
		if err := s.l.replay(i.file, s.l.writes[i.next], nil); err != nil {
			s.t.Fatal(err)
		}
	}
}

// walk tries the state at each point, and another in which a part of what comes between it and the next flush
// has reached the disk, too.
func (s *states) walk(points []int) {
	s.t.Helper()
	now := s.open("now")
	defer now.close()
	for _, point := range points {
		s.forward(now, point)
		s.points++
		after := s.try(now, point, 0)
		if after == "old" && s.newAt > 0 {
			s.wrong("flush %d recovers to the old tree, and flush %d before it to the new one", point, s.newAt)
		}
		if after == "new" && s.newAt == 0 {
			s.newAt = point
		}
		next := now.next
		for next < len(s.l.writes) && !s.l.writes[next].barrier() {
			next++
		}
		one := 2 // in so many gets a part of the later writes
		switch {
		case long() && point >= s.l.index("committing"):
			one = 1
		case long():
			one = 4
		}
		if next > now.next && s.random.IntN(one) == 0 {
			s.subsets++
			s.try(now, point, next)
		}
	}
}

// cut tries what a power cut at the log's end may leave: what was flushed, that and parts of the rest, and all.
func (s *states) cut(parts int) {
	s.t.Helper()
	now := s.open("now")
	defer now.close()
	last := -1
	if all := s.l.barriers(); len(all) > 0 {
		last = all[len(all)-1]
	}
	s.forward(now, last)
	s.points++
	s.try(now, last, 0)
	if end := len(s.l.writes); end > last+1 {
		for range parts {
			s.subsets++
			s.try(now, last, end)
		}
		s.forward(now, end-1)
		s.subsets++
		s.try(now, end-1, 0)
	}
}

// try recovers a copy of the disk as it is at a point, with a part of the writes before end.
func (s *states) try(now *image, point, end int) (after string) {
	s.t.Helper()
	work := s.r.path("work")
	if err := sparseCopy(now.name, work); err != nil {
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
	f.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	commit, done := s.l.index("committing"), s.l.index("exit 0")
	durable := done // the flush on which the program's success stands
	for i := done - 1; done < len(s.l.writes) && i >= 0; i-- {
		if s.l.writes[i].barrier() {
			durable = i
			break
		}
	}
	what := fmt.Sprintf("write %d, and a part of those before %d, of %d (commit %d, success %d)", point, max(point+1, end), len(s.l.writes), commit, done)
	o, err := s.r.settle(work)
	if err != nil {
		s.wrong("%s: %v", what, err)
		return ""
	}
	s.count(o)
	switch {
	case s.want != "":
		if o.after != s.want {
			s.wrong("%s: a recovery that was cut recovers to the %s tree, and was to the %s one", what, o.after, s.want)
		}
	case max(point, end-1) < commit && o.after != "old":
		s.wrong("%s: it is before the commit, and recovers to the %s tree", what, o.after)
	case point >= durable && (o.after != "new" || o.before != "new"):
		s.wrong("%s: it is after the program's success, and the tree is %s, and after the recovery %s", what, o.before, o.after)
	case o.before == "mixed" && o.found != "committing":
		s.wrong("%s: a mixture in the state %q", what, o.found)
	}
	// Btrfs has no mixtures to keep.
	if end == 0 && len(s.kept) < s.keep && (o.before == "mixed" || !s.r.kind.mixes && o.found == "committing") {
		name := s.r.path(fmt.Sprint("kept", len(s.kept)))
		if err := sparseCopy(now.name, name); err != nil {
			s.t.Fatal(err)
		}
		s.kept = append(s.kept, name)
	}
	return o.after
}
