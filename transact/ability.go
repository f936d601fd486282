package transact

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// What a file system can do is tried in the transaction's own folder, and not taken
// from its name: NFS, 9p and old ZFS exchange nothing, vfat and some servers keep no
// owners, what a program serves may have anything. Only what the update needs is
// asked for.

const (
	probeFile = "probe"
	probeTo   = "probe-to"
)

// probe refuses a volume that cannot do what the update needs there.
func (t *Tx) probe(st *staging, vol int) error {
	tv := &t.vols[vol]
	err := probeExchange(t.s.k, tv.dir, delName, workName)
	if err == nil {
		tv.overlay, err = sys.OnOverlay(tv.dir)
	}
	if err == nil {
		tv.tick, err = t.s.probeNode(tv.dir, neededOf(st, vol))
	}
	if _, ok := errors.AsType[*sys.UnsupportedError](err); ok {
		return change.WithHint(fmt.Errorf("cannot stage on %s: %w", tv.vol.describe(), err), UnableHint(tv.mount))
	}
	if err != nil {
		return t.nameFull(fmt.Errorf("cannot stage on %s: %w", tv.mount, err))
	}
	return nil
}

// UnableHint is what to do about a file system that cannot do what an update needs.
func UnableHint(mount string) string {
	if mount == "/" {
		return "update it where it really lies (of a network file system: on its server, with --root), or move the root to a file system that has it"
	}
	return "leave what lies on " + mount + " out of the update, or move it to a file system that has it"
}

// ProbeExchange tells by trying, in a folder of the caller's on the file system,
// whether that can exchange names; the error is a *sys.UnsupportedError where not.
func ProbeExchange(k *sys.Kernel, dir *sys.FD, name string) (err error) {
	names := []string{name + "-1", name + "-2"}
	for _, n := range names {
		if err := k.Mkdir(dir, n, 0o700); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, k.Rmdir(dir, n)) }()
	}
	return probeExchange(k, dir, names[0], names[1])
}

// probeExchange exchanges two empty folders, which are alike: it is not seen afterwards.
func probeExchange(k *sys.Kernel, dir *sys.FD, a, b string) error {
	return lacks(k.Rename(dir, a, dir, b, sys.RenameExchange), "exchanging two names",
		"a file system with RENAME_EXCHANGE: ext4, xfs, btrfs, tmpfs, f2fs, ZFS from 2.2", syscall.EINVAL, syscall.ENOSYS, syscall.EOPNOTSUPP)
}

// lacks makes of the errors by which file systems say so that they cannot do something
// a *sys.UnsupportedError.
func lacks(err error, feature, needs string, answers ...syscall.Errno) error {
	for _, errno := range answers {
		if isErrno(err, errno) {
			return fmt.Errorf("%w: %w", &sys.UnsupportedError{Feature: feature, Needs: needs}, err)
		}
	}
	return err
}

// needed is what the new objects of one volume ask of it.
type needed struct {
	owner  *change.Node // one that belongs to somebody else than root
	link   bool
	target string // of a symlink
	device *change.Node
	xattrs map[string][]byte // one attribute of each kind
	on     map[string]change.Type
}

func neededOf(st *staging, vol int) needed {
	n := needed{xattrs: map[string][]byte{}, on: map[string]change.Type{}}
	for i := range st.items {
		it := &st.items[i]
		if it.vol != vol || it.New == nil {
			continue
		}
		if n.owner == nil && (it.New.UID != 0 || it.New.GID != 0) {
			n.owner = it.New
		}
		n.link = n.link || it.New.Link != "" && it.New.Link != it.Path
		switch it.New.Type {
		case change.Symlink:
			n.target = it.New.Target
		case change.CharDevice, change.BlockDevice:
			n.device = it.New
		case change.Regular, change.Directory:
			for key, val := range it.New.Xattrs {
				// Attributes of one kind are kept or not kept alike; an overlay's own are not copied.
				if kind := xattrKind(key); n.xattrs[kind] == nil && !strings.HasPrefix(key, "trusted.overlay.") {
					n.xattrs[kind], n.on[kind] = val, it.New.Type
				}
			}
		}
	}
	return n
}

// xattrKind is the whole name where the kernel or a file system looks at it, else the
// namespace with one name of our own.
func xattrKind(key string) string {
	if space, _, ok := strings.Cut(key, "."); ok && (space == "user" || space == "trusted") {
		return space + ".liveupd"
	}
	return key
}

// probeNode makes one of each of what is needed, and looks whether it is what was
// asked for: some file systems agree to everything and keep half. It gives the
// step in which the file system counts modification times, in nanoseconds.
func (s *Store) probeNode(dir *sys.FD, n needed) (tick int64, err error) {
	k := s.k
	f, err := k.Create(dir, probeFile, 0o600)
	if err != nil {
		return 0, err
	}
	f.Close()
	name := probeFile
	defer func() { err = errors.Join(err, k.Unlink(dir, name)) }()
	err = lacks(k.Rename(dir, probeFile, dir, probeTo, sys.RenameNoReplace), "adding a name without replacing one",
		"a file system with RENAME_NOREPLACE", syscall.EINVAL, syscall.ENOSYS, syscall.EOPNOTSUPP)
	if err != nil {
		return 0, err
	}
	name = probeTo
	if err := s.probeOwner(dir, name, n); err != nil {
		return 0, err
	}
	if err := s.probeKinds(dir, name, n); err != nil {
		return 0, err
	}
	return s.probeTime(dir, name)
}

func (s *Store) probeOwner(dir *sys.FD, name string, n needed) error {
	const mode = 0o741
	uid, gid := uint32(0), uint32(0)
	var err error
	if n.owner != nil {
		uid, gid = n.owner.UID, n.owner.GID
		err = s.k.Chown(dir, name, uid, gid)
	}
	if err == nil {
		err = s.k.Chmod(dir, name, mode)
	}
	feature, needs := fmt.Sprintf("files of owner %d:%d with a mode of their own", uid, gid), "a file system that keeps owners and modes, and a mount that maps that owner"
	if err != nil {
		return lacks(err, feature, needs, syscall.EPERM, syscall.EINVAL, syscall.EOVERFLOW, syscall.EOPNOTSUPP)
	}
	got, err := sys.Lstat(dir, name)
	if err == nil && (got.Mode != mode || n.owner != nil && (got.UID != uid || got.GID != gid)) {
		err = &sys.UnsupportedError{Feature: feature, Needs: needs}
	}
	return err
}

func (s *Store) probeKinds(dir *sys.FD, name string, n needed) (err error) {
	k := s.k
	const other = "probe-kind"
	try := func(do func() error, feature string, answers ...syscall.Errno) error {
		if err := do(); err != nil {
			return lacks(err, feature, "a file system of Linux's own", answers...)
		}
		return k.Unlink(dir, other)
	}
	if n.link {
		if err := try(func() error { return k.Link(dir, name, dir, other) }, "hard links", syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS); err != nil {
			return err
		}
	}
	if n.target != "" {
		if err := try(func() error { return k.Symlink(n.target, dir, other) }, "symlinks", syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS); err != nil {
			return err
		}
	}
	if n.device != nil {
		make := func() error { return k.Mknod(dir, other, typeBits[n.device.Type]|0o600, n.device.Rdev) }
		if err := try(make, "device nodes", syscall.EPERM, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EINVAL); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.xattrs)) {
		// It goes with what it was set on: SELinux lets nobody remove its own.
		at := name
		if n.on[key] == change.Directory {
			at = other
			if err := k.Mkdir(dir, at, 0o700); err != nil {
				return err
			}
		}
		err := k.SetXattr(dir, at, key, n.xattrs[key])
		if at == other {
			err = errors.Join(err, k.Rmdir(dir, other))
		}
		if err != nil {
			return lacks(err, "the attribute "+key, "a file system that keeps extended attributes, and privilege to set them",
				syscall.EOPNOTSUPP, syscall.EPERM, syscall.EINVAL)
		}
	}
	return nil
}

// probeTime finds in which steps modification times are kept: ext4 with the small
// inodes of old or tiny disks has seconds.
func (s *Store) probeTime(dir *sys.FD, name string) (int64, error) {
	const odd = 1_600_000_001_123_456_789
	if err := s.k.SetMtime(dir, name, odd); err != nil {
		return 0, err
	}
	got, err := sys.Lstat(dir, name)
	if err != nil {
		return 0, err
	}
	for _, tick := range []int64{1, 100, 1000, 1_000_000, 1_000_000_000, 2_000_000_000} {
		if floor(odd, tick) == got.MtimeNS {
			return tick, nil
		}
	}
	return 0, &sys.UnsupportedError{Feature: "keeping modification times", Needs: "a file system that does, to two seconds at least"}
}

// floor is the last step at or before t, before 1970, too.
func floor(t, tick int64) int64 {
	if tick <= 1 {
		return t
	}
	return t - ((t%tick)+tick)%tick
}

// roundTimes makes the times of what is staged those that its file system can keep:
// what is read back must be what the journal says.
func (t *Tx) roundTimes(st *staging, vol int) {
	for i := range st.items {
		if it := &st.items[i]; it.vol == vol && it.New != nil {
			it.New.MtimeNS = floor(it.New.MtimeNS, t.vols[vol].tick)
		}
	}
}
