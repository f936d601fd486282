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
	return &template{dir: dir, old: snapshot(t, r.live), new: snapshot(t, r.src), mounts: []string{"/", "/var", "/boot"}, src: r.nodes(r.src)}
}

// crash runs an act up to a call, loses power there, and gives what was recorded.
func (tp *template) crash(t testing.TB, base string, a act, until int64, with func(*recorder)) (*rig, *recorder) {
	t.Helper()
	r := tp.instance(t, filepath.Join(base, "run"))
	must(t, a.before(r))
	rec := &recorder{t: t, root: r.live, mounts: tp.mounts, stash: filepath.Join(base, "stash"), until: until}
	must(t, os.RemoveAll(rec.stash))
	must(t, os.Mkdir(rec.stash, 0o700))
	if with != nil {
		with(rec)
	}
	_ = a.run(r, sys.WithHook(rec.hook), func() { rec.promised = true })
	// The last call's folder, if it made one.
	rec.until = 0
	rec.hook(sys.Call{})
	return r, rec
}

// applyNoting is apply; it says when Commit has returned.
func (r *rig) applyNoting(k *sys.Kernel, committed func()) error {
	s, done, err := r.openWith(k)
	if err != nil {
		return err
	}
	defer done()
	d := r.compare()
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
// want is the tree that was promised, "" for none yet.
func (tp *template) settle(t testing.TB, r *rig, want string, recovery func() (Recovery, error)) (problem string) {
	t.Helper()
	found, err := recovery()
	if err != nil {
		return fmt.Sprintf("recovery: %v", err)
	}
	v := verdict(tp.old, tp.new, snapshot(t, r.live))
	switch {
	case v != "old" && v != "new":
		return fmt.Sprintf("recovery %+v left %s", found, v)
	case want != "" && v != want:
		return fmt.Sprintf("the call had returned and promised the %s tree, and it is the %s one", want, v)
	case found.Tree != "" && found.Tree != v:
		return fmt.Sprintf("recovery says the %s tree, it is the %s one", found.Tree, v)
	}
	return ""
}

// explorer tries crash states of a model.
type explorer struct {
	tp    *template
	base  string
	act   act
	model crashModel
	seed  uint64
	each  int  // states drawn for each crash point
	all   bool // also all that are not drawn; else they are a half of each
	with  func(*recorder)
	// states that were tried, and those that were mixtures before recovery.
	states, mixtures int
}

// explore gives the first problem of a state; "" where there is none.
func (x *explorer) explore(t *testing.T, points []int64) (problem string) {
	t.Helper()
	for _, n := range points {
		limit := x.each
		for i := 0; i < limit; i++ {
			rnd := rand.New(rand.NewPCG(x.seed, uint64(n)<<20|uint64(i)))
			r, rec := x.tp.crash(t, x.base, x.act, n, x.with)
			c := newChooser(rec.effects, x.model)
			fixed, j := c.systematic(), i
			switch {
			case x.all:
				limit = fixed + x.each
			case i%2 == 0:
				j = rnd.IntN(fixed)
			default:
				j = fixed
			}
			l, ok := c.choose(j, rnd)
			if ok {
				if err := lose(rec.effects, l); err != nil {
					rec.close()
					t.Fatalf("%s: crash of %s after call %d, state %d: cannot be made: %v", x.model, x.act.name, n, i, err)
				}
			}
			want := ""
			if rec.promised {
				want = x.act.want
			}
			what := fmt.Sprintf("%s: crash of %s after call %d, state %d of seed %d, %d effects lost", x.model, x.act.name, n, i, x.seed, len(l.drop))
			for i := range l.drop {
				if len(l.drop) <= 5 {
					what += "; " + rec.effects[i].what
				}
			}
			rec.close()
			if !ok {
				continue
			}
			x.states++
			if which(x.tp.old, x.tp.new, snapshot(t, r.live)) == "a mixture" {
				x.mixtures++
			}
			if p := x.tp.settle(t, r, want, func() (Recovery, error) { return r.recoverNow(nil) }); p != "" {
				return what + ": " + p
			}
			after := snapshot(t, r.live)
			if _, err := r.recoverNow(nil); err != nil {
				return what + ": second recovery: " + err.Error()
			}
			sameTree(t, what+": the second recovery changed the tree", after, snapshot(t, r.live))
		}
	}
	return ""
}

// trace is a whole run: how many calls it makes and where its phases begin.
type trace struct{ calls, prepared, swap, swapped int64 }

func (tp *template) trace(t *testing.T, base string, a act) trace {
	var tr trace
	var rec *recorder
	_, rec = tp.crash(t, base, a, 1<<40, func(rec *recorder) {
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
	if !rec.promised {
		t.Fatalf("%s without a crash did not go through", a.name)
	}
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
	for _, model := range []crashModel{journalled, logged, anyOrder} {
		t.Run(string(model), func(t *testing.T) {
			t.Parallel()
			base := fastBase(t)
			tp := crashTemplate(t, base)
			rnd := rand.New(rand.NewPCG(s, 0))
			for i, act := range acts {
				tr := tp.trace(t, base, act)
				x := &explorer{tp: tp, base: base, act: act, model: model, seed: s, each: 4}
				few, many := 3, 12
				if long() {
					few, many, x.each = 30, 8, 12
				}
				if testing.Short() {
					few, many, x.each = 1, 4, 2
				}
				tried := 0
				try := func(from, to int64, most int, all bool) {
					x.all = all
					points := between(from, to, most, rnd)
					tried += len(points)
					if problem := x.explore(t, points); problem != "" {
						t.Fatal(problem)
					}
				}
				if i == 0 {
					try(1, tr.prepared, few, false)
					// The swap matters most: every point of it in the long form.
					most := many
					if long() {
						most = 1 << 30
					}
					try(tr.prepared, tr.swapped+8, most, long())
					try(tr.swapped+8, tr.calls+1, few, false)
				} else {
					try(1, tr.calls+1, many, long())
				}
				t.Logf("%s: %s, %d crash points of %d calls, %d states, %d of them mixtures before recovery", model, act.name, tried, tr.calls, x.states, x.mixtures)
				if x.mixtures == 0 && act.name == "apply" && !testing.Short() {
					t.Error("no state was a mixture before recovery: the suite does not reach the swap")
				}
			}
		})
	}
}

// Each protection, taken away, is missed: else the suite would prove nothing.
func TestCrashStatesWithoutProtection(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	tr := tp.trace(t, base, acts[0])
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 1))
	fsyncs := func(states int) func(*recorder) {
		return func(r *recorder) {
			r.skip = func(c sys.Call, n int) bool { return c.Name == "fsync" && n >= states }
		}
	}
	for _, tt := range []struct {
		name     string
		act      act
		from, to int64
		remove   func(*recorder)
	}{
		{"without the barrier before the commit", acts[0], tr.swap, tr.swapped, func(r *recorder) {
			r.skip = func(c sys.Call, states int) bool { return c.Name == "syncfs" && states == 1 }
		}},
		{"without the barrier after the swap", acts[0], tr.swapped + 4, tr.swapped + 8, func(r *recorder) {
			r.skip = func(c sys.Call, states int) bool { return c.Name == "syncfs" && states == 2 }
		}},
		{"without the commit's own record being durable", acts[0], tr.swap, tr.swapped, fsyncs(1)},
		{"without the rollback's own record being durable", acts[1], 8, 60, fsyncs(0)},
		{"without the barrier after the rollback", acts[1], 1 << 30, 1<<30 + 1, func(r *recorder) {
			r.skip = func(c sys.Call, _ int) bool { return c.Name == "syncfs" }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tried := 0
			for range 60 {
				x := &explorer{tp: tp, base: base, act: tt.act, model: anyOrder, seed: rnd.Uint64(), each: 6, with: tt.remove}
				problem := x.explore(t, between(tt.from, tt.to, 1, rnd))
				tried += x.states
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
	tr := tp.trace(t, base, acts[0])
	for _, protected := range []bool{true, false} {
		t.Run(fmt.Sprintf("synced %v", protected), func(t *testing.T) {
			problems := 0
			for n := tr.swap; n < tr.swapped; n += 9 {
				r, rec := tp.crash(t, base, acts[0], n, func(r *recorder) {
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
				must(t, lose(rec.effects, loss{drop: drop, variant: zeros}))
				rec.close()
				if p := tp.settle(t, r, "", func() (Recovery, error) { return r.recoverNow(nil) }); p != "" {
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
	tr := tp.trace(t, base, acts[0])
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 2))
	// What persists in the order of the calls it recovers rightly: the order is what it lacks.
	for n := tr.swap; n < tr.swapped; n += 20 {
		r, rec := tp.crash(t, base, acts[0], n, nil)
		rec.close()
		if p := tp.settle(t, r, "", func() (Recovery, error) { return tp.recoverTrustingOrder(r) }); p != "" {
			t.Fatalf("in order, crash after call %d: %s", n, p)
		}
	}
	for tried := range 200 {
		r, rec := tp.crash(t, base, acts[0], tr.swapped-1-rnd.Int64N((tr.swapped-tr.swap)/2), nil)
		l, ok := newChooser(rec.effects, anyOrder).choose(1<<20, rnd)
		if ok {
			must(t, lose(rec.effects, l))
		}
		rec.close()
		if !ok {
			continue
		}
		if p := tp.settle(t, r, "", func() (Recovery, error) { return tp.recoverTrustingOrder(r) }); p != "" {
			t.Logf("found after %d states: %.200s", tried+1, p)
			return
		}
	}
	t.Error("200 states, and trusting the order did no harm")
}
