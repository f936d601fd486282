package transact

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// filler is the other program that takes all that a file system has.
type filler struct {
	t   testing.TB
	dir string
}

func (f filler) blocks() {
	must(f.t, os.MkdirAll(f.dir, 0o700))
	out, err := os.OpenFile(filepath.Join(f.dir, "blocks"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(f.t, err)
	defer out.Close()
	// What cannot be written at once may still be in parts, and what seems full may not be.
	for size := 4 << 20; size >= 512; size /= 2 {
		buf := make([]byte, size)
		for {
			_, err := out.Write(buf)
			if err == nil {
				continue
			}
			if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
				f.t.Fatal(err)
			}
			break
		}
		if size == 4<<20 || size == 512 {
			_ = out.Sync() // delayed allocation decides only now; ENOSPC is what is wanted
		}
	}
}

func (f filler) inodes() {
	must(f.t, os.MkdirAll(f.dir, 0o700))
	for i := 0; ; i++ {
		out, err := os.OpenFile(filepath.Join(f.dir, fmt.Sprint(i)), os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, syscall.ENOSPC) {
			return
		}
		must(f.t, err)
		must(f.t, out.Close())
	}
}

func (f filler) empty() { must(f.t, os.RemoveAll(f.dir)) }

// moments are when the disk fills up. committed: by then nothing may stop the update.
var moments = []struct {
	name      string
	when      func(c sys.Call, states, moved int) bool
	committed bool
}{
	{"begin", func(sys.Call, int, int) bool { return true }, false},
	{"staging", func(c sys.Call, _, _ int) bool { return c.Name == "openat" && strings.Contains(c.Path, "big") }, false},
	{"journal", func(c sys.Call, _, _ int) bool { return c.Name == "openat" && c.Path == journal.FileName }, false},
	{"barrier", func(c sys.Call, states, _ int) bool { return c.Name == "syncfs" && states == 1 }, false},
	{"commit point", func(c sys.Call, states, _ int) bool {
		return c.Name == "openat" && c.Path == journal.StateName+".new" && states == 1
	}, true},
	{"swap", func(_ sys.Call, states, moved int) bool { return states == 2 && moved == 1 }, true},
	{"half of the swap", func(_ sys.Call, states, moved int) bool { return states == 2 && moved == 20 }, true},
	{"second barrier", func(c sys.Call, states, _ int) bool { return c.Name == "syncfs" && states == 2 }, true},
	{"swapped", func(c sys.Call, states, _ int) bool {
		return c.Name == "openat" && c.Path == journal.StateName+".new" && states == 2
	}, true},
	{"verified", func(c sys.Call, states, _ int) bool {
		return c.Name == "openat" && c.Path == journal.StateName+".new" && states == 3
	}, true},
}

// fillAt is a kernel beside which the disk fills up once; without ballast, if so asked.
func fillAt(when func(sys.Call, int, int) bool, fill func(), withoutBallast bool) *sys.Kernel {
	states, moved, filled := 0, 0, false
	return sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "renameat2" && states == 2 {
			moved++
		}
		if !filled && when(c, states, moved) {
			filled = true
			fill()
		}
		if c.Name == "renameat2" && c.To == journal.StateName {
			states++
		}
		return sys.Fault{Skip: withoutBallast && c.Name == "fallocate"}
	})
}

// fullDisk is a root on a small file system of its own, with every kind of change.
func fullDisk(t *testing.T, kind string) (r *rig, f filler, old, new map[string]string) {
	t.Helper()
	base := t.TempDir()
	loopFS(t, kind, map[string]int64{"ext4": 64, "xfs": 300, "btrfs": 128}[kind], filepath.Join(base, "disk"))
	must(t, os.RemoveAll(filepath.Join(base, "disk/lost+found")))
	must(t, os.Mkdir(filepath.Join(base, "disk/root"), 0o755))
	must(t, os.Mkdir(filepath.Join(base, "disk/src"), 0o755)) // there, because xfs shows ACLs by two names
	r = &rig{t: t, live: filepath.Join(base, "disk/root"), src: filepath.Join(base, "disk/src"), mounts: []string{"/"}}
	r.everyChange()
	_, done, err := r.openWith(nil)
	must(t, err)
	done()
	return r, filler{t, filepath.Join(base, "disk/filler")}, snapshot(t, r.live), snapshot(t, r.src)
}

func TestFullDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		for _, what := range []string{"blocks", "inodes"} {
			if what == "inodes" && kind != "ext4" {
				continue // the others make inodes from blocks
			}
			t.Run(kind+" "+what, func(t *testing.T) {
				t.Parallel()
				r, f, old, want := fullDisk(t, kind)
				fill := map[string]func(){"blocks": f.blocks, "inodes": f.inodes}[what]
				for i, m := range moments {
					if kind != "ext4" && !long() && i%2 == 0 {
						continue // every second moment will do in the short form
					}
					t.Run(m.name, func(t *testing.T) { r.t = t; r.fillsUp(t, f, m.when, fill, m.committed, old, want) })
				}
			})
		}
	}
}

func (r *rig) fillsUp(t *testing.T, f filler, when func(sys.Call, int, int) bool, fill func(), committed bool, old, want map[string]string) {
	err := r.run(fillAt(when, fill, false), r.compare())
	v := verdict(old, want, snapshot(t, r.live))
	switch {
	case committed && (err != nil || v != "new"):
		t.Errorf("past the preparation: error %v, the tree is %s", err, v)
	case !committed && err == nil && v != "new":
		t.Errorf("no error, and the tree is %s", v)
	case !committed && err != nil:
		if v != "old" {
			t.Errorf("error %v, and the tree is %s", err, v)
		}
		hint, ok := errors.AsType[*change.HintError](err)
		if !errors.Is(err, syscall.ENOSPC) || !ok || !strings.Contains(hint.Hint, "free ") || !strings.Contains(err.Error(), "/ (") {
			t.Errorf("error %v; want one that names the file system, and what to do", err)
		}
	}
	// While the disk is full still.
	if _, err := r.recoverNow(nil); err != nil {
		t.Errorf("recovery on the full disk: %v", err)
	}
	if after := verdict(old, want, snapshot(t, r.live)); after != v {
		t.Errorf("recovery on the full disk made %s of %s", after, v)
	}
	if v == "new" {
		if err := r.revertLast(nil); err != nil {
			t.Errorf("rollback on the full disk: %v", err)
		}
		if after := verdict(old, want, snapshot(t, r.live)); after != "old" {
			t.Errorf("rollback on the full disk left %s", after)
		}
	}
	f.empty()
	s, done, err := r.openWith(nil)
	must(t, err)
	defer done()
	_, err = s.Recover(context.Background())
	must(t, err)
	_, err = s.Collect(KeepNone)
	must(t, err)
	if v := verdict(old, want, snapshot(t, r.live)); v != "old" {
		t.Fatalf("in the end the tree is %s", v)
	}
	left, err := os.ReadDir(filepath.Join(r.live, Dir, txName))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Power fails in the middle of the swap, and by the next boot the disk is full.
func TestRecoveryOnAFullDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			r, f, old, want := fullDisk(t, kind)
			for _, moves := range []int{0, 25} {
				t.Run(fmt.Sprint(moves), func(t *testing.T) {
					r.t = t
					r.dieIn(t, journal.Committing, moves)
					f.blocks()
					rec, err := r.recoverNow(nil)
					if err != nil || rec.Did != "finished" {
						t.Errorf("recovery %+v, %v", rec, err)
					}
					if v := verdict(old, want, snapshot(t, r.live)); v != "new" {
						t.Errorf("the tree is %s", v)
					}
					f.empty()
					must(t, r.revertLast(nil))
					must(t, r.collect(nil))
				})
			}
		})
	}
}

// The negative control: without the ballast the same full disk stops the commit.
func TestFullDiskWithoutBallast(t *testing.T) {
	r, f, old, want := fullDisk(t, "ext4")
	t.Run("run", func(t *testing.T) {
		r.t = t
		stopped := 0
		for _, m := range moments {
			if !m.committed {
				continue
			}
			err := r.run(fillAt(m.when, f.blocks, true), r.compare())
			if err != nil {
				stopped++
				if !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("%s: %v; want ENOSPC", m.name, err)
				}
			}
			f.empty()
			if _, err := r.recoverNow(nil); err != nil {
				t.Fatalf("%s: recovery with room again: %v", m.name, err)
			}
			v := verdict(old, want, snapshot(t, r.live))
			if v == "new" {
				must(t, r.revertLast(nil))
			} else if v != "old" {
				t.Fatalf("%s: the tree is %s", m.name, v)
			}
			must(t, r.collect(nil))
		}
		if stopped == 0 {
			t.Error("the commit needs no ballast")
		}
	})
}

// A quota speaks for itself: btrfs alone limits root, too.
func TestQuota(t *testing.T) {
	r, f, old, _ := fullDisk(t, "btrfs")
	t.Run("run", func(t *testing.T) {
		r.t = t
		disk := filepath.Dir(r.live)
		tool(t, "btrfs", "quota", "enable", disk)
		tool(t, "btrfs", "quota", "rescan", "-w", disk)
		k := sys.WithHook(func(c sys.Call) sys.Fault {
			if c.Name == "openat" && strings.Contains(c.Path, "big") {
				tool(t, "btrfs", "qgroup", "limit", "4M", disk)
			}
			return sys.Fault{}
		})
		err := r.run(k, r.compare())
		if !errors.Is(err, syscall.EDQUOT) || !strings.Contains(err.Error(), "quota") || !strings.Contains(err.Error(), "/ (btrfs") {
			t.Errorf("error %v; want one that names the quota and the file system", err)
		}
		tool(t, "btrfs", "quota", "disable", disk)
		f.empty()
		_, err = r.recoverNow(nil)
		must(t, err)
		sameTree(t, "after the quota", old, snapshot(t, r.live))
	})
}

// The hint says what liveupd itself holds, and how to get it back.
func TestFullDiskTellsWhatCouldBeFreed(t *testing.T) {
	r, f, _, _ := fullDisk(t, "ext4")
	t.Run("run", func(t *testing.T) {
		r.t = t
		must(t, r.run(nil, r.compare()))
		must(t, r.revertLast(nil))
		f.blocks()
		err := r.run(nil, r.compare())
		hint, ok := errors.AsType[*change.HintError](err)
		if !ok || !strings.Contains(hint.Hint, "held by 1 older updates, which liveupd clean removes") {
			t.Errorf("error %v, hint %+v; want what is held", err, hint)
		}
		if !strings.Contains(err.Error(), "/ (ext4 on /dev/loop") || !strings.Contains(err.Error(), "is full") {
			t.Errorf("error %v; want the file system with its device, and what it lacks", err)
		}
		f.empty()
	})
}

func tool(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
