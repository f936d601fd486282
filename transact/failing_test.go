package transact

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// TestOneFailingCallOnTheWayBack has one call of a rollback, a collection, a recovery
// or the recovery of a rollback fail, and not the process: what was done by then is
// whole or is told to be unfinished, and the next recovery ends it.
func TestOneFailingCallOnTheWayBack(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	s := seed(t)
	for a, act := range acts[1:] {
		var total atomic.Int64
		r := tp.instance(t, filepath.Join(base, "count"))
		must(t, act.before(r))
		must(t, act.run(r, failOnce(-1, sys.Fault{}, &total), func() {}))
		stride := int64(9)
		if testing.Short() {
			stride = 31
		}
		if long() {
			stride = 1
		}
		for i, fault := range []sys.Fault{{Err: syscall.ENOSPC}, {Err: syscall.EIO}, {Err: syscall.EDQUOT}, {Err: syscall.EINTR}, {Short: 1}} {
			seen := map[string]int{}
			for n := 1 + int64(s>>(8*((a+i)%8)))&0xff%stride; n <= total.Load(); n += stride {
				var calls atomic.Int64
				r := tp.instance(t, filepath.Join(base, "run"))
				must(t, act.before(r))
				err := act.run(r, failOnce(n, fault, &calls), func() {})
				if err != nil && (fault.Short > 0 || errors.Is(fault.Err, syscall.EINTR)) {
					t.Fatalf("%s, %v at call %d: %v; want it overcome", act.name, fault, n, err)
				}
				v := which(tp.old, tp.new, snapshot(t, r.live))
				// A recovery that meets an error in the middle of its way forward turns round.
				either := act.want == "new" && fault.Err != nil
				switch {
				case err == nil && v != act.want && (!either || v != "old"):
					t.Fatalf("%s, %v at call %d: no error, but the tree is %s", act.name, fault, n, v)
				case err != nil && !errors.Is(err, change.ErrNeedsPerson) && v == "a mixture" && !act.cut:
					t.Fatalf("%s, %v at call %d: error %v, but the tree is %s", act.name, fault, n, err, v)
				case err != nil:
					seen["error"]++
				}
				rec, rerr := r.recoverNow(nil)
				if rerr != nil {
					t.Fatalf("%s, %v at call %d (%v): recovery: %v", act.name, fault, n, err, rerr)
				}
				after := verdict(tp.old, tp.new, snapshot(t, r.live))
				switch {
				case !strings.Contains(act.allowed, after) && (!either || after != "old"):
					t.Fatalf("%s, %v at call %d (%v): recovery %+v left %s", act.name, fault, n, err, rec, after)
				case err == nil && after != v:
					t.Fatalf("%s, %v at call %d: no error, and the next recovery made the %s tree of the %s one", act.name, fault, n, after, v)
				}
				seen[after]++
			}
			t.Logf("%s: %v at every call of %d, stride %d: %v", act.name, fault, total.Load(), stride, seen)
		}
	}
}

// mounted is an instance whose volumes are file systems of their own.
func (tp *template) mounted(t testing.TB, base string) *rig {
	t.Helper()
	for _, m := range tp.mounts[1:] {
		point := filepath.Join(base, "live", m)
		if err := syscall.Unmount(point, 0); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("cannot unmount %s: %v", point, err)
		}
	}
	must(t, os.RemoveAll(base))
	for _, m := range tp.mounts[1:] {
		point := filepath.Join(base, "live", m)
		must(t, os.MkdirAll(point, 0o755))
		if err := syscall.Mount("tmpfs", point, "tmpfs", 0, "size=64m,mode=0755"); err != nil {
			t.Skipf("cannot mount a tmpfs here: %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(point, 0); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("cannot unmount %s: %v", point, err)
			}
		})
	}
	return tp.copyTo(t, base)
}

// TestDeathOnSeparateFileSystems has /var and /boot be mounts: a name that crosses from one
// to another is EXDEV there, which the plain folders of the other suites do not tell.
func TestDeathOnSeparateFileSystems(t *testing.T) {
	base := fastBase(t)
	tp := crashTemplate(t, base)
	for _, act := range acts {
		t.Run(act.name, func(t *testing.T) {
			stride := int64(17)
			if long() {
				stride = 1
			}
			seen := map[string]int{}
			for n := int64(1); ; n += stride {
				var calls atomic.Int64
				r := tp.mounted(t, filepath.Join(base, "mounted-"+act.name))
				must(t, act.before(r))
				err := act.run(r, deadAfter(n, &calls), func() {})
				rec, rerr := r.recoverNow(nil)
				if rerr != nil {
					t.Fatalf("dead at call %d: %v", n, rerr)
				}
				v := verdict(tp.old, tp.new, snapshot(t, r.live))
				if !strings.Contains(act.allowed, v) || err == nil && v != act.want {
					t.Fatalf("dead at call %d (%v): recovery %+v left %s", n, err, rec, v)
				}
				seen[v]++
				if calls.Load() < n {
					break
				}
			}
			t.Logf("%s: stride %d: %v", act.name, stride, seen)
		})
	}
}
