package diff

import (
	"context"
	"crypto/sha256"
	"hash"
	"sync"
	"sync/atomic"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// folder is an open directory that several jobs share.
type folder struct {
	fd   *sys.FD
	refs atomic.Int32
	vol  *volume
	// inner are the names in it where other file systems of the root begin.
	inner map[string]*volume
}

func newFolder(fd *sys.FD, vol *volume) *folder {
	f := &folder{fd: fd, vol: vol}
	f.refs.Store(1)
	return f
}

func (f *folder) hold() {
	if f != nil {
		f.refs.Add(1)
	}
}

func (f *folder) release() {
	if f != nil && f.refs.Add(-1) == 0 {
		// It was open for reading: nothing can be lost.
		_ = f.fd.Close()
	}
}

// at is where the object name really is: itself, or the root of the file
// system that is mounted on it.
func (f *folder) at(name string) (*sys.FD, string) {
	if v := f.inner[name]; v != nil {
		return v.dir, ""
	}
	return f.fd, name
}

// job is a piece of work with the folders that it needs until it has run.
type job struct {
	run  func(w *worker) error
	held [2]*folder
}

// pool is a stack of jobs: the last one first, so that few folders are open at a time.
type pool struct {
	mu    sync.Mutex
	more  *sync.Cond
	stack []job
	busy  int
	err   error
}

func newPool() *pool {
	p := &pool{}
	p.more = sync.NewCond(&p.mu)
	return p
}

func (p *pool) push(j job) {
	for _, f := range j.held {
		f.hold()
	}
	p.mu.Lock()
	p.stack = append(p.stack, j)
	p.mu.Unlock()
	p.more.Signal()
}

// run works until no job is left, or the first error. It may be called again.
func (p *pool) run(ctx context.Context, workers []*worker) error {
	stop := context.AfterFunc(ctx, func() { p.fail(ctx.Err()) })
	defer stop()
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() {
			for {
				j, ok := p.next()
				if !ok {
					return
				}
				err := j.run(w)
				for _, f := range j.held {
					f.release()
				}
				p.done(err)
			}
		})
	}
	wg.Wait()
	for _, j := range p.stack {
		for _, f := range j.held {
			f.release()
		}
	}
	p.stack = nil
	return p.err
}

func (p *pool) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	p.more.Broadcast()
}

func (p *pool) next() (job, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.stack) == 0 && p.busy > 0 && p.err == nil {
		p.more.Wait()
	}
	if p.err != nil || len(p.stack) == 0 {
		return job{}, false
	}
	last := len(p.stack) - 1
	j := p.stack[last]
	p.stack[last] = job{}
	p.stack = p.stack[:last]
	p.busy++
	return j, true
}

func (p *pool) done(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	if err != nil && p.err == nil {
		p.err = err
	}
	if p.err != nil || p.busy == 0 && len(p.stack) == 0 {
		p.more.Broadcast()
	}
}

// worker is one goroutine's share: buffers that are used again and again, and what it found.
type worker struct {
	*comparison
	found
	stat    sys.Stater
	sl, ll  sys.Listing
	sn, ln  change.Node
	hash    hash.Hash
	buf     []byte
	targets [2][]byte
	blob    []byte // of the directory that is walked
	loose   chunk  // of entries that are met by themselves, mostly many of one directory
}

// found is what a worker has found.
type found struct {
	entries   []change.Entry
	kept      []change.Kept
	warnings  []string
	linked    []linkRecord
	chunks    []chunk
	identical int
}

func (f *found) merge(o *found) {
	f.entries = append(f.entries, o.entries...)
	f.kept = append(f.kept, o.kept...)
	f.warnings = append(f.warnings, o.warnings...)
	f.linked = append(f.linked, o.linked...)
	f.chunks = append(f.chunks, o.chunks...)
	f.identical += o.identical
	*o = found{}
}

func newWorker(c *comparison) *worker {
	w := &worker{comparison: c, hash: sha256.New()}
	for i := range w.targets {
		w.targets[i] = make([]byte, 4097)
	}
	return w
}
