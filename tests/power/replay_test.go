package power

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/liveupd/liveupd/tests/power/tree"
	"github.com/liveupd/liveupd/tests/vm"
)

// replay applies the update once, undisturbed, and then tries the states that the disk went through.
func replay(t *testing.T, r *rig) {
	random := choose(t)
	l := record(t, r)
	defer l.Close()
	all := l.barriers()
	commit, done := l.index("committing"), l.index("exit 0")
	keep := 3
	points := all
	if !long() {
		keep = 1
		points = sample(all, commit, done, random)
	}
	s := &states{t: t, r: r, base: r.base, l: l, random: random, keep: keep}
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
	t.Run("boot", func(t *testing.T) { boot(t, r, s.kept) })
}

// record applies the update in a machine, undisturbed, and gives the log of its disk's writes.
func record(t *testing.T, r *rig) *writeLog {
	t.Helper()
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
	t.Logf("%s: %d writes, %d flushes; writes before the apply %d, before the commit %d, at the end of the apply %d; fsyncs of the other program: %s",
		r.kind.name, len(l.writes), len(l.barriers()), l.index("start"), l.index("committing"), l.index("exit 0"), fsyncs)
	if l.index("exit 0") == len(l.writes) {
		t.Fatal("the log holds no mark of the end")
	}
	return l
}

// boot boots disks as a crash has left them: the guest recovers, as an initrd does, before it looks at anything.
func boot(t *testing.T, r *rig, disks []string) {
	if len(disks) == 0 {
		t.Fatal("no state was in the middle of the commit")
	}
	log := r.path("log")
	for _, disk := range disks {
		crashed := r.path("crashed")
		if err := sparseCopy(disk, crashed); err != nil {
			t.Fatal(err)
		}
		m := r.machine(t, "recover", "", vm.Drive{Path: disk, Log: log})
		line := m.WaitFor(`recovered (\{.*\})\r?\n`, limit)[1]
		first := m.WaitFor(`digest ([0-9a-f]{64})\r?\n`, limit)[1]
		second := m.WaitFor(`digest ([0-9a-f]{64})\r?\n`, limit)[1]
		m.Wait(limit)
		var is report
		if err := json.Unmarshal([]byte(line), &is); err != nil {
			t.Fatal(err)
		}
		err := r.mounted(disk, r.kind.name, r.mnt, func(root string) error {
			found, err := tree.Describe(root)
			if err != nil {
				return err
			}
			if which := r.which(found); which == "mixed" || which != is.Tree {
				t.Errorf("the guest's recovery says that the tree is %q, and it is %s:\n%s", is.Tree, which, tree.Differ(r.new, r.unstamp(found)))
			}
			if on := tree.Digest(found); first != on || second != on {
				t.Errorf("the guest saw the trees %s and %s, and the disk holds %s", first, second, on)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: a disk in the state %q was booted, and became the %s tree", r.kind.name, is.Found, is.Tree)
		again(t, r, crashed, log, is.Tree)
	}
}

// again pulls the plug of the recovery: each flush of it leaves a disk that the next recovery makes the same tree of.
func again(t *testing.T, r *rig, crashed, log, want string) {
	l, err := readLog(log)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &states{t: t, r: r, base: crashed, l: l, random: choose(t), want: want}
	points := l.barriers()
	const few = 8
	if !long() {
		s.random.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		points = points[:min(few, len(points))]
		slices.Sort(points)
	}
	s.walk(points)
	t.Logf("%s: a recovery of %d writes and %d flushes, cut: %v", r.kind.name, len(l.writes), len(l.barriers()), &s.tally)
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
