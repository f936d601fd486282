package nsmount

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/internal/sys"
)

// Volume is one real file system of the root.
type Volume struct {
	Mount    string  // where it is mounted, relative to the root: "/", "/var"
	ID       string  // names it across reboots: see sys.FileSystemID
	FSType   string  // as mountinfo has it; "" where the mount is not listed
	Dir      *sys.FD // its root directory, or that of --root DIR; readable; nothing is mounted below
	ReadOnly bool    // at the time of Open, by the mount's flag or the file system's
	// Info is the mount that was copied, as mountinfo has it; only its ID is set where it is not listed.
	Info sys.Mount
}

// Root is the root that is updated, as the file systems that it is made of.
type Root struct {
	path    string // in this mount namespace, without symlinks
	live    bool
	vols    []*volume
	covered []cover
	supers  []*super
	notes   string // directory of the notes; "" keeps none
}

type volume struct {
	Volume
	mount   sys.Mount // the mount that was copied
	tree    *sys.FD   // the detached copy; nil where there is no privilege for one
	cleared bool      // MakeWritable took the copy's read-only flag
}

// cover is a mount that hides paths of a volume and is none itself.
type cover struct {
	point string // relative to the root
	mount sys.Mount
}

// diskTypes are the file systems that keep what is written to them and have
// the names, links and attributes of a root. vfat has none of these: nothing
// is exchanged there.
var diskTypes = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "jfs", "reiserfs", "nilfs2", "ocfs2", "gfs2", "ubifs"}

// imageTypes can never be written to.
var imageTypes = []string{"squashfs", "erofs", "iso9660", "udf", "cramfs", "romfs"}

// Open surveys the file systems of the root and opens a detached copy of the
// mount of each. The mount that holds the root is always a volume, of whatever
// type; others inside it are where they keep data on a disk, whole or as a
// btrfs subvolume, and are mounted upon a volume. All else that is mounted
// inside is Covered: memory and network file systems, binds of parts of what
// is mounted already, and what lies on those.
//
// Without CAP_SYS_ADMIN, and unless live, the directory itself is opened as the
// one volume; then every mount inside is covered.
func Open(root string, live bool) (*Root, error) {
	for try := 1; ; try++ {
		r := &Root{live: live}
		err := r.survey(root)
		if err == nil {
			return r, nil
		}
		r.Close()
		if !errors.Is(err, errChanged) || try == maxTries {
			return nil, fmt.Errorf("cannot open the file systems of %s: %w", root, err)
		}
	}
}

// errChanged: a mount went or came between the reading of mountinfo and its
// opening. Disks and containers do that at any time: it is read again.
var errChanged = errors.New("the mounts changed meanwhile")

const maxTries = 10

func (r *Root) survey(root string) error {
	at, err := sys.OpenMount(nil, root, false, true)
	if err != nil {
		return err
	}
	defer at.Close()
	if r.path, err = at.DescribedPath(); err != nil {
		return err
	}
	id, err := sys.MountID(at)
	if err != nil {
		return err
	}
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	base := sys.Mount{ID: id} // not listed where a chroot lies below its mount point
	if i := slices.IndexFunc(mounts, func(m sys.Mount) bool { return m.ID == id }); i >= 0 {
		base = mounts[i]
	}
	plain, err := r.addVolume("/", base, at)
	if err != nil {
		return err
	}
	own := map[string]bool{"/": true} // points that are volumes
	list := visible(mounts, id, r.path)
	// Of two places of one file system the first stands for it: that is nearer
	// to the root, or was there before. The other is a bind, as into a chroot.
	slices.SortStableFunc(list, func(a, b inner) int {
		return cmp.Or(cmp.Compare(strings.Count(a.point, "/"), strings.Count(b.point, "/")), cmp.Compare(a.order, b.order))
	})
	for _, in := range list {
		c := cover{point: in.point, mount: in.mount}
		if !plain && own[in.upon] && mayBeVolume(in.point, &in.mount) {
			ok, err := r.addInner(in.point, in.mount)
			if err != nil {
				return err
			}
			if ok {
				own[in.point] = true
				continue
			}
		}
		r.covered = append(r.covered, c)
	}
	slices.SortFunc(r.vols, func(a, b *volume) int { return cmp.Compare(a.Mount, b.Mount) })
	slices.SortFunc(r.covered, func(a, b cover) int { return cmp.Compare(a.point, b.point) })
	return nil
}

// inner is a mount inside the root that can be reached.
type inner struct {
	point string // relative to the root
	upon  string // the point of the mount that it lies on
	mount sys.Mount
	order int // among all mounts
}

// visible lists the mounts below path that can be reached by walking down from
// the mount base, which path lies on, parents before children. The kernel also
// lists those that a later mount hides: only the chain of parents tells.
func visible(mounts []sys.Mount, base int, dir string) []inner {
	at := map[string][]sys.Mount{}
	for _, m := range mounts {
		if m.Point != dir && m.Inside(dir) {
			at[m.Point] = append(at[m.Point], m)
		}
	}
	top := map[string]int{dir: base} // the mount that is seen at a point
	var out []inner
	for _, point := range slices.Sorted(maps.Keys(at)) {
		upon := path.Dir(point)
		for {
			if _, ok := top[upon]; ok {
				break
			}
			upon = path.Dir(upon)
		}
		cur, found := top[upon], sys.Mount{}
		for {
			i := slices.IndexFunc(at[point], func(m sys.Mount) bool { return m.Parent == cur })
			if i < 0 || at[point][i].ID == cur {
				break
			}
			found, cur = at[point][i], at[point][i].ID
		}
		if found.ID == 0 {
			continue
		}
		top[point] = cur
		order := slices.IndexFunc(mounts, func(m sys.Mount) bool { return m.ID == cur })
		out = append(out, inner{relative(dir, point), relative(dir, upon), found, order})
	}
	return out
}

// relative is an absolute path below dir as seen from dir: "/" for itself.
func relative(dir, p string) string {
	if dir == "/" {
		return p
	}
	if p == dir {
		return "/"
	}
	return strings.TrimPrefix(p, dir)
}

// mayBeVolume tells by what mountinfo says whether a mount inside the root can
// be a volume. Only /usr is taken from an image: others are snaps,
// extensions and disks that were put in.
func mayBeVolume(point string, m *sys.Mount) bool {
	if slices.Contains(imageTypes, m.FSType) {
		return point == "/usr" && m.Root == "/"
	}
	return slices.Contains(diskTypes, m.FSType) && (m.Root == "/" || m.FSType == "btrfs")
}

// addInner adds the mount at point as a volume unless it shows what a volume
// shows already, or a part of a subvolume.
func (r *Root) addInner(point string, m sys.Mount) (bool, error) {
	at, err := sys.OpenMount(nil, r.hostPath(point), false, false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%s: %w", point, errChanged)
	}
	if err != nil {
		return false, err
	}
	defer at.Close()
	id, err := sys.MountID(at)
	if err != nil {
		return false, err
	}
	if id != m.ID {
		return false, fmt.Errorf("%s: %w", point, errChanged)
	}
	n, err := at.Stat()
	if err != nil {
		return false, err
	}
	if !n.IsDir() {
		return false, nil
	}
	if m.FSType == "btrfs" {
		if whole, err := sys.IsSubvolumeRoot(at); err != nil || !whole {
			return false, err
		}
	}
	for _, v := range r.vols {
		same, err := v.shows(&m, n.Dev)
		if err != nil || same {
			return false, err
		}
	}
	_, err = r.addVolume(point, m, at)
	return err == nil, err
}

// shows tells whether m is a mount of what the volume is, st_dev being that of
// m's root: on btrfs that is one for each subvolume.
func (v *volume) shows(m *sys.Mount, stDev uint64) (bool, error) {
	if m.Dev != v.mount.Dev {
		return false, nil
	}
	if m.FSType != "btrfs" {
		return true, nil
	}
	n, err := v.Dir.Stat()
	if err != nil {
		return false, err
	}
	return n.Dev == stDev, nil
}

// addVolume opens a copy of the mount that at is on, from at downwards, and
// tells whether it had to do without a copy.
func (r *Root) addVolume(point string, m sys.Mount, at *sys.FD) (plain bool, err error) {
	v := &volume{Volume: Volume{Mount: point, FSType: m.FSType, Info: m}, mount: m}
	src := at
	v.tree, err = sys.OpenMount(at, "", true, false)
	switch {
	case err == nil:
		src = v.tree
	case errors.Is(err, fs.ErrPermission) && !r.live:
		plain = true
	default:
		return false, err
	}
	r.vols = append(r.vols, v)
	if v.Dir, err = sys.OpenAt(src, ".", sys.OpenRead|sys.OpenDir, sys.ResolveBeneath); err != nil {
		return plain, err
	}
	if v.ID, err = sys.FileSystemID(v.Dir, m.Dev); err != nil {
		return plain, err
	}
	v.ReadOnly, err = sys.ReadOnly(v.Dir)
	return plain, err
}

// hostPath is a path inside the root as this mount namespace has it.
func (r *Root) hostPath(p string) string { return path.Join(r.path, p) }

// Volumes lists the file systems of the root, "/" first, parents before
// children. The descriptors are the Root's: Close closes them.
func (r *Root) Volumes() []Volume {
	out := make([]Volume, len(r.vols))
	for i, v := range r.vols {
		out[i] = v.Volume
	}
	return out
}

// Covered lists the mount points inside the root, relative to it, that are no
// volumes: on the running system they hide what a volume has there.
func (r *Root) Covered() []string {
	out := make([]string, len(r.covered))
	for i, c := range r.covered {
		out[i] = c.point
	}
	return out
}

// Close closes all descriptors, and with them the copies go. It restores
// nothing: call Restore before.
func (r *Root) Close() error {
	var errs []error
	for _, v := range r.vols {
		errs = append(errs, v.Dir.Close(), v.tree.Close())
	}
	for _, s := range r.supers {
		errs = append(errs, s.close())
	}
	r.vols, r.supers = nil, nil
	return errors.Join(errs...)
}
