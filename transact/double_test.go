package transact

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// act is something that dies or loses power, and then its recovery does, too.
type act struct {
	name   string
	before func(r *rig) error // without trouble
	// run calls promised once what it has done must outlive a crash.
	run     func(r *rig, k *sys.Kernel, promised func()) error
	allowed string // the trees that may come of it
	want    string // the tree that is promised
	cut     bool   // it begins with a mixture
}

// revertLast takes the newest transaction back.
func (r *rig) revertLast(k *sys.Kernel) error {
	s, done, err := r.openWith(k)
	if err != nil {
		return err
	}
	defer done()
	l, err := s.List()
	if err != nil {
		return err
	}
	tx, err := s.Load(l[0].ID)
	if err != nil {
		return err
	}
	defer tx.Close()
	return tx.Revert(context.Background())
}

func (r *rig) collect(k *sys.Kernel) error {
	s, done, err := r.openWith(k)
	if err != nil {
		return err
	}
	defer done()
	_, err = s.Collect(1)
	return err
}

// promising calls promised where a run went through.
func promising(run func(r *rig, k *sys.Kernel) error) func(*rig, *sys.Kernel, func()) error {
	return func(r *rig, k *sys.Kernel, promised func()) error {
		err := run(r, k)
		if err == nil {
			promised()
		}
		return err
	}
}

func recoverOnce(r *rig, k *sys.Kernel) error {
	_, err := r.recoverNow(k)
	return err
}

var acts = []act{
	{"apply", func(*rig) error { return nil }, (*rig).applyNoting, "old new", "new", false},
	{"rollback", func(r *rig) error { return r.run(nil, r.compare()) }, promising((*rig).revertLast), "old new", "old", false},
	{"collection", func(r *rig) error {
		if err := r.run(nil, r.compare()); err != nil {
			return err
		}
		return r.revertLast(nil)
	}, promising((*rig).collect), "old", "old", false},
	{"recovery", func(r *rig) error {
		r.dieIn(r.t, journal.Committing, 20)
		return nil
	}, promising(recoverOnce), "new", "new", true},
	{"reversal", func(r *rig) error {
		if err := r.run(nil, r.compare()); err != nil {
			return err
		}
		var calls atomic.Int64
		if err := r.revertLast(deadAfter(40, &calls)); !errors.Is(err, errDead) {
			return fmt.Errorf("the rollback did not die: %w", err)
		}
		return nil
	}, promising(recoverOnce), "old", "old", true},
}

// diskState describes all that lies in the root, .liveupd too, so that two crashes that
// left the same are known for one: times of the run and random names are left out.
func diskState(t testing.TB, root string) [32]byte {
	t.Helper()
	sum := sha256.New()
	links := map[uint64]int{}
	dir, err := sys.OpenRoot(root)
	must(t, err)
	defer dir.Close()
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		parts := strings.Split(rel, "/")
		ours := false
		for i, part := range parts {
			if ours = ours || part == Dir; part == txName && i+1 < len(parts) && parts[i-1] == Dir {
				parts[i+1] = strings.TrimRight(parts[i+1], "0123456789abcdef-.")
			}
		}
		fmt.Fprintf(sum, "%q %v", strings.Join(parts, "/"), info.Mode())
		switch {
		case info.Mode().IsRegular() && d.Name() == journal.StateName && ours:
			dir, err := sys.OpenRoot(filepath.Dir(p))
			if err != nil {
				return err
			}
			defer dir.Close()
			st, err := journal.ReadStatus(dir)
			fmt.Fprint(sum, st.State, st.Before, st.Attempts, err != nil)
		case info.Mode().IsRegular() && info.Size() < 1<<16 && d.Name() != journal.FileName && d.Name() != historyName:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(sum, " %x", sha256.Sum256(b))
		case info.Mode().IsRegular():
			fmt.Fprint(sum, " ", info.Size())
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(sum, " %q", target)
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprint(sum, " ", st.Uid, st.Gid, st.Rdev)
		if !d.IsDir() && st.Nlink > 1 {
			if _, ok := links[st.Ino]; !ok {
				links[st.Ino] = len(links)
			}
			fmt.Fprint(sum, " link ", links[st.Ino], st.Nlink)
		}
		xattrs, err := sys.Xattrs(dir, rel)
		if err != nil {
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(xattrs)) {
			fmt.Fprintf(sum, " %s=%x", key, xattrs[key])
		}
		if !d.IsDir() && !ours {
			fmt.Fprint(sum, " ", info.ModTime().UnixNano())
		}
		fmt.Fprintln(sum)
		return nil
	}))
	return [32]byte(sum.Sum(nil))
}

// TestDeathAfterDeath kills a recovery at each state on disk that one can leave, and
// recovers again. Which deaths leave new states is found by looking at the disk in front
// of each call of an undisturbed recovery.
func TestDeathAfterDeath(t *testing.T) {
	s := seed(t)
	for a, act := range acts[:3] {
		t.Run(act.name, func(t *testing.T) {
			t.Parallel()
			base := fastBase(t)
			tp := crashTemplate(t, base)
			rnd := rand.New(rand.NewPCG(s, uint64(a)))
			var total atomic.Int64
			r := tp.instance(t, filepath.Join(base, "count"))
			must(t, act.before(r))
			must(t, act.run(r, failOnce(-1, sys.Fault{}, &total), func() {}))
			firsts, most := 10, 24
			if long() {
				firsts, most = 1<<30, 1<<30
			}
			if testing.Short() {
				firsts, most = 3, 6
			}
			type pair struct{ first, second int64 }
			var pairs []pair
			seen := map[[32]byte]bool{}
			for _, n := range between(1, total.Load()+1, firsts, rnd) {
				r := tp.dead(t, base, act, n)
				var calls int64
				_, err := r.recoverNow(sys.WithHook(func(sys.Call) sys.Fault {
					calls++
					if state := diskState(t, r.live); !seen[state] {
						seen[state] = true
						pairs = append(pairs, pair{n, calls})
					}
					return sys.Fault{}
				}))
				if err != nil {
					t.Fatalf("dead at call %d: %v", n, err)
				}
			}
			distinct := len(pairs)
			rnd.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
			pairs = pairs[:min(len(pairs), most)]
			for _, p := range pairs {
				r := tp.dead(t, base, act, p.first)
				var calls atomic.Int64
				_, _ = r.recoverNow(deadAfter(p.second, &calls))
				rec, err := r.recoverNow(nil)
				if err != nil {
					t.Fatalf("dead at call %d, recovery dead at %d: %v", p.first, p.second, err)
				}
				if v := verdict(tp.old, tp.new, snapshot(t, r.live)); !strings.Contains(act.allowed, v) {
					t.Fatalf("dead at call %d, recovery dead at %d: recovery %+v left %s", p.first, p.second, rec, v)
				}
			}
			t.Logf("%s of %d calls: %d states that a dead recovery leaves, %d of them tried", act.name, total.Load(), distinct, len(pairs))
		})
	}
}

// dead is a tree in which an act died at its n-th call.
func (tp *template) dead(t testing.TB, base string, a act, n int64) *rig {
	t.Helper()
	r := tp.instance(t, filepath.Join(base, "run"))
	must(t, a.before(r))
	var calls atomic.Int64
	_ = a.run(r, deadAfter(n, &calls), func() {})
	return r
}

func TestDeathDuringRollbackAndCollection(t *testing.T) {
	s := seed(t)
	for a, act := range acts[1:3] {
		base := fastBase(t)
		tp := crashTemplate(t, base)
		stride := int64(5)
		if testing.Short() {
			stride = 17
		}
		if long() {
			stride = 1
		}
		points := 0
		for n := 1 + int64(s>>(8*a))&0xff%stride; ; n += stride {
			r := tp.instance(t, filepath.Join(base, "run"))
			must(t, act.before(r))
			var calls atomic.Int64
			aerr := act.run(r, deadAfter(n, &calls), func() {})
			rec, err := r.recoverNow(nil)
			if err != nil {
				t.Fatalf("%s dead at call %d: %v", act.name, n, err)
			}
			v := verdict(tp.old, tp.new, snapshot(t, r.live))
			if !strings.Contains(act.allowed, v) || aerr == nil && v != "old" {
				t.Fatalf("%s dead at call %d (%v): recovery %+v left %s", act.name, n, aerr, rec, v)
			}
			points++
			if calls.Load() < n {
				break
			}
		}
		t.Logf("%s: dead at %d points", act.name, points)
	}
}
