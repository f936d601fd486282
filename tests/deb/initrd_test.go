package deb

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/recovery"
	"github.com/liveupd/liveupd/tests/machine"
	"github.com/liveupd/liveupd/tests/vm"
)

// The initrds recover as soon as the package is installed, are left alone by an upgrade that
// changes nothing in them, and are without it, and boot, when it was removed.
func TestInitrd(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	take := carry(t)
	root := filepath.Join(t.TempDir(), "root")
	machine.CopyRoot(t, "vm", root)
	if err := take(root); err != nil {
		t.Fatal(err)
	}
	const probe = "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nStandardOutput=tty\nTTYPath=/dev/ttyS0\n" +
		"ExecStart=/bin/sh -c 'echo UP failed=$(systemctl --failed --no-legend --plain | grep -c liveupd) >/dev/ttyS0'\n" +
		"ExecStartPost=/bin/sh -c 'sync; systemctl poweroff --force --no-block'\n"
	for name, content := range map[string]string{
		"etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
		"etc/initramfs-tools/modules":      "virtio_pci\nvirtio_blk\next4\n",
		"etc/fstab":                        "", "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
		"etc/systemd/system/probe.service": probe,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	inside := func(script string) string {
		t.Helper()
		return run(t, "unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc",
			`mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"; mount -t tmpfs tmpfs "$0/tmp"; mount -t tmpfs tmpfs "$0/run"
			exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 /bin/sh -euc "$1" >&2`, root, script)
	}
	verdicts := func() string {
		t.Helper()
		s, err := recovery.Inspect(root, recovery.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, k := range s.Kernels {
			out = append(out, k.Recovers)
		}
		return strings.Join(append(out, s.Unit), " ")
	}
	_, modules := vm.Kernel(t)
	initrd := filepath.Join(root, "boot/initrd.img-"+filepath.Base(modules))
	digest := func() string {
		t.Helper()
		b, err := os.ReadFile(initrd)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", sha256.Sum256(b))
	}
	if got := verdicts(); got != "no missing" {
		t.Fatalf("before: %s", got)
	}
	inside("dpkg -i /root/old.deb")
	if got := verdicts(); got != "yes enabled" {
		t.Errorf("installed: %s", got)
	}
	was := digest()
	inside("dpkg -i /root/new.deb")
	if digest() != was {
		t.Error("an upgrade that changes nothing in the initrds has made them anew")
	}
	inside("dpkg -r liveupd")
	if got := verdicts(); !strings.HasPrefix(got, "no ") {
		t.Errorf("removed: %s", got)
	}
	inside("dpkg -P liveupd")
	if got := verdicts(); got != "no missing" {
		t.Errorf("purged: %s", got)
	}
	if !long() {
		return
	}
	vm.Require(t)
	inside("mkdir -p /etc/systemd/system/multi-user.target.wants; ln -s ../probe.service /etc/systemd/system/multi-user.target.wants/probe.service; rm -rf /usr/share/doc /usr/share/locale /var/cache/apt /root/*.deb")
	kernel, _ := vm.Kernel(t)
	disk := filepath.Join(t.TempDir(), "disk")
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-L", "root", "-N", "100000", "-d", root, disk, "1000M")
	m := vm.Start(t, vm.Config{Kernel: kernel, Initrd: initrd, MemoryMB: 1024, Append: "root=/dev/vda ro panic=-1 systemd.mask=serial-getty@ttyS0.service", Drives: []vm.Drive{{Path: disk}}})
	if up := m.WaitFor(`UP failed=(\d+)`, 10*time.Minute); up[1] != "0" {
		t.Errorf("after the removal %s units of ours failed", up[1])
	}
}
