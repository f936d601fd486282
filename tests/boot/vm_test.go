package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
	"github.com/liveupd/liveupd/tests/vm"
)

// long tells whether the long form is asked for: dracut's initrd, and the shim.
func long() bool { return os.Getenv("LIVEUPD_LONG") == "1" }

const limit = 10 * time.Minute

// probe is a unit of the test that tells on the console what the machine came up with.
const probe = `[Unit]
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c 'echo "UP new=$(cat /usr/share/many/* | grep -c new) root=$(findmnt -no VFS-OPTIONS / | cut -c1-2) unit=$(systemctl show -P Result liveupd-recover.service) soft=$(systemctl show -P SoftRebootsCount)" >/dev/ttyS0'
ExecStartPost=/bin/sh -c 'sync; systemctl poweroff --force --no-block'
[Install]
WantedBy=multi-user.target
`

// disk is a Debian root on an ext4 image with an update that died in the swap, and the
// initrds of both tools with the recovery, and one without it.
type disk struct {
	image                    string
	kernel                   string
	plain, initramfs, dracut string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	cached := vm.Root(t)
	kernel, modules := vm.Kernel(t)
	version := filepath.Base(modules)
	dir := vm.Memory(t)
	d := &disk{image: filepath.Join(dir, "disk"), kernel: kernel}
	root := filepath.Join(t.TempDir(), "root")
	machine.CopyRoot(t, "vm", root)
	if err := manyFiles(root, many, share); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"etc/systemd/system/probe.service": probe, "etc/fstab": "", "etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "vm\n",
		// The initrds of this machine are for one disk.
		"etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
		"etc/initramfs-tools/modules":      "virtio_pci\nvirtio_blk\next4\n",
		"etc/dracut.conf.d/small.conf":     "hostonly=no\ncompress=\"zstd -1\"\ndracutmodules+=\" base systemd systemd-initrd dracut-systemd rootfs-block kernel-modules udev-rules fs-lib usrmount shutdown liveupd \"\ndrivers+=\" virtio_pci virtio_blk ext4 \"\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/systemd/system/multi-user.target.wants"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/systemd/system/probe.service", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/probe.service")); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(root, "boot/initrd.img-"+version)
	keep := func(name string) string {
		to := filepath.Join(dir, name)
		run(t, "cp", initrd, to)
		return to
	}
	d.plain = keep("plain")

	// What an administrator types. The initrd is made anew by the native tool, and read.
	liveupd := machine.Program(t, "liveupd")
	if out := run(t, liveupd, "setup", "--root", root, "--yes"); !strings.Contains(out, "recovers") || strings.Contains(out, "lacks") {
		t.Errorf("setup says:\n%s", out)
	}
	d.initramfs = keep("initramfs")
	if out := run(t, liveupd, "setup", "--root", root, "--yes"); !strings.Contains(out, "Nothing to do") {
		t.Errorf("setup once more says:\n%s", out)
	}
	// dracut by hand: where both tools are, setup takes the other.
	if long() {
		run(t, "unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc",
			`mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"; mount -t tmpfs tmpfs "$0/tmp"; mkdir -p "$0/var/tmp"
			exec chroot "$0" dracut --force --quiet --tmpdir /tmp /boot/initrd.img-`+version+` `+version+` >&2`, root)
		d.dracut = keep("dracut")
		if out := run(t, liveupd, "setup", "--root", root, "--yes"); !strings.Contains(out, "recovers") || !strings.Contains(out, "Nothing to do") {
			t.Errorf("setup says of dracut's initrd:\n%s", out)
		}
	}
	run(t, "rm", "-rf", filepath.Join(root, "usr/share/doc"), filepath.Join(root, "usr/share/locale"), filepath.Join(root, "var/cache/apt"))
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-L", "root", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-N", "100000", "-d", root, d.image, "1000M")
	run(t, "rm", "-rf", root)

	// The update replaces libc, the dynamic loader and systemd itself beside the files
	// that are counted: cut in half, what PID 1 is started from is a mixture.
	up := fixture.NewTree(t, "vm")
	for i := range many {
		up.File(fmt.Sprintf("%s/%d", share, i), fmt.Sprintf("new %d\n", i), 0o644)
	}
	for _, name := range []string{"usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/systemd/systemd"} {
		b, err := os.ReadFile(filepath.Join(cached, name))
		if err != nil {
			t.Fatal(err)
		}
		up.File(name, string(b)+"\x00", 0o755) // an ELF file may have a tail
	}
	withMounted(t, map[string]string{"/": d.image}, func(root string) {
		killed(t, "apply", root, up.Dir, many/2)
		if n := countNew(t, many, filepath.Join(root, share)); state(root) != "committing" || n == 0 || n == many {
			t.Fatalf("%d of %d files are new in the state %q: nothing was cut", n, many, state(root))
		}
	})
	return d
}

// boot starts a copy of the disk and gives what the probe says, and all of the console.
func (d *disk) boot(t *testing.T, initrd, append string) (up []string, console string) {
	t.Helper()
	image := filepath.Join(vm.Memory(t), "disk")
	run(t, "cp", "--sparse=always", d.image, image)
	began := time.Now()
	m := vm.Start(t, vm.Config{
		Kernel: d.kernel, Initrd: initrd, MemoryMB: 1024, Drives: []vm.Drive{{Path: image}},
		Append: "root=/dev/vda ro panic=-1 systemd.show_status=yes systemd.mask=serial-getty@ttyS0.service " + append,
	})
	match := m.WaitFor(`UP new=(\d+) root=(\w*) unit=(\S*) soft=(\d*)\r?\n`, limit)
	t.Logf("up after %v: %s", time.Since(began).Round(time.Second), match[0])
	m.Wait(limit)
	withMounted(t, map[string]string{"/": image}, func(root string) {
		t.Logf("the disk's state is %q", state(root))
		if s := state(root); s != "swapped" && s != "verified" {
			t.Errorf("the disk's state is %q", s)
		}
		if n := countNew(t, many, filepath.Join(root, share)); n != many {
			t.Errorf("%d of %d files on the disk are new", n, many)
		}
	})
	return match[1:], m.Console()
}

// A commit that was cut in half, of libc and systemd among others, is finished before PID 1 starts.
func TestInitrd(t *testing.T) {
	t.Parallel()
	d := newDisk(t)
	type boot struct{ name, initrd, append string }
	boots := []boot{{"initramfs-tools", d.initramfs, ""}}
	if long() {
		boots = append(boots, boot{"init", d.plain, "init=/usr/local/lib/liveupd/liveupd-init"}, boot{"dracut", d.dracut, ""})
	}
	for _, tt := range boots {
		t.Run(tt.name, func(t *testing.T) {
			up, console := d.boot(t, tt.initrd, tt.append)
			if up[0] != fmt.Sprint(many) || up[1] != "ro" || up[2] != "success" || up[3] != "0" {
				t.Errorf("it came up with %q; want %d new files, a read-only root, the unit's success and no soft-reboot", up, many)
			}
			recovered, init := strings.Index(console, "the new tree: transaction"), strings.Index(console, "Welcome to")
			if tt.name == "dracut" { // its own systemd welcomes first
				init = strings.LastIndex(console, "Welcome to")
			}
			if recovered < 0 || init < 0 || recovered > init {
				t.Errorf("the recovery (at %d) did not come before PID 1 (at %d):\n%s", recovered, init, console)
			}
		})
	}
	// The control: without it PID 1 comes from the mixed tree, and the late unit says so
	// and starts userspace anew.
	t.Run("without", func(t *testing.T) {
		up, console := d.boot(t, d.plain, "")
		if up[0] != fmt.Sprint(many) || up[3] != "1" || !strings.Contains(console, "partly old and partly new") {
			t.Errorf("it came up with %q; want the late unit's word and one soft-reboot\n%s", up, console)
		}
	})
}
