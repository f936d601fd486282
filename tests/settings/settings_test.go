// Package settings applies what an update changes of the host's own settings where a real
// kernel takes them: in a virtual machine of Debian 12, whose control groups are the ones of
// before the unified hierarchy.
package settings

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/elfcode"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
	"github.com/liveupd/liveupd/tests/vm"
)

const limit = 28 * time.Minute

// inInitrd is a file of which the initrd holds a copy.
const inInitrd = "usr/lib/udev/rules.d/60-persistent-storage.rules"

// script runs when the machine is up, and leaves what it saw in /result.
const script = `#!/bin/bash
cd /result
exec >log 2>&1
liveupd() { local to=$1; shift; echo "TEST $to" >/dev/ttyS0; /usr/local/bin/liveupd "$@" --json >$to.json 2>$to.err; echo $? >$to.code; }
look() {
	udevadm settle --timeout=60
	{
		echo "link $(readlink /dev/liveupd-disk)"
		echo "hwdb $(systemd-hwdb query liveupd:x | tr '\n' ' ')"
		echo "swappiness $(cat /proc/sys/vm/swappiness)"
		echo "bridge $(cat /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null)"
		echo "modules $(cut -d' ' -f1 /proc/modules | grep -x -e dummy -e br_netfilter | sort | tr '\n' ' ')"
		echo "binfmt $(grep -a -e interpreter -e magic /proc/sys/fs/binfmt_misc/liveupd 2>/dev/null | tr '\n' ' ')"
		echo "apparmor $(/usr/bin/confined /etc/hostname 2>&1)"
	} >$1.state
	units >$1.units
	cp /boot/initrd.img-* $1.initrd
}
units() { for u in a b c; do systemctl show -P InvocationID $u.service; done; }
cat /proc/1/cgroup >cgroup
ls /sys/fs/cgroup >>cgroup
if grep -q liveupd.processes /proc/cmdline; then
	units >back.units
else
	look before
	liveupd apply apply --yes --source tree:/update --allow-unsigned
	look applied
	liveupd rollback rollback --yes
	look back
fi
liveupd clean check
cp -p /opt/new /opt/a/new && mv -f /opt/a/new /opt/a/run
liveupd check check
liveupd second apply --yes --source tree:/second --allow-unsigned
units >second.units
liveupd restart restart --yes
units >restart.units
systemctl --failed --no-legend >failed
echo "TEST ended" >/dev/ttyS0
sync
systemctl poweroff --force --force
`

const confined = `/usr/bin/confined {
  /etc/ld.so.cache r,
  /usr/lib/** mr,
  /usr/bin/confined mr,
  RULE
}
`

// files of the machine before the update.
var files = map[string]string{
	"etc/fstab": "", "etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "vm\n", "etc/sysctl.d/50-app.conf": "vm.swappiness = 44\n",
	"etc/apparmor.d/usr.bin.confined":  strings.Replace(confined, "RULE", "/etc/hostname r,", 1),
	"etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=gzip\nCOMPRESSLEVEL=1\nBUSYBOX=n\nFSTYPE=ext4\n",
	"etc/systemd/system/test.service":  "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=/result/script\n",
	"usr/lib/systemd/system/a.service": "[Service]\nExecStart=/opt/a/run infinity\n",
	"usr/lib/systemd/system/b.service": "[Service]\nSlice=deep-deeper.slice\nExecStart=/opt/b/run infinity\n",
	"usr/lib/systemd/system/c.service": "[Service]\nExecStart=/usr/bin/sleep infinity\n",
	"result/script":                    script,
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func put(t *testing.T, root, name, content string) {
	t.Helper()
	at := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(at), 0o755))
	must(t, os.WriteFile(at, []byte(content), 0o755))
}

// newer is a program that does the same and is another one.
func newer(t *testing.T, program string) string {
	t.Helper()
	b, err := os.ReadFile(program)
	must(t, err)
	id, err := elfcode.BuildID(bytes.NewReader(b))
	if err != nil || id == nil {
		t.Fatalf("%s has no build ID: %v", program, err)
	}
	b[bytes.Index(b, id)] ^= 0xff
	return string(b)
}

// disk makes the machine's disk, which holds the updates too.
func disk(t *testing.T, dir string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	machine.CopyRoot(t, vm.Bookworm, root)
	for name, content := range files {
		put(t, root, name, content)
	}
	sleep := filepath.Join(root, "usr/bin/sleep")
	old, err := os.ReadFile(sleep)
	must(t, err)
	cat, err := os.ReadFile(filepath.Join(root, "usr/bin/cat"))
	must(t, err)
	put(t, root, "usr/bin/confined", string(cat))
	put(t, root, "opt/a/run", string(old))
	put(t, root, "opt/b/run", string(old))
	put(t, root, "opt/new", newer(t, sleep))
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	must(t, os.MkdirAll(wants, 0o755))
	for _, unit := range []string{"etc/systemd/system/test.service", "usr/lib/systemd/system/a.service", "usr/lib/systemd/system/b.service", "usr/lib/systemd/system/c.service"} {
		must(t, os.Symlink("/"+unit, filepath.Join(wants, filepath.Base(unit))))
	}
	for _, p := range machine.Programs(t) {
		run(t, "cp", p, filepath.Join(root, "usr/local/bin"))
	}
	// An initrd that holds devices' rules alone: this machine boots with another one, and making
	// a whole one takes minutes in an emulation.
	hooks, err := filepath.Glob(filepath.Join(root, "usr/share/initramfs-tools/hooks/*"))
	must(t, err)
	for _, hook := range hooks {
		if filepath.Base(hook) != "udev" {
			must(t, os.Remove(hook))
		}
	}
	// So does a database of all hardware there is.
	hwdb, err := filepath.Glob(filepath.Join(root, "usr/lib/udev/hwdb.d/*"))
	must(t, err)
	for _, name := range hwdb {
		if filepath.Base(name) != "70-mouse.hwdb" {
			must(t, os.Remove(name))
		}
	}
	run(t, "unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc",
		`mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"; mount -t tmpfs tmpfs "$0/tmp"; chroot "$0" systemd-hwdb --usr update; exec chroot "$0" update-initramfs -u -k all`, root)

	rules, err := os.ReadFile(filepath.Join(root, inInitrd))
	must(t, err)
	for name, content := range map[string]string{
		"etc/udev/rules.d/90-liveupd.rules":      "SUBSYSTEM==\"block\", KERNEL==\"vda\", SYMLINK+=\"liveupd-disk\"\n",
		"usr/lib/udev/hwdb.d/99-liveupd.hwdb":    "liveupd:*\n LIVEUPD_TEST=1\n",
		"etc/sysctl.d/50-app.conf":               "vm.swappiness = 33\nnet.bridge.bridge-nf-call-iptables = 0\n",
		"usr/lib/modules-load.d/liveupd.conf":    "dummy\nbr_netfilter\n",
		"usr/lib/binfmt.d/liveupd.conf":          ":liveupd:M::LIVEUPD::/usr/bin/true:\n",
		"etc/apparmor.d/usr.bin.confined":        strings.Replace(confined, "RULE", "deny /etc/hostname r,", 1),
		inInitrd:                                 string(rules) + "# liveupd was here\n",
		"usr/lib/sysusers.d/liveupd.conf":        "u liveupdd - \"A user\"\n",
		"usr/lib/tmpfiles.d/liveupd-folder.conf": "d /run/liveupd-folder 0750 liveupdd liveupdd -\n",
	} {
		put(t, root, "update/"+name, content)
		must(t, os.Chmod(filepath.Join(root, "update", name), 0o644))
	}
	put(t, root, "second/opt/b/run", newer(t, sleep))

	image := filepath.Join(dir, "disk")
	for _, name := range []string{"usr/share/doc", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"} {
		must(t, os.RemoveAll(filepath.Join(root, name)))
	}
	vm.Image(t, root, image, "1000M")
	return image
}

// results are what the script left.
type results struct {
	t     *testing.T
	files map[string][]byte
}

func (r results) text(name string) string {
	r.t.Helper()
	b, ok := r.files[name]
	if !ok {
		r.t.Fatalf("the machine left no %s:\n%s", name, r.files["log"])
	}
	return strings.TrimSpace(string(b))
}

func (r results) output(name string) *fixture.Output {
	r.t.Helper()
	code := 0
	if _, err := fmt.Sscan(r.text(name+".code"), &code); err != nil {
		r.t.Fatal(err)
	}
	return fixture.Parse(r.t, machine.Result{Stdout: string(r.files[name+".json"]), Stderr: string(r.files[name+".err"]), Code: code})
}

// state is what the script saw of the host, by its first word.
func (r results) state(name string) map[string]string {
	r.t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(r.text(name + ".state")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[key] = strings.TrimSpace(value)
	}
	return out
}

// units are the invocations of a, b and c.
func (r results) units(name string) []string { return strings.Fields(r.text(name + ".units")) }

// initrdHolds looks into an initrd for a text.
func (r results) initrdHolds(name, text string) bool {
	r.t.Helper()
	var in io.Reader
	var err error
	switch b := r.files[name+".initrd"]; {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		in, err = gzip.NewReader(bytes.NewReader(b))
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		in, err = zstd.NewReader(bytes.NewReader(b))
	default:
		r.t.Fatalf("%s.initrd of %d bytes is of no known kind", name, len(b))
	}
	must(r.t, err)
	data, err := io.ReadAll(in)
	must(r.t, err)
	return bytes.Contains(data, []byte(text))
}

// boot boots a disk with the given control groups until the script has ended.
func boot(t *testing.T, image, groups string) results {
	t.Helper()
	kernel, _ := vm.KernelOf(t, vm.Bookworm)
	initrd := vm.FromDisk(t, vm.Bookworm)
	began := time.Now()
	m := vm.Start(t, vm.Config{
		Kernel: kernel, Initrd: initrd, MemoryMB: 1024, Drives: []vm.Drive{{Path: image}},
		// On a busy machine the emulation is too slow for the kernel's look at its timer.
		Append: "root=/dev/vda rw panic=-1 quiet no_timer_check systemd.mask=serial-getty@ttyS0.service systemd.mask=getty@tty1.service " + groups,
	})
	m.WaitFor(`TEST ended`, limit)
	m.Wait(limit)
	t.Logf("the machine took %v", time.Since(began).Round(time.Second))
	return results{t: t, files: vm.ReadImage(t, image, "result")}
}

// One boot for all that a kernel takes: each effect of an update is done, the rollback
// restores what was, and processes are known by the control groups of before.
func TestSettings(t *testing.T) {
	t.Parallel()
	vm.Require(t)
	forms := map[string]string{"hybrid": "systemd.unified_cgroup_hierarchy=0"}
	if os.Getenv("LIVEUPD_LONG") == "1" {
		forms["legacy"] = "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1 liveupd.processes"
	}
	for name, groups := range forms {
		t.Run(name, func(t *testing.T) {
			r := boot(t, disk(t, vm.Memory(t)), groups)
			hierarchy(t, r, name)
			if !strings.Contains(groups, "liveupd.processes") {
				effects(t, r)
			}
			processes(t, r)
			if t.Failed() {
				t.Logf("the machine's log:\n%s", r.files["log"])
			}
		})
	}
}

// hierarchy: the machine is what it is meant to be.
func hierarchy(t *testing.T, r results, form string) {
	text := r.text("cgroup")
	for part, want := range map[string]bool{"name=systemd:/": true, "memory": true, "unified": form == "hybrid"} {
		if got := strings.Contains(text, part); got != want {
			t.Errorf("%q among the control groups: %t; want %t in the %s form:\n%s", part, got, want, form, text)
		}
	}
}

func effects(t *testing.T, r results) {
	applied := r.output("apply").Want(t, 0)
	var dos []string
	for _, e := range applied.Plan.Effects {
		dos = append(dos, e.Do)
		i := slices.IndexFunc(applied.Report.Steps, func(res change.StepResult) bool { return res.Step.Do == e.Do && res.Step.Target == e.Target })
		if i < 0 || applied.Report.Steps[i].Result != "done" {
			t.Errorf("%s %s was not done: %+v", e.Do, e.Target, applied.Report.Steps)
		}
		// A key that a module brings has no value before.
		if e.Undo == "" && e.Do != "sysusers" && !strings.HasPrefix(e.Target, "net.bridge.") {
			t.Errorf("%s %s has no inverse", e.Do, e.Target)
		}
	}
	slices.Sort(dos)
	want := []string{"apparmor", "binfmt", "hwdb", "initrd", "modules-load", "sysctl", "sysusers", "tmpfiles", "udev-reload", "udev-trigger"}
	if diff := cmp.Diff(want, slices.Compact(dos)); diff != "" {
		t.Errorf("the effects (-want +got):\n%s", diff)
	}
	if got, want := r.units("applied"), r.units("before"); !slices.Equal(got, want) {
		t.Errorf("services were interrupted: %v; before %v", got, want)
	}
	before := map[string]string{"link": "", "hwdb": "", "swappiness": "44", "bridge": "", "modules": "", "binfmt": "", "apparmor": "vm"}
	if diff := cmp.Diff(before, r.state("before")); diff != "" {
		t.Errorf("before the update (-want +got):\n%s", diff)
	}
	after := map[string]string{
		"link": "vda", "hwdb": "LIVEUPD_TEST=1", "swappiness": "33", "bridge": "0", "modules": "br_netfilter dummy",
		"binfmt": "interpreter /usr/bin/true magic 4c495645555044", "apparmor": "/usr/bin/confined: /etc/hostname: Permission denied",
	}
	if diff := cmp.Diff(after, r.state("applied")); diff != "" {
		t.Errorf("after the update (-want +got):\n%s", diff)
	}
	r.output("rollback").Want(t, 0)
	if diff := cmp.Diff(before, r.state("back")); diff != "" {
		t.Errorf("after the rollback (-want +got):\n%s", diff)
	}
	for name, want := range map[string]bool{"before": false, "applied": true, "back": false} {
		if got := r.initrdHolds(name, "liveupd was here"); got != want {
			t.Errorf("the initrd (%s) holds the new rules: %t; want %t", name, got, want)
		}
	}
	if got := r.text("failed"); got != "" {
		t.Errorf("units have failed: %s", got)
	}
}

// processes: which unit a process belongs to is read from these control groups.
func processes(t *testing.T, r results) {
	stale := func(name string) []string {
		var out []string
		for _, u := range r.output(name).Check.Units {
			out = append(out, u.Unit)
		}
		return out
	}
	if got := stale("clean"); len(got) > 0 {
		t.Errorf("check finds %v before anything was replaced", got)
	}
	if got := stale("check"); !slices.Equal(got, []string{"a.service"}) {
		t.Errorf("check finds %v; want a.service", got)
	}
	before := r.units("back")
	second := r.output("second").Want(t, 0)
	if diff := cmp.Diff(map[string]string{"b.service": "restart"}, second.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	interrupted := func(was, is []string) string {
		out := ""
		for i, unit := range []string{"a", "b", "c"} {
			if was[i] != is[i] {
				out += unit
			}
		}
		return out
	}
	if got := interrupted(before, r.units("second")); got != "b" {
		t.Errorf("the update interrupted %q; want b", got)
	}
	r.output("restart").Want(t, 0)
	if got := interrupted(r.units("second"), r.units("restart")); got != "a" {
		t.Errorf("restart interrupted %q; want a", got)
	}
}
