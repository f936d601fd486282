package layouts

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/tests/machine"
)

func withSnapshot(t *testing.T, name, root, source string, keep int) (any, error) {
	t.Helper()
	return (&engine.Engine{}).Run(t.Context(), engine.Request{
		Verb: name, Root: root, Source: "tree:" + source, AllowUnsigned: true, Snapshot: true, Keep: keep,
	}, engine.Events{})
}

func generations(t *testing.T, root string) []change.Generation {
	t.Helper()
	return verb(t, root, "", "history").([]change.Generation)
}

// snapshots are the names of all snapshots that are there.
func snapshots(t *testing.T, root string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, ".liveupd/snapshots/*"))
	must(t, err)
	return names
}

// A snapshot is the tree from before the commit, cannot be written to, is listed,
// goes with its generation, and can be made the root again.
func TestSnapshot(t *testing.T) {
	need(t)
	root := filepath.Join(t.TempDir(), "root")
	dev := disk(t, "btrfs")
	subvolumes(t, dev, "@")
	mount(t, root, dev, "-o", "subvol=@")
	populate(t, root)
	readOnly(t, root)
	t.Cleanup(func() { readWrite(t, root) })
	t.Run("run", func(t *testing.T) {
		source := update(t)
		old := snapshot(t, root, nil)
		plan, err := withSnapshot(t, "plan", root, source, 1)
		must(t, err)
		steps := ""
		for _, st := range plan.(*change.Plan).Steps {
			steps += st.Do + " "
		}
		if !strings.HasPrefix(steps, "snapshot commit ") {
			t.Errorf("the plan's steps are %q; want snapshot and commit", steps)
		}
		report, err := withSnapshot(t, "apply", root, source, 1)
		must(t, err)
		if done := report.(*change.Report).Steps; len(done) == 0 || done[0].Step.Do != "snapshot" || done[0].Result != "done" {
			t.Errorf("the report's steps are %+v", done)
		}
		list := generations(t, root)
		at := filepath.Join(root, list[0].Snapshot)
		if list[0].Snapshot == "" {
			t.Fatalf("no snapshot is listed: %+v", list)
		}
		same(t, "the snapshot is not the old tree", old, machine.TakeSnapshot(t, at))
		// Through a mount that can be written to: the root's own is read-only.
		copied := filepath.Join(t.TempDir(), "copy")
		mount(t, copied, dev, "-o", "subvol=@"+list[0].Snapshot)
		if err := os.WriteFile(filepath.Join(copied, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
			t.Errorf("writing to the snapshot: %v; want EROFS", err)
		}

		t.Run("made the root again", func(t *testing.T) {
			top := filepath.Join(t.TempDir(), "top")
			mount(t, top, dev, "-o", "subvolid=5")
			run(t, "btrfs", "-q", "subvolume", "snapshot", filepath.Join(top, "@"+list[0].Snapshot), filepath.Join(top, "again"))
			again := filepath.Join(top, "again")
			verb(t, again, "", "recover")
			same(t, "the snapshot as a root", old, machine.TakeSnapshot(t, again))
			if left, err := filepath.Glob(filepath.Join(again, ".liveupd/tx/*")); err != nil || len(left) > 0 {
				t.Errorf("the staging is still there: %v %v", left, err)
			}
			verb(t, again, source, "apply")
			if got := content(t, again, "usr/bin/gone"); got != "-" {
				t.Error("the snapshot cannot be updated")
			}
		})

		t.Run("goes with its generation", func(t *testing.T) {
			write(t, source, "usr/share/later", "x", 0o644)
			_, err := withSnapshot(t, "apply", root, source, 1)
			must(t, err)
			if left := snapshots(t, root); len(left) != 1 || filepath.Base(left[0]) != generations(t, root)[0].ID {
				t.Errorf("snapshots %q; want that of %s alone", left, generations(t, root)[0].ID)
			}
			_, err = withSnapshot(t, "apply", root, source, 1)
			must(t, err)
			if left := snapshots(t, root); len(left) != 1 {
				t.Errorf("an update that changes nothing: snapshots %q", left)
			}
			must(t, os.Remove(filepath.Join(source, "usr/share/later")))
		})
		// The file system itself is writable by the mounts of this test.
		if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
			t.Errorf("writing to the root: %v; want EROFS", err)
		}
	})
}

// A run that is killed leaves a snapshot only where it leaves its update.
func TestSnapshotOfKilledRun(t *testing.T) {
	need(t)
	t.Setenv("LAYOUTS_SNAPSHOT", "1")
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "btrfs"))
	populate(t, root)
	t.Run("run", func(t *testing.T) {
		source := update(t)
		old := snapshot(t, root, nil)
		if child(t, root, source, "apply", -1) != killed {
			t.Fatal("the run was not killed")
		}
		if len(snapshots(t, root)) != 1 {
			t.Fatal("the killed run had made no snapshot: nothing is shown")
		}
		verb(t, root, "", "recover")
		same(t, "after the recovery", old, snapshot(t, root, nil))
		if left := snapshots(t, root); len(left) > 0 {
			t.Errorf("an update that was undone left %q", left)
		}
		if child(t, root, source, "apply", 5) != killed {
			t.Fatal("the run was not killed")
		}
		verb(t, root, "", "recover")
		if left := snapshots(t, root); len(left) != 1 {
			t.Errorf("an update that was finished has snapshots %q", left)
		}
		verb(t, root, "", "rollback")
		same(t, "after the rollback", old, snapshot(t, root, nil))
	})
}

func TestSnapshotRefused(t *testing.T) {
	need(t)
	for name, tt := range map[string]struct {
		build func(t *testing.T, root string) string
		text  string
	}{
		"ext4": {func(t *testing.T, root string) string { mount(t, root, disk(t, "ext4")); return root }, "needs a root on btrfs"},
		"a folder of btrfs": {func(t *testing.T, root string) string {
			mount(t, root, disk(t, "btrfs"))
			return filepath.Join(root, "folder")
		}, "not a folder in one"},
	} {
		t.Run(name, func(t *testing.T) {
			root := tt.build(t, filepath.Join(t.TempDir(), "root"))
			must(t, os.MkdirAll(root, 0o755))
			t.Run("run", func(t *testing.T) {
				populate(t, root)
				old := snapshot(t, root, nil)
				for _, name := range []string{"plan", "apply"} {
					_, err := withSnapshot(t, name, root, update(t), 1)
					hint, ok := errors.AsType[*change.HintError](err)
					if err == nil || !strings.Contains(err.Error(), tt.text) || !ok || !strings.Contains(hint.Hint, "--snapshot") {
						t.Errorf("%s: %v (%+v); want %q", name, err, hint, tt.text)
					}
				}
				same(t, "a refused update changed the tree", old, snapshot(t, root, nil))
			})
		})
	}
}
