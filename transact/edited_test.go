package transact

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// editable is a transaction with each kind of change, committed.
func editable(t *testing.T) (*rig, *Store, *Tx) {
	t.Helper()
	r := newRig(t, t.TempDir())
	for _, name := range []string{"replaced", "chmodded", "removed", "meta", "meta-own", "untouched"} {
		write(t, r.live, name, "old "+name, 0o644)
	}
	write(t, r.live, "tree-gone/a", "a", 0o644)
	must(t, os.Symlink("old", filepath.Join(r.live, "link")))
	setxattr(t, r.live, "meta-own", "user.x", "old")
	age(t, r.live, oldTime)
	for _, name := range []string{"replaced", "chmodded", "untouched", "added"} {
		write(t, r.src, name, "the new "+name, 0o644)
	}
	write(t, r.src, "meta", "old meta", 0o640)
	write(t, r.src, "meta-own", "old meta-own", 0o640)
	setxattr(t, r.src, "meta-own", "user.x", "new")
	write(t, r.src, "tree/a", "a", 0o644)
	write(t, r.src, "tree/b", "b", 0o644)
	must(t, os.Symlink("new", filepath.Join(r.src, "link")))
	age(t, r.src, newTime)
	s := r.store(nil)
	tx, err := r.apply(s, r.compare())
	must(t, err)
	tx, err = s.Load(tx.ID())
	must(t, err)
	return r, s, tx
}

// Whatever others did to what the update changed, a rollback keeps it and says
// so; the plan says it before.
func TestRollbackKeepsEachKindOfEdit(t *testing.T) {
	at := func(r *rig, name string) string { return filepath.Join(r.live, name) }
	content := func(want string) func(t *testing.T, r *rig, name string) {
		return func(t *testing.T, r *rig, name string) {
			if b, err := os.ReadFile(at(r, name)); err != nil || string(b) != want {
				t.Errorf("%s holds %q, %v; want %q", name, b, err, want)
			}
		}
	}
	mode := func(want os.FileMode) func(t *testing.T, r *rig, name string) {
		return func(t *testing.T, r *rig, name string) {
			if st, err := os.Lstat(at(r, name)); err != nil || st.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want mode %o", name, st, err, want)
			}
		}
	}
	for _, tt := range []struct {
		name, path string
		edit       func(r *rig)
		kept       string // where it is now
		check      func(t *testing.T, r *rig, name string)
		back       string // the content of the path afterwards; "-" for none
	}{
		{
			"a replaced file, edited", "replaced", func(r *rig) { write(t, r.live, "replaced", "mine", 0o644) },
			"replaced.liveupd-saved", content("mine"), "old replaced",
		},
		{"a replaced file, exchanged by an editor", "replaced", func(r *rig) {
			write(t, r.live, "replaced~", "the new replaced", 0o644)
			must(t, os.Rename(at(r, "replaced~"), at(r, "replaced")))
		}, "replaced.liveupd-saved", content("the new replaced"), "old replaced"},
		{
			"a replaced file, chmod", "chmodded", func(r *rig) { must(t, os.Chmod(at(r, "chmodded"), 0o600)) },
			"chmodded.liveupd-saved", mode(0o600), "old chmodded",
		},
		{
			"an added file, edited", "added", func(r *rig) { write(t, r.live, "added", "mine", 0o644) },
			"added.liveupd-saved", content("mine"), "-",
		},
		{
			"a removed file, made again", "removed", func(r *rig) { write(t, r.live, "removed", "mine", 0o644) },
			"removed.liveupd-saved", content("mine"), "old removed",
		},
		{
			"a removed folder, made again", "tree-gone", func(r *rig) { write(t, r.live, "tree-gone/mine", "mine", 0o644) },
			"tree-gone.liveupd-saved/mine", content("mine"), "",
		},
		{
			"an added folder that the machine wrote into", "tree", func(r *rig) { write(t, r.live, "tree/log", "mine", 0o644) },
			"tree.liveupd-saved/log", content("mine"), "-",
		},
		{
			"an added folder, a file in it edited", "tree", func(r *rig) { write(t, r.live, "tree/b", "mine", 0o644) },
			"tree.liveupd-saved/b", content("mine"), "-",
		},
		{"a symlink", "link", func(r *rig) {
			must(t, os.Remove(at(r, "link")))
			must(t, os.Symlink("mine", at(r, "link")))
		}, "link.liveupd-saved", func(t *testing.T, r *rig, name string) {
			if to, err := os.Readlink(at(r, name)); err != nil || to != "mine" {
				t.Errorf("%s leads to %q, %v", name, to, err)
			}
		}, ""},
		{
			"metadata, content edited", "meta", func(r *rig) { write(t, r.live, "meta", "mine", 0o640) },
			"meta", content("mine"), "mine",
		},
		{"metadata, chmod", "meta", func(r *rig) { must(t, os.Chmod(at(r, "meta"), 0o600)) }, "meta", mode(0o600), "old meta"},
		{
			"metadata, an attribute", "meta-own", func(r *rig) { setxattr(t, r.live, "meta-own", "user.x", "mine") },
			"meta-own", func(t *testing.T, r *rig, name string) {
				buf := make([]byte, 16)
				n, err := syscall.Getxattr(at(r, name), "user.x", buf)
				if err != nil || string(buf[:n]) != "mine" {
					t.Errorf("user.x of %s is %q, %v", name, buf[:max(n, 0)], err)
				}
				mode(0o644)(t, r, name) // what they left alone goes back
			}, "old meta-own",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, _, tx := editable(t)
			if list, err := tx.Edited(); err != nil || len(list) > 0 {
				t.Fatalf("nothing was changed, and the plan says %q, %v", list, err)
			}
			tt.edit(r)
			planned, err := tx.Edited()
			must(t, err)
			names := func(w string) bool { return strings.HasPrefix(w, "/"+tt.path+" ") }
			if len(planned) != 1 || !names(planned[0]) {
				t.Errorf("the plan says %q; want one line about /%s", planned, tt.path)
			}
			must(t, tx.Revert(context.Background()))
			tt.check(t, r, tt.kept)
			if told := tx.Warnings(); !slices.ContainsFunc(told, names) {
				t.Errorf("the rollback says %q; want a line about /%s", told, tt.path)
			}
			if strings.Contains(tt.kept, savedSuffix) {
				where, _, _ := strings.Cut("/"+tt.kept, savedSuffix)
				for _, list := range [][]string{planned, tx.Warnings()} {
					if !strings.Contains(strings.Join(list, "\n"), where+savedSuffix) {
						t.Errorf("%q does not say where it is kept", list)
					}
				}
			}
			if tt.back == "-" {
				if _, err := os.Lstat(at(r, tt.path)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", tt.path, err)
				}
			} else if tt.back != "" {
				content(tt.back)(t, r, tt.path)
			}
			content("old untouched")(t, r, "untouched")
		})
	}
}

// Somebody removed the folder of what the update changed: what was added in it is
// gone already, and what was replaced in it asks for the folder, before anything moves.
func TestRollbackWithoutTheFolder(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		t.Run(fmt.Sprintf("replaced %v", replaced), func(t *testing.T) {
			r := newRig(t, t.TempDir())
			write(t, r.live, "dir/sub/meta", "m", 0o644)
			write(t, r.live, "other", "old", 0o644)
			write(t, r.src, "dir/sub/meta", "m", 0o600)
			write(t, r.src, "dir/sub/added", "a", 0o644)
			write(t, r.src, "other", "newer", 0o644)
			if replaced {
				write(t, r.live, "dir/sub/file", "old", 0o644)
				write(t, r.src, "dir/sub/file", "newer", 0o644)
			}
			s := r.store(nil)
			tx, err := r.apply(s, r.compare())
			must(t, err)
			must(t, os.RemoveAll(filepath.Join(r.live, "dir")))
			tx, err = s.Load(tx.ID())
			must(t, err)
			// Who only looks for the old objects is not stopped by it.
			_, content, err := tx.OldObjects()
			must(t, err)
			content.Close()
			before := snapshot(t, r.live)
			if replaced {
				if _, _, err := tx.Inverse(); err == nil {
					t.Error("Inverse() of what has no folder to go back to: no error")
				}
				err := tx.CheckKept(context.Background(), nil)
				hint, ok := errors.AsType[*change.HintError](err)
				if !ok || !strings.Contains(err.Error(), "/dir/sub/file") || !strings.Contains(hint.Hint, "/dir/sub") {
					t.Errorf("CheckKept = %v; want /dir/sub/file and what to do", err)
				}
				if err := tx.Revert(context.Background()); err == nil || tx.State() != journal.Verified {
					t.Errorf("Revert = %v, state %s; want a refusal", err, tx.State())
				}
				sameTree(t, "a refused rollback changed the tree", before, snapshot(t, r.live))
				must(t, os.MkdirAll(filepath.Join(r.live, "dir/sub"), 0o755))
			}
			_, err = tx.Edited()
			must(t, err)
			_, content, err = tx.Inverse()
			must(t, err)
			content.Close()
			must(t, tx.Revert(context.Background()))
			for name, want := range map[string]string{"other": "old", "dir/sub/file": "old"} {
				if b, err := os.ReadFile(filepath.Join(r.live, name)); string(b) != want && (replaced || name == "other") {
					t.Errorf("%s holds %q, %v; want %q", name, b, err, want)
				}
			}
		})
	}
}

// Every file that goes is in the journal by content, those in folders too, or
// damage to it would pass.
func TestEveryOldFileHasADigest(t *testing.T) {
	_, _, tx := editable(t)
	files := 0
	for op, err := range tx.journal.Ops.Where(journal.HasOld) {
		must(t, err)
		if op.Old == nil || op.Old.Type != change.Regular || op.Kind == journal.Metadata {
			continue
		}
		files++
		if op.Old.Digest.IsZero() {
			t.Errorf("%s (%s) has no digest", op.Path, op.Kind)
		}
	}
	kept, err := tx.Kept()
	must(t, err)
	if want := 5; files != want || len(kept) != want {
		t.Errorf("%d old files, %d kept; want %d", files, len(kept), want)
	}
}

// Damage to what is kept is found, all of it, and names the paths.
func TestCheckKeptNamesAllDamage(t *testing.T) {
	r, _, tx := editable(t)
	must(t, tx.CheckKept(context.Background(), nil))
	kept, err := tx.Kept()
	must(t, err)
	var want []string
	for _, k := range kept {
		flip(t, filepath.Join(r.live, k.From))
		want = append(want, k.Path)
	}
	if !slices.Contains(want, "/tree-gone/a") {
		t.Errorf("%q: no member of a folder that went", want)
	}
	var files, bytes int64
	err = tx.CheckKept(context.Background(), func(f, b int64) { files, bytes = f, b })
	if !errors.Is(err, change.ErrVerification) {
		t.Fatalf("CheckKept = %v; want ErrVerification", err)
	}
	for _, p := range want {
		if !strings.Contains(err.Error(), p+": ") {
			t.Errorf("%v does not name %s", err, p)
		}
	}
	if files < int64(len(want)) || bytes == 0 {
		t.Errorf("progress says %d files of %d bytes", files, bytes)
	}
	before := snapshot(t, r.live)
	if err := tx.Revert(context.Background()); !errors.Is(err, change.ErrVerification) {
		t.Errorf("Revert = %v; want ErrVerification", err)
	}
	sameTree(t, "a refused rollback changed the tree", before, snapshot(t, r.live))
}

// flip changes one bit of a file, which keeps its size and its mtime, as a disk does.
func flip(t *testing.T, name string) {
	t.Helper()
	st, err := os.Stat(name)
	must(t, err)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, st.Size()/2)
	must(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, st.Size()/2)
	must(t, err)
	must(t, os.Chtimes(name, st.ModTime(), st.ModTime()))
}

// The program that holds a file open is named, whether the file is to be
// replaced, removed, or to go with its folder.
func TestWritersAreNamed(t *testing.T) {
	me := fmt.Sprintf("(process %d)", os.Getpid())
	for _, tt := range []struct{ name, path string }{{"replace", "log"}, {"remove", "gone"}, {"in a folder", "tree/log"}} {
		for _, how := range []string{"open", "mapped"} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				r := newRig(t, t.TempDir())
				for _, name := range []string{"log", "gone", "tree/log"} {
					write(t, r.live, name, "old", 0o644)
				}
				write(t, r.src, "log", "newer", 0o644)
				f, err := os.OpenFile(filepath.Join(r.live, tt.path), os.O_RDWR, 0)
				must(t, err)
				defer f.Close()
				if how == "mapped" {
					b, err := syscall.Mmap(int(f.Fd()), 0, 3, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
					must(t, err)
					defer func() { must(t, syscall.Munmap(b)) }()
					must(t, f.Close())
				}
				old := snapshot(t, r.live)
				_, err = r.apply(r.store(nil), r.compare())
				if !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), "/"+tt.path) || !strings.Contains(err.Error(), me) {
					t.Errorf("error %v; want ErrDrift that names /%s and %s", err, tt.path, me)
				}
				sameTree(t, "a refused commit changed the tree", old, snapshot(t, r.live))
			})
		}
	}
}

// A program that opens a file for writing between the look and the exchange, and
// writes only after it, would write into nothing.
func TestOpenedDuringTheSwap(t *testing.T) {
	for _, control := range []bool{false, true} {
		t.Run(fmt.Sprintf("negative control %v", control), func(t *testing.T) {
			r := newRig(t, t.TempDir())
			write(t, r.live, "a", "old", 0o644)
			write(t, r.src, "a", "newer", 0o644)
			s := r.store(nil)
			s.noDrift = control
			var f *os.File
			s.k = sys.WithHook(func(c sys.Call) sys.Fault {
				if c.Name == "fsync" && f == nil && s.testCommitting() {
					var err error
					f, err = os.OpenFile(filepath.Join(r.live, "a"), os.O_WRONLY, 0)
					must(t, err)
				}
				return sys.Fault{}
			})
			_, err := r.apply(s, r.compare())
			if f == nil {
				t.Fatal("the commit point was not met")
			}
			_, werr := f.WriteAt([]byte("XXX"), 0)
			must(t, errors.Join(werr, f.Close()))
			b, rerr := os.ReadFile(filepath.Join(r.live, "a"))
			must(t, rerr)
			if lost := string(b) != "XXX"; lost != control {
				t.Errorf("the file holds %q, after %v: their write is lost: %v; want %v", b, err, lost, control)
			}
			if !control && !errors.Is(err, change.ErrDrift) {
				t.Errorf("error %v; want ErrDrift", err)
			}
		})
	}
}

// Without the look before the commit an edit is lost: what the look is for.
func TestDriftCheckNegativeControl(t *testing.T) {
	for _, control := range []bool{false, true} {
		r := newRig(t, t.TempDir())
		write(t, r.live, "conf", "old", 0o644)
		write(t, r.src, "conf", "newer", 0o644)
		s := r.store(nil)
		s.noDrift = control
		d := r.compare()
		tx, err := s.Begin(Header{})
		must(t, err)
		src, err := sys.OpenRoot(r.src)
		must(t, err)
		defer src.Close()
		must(t, tx.Stage(context.Background(), d, src, nil))
		must(t, os.WriteFile(filepath.Join(r.live, "conf"), []byte("mine"), 0o644))
		if err = tx.Prepare(context.Background(), nil); err == nil {
			_, err = tx.Commit(context.Background())
		}
		b, rerr := os.ReadFile(filepath.Join(r.live, "conf"))
		must(t, rerr)
		if lost := string(b) != "mine"; lost != control {
			t.Errorf("negative control %v: the file holds %q, %v", control, b, err)
		}
	}
}
