package layouts

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// A root, or a file system in it, that cannot take the update is refused by name
// with a way out, by the plan already where nothing has to be tried, and nothing
// is changed.
func TestRefused(t *testing.T) {
	need(t)
	for _, tt := range []struct {
		name  string
		build func(t *testing.T, root string)
		inner []string
		plan  bool   // the plan refuses already
		text  string // of the error
		hint  string
	}{
		{"a squashfs root", func(t *testing.T, root string) { image(t, root, "squashfs", populate) }, nil, true, "cannot update / in place: it is an image (squashfs)", "make a new image"},
		{"an erofs root", func(t *testing.T, root string) { image(t, root, "erofs", populate) }, nil, true, "cannot update / in place: it is an image (erofs)", "make a new image"},
		{"/usr on squashfs", func(t *testing.T, root string) {
			mount(t, root, disk(t, "ext4"))
			populate(t, root)
			image(t, filepath.Join(root, "usr"), "squashfs", func(t *testing.T, dir string) {
				run(t, "cp", "-a", root+"/usr/.", dir)
			})
		}, []string{"usr"}, true, "cannot update /usr in place: it is an image (squashfs)", "make a new image"},
		{"layers alone", func(t *testing.T, root string) {
			below := t.TempDir()
			populate(t, below)
			mount(t, root, "-t", "overlay", "-o", "lowerdir="+below+":"+t.TempDir(), "overlay")
		}, nil, true, "overlay of read-only layers", "bootc upgrade"},
		{"a volatile overlay", func(t *testing.T, root string) {
			overlay(t, root, false, "volatile")
			populate(t, root)
		}, nil, true, "mounted with volatile", "without volatile"},
		{"a read-only snapshot of btrfs", func(t *testing.T, root string) {
			mount(t, root, disk(t, "btrfs"))
			populate(t, root)
			run(t, "btrfs", "property", "set", "-ts", root, "ro", "true")
			t.Cleanup(func() { run(t, "btrfs", "property", "set", "-ts", root, "ro", "false") })
		}, nil, true, "property ro=true", "transactional-update"},
		{"a read-only subvolume in the root", func(t *testing.T, root string) {
			mount(t, root, disk(t, "btrfs"))
			run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(root, "var"))
			populate(t, root)
			run(t, "btrfs", "property", "set", "-ts", filepath.Join(root, "var"), "ro", "true")
		}, []string{"var"}, false, "/var: it has the property ro=true", "btrfs property set"},
		{"a write-protected disk", func(t *testing.T, root string) {
			file := filepath.Join(disks(t), "image")
			must(t, os.WriteFile(file, nil, 0o600))
			must(t, os.Truncate(file, 96<<20))
			from := t.TempDir()
			populate(t, from)
			run(t, "mkfs.ext4", "-q", "-d", from, file)
			mount(t, root, loop(t, file, "-r"), "-o", "ro")
		}, nil, true, "its block device refuses writes", "blockdev --setrw"},
		{"a tree of ostree", func(t *testing.T, root string) {
			mount(t, root, disk(t, "ext4"))
			populate(t, root)
			must(t, os.Symlink("sysroot/ostree", filepath.Join(root, "ostree")))
		}, nil, true, "it is a deployment of ostree", "rpm-ostree upgrade"},
		{"/usr bound from elsewhere", func(t *testing.T, root string) {
			mount(t, root, disk(t, "ext4"))
			populate(t, root)
			other := filepath.Join(filepath.Dir(root), "other")
			mount(t, other, disk(t, "xfs"))
			run(t, "cp", "-a", root+"/usr", other)
			mount(t, filepath.Join(root, "usr"), "--bind", other+"/usr")
		}, []string{"usr"}, true, "/usr is a bind of /usr (xfs on /dev/loop", "unmount it"},
		{"/usr bound from another place of the root", func(t *testing.T, root string) {
			mount(t, root, disk(t, "ext4"))
			populate(t, root)
			run(t, "cp", "-a", root+"/usr", root+"/usr2")
			mount(t, filepath.Join(root, "usr"), "--bind", root+"/usr2")
		}, []string{"usr"}, true, "/usr is a bind of /usr2 (ext4 on /dev/loop", "unmount it"},
		{"extensions merged into /usr", func(t *testing.T, root string) {
			mount(t, root, disk(t, "ext4"))
			populate(t, root)
			extension := t.TempDir()
			write(t, extension, "lib/extension-release.d/extension-release.x", "ID=_any\n", 0o644)
			mount(t, filepath.Join(root, "usr"), "-t", "overlay", "-o", "ro,lowerdir="+extension+":"+root+"/usr", "sysext")
		}, []string{"usr"}, true, "/usr is merged from extensions by systemd-sysext", "systemd-sysext unmerge"},
		{"an overlay over /etc", func(t *testing.T, root string) {
			mount(t, root, disk(t, "ext4"))
			populate(t, root)
			for _, dir := range []string{"up", "work"} {
				must(t, os.Mkdir(filepath.Join(root, dir), 0o755))
			}
			mount(t, filepath.Join(root, "etc"), "-t", "overlay", "-o", "lowerdir="+root+"/etc,upperdir="+root+"/up,workdir="+root+"/work", "overlay")
		}, []string{"etc"}, true, "/etc is an overlay, beneath which nothing may change", "unmount it for as long"},
		{"a folder of a container's image", func(t *testing.T, root string) { overlay(t, root, true, "redirect_dir=nofollow") }, nil, false, "it lies in a lower layer", "redirect_dir=on"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			must(t, os.Mkdir(root, 0o755))
			tt.build(t, root)
			t.Run("run", func(t *testing.T) {
				old, before := snapshot(t, root, tt.inner), flags(t, root)
				source := update(t)
				for _, name := range []string{"plan", "apply"} {
					_, err := try(t, root, source, name)
					if err == nil && name == "plan" && !tt.plan {
						continue
					}
					hint, ok := errors.AsType[*change.HintError](err)
					if err == nil || !strings.Contains(err.Error(), tt.text) || !ok || !strings.Contains(hint.Hint, tt.hint) {
						t.Errorf("%s: %v (hint %+v); want %q and %q", name, err, hint, tt.text, tt.hint)
					}
				}
				same(t, "the refused update changed the tree", old, snapshot(t, root, tt.inner))
				if now := flags(t, root); now != before {
					t.Errorf("the mounts are\n%s\nand were\n%s", now, before)
				}
				left, err := filepath.Glob(filepath.Join(root, ".liveupd/tx/*"))
				if _, serr := os.Lstat(filepath.Join(root, ".liveupd")); err != nil || len(left) > 0 || tt.plan && tt.inner == nil && serr == nil {
					t.Errorf("left behind: %v %v %v", left, err, serr)
				}
			})
		})
	}
}

// An image for /usr is no reason to refuse what lies elsewhere.
func TestImageThatIsLeftAlone(t *testing.T) {
	need(t)
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "ext4"))
	image(t, filepath.Join(root, "usr"), "erofs", func(t *testing.T, dir string) { write(t, dir, "bin/tool", "1", 0o755) })
	t.Run("run", func(t *testing.T) {
		source := t.TempDir()
		write(t, source, "opt/app/file", "x", 0o644)
		verb(t, root, source, "apply")
		if got := content(t, root, "opt/app/file"); got != "x" {
			t.Errorf("the file holds %q", got)
		}
	})
}

// image mounts a read-only image of what fill makes.
func image(t *testing.T, point, fstype string, fill func(*testing.T, string)) {
	t.Helper()
	from, file := t.TempDir(), filepath.Join(disks(t), "image")
	fill(t, from)
	if fstype == "squashfs" {
		need(t, "mksquashfs")
		run(t, "mksquashfs", from, file, "-quiet", "-no-progress")
	} else {
		need(t, "mkfs.erofs")
		run(t, "mkfs.erofs", "--quiet", file, from)
	}
	must(t, os.MkdirAll(point, 0o755))
	mount(t, point, "-o", "loop,ro", "-t", fstype, file)
}

// An update that lists paths in a subvolume of the root lands there, and a
// subvolume that went meanwhile is no obstacle.
func TestListedInSubvolume(t *testing.T) {
	need(t)
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "btrfs"))
	run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(root, "srv"))
	run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(root, "srv/deep"))
	t.Run("run", func(t *testing.T) {
		write(t, root, "srv/www/index.html", "1", 0o644)
		write(t, root, "srv/deep/file", "1", 0o644)
		source := t.TempDir()
		for _, name := range []string{"srv/www/index.html", "srv/www/new/page", "srv/deep/file", "opt/x"} {
			write(t, source, name, "2", 0o644)
		}
		inner := []string{"srv", "srv/deep"}
		old := snapshot(t, root, inner)
		verb(t, root, source, "apply")
		for _, name := range []string{"srv/www/index.html", "srv/www/new/page", "srv/deep/file", "opt/x"} {
			if got := content(t, root, name); got != "2" {
				t.Errorf("%s holds %q; want 2", name, got)
			}
		}
		if result := verb(t, root, source, "apply").(*change.Report).Result; result != "nothing-to-do" {
			t.Errorf("the same again: %s", result)
		}
		verb(t, root, "", "rollback")
		same(t, "after the rollback", old, snapshot(t, root, inner))
		run(t, "btrfs", "-q", "subvolume", "delete", filepath.Join(root, "srv/deep"))
		must(t, os.RemoveAll(filepath.Join(source, "srv/deep")))
		verb(t, root, source, "apply")
		if got := content(t, root, "srv/www/new/page"); got != "2" {
			t.Errorf("after a subvolume went the page holds %q", got)
		}
	})
}
