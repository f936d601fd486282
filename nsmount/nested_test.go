package nsmount

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/internal/sys"
)

// What is staged for a btrfs subvolume that lies in another one, and is no mount, is in
// the view, and so is what is mounted below it; what liveupd keeps there is not.
func TestViewOfNestedSubvolumes(t *testing.T) {
	box := busybox(t)
	dir := filepath.Join(t.TempDir(), "m")
	mount(t, dir, loop(t, image(t, "btrfs")))
	for _, d := range []string{"bin", "etc", "run", "tmp", "proc", "sys", "dev", ".liveupd/tx/1/up/etc"} {
		mkdir(t, dir+"/"+d)
	}
	run(t, "cp", box, dir+"/bin/busybox")
	inner := []string{"/srv", "/srv/deep", "/var"}
	for _, at := range inner {
		run(t, "btrfs", "-q", "subvolume", "create", dir+at)
		mkdir(t, dir+at+"/.liveupd/tx/1/up")
		write(t, dir+at+"/file", "old")
		write(t, dir+at+"/same", "same")
	}
	// /srv/deep has nothing staged; /var has an upper, and is covered from /var/disk on.
	mkdir(t, dir+"/var/disk")
	mount(t, dir+"/var/disk", loop(t, image(t, "ext4")))
	write(t, dir+"/var/disk/file", "disk")
	write(t, dir+"/.liveupd/tx/1/up/etc/conf", "new")
	for _, at := range []string{"/srv", "/var"} {
		write(t, dir+at+"/.liveupd/tx/1/up/file", "new")
		write(t, dir+at+"/.liveupd/tx/1/up/added", "added")
	}
	root := openRoot(t, dir)
	opts := ViewOptions{Root: root}
	for _, at := range []string{"/", "/srv", "/var"} {
		// As the transaction does: from the copy of the root's mount.
		up, err := sys.OpenAt(root.Volumes()[0].Dir, strings.TrimLeft(at+"/.liveupd/tx/1/up", "/"), sys.OpenRead|sys.OpenDir, sys.ResolveBeneath)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { up.Close() })
		opts.Uppers = append(opts.Uppers, ViewUpper{Mount: at, Up: up})
	}
	m := &machine{dir: dir, root: root, opts: opts}
	out, err := m.view(t).Run(t.Context(), []string{"/bin/busybox", "sh", "-c", `cd /
for f in etc/conf srv/file srv/same srv/added srv/deep/file var/file var/added var/disk/file; do
	/bin/busybox cat $f; echo
done
echo $(/bin/busybox ls -A srv/.liveupd var/.liveupd)`})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := strings.Fields(string(out)); strings.Join(got, " ") != "new new same added old new added disk srv/.liveupd: var/.liveupd:" {
		t.Errorf("the view shows %q", got)
	}
}
