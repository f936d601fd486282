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

// loopFS mounts a fresh file system of that kind and size at point.
func loopFS(t *testing.T, kind string, megabytes int64, point string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if testing.Short() {
		t.Skip("mounts file systems: not in the fast loop")
	}
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Skipf("there is no mkfs.%s here", kind)
	}
	image := filepath.Join(fastBase(t), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, megabytes<<20))
	if out, err := exec.Command(mkfs, image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v: %s", kind, err, out)
	}
	must(t, os.MkdirAll(point, 0o755))
	if out, err := exec.Command("mount", "-o", "loop", image, point).CombinedOutput(); err != nil {
		t.Skipf("cannot mount %s here: %v: %s", kind, err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(point, 0); err != nil {
			t.Errorf("cannot unmount %s: %v", point, err)
		}
	})
}

func TestThereAndBackOnEachFileSystem(t *testing.T) {
	for _, fs := range []struct {
		kind string
		mb   int64
	}{{"ext4", 128}, {"xfs", 512}, {"btrfs", 256}} {
		t.Run(fs.kind, func(t *testing.T) {
			point := filepath.Join(t.TempDir(), "m")
			loopFS(t, fs.kind, fs.mb, point)
			// The descriptors of the rig close before the file system is unmounted.
			t.Run("run", func(t *testing.T) {
				r := newRig(t, point)
				r.everyChange()
				thereAndBack(t, r)
			})
		})
	}
}

// twoVolumes is a root with a /var of its own; the source is one tree.
func twoVolumes(t *testing.T, base string) *rig {
	r := newRig(t, base)
	r.mounts = []string{"/", "/var"}
	loopFS(t, "ext4", 64, filepath.Join(r.live, "var"))
	must(t, os.RemoveAll(filepath.Join(r.live, "var/lost+found")))
	for _, where := range []string{"", "var/"} {
		write(t, r.live, where+"lib/conf", "old", 0o644)
		write(t, r.live, where+"lib/gone", "gone", 0o644)
		write(t, r.src, where+"lib/conf", "newer", 0o644)
		write(t, r.src, where+"lib/tree/x", "x", 0o644)
	}
	// A hard link of the source that spans the volumes of the live root.
	write(t, r.live, "shared", "s", 0o644)
	write(t, r.live, "var/shared", "s", 0o644)
	write(t, r.src, "shared", "s2", 0o644)
	must(t, os.Link(filepath.Join(r.src, "shared"), filepath.Join(r.src, "var/shared")))
	age(t, r.live, oldTime)
	age(t, r.src, newTime)
	return r
}

func TestTwoVolumes(t *testing.T) {
	r := twoVolumes(t, t.TempDir())
	t.Run("run", func(t *testing.T) {
		r.t = t
		old := snapshot(t, r.live)
		s := r.store(nil)
		tx, err := r.apply(s, r.compare())
		must(t, err)
		got, want := snapshot(t, r.live), snapshot(t, r.src)
		for _, p := range []string{"shared", "var/shared"} { // one inode there, one each here
			got[p], want[p] = strings.Split(got[p], " nlink")[0], strings.Split(want[p], " nlink")[0]
		}
		sameTree(t, "the committed tree is not the source", want, got)
		tx, err = s.Load(tx.ID())
		must(t, err)
		inv, content, err := tx.Inverse()
		must(t, err)
		checkInverse(t, &rig{t: t, live: r.live, src: r.src, mounts: []string{"/"}}, withoutVolume(inv, "/var"), content)
		content.Close()
		must(t, tx.Revert(context.Background()))
		tx.Close()
		sameTree(t, "after rollback", old, snapshot(t, r.live))
	})
}

func withoutVolume(d *change.Delta, mount string) *change.Delta {
	out := &change.Delta{}
	for _, e := range d.Entries {
		if !strings.HasPrefix(e.Path, mount+"/") {
			out.Entries = append(out.Entries, e)
		}
	}
	return out
}

// The initrd has the root alone; the others are recovered once they are mounted.
func TestRecoveryOfOneVolumeAfterTheOther(t *testing.T) {
	r := twoVolumes(t, t.TempDir())
	t.Run("run", func(t *testing.T) {
		r.t = t
		d := r.compare()
		want := snapshot(t, r.src)
		r.dieIn(t, journal.Committing, 3)
		r.mounts = []string{"/"}
		rec, err := r.recoverNow(nil)
		must(t, err)
		if len(rec.Missing) != 1 || rec.Missing[0] != "/var" || rec.Pending {
			t.Errorf("recovery of the root alone: %+v; want /var missing", rec)
		}
		r.mounts = []string{"/", "/var"}
		rec, err = r.recoverNow(nil)
		must(t, err)
		if rec.Did != "finished" || !rec.Pending {
			t.Errorf("recovery of all: %+v", rec)
		}
		got := snapshot(t, r.live)
		for _, e := range d.Entries {
			p := strings.TrimPrefix(e.Path, "/")
			if strings.Split(got[p], " nlink")[0] != strings.Split(want[p], " nlink")[0] {
				t.Errorf("%s is %s; want %s", p, got[p], want[p])
			}
		}
	})
}

func TestStagingLeftOnAnotherVolume(t *testing.T) {
	r := twoVolumes(t, t.TempDir())
	t.Run("run", func(t *testing.T) {
		r.t = t
		s := r.store(nil)
		tx, err := s.Begin(Header{})
		must(t, err)
		src, err := sys.OpenRoot(r.src)
		must(t, err)
		defer src.Close()
		must(t, tx.Stage(context.Background(), r.compare(), src, nil))
		tx.Close()
		// The root lost it in a crash.
		must(t, os.RemoveAll(filepath.Join(r.live, Dir, "tx", tx.ID())))
		// Another root's, that shares this /var, stays.
		theirs := filepath.Join(r.live, "var", Dir, "tx", "20260101-000000.000000-00000000")
		write(t, theirs, ownerName, strings.Repeat("f", 32), 0o600)
		rec, err := s.Recover(context.Background())
		must(t, err)
		if len(rec.Removed) != 1 || rec.Removed[0] != tx.ID() {
			t.Errorf("removed %q; want %s alone", rec.Removed, tx.ID())
		}
		if _, err := os.Lstat(theirs); err != nil {
			t.Errorf("another root's staging is gone: %v", err)
		}
	})
}

func TestFullFileSystem(t *testing.T) {
	base := filepath.Join(t.TempDir(), "m")
	loopFS(t, "ext4", 32, base)
	t.Run("blocks", func(t *testing.T) {
		r := newRig(t, base)
		r.src = filepath.Join(t.TempDir(), "src")
		write(t, r.live, "a", "old", 0o644)
		write(t, r.src, "a", strings.Repeat("x", 40<<20), 0o644)
		old := snapshot(t, r.live)
		s := r.store(nil)
		_, err := r.apply(s, r.compare())
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "MiB are needed") {
			t.Errorf("error %v; want ENOSPC that says how much is needed", err)
		}
		if _, ok := errors.AsType[*change.HintError](err); !ok {
			t.Errorf("no hint: %v", err)
		}
		sameTree(t, "a refused update changed the tree", old, snapshot(t, r.live))
	})
	// What is taken from where it is needs no room a second time; what is copied does.
	t.Run("taken", func(t *testing.T) {
		for _, takes := range []bool{false, true} {
			must(t, os.RemoveAll(filepath.Join(base, "live")))
			must(t, os.RemoveAll(filepath.Join(base, "src")))
			r := newRig(t, base)
			write(t, r.src, "a", strings.Repeat("x", 15<<20), 0o644)
			s := r.store(nil)
			tx, err := s.Begin(Header{Source: "tree:" + r.src})
			must(t, err)
			src, err := sys.OpenRoot(r.src)
			must(t, err)
			if takes {
				tx.TakeSource()
			}
			if err := tx.Stage(t.Context(), r.compare(), src, nil); errors.Is(err, syscall.ENOSPC) == takes {
				t.Errorf("taken %t: error %v", takes, err)
			}
			must(t, tx.Discard())
			src.Close()
			tx.Close()
		}
	})
	must(t, os.RemoveAll(filepath.Join(base, "live")))
	must(t, os.RemoveAll(filepath.Join(base, "src")))
	t.Run("inodes", func(t *testing.T) {
		r := newRig(t, base)
		r.src = filepath.Join(t.TempDir(), "src")
		must(t, os.Mkdir(r.src, 0o755))
		var st syscall.Statfs_t
		must(t, syscall.Statfs(base, &st))
		d := &change.Delta{}
		for i := range int(st.Ffree) {
			p := fmt.Sprintf("/f%06d", i)
			d.Entries = append(d.Entries, change.Entry{Path: p, Op: change.Add, New: &change.Node{Type: change.FIFO}})
		}
		if _, err := r.apply(r.store(nil), d); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "inodes") {
			t.Errorf("error %v; want ENOSPC that tells of inodes", err)
		}
	})
}

// A disk that fills up after the staging: the ballast pays for the commit, and
// without it everything is taken back.
func TestDiskThatFillsUpMeanwhile(t *testing.T) {
	base := filepath.Join(t.TempDir(), "m")
	loopFS(t, "ext4", 32, base)
	t.Run("run", func(t *testing.T) {
		r := newRig(t, base)
		write(t, r.live, "a", "old", 0o644)
		write(t, r.src, "a", "newer", 0o644)
		// Long names: adding them to one folder grows it.
		for i := range 200 {
			write(t, r.src, fmt.Sprintf("d/%03d%s", i, strings.Repeat("n", 200)), "x", 0o644)
		}
		write(t, r.live, "d/000", "x", 0o644)
		age(t, r.live, oldTime)
		age(t, r.src, newTime)
		old, want := snapshot(t, r.live), snapshot(t, r.src)
		s := r.store(nil)
		src, err := sys.OpenRoot(r.src)
		must(t, err)
		defer src.Close()
		prepare := func() *Tx {
			tx, err := s.Begin(Header{})
			must(t, err)
			d := r.compare()
			must(t, tx.Stage(context.Background(), d, src, nil))
			must(t, tx.Prepare(context.Background(), nil))
			fill(t, filepath.Join(base, "filler"))
			return tx
		}
		tx := prepare()
		tx.makeRoom(0, syscall.ENOSPC)
		fill(t, filepath.Join(base, "filler2"))
		_, err = tx.Commit(context.Background())
		if err == nil {
			t.Fatal("the commit of a full disk without ballast went through: the test shows nothing")
		}
		// The state file may not be writable either: then it is for recovery.
		must(t, os.Remove(filepath.Join(base, "filler2")))
		must(t, os.Remove(filepath.Join(base, "filler")))
		if errors.Is(err, change.ErrNeedsPerson) {
			_, err = r.recoverNow(nil)
			must(t, err)
		}
		if v := verdict(old, want, snapshot(t, r.live)); v != "old" {
			t.Fatalf("without ballast: %s", v)
		}
		tx.Close()
		if tx, err := s.Load(tx.ID()); err == nil {
			must(t, tx.Discard())
		}
		tx = prepare()
		defer tx.Close()
		_, err = tx.Commit(context.Background())
		must(t, err)
		sameTree(t, "with the ballast", want, snapshot(t, r.live))
	})
}

// fill writes until the file system is full, the reserve for root too.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

// Each volume is synced after the journal and before the commit point, and again
// before "swapped".
func TestBarriersAndStatesAreInOrder(t *testing.T) {
	r := small(t)
	var trace []string
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		switch {
		case c.Name == "syncfs", c.Name == "fsync" && c.Path == journal.FileName:
			trace = append(trace, c.Name)
		case c.Name == "renameat2" && c.To == journal.StateName:
			trace = append(trace, "state")
		case c.Name == "renameat2" && c.Path != delName && c.Path != probeFile && (len(trace) == 0 || trace[len(trace)-1] != "swap"):
			trace = append(trace, "swap")
		}
		return sys.Fault{}
	})
	must(t, r.run(k, r.compare()))
	got := strings.Join(trace, " ")
	if want := "state fsync syncfs state swap syncfs state state"; got != want {
		t.Errorf("the barriers: %s; want %s", got, want)
	}
}

func TestFileSystemWithoutExchangeIsRefused(t *testing.T) {
	r := small(t)
	old := snapshot(t, r.live)
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "renameat2" && c.Path == delName {
			return sys.Fault{Err: syscall.EINVAL}
		}
		return sys.Fault{}
	})
	_, err := r.apply(r.store(k), r.compare())
	if _, ok := errors.AsType[*sys.UnsupportedError](err); !ok {
		t.Errorf("error %v; want UnsupportedError", err)
	}
	sameTree(t, "a refused update changed the tree", old, snapshot(t, r.live))
}
