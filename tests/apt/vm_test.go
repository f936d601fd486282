package apt

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
	"github.com/liveupd/liveupd/tests/vm"
)

// disk is a Debian root on an ext4 image, for virtual machines: real control groups, a real
// kernel, and what makes a boot loader's entries. Its machine runs /drive.sh, says what came of each of its commands on the
// console, keeps their output in /out, and powers off.
type disk struct {
	image           string
	kernel, modules string
}

const driver = `[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /drive.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStopPost=/bin/sh -c 'sync; systemctl poweroff --force --no-block'
[Install]
WantedBy=multi-user.target
`

// do runs one command of the driver's script: its status is told, its output kept.
const do = `do_() { name=$1; shift; "$@" >/out/$name 2>/out/$name.err; echo "DID $name=$?"; }
`

func newDisk(t *testing.T, script string, debs ...string) *disk {
	t.Helper()
	vm.Require(t)
	d := &disk{image: filepath.Join(vm.Memory(t), "disk")}
	d.kernel, d.modules = vm.KernelOf(t, "vm-grub")
	root := folder(t, "vm-grub", func(root string) error {
		if err := archive(root, nil, debs...); err != nil {
			return err
		}
		for _, program := range machine.Programs(t) {
			if out, err := exec.Command("install", "-D", "-t", filepath.Join(root, "usr/local/bin"), program).CombinedOutput(); err != nil {
				return fmt.Errorf("install: %w: %s", err, out)
			}
		}
		err := put(root, map[string]string{
			"etc/systemd/system/driver.service": driver, "drive.sh": "#!/bin/bash\n" + do + script,
			"etc/fstab": "", "etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "vm\n", "out/.keep": "",
			// The initrds of this machine are for one disk.
			"etc/initramfs-tools/conf.d/small":      "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
			"etc/initramfs-tools/modules":           "virtio_pci\nvirtio_blk\next4\n",
			"boot/grub/grub.cfg":                    "# made anew\n",
			"etc/default/grub":                      "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Test\n",
			"etc/kernel/postinst.d/reboot-required": "#!/bin/sh\n# As unattended-upgrades and update-notifier do.\ntouch /run/reboot-required\necho linux-base >>/run/reboot-required.pkgs\n",
		})
		if err != nil {
			return err
		}
		wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
		if err := os.MkdirAll(wants, 0o755); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(root, "usr/share/doc")); err != nil {
			return err
		}
		return os.Symlink("/etc/systemd/system/driver.service", filepath.Join(wants, "driver.service"))
	})
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-L", "root", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-N", "100000", "-d", root, d.image, "2500M").CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	return d
}

// run boots the disk, waits until its script has ended, and gives what came of its commands, and
// copies of some paths of the disk.
func (d *disk) run(t *testing.T, kernel, initrd string, paths ...string) (codes map[string]string, copies string) {
	t.Helper()
	began := time.Now()
	m := vm.Start(t, vm.Config{
		Kernel: kernel, Initrd: initrd, MemoryMB: 1024, Drives: []vm.Drive{{Path: d.image}},
		Append: "root=/dev/vda rw panic=-1 systemd.mask=serial-getty@ttyS0.service",
	})
	m.Wait(40 * time.Minute) // an idle host takes a tenth of that
	codes = map[string]string{}
	for _, match := range regexp.MustCompile(`DID (\S+)=(\d+)`).FindAllStringSubmatch(m.Console(), -1) {
		codes[match[1]] = match[2]
	}
	t.Logf("the machine ran for %v: %v", time.Since(began).Round(time.Second), codes)
	if len(codes) == 0 {
		t.Fatalf("its script did not run:\n%s", m.Console())
	}
	copies = t.TempDir()
	at := filepath.Join(copies, "mnt")
	script := `set -e; at=$1; shift; mkdir "$at"; mount -o loop,noload,ro "$0" "$at"; trap 'cd /; umount "$at"' EXIT; cd "$at"; cp -a --parents "$@" ..`
	out, err := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, d.image, at, "out"}, paths...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("cannot read the disk: %v: %s", err, out)
	}
	return codes, copies
}

func (d *disk) initrd(t *testing.T) string {
	t.Helper()
	return filepath.Join(filepath.Dir(d.kernel), "initrd.img-"+filepath.Base(d.modules))
}

func contents(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// With control groups of version 2 and systemd's scopes: a command that uses more memory or
// processes than it may ends, is told so, and nothing else ends; one within its limits goes on.
func TestLimitsInVM(t *testing.T) {
	if os.Getenv("LIVEUPD_LONG") != "1" {
		t.Skip("a virtual machine takes minutes on two processors: with LIVEUPD_LONG=1; tests/confine tries the limits of this host")
	}
	t.Parallel()
	d := newDisk(t, `
pids() { systemctl show -P MainPID ssh cron systemd-journald systemd-logind dbus; }
do_ pids-before pids
do_ memory liveupd exec --json --yes --memory 64M -- tail /dev/zero
do_ within liveupd exec --json --plan --memory 300M -- sh -c 'head -c 100M /dev/zero | tail >/dev/null'
do_ tasks liveupd exec --json --yes --tasks 20 -- sh -c 'for i in $(seq 40); do sleep 3 & done; wait'
do_ bomb liveupd exec --json --yes --tasks 40 --limit 60s -- sh -c ': >/etc/bomb; b() { b | b & }; b; sleep 5; false'
do_ few liveupd exec --json --plan --tasks 60 -- sh -c 'for i in $(seq 40); do sleep 1 & done; wait'
do_ devices liveupd exec --json --plan -- sh -c 'mknod /dev/disk b 254 0 && head -c 1 /dev/disk; mknod /etc/disk b 254 0 && head -c 1 /etc/disk; : >/dev/null && head -c 1 /dev/zero >/dev/null'
do_ sysrq liveupd exec --json --plan -- sh -c 'echo h >/proc/sysrq-trigger'
do_ module liveupd exec --json --plan -- modprobe loop
do_ pids-after pids
do_ groups sh -c 'find /sys/fs/cgroup -name "*liveupd-*[0-9a-f]-[0-9]*" | grep . && exit 1 || exit 0'
do_ failed systemctl --failed --no-legend
do_ bombfile test -e /etc/bomb
`)
	codes, copies := d.run(t, d.kernel, d.initrd(t))
	want := map[string]string{
		"memory": "1", "within": "0", "tasks": "1", "bomb": "1", "few": "0", "devices": "0", "sysrq": "1", "module": "1", "groups": "0", "bombfile": "1",
	}
	out := func(name string) string { return contents(t, filepath.Join(copies, "out", name)) }
	for name, code := range want {
		if codes[name] != code {
			t.Errorf("%s ended with %q; want %s\n%s%s", name, codes[name], code, out(name), out(name+".err"))
		}
	}
	for name, text := range map[string]string{
		"memory": "out of the memory that it was allowed", "tasks": "out of the processes that it was allowed", "bomb": "out of the processes", "devices": "Read-only file system",
	} {
		if !strings.Contains(out(name)+out(name+".err"), text) {
			t.Errorf("%s does not say %q:\n%s%s", name, text, out(name), out(name+".err"))
		}
	}
	if out("pids-before") != out("pids-after") || !strings.ContainsAny(out("pids-before"), "123456789") {
		t.Errorf("services were interrupted: %q, then %q", out("pids-before"), out("pids-after"))
	}
}

// A new kernel of Debian's on a machine with GRUB's entries: kernel, initrd and entry come in one
// transaction and its host steps, the running kernel's modules stay, and the machine boots what the entry says.
// The rollback, on the new kernel, is refused or complete.
func TestKernelInVM(t *testing.T) {
	if os.Getenv("LIVEUPD_LONG") != "1" {
		t.Skip("installs a kernel in a virtual machine: with LIVEUPD_LONG=1")
	}
	t.Parallel()
	debs := slices.DeleteFunc(upgrades(t, "vm-grub"), func(deb string) bool { return !strings.HasPrefix(filepath.Base(deb), "linux-image-") })
	if len(debs) == 0 {
		t.Skip("Debian has no newer kernel for the root vm-grub")
	}
	state := `
do_ grub-STEP cat /boot/grub/grub.cfg
do_ boot-STEP ls /boot /lib/modules
do_ modules-STEP modprobe --dry-run dummy
do_ audit-STEP dpkg --audit
do_ asked-STEP cat /run/reboot-required.pkgs
do_ status-STEP liveupd status --json
`
	at := func(step string) string { return strings.ReplaceAll(state, "STEP", step) }
	d := newDisk(t, `
if [ "$(uname -r)" = "$(cat /first 2>/dev/null)" ] || [ ! -e /first ]; then
	uname -r >/first
	do_ grub update-grub
	sync
`+at("old")+`
	do_ fstab liveupd exec --plan --json -- sh -c 'echo "tmpfs /mnt tmpfs defaults 0 0" >>/etc/fstab'
	do_ plan liveupd apply --plan --json linux-image-cloud-amd64
`+at("planned")+`
	do_ apply liveupd apply --yes --json linux-image-cloud-amd64
`+at("new")+`
	do_ rollback liveupd rollback --yes --json
`+at("back")+`
	do_ again liveupd apply --yes --json linux-image-cloud-amd64
`+at("again")+`
else
	do_ uname uname -r
	do_ running liveupd rollback --yes --json
`+at("booted")+`
fi
`, debs...)
	codes, copies := d.run(t, d.kernel, d.initrd(t), "boot")
	out := func(name string) string { return contents(t, filepath.Join(copies, "out", name)) }
	old := filepath.Base(d.modules)
	for name, code := range map[string]string{
		"plan": "0", "apply": "4", "rollback": "0", "again": "4", "modules-new": "0", "modules-back": "0", "asked-old": "1", "asked-planned": "1", "asked-new": "0", "asked-back": "1",
	} {
		if codes[name] != code {
			t.Errorf("%s ended with %q; want %s\n%s%s", name, codes[name], code, out(name), out(name+".err"))
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	// Generators take the view for no container either: in one that of terminals makes others.
	if p := planOf(t, out("fstab")); len(p.Units) != 1 || p.Units[0].Unit != "mnt.mount" || strings.Contains(strings.Join(p.Warnings, "\n"), "getty") {
		t.Errorf("a line of /etc/fstab plans %+v, warns %q", p.Units, p.Warnings)
	}
	plan := planOf(t, out("plan"))
	if plan.HostAction < change.ActionKexec || !slices.ContainsFunc(plan.Steps, func(s change.Step) bool { return s.Do == "run" && strings.HasPrefix(s.Target, "update-grub") }) {
		t.Errorf("the plan's host action is %s, its steps are %+v", plan.HostAction, plan.Steps)
	}
	if !slices.Equal(plan.RebootAsked, []string{"linux-base"}) || out("asked-new") != "linux-base\n" {
		t.Errorf("a reboot is asked for by %q; noted is %q", plan.RebootAsked, out("asked-new"))
	}
	release := newRelease(t, out("boot-new"), old)
	for _, name := range []string{"vmlinuz-", "initrd.img-", "System.map-"} {
		if !strings.Contains(out("boot-new"), name+release) || !strings.Contains(out("boot-new"), name+old) {
			t.Errorf("/boot has no two %s:\n%s", name, out("boot-new"))
		}
	}
	if strings.Contains(out("grub-old"), release) || !strings.Contains(out("grub-new"), "vmlinuz-"+release) || !strings.Contains(out("grub-new"), "vmlinuz-"+old) {
		t.Errorf("GRUB's entries do not name the new kernel and the old one:\n%s", out("grub-new"))
	}
	entries := func(step string) string {
		return strings.Join(regexp.MustCompile(`(?m)^\s*(linux|initrd)\s.*$`).FindAllString(out("grub-"+step), -1), "\n")
	}
	if entries("back") != entries("old") || out("boot-back") != out("boot-old") || out("grub-planned") != out("grub-old") || out("boot-planned") != out("boot-old") {
		t.Errorf("the plan or the rollback left something: entries\n%s\n%s\nfiles\n%s", entries("old"), entries("back"), out("boot-back"))
	}
	for _, step := range []string{"old", "new", "back", "again"} {
		if out("audit-"+step) != "" {
			t.Errorf("dpkg says %s: %s", step, out("audit-"+step))
		}
	}
	// What a boot loader does: the first entry.
	first := regexp.MustCompile(`(?s)menuentry .*?\n\s*linux\s+(\S+).*?\n\s*initrd\s+(\S+)`).FindStringSubmatch(out("grub-again"))
	if first == nil || !strings.HasSuffix(first[1], "vmlinuz-"+release) {
		t.Fatalf("GRUB's first entry is %q; all:\n%s\n/boot:\n%s\nthe update:\n%s", first, entries("again"), out("boot-again"), out("again"))
	}
	codes, booted := d.run(t, filepath.Join(copies, first[1]), filepath.Join(copies, first[2]))
	if got := contents(t, filepath.Join(booted, "out/uname")); got != release+"\n" {
		t.Errorf("the machine came up with %q; want %s (%v)", got, release, codes)
	}
	// On the new kernel its modules stay.
	if text := contents(t, filepath.Join(booted, "out/running")); codes["running"] != "1" || !strings.Contains(text, "modules of the running kernel "+release) {
		t.Errorf("a rollback of the running kernel ended with %s: %s", codes["running"], text)
	}
}

// planOf reads the plan of a run's NDJSON.
func planOf(t *testing.T, text string) *change.Plan {
	t.Helper()
	o := fixture.Parse(t, machine.Result{Stdout: text})
	if o.Plan == nil {
		t.Fatalf("there is no plan in %s", text)
	}
	return o.Plan
}

// newRelease is the kernel that is there beside the old one.
func newRelease(t *testing.T, list, old string) string {
	t.Helper()
	for _, match := range regexp.MustCompile(`(?m)^vmlinuz-(\S+)$`).FindAllStringSubmatch(list, -1) {
		if match[1] != old {
			return match[1]
		}
	}
	t.Fatalf("there is no new kernel in\n%s", list)
	return ""
}
