package transact

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// The staged form is an overlay's upper over the live volume: the view shows the
// new tree, and what the overlay and the programs in it leave behind is not
// committed.
func TestStagedViewIsTheNewTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	base := t.TempDir()
	r := newRig(t, base)
	r.everyChange()
	want := snapshot(t, r.src)
	s := r.store(nil)
	tx, err := s.Begin(Header{})
	must(t, err)
	defer tx.Close()
	src, err := sys.OpenRoot(r.src)
	must(t, err)
	defer src.Close()
	d := r.compare()
	must(t, tx.Stage(context.Background(), d, src, nil))
	must(t, tx.Prepare(context.Background(), nil))
	uppers, err := tx.Uppers()
	must(t, err)
	if len(uppers) != 1 || uppers[0].Mount != "/" {
		t.Fatalf("uppers %+v; want the root's", uppers)
	}
	view := filepath.Join(base, "view")
	must(t, os.Mkdir(view, 0o755))
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=on,metacopy=off,index=on,volatile",
		r.live, uppers[0].Up.ProcPath(), uppers[0].Work.ProcPath())
	if err := syscall.Mount("overlay", view, "overlay", 0, options); err != nil {
		t.Skip("cannot mount an overlay here: ", err)
	}
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			if err := syscall.Unmount(view, 0); err != nil {
				t.Errorf("cannot unmount the view: %v", err)
			}
		}
	}
	defer unmount()
	got := r.nodes(view)
	for _, e := range d.Entries {
		n := got[e.Path]
		switch {
		case e.New == nil && n != nil:
			t.Errorf("%s: is in the view as %s; it goes", e.Path, n.Type)
		case e.New == nil || e.Op == change.Metadata:
		case n == nil:
			t.Errorf("%s is not in the view", e.Path)
		case n.Type != e.New.Type || n.Mode != e.New.Mode || n.UID != e.New.UID || n.Digest != e.New.Digest || n.Target != e.New.Target || n.Rdev != e.New.Rdev:
			t.Errorf("%s: the view has %+v; want %+v", e.Path, n, e.New)
		}
	}
	// A validator that writes beside what it reads.
	write(t, view, "usr/share/newtree/a/__pycache__/x", "stray", 0o644)
	write(t, view, "usr/share/m/mtime", "overwritten in the view only", 0o644)
	must(t, os.Remove(filepath.Join(view, "usr/share/same")))
	for _, u := range uppers {
		u.Up.Close()
		u.Work.Close()
	}
	unmount()
	_, err = tx.Commit(context.Background())
	must(t, err)
	must(t, tx.Verified())
	sameTree(t, "what was done in the view was committed", want, snapshot(t, r.live))
	r.aloneInStore()
}
