package transact

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// long tells whether the suites run in full.
func long() bool { return os.Getenv("LIVEUPD_LONG") == "1" }

// seed is what samples are drawn by, told so that a failure can be had again.
func seed(t testing.TB) uint64 {
	t.Helper()
	if s := os.Getenv("LIVEUPD_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		return n
	}
	n := uint64(time.Now().UnixNano())
	t.Logf("LIVEUPD_SEED=%d", n)
	return n
}

// crashTemplate is everyChange on a root, a /var and a /boot.
func crashTemplate(t testing.TB, base string) *template {
	dir := filepath.Join(base, "template")
	must(t, os.Mkdir(dir, 0o755))
	r := newRig(t, dir)
	r.everyChange()
	for _, mount := range []string{"var", "boot"} {
		for _, root := range []string{r.live, r.src} {
			must(t, os.Mkdir(filepath.Join(root, mount), 0o755))
		}
		write(t, r.live, mount+"/lib/conf", "old", 0o644)
		write(t, r.src, mount+"/lib/conf", "newer", 0o644)
		write(t, r.live, mount+"/lib/gone", "gone", 0o644)
		write(t, r.src, mount+"/lib/tree/x", "x", 0o644)
		write(t, r.live, mount+"/mode", "m", 0o644)
		write(t, r.src, mount+"/mode", "m", 0o600)
	}
	age(t, r.live, oldTime)
	age(t, r.src, newTime)
	return &template{dir: dir, old: snapshot(t, r.live), new: snapshot(t, r.src), mounts: []string{"/", "/var", "/boot"}}
}

// crash applies an update up to a call, loses power there, and gives what was recorded.
func (tp *template) crash(t testing.TB, base string, until int64, with func(*recorder)) (*rig, *recorder) {
	t.Helper()
	r := tp.instance(t, filepath.Join(base, "run"))
	rec := &recorder{t: t, root: r.live, mounts: tp.mounts, stash: filepath.Join(base, "stash"), until: until}
	must(t, os.RemoveAll(rec.stash))
	must(t, os.Mkdir(rec.stash, 0o700))
	if with != nil {
		with(rec)
	}
	s, done, err := r.openWith(sys.WithHook(rec.hook))
	must(t, err)
	defer done()
	_ = r.applyNoting(s, r.compare(), func() { rec.committed = rec.calls })
	// The last call's folder, if it made one.
	rec.until = 0
	rec.hook(sys.Call{})
	return r, rec
}

// applyNoting is apply; it says when Commit has returned.
func (r *rig) applyNoting(s *Store, d *change.Delta, committed func()) error {
	tx, err := s.Begin(Header{Source: "tree:" + r.src})
	if err != nil {
		return err
	}
	defer tx.Close()
	src, err := sys.OpenRoot(r.src)
	if err != nil {
		return err
	}
	defer src.Close()
	ctx := context.Background()
	if err := tx.Stage(ctx, d, src, nil); err != nil {
		return err
	}
	if err := tx.Prepare(ctx, &change.Plan{ID: "p"}); err != nil {
		return err
	}
	if _, err := tx.Commit(ctx); err != nil {
		return err
	}
	committed()
	return tx.Verified()
}

// settle recovers what a crash left, by the way given, and judges it; "" is right.
func (tp *template) settle(t testing.TB, r *rig, mustBeNew bool, recovery func() (Recovery, error)) (problem string) {
	t.Helper()
	found, err := recovery()
	if err != nil {
		return fmt.Sprintf("recovery: %v", err)
	}
	v := verdict(tp.old, tp.new, snapshot(t, r.live))
	switch {
	case v != "old" && v != "new":
		return fmt.Sprintf("recovery %+v left %s", found, v)
	case mustBeNew && v != "new":
		return "the commit had returned, and the tree is the old one"
	case found.Tree != "" && found.Tree != v:
		return fmt.Sprintf("recovery says the %s tree, it is the %s one", found.Tree, v)
	}
	return ""
}

// explore tries crash states of a model and gives the first problem of a state.
func (tp *template) explore(t *testing.T, base string, model crashModel, points []int64, each int, s uint64, with func(*recorder)) (states, mixtures int, problem string) {
	t.Helper()
	for _, n := range points {
		for j := range each {
			rnd := rand.New(rand.NewPCG(s, uint64(n)<<20|uint64(j)))
			r, rec := tp.crash(t, base, n, with)
			drop, variant, ok := choose(rec.effects, model, j, rnd)
			if ok {
				if err := lose(rec.effects, drop, variant); err != nil {
					rec.close()
					t.Fatalf("%s: crash after call %d, state %d: cannot be made: %v", model, n, j, err)
				}
			}
			mustBeNew := rec.committed > 0
			what := fmt.Sprintf("%s: crash after call %d, state %d of seed %d, %d effects lost", model, n, j, s, len(drop))
			for i := range drop {
				if len(drop) <= 5 {
					what += "; " + rec.effects[i].what
				}
			}
			rec.close()
			if !ok {
				continue
			}
			states++
			if v := verdict(tp.old, tp.new, snapshot(t, r.live)); v != "old" && v != "new" {
				mixtures++
			}
			if p := tp.settle(t, r, mustBeNew, func() (Recovery, error) { return r.recoverNow(nil) }); p != "" {
				return states, mixtures, what + ": " + p
			}
			if _, err := r.recoverNow(nil); err != nil {
				return states, mixtures, what + ": second recovery: " + err.Error()
			}
		}
	}
	return states, mixtures, ""
}

// trace is a whole run: how many calls it makes and where its phases begin.
type trace struct{ calls, prepared, swap, swapped int64 }

func (tp *template) trace(t *testing.T, base string) trace {
	var tr trace
	var rec *recorder
	_, rec = tp.crash(t, base, 1<<40, func(rec *recorder) {
		rec.skip = func(c sys.Call, states int) bool {
			switch {
			case c.Name == "syncfs" && states == 1 && tr.prepared == 0:
				tr.prepared = rec.calls
			case states == 2 && tr.swap == 0:
				tr.swap = rec.calls
			case c.Name == "syncfs" && states == 2 && tr.swapped == 0:
				tr.swapped = rec.calls
			}
			return false
		}
	})
	tr.calls = rec.calls
	rec.close()
	return tr
}

// between gives points from one call to another: all of them, or a sample.
func between(from, to int64, most int, rnd *rand.Rand) []int64 {
	var out []int64
	if int(to-from) <= most {
		for n := from; n < to; n++ {
			out = append(out, n)
		}
		return out
	}
	for range most {
		out = append(out, from+rnd.Int64N(to-from))
	}
	return out
}

func TestCrashStates(t *testing.T) {
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 0))
	for _, model := range []crashModel{journalled, logged, anyOrder} {
		t.Run(string(model), func(t *testing.T) {
			t.Parallel()
			base := fastBase(t)
			tp := crashTemplate(t, base)
			tr := tp.trace(t, base)
			early, late, tail, each := 3, 12, 4, 4
			if long() {
				early, late, tail, each = 150, 1000, 100, 12
				if model == anyOrder {
					each = 60
				}
			}
			if testing.Short() {
				early, late, tail, each = 1, 4, 1, 2
			}
			// The swap matters most: every point of it in the long form.
			points := between(1, tr.prepared, early, rnd)
			points = append(points, between(tr.prepared, tr.swapped+8, late, rnd)...)
			points = append(points, between(tr.swapped+8, tr.calls+1, tail, rnd)...)
			states, mixtures, problem := tp.explore(t, base, model, points, each, s, nil)
			if problem != "" {
				t.Fatal(problem)
			}
			t.Logf("%s: %d crash points of %d calls, %d states, %d of them mixtures before recovery", model, len(points), tr.calls, states, mixtures)
			if mixtures == 0 && !testing.Short() {
				t.Error("no state was a mixture before recovery: the suite does not reach the swap")
			}
		})
	}
}

// Each protection, taken away, is missed: else the suite would prove nothing.
func TestCrashStatesWithoutProtection(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	tr := tp.trace(t, base)
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 1))
	for _, tt := range []struct {
		name   string
		from   int64
		to     int64
		remove func(*recorder)
	}{
		{"without the barrier before the commit", tr.swap, tr.swapped, func(r *recorder) {
			r.skip = func(c sys.Call, states int) bool { return c.Name == "syncfs" && states == 1 }
		}},
		{"without the barrier after the swap", tr.swapped + 4, tr.swapped + 8, func(r *recorder) {
			r.skip = func(c sys.Call, states int) bool { return c.Name == "syncfs" && states == 2 }
		}},
		{"without the commit's own record being durable", tr.swap, tr.swapped, func(r *recorder) {
			r.skip = func(c sys.Call, states int) bool { return c.Name == "fsync" && states >= 1 }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tried := 0
			for range 40 {
				points := between(tt.from, tt.to, 1, rnd)
				states, _, problem := tp.explore(t, base, anyOrder, points, 70+rnd.IntN(3), rnd.Uint64(), tt.remove)
				tried += states
				if problem != "" {
					t.Logf("found after %d states: %.300s", tried, problem)
					return
				}
			}
			t.Errorf("%d states, and none shows that it is missing", tried)
		})
	}
}

// The journal is synced by itself, because before Linux 5.8 the sync of a whole file
// system does not tell of pages that could not be written: then the page of a
// journal may be lost, and who commits by it leaves a mixture.
func TestJournalThatCannotBeWritten(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	tr := tp.trace(t, base)
	for _, protected := range []bool{true, false} {
		t.Run(fmt.Sprintf("synced %v", protected), func(t *testing.T) {
			problems := 0
			for n := tr.swap; n < tr.swapped; n += 9 {
				r, rec := tp.crash(t, base, n, func(r *recorder) {
					of := func(c sys.Call) bool { return c.Name == "fsync" && c.Path == journal.FileName }
					if protected {
						r.fail = func(c sys.Call, _ int) error {
							if of(c) {
								return syscall.EIO
							}
							return nil
						}
					} else {
						r.skip = func(c sys.Call, _ int) bool { return of(c) }
					}
				})
				// The pages that were not written are gone, whatever was synced after them.
				drop := map[int]bool{}
				for i, e := range rec.effects {
					if e.kind == dataEffect && e.what == "write "+journal.FileName+" " {
						drop[i] = true
					}
				}
				if len(drop) == 0 {
					t.Fatal("nothing was written to the journal")
				}
				must(t, lose(rec.effects, drop, zeros))
				rec.close()
				if p := tp.settle(t, r, false, func() (Recovery, error) { return r.recoverNow(nil) }); p != "" {
					problems++
				}
			}
			if protected != (problems == 0) {
				t.Errorf("synced: %v, and %d problems", protected, problems)
			}
		})
	}
}

// A recovery that trusts the order of the renames: what comes before one that is
// done is taken for done.
func (tp *template) recoverTrustingOrder(r *rig) (Recovery, error) {
	s, done, err := r.openWith(nil)
	if err != nil {
		return Recovery{}, err
	}
	defer done()
	l, err := s.List()
	if err != nil || len(l) == 0 || l[0].State != string(journal.Committing) {
		return Recovery{}, errors.Join(err, errors.New("nothing was committing"))
	}
	tx, err := s.Load(l[0].ID)
	if err != nil {
		return Recovery{}, err
	}
	defer tx.Close()
	m := tx.mover()
	defer m.close()
	last := -1
	for i := range tx.journal.Ops.Len() {
		op, err := tx.journal.Ops.At(i)
		if err != nil {
			return Recovery{}, err
		}
		if op.Staged == "" || op.Kind == journal.Member {
			continue
		}
		at, err := m.spot(op)
		if err != nil {
			return Recovery{}, err
		}
		live, err := look(at.live, at.liveName)
		if err != nil {
			return Recovery{}, err
		}
		if op.New == nil && live == nil || same(op.New, live) {
			last = i
		}
	}
	i := -1
	err = m.forward(func(op *journal.Op) error {
		for i++; tx.journal.Ops.Mark(i).Any(journal.Below); i++ {
		}
		if i <= last && op.Staged != "" {
			return nil
		}
		return m.redo(op)
	})
	return Recovery{Tree: "new"}, err
}

func TestTrustingTheOrderOfRenamesIsWrong(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	tr := tp.trace(t, base)
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 2))
	// What persists in the order of the calls it recovers rightly: the order is what it lacks.
	for n := tr.swap; n < tr.swapped; n += 20 {
		r, rec := tp.crash(t, base, n, nil)
		rec.close()
		if p := tp.settle(t, r, false, func() (Recovery, error) { return tp.recoverTrustingOrder(r) }); p != "" {
			t.Fatalf("in order, crash after call %d: %s", n, p)
		}
	}
	for tried := range 200 {
		r, rec := tp.crash(t, base, tr.swapped-1-rnd.Int64N((tr.swapped-tr.swap)/2), nil)
		drop, variant, ok := choose(rec.effects, anyOrder, 1<<20, rnd)
		if ok {
			must(t, lose(rec.effects, drop, variant))
		}
		rec.close()
		if !ok {
			continue
		}
		if p := tp.settle(t, r, false, func() (Recovery, error) { return tp.recoverTrustingOrder(r) }); p != "" {
			t.Logf("found after %d states: %.200s", tried+1, p)
			return
		}
	}
	t.Error("200 states, and trusting the order did no harm")
}
