package nsmount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// builder builds the view in the child. All that is needed of the live root is
// opened first: the place where the view is put together hides some of it.
type builder struct {
	k      *sys.Kernel // nil: the mounts vanish with this process
	spec   *viewSpec
	root   *Root
	upper  []staged // of each volume
	copies []coverCopy
	run    *sys.FD // the live /run, nil without one
	conf   *resolvConf
	sysfs  *sys.FD // a copy of the live /sys
	view   *sys.FD // the root of the view
	tops   []top   // where what is written goes
	// runBytes is how much of the files of /run was repeated.
	runBytes int64
}

// top is the upper of a throwaway overlay, and where that is mounted.
type top struct {
	mount string
	dir   *sys.FD
}

// staged is a second copy of a volume and the staged upper in it; both are
// zero where nothing is staged.
type staged struct {
	tree *sys.FD
	up   string
}

// coverCopy is a copy of a mount that hides paths of a volume.
type coverCopy struct {
	point  string
	fstype string
	tree   *sys.FD
	isDir  bool
}

// ownMounts are made afresh: what the live root has there is not shown.
var ownMounts = []string{"/proc", "/sys", "/dev", "/run", "/tmp"}

// shownCovers are the file systems whose content is shown where they hide
// something. Others are left out: what lies below them, as a rule an empty
// directory, is seen. They are not files (proc, cgroup), may not answer (nfs,
// fuse, autofs), or belong to containers (overlay).
var shownCovers = append([]string{"tmpfs", "ramfs", "vfat", "exfat"}, append(slices.Clone(diskTypes), imageTypes...)...)

func newBuilder(s *viewSpec) (*builder, error) {
	b := &builder{spec: s}
	if err := b.k.MakeSlave(); err != nil {
		return nil, err
	}
	var err error
	if b.root, err = Open(s.Path, true); err != nil {
		return nil, err
	}
	if err := b.openUppers(); err != nil {
		return nil, err
	}
	for _, c := range b.root.covered {
		if err := b.openCover(&c); err != nil {
			return nil, err
		}
	}
	if b.run, err = sys.OpenRoot(b.root.hostPath("/run")); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return nil, err
	}
	b.conf = readResolvConf(b.root)
	b.sysfs, err = sys.OpenMount(nil, "/sys", true, true)
	return b, err
}

// openUppers finds the volumes with an upper among those that are there now.
// Others may have come and gone: disks do.
func (b *builder) openUppers() error {
	for i := range b.spec.Volumes {
		if want := &b.spec.Volumes[i]; want.Nested {
			if err := b.openNested(want); err != nil {
				return err
			}
		}
	}
	b.upper = make([]staged, len(b.root.vols))
	for _, want := range b.spec.Volumes {
		i := slices.IndexFunc(b.root.vols, func(v *volume) bool { return v.Mount == want.Mount })
		if i < 0 && want.Up == "" {
			continue
		}
		if i < 0 {
			return fmt.Errorf("the file system on %s was unmounted meanwhile", want.Mount)
		}
		n, err := b.root.vols[i].Dir.Stat()
		if err != nil {
			return err
		}
		same := n.Dev == want.Dev && n.Ino == want.Ino
		switch {
		case !same && (want.Up != "" || want.Mount == "/"):
			return fmt.Errorf("another file system was mounted on %s meanwhile", want.Mount)
		case want.Up == "":
			continue
		}
		b.upper[i].up = want.Up
		if b.upper[i].tree, err = sys.OpenMount(nil, b.root.hostPath(want.Mount), true, false); err != nil {
			return err
		}
	}
	return nil
}

// openNested makes a volume of a btrfs subvolume that is no mount: a copy of the mount
// that it is seen in, from there downwards. One that something was mounted upon is not
// seen, and needs none.
func (b *builder) openNested(want *viewVolume) error {
	v := &volume{Volume: Volume{Mount: want.Mount, FSType: "btrfs"}}
	var err error
	if v.tree, err = sys.OpenMount(nil, b.root.hostPath(want.Mount), true, false); err != nil {
		return err
	}
	if v.Dir, err = sys.OpenAt(v.tree, ".", sys.OpenRead|sys.OpenDir, sys.ResolveBeneath); err != nil {
		return err
	}
	n, err := v.Dir.Stat()
	if err != nil || n.Dev != want.Dev || n.Ino != want.Ino {
		want.Up = ""
		v.Dir.Close()
		v.tree.Close()
		return err
	}
	at, _ := slices.BinarySearchFunc(b.root.vols, want.Mount, func(v *volume, mount string) int { return strings.Compare(v.Mount, mount) })
	b.root.vols = slices.Insert(b.root.vols, at, v)
	return nil
}

func (b *builder) openCover(c *cover) error {
	own := slices.ContainsFunc(append(ownMounts, "/.liveupd"), func(dir string) bool {
		return c.point == dir || strings.HasPrefix(c.point, dir+"/")
	})
	if own || !slices.Contains(shownCovers, c.mount.FSType) {
		return nil
	}
	if strings.HasSuffix(c.mount.Root, "//deleted") {
		// What was removed from its file system cannot be mounted once more (move_mount(2)
		// gives ENOENT). The next boot shows what lies beneath, too.
		return nil
	}
	tree, err := sys.OpenMount(nil, b.root.hostPath(c.point), true, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // unmounted and removed meanwhile
	}
	if err != nil {
		return err
	}
	n, err := tree.Stat()
	if err != nil {
		return err
	}
	b.copies = append(b.copies, coverCopy{c.point, c.mount.FSType, tree, n.IsDir()})
	return nil
}

// build puts the view together and makes it this process's root.
func (b *builder) build() error {
	scratch, err := b.k.NewMount("tmpfs", sys.MountNoSuid|sys.MountNoDev, sys.Option{Key: "mode", Value: "0700"}, sys.Option{Key: "size", Value: "25%"})
	if err != nil {
		return err
	}
	at, err := scratchPoint()
	if err != nil {
		return err
	}
	if err := b.k.AttachMount(scratch, at); err != nil {
		return err
	}
	// From here on relative names are those of the scratch directory.
	if err := os.Chdir(at.Name()); err != nil {
		return err
	}
	for i := range b.root.vols {
		if err := b.addVolume(i); err != nil {
			return fmt.Errorf("cannot show %s: %w", b.root.vols[i].Mount, err)
		}
	}
	for i, c := range b.copies {
		if err := b.addCover(len(b.root.vols)+i, c); err != nil {
			return fmt.Errorf("cannot show %s: %w", c.point, err)
		}
	}
	for _, step := range []func() error{b.maskOwn, b.addProc, b.addSys, b.addDev, b.addRun, b.addTmp} {
		if err := step(); err != nil {
			return err
		}
	}
	return b.k.PivotTo(b.view)
}

// scratchPoint opens a directory to mount on. Which one does not matter: the
// mount is seen by this process alone, and goes with the old root.
func scratchPoint() (*sys.FD, error) {
	for _, dir := range []string{"/run", "/tmp", "/mnt", "/dev"} {
		if fd, err := sys.OpenRoot(dir); err == nil {
			return fd, nil
		}
	}
	return nil, errors.New("cannot find a directory to mount on: there is no /run, /tmp, /mnt or /dev")
}

// addVolume mounts overlays A and B of one volume at its place.
func (b *builder) addVolume(i int) error {
	vol, upper := b.root.vols[i], b.upper[i]
	if err := b.k.SetMountAttr(vol.tree, sys.MountReadOnly, 0); err != nil {
		return err
	}
	lower, err := b.attach("l", i, vol.tree)
	if err != nil {
		return err
	}
	looks := lower
	if upper.tree != nil {
		if err := b.k.SetMountAttr(upper.tree, sys.MountReadOnly, 0); err != nil {
			return err
		}
		up, err := b.attach("u", i, upper.tree)
		if err != nil {
			return err
		}
		// One layer alone makes no read-only overlay: an empty one joins it.
		none := "e" + strconv.Itoa(i)
		if err := os.Mkdir(none, 0o700); err != nil {
			return err
		}
		live, err := b.overlay(vol.FSType, sys.Option{Key: "lowerdir", Value: lower + ":" + none})
		if err != nil {
			return err
		}
		if lower, err = b.attach("a", i, live); err != nil {
			return err
		}
		looks = up + "/" + upper.up
		lower = looks + ":" + lower
	}
	top, err := b.throwaway(i, vol.Mount, lower, looks, vol.FSType)
	if err != nil {
		return err
	}
	if vol.Mount == "/" {
		name, err := b.attach("v", i, top)
		if err != nil {
			return err
		}
		b.view, err = sys.OpenRoot(name)
		return err
	}
	return b.mountAt(top, vol.Mount)
}

// throwaway mounts overlay B over the layers lower: writable, into the scratch
// tmpfs. Its root directory looks like looks.
func (b *builder) throwaway(i int, mount, lower, looks, fstype string) (*sys.FD, error) {
	dir := "t" + strconv.Itoa(i)
	for _, d := range []string{dir, dir + "/up", dir + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	// An overlay's root directory is its upper's.
	if err := copyOwner(looks, dir+"/up"); err != nil {
		return nil, err
	}
	fd, err := b.overlay(fstype, sys.Option{Key: "lowerdir", Value: lower},
		sys.Option{Key: "upperdir", Value: dir + "/up"}, sys.Option{Key: "workdir", Value: dir + "/work"})
	if err != nil {
		return nil, err
	}
	up, err := sys.OpenRoot(dir + "/up")
	b.tops = append(b.tops, top{mount, up})
	return fd, err
}

func copyOwner(from, to string) error {
	fi, err := os.Stat(from)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return syscall.Chmod(to, st.Mode&0o7777)
}

// overlay makes an overlay of relative directories. The kernel's refusal is an
// *UnsupportedError: no overlay at all (ENODEV), a layer that is no good for
// one, or a root that is an overlay itself and leaves no depth for two more (EINVAL).
func (b *builder) overlay(fstype string, opts ...sys.Option) (*sys.FD, error) {
	// Staged directories carry no redirects, and hold whole files.
	opts = append(opts, sys.Option{Key: "redirect_dir", Value: "nofollow"}, sys.Option{Key: "metacopy", Value: "off"},
		sys.Option{Key: "index", Value: "off"}, sys.Option{Key: "xino", Value: "off"})
	fd, err := b.k.NewMount("overlay", sys.MountNoSuid|sys.MountNoDev, opts...)
	for _, errno := range []syscall.Errno{syscall.ENODEV, syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ELOOP} {
		if errors.Is(err, errno) {
			return nil, fmt.Errorf("%w: %w", &UnsupportedError{
				Feature: fmt.Sprintf("the staged view over %s (%v)", fstype, err),
				Needs:   "overlayfs, on a root that is no overlay itself",
			}, err)
		}
	}
	return fd, err
}

// attach mounts a detached mount on a new directory of the scratch place.
func (b *builder) attach(kind string, i int, mnt *sys.FD) (string, error) {
	name := kind + strconv.Itoa(i)
	if err := os.Mkdir(name, 0o700); err != nil {
		return "", err
	}
	at, err := sys.OpenRoot(name)
	if err != nil {
		return "", err
	}
	defer at.Close()
	return name, b.k.AttachMount(mnt, at)
}

// mountAt mounts on an existing directory or file of the view.
func (b *builder) mountAt(mnt *sys.FD, point string) error {
	at, err := sys.OpenAt(b.view, strings.TrimPrefix(point, "/"), sys.OpenPath|sys.OpenNoLink, sys.ResolveInRoot|sys.ResolveNoMagic)
	if err != nil {
		return err
	}
	defer at.Close()
	return b.k.AttachMount(mnt, at)
}

// addCover shows what hides a path of a volume: as a throwaway overlay, or
// read-only where it cannot be a layer of one. A mount point that the update
// takes away is left out.
func (b *builder) addCover(i int, c coverCopy) error {
	at, err := sys.OpenAt(b.view, strings.TrimPrefix(c.point, "/"), sys.OpenPath|sys.OpenNoLink, sys.ResolveInRoot|sys.ResolveNoMagic)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer at.Close()
	n, err := at.Stat()
	if err != nil {
		return err
	}
	if n.IsDir() != c.isDir {
		return nil
	}
	if err := b.k.SetMountAttr(c.tree, sys.MountReadOnly|sys.MountNoSuid|sys.MountNoDev, 0); err != nil {
		return err
	}
	if !c.isDir {
		return b.k.AttachMount(c.tree, at)
	}
	lower, err := b.attach("l", i, c.tree)
	if err != nil {
		return err
	}
	top, err := b.throwaway(i, c.point, lower, lower, c.fstype)
	if _, ok := errors.AsType[*UnsupportedError](err); ok {
		from, err := sys.OpenMount(nil, lower, true, false)
		if err != nil {
			return err
		}
		return b.k.AttachMount(from, at)
	}
	if err != nil {
		return err
	}
	return b.k.AttachMount(top, at)
}

// maskOwn hides what liveupd keeps on each volume: old set-id programs and new
// secrets lie there.
func (b *builder) maskOwn() error {
	for _, v := range b.root.vols {
		err := b.freshAt(path.Join(v.Mount, ".liveupd"), "tmpfs", sys.MountReadOnly|sys.MountNoSuid|sys.MountNoDev|sys.MountNoExec, false,
			sys.Option{Key: "mode", Value: "0700"}, sys.Option{Key: "size", Value: "4k"})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// freshAt mounts a new file system in the view, whose directory it makes when told to.
func (b *builder) freshAt(point, fstype string, attrs uint64, create bool, opts ...sys.Option) error {
	if create {
		if err := b.ensureDir(point, 0o755); err != nil {
			return err
		}
	}
	// Not made before there is a place: a missing one is no error to some.
	name := strings.TrimPrefix(point, "/")
	at, err := sys.OpenAt(b.view, name, sys.OpenPath|sys.OpenDir, sys.ResolveInRoot|sys.ResolveNoMagic)
	if err != nil {
		return fmt.Errorf("cannot mount %s on %s: %w", fstype, point, err)
	}
	defer at.Close()
	mnt, err := b.k.NewMount(fstype, attrs, opts...)
	if err != nil {
		return fmt.Errorf("cannot mount %s on %s: %w", fstype, point, err)
	}
	defer mnt.Close()
	if err := b.k.AttachMount(mnt, at); err != nil {
		return fmt.Errorf("cannot mount %s on %s: %w", fstype, point, err)
	}
	return nil
}

// ensureDir makes a directory of the view; it may be there, or be a symlink to one.
func (b *builder) ensureDir(point string, mode uint32) error {
	parent, name := path.Split(strings.TrimPrefix(point, "/"))
	dir, err := b.openDir("/" + parent)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = b.k.Mkdir(dir, name, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (b *builder) openDir(point string) (*sys.FD, error) {
	name := strings.Trim(point, "/")
	if name == "" {
		name = "."
	}
	return sys.OpenAt(b.view, name, sys.OpenRead|sys.OpenDir, sys.ResolveInRoot|sys.ResolveNoMagic)
}
