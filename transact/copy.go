package transact

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// copyBuffer holds most files of a system whole.
const copyBuffer = 1 << 20

// writebackAt is the size from which a file's writeback is started while the
// next is copied. Small files are left to the barrier, which writes them in disk
// order.
const writebackAt = 1 << 20

func (g *stager) workers() int {
	if g.t.s.opts.Workers > 0 {
		return g.t.s.opts.Workers
	}
	return runtime.NumCPU()
}

// each calls do for each index, by workers with a buffer and folders of their
// own; the first error stops all.
func (g *stager) each(ctx context.Context, list []int, do func(w *worker, i int) error) error {
	if len(list) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(g.workers(), len(list)) {
		wg.Go(func() {
			w := &worker{g: g, dirs: newDirs(), buf: make([]byte, copyBuffer)}
			defer w.dirs.close()
			for ctx.Err() == nil {
				// Runs of neighbours share their folders.
				const run = 16
				from := int(next.Add(run)) - run
				if from >= len(list) {
					return
				}
				for _, i := range list[from:min(from+run, len(list))] {
					if ctx.Err() != nil {
						return
					}
					w.dirs.trim()
					if err := do(w, i); err != nil {
						cancel(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

type worker struct {
	g    *stager
	dirs *dirs
	buf  []byte
}

func (g *stager) copyAll(ctx context.Context, files []int) error {
	return g.each(ctx, files, func(w *worker, i int) error {
		it := &g.st.items[i]
		if err := w.copy(it); err != nil {
			return fmt.Errorf("cannot stage %s: %w", it.Path, err)
		}
		g.done(it.New.Size)
		return nil
	})
}

// source finds what an entry is read from.
func (w *worker) source(it *item) (dir *sys.FD, name string, err error) {
	base, rel := w.g.src, strings.TrimPrefix(it.From, "/")
	if it.FromLive {
		mounts := make([]string, len(w.g.t.vols))
		for i, v := range w.g.t.vols {
			mounts[i] = v.mount
		}
		vol, r := locate(mounts, it.From)
		base, rel = w.g.t.vols[vol].vol.Dir, r
	}
	if base == nil {
		return nil, "", errors.New("there is no source to read it from")
	}
	return w.dirs.parent(base, rel)
}

// takesItem tells whether a file of the source becomes the staged one, where nothing else speaks against it.
func (t *Tx) takesItem(it *item) bool {
	return t.takes && it.New.Type == change.Regular && it.Made == nil && !it.FromLive && !it.New.Digest.IsZero() &&
		t.vols[it.vol].vol.ID == t.vols[0].vol.ID
}

// take moves a file of the source to its staged name; false: it has to be copied.
func (w *worker) take(it *item, from *sys.FD, fromName string) (bool, error) {
	t := w.g.t
	if !t.takesItem(it) {
		return false, nil
	}
	n, err := sys.Lstat(from, fromName)
	if err != nil || n.Nlink != 1 || n.Type != change.Regular || n.Size != it.New.Size {
		return false, nil //nolint:nilerr // the copy says what is wrong
	}
	dir, name, err := w.dirs.parent(t.vols[it.vol].dir, it.staged)
	if err != nil {
		return false, err
	}
	err = t.s.k.Rename(from, fromName, dir, name, sys.RenameNoReplace)
	if isErrno(err, syscall.EXDEV) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	label, err := w.g.labelFor(it)
	if err != nil {
		return false, err
	}
	// What was unpacked has its attributes already; only a label is the root's own.
	if n.Mode == it.New.Mode && n.UID == it.New.UID && n.GID == it.New.GID && n.MtimeNS == it.New.MtimeNS &&
		(label == nil || it.New.Xattrs[selinux] != nil) {
		return true, nil
	}
	return true, setMeta(t.s.k, dir, name, it.New, label)
}

func (w *worker) copy(it *item) error {
	if it.Made != nil {
		return w.lay(it)
	}
	fromDir, fromName, err := w.source(it)
	if err != nil {
		return err
	}
	if taken, err := w.take(it, fromDir, fromName); taken || err != nil {
		return err
	}
	// O_NONBLOCK: what was a file may be a FIFO by now.
	in, err := sys.OpenAt(fromDir, fromName, sys.OpenRead|sys.OpenNoLink|syscall.O_NONBLOCK, resolve)
	if err != nil {
		return err
	}
	defer in.Close()
	before, err := in.Stat()
	if err != nil {
		return err
	}
	if before.Type != change.Regular || before.Size != it.New.Size {
		return fmt.Errorf("the source is not what was planned: %s of %d bytes, not file of %d: %w", before.Type, before.Size, it.New.Size, change.ErrDrift)
	}
	k := w.g.t.s.k
	dir, name, err := w.dirs.parent(w.g.t.vols[it.vol].dir, it.staged)
	if err != nil {
		return err
	}
	out, err := k.Create(dir, name, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	digest, n, err := hashing(in, w.buf, func(b []byte) error { return k.Write(out, b) })
	if err != nil {
		return err
	}
	after, err := in.Stat()
	if err != nil {
		return err
	}
	if n != before.Size || after.Size != before.Size || after.MtimeNS != before.MtimeNS || after.CtimeNS != before.CtimeNS {
		return fmt.Errorf("the source changed while it was read: %w", change.ErrDrift)
	}
	if it.New.Digest.IsZero() {
		it.New.Digest = digest
	} else if it.New.Digest != digest {
		return fmt.Errorf("its digest is %s, not %s: %w", digest, it.New.Digest, change.ErrVerification)
	}
	if err := w.g.setMeta(dir, name, it); err != nil {
		return err
	}
	if n >= writebackAt {
		return k.StartWriteback(out)
	}
	return nil
}

// lay writes a file whose content the entry itself holds.
func (w *worker) lay(it *item) error {
	if digest := change.Digest(sha256.Sum256(it.Made)); digest != it.New.Digest || int64(len(it.Made)) != it.New.Size {
		return fmt.Errorf("its digest is %s, not %s: %w", digest, it.New.Digest, change.ErrVerification)
	}
	k := w.g.t.s.k
	dir, name, err := w.dirs.parent(w.g.t.vols[it.vol].dir, it.staged)
	if err != nil {
		return err
	}
	out, err := k.Create(dir, name, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := k.Write(out, it.Made); err != nil {
		return err
	}
	return w.g.setMeta(dir, name, it)
}

// hashing reads in to its end and hands each part to write, which may be nil.
func hashing(in *sys.FD, buf []byte, write func([]byte) error) (change.Digest, int64, error) {
	h := sha256.New()
	var total int64
	for {
		n, err := in.Read(buf)
		if n > 0 {
			h.Write(buf[:n])
			total += int64(n)
			if write != nil {
				if err := write(buf[:n]); err != nil {
					return change.Digest{}, total, err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return change.Digest(h.Sum(nil)), total, nil
		}
		if err != nil {
			return change.Digest{}, total, err
		}
	}
}

// digestOld hashes the files that go, where the comparison has not: the journal
// names them by content too, so that damage to a kept generation is found before
// a rollback uses it.
func (g *stager) digestOld(ctx context.Context) error {
	var list []int
	for i := range g.st.items {
		it := &g.st.items[i]
		if it.Old != nil && it.Old.Type == change.Regular && it.Old.Digest.IsZero() && !it.inPlace() {
			list = append(list, i)
		}
	}
	return g.each(ctx, list, func(w *worker, i int) error {
		it := &g.st.items[i]
		dir, name, err := w.dirs.parent(g.t.vols[it.vol].vol.Dir, it.rel)
		if err == nil {
			it.Old.Digest, err = digestAt(dir, name, w.buf)
		}
		if errors.Is(err, fs.ErrNotExist) || isErrno(err, syscall.ELOOP) {
			return fmt.Errorf("cannot read %s: %w: %w", it.Path, change.ErrDrift, err)
		}
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", it.Path, err)
		}
		return nil
	})
}

// digestAt hashes a regular file.
func digestAt(dir *sys.FD, name string, buf []byte) (change.Digest, error) {
	f, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenNoLink|syscall.O_NONBLOCK, resolve)
	if err != nil {
		return change.Digest{}, err
	}
	defer f.Close()
	digest, _, err := hashing(f, buf, nil)
	return digest, err
}

// dirs caches open folders (O_PATH: opening one fires no inotify event), so that
// a rename costs no walk. It is not safe for concurrent use.
type dirs struct {
	open  map[dirKey]*sys.FD
	limit int
}

type dirKey struct {
	base *sys.FD
	rel  string
}

func newDirs() *dirs {
	limit := 256
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) == nil {
		limit = int(min(r.Cur/8, 8192))
	}
	return &dirs{open: map[dirKey]*sys.FD{}, limit: max(limit, 16)}
}

// parent opens the folder of rel below base and gives the last name; "." for base itself.
func (d *dirs) parent(base *sys.FD, rel string) (*sys.FD, string, error) {
	parent, name := path.Dir(rel), path.Base(rel)
	if parent == "." {
		return base, name, nil
	}
	key := dirKey{base, parent}
	if fd := d.open[key]; fd != nil {
		return fd, name, nil
	}
	fd, err := sys.OpenAt(base, parent, sys.OpenPath|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return nil, "", err
	}
	d.open[key] = fd
	return fd, name, nil
}

// trim keeps the number of open folders within bounds. It is called between
// operations: what parent gave is closed by it.
func (d *dirs) trim() {
	if len(d.open) >= d.limit {
		d.close()
	}
}

// close closes all folders; the cache can be used again.
func (d *dirs) close() {
	for _, fd := range d.open {
		fd.Close()
	}
	clear(d.open)
}
