package nsmount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/internal/sys"
)

func restore(t *testing.T, r *Root) {
	t.Helper()
	if held, err := r.Restore(); err != nil || len(held) > 0 {
		t.Fatalf("Restore() = %v, %v", held, err)
	}
}

// For each file system and each way of being read-only: we can write, others
// cannot at any time, and in the end all is as it was.
func TestMakeWritable(t *testing.T) {
	ways := []struct {
		name  string
		mount func(t *testing.T, point, fstype, dev string)
	}{
		{"mount flag", func(t *testing.T, point, _, dev string) {
			mount(t, point, dev)
			run(t, "mount", "-o", "remount,bind,ro", point)
		}},
		{"file system flag", mountRaw},
		{"both flags", func(t *testing.T, point, _, dev string) { mount(t, point, "-o", "ro,nosuid,noatime", dev) }},
		{"an option that a remount would reset", func(t *testing.T, point, fstype, dev string) {
			opt := map[string]string{"ext4": "lazytime,errors=remount-ro", "xfs": "inode32,lazytime", "btrfs": "compress=zstd:3"}[fstype]
			mount(t, point, "-o", "ro,"+opt, dev)
		}},
	}
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		for _, way := range ways {
			t.Run(fstype+"/"+way.name, func(t *testing.T) {
				point := filepath.Join(t.TempDir(), "m")
				way.mount(t, point, fstype, loop(t, image(t, fstype)))
				before := mountLine(t, point)
				h := startHelper(t, "stay")
				h.read(t)
				p := probe(t, point, syscall.EROFS)
				r := openRoot(t, point)
				v := volumeOf(t, r, "/")
				if !v.ReadOnly {
					t.Error("the volume is said to be writable")
				}
				for range 3 {
					if err := writeFD(v.Dir); !errors.Is(err, syscall.EROFS) {
						t.Fatalf("before MakeWritable: %v", err)
					}
					if err := r.MakeWritable(nil); err != nil {
						t.Fatal(err)
					}
					if err := writeFD(v.Dir); err != nil {
						t.Fatalf("after MakeWritable: %v", err)
					}
					if got := h.ask(t, "write "+point); got != syscall.EROFS.Error() {
						t.Fatalf("writing in another namespace: %s", got)
					}
					restore(t, r)
				}
				if err := writeFD(v.Dir); !errors.Is(err, syscall.EROFS) {
					t.Errorf("after Restore: %v", err)
				}
				p.end(t)
				if diff := cmp.Diff(before, mountLine(t, point)); diff != "" {
					t.Errorf("the mount (-before +after):\n%s", diff)
				}
				if got := h.ask(t, "options "+point); got != before.Options {
					t.Errorf("the other namespace's options are %s; want %s", got, before.Options)
				}
			})
		}
	}
}

// A root that is writable is not touched, and stays so.
func TestMakeWritableLeavesWritable(t *testing.T) {
	point := filepath.Join(t.TempDir(), "m")
	mount(t, point, loop(t, image(t, "ext4")))
	r := openRoot(t, point)
	k := sys.WithHook(func(c sys.Call) sys.Fault { return sys.Fault{Err: fmt.Errorf("unexpected %s", c.Name)} })
	if err := r.MakeWritable(k); err != nil {
		t.Fatal(err)
	}
	p := probe(t, point, 0)
	restore(t, r)
	p.end(t)
}

func TestMakeWritableNamed(t *testing.T) {
	point := filepath.Join(t.TempDir(), "m")
	dev := loop(t, image(t, "ext4"))
	mount(t, point, dev)
	if err := os.Mkdir(point+"/disk", 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, point+"/disk", "-o", "ro", loop(t, image(t, "ext4")))
	run(t, "mount", "-o", "remount,ro", point)
	r := openRoot(t, point)
	if err := r.MakeWritable(nil, "/"); err != nil {
		t.Fatal(err)
	}
	if err := writeFD(volumeOf(t, r, "/").Dir); err != nil {
		t.Error(err)
	}
	if err := writeFD(volumeOf(t, r, "/disk").Dir); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a volume that was not named: %v", err)
	}
	restore(t, r)
}

// Trap: subvolumes share a superblock. @ is read-only, @var is not.
func TestSharedSuperblockSubvolumes(t *testing.T) {
	top := t.TempDir()
	dev := loop(t, image(t, "btrfs"))
	mount(t, top, dev)
	run(t, "btrfs", "subvolume", "create", top+"/@")
	run(t, "btrfs", "subvolume", "create", top+"/@var")
	run(t, "mkdir", top+"/@/var")
	root := t.TempDir()
	mount(t, root, "-o", "subvol=@", dev)
	mount(t, root+"/var", "-o", "subvol=@var", dev)
	run(t, "mount", "-o", "remount,bind,ro", root)

	ro, rw := probe(t, root, syscall.EROFS), probe(t, root+"/var", 0)
	r := openRoot(t, root)
	for range 5 {
		if err := r.MakeWritable(nil); err != nil {
			t.Fatal(err)
		}
		if err := writeFD(volumeOf(t, r, "/").Dir); err != nil {
			t.Error(err)
		}
		restore(t, r)
	}
	ro.end(t)
	rw.end(t)

	// The negative control: a remount of the file system stops /var.
	if err := (*sys.Kernel)(nil).Reconfigure(r.vols[0].tree, sys.Option{Key: "ro"}); err != nil {
		t.Fatal(err)
	}
	if err := tryWrite(root + "/var"); !errors.Is(err, syscall.EROFS) {
		t.Errorf("after a remount of @ writing to @var ends with %v: this test shows nothing", err)
	}
}

// The same by bind mounts: the root is a read-only bind of a file system that
// is written to elsewhere.
func TestSharedSuperblockBind(t *testing.T) {
	data, root := t.TempDir(), t.TempDir()
	mount(t, data, loop(t, image(t, "ext4")))
	mount(t, root, "--bind", data)
	run(t, "mount", "-o", "remount,bind,ro", root)
	ro, rw := probe(t, root, syscall.EROFS), probe(t, data, 0)
	r := openRoot(t, root)
	if err := r.MakeWritable(nil); err != nil {
		t.Fatal(err)
	}
	if err := writeFD(volumeOf(t, r, "/").Dir); err != nil {
		t.Error(err)
	}
	restore(t, r)
	ro.end(t)
	rw.end(t)
}

// Trap: mounts without a flag of their own, here and in another namespace, are
// kept read-only while the file system is not.
func TestMountsWithoutFlag(t *testing.T) {
	base := t.TempDir()
	root, bind, flagless := base+"/root", base+"/bind", base+"/with space"
	dev := loop(t, image(t, "ext4"))
	mountRaw(t, root, "ext4", dev)
	mount(t, bind, "--bind", root)
	mount(t, flagless, "--bind", root)
	run(t, "mount", "-o", "remount,bind,ro", bind)
	h := startHelper(t, "stay")
	h.read(t)
	var before []sys.Mount
	for _, point := range []string{root, bind, flagless} {
		before = append(before, mountLine(t, point))
	}
	r := openRoot(t, root)

	// The negative control first: without flags the other mounts become writable.
	tree := r.vols[0].tree
	if err := (*sys.Kernel)(nil).Reconfigure(tree, sys.Option{Key: "rw"}); err != nil {
		t.Fatal(err)
	}
	if err := tryWrite(flagless); err != nil {
		t.Errorf("unprotected, a write elsewhere ends with %v: this test shows nothing", err)
	}
	if got := h.ask(t, "write "+flagless); got != "ok" {
		t.Errorf("unprotected, a write in another namespace ends with %s: this test shows nothing", got)
	}
	if err := (*sys.Kernel)(nil).Reconfigure(tree, sys.Option{Key: "ro"}); err != nil {
		t.Fatal(err)
	}

	probes := []*prober{probe(t, root, syscall.EROFS), probe(t, bind, syscall.EROFS), probe(t, flagless, syscall.EROFS)}
	if err := r.MakeWritable(nil); err != nil {
		t.Fatal(err)
	}
	if err := writeFD(volumeOf(t, r, "/").Dir); err != nil {
		t.Error(err)
	}
	for _, point := range []string{root, bind, flagless} {
		if got := h.ask(t, "write "+point); got != syscall.EROFS.Error() {
			t.Errorf("a write to %s in another namespace: %s", point, got)
		}
	}
	// One of the flagged goes away meanwhile: our hold on it must not keep it.
	if got := h.ask(t, "umount "+flagless); got != "ok" {
		t.Errorf("umount in the other namespace: %s", got)
	}
	restore(t, r)
	for _, p := range probes {
		p.end(t)
	}
	var after []sys.Mount
	for _, point := range []string{root, bind, flagless} {
		after = append(after, mountLine(t, point))
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the mounts (-before +after):\n%s", diff)
	}
	if got := h.ask(t, "options "+root); got != before[0].Options {
		t.Errorf("the other namespace's options are %s; want %s", got, before[0].Options)
	}
}

// A namespace that no process is in, but that is kept by a mount, is found too.
func TestKeptNamespace(t *testing.T) {
	base := t.TempDir()
	root, keep := base+"/root", base+"/keep"
	mountRaw(t, root, "ext4", loop(t, image(t, "ext4")))
	mount(t, keep, "-t", "tmpfs", "tmpfs")
	run(t, "mount", "--make-private", keep)
	write(t, keep+"/ns", "")
	run(t, "unshare", "--mount="+keep+"/ns", "true")
	cleanMount(t, keep+"/ns")
	inside := func() string {
		out, err := exec.Command("nsenter", "--mount="+keep+"/ns", "sh", "-c", "echo >"+root+"/x").CombinedOutput()
		if err == nil {
			return "ok"
		}
		return string(out)
	}
	r := openRoot(t, root)
	if err := r.MakeWritable(nil); err != nil {
		t.Fatal(err)
	}
	if got := inside(); !strings.Contains(got, "Read-only") {
		t.Errorf("a write in the kept namespace: %s", got)
	}
	restore(t, r)
	if got := run(t, "nsenter", "--mount="+keep+"/ns", "findmnt", "-n", "-o", "VFS-OPTIONS", root); got != mountLine(t, root).Options {
		t.Errorf("options in the kept namespace: %s", got)
	}
}

// A namespace that may not be entered makes the whole refuse where it has a
// mount without a flag, and does not matter where it has none.
func TestClosedNamespace(t *testing.T) {
	mounts := []sys.Mount{{ID: 1, Dev: 7, Point: "/a", Options: "ro,nosuid"}, {ID: 2, Dev: 8, Point: "/b", Options: "rw"}, {ID: 3, Dev: 9, Point: "/c", Options: "rw"}}
	n := &namespace{pid: 1, seen: mounts}
	if err := (&super{dev: 7}).protectIn(nil, n); err != nil {
		t.Errorf("a read-only mount: %v", err)
	}
	if err := (&super{dev: 9}).protectIn(nil, n); err == nil || !strings.Contains(err.Error(), "/c") {
		t.Errorf("a writable mount: %v; want a refusal that names /c", err)
	}
	if got := n.String(); !strings.Contains(got, "process 1 (") {
		t.Errorf("namespace is called %q", got)
	}
}

// A mount without a flag that nobody can reach makes the whole refuse, and
// nothing is changed.
func TestHiddenMountRefuses(t *testing.T) {
	base := t.TempDir()
	root, bind := base+"/root", base+"/bind"
	mountRaw(t, root, "ext4", loop(t, image(t, "ext4")))
	mount(t, bind, "--bind", root)
	mount(t, bind, "-t", "tmpfs", "tmpfs")
	before := mountLine(t, root)
	r := openRoot(t, root)
	p := probe(t, root, syscall.EROFS)
	err := r.MakeWritable(nil)
	if err == nil || !strings.Contains(err.Error(), bind) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("MakeWritable() = %v; want one that names %s and a process", err, bind)
	}
	p.end(t)
	if err := writeFD(volumeOf(t, r, "/").Dir); !errors.Is(err, syscall.EROFS) {
		t.Errorf("after the refusal a write ends with %v", err)
	}
	if diff := cmp.Diff(before, mountLine(t, root)); diff != "" {
		t.Errorf("the mount (-before +after):\n%s", diff)
	}
}

// Any single call that fails leaves all as it was.
func TestMakeWritableFaults(t *testing.T) {
	base := t.TempDir()
	root, bind := base+"/root", base+"/bind"
	mountRaw(t, root, "ext4", loop(t, image(t, "ext4")))
	mount(t, bind, "--bind", root)
	before := []sys.Mount{mountLine(t, root), mountLine(t, bind)}
	for n := 1; ; n++ {
		r := openRoot(t, root)
		calls := 0
		k := sys.WithHook(func(sys.Call) sys.Fault {
			if calls++; calls == n {
				return sys.Fault{Err: syscall.EIO}
			}
			return sys.Fault{}
		})
		err := r.MakeWritable(k)
		if err == nil {
			restore(t, r)
		} else if !errors.Is(err, syscall.EIO) {
			t.Fatalf("fault %d: %v", n, err)
		}
		if diff := cmp.Diff(before, []sys.Mount{mountLine(t, root), mountLine(t, bind)}); diff != "" {
			t.Errorf("after fault %d of %d (-before +after):\n%s", n, calls, diff)
		}
		if err == nil {
			if n < 5 {
				t.Errorf("only %d calls were made", n)
			}
			return
		}
	}
}

// Trap: the file system does not go back while it is in use. The holders are
// named, others stay locked out, and another try succeeds.
func TestRestoreBusy(t *testing.T) {
	tests := []struct {
		name string
		hold func(t *testing.T, v Volume) (path string, release func())
	}{
		{"open for writing", func(t *testing.T, v Volume) (string, func()) {
			f, err := (*sys.Kernel)(nil).Create(v.Dir, "held", 0o600)
			if err != nil {
				t.Fatal(err)
			}
			return "/held", func() { f.Close() }
		}},
		{"deleted", func(t *testing.T, v Volume) (string, func()) {
			var k *sys.Kernel
			w, err := k.Create(v.Dir, "held", 0o600)
			if err != nil {
				t.Fatal(err)
			}
			f, err := sys.OpenAt(v.Dir, "held", sys.OpenRead, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(w.Close(), k.Unlink(v.Dir, "held")); err != nil {
				t.Fatal(err)
			}
			return "/held", func() { f.Close() }
		}},
		{"mapped shared", func(t *testing.T, v Volume) (string, func()) {
			f, err := (*sys.Kernel)(nil).Create(v.Dir, "held", 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if err := (*sys.Kernel)(nil).Write(f, make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
			mem, err := syscall.Mmap(f.Int(), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			return "/held", func() {
				if err := syscall.Munmap(mem); err != nil {
					t.Error(err)
				}
			}
		}},
	}
	for _, fstype := range []string{"ext4", "btrfs"} {
		for _, tt := range tests {
			t.Run(fstype+"/"+tt.name, func(t *testing.T) {
				base := t.TempDir()
				root, bind := base+"/root", base+"/bind"
				mountRaw(t, root, fstype, loop(t, image(t, fstype)))
				mount(t, bind, "--bind", root)
				before := mountLine(t, bind)
				r := openRoot(t, root)
				if err := r.MakeWritable(nil); err != nil {
					t.Fatal(err)
				}
				want, release := tt.hold(t, volumeOf(t, r, "/"))
				p, q := probe(t, root, syscall.EROFS), probe(t, bind, syscall.EROFS)
				held, err := r.Restore()
				if !errors.Is(err, syscall.EBUSY) {
					t.Errorf("Restore() = %v; want EBUSY", err)
				}
				if !slices.ContainsFunc(held, func(h Holder) bool {
					return h.PID == os.Getpid() && h.Comm == "nsmount.test" && strings.HasSuffix(h.Path, want)
				}) {
					t.Errorf("holders = %v; want this process with %s", held, want)
				}
				for _, h := range held {
					if h.PID != os.Getpid() {
						t.Errorf("%v is no holder", h)
					}
				}
				release()
				restore(t, r)
				p.end(t)
				q.end(t)
				if diff := cmp.Diff(before, mountLine(t, bind)); diff != "" {
					t.Errorf("the mount (-before +after):\n%s", diff)
				}
			})
		}
	}
}

func TestNeverWritable(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	run(t, "mkdir", src+"/a", src+"/b")
	tests := []struct {
		name string
		want string
		make func(t *testing.T, point string)
	}{
		{"squashfs", "squashfs", func(t *testing.T, point string) {
			needProgram(t, "mksquashfs")
			img := filepath.Join(t.TempDir(), "img")
			run(t, "mksquashfs", src, img, "-quiet", "-no-progress")
			mount(t, point, loop(t, img))
		}},
		{"erofs", "erofs", func(t *testing.T, point string) {
			needProgram(t, "mkfs.erofs")
			img := filepath.Join(t.TempDir(), "img")
			run(t, "mkfs.erofs", img, src)
			mount(t, point, loop(t, img))
		}},
		{"read-only device", "block device is read-only", func(t *testing.T, point string) {
			mount(t, point, "-o", "ro", loop(t, image(t, "ext4"), "-r"))
		}},
		{"overlay of lowers", "overlay of read-only layers", func(t *testing.T, point string) {
			mount(t, point, "-t", "overlay", "-o", "lowerdir="+src+"/a:"+src+"/b", "overlay")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			point := t.TempDir()
			tt.make(t, point)
			r := openRoot(t, point)
			if err := r.MakeWritable(nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("MakeWritable() = %v; want one with %q", err, tt.want)
			}
		})
	}
}

func TestRepeatedOptions(t *testing.T) {
	tests := []struct {
		m    sys.Mount
		want []sys.Option
	}{
		{sys.Mount{FSType: "ext4", SuperOptions: "ro,errors=remount-ro"}, nil},
		{sys.Mount{FSType: "xfs", SuperOptions: "ro,attr2,inode32,logbufs=8"}, []sys.Option{{Key: "inode32"}}},
		{sys.Mount{FSType: "f2fs", SuperOptions: "ro,lazytime,background_gc=on"}, []sys.Option{{Key: "lazytime"}, {Key: "background_gc", Value: "on"}}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, repeatedOptions(&tt.m)); diff != "" {
			t.Errorf("repeatedOptions(%s) (-want +got):\n%s", tt.m.FSType, diff)
		}
	}
}
