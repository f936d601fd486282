package layouts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/tests/machine"
)

// layout is one way in which a root lies on file systems.
type layout struct {
	name string
	// build makes the file systems of the root below the folder root, writable.
	build func(t *testing.T, root string)
	// inner are the places of the file systems below the root's own, parents first.
	inner []string
	// close makes read-only what is to be so; nil leaves the root writable.
	close func(t *testing.T, root string)
	// after is for what has to be done to the tree that was filled in.
	after func(t *testing.T, root string)
	// full: build fills the tree, too.
	full bool
	// told is in a warning of each plan.
	told string
	open func(t *testing.T, root string) // takes it back, for the end of the test
}

func separate(places ...string) func(t *testing.T, root string) {
	return func(t *testing.T, root string) {
		mount(t, root, disk(t, "ext4"))
		for _, at := range places {
			mount(t, filepath.Join(root, at), disk(t, "ext4"))
		}
	}
}

// overlay mounts one as a container has it, its layers on one ext4.
func overlay(t *testing.T, root string, lower bool, options string) {
	below := filepath.Join(filepath.Dir(root), "below")
	mount(t, below, disk(t, "ext4"))
	for _, dir := range []string{"lower", "upper", "work"} {
		must(t, os.Mkdir(filepath.Join(below, dir), 0o755))
	}
	if lower {
		populate(t, filepath.Join(below, "lower"))
	}
	mount(t, root, "-t", "overlay", "-o", fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work,%s", below, below, below, options), "overlay")
}

// idmapped mounts a file system as a container of its own users has it.
func idmapped(fstype string) func(t *testing.T, root string) {
	return func(t *testing.T, root string) {
		below := filepath.Join(filepath.Dir(root), "below")
		if fstype == "tmpfs" {
			mount(t, below, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
		} else {
			mount(t, below, disk(t, fstype))
		}
		must(t, os.Chown(below, 100000, 100000))
		mount(t, root, "--bind", "-o", "X-mount.idmap=b:100000:0:65536", below)
	}
}

func subvolumes(t *testing.T, dev string, names ...string) {
	t.Helper()
	top := t.TempDir()
	run(t, "mount", dev, top)
	for _, name := range names {
		run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(top, name))
	}
	run(t, "umount", top)
}

func readOnly(t *testing.T, root string)  { run(t, "mount", "-o", "remount,ro", root) }
func readWrite(t *testing.T, root string) { run(t, "mount", "-o", "remount,rw", root) }

var layouts = []layout{
	{name: "ext4, writable", build: func(t *testing.T, root string) { mount(t, root, disk(t, "ext4")) }},
	{name: "ext4, read-only", build: func(t *testing.T, root string) { mount(t, root, disk(t, "ext4")) }, close: readOnly, open: readWrite},
	{name: "ext4, noatime and nodev", build: func(t *testing.T, root string) { mount(t, root, disk(t, "ext4"), "-o", "noatime,nodev,data=ordered") }, close: readOnly, open: readWrite},
	{name: "ext4 without a journal", build: func(t *testing.T, root string) { mount(t, root, disk(t, "ext4", "-O", "^has_journal")) }, close: readOnly, open: readWrite},
	{name: "xfs, writable", build: func(t *testing.T, root string) { mount(t, root, disk(t, "xfs")) }},
	{name: "xfs, read-only", build: func(t *testing.T, root string) { mount(t, root, disk(t, "xfs")) }, close: readOnly, open: readWrite},
	{
		name: "xfs with projects", build: func(t *testing.T, root string) { mount(t, root, disk(t, "xfs")) },
		after: func(t *testing.T, root string) { inProject(t, filepath.Join(root, "usr/lib/app"), 42) },
	},
	{name: "btrfs, top level", build: func(t *testing.T, root string) { mount(t, root, disk(t, "btrfs")) }, close: readOnly, open: readWrite},
	{name: "btrfs, subvolume", build: func(t *testing.T, root string) {
		dev := disk(t, "btrfs")
		subvolumes(t, dev, "@")
		mount(t, root, dev, "-o", "subvol=@")
	}, close: readOnly, open: readWrite},
	{
		name: "btrfs, @ read-only beside a writable @var", inner: []string{"var"}, build: func(t *testing.T, root string) {
			dev := disk(t, "btrfs")
			subvolumes(t, dev, "@", "@var")
			mount(t, root, dev, "-o", "subvol=@")
			mount(t, filepath.Join(root, "var"), dev, "-o", "subvol=@var")
		}, close: func(t *testing.T, root string) { run(t, "mount", "-o", "remount,bind,ro", root) },
		open: func(t *testing.T, root string) { run(t, "mount", "-o", "remount,bind,rw", root) },
	},
	{name: "btrfs, subvolumes in the root", inner: []string{"srv", "var", "var/lib/machines", ".snapshots"}, build: func(t *testing.T, root string) {
		mount(t, root, disk(t, "btrfs"))
		must(t, os.MkdirAll(filepath.Join(root, "var"), 0o755))
		must(t, os.Remove(filepath.Join(root, "var")))
		for _, at := range []string{"srv", "var", ".snapshots"} {
			run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(root, at))
		}
		must(t, os.MkdirAll(filepath.Join(root, "var/lib"), 0o755))
		run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(root, "var/lib/machines"))
	}, close: readOnly, open: readWrite},
	{name: "tmpfs", told: "the update of / does not last: it lies in memory (tmpfs)", build: func(t *testing.T, root string) { mount(t, root, "-t", "tmpfs", "-o", "size=192m", "tmpfs") }},
	{
		name: "a live medium", told: "an overlay whose upper layer lies in memory (tmpfs)", full: true,
		build: func(t *testing.T, root string) {
			image(t, filepath.Join(filepath.Dir(root), "image"), "squashfs", populate)
			memory := filepath.Join(filepath.Dir(root), "memory")
			mount(t, memory, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
			for _, dir := range []string{"up", "work"} {
				must(t, os.Mkdir(filepath.Join(memory, dir), 0o755))
			}
			mount(t, root, "-t", "overlay", "-o", fmt.Sprintf("lowerdir=%s/image,upperdir=%s/up,workdir=%s/work,redirect_dir=on", filepath.Dir(root), memory, memory), "overlay")
		},
	},
	{name: "separate /usr", inner: []string{"usr"}, build: separate("usr"), close: func(t *testing.T, root string) { readOnly(t, root+"/usr") }, open: func(t *testing.T, root string) { readWrite(t, root+"/usr") }},
	{name: "separate /var", inner: []string{"var"}, build: separate("var"), close: readOnly, open: readWrite},
	{name: "separate /boot", inner: []string{"boot"}, build: separate("boot")},
	{name: "separate /home", inner: []string{"home"}, build: separate("home")},
	{
		name: "/usr bound to itself, read-only", inner: []string{"usr"}, build: func(t *testing.T, root string) {
			mount(t, root, disk(t, "ext4"))
			mount(t, filepath.Join(root, "usr"), "--bind", filepath.Join(root, "usr"))
		}, close: func(t *testing.T, root string) { run(t, "mount", "-o", "remount,bind,ro", root+"/usr") },
		open: func(t *testing.T, root string) { run(t, "mount", "-o", "remount,bind,rw", root+"/usr") },
	},
	{name: "all separate", inner: []string{"usr", "var", "boot", "home", "srv"}, build: separate("usr", "var", "boot", "home", "srv"), close: readOnly, open: readWrite},
	{name: "/usr on xfs, /var on btrfs", inner: []string{"usr", "var"}, build: func(t *testing.T, root string) {
		mount(t, root, disk(t, "ext4"))
		mount(t, filepath.Join(root, "usr"), disk(t, "xfs"))
		mount(t, filepath.Join(root, "var"), disk(t, "btrfs"))
	}, close: readOnly, open: readWrite},
	{name: "overlay with all in the upper", build: func(t *testing.T, root string) { overlay(t, root, false, "redirect_dir=nofollow") }},
	{name: "overlay with all in the lower", full: true, build: func(t *testing.T, root string) { overlay(t, root, true, "redirect_dir=on,index=on") }},
	{name: "idmapped", build: idmapped("ext4")},
	{name: "idmapped xfs", build: idmapped("xfs")},
	{name: "idmapped btrfs", build: idmapped("btrfs")},
	{name: "idmapped tmpfs", told: "lies in memory (tmpfs)", build: idmapped("tmpfs")},
	{name: "ext4 that counts time in seconds", build: func(t *testing.T, root string) { mount(t, root, disk(t, "ext4", "-I", "128")) }, close: readOnly, open: readWrite},
}

// inShort are those that every run tries; the others lie in the long form.
var inShort = map[string]bool{
	"ext4, read-only": true, "xfs with projects": true, "overlay with all in the upper": true, "overlay with all in the lower": true, "xfs, read-only": true, "btrfs, subvolume": true,
	"btrfs, @ read-only beside a writable @var": true, "btrfs, subvolumes in the root": true, "tmpfs": true,
	"separate /usr": true, "all separate": true, "/usr on xfs, /var on btrfs": true, "idmapped": true, "idmapped btrfs": true, "idmapped tmpfs": true,
	"/usr bound to itself, read-only": true, "a live medium": true, "ext4 that counts time in seconds": true,
}

// On each layout an update is applied and taken back, and cut off by SIGKILL in the
// middle of the commit and recovered: the tree is the old one or the new one, and
// each mount has the flags that it had.
func TestLayouts(t *testing.T) {
	need(t)
	for _, l := range layouts {
		if !inShort[l.name] && !long() {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			must(t, os.Mkdir(root, 0o755))
			l.build(t, root)
			if !l.full {
				populate(t, root)
			}
			if l.after != nil {
				l.after(t, root)
			}
			if l.close != nil {
				l.close(t, root)
				t.Cleanup(func() { l.open(t, root) })
			}
			// What holds a file system open ends before it is unmounted.
			t.Run("run", func(t *testing.T) { l.thereAndBack(t, root) })
		})
	}
}

func (l *layout) thereAndBack(t *testing.T, root string) {
	source := update(t)
	old, before := snapshot(t, root, l.inner), flags(t, root)
	untouched := func(what string) {
		t.Helper()
		if now := flags(t, root); now != before {
			t.Errorf("%s: the mounts are\n%s\nand were\n%s", what, now, before)
		}
	}
	warnings := strings.Join(verb(t, root, source, "plan").(*change.Plan).Warnings, "\n")
	if !strings.Contains(warnings, l.told) || l.told == "" && (strings.Contains(warnings, "does not last") || strings.Contains(warnings, "lands under")) {
		t.Errorf("the plan warns of %q; want %q", warnings, l.told)
	}
	same(t, "a plan changed the tree", old, snapshot(t, root, l.inner))
	verb(t, root, source, "apply")
	fresh := timeless(snapshot(t, root, l.inner))
	untouched("after the apply")
	for name, want := range map[string]string{
		"usr/bin/tool": "#!/bin/sh\necho 2\n", "usr/bin/gone": "-", "usr/lib/app/kind/inside": "a folder", "etc/app.conf": "new",
		"etc/mine.conf": "mine", "var/lib/app/state": "state", "var/lib/app/added": "added", "boot/vmlinuz-2": "kernel 2",
		"home/user/intruder": "-", "home/user/notes": "notes", "srv/www/index.html": "index 1",
	} {
		if got := content(t, root, name); got != want {
			t.Errorf("after the apply %s holds %q; want %q", name, got, want)
		}
	}
	if v := verb(t, root, source, "verify").(*change.VerifyReport); v.Damaged > 0 {
		t.Errorf("verify finds damage: %+v", v)
	}
	verb(t, root, source, "rollback")
	same(t, "after the rollback", old, snapshot(t, root, l.inner))
	untouched("after the rollback")

	total := child(t, root, source, "apply", 0)
	verb(t, root, source, "rollback")
	if total < 10 {
		t.Fatalf("the commit has %d renames: too few to cut", total)
	}
	points := []int{total / 2}
	if long() {
		points = points[:0]
		for n := 1; n <= total; n += 3 {
			points = append(points, n)
		}
	}
	for _, n := range points {
		if got := child(t, root, source, "apply", n); got != killed {
			t.Fatalf("rename %d of %d: the run was not killed", n, total)
		}
		torn := timeless(snapshot(t, root, l.inner))
		if len(torn.Diff(fresh)) == 0 || len(torn.Diff(timeless(old))) == 0 && n > 1 {
			t.Errorf("rename %d of %d: the killed run left a whole tree: nothing is shown", n, total)
		}
		verb(t, root, source, "recover")
		same(t, "recovered after rename "+strconv.Itoa(n), fresh, timeless(snapshot(t, root, l.inner)))
		untouched("after the recovery")
		verb(t, root, source, "rollback")
		same(t, "rolled back after the recovery", old, snapshot(t, root, l.inner))
		untouched("after the last rollback")
	}
	t.Logf("%d of the %d renames of the commit were points of a kill", len(points), total)
}

// What an update adds to a folder that hands its project down is of that project,
// and its quota counts it; what moves out of the folder and back is, too.
func TestProjects(t *testing.T) {
	need(t)
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "xfs"))
	t.Run("run", func(t *testing.T) {
		populate(t, root)
		inProject(t, filepath.Join(root, "usr/lib/app"), 42)
		verb(t, root, update(t), "apply")
		for name, want := range map[string]sys.Project{
			"usr/lib/app/new": {ID: 42, Inherit: true}, "usr/lib/app/new/1": {ID: 42}, "usr/lib/app/data/b": {ID: 42},
			"usr/lib/app/kind": {ID: 42, Inherit: true}, "usr/share/doc": {}, "usr/bin/tool": {},
		} {
			if got := project(t, filepath.Join(root, name)); got != want {
				t.Errorf("%s is of project %+v; want %+v", name, got, want)
			}
		}
		verb(t, root, "", "rollback")
		if got := project(t, filepath.Join(root, "usr/lib/app/dropped/b")); got.ID != 42 {
			t.Errorf("what came back is of project %+v; want 42", got)
		}
	})
}

// inProject makes a folder and all in it part of a project, handed down.
func inProject(t *testing.T, dir string, id uint32) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := openAny(p)
		if err != nil {
			return err
		}
		defer f.Close()
		return (*sys.Kernel)(nil).SetProject(f, sys.Project{ID: id, Inherit: d.IsDir()})
	}))
}

func project(t *testing.T, name string) sys.Project {
	t.Helper()
	f, err := openAny(name)
	must(t, err)
	defer f.Close()
	p, err := sys.ProjectOf(f)
	must(t, err)
	return p
}

// openAny opens a file or a folder for reading.
func openAny(name string) (*sys.FD, error) {
	dir, err := sys.OpenRoot(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return sys.OpenAt(dir, filepath.Base(name), sys.OpenRead, 0)
}

func verb(t *testing.T, root, source, name string) any {
	t.Helper()
	result, err := try(t, root, source, name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return result
}

func try(t *testing.T, root, source, name string) (any, error) {
	t.Helper()
	req := engine.Request{Verb: name, Root: root}
	if name == "apply" || name == "plan" {
		req.Source, req.AllowUnsigned = "tree:"+source, true
	}
	return (&engine.Engine{}).Run(t.Context(), req, engine.Events{})
}

const killed = -1

// child runs a verb in a process that kills itself before the nth rename of the
// commit, and gives the number of renames of one that was let live.
func child(t *testing.T, root, source, name string, nth int) int {
	t.Helper()
	out, err := exec.Command("/proc/self/exe", "die", name, root, source, strconv.Itoa(nth)).CombinedOutput()
	if err != nil {
		if nth == 0 {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return killed
	}
	n, err := strconv.Atoi(trim(string(out)))
	must(t, err)
	return n
}

// The program that lies in initrds recovers, too, where volumes are no mounts.
func TestRecoverProgram(t *testing.T) {
	need(t)
	if testing.Short() {
		t.Skip("builds the programs: not with -short")
	}
	program := machine.Program(t, "liveupd-recover")
	for _, name := range []string{"ext4, writable", "btrfs, subvolumes in the root", "all separate", "overlay with all in the lower"} {
		l := layouts[slices.IndexFunc(layouts, func(l layout) bool { return l.name == name })]
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			must(t, os.Mkdir(root, 0o755))
			l.build(t, root)
			if !l.full {
				populate(t, root)
			}
			t.Run("run", func(t *testing.T) {
				source := update(t)
				old := snapshot(t, root, l.inner)
				total := child(t, root, source, "apply", 0)
				fresh := timeless(snapshot(t, root, l.inner))
				verb(t, root, source, "rollback")
				if child(t, root, source, "apply", total/2) != killed {
					t.Fatal("the run was not killed")
				}
				run(t, program, "--root", root)
				same(t, "recovered", fresh, timeless(snapshot(t, root, l.inner)))
				verb(t, root, source, "recover")
				verb(t, root, source, "rollback")
				same(t, "rolled back after the recovery", old, snapshot(t, root, l.inner))
			})
		})
	}
}
