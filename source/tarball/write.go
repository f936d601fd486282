package tarball

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// wholeUpTo is the size up to which a file goes to a worker in one piece: its
// blocks are held until then, so it is far below what the pool holds.
const wholeUpTo = 4 * blockSize

// writebackAt is the size from which a file's writeback is started at once. Small
// files are left to the caller's sync, which writes them in disk order.
const writebackAt = 1 << 20

// job is an object that a worker makes.
type job struct {
	e       *entry
	name    string // as the archive has it, for messages
	dir     *folder
	extents []extent
	sparse  bool
	body    []segment
	more    chan segment // of large files
}

// folder is an open folder that jobs share.
type folder struct {
	fd   *sys.FD
	refs atomic.Int32
}

func (f *folder) release() {
	if f.refs.Add(-1) == 0 {
		f.fd.Close()
	}
}

// folders caches open folders (O_PATH): archives list a folder's files one after
// another, so a file costs no walk. It is the reading goroutine's alone.
type folders struct {
	root  *folder
	cache map[*entry]*folder
}

// maxFolders is how many folders stay open. With those that wait in jobs it is far
// below the 1024 descriptors that a process has at least.
const maxFolders = 128

func (d *folders) open(root *sys.FD) {
	d.root, d.cache = &folder{fd: root}, map[*entry]*folder{}
	d.root.refs.Store(1) // never released: its owner closes it
}

// get opens the folder e; the caller releases what it gets.
func (d *folders) get(e *entry) (*folder, error) {
	f := d.root
	if e.parent != nil {
		if f = d.cache[e]; f == nil {
			fd, err := sys.OpenAt(d.root.fd, e.rel(), sys.OpenPath|sys.OpenDir|sys.OpenNoLink, resolve)
			if err != nil {
				return nil, err
			}
			if len(d.cache) >= maxFolders {
				d.close()
			}
			f = &folder{fd: fd}
			f.refs.Store(1)
			d.cache[e] = f
		}
	}
	f.refs.Add(1)
	return f, nil
}

func (d *folders) close() {
	for _, f := range d.cache {
		f.release()
	}
	clear(d.cache)
}

// mkdir makes a folder at once, because what lies in it needs it. It is closed to
// all others until finish gives it its mode.
func (u *unpacker) mkdir(e *entry) error {
	dir, err := u.dirs.get(e.parent)
	if err != nil {
		return writeError(e.rel(), err)
	}
	defer dir.release()
	return writeError(e.rel(), u.k.Mkdir(dir.fd, e.name, 0o700))
}

func writeError(name string, err error) error {
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", quote(name), bare(err))
	}
	return nil
}

// bare takes the names out of an error of a system call: they are the archive's,
// and not fit for a terminal.
func bare(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	return err
}

// send gives an object to the workers, with its content.
func (u *unpacker) send(ctx context.Context, e *entry, h *header) error {
	dir, err := u.dirs.get(e.parent)
	if err != nil {
		return writeError(h.name, err)
	}
	j := &job{e: e, name: h.name, dir: dir, extents: h.extents, sparse: h.sparse}
	if e.node.Type == change.Regular {
		u.res.Files++
		if !h.sparse && h.size > 0 {
			j.extents = []extent{{0, h.size}}
		}
	}
	if h.stored > wholeUpTo {
		j.more = make(chan segment, plainBlocks)
		defer close(j.more)
	}
	if j.more == nil {
		err = u.body(func(seg segment) error {
			j.body = append(j.body, seg)
			return nil
		})
	}
	if err == nil {
		select {
		case u.jobs <- j:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		j.drop()
		return err
	}
	if j.more == nil {
		return nil
	}
	return u.body(func(seg segment) error {
		u.progress(false)
		select {
		case j.more <- seg:
			return nil
		case <-ctx.Done():
			seg.release()
			return context.Cause(ctx)
		}
	})
}

func (u *unpacker) body(give func(segment) error) error {
	for u.r.remain > 0 {
		seg, err := u.r.take()
		if err != nil {
			return err
		}
		if err := give(seg); err != nil {
			return err
		}
	}
	return nil
}

// drop lets go of what a job holds.
func (j *job) drop() {
	for _, seg := range j.body {
		seg.release()
	}
	j.body = nil
	j.dir.release()
}

type worker struct {
	u   *unpacker
	sum hash.Hash
}

func newWorker(u *unpacker) *worker { return &worker{u: u, sum: sha256.New()} }

// do makes the object of a job. After an error elsewhere it only lets go.
func (w *worker) do(ctx context.Context, j *job) error {
	defer j.drop()
	var err error
	if ctx.Err() == nil {
		if j.e.node.Type == change.Regular {
			err = w.file(ctx, j)
		} else {
			err = w.special(j)
		}
	}
	if j.more != nil && (err != nil || ctx.Err() != nil) {
		// The reading goroutine may wait for room; it closes when it sees the end.
		go func() {
			for seg := range j.more {
				seg.release()
			}
		}()
	}
	return writeError(j.name, err)
}

// special makes what has no content.
func (w *worker) special(j *job) error {
	n, k := j.e.node, w.u.k
	var err error
	switch n.Type {
	case change.Symlink:
		err = k.Symlink(n.Target, j.dir.fd, j.e.name)
	case change.FIFO:
		err = k.Mknod(j.dir.fd, j.e.name, syscall.S_IFIFO|0o600, 0)
	case change.CharDevice:
		err = k.Mknod(j.dir.fd, j.e.name, syscall.S_IFCHR|0o600, n.Rdev)
	case change.BlockDevice:
		err = k.Mknod(j.dir.fd, j.e.name, syscall.S_IFBLK|0o600, n.Rdev)
	}
	if err != nil {
		return err
	}
	return w.u.setMeta(j.dir.fd, j.e.name, n)
}

// setMeta gives what has no open descriptor of its own its owner, mode,
// attributes and time, in the order that keeps each: a chown clears set-id bits
// and capabilities. Then it looks at what came of it.
func (u *unpacker) setMeta(dir *sys.FD, name string, n *change.Node) error {
	if err := u.k.Chown(dir, name, n.UID, n.GID); err != nil {
		return err
	}
	if n.Type != change.Symlink {
		if err := u.k.Chmod(dir, name, n.Mode); err != nil {
			return err
		}
	}
	if err := setXattrs(n, func(key string, val []byte) error { return u.k.SetXattr(dir, name, key, val) }); err != nil {
		return err
	}
	if err := u.k.SetMtime(dir, name, n.MtimeNS); err != nil {
		return err
	}
	var st change.Node
	if err := sys.LstatInto(dir, name, &st); err != nil {
		return err
	}
	settle(n, &st)
	return nil
}

func setXattrs(n *change.Node, set func(key string, val []byte) error) error {
	for key, val := range n.Xattrs {
		if err := set(key, val); err != nil {
			return fmt.Errorf("cannot set the attribute %s: %w", quote(key), bare(err))
		}
	}
	return nil
}

// settle takes over what the kernel made of a node.
func settle(n, st *change.Node) {
	n.Dev, n.Ino, n.Nlink, n.CtimeNS = st.Dev, st.Ino, st.Nlink, st.CtimeNS
	if acl, ok := n.Xattrs[aclAccessKey]; ok {
		n.Mode = st.Mode // an access ACL holds the permissions, too
		if minimalACL(acl) {
			if delete(n.Xattrs, aclAccessKey); len(n.Xattrs) == 0 {
				n.Xattrs = nil
			}
		}
	}
}

// file makes a regular file.
func (w *worker) file(ctx context.Context, j *job) error {
	n, k := j.e.node, w.u.k
	f, err := k.Create(j.dir.fd, j.e.name, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	c := content{ctx: ctx, w: w, f: f, extents: j.extents}
	w.sum.Reset()
	for i, seg := range j.body {
		err := c.write(seg.data)
		seg.release()
		j.body[i] = segment{}
		if err != nil {
			j.body = j.body[i+1:]
			return err
		}
	}
	j.body = nil
	if err := w.stream(ctx, j, &c); err != nil {
		return err
	}
	if err := c.end(n.Size, j.sparse); err != nil {
		return err
	}
	w.sum.Sum(n.Digest[:0])
	if n.UID != w.u.uid || n.GID != w.u.gid {
		if err := k.ChownFD(f, n.UID, n.GID); err != nil {
			return err
		}
	}
	if n.Mode != 0o600 {
		if err := k.Fchmod(f, n.Mode); err != nil {
			return err
		}
	}
	if err := setXattrs(n, func(key string, val []byte) error { return k.Fsetxattr(f, key, val) }); err != nil {
		return err
	}
	if err := k.Futimens(f, n.MtimeNS); err != nil {
		return err
	}
	var st change.Node
	if err := sys.LstatInto(f, "", &st); err != nil {
		return err
	}
	if st.Size != n.Size {
		return fmt.Errorf("it has %d bytes after %d were written", st.Size, n.Size)
	}
	settle(n, &st)
	if n.Size >= writebackAt {
		return k.StartWriteback(f)
	}
	return nil
}

// stream writes the content of a large file as it comes.
func (w *worker) stream(ctx context.Context, j *job, c *content) error {
	for j.more != nil {
		select {
		case seg, ok := <-j.more:
			if !ok {
				return context.Cause(ctx) // nil: the body is complete
			}
			err := c.write(seg.data)
			seg.release()
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// content spreads a body over the pieces of a file, and hashes the file as a reader
// will see it, holes as zeros.
type content struct {
	ctx     context.Context
	w       *worker
	f       *sys.FD
	extents []extent
	at      int64 // in the file
}

var zeroBlock [64 << 10]byte

func (c *content) hole(until int64) error {
	for c.at < until {
		if c.ctx.Err() != nil { // a hole costs time and no input
			return context.Cause(c.ctx)
		}
		n := min(until-c.at, int64(len(zeroBlock)))
		c.w.sum.Write(zeroBlock[:n])
		c.at += n
		c.w.u.written.Add(n)
	}
	return nil
}

func (c *content) write(b []byte) error {
	for len(b) > 0 {
		for len(c.extents) > 0 && c.extents[0].end() <= c.at {
			c.extents = c.extents[1:] // written, or empty
		}
		if len(c.extents) == 0 {
			return fmt.Errorf("its body is longer than its map: %w", change.ErrVerification)
		}
		e := c.extents[0]
		if err := c.hole(e.off); err != nil {
			return err
		}
		n := min(int64(len(b)), e.end()-c.at)
		if err := c.w.u.k.WriteAt(c.f, b[:n], c.at); err != nil {
			return err
		}
		c.w.sum.Write(b[:n])
		c.at += n
		c.w.u.written.Add(n)
		b = b[n:]
	}
	return nil
}

// end completes the file.
func (c *content) end(size int64, sparse bool) error {
	if err := c.hole(size); err != nil || !sparse {
		return err
	}
	return c.w.u.k.Ftruncate(c.f, size)
}
