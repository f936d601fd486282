package transact

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Dir is the folder on each file system that holds all that liveupd keeps there.
const Dir = ".liveupd"

const (
	txName    = "tx"
	upName    = "up"
	delName   = "del"
	workName  = "work"
	ballast   = "ballast"
	ownerName = "owner" // in a transaction's folder off the root: the root store's token
	tokenName = "id"    // in the root's .liveupd: a random token, so that a shared /var knows whose staging it holds
	gcPrefix  = "gc-"
)

// resolve is how every path below a volume is opened: no symlink and no other
// file system can lead a rename astray.
const resolve = sys.ResolveBeneath | sys.ResolveNoSymlinks | sys.ResolveNoXDev

// Volume is one file system of the root.
type Volume struct {
	Mount string  // where it lies in the root: "/", "/var"
	Dir   *sys.FD // its root folder, or that of --root DIR: a clone without submounts, writable
	ID    string  // file system UUID and subvolume; "" where not known
}

// Options are for benchmarks and the fault suite; the zero value is right for use
// but for Label.
type Options struct {
	Workers int   // that copy files; 0: one for each CPU. With 1 the order of all mutating calls is fixed
	Ballast int64 // bytes reserved on each file system; 0: 32 MiB, less on a small disk
	// Label gives security.selinux for what comes without one, by the rules of the
	// root: its path, its type and the label of what it replaces, nil for none.
	// nil: the rules have none. It is called by several workers. nil where the root has no rules.
	Label func(path string, typ change.Type, old []byte) ([]byte, error)
}

type volume struct {
	Volume
	sync *sys.FD // for syncfs, opened before any write
	home *sys.FD // .liveupd; nil where there is none yet
	tx   *sys.FD // .liveupd/tx; nil where there is none yet
	// nested: a subvolume that the store found itself; Dir is the store's to close.
	nested bool
}

// Store is all transactions of one root.
type Store struct {
	k        *sys.Kernel
	vols     []*volume
	opts     Options
	readOnly bool
	lock     *sys.FD
	// noDrift leaves the look before the commit out: the negative control of the tests.
	noDrift bool
}

// Open opens the store of a root for use and makes its folder. vols[0] is the
// root's own. A folder with another owner or mode, or a symlink in its place, is
// refused by name: old set-uid files and new shadow files lie there.
func Open(k *sys.Kernel, vols []Volume) (*Store, error) {
	s, err := open(k, vols, true)
	if err != nil {
		return nil, err
	}
	if err := s.makeHome(s.vols[0]); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Read opens the store of a root to list and load; nothing is created. What others
// could use on a file system beside the root's own is passed over: nothing is
// read from there.
func Read(vols []Volume) (*Store, error) {
	s, err := open(nil, vols, false)
	if err != nil {
		return nil, err
	}
	s.readOnly = true
	return s, nil
}

// SetOptions sets options before the first transaction.
func (s *Store) SetOptions(o Options) { s.opts = o }

func open(k *sys.Kernel, vols []Volume, strict bool) (*Store, error) {
	if len(vols) == 0 || vols[0].Mount != "/" {
		return nil, errors.New("cannot open the transaction store: the first volume is not the root")
	}
	s := &Store{k: k}
	for _, v := range vols {
		vol := &volume{Volume: v}
		s.vols = append(s.vols, vol)
		var err error
		if vol.sync, err = sys.OpenAt(v.Dir, ".", sys.OpenRead|sys.OpenDir, resolve); err != nil {
			s.Close()
			return nil, fmt.Errorf("cannot open volume %s: %w", v.Mount, err)
		}
		if err := vol.openHome(); err != nil && (strict || v.Mount == "/") {
			s.Close()
			return nil, err
		}
	}
	if err := s.openNested(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close lets go of the descriptors and the lock.
func (s *Store) Close() {
	for _, v := range s.vols {
		v.sync.Close()
		v.home.Close()
		v.tx.Close()
		if v.nested {
			v.Dir.Close()
		}
	}
	s.lock.Close()
}

// Lock takes the root's lock until Close; change.ErrLocked names its holder.
func (s *Store) Lock() error {
	home := s.vols[0].home
	if home == nil {
		return fmt.Errorf("cannot lock %s: it does not exist", s.vols[0].homePath())
	}
	f, err := sys.OpenAt(home, ".", sys.OpenRead|sys.OpenDir, resolve)
	if err != nil {
		return fmt.Errorf("cannot lock %s: %w", s.vols[0].homePath(), err)
	}
	ok, err := sys.TryLock(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("cannot lock %s: %w", s.vols[0].homePath(), err)
	}
	if !ok {
		node, err := f.Stat()
		f.Close()
		if err != nil {
			return fmt.Errorf("cannot lock %s: %w", s.vols[0].homePath(), err)
		}
		return change.WithHint(fmt.Errorf("cannot lock %s: %s holds it: %w", s.vols[0].homePath(), lockHolder(node.Ino), change.ErrLocked),
			"wait until it ends, then run the same command again")
	}
	s.lock = f
	return nil
}

// lockHolder finds who holds a flock, by proc_locks(5). Inode numbers of two
// file systems may be equal; the answer is for a person.
func lockHolder(ino uint64) string {
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return "another process"
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], fmt.Sprintf(":%d", ino)) {
			continue
		}
		comm, err := os.ReadFile("/proc/" + f[4] + "/comm")
		if err != nil {
			return "process " + f[4]
		}
		return fmt.Sprintf("process %s (%s)", f[4], strings.TrimSpace(string(comm)))
	}
	return "another process"
}

func (v *volume) homePath() string { return path.Join(v.Mount, Dir) }

// openHome opens .liveupd where it exists, and refuses one that others could use.
func (v *volume) openHome() error {
	node, err := sys.Lstat(v.Dir, Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", v.homePath(), err)
	}
	if !node.IsDir() {
		return change.WithHint(fmt.Errorf("cannot use %s: it is a %s, not a directory", v.homePath(), node.Type),
			"somebody put it there: look at it, then remove it")
	}
	home, err := sys.OpenAt(v.Dir, Dir, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", v.homePath(), err)
	}
	// Look at what was opened, not at what had the name a moment ago.
	if node, err = home.Stat(); err != nil {
		home.Close()
		return fmt.Errorf("cannot open %s: %w", v.homePath(), err)
	}
	if node.Mode != 0o700 || int(node.UID) != os.Geteuid() || int(node.GID) != os.Getegid() {
		home.Close()
		return change.WithHint(fmt.Errorf("cannot use %s: it has mode %04o and owner %d:%d, not 0700 and %d:%d",
			v.homePath(), node.Mode, node.UID, node.GID, os.Geteuid(), os.Getegid()),
			"old set-uid files and new secrets lie there: find out who changed it before you correct it")
	}
	tx, err := sys.OpenAt(home, txName, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		home.Close()
		return fmt.Errorf("cannot open %s/tx: %w", v.homePath(), err)
	}
	v.home, v.tx = home, tx
	return nil
}

// makeHome makes .liveupd/tx on a volume. The mtime of the volume's root folder
// is put back: it is the only thing that others could see.
func (s *Store) makeHome(v *volume) error {
	if v.tx != nil {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("cannot make %s: %w", v.homePath(), err) }
	if v.home == nil {
		root, err := v.Dir.Stat()
		if err != nil {
			return fail(err)
		}
		if err := s.k.Mkdir(v.Dir, Dir, 0o700); err != nil {
			return fail(err)
		}
		// A set-group-ID root folder hands its group down.
		if err := s.k.Chown(v.Dir, Dir, uint32(os.Geteuid()), uint32(os.Getegid())); err != nil {
			return fail(err)
		}
		if err := s.k.Chmod(v.Dir, Dir, 0o700); err != nil {
			return fail(err)
		}
		// A default ACL would be handed down to all that is staged.
		xattrs, err := sys.Xattrs(v.Dir, Dir)
		if err != nil {
			return fail(err)
		}
		for _, key := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
			if _, ok := xattrs[key]; ok {
				if err := s.k.RemoveXattr(v.Dir, Dir, key); err != nil {
					return fail(err)
				}
			}
		}
		if err := s.labelHome(v, xattrs[selinux]); err != nil {
			return fail(err)
		}
		if err := s.k.SetMtime(v.Dir, ".", root.MtimeNS); err != nil {
			return fail(err)
		}
		if err := s.k.Fsync(v.sync); err != nil {
			return fail(err)
		}
		if err := v.openHome(); err != nil {
			return err
		}
		if v.tx != nil {
			return nil
		}
	}
	if err := s.k.Mkdir(v.home, txName, 0o700); err != nil {
		return fail(err)
	}
	if err := s.k.Fsync(v.home); err != nil {
		return fail(err)
	}
	v.home.Close()
	return v.openHome()
}

// token is the random name of the root's store.
func (s *Store) token() (string, error) {
	home := s.vols[0].home
	f, err := sys.OpenAt(home, tokenName, sys.OpenRead|sys.OpenNoLink, resolve)
	if err == nil {
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, 64))
		if err != nil || len(b) != 32 {
			return "", fmt.Errorf("cannot read %s/%s: it is damaged", s.vols[0].homePath(), tokenName)
		}
		return string(b), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	tok := hex.EncodeToString(b[:])
	if err := s.writeFile(home, tokenName, []byte(tok)); err != nil {
		return "", err
	}
	return tok, nil
}

// writeFile makes a small file durably and atomically.
func (s *Store) writeFile(dir *sys.FD, name string, b []byte) error {
	beside := name + ".new"
	if err := s.k.Unlink(dir, beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := s.k.Create(dir, beside, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.k.Write(f, b); err != nil {
		return err
	}
	if err := s.k.Fsync(f); err != nil {
		return err
	}
	if err := s.k.Rename(dir, beside, dir, name, 0); err != nil {
		return err
	}
	return s.k.Fsync(dir)
}

// ids lists the transactions on a volume, oldest first, and the half-removed ones.
func (v *volume) ids() (ids, garbage []string, err error) {
	if v.tx == nil {
		return nil, nil, nil
	}
	names, err := sys.ReadDirNames(v.tx)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list %s/tx: %w", v.homePath(), err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, gcPrefix) {
			garbage = append(garbage, n)
		} else {
			ids = append(ids, n)
		}
	}
	slices.Sort(ids)
	return ids, garbage, nil
}

// locate finds the volume of a path, by the longest mount, and the path in it;
// "." is the volume's own root.
func locate(mounts []string, p string) (vol int, rel string) {
	best := -1
	for i, m := range mounts {
		if m == "/" || p == m || strings.HasPrefix(p, m+"/") {
			if best < 0 || len(m) > len(mounts[best]) {
				best = i
			}
		}
	}
	rel = strings.TrimPrefix(strings.TrimPrefix(p, strings.TrimSuffix(mounts[best], "/")), "/")
	if rel == "" {
		rel = "."
	}
	return best, rel
}

func isErrno(err error, want syscall.Errno) bool { return errors.Is(err, want) }
