package tarball

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// resolve keeps each look-up inside dest and its file system.
const resolve = sys.ResolveBeneath | sys.ResolveNoSymlinks | sys.ResolveNoXDev

func (o *Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return min(runtime.NumCPU(), 8)
}

// Unpack turns the archive that in gives into the tree below dest, an empty folder
// of mode 0700 on the file system that is meant; name is for messages. See the
// package comment for what is taken and what is refused. Errors that are an attack
// or damage match change.ErrVerification. After any error dest is empty again.
//
// Unpack does not wait for a Read of in that does not return once ctx has
// ended: give an in whose Reads end with ctx where it must not be left behind.
func Unpack(ctx context.Context, k *sys.Kernel, in io.Reader, name string, dest *sys.FD, o Options) (*Result, error) {
	fail := func(err error) (*Result, error) {
		label := name
		if q := quote(name); q != `"`+name+`"` {
			label = q
		}
		return nil, fmt.Errorf("cannot unpack %s: %w", label, err)
	}
	dir, err := openDest(k, dest)
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	u := &unpacker{k: k, o: &o, lim: o.Limits.withDefaults(), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), warned: map[string]bool{}}
	u.dirs.open(dir)
	res, err := u.run(ctx, in)
	u.dirs.close()
	if err == nil {
		return res, nil
	}
	if errors.Is(err, syscall.ENOSPC) {
		err = change.WithHint(err, "free some space, or inodes, on the file system that holds "+dest.Name())
	}
	if cerr := empty(k, dir); cerr != nil {
		err = fmt.Errorf("%w; and cannot clean up: %w", err, cerr)
	}
	return fail(err)
}

// openDest makes sure that nobody else can reach what will lie in dest: set-id
// files and secrets do.
func openDest(k *sys.Kernel, dest *sys.FD) (*sys.FD, error) {
	dir, err := sys.OpenAt(dest, ".", sys.OpenRead|sys.OpenDir, resolve)
	if err != nil {
		return nil, err
	}
	err = func() error {
		node, err := dir.Stat()
		if err != nil {
			return err
		}
		if node.Mode&0o7077 != 0 {
			return fmt.Errorf("%s has the mode %04o, not 0700", dest.Name(), node.Mode)
		}
		names, err := sys.ReadDirNames(dir)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return fmt.Errorf("%s is not empty", dest.Name())
		}
		// A default ACL would be handed on to all that is made.
		xattrs, err := sys.Xattrs(dir, "")
		if err == nil && xattrs[aclDefaultKey] != nil {
			err = k.RemoveXattrFD(dir, aclDefaultKey)
		}
		return err
	}()
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// empty removes all that lies in dir, and tells the first that cannot be removed.
func empty(k *sys.Kernel, dir *sys.FD) error {
	names, err := sys.ReadDirNames(dir)
	for _, name := range names {
		if rerr := k.RemoveAll(dir, name); rerr != nil && err == nil {
			err = fmt.Errorf("%s: %w", quote(name), bare(rerr))
		}
	}
	return err
}

// unpacker is one Unpack. Its fields are the calling goroutine's, but for what
// says otherwise.
type unpacker struct {
	k        *sys.Kernel
	o        *Options
	lim      Limits
	uid, gid uint32 // what new objects get by themselves
	in       *counted
	r        *reader
	t        *tree
	dirs     folders
	jobs     chan *job
	written  atomic.Int64
	total    int64 // bytes of files, as far as the headers were read
	res      Result
	warned   map[string]bool
	told     time.Time
}

// maxWarnings bounds what a hostile archive makes a person read.
const maxWarnings = 50

func (u *unpacker) warn(text string) {
	if !u.warned[text] && len(u.warned) < maxWarnings {
		u.warned[text] = true
		u.res.Warnings = append(u.res.Warnings, text)
	}
}

// bombError is a stream that grows beyond the limits.
type bombError struct{ why string }

func (e *bombError) Error() string { return e.why }

// grown is asked after each decompressed block.
func (u *unpacker) grown(total int64) error {
	if total > u.lim.Bytes {
		return &bombError{fmt.Sprintf("it holds more than the limit of %d bytes", u.lim.Bytes)}
	}
	if read := u.in.n.Load(); total > u.lim.RatioFrom && total/u.lim.Ratio > read {
		return &bombError{fmt.Sprintf("%d bytes became more than %d, which is beyond the limit of 1:%d", read, total, u.lim.Ratio)}
	}
	return nil
}

func (u *unpacker) run(ctx context.Context, in io.Reader) (*Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u.in = &counted{in: in, sum: sha256.New()}

	s, stop, err := u.open(ctx)
	defer func() { cancel(nil); stop() }()
	if err != nil {
		return nil, u.cause(err)
	}
	u.r = &reader{s: s, lim: &u.lim, warn: u.warn}
	u.t = newTree(&u.lim, u.o.Skip, u.mkdir)
	u.jobs = make(chan *job, 4*u.o.workers())
	var wg sync.WaitGroup
	for range u.o.workers() {
		wg.Go(func() {
			w := newWorker(u)
			for j := range u.jobs {
				if err := w.do(ctx, j); err != nil {
					cancel(err)
				}
			}
		})
	}
	err = u.entries(ctx)
	s.close()
	if err != nil {
		cancel(err)
	}
	close(u.jobs)
	wg.Wait()
	// A worker's error ends the reading, too: it is the one to tell.
	if first := context.Cause(ctx); first != nil {
		return nil, u.cause(first)
	}
	if err := u.finish(ctx); err != nil {
		return nil, err
	}
	u.res.Bytes, u.res.Read = u.written.Load(), u.in.n.Load()
	u.res.Digest = change.Digest(u.in.sum.Sum(nil))
	u.res.Format = u.r.format
	u.progress(true)
	return &u.res, nil
}

// cause finds what is at the root of an error: what in said counts for more
// than what a decoder made of it.
func (u *unpacker) cause(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if p := u.in.err.Load(); p != nil {
		return fmt.Errorf("cannot read it: %w", *p)
	}
	if bomb, ok := errors.AsType[*bombError](err); ok {
		place := ""
		if u.r != nil {
			place = " " + u.r.place()
		}
		return change.WithHint(damaged("a decompression bomb%s: %s", place, bomb.why), limitHint)
	}
	return err
}

// open sets up the goroutines that read and decompress. stop waits for them and
// must be called once ctx has ended.
func (u *unpacker) open(ctx context.Context) (*stream, func(), error) {
	// The first block decides: a tar stream needs many blocks, which then go to
	// the workers; compressed bytes need few.
	pool := make(chan *block, plainBlocks)
	for range rawBlocks {
		pool <- &block{home: pool}
	}
	ch := make(chan filled)
	go pump(ctx, u.in, pool, ch, func(int64) error { return nil })
	first := &stream{ctx: ctx, ch: ch}
	dec, err := detect(ctx, first, u.o)
	if err != nil {
		return nil, func() {}, err
	}
	if dec == nil {
		u.res.Compression = "none"
		for range plainBlocks - rawBlocks {
			pool <- &block{home: pool}
		}
		return first, func() {}, nil
	}
	u.res.Compression = dec.name
	out := make(chan filled)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pump(ctx, &decoded{dec, first}, newPool(plainBlocks), out, u.grown)
	}()
	stop := func() {
		<-done // its reads end with ctx
		dec.Close()
		first.close()
	}
	return &stream{ctx: ctx, ch: out}, stop, nil
}

// entries reads the archive to its end.
func (u *unpacker) entries(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := u.r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.entry(ctx, h); err != nil {
			return err
		}
		u.progress(false)
	}
}

func (u *unpacker) progress(last bool) {
	if u.o.Progress == nil {
		return
	}
	if now := time.Now(); last || now.Sub(u.told) > 100*time.Millisecond {
		u.told = now
		u.o.Progress(Progress{Read: u.in.n.Load(), Written: u.written.Load(), Entries: u.t.count})
	}
}

// entry settles one entry and hands it to a worker.
func (u *unpacker) entry(ctx context.Context, h *header) error {
	parts, slash, err := splitName(h.name, u.lim.Depth)
	if err != nil {
		return refuse(h.name, "%v", err)
	}
	if slash && h.typ != typeDir {
		return refuse(h.name, "is a %s whose name ends with a slash", typeName(h.typ))
	}
	if u.o.Layer {
		if done, err := u.whiteout(h, parts); done || err != nil {
			return err
		}
	}
	if h.typ == typeLink {
		if len(parts) == 0 {
			return refuse(h.name, "is the root itself, as a hard link")
		}
		_, err := u.t.link(h.name, parts, h.link)
		return err
	}
	node, err := u.node(h)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return u.root(h, node)
	}
	e, err := u.t.place(h.name, parts, node)
	if err != nil || e == nil {
		return err
	}
	if u.total += h.size; u.total > u.lim.Bytes {
		return change.WithHint(refuse(h.name, "exceeds the limit of %d bytes in all", u.lim.Bytes), limitHint)
	}
	if e.skipped || e.isDir() {
		return nil // next passes over the body
	}
	return u.send(ctx, e, h)
}

// root takes the entry of the root itself.
func (u *unpacker) root(h *header, node *change.Node) error {
	if !node.IsDir() {
		return refuse(h.name, "is the root itself, as a %s", node.Type)
	}
	if u.res.Root != nil && !sameFolder(u.res.Root, node) {
		return refuse(h.name, "is there twice, with different owner, mode, time or attributes")
	}
	u.res.Root = node
	return nil
}

// node describes what an entry makes.
func (u *unpacker) node(h *header) (*change.Node, error) {
	n := &change.Node{Mode: h.mode, UID: h.uid, GID: h.gid, MtimeNS: h.mtimeNS, Xattrs: h.xattrs}
	switch h.typ {
	case typeRegular:
		n.Type, n.Size = change.Regular, h.size
	case typeDir:
		n.Type = change.Directory
	case typeSymlink:
		// A symlink's mode is what the kernel says.
		n.Type, n.Target, n.Mode = change.Symlink, h.link, 0o777
		switch {
		case h.link == "" || strings.IndexByte(h.link, 0) >= 0:
			return nil, refuse(h.name, "is a symlink to %s, which no symlink can hold", quote(h.link))
		case len(h.link) > maxPath:
			return nil, refuse(h.name, "is a symlink to a name of %d bytes, more than the %d that Linux can hold", len(h.link), maxPath)
		}
	case typeFIFO:
		n.Type = change.FIFO
	case typeChar, typeBlock:
		n.Type = change.BlockDevice
		if h.typ == typeChar {
			n.Type = change.CharDevice
			if h.major == 0 && h.minor == 0 {
				// On an overlay it would hide what lies below it.
				return nil, cannot(h.name, "is a whiteout of an overlay (character device 0, 0), which is no device")
			}
		}
		n.Rdev = rdev(h.major, h.minor)
	}
	for i, key := range []string{aclAccessKey, aclDefaultKey} {
		if h.acl[i] == "" {
			continue
		}
		if n.Type == change.Symlink || i == 1 && n.Type != change.Directory {
			return nil, refuse(h.name, "is a %s and has an access control list of another kind of object", n.Type)
		}
		acl, err := parseACL(h.acl[i], u.o.ID)
		if _, ok := errors.AsType[*unsupportedError](err); ok {
			return nil, change.WithHint(cannot(h.name, "has %v", err), "make the archive with numbers: bsdtar does, GNU tar from 1.35 with --numeric-owner")
		}
		if err != nil {
			return nil, refuse(h.name, "has an access control list with %v", err)
		}
		if n.Xattrs == nil {
			n.Xattrs = map[string][]byte{}
		}
		n.Xattrs[key] = acl
	}
	return n, nil
}

// rdev is st_rdev as Linux gives it to programs: makedev(3).
func rdev(major, minor uint32) uint64 {
	return uint64(minor&0xff) | uint64(major&0xfff)<<8 | uint64(minor&^0xff)<<12 | uint64(major&^0xfff)<<32
}
