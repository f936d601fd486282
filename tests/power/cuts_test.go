package power

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/vm"
)

// ready is a machine that is about to apply the update: its state, and its disk at that time.
type ready struct {
	r           *rig
	state, disk string
	took        time.Duration // by an apply that nothing disturbs
	// By an apply that nothing disturbs and the other program meanwhile: until the commit, and until the end.
	writes, flushes [2]int
}

// save boots the guest, saves it, and lets it run once to its end.
func save(t *testing.T, r *rig) *ready {
	t.Helper()
	s := &ready{r: r, state: r.path("state"), disk: r.path("saved")}
	if err := sparseCopy(r.base, s.disk); err != nil {
		t.Fatal(err)
	}
	m := r.machine(t, "apply", "", vm.Drive{Path: s.disk})
	m.WaitFor(`ready\r?\n`, limit)
	time.Sleep(200 * time.Millisecond) // the other program is in the midst of its work then
	m.Save(s.state)
	m.Kill()
	l := s.run(t, func(m *vm.Machine) {
		began := time.Now()
		if code := m.WaitFor(`exit (-?\d+)\r?\n`, limit)[1]; code != "0" {
			t.Fatalf("the apply in the guest ended with %s\n%s", code, m.Console())
		}
		s.took = time.Since(began)
	})
	defer l.Close()
	for i, mark := range []string{"committing", "exit 0"} {
		for _, w := range l.writes[:l.index(mark)] {
			if w.size > 0 {
				s.writes[i]++
			}
			if w.barrier() {
				s.flushes[i]++
			}
		}
	}
	t.Logf("%s: an undisturbed apply takes %v, %d writes and %d flushes, %d and %d of them before the commit",
		r.kind.name, s.took.Round(time.Millisecond), s.writes[1], s.flushes[1], s.writes[0], s.flushes[0])
	return s
}

// run lets the machine go on, starts the apply, kills the machine when then returns, and gives
// the log of its writes.
func (s *ready) run(t *testing.T, then func(*vm.Machine)) *writeLog {
	t.Helper()
	disk, log := s.r.path("disk"), s.r.path("log")
	if err := sparseCopy(s.disk, disk); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(disk)
	m := s.r.machine(t, "apply", s.state, vm.Drive{Path: disk, Log: log})
	m.Send("\n")
	then(m)
	m.Kill()
	l, err := readLog(log)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(log) // what is open can still be read
	return l
}

// cut is when the plug is pulled: so long after a phase was entered, or after the start.
type cut struct {
	phase string
	after time.Duration
}

// cuts lists n of them: each phase, within the exchange, and at random.
func cuts(n int, took time.Duration, random *rand.Rand) []cut {
	within := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
	all := []cut{{phase: "phase committing"}, {phase: "phase staging"}, {phase: "phase committing", after: within(took / 8)}, {phase: "phase commit-done"}, {phase: "exit 0"}}
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for len(all) < n {
		switch random.IntN(3) {
		case 0:
			all = append(all, cut{phase: "phase committing", after: within(took / 6)})
		default:
			all = append(all, cut{after: within(took)})
		}
	}
	return all[:n]
}

// pull pulls the plug of machines that go on from one state.
func pull(t *testing.T, s *ready) {
	random := choose(t)
	n, parts := 3, 1
	if s.r.kind.name == "ext4" {
		n = 4 // ten for the three file systems
	}
	if long() {
		n, parts = 40, 3
	}
	all := &states{t: t, r: s.r, base: s.disk, random: random}
	for i, c := range cuts(n, s.took, random) {
		l := s.run(t, func(m *vm.Machine) {
			if c.phase != "" {
				m.WaitFor(c.phase+`\r?\n`, limit)
			}
			time.Sleep(c.after)
		})
		all.l = l
		all.cut(parts)
		l.Close()
		if t.Failed() {
			t.Fatalf("cut %d (%+v)", i, c)
		}
	}
	t.Logf("%s: %d power cuts: %v", s.r.kind.name, n, &all.tally)
}

// fault is what happens to a request of the guest.
type fault struct {
	event, kind string // what is counted, and what fails: blkdebug's words
	errno       int
	once        bool
	n           int // the request that fails, from 1
}

func (f fault) String() string {
	how := "from then on"
	if f.once {
		how = "once"
	}
	return fmt.Sprintf("%s %d fails with errno %d, %s", f.kind, f.n, f.errno, how)
}

// options of qemu's blkdebug: it counts by its state, which begins with 1.
func (f fault) options() map[string]any {
	steps := []any{}
	for i := 1; i < f.n; i++ {
		steps = append(steps, map[string]any{"event": f.event, "state": i, "new_state": i + 1})
	}
	return map[string]any{
		"set-state":    steps,
		"inject-error": []any{map[string]any{"event": f.event, "state": f.n, "iotype": f.kind, "errno": f.errno, "once": f.once}},
	}
}

// faults lists n of them, over an apply's whole length, and as many about its commit.
func faults(n int, s *ready, random *rand.Rand) []fault {
	const eio, enospc = 5, 28
	var all []fault
	for i := range n {
		which := func(of [2]int) int {
			const most = 1800 // each is a rule of its own on qemu's command line
			from, to := 1, min(of[1], most)
			if random.IntN(2) == 0 {
				from = min(of[0]*9/10, to)
			}
			return from + random.IntN(to-from+1)
		}
		f := fault{event: "pwritev", kind: "write", errno: eio, once: random.IntN(2) == 0, n: which(s.writes)}
		switch i % 3 {
		case 1:
			f.event, f.kind, f.n = "flush_to_disk", "flush", which(s.flushes)
		case 2:
			f.errno = enospc
		}
		all = append(all, f)
	}
	return all
}

// fail lets a request fail. What the disk holds then must be what the program has said.
func fail(t *testing.T, s *ready) {
	random := choose(t)
	n := 3
	if long() {
		n = 30
	}
	count := tally{}
	codes := map[string]int{}
	disk := s.r.path("disk")
	defer os.Remove(disk)
	for _, f := range faults(n, s, random) {
		if err := sparseCopy(s.disk, disk); err != nil {
			t.Fatal(err)
		}
		m := s.r.machine(t, "apply", s.state, vm.Drive{Path: disk, Debug: f.options()})
		m.Send("\n")
		code := m.WaitFor(`exit (-?\d+)\r?\n`, limit)[1]
		m.Kill()
		codes[code]++
		o, err := s.r.settle(disk)
		if err != nil {
			t.Errorf("%v: the program ended with %s, and %v\n%s", f, code, err, m.Console())
			continue
		}
		count.count(o)
		if code == "0" && o.after != "new" || code == "1" && o.after != "old" || o.before == "mixed" && o.found != "committing" && o.found != "rolling-back" {
			t.Errorf("%v: the program ended with %s, and the disk holds the state %q, is %s, and recovers to the %s tree\n%s", f, code, o.found, o.before, o.after, said(m))
		}
		t.Logf("%s: %v: exit %s, state %q, %s, recovered to the %s tree", s.r.kind.name, f, code, o.found, o.before, o.after)
	}
	t.Logf("%s: %d faults of the disk: exit codes %v; recovered to the old tree %d, to the new one %d", s.r.kind.name, n, codes, count.old, count.new)
}

// said is the end of what the machine has printed.
func said(m *vm.Machine) string {
	lines := strings.Split(m.Console(), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
