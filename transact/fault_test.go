package transact

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

var errDead = errors.New("the process is dead")

// deadAfter is a kernel in which the n-th mutating call and all later ones fail:
// what a process that was killed there would have done. calls counts them.
func deadAfter(n int64, calls *atomic.Int64) *sys.Kernel {
	return sys.WithHook(func(sys.Call) sys.Fault {
		if calls.Add(1) >= n {
			return sys.Fault{Err: errDead}
		}
		return sys.Fault{}
	})
}

// failOnce is a kernel in which the n-th mutating call alone fails, or is cut short.
func failOnce(n int64, fault sys.Fault, calls *atomic.Int64) *sys.Kernel {
	return sys.WithHook(func(sys.Call) sys.Fault {
		if calls.Add(1) == n {
			return fault
		}
		return sys.Fault{}
	})
}

// template is the two trees of everyChange, made once and copied for each run.
type template struct {
	dir      string
	old, new map[string]string
	mounts   []string // of volumes; plain folders will do
	src      map[string]*change.Node
}

func makeTemplate(t testing.TB, base string) *template {
	dir := filepath.Join(base, "template")
	must(t, os.Mkdir(dir, 0o755))
	r := newRig(t, dir)
	r.everyChange()
	return &template{dir: dir, old: snapshot(t, r.live), new: snapshot(t, r.src), mounts: r.mounts, src: r.nodes(r.src)}
}

// instance copies the template's live tree; the source is shared.
func (tp *template) instance(t testing.TB, base string) *rig {
	t.Helper()
	must(t, os.RemoveAll(base))
	must(t, os.Mkdir(base, 0o755))
	return tp.copyTo(t, base)
}

func (tp *template) copyTo(t testing.TB, base string) *rig {
	t.Helper()
	r := &rig{t: t, live: filepath.Join(base, "live"), src: filepath.Join(tp.dir, "src"), mounts: tp.mounts, srcNodes: tp.src}
	if out, err := exec.Command("cp", "-aT", filepath.Join(tp.dir, "live"), r.live).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	// The stores' folders are made once in a root's life; the mtime of the folder
	// that they are made in, which that moves and puts back, is in no journal.
	s, done, err := r.openWith(nil)
	must(t, err)
	for _, v := range s.vols {
		must(t, s.makeHome(v))
	}
	done()
	return r
}

// fastBase is a folder on a tmpfs: the faults are those of the calls, not of a disk.
func fastBase(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "liveupd-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := syscall.Setxattr(dir, "user.x", []byte("1"), 0); err != nil {
		dir = t.TempDir()
	}
	return dir
}

// openWith opens volumes that close with the run, not with the test.
func (r *rig) openWith(k *sys.Kernel) (*Store, func(), error) {
	var vols []Volume
	for _, m := range r.mounts {
		fd, err := sys.OpenRoot(filepath.Join(r.live, m))
		if err != nil {
			return nil, nil, err
		}
		vols = append(vols, Volume{Mount: m, Dir: fd})
	}
	closeVols := func() {
		for _, v := range vols {
			v.Dir.Close()
		}
	}
	s, err := Open(k, vols)
	if err != nil {
		closeVols()
		return nil, nil, err
	}
	s.SetOptions(Options{Workers: 1, Ballast: 1 << 20})
	return s, func() { s.Close(); closeVols() }, nil
}

// run applies with a kernel; the error is the fault's.
func (r *rig) run(k *sys.Kernel, d *change.Delta) error {
	s, done, err := r.openWith(k)
	if err != nil {
		return err
	}
	defer done()
	_, err = r.apply(s, d)
	return err
}

// recoverNow is what the next process does, twice: the second time changes nothing.
func (r *rig) recoverNow(k *sys.Kernel) (Recovery, error) {
	s, done, err := r.openWith(k)
	if err != nil {
		return Recovery{}, err
	}
	defer done()
	return s.Recover(context.Background())
}

// which tells which tree is there.
func which(old, new, got map[string]string) string {
	switch {
	case reflect.DeepEqual(got, old):
		return "old"
	case reflect.DeepEqual(got, new):
		return "new"
	}
	return "a mixture"
}

// verdict is which; a mixture it describes, which takes longer.
func verdict(old, new, got map[string]string) string {
	v := which(old, new, got)
	if v == "a mixture" {
		v += fmt.Sprintf("; against the old tree:\n%s\nagainst the new tree:\n%s", cmp.Diff(old, got), cmp.Diff(new, got))
	}
	return v
}

func TestDeathAtEveryCallLeavesOldOrNew(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	var total atomic.Int64
	r := tp.instance(t, filepath.Join(base, "count"))
	must(t, r.run(failOnce(-1, sys.Fault{}, &total), r.compare()))
	if v := verdict(tp.old, tp.new, snapshot(t, r.live)); v != "new" {
		t.Fatal(v)
	}
	seen := map[string]int{}
	mixed := 0
	stride := int64(1)
	if testing.Short() {
		stride = 7
	}
	for n := int64(1); n <= total.Load(); n += stride {
		var calls atomic.Int64
		r := tp.instance(t, filepath.Join(base, "run"))
		err := r.run(deadAfter(n, &calls), r.compare())
		if err == nil {
			// Tidying after "verified" only warns.
			seen["verified"]++
		}
		before := snapshot(t, r.live)
		if which(tp.old, tp.new, before) == "a mixture" {
			mixed++ // what recovery is for
		}
		rec, err := r.recoverNow(nil)
		if err != nil {
			t.Fatalf("dead at call %d: %v", n, err)
		}
		after := snapshot(t, r.live)
		v := verdict(tp.old, tp.new, after)
		if v != "old" && v != "new" {
			t.Fatalf("dead at call %d: recovery %+v left %s", n, rec, v)
		}
		if rec.Tree != "" && rec.Tree != v {
			t.Fatalf("dead at call %d: recovery says the %s tree, it is the %s one", n, rec.Tree, v)
		}
		seen[v]++
		if _, err := r.recoverNow(nil); err != nil {
			t.Fatalf("dead at call %d: second recovery: %v", n, err)
		}
		sameTree(t, fmt.Sprintf("dead at call %d: the second recovery changed the tree", n), after, snapshot(t, r.live))
		r.t = t
		r.aloneInStore()
	}
	t.Logf("%d mutating calls, each the last one once: %v; %d were mixtures before recovery", total.Load(), seen, mixed)
	// The negative control: without recovery the same deaths leave mixtures.
	if mixed == 0 || seen["old"] == 0 || seen["new"] == 0 {
		t.Errorf("the faults do not reach the swap: %d mixtures, %v", mixed, seen)
	}
}

func TestOneFailingCallLeavesOldOrNew(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	var total atomic.Int64
	r := tp.instance(t, filepath.Join(base, "count"))
	must(t, r.run(failOnce(-1, sys.Fault{}, &total), r.compare()))
	s := seed(t)
	for i, fault := range []sys.Fault{{Err: syscall.ENOSPC}, {Err: syscall.EIO}, {Err: syscall.EDQUOT}, {Err: syscall.EINTR}, {Short: 1}} {
		stride := int64(11)
		if testing.Short() {
			stride = 37
		}
		if long() {
			stride = 1
		}
		seen := map[string]int{}
		for n := 1 + int64(s>>(8*i))&0xff%stride; n <= total.Load(); n += stride {
			var calls atomic.Int64
			r := tp.instance(t, filepath.Join(base, "run"))
			err := r.run(failOnce(n, fault, &calls), r.compare())
			if err != nil && (fault.Short > 0 || errors.Is(fault.Err, syscall.EINTR)) {
				t.Fatalf("%v at call %d: %v; want it overcome", fault, n, err)
			}
			v := which(tp.old, tp.new, snapshot(t, r.live))
			switch {
			case err == nil && v != "new":
				t.Fatalf("%v at call %d: no error, but the tree is %s", fault, n, v)
			case err != nil && !errors.Is(err, change.ErrNeedsPerson) && v != "old":
				// An error after Verified is about leftovers; the state says so.
				if s, done, oerr := r.openWith(nil); oerr == nil {
					l, _ := s.List()
					done()
					if v == "new" && len(l) > 0 && l[0].State != string(journal.RolledBack) {
						seen["new, error in a later state"]++
						break
					}
				}
				t.Fatalf("%v at call %d: error %v, but the tree is %s", fault, n, err, v)
			}
			if _, err := r.recoverNow(nil); err != nil {
				t.Fatalf("%v at call %d: recovery: %v", fault, n, err)
			}
			v = verdict(tp.old, tp.new, snapshot(t, r.live))
			if v != "old" && v != "new" {
				t.Fatalf("%v at call %d: after recovery %s", fault, n, v)
			}
			seen[v]++
		}
		t.Logf("%v at every call of %d, stride %d: %v", fault, total.Load(), stride, seen)
	}
}

// TestKill kills a real process by SIGKILL in each state.
func TestKill(t *testing.T) {
	if os.Getenv("LIVEUPD_KILL") != "" {
		killChild(t)
		return
	}
	base := t.TempDir()
	tp := makeTemplate(t, base)
	for _, at := range []string{"mkdirat", "write", "syncfs", "state committing", "swap 1", "swap 9", "swap 30", "state swapped", "unlinkat"} {
		t.Run(at, func(t *testing.T) {
			r := tp.instance(t, filepath.Join(base, "run"))
			cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
			cmd.Env = append(os.Environ(), "LIVEUPD_KILL="+at, "LIVEUPD_LIVE="+r.live, "LIVEUPD_SRC="+r.src)
			out, err := cmd.CombinedOutput()
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v: %s", err, out)
			}
			rec, err := r.recoverNow(nil)
			must(t, err)
			v := verdict(tp.old, tp.new, snapshot(t, r.live))
			if v != "old" && v != "new" {
				t.Fatalf("recovery %+v left %s", rec, v)
			}
			t.Logf("found %q, did %q: the %s tree", rec.Found, rec.Did, v)
		})
	}
}

func killChild(t *testing.T) {
	at := os.Getenv("LIVEUPD_KILL")
	r := &rig{t: t, live: os.Getenv("LIVEUPD_LIVE"), src: os.Getenv("LIVEUPD_SRC"), mounts: []string{"/"}}
	swaps, states := 0, 0
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		now := c.Name
		if c.Name == "renameat2" && c.To == journal.StateName {
			states++
			now = []string{"", "state staging", "state committing", "state swapped", "state verified"}[states]
		} else if c.Name == "renameat2" && states == 2 {
			swaps++
			now = fmt.Sprintf("swap %d", swaps)
		}
		if now == at && (!strings.HasPrefix(at, "unlink") || states == 4) {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return sys.Fault{}
	})
	t.Fatal("not killed: ", r.run(k, r.compare()))
}
