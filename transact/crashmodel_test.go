package transact

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// A crash leaves on the disk any state that the file system may have persisted. The
// model: each mutating call is one effect, atomic by itself (a rename moves or
// exchanges both names at once, on every journalling file system). An effect is either
// pinned, by a sync that came after it, or may be missing; an effect on the same name
// or the same inode's metadata that came later is then missing, too. What a sync
// pins is the file systems' difference:
//
//	journalled  ext4 (data=ordered), xfs: one log. Any fsync forces the whole log, so
//	            names and metadata persist in the order of the calls, up to some moment;
//	            data of files that were not synced may be missing: zeros, a shorter file,
//	            half of a write
//	logged      btrfs: a transaction commit persists all up to one moment, and the log
//	            tree what later fsyncs of anybody asked for: an inode with its names,
//	            or a folder, ahead of all that came between
//	any         none of that: names, metadata and data persist in any order, and a
//	            sync pins only what it names. What holds here holds on all of them
//
// Each volume crashes at a moment of its own.
type crashModel string

const (
	journalled crashModel = "ext4, xfs"
	logged     crashModel = "btrfs"
	anyOrder   crashModel = "any order"
)

type effectKind int

const (
	entryEffect effectKind = iota // a name in a folder
	metaEffect                    // mode, owner, times, attributes
	dataEffect
	syncEffect
)

// effect is what one call did, and how to make it unhappen.
type effect struct {
	call  int
	what  string
	kind  effectKind
	vol   int
	keys  []string // names "DIR/NAME", or the inode's metadata: later effects on them depend on this one
	dirs  []uint64 // of a name: the folders; of a sync: the inode
	inode uint64   // of metadata, data and syncs
	gives uint64   // mkdir: the folder's inode
	slot  func() uint64
	whole bool // of a sync: the whole file system
	made  bool // the recorder made the call itself
	undo  func(variant int) error
}

// recorder is a kernel hook that remembers effects, up to a call.
type recorder struct {
	t       testing.TB
	root    string
	mounts  []string
	stash   string
	until   int64
	calls   int64
	skip    func(c sys.Call, states int) bool
	fail    func(c sys.Call, states int) error
	states  int // that were written
	effects []effect
	open    []*sys.FD
	// promised: the act has returned, and what it promises must outlive a crash.
	promised bool
}

func (r *recorder) close() {
	for _, fd := range r.open {
		fd.Close()
	}
	_ = os.RemoveAll(r.stash)
}

func (r *recorder) dup(fd *sys.FD) *sys.FD {
	// Not for the programs that other tests run meanwhile.
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd.Int()), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		r.t.Fatalf("cannot duplicate %s: %v", fd.Name(), errno)
	}
	out := sys.NewFD(int(n), fd.Name())
	r.open = append(r.open, out)
	return out
}

func (r *recorder) ino(fd *sys.FD) uint64 {
	n, err := fd.Stat()
	must(r.t, err)
	return n.Ino
}

// volume finds the volume that a descriptor is on, by its path.
func (r *recorder) volume(fd *sys.FD) int {
	p, err := os.Readlink(fd.ProcPath())
	must(r.t, err)
	vol, _ := locate(r.mounts, filepath.Join("/", strings.TrimPrefix(p, r.root)))
	return vol
}

func (r *recorder) hook(c sys.Call) sys.Fault {
	if n := len(r.effects); n > 0 && r.effects[n-1].slot != nil {
		e := &r.effects[n-1]
		e.gives, e.slot = e.slot(), nil
	}
	if r.calls >= r.until {
		return sys.Fault{Err: errDead}
	}
	r.calls++
	if r.fail != nil {
		if err := r.fail(c, r.states); err != nil {
			return sys.Fault{Err: err}
		}
	}
	if r.skip != nil && r.skip(c, r.states) {
		return sys.Fault{Skip: true}
	}
	if c.Name == "renameat2" && c.To == journal.StateName {
		r.states++
	}
	if e, ok := r.effect(c); ok {
		e.call, e.what = int(r.calls), fmt.Sprintf("%s %s %s", c.Name, c.Path, c.To)
		r.effects = append(r.effects, e)
		return sys.Fault{Skip: e.made}
	}
	return sys.Fault{}
}

var straight *sys.Kernel // makes the calls as they are

func (r *recorder) effect(c sys.Call) (effect, bool) {
	switch c.Name {
	case "fsync", "syncfs":
		return effect{kind: syncEffect, vol: r.volume(c.Dir), inode: r.ino(c.Dir), whole: c.Name == "syncfs"}, true
	case "sync_file_range", "fallocate":
		return effect{}, false
	case "write":
		return r.data(c), true
	case "renameat2":
		return r.rename(c), true
	case "mkdirat", "openat", "mknodat":
		return r.create(c.Dir, c.Path, c.Name == "mkdirat")
	case "symlinkat", "linkat":
		return r.create(c.ToDir, c.To, false)
	case "unlinkat":
		return r.unlink(c)
	}
	return r.meta(c), true
}

func (r *recorder) entry(undo func(int) error, slots ...any) effect {
	e := effect{kind: entryEffect, undo: undo}
	for i := 0; i < len(slots); i += 2 {
		dir, name := slots[i].(*sys.FD), slots[i+1].(string)
		ino := r.ino(dir)
		e.vol = r.volume(dir)
		e.keys = append(e.keys, fmt.Sprintf("%d/%s", ino, name))
		e.dirs = append(e.dirs, ino)
	}
	return e
}

func (r *recorder) create(at *sys.FD, name string, isDir bool) (effect, bool) {
	if _, err := sys.Lstat(at, name); err == nil {
		return effect{}, false // opened to append to
	}
	dir := r.dup(at)
	e := r.entry(func(int) error {
		if isDir {
			return straight.Rmdir(dir, name)
		}
		return straight.Unlink(dir, name)
	}, dir, name)
	if isDir {
		e.slot = func() uint64 {
			n, err := sys.Lstat(dir, name)
			if err != nil {
				return 0 // the call failed
			}
			return n.Ino
		}
	}
	return e, true
}

// keep holds on to what a name leads to before the name is taken from it.
func (r *recorder) keep(dir *sys.FD, name string) string {
	kept := filepath.Join(r.stash, fmt.Sprint(len(r.effects)))
	p, err := os.Readlink(dir.ProcPath())
	must(r.t, err)
	must(r.t, os.Link(filepath.Join(p, name), kept))
	return kept
}

func (r *recorder) putBack(kept string, dir *sys.FD, name string) error {
	stash, err := sys.OpenRoot(r.stash)
	if err != nil {
		return err
	}
	defer stash.Close()
	return straight.Rename(stash, filepath.Base(kept), dir, name, 0)
}

func (r *recorder) rename(c sys.Call) effect {
	from, to := r.dup(c.Dir), r.dup(c.ToDir)
	kept := ""
	if c.Flags == 0 {
		if _, err := sys.Lstat(to, c.To); err == nil {
			kept = r.keep(to, c.To)
		}
	}
	return r.entry(func(int) error {
		if c.Flags == sys.RenameExchange {
			return straight.Rename(from, c.Path, to, c.To, sys.RenameExchange)
		}
		if err := straight.Rename(to, c.To, from, c.Path, sys.RenameNoReplace); err != nil || kept == "" {
			return err
		}
		return r.putBack(kept, to, c.To)
	}, from, c.Path, to, c.To)
}

func (r *recorder) unlink(c sys.Call) (effect, bool) {
	n, err := sys.Lstat(c.Dir, c.Path)
	if err != nil {
		return effect{}, false
	}
	dir := r.dup(c.Dir)
	if n.IsDir() {
		// It goes aside instead: what comes back must be the same object, which descriptors
		// of earlier effects lead to.
		kept := fmt.Sprint("dir", len(r.effects))
		sub, err := sys.OpenAt(dir, c.Path, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
		must(r.t, err)
		defer sub.Close()
		if names, err := sys.ReadDirNames(sub); err != nil || len(names) > 0 {
			return effect{}, false // the call fails
		}
		stash, err := sys.OpenRoot(r.stash)
		must(r.t, err)
		defer stash.Close()
		if err := straight.Rename(dir, c.Path, stash, kept, sys.RenameNoReplace); err != nil {
			return effect{}, false
		}
		e := r.entry(func(int) error { return r.putBack(kept, dir, c.Path) }, dir, c.Path)
		e.made = true
		return e, true
	}
	kept := r.keep(dir, c.Path)
	return r.entry(func(int) error { return r.putBack(kept, dir, c.Path) }, dir, c.Path), true
}

// The ways in which data that did not reach the disk are missing.
const (
	zeros   = iota
	shorter // the file ends where the write began
	torn    // its first half is there
	variants
)

func (r *recorder) data(c sys.Call) effect {
	f := r.dup(c.Dir)
	n, err := f.Stat()
	must(r.t, err)
	return effect{kind: dataEffect, vol: r.volume(c.Dir), inode: n.Ino, undo: func(variant int) error {
		now, err := f.Stat()
		if err != nil {
			return err
		}
		from := n.Size
		if variant == torn {
			from += int64(c.Len / 2)
		}
		if variant == shorter {
			err = syscall.Ftruncate(f.Int(), n.Size)
		} else if left := min(n.Size+int64(c.Len), now.Size) - from; left > 0 {
			// The descriptor may be one for appending: pwrite would not heed the offset.
			if err = syscall.Fallocate(f.Int(), 0x03 /* PUNCH_HOLE | KEEP_SIZE */, from, left); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		return straight.SetMtimeFD(f, now.MtimeNS)
	}}
}

func (r *recorder) meta(c sys.Call) effect {
	var f *sys.FD
	if c.On {
		f = r.dup(c.Dir)
	} else {
		var err error
		f, err = sys.OpenAt(c.Dir, c.Path, sys.OpenPath|sys.OpenNoLink, resolve)
		must(r.t, err)
		r.open = append(r.open, f)
	}
	old, err := f.Stat()
	must(r.t, err)
	xattrs := func() map[string][]byte {
		if old.Type == change.Symlink {
			return nil
		}
		return openXattrs(r.t, f)
	}
	before := maps.Clone(xattrs())
	return effect{kind: metaEffect, vol: r.volume(c.Dir), inode: old.Ino, keys: []string{fmt.Sprint("meta ", old.Ino)}, undo: func(int) error {
		if err := straight.ChownFD(f, old.UID, old.GID); err != nil {
			return err
		}
		if old.Type != change.Symlink {
			if err := straight.ChmodFD(f, old.Mode); err != nil {
				return err
			}
			for key := range xattrs() {
				if _, ok := before[key]; !ok {
					if err := straight.RemoveXattrFD(f, key); err != nil {
						return err
					}
				}
			}
			for key, val := range before {
				if err := straight.SetXattrFD(f, key, val); err != nil {
					return err
				}
			}
			return straight.SetMtimeFD(f, old.MtimeNS)
		}
		return nil // a symlink's time cannot be set by a descriptor; it is set by name, in staging only
	}}
}

// openXattrs reads the attributes of what is open, an O_PATH descriptor too.
func openXattrs(t testing.TB, f *sys.FD) map[string][]byte {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := syscall.Listxattr(f.ProcPath(), buf)
	must(t, err)
	out := map[string][]byte{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if key == "" {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := syscall.Getxattr(f.ProcPath(), key, val)
		must(t, err)
		out[key] = val[:n:n]
	}
	return out
}
