package transact

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// small is a rig with one file that is replaced, one that is added, one removed.
func small(t *testing.T) *rig {
	r := newRig(t, t.TempDir())
	write(t, r.live, "etc/conf", "old", 0o644)
	write(t, r.live, "etc/gone", "gone", 0o644)
	write(t, r.live, "etc/mode", "m", 0o644)
	write(t, r.src, "etc/conf", "newer", 0o644)
	write(t, r.src, "etc/added", "added", 0o644)
	write(t, r.src, "etc/newtree/x", "x", 0o644)
	write(t, r.src, "etc/mode", "m", 0o600)
	age(t, r.live, oldTime)
	age(t, r.src, newTime)
	return r
}

// dieIn applies until the state named was entered and the swap has made moves
// renames, then dies.
func (r *rig) dieIn(t testing.TB, state journal.State, moves int) string {
	t.Helper()
	order := []journal.State{journal.Staging, journal.Committing, journal.Swapped, journal.Verified}
	entered, dead := 0, false
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if dead {
			return sys.Fault{Err: errDead}
		}
		if entered > 0 && order[entered-1] == state && c.Name == "renameat2" {
			if moves == 0 {
				dead = true
				return sys.Fault{Err: errDead}
			}
			moves--
		}
		if c.Name == "renameat2" && c.To == journal.StateName {
			entered++
		}
		return sys.Fault{}
	})
	_ = r.run(k, r.compare())
	s, done, err := r.openWith(nil)
	must(t, err)
	defer done()
	l, err := s.List()
	must(t, err)
	if l[0].State != string(state) {
		t.Fatalf("died in state %s; want %s", l[0].State, state)
	}
	return l[0].ID
}

func TestRecoveryTable(t *testing.T) {
	for _, tt := range []struct {
		state   journal.State
		moves   int
		did     string
		tree    string
		pending bool
	}{
		{journal.Staging, 0, "removed", "old", false},
		{journal.Committing, 0, "finished", "new", true},
		{journal.Committing, 2, "finished", "new", true},
		{journal.Swapped, 0, "", "new", true},
	} {
		t.Run(string(tt.state), func(t *testing.T) {
			r := small(t)
			old, want := snapshot(t, r.live), snapshot(t, r.src)
			id := r.dieIn(t, tt.state, tt.moves)
			// The source is not needed.
			must(t, os.Rename(r.src, r.src+".away"))
			for i := range 2 {
				rec, err := r.recoverNow(nil)
				must(t, err)
				if i == 0 {
					want := Recovery{ID: id, Found: string(tt.state), Did: tt.did, Tree: tt.tree, Pending: tt.pending}
					if tt.did == "removed" {
						want.Removed = []string{id}
					}
					if d := cmp.Diff(want, rec); d != "" {
						t.Errorf("recovery (-want +got):\n%s", d)
					}
				} else if rec.Did != "" {
					t.Errorf("the second recovery did %q", rec.Did)
				}
				if tt.tree == "old" {
					sameTree(t, "recovered", old, snapshot(t, r.live))
				} else {
					sameTree(t, "recovered", want, snapshot(t, r.live))
				}
			}
		})
	}
}

// A staged file whose bytes did not reach the disk whole turns recovery round.
func TestWrongDigestInReplayReverses(t *testing.T) {
	r := small(t)
	old := snapshot(t, r.live)
	id := r.dieIn(t, journal.Committing, 1)
	// The same size and mtime, other bytes: what a lost write leaves.
	p := filepath.Join(r.live, Dir, "tx", id, "up/etc/conf")
	st, err := os.Stat(p)
	must(t, err)
	must(t, os.WriteFile(p, []byte("\x00\x00\x00\x00\x00"), 0o644))
	must(t, os.Chtimes(p, st.ModTime(), st.ModTime()))
	rec, err := r.recoverNow(nil)
	must(t, err)
	if rec.Did != "reversed" || rec.Tree != "old" {
		t.Errorf("recovery %+v; want reversed to the old tree", rec)
	}
	sameTree(t, "recovered", old, snapshot(t, r.live))
}

func TestDamagedJournalNeedsAPerson(t *testing.T) {
	r := small(t)
	id := r.dieIn(t, journal.Committing, 1)
	p := filepath.Join(r.live, Dir, "tx", id, journal.FileName)
	b, err := os.ReadFile(p)
	must(t, err)
	must(t, os.WriteFile(p, b[:len(b)/2], 0o600))
	before := snapshot(t, r.live)
	_, err = r.recoverNow(nil)
	if !errors.Is(err, change.ErrNeedsPerson) || !errors.Is(err, journal.ErrCorrupt) || !strings.Contains(err.Error(), id) {
		t.Errorf("error %v; want ErrNeedsPerson and ErrCorrupt that name %s", err, id)
	}
	sameTree(t, "recovery acted on half a journal", before, snapshot(t, r.live))
}

func TestRecoveryGivesUpAfterThreeAttempts(t *testing.T) {
	r := small(t)
	r.dieIn(t, journal.Committing, 1)
	for i := range maxAttempts {
		renames := 0
		k := sys.WithHook(func(c sys.Call) sys.Fault {
			if c.Name == "renameat2" {
				renames++
			}
			if renames > 1 { // the state with its count is written, then it dies
				return sys.Fault{Err: errDead}
			}
			return sys.Fault{}
		})
		if _, err := r.recoverNow(k); err == nil {
			t.Fatalf("attempt %d did not die", i+1)
		}
	}
	before := snapshot(t, r.live)
	_, err := r.recoverNow(nil)
	if !errors.Is(err, change.ErrNeedsPerson) {
		t.Errorf("after %d attempts: error %v; want ErrNeedsPerson", maxAttempts, err)
	}
	sameTree(t, "a refused recovery changed the tree", before, snapshot(t, r.live))
}

func TestRollbackKeepsWhatOthersChanged(t *testing.T) {
	r := small(t)
	old := snapshot(t, r.live)
	s := r.store(nil)
	tx, err := r.apply(s, r.compare())
	must(t, err)
	write(t, r.live, "etc/conf", "their edit", 0o600)  // in place
	write(t, r.live, "etc/gone", "made again", 0o644)  // where one was removed
	write(t, r.live, "etc/newtree/y", "theirs", 0o644) // in a folder that was added
	must(t, os.Remove(filepath.Join(r.live, "etc/added")))
	must(t, os.Chtimes(filepath.Join(r.live, "etc/mode"), newTime, newTime.Add(5)))
	tx, err = s.Load(tx.ID())
	must(t, err)
	must(t, tx.Revert(context.Background()))
	got := snapshot(t, r.live)
	for _, saved := range []struct{ name, content string }{
		{"etc/conf.liveupd-saved", "their edit"}, {"etc/gone.liveupd-saved", "made again"}, {"etc/newtree.liveupd-saved/y", "theirs"},
	} {
		b, err := os.ReadFile(filepath.Join(r.live, saved.name))
		if err != nil || string(b) != saved.content {
			t.Errorf("%s holds %q, %v; want %q", saved.name, b, err, saved.content)
		}
	}
	for p := range got {
		if strings.Contains(p, ".liveupd-saved") {
			delete(got, p)
		}
	}
	// A file whose metadata alone was the update's keeps the time of their write.
	delete(old, "etc/mode")
	delete(got, "etc/mode")
	sameTree(t, "the rest is not the old tree", old, got)
	for _, name := range []string{"/etc/conf", "/etc/gone", "/etc/newtree", "/etc/mode"} {
		if !slices.ContainsFunc(tx.Warnings(), func(w string) bool { return strings.Contains(w, name+" ") }) {
			t.Errorf("no warning names %s: %q", name, tx.Warnings())
		}
	}
}

// A second version of theirs does not replace the first.
func TestSavedNamesDoNotCollide(t *testing.T) {
	r := small(t)
	s := r.store(nil)
	write(t, r.live, "etc/conf.liveupd-saved", "earlier", 0o644)
	d := r.compare()
	d.Entries = slices.DeleteFunc(d.Entries, func(e change.Entry) bool { return strings.HasSuffix(e.Path, savedSuffix) })
	tx, err := r.apply(s, d)
	must(t, err)
	write(t, r.live, "etc/conf", "their edit", 0o644)
	tx, err = s.Load(tx.ID())
	must(t, err)
	must(t, tx.Revert(context.Background()))
	for name, want := range map[string]string{"etc/conf": "old", "etc/conf.liveupd-saved": "earlier", "etc/conf.liveupd-saved.1": "their edit"} {
		if b, err := os.ReadFile(filepath.Join(r.live, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v; want %q", name, b, err, want)
		}
	}
}

// Bit rot in what was kept is found before anything moves.
func TestRollbackChecksWhatWasKept(t *testing.T) {
	r := small(t)
	s := r.store(nil)
	tx, err := r.apply(s, r.compare())
	must(t, err)
	p := filepath.Join(r.live, Dir, "tx", tx.ID(), "up/etc/conf")
	st, err := os.Stat(p)
	must(t, err)
	must(t, os.WriteFile(p, []byte("OLD"), 0o644))
	must(t, os.Chtimes(p, st.ModTime(), st.ModTime()))
	before := snapshot(t, r.live)
	tx, err = s.Load(tx.ID())
	must(t, err)
	if err := tx.Revert(context.Background()); !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), "/etc/conf") {
		t.Errorf("error %v; want ErrVerification that names /etc/conf", err)
	}
	if tx.State() != journal.Verified {
		t.Errorf("state %s; want verified", tx.State())
	}
	sameTree(t, "a refused rollback changed the tree", before, snapshot(t, r.live))
}

func TestGenerations(t *testing.T) {
	r := newRig(t, t.TempDir())
	write(t, r.live, "v", "0", 0o644)
	s := r.store(nil)
	var ids []string
	for _, v := range []string{"1", "22", "333", "4444"} {
		write(t, r.src, "v", v, 0o644)
		d := r.compare()
		tx, err := r.apply(s, d)
		must(t, err)
		ids = append(ids, tx.ID())
	}
	if !slices.IsSorted(ids) {
		t.Errorf("IDs do not sort by time: %q", ids)
	}
	first, err := s.Load(ids[0])
	must(t, err)
	if err := first.Revert(context.Background()); err == nil || !strings.Contains(err.Error(), ids[3]+", "+ids[2]+", "+ids[1]) {
		t.Errorf("rolling back the oldest: error %v; want one that names the newer ones", err)
	}
	freed, err := s.Collect(2)
	must(t, err)
	slices.Sort(freed)
	if d := cmp.Diff(ids[:2], freed); d != "" {
		t.Errorf("collected (-want +got):\n%s", d)
	}
	list, err := s.List()
	must(t, err)
	type line struct {
		ID       string
		Retained bool
	}
	var got []line
	for _, g := range list {
		if g.State != "verified" || g.Changes.Replaced != 1 || g.Source == "" {
			t.Errorf("listed %+v", g)
		}
		got = append(got, line{g.ID, g.Retained})
	}
	want := []line{{ids[3], true}, {ids[2], true}, {ids[1], false}, {ids[0], false}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("list (-want +got):\n%s", d)
	}
	// Read sees the same.
	ro, err := Read(r.volumes())
	must(t, err)
	if again, err := ro.List(); err != nil || cmp.Diff(list, again) != "" {
		t.Errorf("Read lists otherwise: %v %s", err, cmp.Diff(list, again))
	}
	for _, v := range []struct{ id, content string }{{ids[3], "333"}, {ids[2], "22"}} {
		tx, err := s.Load(v.id)
		must(t, err)
		must(t, tx.Revert(context.Background()))
		if b, _ := os.ReadFile(filepath.Join(r.live, "v")); string(b) != v.content {
			t.Errorf("after rolling back %s: %q; want %q", v.id, b, v.content)
		}
	}
	// The newest verified one always stays.
	if freed, err := s.Collect(0); err != nil || len(freed) != 2 {
		t.Errorf("Collect(0) = %q, %v; want the two that were rolled back", freed, err)
	}
}

func TestCollectSurvivesDeathAtEveryCall(t *testing.T) {
	for n := int64(1); ; n++ {
		r := newRig(t, t.TempDir())
		write(t, r.live, "v", "0", 0o644)
		s := r.store(nil)
		for _, v := range []string{"1", "22", "333"} {
			write(t, r.src, "v", v, 0o644)
			_, err := r.apply(s, r.compare())
			must(t, err)
		}
		live := snapshot(t, r.live)
		before, err := s.List()
		must(t, err)
		var calls atomic.Int64
		s.k = deadAfter(n, &calls)
		_, cerr := s.Collect(1)
		s.k = nil
		_, err = s.Recover(context.Background())
		must(t, err)
		_, err = s.Collect(1)
		must(t, err)
		sameTree(t, "collecting changed the tree", live, snapshot(t, r.live))
		after, err := s.List()
		must(t, err)
		for i := range before {
			before[i].Retained = i == 0
			before[i].ThisBoot = i == 0 // what is removed waits for nothing: later ones carry it on
		}
		if d := cmp.Diff(before, after); d != "" {
			t.Fatalf("dead at call %d: the list (-want +got):\n%s", n, d)
		}
		if _, garbage, _ := s.vols[0].ids(); len(garbage) > 0 {
			t.Fatalf("dead at call %d: garbage %q", n, garbage)
		}
		if cerr == nil {
			break
		}
	}
}

// An old file with a further name that the update does not know keeps none under
// .liveupd: cron refuses a table with two links.
func TestOldFileWithAnotherNameIsDetached(t *testing.T) {
	r := newRig(t, t.TempDir())
	write(t, r.live, "a", "old", 0o644)
	setxattr(t, r.live, "a", "user.x", "1")
	must(t, os.Mkdir(filepath.Join(r.live, "home"), 0o755))
	must(t, os.Link(filepath.Join(r.live, "a"), filepath.Join(r.live, "home/a")))
	age(t, r.live, oldTime)
	write(t, r.src, "a", "newer", 0o644)
	d := r.compare()
	d.Entries = slices.DeleteFunc(d.Entries, func(e change.Entry) bool { return e.Path != "/a" })
	live := r.nodes(r.live)
	d.Entries = []change.Entry{{Path: "/a", Op: change.Replace, Old: live["/a"], New: r.nodes(r.src)["/a"], From: "/a"}}
	s := r.store(nil)
	tx, err := r.apply(s, d)
	must(t, err)
	r.aloneInStore()
	if n := r.nodes(r.live)["/home/a"]; n.Nlink != 1 {
		t.Errorf("the other name has %d links; want 1", n.Nlink)
	}
	tx, err = s.Load(tx.ID())
	must(t, err)
	must(t, tx.Revert(context.Background()))
	got := r.nodes(r.live)["/a"]
	if got.Digest != live["/a"].Digest || got.MtimeNS != live["/a"].MtimeNS || string(got.Xattrs["user.x"]) != "1" {
		t.Errorf("rolled back to %+v; want %+v", got, live["/a"])
	}
}

func TestContentFromTheLiveRoot(t *testing.T) {
	r := newRig(t, t.TempDir())
	write(t, r.live, "a", "shared", 0o644)
	must(t, os.Link(filepath.Join(r.live, "a"), filepath.Join(r.live, "b")))
	live := r.nodes(r.live)
	fresh := *live["/b"]
	fresh.Link, fresh.Nlink = "", 1
	d := &change.Delta{Entries: []change.Entry{
		{Path: "/a", Op: change.Remove, Old: live["/a"]},
		{Path: "/b", Op: change.Replace, Old: live["/b"], New: &fresh, Aspects: change.AspectLinks, From: "/a", FromLive: true},
	}}
	_, err := r.apply(r.store(nil), d)
	must(t, err)
	r.aloneInStore()
	if n := r.nodes(r.live)["/b"]; n.Nlink != 1 || n.Digest != live["/b"].Digest {
		t.Errorf("/b is %+v", n)
	}
}

func TestStrayFilesOfValidatorsAreNotCommitted(t *testing.T) {
	r := small(t)
	want := snapshot(t, r.src)
	s := r.store(nil)
	tx, err := s.Begin(Header{})
	must(t, err)
	src, err := sys.OpenRoot(r.src)
	must(t, err)
	defer src.Close()
	must(t, tx.Stage(context.Background(), r.compare(), src, nil))
	must(t, tx.Prepare(context.Background(), nil))
	up := filepath.Join(r.live, Dir, "tx", tx.ID(), "up")
	write(t, up, "etc/newtree/__pycache__/x.pyc", "stray", 0o644)
	write(t, up, "etc/stray", "stray", 0o644)
	_, err = tx.Commit(context.Background())
	must(t, err)
	sameTree(t, "a stray file was committed", want, snapshot(t, r.live))
	must(t, tx.Verified())

	r = small(t)
	old := snapshot(t, r.live)
	s = r.store(nil)
	tx, err = s.Begin(Header{})
	must(t, err)
	must(t, tx.Stage(context.Background(), r.compare(), src, nil))
	must(t, tx.Prepare(context.Background(), nil))
	write(t, filepath.Join(r.live, Dir, "tx", tx.ID(), "up"), "etc/conf", "EVIL!", 0o644)
	if _, err := tx.Commit(context.Background()); !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), "/etc/conf") {
		t.Errorf("a staged file was altered: error %v; want ErrVerification that names /etc/conf", err)
	}
	sameTree(t, "a refused commit changed the tree", old, snapshot(t, r.live))
}

func TestLockNamesItsHolder(t *testing.T) {
	r := small(t)
	a, b := r.store(nil), r.store(nil)
	must(t, a.Lock())
	if err := b.Lock(); !errors.Is(err, change.ErrLocked) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("error %v; want ErrLocked that names the process", err)
	}
	a.Close()
	must(t, b.Lock())
}

func TestBeginRefusesBesideAnUnfinishedOne(t *testing.T) {
	r := small(t)
	id := r.dieIn(t, journal.Committing, 1)
	if _, err := r.store(nil).Begin(Header{}); err == nil || !strings.Contains(err.Error(), id) {
		t.Errorf("error %v; want one that names %s", err, id)
	}
}
