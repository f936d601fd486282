package transact

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

func TestEveryChangeThereAndBack(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.everyChange()
	thereAndBack(t, r)
}

// thereAndBack commits and takes back, by digest of the whole tree.
func thereAndBack(t *testing.T, r *rig) {
	t.Helper()
	old, want := snapshot(t, r.live), snapshot(t, r.src)
	s := r.store(nil)
	sameTree(t, "opening the store changed the tree", old, snapshot(t, r.live))
	tx, err := r.apply(s, r.compare())
	must(t, err)
	if tx.State() != journal.Verified {
		t.Fatalf("state %s after Verified", tx.State())
	}
	sameTree(t, "the committed tree is not the source", want, snapshot(t, r.live))
	r.aloneInStore()
	if d := r.compare(); !d.Empty() {
		t.Errorf("a second comparison finds %d entries, the first %v", len(d.Entries), d.Entries[0])
	}
	// A later process takes it back.
	later := r.store(nil)
	tx, err = later.Load(tx.ID())
	must(t, err)
	inv, content, err := tx.Inverse()
	must(t, err)
	defer content.Close()
	checkInverse(t, r, inv, content)
	must(t, tx.Revert(context.Background()))
	sameTree(t, "the tree after rollback is not the old one", old, snapshot(t, r.live))
	if w := tx.Warnings(); len(w) > 0 {
		t.Errorf("warnings of a clean rollback: %q", w)
	}
	must(t, tx.Discard())
	sameTree(t, "discarding changed the tree", old, snapshot(t, r.live))
	if ids, garbage, _ := later.vols[0].ids(); len(ids)+len(garbage) > 0 {
		t.Errorf("left over: %v %v", ids, garbage)
	}
}

// checkInverse: every old node of the inverse is what is live, and every new
// one's content is where From says.
func checkInverse(t *testing.T, r *rig, d *change.Delta, content *sys.FD) {
	t.Helper()
	if d.Empty() || !slices.IsSortedFunc(d.Entries, func(a, b change.Entry) int { return strings.Compare(a.Path, b.Path) }) {
		t.Fatalf("the inverse holds %d entries, or they are not sorted", len(d.Entries))
	}
	live := r.nodes(r.live)
	for _, e := range d.Entries {
		now := live[e.Path]
		if (now == nil) != (e.Old == nil) {
			t.Errorf("%s: live %v, the inverse says %v", e.Path, now, e.Old)
			continue
		}
		if e.New == nil || e.Op == change.Metadata {
			continue
		}
		base := content
		if e.FromLive {
			base = r.volumes()[0].Dir
		}
		n, err := sys.Lstat(base, strings.TrimPrefix(e.From, "/"))
		if err != nil {
			t.Errorf("%s: the content is not at %s: %v", e.Path, e.From, err)
			continue
		}
		if n.Type != e.New.Type || n.Size != e.New.Size || (n.MtimeNS != e.New.MtimeNS && !n.IsDir()) {
			t.Errorf("%s: at %s lies %+v; want %+v", e.Path, e.From, n, e.New)
		}
	}
}

func TestFolderTimesWithoutMetadataOfTheirOwn(t *testing.T) {
	r := newRig(t, t.TempDir())
	write(t, r.live, "a/x", "old", 0o644)
	write(t, r.live, "a/keep/y", "y", 0o644)
	age(t, r.live, oldTime)
	write(t, r.src, "a/x", "newer", 0o644)
	old := snapshot(t, r.live)
	d := r.compare()
	d.Entries = slices.DeleteFunc(d.Entries, func(e change.Entry) bool { return e.Path != "/a/x" })
	before := time.Now().UnixNano()
	s := r.store(nil)
	tx, err := r.apply(s, d)
	must(t, err)
	got := r.nodes(r.live)
	if m := got["/a"].MtimeNS; m < before || m > time.Now().UnixNano() {
		t.Errorf("the folder in which a name moved has mtime %d; want the transaction's", m)
	}
	for _, p := range []string{"/", "/a/keep"} {
		if line := snapshot(t, r.live)[strings.TrimPrefix(p, "/")]; p != "/" && line != old[strings.TrimPrefix(p, "/")] {
			t.Errorf("%s changed: %s", p, line)
		}
	}
	tx, err = s.Load(tx.ID())
	must(t, err)
	must(t, tx.Revert(context.Background()))
	sameTree(t, "after rollback", old, snapshot(t, r.live))
}

func TestOrderOfTheSwap(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.everyChange()
	var names []string
	record := false
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if record && c.Name == "renameat2" && c.To != journal.StateName {
			names = append(names, c.To+"<"+c.Path)
		}
		if c.Name == "renameat2" && c.To == journal.StateName {
			record = !record
		}
		return sys.Fault{}
	})
	record = true // the first state is staging
	_, err := r.apply(r.store(k), r.compare())
	must(t, err)
	at := func(want string) int {
		i := slices.IndexFunc(names, func(s string) bool { return strings.HasPrefix(s, want+"<") || strings.HasSuffix(s, "<"+want) })
		if i < 0 {
			t.Fatalf("%s was not moved: %q", want, names)
		}
		return i
	}
	order := []string{"added", "libfoo.so.1", "ld-linux.so.2", "libc.so.6", "tool", "a.service", "os-release", "gone"}
	for i := range order[1:] {
		if at(order[i]) >= at(order[i+1]) {
			t.Errorf("%s moved after %s", order[i], order[i+1])
		}
	}
	if at("libc.so.6") != at("ld-linux.so.2")+1 {
		t.Errorf("ld.so and libc are not adjacent: %q", names)
	}
}

func TestNothingLiveChangesBeforeTheCommitPoint(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.everyChange()
	s := r.store(nil)
	identity := func() map[string]string {
		out := map[string]string{}
		for p, n := range r.nodes(r.live) {
			if p != "/" {
				out[p] = cmp.Diff(nil, []any{n.Ino, n.Nlink, n.CtimeNS, n.MtimeNS, n.Mode})
			}
		}
		return out
	}
	before := identity()
	tx, err := s.Begin(Header{})
	must(t, err)
	src, err := sys.OpenRoot(r.src)
	must(t, err)
	defer src.Close()
	must(t, tx.Stage(context.Background(), r.compare(), src, nil))
	must(t, tx.Prepare(context.Background(), nil))
	if d := cmp.Diff(before, identity()); d != "" {
		t.Errorf("staging touched live inodes:\n%s", d)
	}
	must(t, tx.Discard())
	if d := cmp.Diff(before, identity()); d != "" {
		t.Errorf("discarding touched live inodes:\n%s", d)
	}
}

func TestDriftIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		path string // that the error names
		do   func(t *testing.T, r *rig)
	}{
		{"edited", "/etc/conf", func(t *testing.T, r *rig) { write(t, r.live, "etc/conf", "edited", 0o644) }},
		{"same size and mtime", "/etc/conf", func(t *testing.T, r *rig) {
			p := filepath.Join(r.live, "etc/conf")
			st, err := os.Stat(p)
			must(t, err)
			must(t, os.WriteFile(p, []byte("OLD"), 0o644))
			must(t, os.Chtimes(p, time.Time{}, st.ModTime()))
		}},
		{"replaced", "/etc/conf", func(t *testing.T, r *rig) {
			must(t, os.Rename(filepath.Join(r.live, "etc/other"), filepath.Join(r.live, "etc/conf")))
		}},
		{"removed", "/etc/conf", func(t *testing.T, r *rig) { must(t, os.Remove(filepath.Join(r.live, "etc/conf"))) }},
		{"chmod", "/etc/conf", func(t *testing.T, r *rig) { must(t, os.Chmod(filepath.Join(r.live, "etc/conf"), 0o600)) }},
		{"acl", "/etc/conf", func(t *testing.T, r *rig) { setxattr(t, r.live, "etc/conf", "user.x", "1") }},
		{"where one is added", "/etc/new", func(t *testing.T, r *rig) { write(t, r.live, "etc/new", "mine", 0o644) }},
		{"in a folder that goes", "/etc/tree", func(t *testing.T, r *rig) { write(t, r.live, "etc/tree/mine", "mine", 0o644) }},
		{"edited in a folder that goes", "/etc/tree", func(t *testing.T, r *rig) { write(t, r.live, "etc/tree/a", "mine", 0o644) }},
		{"the folder is a symlink now", "/etc/", func(t *testing.T, r *rig) {
			must(t, os.Rename(filepath.Join(r.live, "etc"), filepath.Join(r.live, "etc2")))
			must(t, os.Symlink("etc2", filepath.Join(r.live, "etc")))
		}},
	} {
		for _, when := range []string{"before prepare", "before commit"} {
			t.Run(tt.name+" "+when, func(t *testing.T) {
				r := newRig(t, t.TempDir())
				write(t, r.live, "etc/conf", "old", 0o644)
				write(t, r.live, "etc/other", "old", 0o644)
				write(t, r.live, "etc/tree/a", "a", 0o644)
				age(t, r.live, oldTime)
				write(t, r.src, "etc/conf", "new!", 0o644)
				write(t, r.src, "etc/other", "old", 0o644)
				write(t, r.src, "etc/new", "new", 0o644)
				s := r.store(nil)
				d := r.compare()
				d.Entries = slices.DeleteFunc(d.Entries, func(e change.Entry) bool { return e.Op == change.Metadata })
				tx, err := s.Begin(Header{})
				must(t, err)
				src, err := sys.OpenRoot(r.src)
				must(t, err)
				defer src.Close()
				must(t, tx.Stage(context.Background(), d, src, nil))
				if when == "before prepare" {
					tt.do(t, r)
					err = tx.Prepare(context.Background(), nil)
				} else {
					must(t, tx.Prepare(context.Background(), nil))
					tt.do(t, r)
				}
				drifted := snapshot(t, r.live)
				if err == nil {
					_, err = tx.Commit(context.Background())
				}
				if !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), tt.path) {
					t.Errorf("error %v; want ErrDrift that names %s", err, tt.path)
				}
				sameTree(t, "a refused commit changed the tree", drifted, snapshot(t, r.live))
				must(t, tx.Discard())
				sameTree(t, "discarding changed the tree", drifted, snapshot(t, r.live))
			})
		}
	}
}

// What slips in between the look and the exchange is found by what comes out.
func TestWhatSlipsInDuringTheSwapIsPutBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(r *rig)
	}{
		{"exchange", func(r *rig) { write(t, r.live, "b", "mine", 0o644) }},
		{"exchange of another inode", func(r *rig) {
			write(t, r.live, "b.tmp", "old b", 0o644)
			must(t, os.Rename(filepath.Join(r.live, "b.tmp"), filepath.Join(r.live, "b")))
		}},
		{"removal", func(r *rig) { write(t, r.live, "gone", "mine", 0o644) }},
		{"addition", func(r *rig) { write(t, r.live, "c", "mine", 0o644) }},
		{"in a removed tree", func(r *rig) { write(t, r.live, "tree/mine", "mine", 0o644) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, t.TempDir())
			for _, name := range []string{"a", "b", "gone", "tree/x"} {
				write(t, r.live, name, "old "+name, 0o644)
			}
			age(t, r.live, oldTime)
			write(t, r.src, "a", "new a", 0o644)
			write(t, r.src, "b", "new b!", 0o644)
			write(t, r.src, "c", "new c", 0o644)
			s := r.store(nil)
			var theirs map[string]string
			s.k = sys.WithHook(func(c sys.Call) sys.Fault {
				// The state's rename is the commit point: the look is over.
				if c.Name == "fsync" && theirs == nil && s.testCommitting() {
					tt.edit(r)
					theirs = snapshot(t, r.live)
				}
				return sys.Fault{}
			})
			_, err := r.apply(s, r.compare())
			if !errors.Is(err, change.ErrDrift) {
				t.Fatalf("error %v; want ErrDrift", err)
			}
			got := snapshot(t, r.live)
			// The mtimes of folders are put back to what the journal says, even
			// where their new name moved them.
			for _, folder := range []string{".", "tree"} {
				delete(theirs, folder)
				delete(got, folder)
			}
			sameTree(t, "the tree is not as it was with their edit", theirs, got)
		})
	}
}

// testCommitting tells whether the newest transaction is at its commit point.
func (s *Store) testCommitting() bool {
	ids, _, err := s.vols[0].ids()
	if err != nil || len(ids) == 0 {
		return false
	}
	st, err := s.status(ids[len(ids)-1])
	return err == nil && st.State == journal.Committing
}

func TestOpenForWritingIsRefused(t *testing.T) {
	r := newRig(t, t.TempDir())
	write(t, r.live, "log", "old", 0o644)
	write(t, r.src, "log", "newer", 0o644)
	f, err := os.OpenFile(filepath.Join(r.live, "log"), os.O_WRONLY, 0)
	must(t, err)
	old := snapshot(t, r.live)
	if _, err = r.apply(r.store(nil), r.compare()); !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), "/log") {
		t.Errorf("open for writing: error %v; want ErrDrift that names /log", err)
	}
	sameTree(t, "a refused commit changed the tree", old, snapshot(t, r.live))
	// Mapped shared-writable, with the descriptor closed.
	rw, err := os.OpenFile(filepath.Join(r.live, "log"), os.O_RDWR, 0)
	must(t, err)
	b, err := syscall.Mmap(int(rw.Fd()), 0, 3, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	must(t, rw.Close())
	must(t, f.Close())
	if _, err = r.apply(r.store(nil), r.compare()); !errors.Is(err, change.ErrDrift) {
		t.Errorf("mapped shared-writable: error %v; want ErrDrift", err)
	}
	must(t, syscall.Munmap(b))
	_, err = r.apply(r.store(nil), r.compare())
	must(t, err)
}

func TestRunningExecutableIsExchanged(t *testing.T) {
	r := newRig(t, t.TempDir())
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skip("there is no /bin/sleep here: ", err)
	}
	write(t, r.live, "bin/sleep", string(sleep), 0o755)
	write(t, r.src, "bin/sleep", string(sleep)+"newer", 0o755)
	p, err := os.StartProcess(filepath.Join(r.live, "bin/sleep"), []string{"sleep", "60"}, &os.ProcAttr{})
	must(t, err)
	defer func() {
		must(t, p.Kill())
		_, err := p.Wait()
		must(t, err)
	}()
	_, err = r.apply(r.store(nil), r.compare())
	must(t, err)
}

func TestDigestMismatchIsVerificationError(t *testing.T) {
	r := newRig(t, t.TempDir())
	write(t, r.src, "new", "content", 0o644)
	d := r.compare()
	for i := range d.Entries {
		if d.Entries[i].Path == "/new" {
			d.Entries[i].New.Digest = change.Digest{1}
		}
	}
	if _, err := r.apply(r.store(nil), d); !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), "/new") {
		t.Errorf("error %v; want ErrVerification that names /new", err)
	}
	// Without a digest it is filled in.
	d = r.compare()
	var want change.Digest
	for i := range d.Entries {
		if d.Entries[i].Path == "/new" {
			want, d.Entries[i].New.Digest = d.Entries[i].New.Digest, change.Digest{}
		}
	}
	_, err := r.apply(r.store(nil), d)
	must(t, err)
	for _, e := range d.Entries {
		if e.Path == "/new" && e.New.Digest != want {
			t.Errorf("digest %s filled in; want %s", e.New.Digest, want)
		}
	}
}

func TestImmutableIsRefusedBeforehand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chattr needs root")
	}
	for _, name := range []string{"usr/tool", "usr", "usr/tree/x"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, t.TempDir())
			write(t, r.live, "usr/tool", "old", 0o755)
			write(t, r.live, "usr/tree/x", "old", 0o755)
			write(t, r.src, "usr/tool", "newer", 0o755)
			age(t, r.live, oldTime)
			age(t, r.src, oldTime)
			d := r.compare()
			s := r.store(nil)
			chattr(t, filepath.Join(r.live, name), true)
			defer chattr(t, filepath.Join(r.live, name), false)
			_, err := r.apply(s, d)
			if !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "/"+name) || !strings.Contains(err.Error(), "immutable") {
				t.Errorf("error %v; want one that says /%s is immutable", err, name)
			}
		})
	}
}

func TestStoreFolderIsChecked(t *testing.T) {
	root := func(t *testing.T) []Volume {
		dir, err := sys.OpenRoot(t.TempDir())
		must(t, err)
		t.Cleanup(func() { dir.Close() })
		return []Volume{{Mount: "/", Dir: dir}}
	}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, p string)
		want string
	}{
		{"mode", func(t *testing.T, p string) { must(t, os.Mkdir(p, 0o755)); must(t, os.Chmod(p, 0o755)) }, "mode 0755"},
		{"symlink", func(t *testing.T, p string) { must(t, os.Symlink("/tmp", p)) }, "symlink"},
		{"file", func(t *testing.T, p string) { must(t, os.WriteFile(p, nil, 0o600)) }, "not a directory"},
		{"owner", func(t *testing.T, p string) {
			if os.Geteuid() != 0 {
				t.Skip("chown needs root")
			}
			must(t, os.Mkdir(p, 0o700))
			must(t, os.Chown(p, 1, 1))
		}, "owner 1:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vols := root(t)
			tt.make(t, filepath.Join(vols[0].Dir.Name(), Dir))
			for name, open := range map[string]func() (*Store, error){
				"Open": func() (*Store, error) { return Open(nil, vols) },
				"Read": func() (*Store, error) { return Read(vols) },
			} {
				if _, err := open(); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "/"+Dir) {
					t.Errorf("%s: error %v; want one with %q that names the folder", name, err, tt.want)
				}
			}
		})
	}
	vols := root(t)
	s, err := Read(vols)
	must(t, err)
	if l, err := s.List(); err != nil || len(l) != 0 {
		t.Errorf("an absent store lists %v, %v", l, err)
	}
	if _, err := os.Lstat(filepath.Join(vols[0].Dir.Name(), Dir)); !os.IsNotExist(err) {
		t.Errorf("reading made the store: %v", err)
	}
}
