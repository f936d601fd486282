package nsmount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/internal/sys"
)

func TestVisible(t *testing.T) {
	const info = `
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /var rw - ext4 /dev/sda2 rw
22 21 0:30 / /var/log rw - tmpfs tmpfs rw
23 20 8:3 / /hidden rw - ext4 /dev/sda3 rw
24 23 0:31 / /hidden/below rw - tmpfs tmpfs rw
25 23 8:4 / /hidden rw - xfs /dev/sda4 rw
26 22 8:5 / /var/log/disk rw - ext4 /dev/sda5 rw
27 20 0:32 / /va rw - tmpfs tmpfs rw
28 99 0:33 / /unreachable rw - tmpfs tmpfs rw
`
	mounts, err := sys.ParseMountinfo(strings.NewReader(info))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		base int
		dir  string
		want []string
	}{
		{"root", 20, "/", []string{"/hidden 25 on /", "/va 27 on /", "/var 21 on /", "/var/log 22 on /var", "/var/log/disk 26 on /var/log"}},
		{"mount point", 21, "/var", []string{"/log 22 on /", "/log/disk 26 on /log"}},
		{"directory above a mount point", 20, "/var", nil},
		{"leaf", 27, "/va", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, in := range visible(mounts, tt.base, tt.dir) {
				got = append(got, fmt.Sprintf("%s %d on %s", in.point, in.mount.ID, in.upon))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("visible(%d, %s) (-want +got):\n%s", tt.base, tt.dir, diff)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a root")
	dev := loop(t, image(t, "ext4"))
	mount(t, root, dev)
	for _, dir := range []string{"usr/lib", "etc", "var", "mnt/bind", "mnt/chroot"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/under"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	xfs := loop(t, image(t, "xfs"))
	mount(t, filepath.Join(root, "var"), xfs)
	mount(t, filepath.Join(root, "var/log"), "-t", "tmpfs", "tmpfs")
	mount(t, filepath.Join(root, "var/log/deep"), loop(t, image(t, "ext4")))
	mount(t, filepath.Join(root, "mnt/bind"), "--bind", filepath.Join(root, "etc"))

	mount(t, filepath.Join(root, "mnt/chroot"), "--bind", filepath.Join(root, "var"))

	r := openRoot(t, root)
	type row struct{ Mount, ID, FSType string }
	var got []row
	for _, v := range r.Volumes() {
		got = append(got, row{v.Mount, v.ID, v.FSType})
	}
	want := []row{
		{"/", run(t, "blkid", "-s", "UUID", "-o", "value", "-p", dev), "ext4"},
		{"/var", run(t, "blkid", "-s", "UUID", "-o", "value", "-p", xfs), "xfs"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Volumes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/mnt/bind", "/mnt/chroot", "/var/log", "/var/log/deep"}, r.Covered()); diff != "" {
		t.Errorf("Covered (-want +got):\n%s", diff)
	}
	// A copy has nothing mounted below.
	if _, err := sys.Lstat(volumeOf(t, r, "/").Dir, "var/under"); err != nil {
		t.Errorf("what /var hides: %v", err)
	}
	// The way of old kernels gives the same.
	var st syscall.Stat_t
	if err := syscall.Stat(dev, &st); err != nil {
		t.Fatal(err)
	}
	if uuid, err := sys.Ext4UUID(st.Rdev); err != nil || uuid != want[0].ID {
		t.Errorf("the UUID read from the device is %s, %v; want %s", uuid, err, want[0].ID)
	}
}

func TestOpenDirectory(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	sub := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(sub, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("root", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	mount(t, filepath.Join(sub, "run"), "-t", "tmpfs", "tmpfs")
	r, err := Open(filepath.Join(dir, "link"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n := len(r.Volumes()); n != 1 {
		t.Fatalf("%d volumes; want one", n)
	}
	if diff := cmp.Diff([]string{"/run"}, r.Covered()); diff != "" {
		t.Errorf("Covered (-want +got):\n%s", diff)
	}
	if err := writeFD(volumeOf(t, r, "/").Dir); err != nil {
		t.Errorf("writing to the directory: %v", err)
	}
	up, err := sys.OpenAt(volumeOf(t, r, "/").Dir, "..", sys.OpenRead|sys.OpenDir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	if _, err := sys.Lstat(up, "root"); err == nil {
		t.Error(".. leads out of the copy")
	}
}

func TestOpenUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		needRoot(t)
		dir, err := os.MkdirTemp("/var/tmp", "nsmount-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		h := startHelperAs(t, 0, "unprivileged", dir)
		if got := h.read(t); got != "ok" {
			t.Error(got)
		}
		return
	}
	if err := checkUnprivileged(t.TempDir()); err != nil {
		t.Error(err)
	}
}

// checkUnprivileged is run by a process without capabilities.
func checkUnprivileged(dir string) error {
	if r, err := Open(dir, true); err == nil {
		r.Close()
		return fmt.Errorf("a live root was opened without a copy")
	}
	r, err := Open(dir, false)
	if err != nil {
		return err
	}
	defer r.Close()
	if len(r.Volumes()) != 1 {
		return fmt.Errorf("volumes: %v", r.Volumes())
	}
	if err := r.MakeWritable(nil); err != nil {
		return err
	}
	if err := writeFD(r.Volumes()[0].Dir); err != nil {
		return err
	}
	_, err = r.Restore()
	return err
}

func TestOpenSubvolumes(t *testing.T) {
	top := t.TempDir()
	dev := loop(t, image(t, "btrfs"))
	mount(t, top, dev)
	run(t, "btrfs", "subvolume", "create", top+"/@")
	run(t, "btrfs", "subvolume", "create", top+"/@var")
	run(t, "mkdir", "-p", top+"/@/var", top+"/@/part", top+"/@/again", top+"/@var/lib")
	root := t.TempDir()
	mount(t, root, "-o", "subvol=@", dev)
	mount(t, root+"/var", "-o", "subvol=@var", dev)
	mount(t, root+"/again", "-o", "subvol=@var", dev)
	mount(t, root+"/part", "--bind", root+"/var/lib")
	r := openRoot(t, root)
	uuid := run(t, "blkid", "-s", "UUID", "-o", "value", "-p", dev)
	var ids []string
	for _, v := range r.Volumes() {
		ids = append(ids, v.Mount+" "+v.ID)
	}
	if diff := cmp.Diff([]string{"/ " + uuid + ":256", "/var " + uuid + ":257"}, ids); diff != "" {
		t.Errorf("Volumes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/again", "/part"}, r.Covered()); diff != "" {
		t.Errorf("Covered (-want +got):\n%s", diff)
	}
}
