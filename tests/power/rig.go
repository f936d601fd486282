package power

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/machine"
	"github.com/liveupd/liveupd/tests/power/tree"
	"github.com/liveupd/liveupd/tests/vm"
)

// limit is how long a machine may take for anything, when others share two slow processors.
const limit = 5 * time.Minute

// kind is a file system, on a disk that is larger by what the guest marks.
type kind struct {
	name    string
	mib     int64
	mkfs    []string
	modules []string
	// mixes: an fsync of one file writes down the renames of others, too. btrfs keeps it to the file's own log tree.
	mixes bool
}

var (
	ext4  = kind{"ext4", 128, []string{"-q", "-F", "-m", "0"}, nil, true}
	xfs   = kind{"xfs", 300, []string{"-q"}, []string{"xfs"}, true}
	btrfs = kind{"btrfs", 256, []string{"-q"}, []string{"btrfs"}, false}
)

// rig is the disks and programs of one file system's suite.
type rig struct {
	kind     kind
	dir      string // in memory
	mnt      string
	recover  string // liveupd-recover
	base     string // the disk with the old tree
	source   string // the disk with the update
	old, new map[string]string
	stamped  []string // folders whose new time is that of the run, in which something in them moves
	kernel   string
	initrd   string
}

// newRig makes the disks, and an initramfs with this liveupd for this kernel. What it makes goes with the test.
func newRig(t *testing.T, k kind, kernel, liveupd string) *rig {
	t.Helper()
	vm.Require(t)
	dir := makeDir(t)
	r := &rig{kind: k, dir: dir, mnt: filepath.Join(dir, "mnt"), recover: machine.Program(t, "liveupd-recover")}
	r.base, r.source = r.path("base"), r.path("source")
	r.kernel, _ = vm.KernelOf(t, kernel)
	r.initrd = vm.Initramfs(t, vm.Contents{
		Init: buildGuest(t), Programs: []string{liveupd, r.recover}, Modules: append([]string{"virtio_pci", "virtio_blk"}, k.modules...), Kernel: kernel,
	})
	if err := os.Mkdir(r.mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.makeDisks(machine.Program(t, "liveupd")); err != nil {
		t.Fatal(err)
	}
	return r
}

// buildGuest builds the program that is the machine's first process.
func buildGuest(t *testing.T) string {
	t.Helper()
	_, self, _, _ := runtime.Caller(0)
	program := filepath.Join(t.TempDir(), "guest")
	cmd := exec.Command("go", "build", "-C", filepath.Join(filepath.Dir(self), "guest"), "-trimpath", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the guest's program: %v\n%s", err, out)
	}
	return program
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) makeDisks(liveupd string) error {
	if err := r.makeDisk(r.base, r.kind, func(root string) error { return tree.Lay(root, false) }); err != nil {
		return err
	}
	if err := r.makeDisk(r.source, kind{name: "ext4", mib: 96, mkfs: []string{"-q", "-F"}}, func(root string) error { return tree.Lay(root, true) }); err != nil {
		return err
	}
	// What the new tree is, is told by an apply that nothing disturbs.
	work := r.path("reference")
	if err := sparseCopy(r.base, work); err != nil {
		return err
	}
	err := r.mounted(r.source, "ext4", r.path("src"), func(source string) error {
		return r.mounted(work, r.kind.name, r.mnt, func(root string) (err error) {
			if r.old, err = tree.Describe(root); err != nil {
				return err
			}
			if _, err := command(liveupd, "apply", "--root", root, "--source", "tree:"+source, "--allow-unsigned", "--yes"); err != nil {
				return err
			}
			if r.new, err = tree.Describe(root); err != nil {
				return err
			}
			return r.checkReference(source)
		})
	})
	return errors.Join(err, os.Remove(work))
}

// checkReference compares the new tree with the update itself: a root that is not updated, or wrongly, is
// no reference.
func (r *rig) checkReference(source string) error {
	want, err := tree.Describe(source)
	if err != nil {
		return err
	}
	n := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		line, made := want[name], r.new[name]
		if made != line && strings.HasPrefix(line, "04") && clock.ReplaceAllString(made, "") == clock.ReplaceAllString(line, "") && r.old[name] != "" {
			if made != r.old[name] {
				r.stamped = append(r.stamped, name)
			}
		} else if made != line && strings.HasPrefix(name, "usr/") {
			return fmt.Errorf("the undisturbed apply made %s\n  %s, and the update is\n  %s", name, made, line)
		}
		n++
	}
	for name := range r.new {
		if _, ok := want[name]; !ok && strings.HasPrefix(name, "usr/") {
			return fmt.Errorf("the undisturbed apply left %s", name)
		}
	}
	const few = 700
	if n < few || tree.Digest(r.old) == tree.Digest(r.new) {
		return fmt.Errorf("the update has only %d objects, or changes nothing", n)
	}
	r.new = r.unstamp(r.new)
	return nil
}

// clock is a time in a description.
var clock = regexp.MustCompile(` mtime=\d+\.\d+`)

// unstamp takes the run's own time out of a description, if all folders that must have it have the same.
func (r *rig) unstamp(found map[string]string) map[string]string {
	out := maps.Clone(found)
	for _, name := range r.stamped {
		if clock.FindString(found[name]) != clock.FindString(found[r.stamped[0]]) || found[name] == r.old[name] {
			return found
		}
		out[name] = clock.ReplaceAllString(found[name], " of the run")
	}
	return out
}

// makeDisk makes a disk with a file system that leaves the disk's end to the marks.
func (r *rig) makeDisk(name string, k kind, fill func(root string) error) error {
	const mib = 1 << 20
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(name, k.mib*mib); err != nil {
		return err
	}
	if _, err := command("mkfs."+k.name, append(k.mkfs, name)...); err != nil {
		return err
	}
	if err := os.Truncate(name, (k.mib+1)*mib); err != nil {
		return err
	}
	if err := r.mounted(name, k.name, r.mnt, fill); err != nil {
		return err
	}
	// The zeros of a journal need no memory.
	_, err := command("fallocate", "--dig-holes", name)
	return err
}

// mounted attaches a disk, mounts it, and takes both back after do.
func (r *rig) mounted(image, fs, at string, do func(root string) error) (err error) {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	if fs == "btrfs" {
		// The kernel remembers the newest generation of a file system, and refuses an older one.
		if _, err := command("btrfs", "device", "scan", "--forget"); err != nil {
			return err
		}
	}
	device, err := command("losetup", "--find", "--show", image)
	if err != nil {
		return err
	}
	defer func() {
		_, e := command("losetup", "--detach", device)
		err = errors.Join(err, e)
	}()
	if err := mount(device, at, fs); err != nil {
		return fmt.Errorf("cannot mount %s (%s): %w", image, fs, err)
	}
	defer func() {
		// A mount namespace that another process cloned from ours meanwhile keeps the file
		// system mounted: then its end is not the unmount's, and the image is read before it.
		_, e := command("sync", "--file-system", at)
		err = errors.Join(err, e, unmount(at))
	}()
	return do(at)
}

// unmount waits for others that look at each mount of the machine, as other tests do.
func unmount(at string) error {
	var err error
	for range 200 {
		if err = syscall.Unmount(at, 0); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(fmt.Errorf("cannot unmount %s: %w", at, err), syscall.Unmount(at, syscall.MNT_DETACH))
}

// mount mounts one of many copies of a file system. The one before may still live in a mount namespace
// that another process cloned from ours meanwhile: xfs can be told not to mind, btrfs is asked again.
func mount(device, at, fs string) error {
	options := ""
	if fs == "xfs" {
		options = "nouuid"
	}
	var err error
	for range 200 {
		if err = syscall.Mount(device, at, fs, 0, options); !errors.Is(err, syscall.EEXIST) && !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// sparseCopy copies an image and leaves its holes.
func sparseCopy(from, to string) error {
	_, err := command("cp", "--sparse=auto", "--no-target-directory", from, to)
	return err
}

func command(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("cannot run %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// outcome is what a disk was and what recovery made of it.
type outcome struct {
	before string // old, new or mixed, when it was mounted
	after  string // old or new
	found  string // the state of the transaction, "" for none
	did    string // what the recovery says that it made: old or new
}

// settle mounts a disk after a crash, recovers it as an initrd would, and says which of the two trees it
// is. Anything else is an error.
func (r *rig) settle(image string) (o outcome, err error) {
	err = r.mounted(image, r.kind.name, r.mnt, func(root string) error {
		before, err := tree.Describe(root)
		if err != nil {
			return err
		}
		o.before = r.which(before)
		report, err := r.runRecover(root)
		if err != nil {
			return err
		}
		o.found, o.did = report.Found, report.Tree
		after, err := tree.Describe(root)
		if err != nil {
			return err
		}
		if o.after = r.which(after); o.after == "mixed" {
			return fmt.Errorf("recovery (found %q, says %q) left a mixture; as the old tree:\n%s\nas the new tree:\n%s",
				o.found, o.did, tree.Differ(r.old, after), tree.Differ(r.new, r.unstamp(after)))
		}
		if again, err := r.runRecover(root); err != nil {
			return fmt.Errorf("the second recovery: %w", err)
		} else if twice, err := tree.Describe(root); err != nil {
			return err
		} else if r.which(twice) != o.after || again.Tree != "" && again.Tree != o.after {
			return fmt.Errorf("the second recovery made the %s tree (says %q) of the %s one:\n%s", r.which(twice), again.Tree, o.after, tree.Differ(after, twice))
		}
		return nil
	})
	if err == nil && o.did != "" && o.did != o.after {
		err = fmt.Errorf("recovery says that the tree is %s, and it is %s", o.did, o.after)
	}
	return o, err
}

func (r *rig) which(found map[string]string) string {
	switch {
	case maps.Equal(found, r.old):
		return "old"
	case maps.Equal(r.unstamp(found), r.new):
		return "new"
	}
	return "mixed"
}

type report struct {
	Found, Tree, Result string
}

func (r *rig) runRecover(root string) (report, error) {
	var is report
	out, err := command(r.recover, "--root", root, "--json")
	if err != nil {
		return is, fmt.Errorf("%w\n%s", err, out)
	}
	return is, json.Unmarshal([]byte(out), &is)
}

// machine starts the guest with these disks.
func (r *rig) machine(t *testing.T, do, incoming string, disk vm.Drive) *vm.Machine {
	t.Helper()
	return vm.Start(t, vm.Config{
		Kernel: r.kernel, Initrd: r.initrd, Append: fmt.Sprintf("quiet panic=-1 power.fs=%s power.do=%s", r.kind.name, do),
		Drives: []vm.Drive{disk, {Path: r.source, ReadOnly: true}}, Incoming: incoming,
	})
}
