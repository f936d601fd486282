package layouts

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/vm"
)

// inGuest is set in the virtual machine that TestVirtualMachine starts.
const inGuest = "LAYOUTS_GUEST"

const guestInit = `/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp ` + inGuest + `=1
stty -F /dev/console -echo
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
for m in $(cat /modules/order); do insmod $m; done
echo guest begins
/bin/layouts.test -test.v -test.run TestInsideGuest </dev/null
echo "guest ends $?"
poweroff -f
`

// What takes a kernel with device-mapper, quotas and vfat: LVM on LUKS, dm-verity, the ESP.
func TestVirtualMachine(t *testing.T) {
	t.Parallel()
	vm.Require(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (run tests/setup/install.sh)")
	}
	dir := disks(t)
	program := filepath.Join(dir, "layouts.test")
	// Static, so that it runs where there is nothing else.
	run(t, "env", "CGO_ENABLED=0", "go", "test", "-c", "-o", program, ".")
	empty := filepath.Join(dir, "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	must(t, os.Truncate(empty, 128<<20))
	plain := filepath.Join(dir, "ext4")
	must(t, os.WriteFile(plain, nil, 0o600))
	must(t, os.Truncate(plain, 48<<20))
	run(t, "mkfs.ext4", "-q", "-b", "4096", plain)
	quota := filepath.Join(dir, "quota")
	must(t, os.WriteFile(quota, nil, 0o600))
	must(t, os.Truncate(quota, 48<<20))
	run(t, "mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota", quota)
	bigger := filepath.Join(dir, "xfs")
	must(t, os.WriteFile(bigger, nil, 0o600))
	must(t, os.Truncate(bigger, sizes["xfs"]<<20))
	run(t, "mkfs.xfs", "-q", bigger)
	kernel, _ := vm.Kernel(t)
	initrd := vm.Initramfs(t, vm.Contents{
		Init: busybox, Programs: []string{busybox, program},
		Modules: []string{
			"virtio_pci", "virtio_blk", "dm-mod", "dm-crypt", "dm-verity", "ext4", "vfat", "nls_cp437", "nls_ascii", "xts", "aesni-intel", "quota_v2",
			"xfs", "nfsd", "nfs", "nfsv4",
		},
		Files: map[string][]byte{
			"etc/inittab": []byte("::sysinit:/bin/busybox sh /etc/script\n"),
			"etc/script":  []byte(guestInit),
		},
	})
	m := vm.Start(t, vm.Config{Kernel: kernel, Initrd: initrd, Append: "quiet", MemoryMB: 768, Drives: []vm.Drive{{Path: empty}, {Path: plain}, {Path: quota}, {Path: bigger}}})
	m.WaitFor(`guest begins`, 5*time.Minute)
	end := m.WaitFor(`guest ends (\d+)`, 10*time.Minute)
	if console := m.Console(); end[1] != "0" || !strings.Contains(console, "--- PASS: TestInsideGuest") {
		t.Errorf("in the virtual machine:\n%s", console)
	}
	m.Wait(time.Minute)
}

// fill copies the empty ext4 of the second disk to a device.
func fill(t *testing.T, dev string) {
	t.Helper()
	from, err := os.Open("/dev/vdb")
	must(t, err)
	defer from.Close()
	to, err := os.OpenFile(dev, os.O_WRONLY, 0)
	must(t, err)
	defer to.Close()
	_, err = io.Copy(to, from)
	must(t, err)
	must(t, to.Sync())
}

func TestInsideGuest(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		t.Skip("runs inside a virtual machine: TestVirtualMachine starts it there")
	}
	size := sectors(t, "/dev/vda")
	const lv = 96 << 20 / 2 / 512
	crypt := mapper(t, "crypt", "CRYPT-LUKS2-0123456789abcdef-crypt", false,
		target{0, size, "crypt", "aes-xts-plain64 " + strings.Repeat("0123456789abcdef", 8) + " 0 /dev/vda 0"})
	root := mapper(t, "vg-root", "LVM-0123-root", false, target{0, lv, "linear", crypt + " 2048"})
	variable := mapper(t, "vg-var", "LVM-0123-var", false, target{0, lv, "linear", fmt.Sprint(crypt, " ", 2048+lv)})

	t.Run("LVM on LUKS", func(t *testing.T) {
		l := layout{inner: []string{"var"}}
		at := filepath.Join(t.TempDir(), "root")
		fill(t, root)
		fill(t, variable)
		mount(t, at, "-t", "ext4", root)
		mount(t, filepath.Join(at, "var"), "-t", "ext4", variable)
		populate(t, at)
		readOnly(t, at)
		t.Cleanup(func() { readWrite(t, at) })
		t.Run("run", func(t *testing.T) { l.thereAndBack(t, at) })
	})

	t.Run("ext4 with quotas", func(t *testing.T) {
		l := layout{}
		at := filepath.Join(t.TempDir(), "root")
		mount(t, at, "-t", "ext4", "-o", "usrquota,grpquota,prjquota", "/dev/vdc")
		populate(t, at)
		inProject(t, filepath.Join(at, "usr/lib/app"), 42)
		readOnly(t, at)
		t.Cleanup(func() { readWrite(t, at) })
		t.Run("run", func(t *testing.T) {
			l.thereAndBack(t, at)
			verb(t, at, update(t), "apply")
			if got := project(t, filepath.Join(at, "usr/lib/app/new/1")); got.ID != 42 {
				t.Errorf("what was added is of project %+v; want 42", got)
			}
		})
	})

	t.Run("the ESP", func(t *testing.T) {
		run(t, "mkdosfs", variable)
		at := filepath.Join(t.TempDir(), "root")
		fill(t, root)
		mount(t, at, "-t", "ext4", root)
		mount(t, filepath.Join(at, "boot/efi"), "-t", "vfat", variable)
		populate(t, at)
		write(t, at, "boot/efi/EFI/BOOT/BOOTX64.EFI", "loader 1", 0o755)
		t.Run("run", func(t *testing.T) {
			old := snapshot(t, at, []string{"boot/efi"})
			source := update(t)
			write(t, source, "boot/efi/EFI/BOOT/BOOTX64.EFI", "loader 2", 0o755)
			write(t, source, "boot/efi/EFI/debian/grubx64.efi", "grub 2", 0o755)
			plan := verb(t, at, source, "plan").(*change.Plan)
			if !strings.Contains(strings.Join(plan.Warnings, "\n"), "/boot/efi is a vfat") {
				t.Errorf("the plan does not tell of the ESP: %q", plan.Warnings)
			}
			verb(t, at, source, "apply")
			for name, want := range map[string]string{"boot/efi/EFI/BOOT/BOOTX64.EFI": "loader 1", "boot/efi/EFI/debian/grubx64.efi": "-", "boot/vmlinuz-2": "kernel 2"} {
				if got := content(t, at, name); got != want {
					t.Errorf("%s holds %q; want %q", name, got, want)
				}
			}
			if v := verb(t, at, source, "verify").(*change.VerifyReport); v.Damaged > 0 {
				t.Errorf("verify finds damage: %+v", v)
			}
			verb(t, at, source, "rollback")
			same(t, "after the rollback", old, snapshot(t, at, []string{"boot/efi"}))
		})
		run(t, "umount", filepath.Join(at, "boot/efi"))
		if left, err := os.ReadDir(filepath.Join(at, "boot/efi")); err != nil || len(left) > 0 {
			t.Errorf("below the ESP lies %v %v", left, err)
		}
		// The cleanup of mount unmounts it again.
		run(t, "mount", "-t", "vfat", variable, filepath.Join(at, "boot/efi"))
	})

	t.Run("what is listed on vfat", func(t *testing.T) {
		at := filepath.Join(t.TempDir(), "root")
		fill(t, root)
		mount(t, at, "-t", "ext4", root)
		mount(t, filepath.Join(at, "srv/stick"), "-t", "vfat", variable)
		t.Run("run", func(t *testing.T) {
			source := t.TempDir()
			write(t, source, "srv/stick/x", "x", 0o644)
			_, err := try(t, at, source, "plan")
			if err == nil || !strings.Contains(err.Error(), "/srv/stick/x") || !strings.Contains(err.Error(), "vfat") {
				t.Errorf("plan: %v; want what is on vfat refused by name", err)
			}
		})
	})

	t.Run("a root on NFS", func(t *testing.T) { onNFS(t, root) })
	t.Run("dm-verity", func(t *testing.T) { onVerity(t, root, variable) })
	t.Run("xfs with a project's quota", func(t *testing.T) { onQuota(t, "/dev/vdd") })
	t.Run("ext4 with a user's quota", func(t *testing.T) { withoutPrivilege(t, "/dev/vdc") })
}
