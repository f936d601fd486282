package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// first is the first process of a machine of FromDisk: it goes over to the disk, and to the program that
// init= names.
const first = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
init=/sbin/init
for word in $(/bin/busybox cat /proc/cmdline); do case $word in init=*) init=${word#init=} ;; esac; done
/bin/busybox umount /proc
for m in $(/bin/busybox cat /modules/order); do /bin/busybox insmod $m; done
until /bin/busybox mount -t ext4 /dev/vda /mnt; do /bin/busybox sleep 1; done
exec /bin/busybox switch_root /mnt $init
`

// FromDisk is an initrd that boots the system that lies on the machine's first disk, of Image. The
// kernel is that of a cached root; the modules are what the system needs beside those of the disk.
func FromDisk(t testing.TB, kernel string, modules ...string) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (run tests/setup/install.sh)")
	}
	init := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(init, []byte(first), 0o755); err != nil {
		t.Fatal(err)
	}
	return Initramfs(t, Contents{Init: init, Programs: []string{busybox}, Modules: append([]string{"virtio_pci", "virtio_blk", "ext4"}, modules...), Kernel: kernel})
}

// Image makes an ext4 file system of a folder, which is removed, in a file of that size (as mkfs takes it).
func Image(t testing.TB, root, image, size string) {
	t.Helper()
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-N", "60000", "-d", root, image, size).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
}

// ReadImage gives the files of a folder of an image that no machine uses, by their names.
func ReadImage(t testing.TB, image, folder string) map[string][]byte {
	t.Helper()
	at := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop,ro,noload", image, at).CombinedOutput(); err != nil {
		t.Fatalf("cannot mount %s: %v: %s", image, err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("cannot unmount %s: %v: %s", at, err, out)
		}
	}()
	list, err := os.ReadDir(filepath.Join(at, folder))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, e := range list {
		if files[e.Name()], err = os.ReadFile(filepath.Join(at, folder, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// Memory is a folder in memory, for disks, that goes with the test.
func Memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vm-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
