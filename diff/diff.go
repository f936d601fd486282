// Package diff compares an update's tree with the live root, by content, and
// gives a Delta; and it compares the live root with what was last committed.
//
// # Compare
//
//  1. Source and live root are walked together, directory by directory, by
//     descriptors that follow no symlink. Directories are jobs of a pool with a
//     worker for each CPU. Both listings are sorted and merged; each name is
//     described by one call on either side. Where type, mode, owner, size and
//     mtime agree and both indexes know what they hold, that is all: nothing
//     is opened, and nothing is allocated.
//  2. Where that does not settle it, the owner is asked for the class of the
//     path. ClassNever ends it. The rest is compared in full: extended
//     attributes, symlink targets, and the digests of files of equal size
//     (index, signed claim, else read). A file that changes while it is read
//     is read again, and after three times refused.
//  3. What differs is decided: by its class, or by the three-way rule of the
//     owner, which then has both digests. What differs in metadata only is
//     changed in place; all else moves names. A directory's mtime is no
//     difference: each change of a name in it gives it a new one.
//  4. A directory of the source that meets a symlink to a directory lands in
//     its target. Those wait until the walk is over. Then each of their entries
//     is compared like any other; two entries on one path must be equal.
//  5. Names of ClassWhole that the source lacks go, with all below; a folder
//     only when all that it holds goes. Recorded paths that the source lacks
//     are put to the owner.
//  6. Hard links: the names of a source inode must be the names of one live
//     inode. Where they are not, all of them are staged anew, as one. A live
//     inode that loses a name loses all: the names that stay, wherever they
//     are, get a fresh inode with the same content, because link(2) on a live
//     inode is not allowed, and none may keep a name in the store.
//  7. The Delta is sorted by path and put to the guards: mount points, and the
//     number of removals.
//
// Compare writes nothing, and reads the live root without touching access times
// where the kernel allows that. Its Delta depends on the two trees alone, not on
// the order in which the workers ran.
//
// Verify goes the other way: from the recorded base to the live root.
package diff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
)

// storeName is where the transactions of a root lie, at the top of each of
// its file systems. It is neither compared nor removed, and no update may ship it.
const storeName = ".liveupd"

// besideSuffix is what a new version is laid beside as.
const besideSuffix = ".liveupd-new"

// Source is the tree that an update brings.
type Source interface {
	// Root is the tree's directory.
	Root() *sys.FD
	// Skip tells what is not part of the update: it is asked for the paths at
	// the top of the tree.
	Skip(path string) bool
	// Claim gives what a signed manifest says of a path: (nil, false) for an
	// unsigned tree, (nil, true) where a signed one does not list it. It is
	// asked for each path of a signed tree. Modification times and the
	// attributes of labels are not part of a claim.
	Claim(path string) (node *change.Node, signed bool)
	// Whole tells that the tree is a whole system.
	Whole() bool
}

// Owner is who knows to whom a path belongs. Its methods are called from
// several goroutines.
type Owner interface {
	// Class is of the path where an entry lands.
	Class(path string) change.Class
	// Decide settles a path of ClassThreeWay; old is nil where the path is
	// absent, new where the source lacks it. Digests of regular files are set.
	Decide(path string, old, new *change.Node) change.Decision
	// Recorded lists the paths of the recorded base of ClassThreeWay.
	Recorded() iter.Seq[string]
}

// Volume is one file system of the live root.
type Volume struct {
	Mount string  // "/" or the path of its mount point in the root
	Dir   *sys.FD // its root directory, in a clone without the mounts on top of it
}

// Options is what Compare and Verify work with.
type Options struct {
	Live *sys.FD // the root's directory
	// Volumes are the root's file systems; none: all below Live is one tree.
	Volumes            []Volume
	Index, SourceIndex *catalog.Index // nil: all is read
	// IgnoreLabels: the source's SELinux labels say where it lies, and not what it is.
	IgnoreLabels  bool
	Workers       int // 0: as many as there are CPUs
	AllowRemovals bool
	// Mounts are the mount points of the running system inside the root.
	Mounts []string
	// Hiding are those of them that show something else than the root has there.
	Hiding []string
	// Full makes Verify read each file, whatever the index says.
	Full bool
	// Implied tells of folders of the source that are there for what they hold alone:
	// one that exists in the root stays as it is. nil: there are none.
	Implied func(path string) bool
	// Progress is called ten times a second, and at the end, from one goroutine.
	Progress func(files, bytes int64)
}

// Result is what Compare found.
type Result struct {
	Delta *change.Delta

	src    Source
	own    Owner
	index  *catalog.Index
	chunks []chunk
	links  map[string]string // first path of the hard-link group, by path
	asked  map[string]bool   // recorded paths that the source lacks
	reader *worker           // reads what was not read before, made when it is needed
}

// comparison is one run of Compare.
type comparison struct {
	src    Source
	own    Owner
	o      Options
	live   *liveTree
	whole  bool
	signed bool
	pool   *pool
	stats  stats

	mu      sync.Mutex
	aliases []alias
	landed  map[string]string // by the path where an aliased entry landed: its path in the source
	parents map[string]bool   // folders of ClassNever that were added for what is owned below them
}

type stats struct{ files, bytes atomic.Int64 }

// Compare finds what src changes in the live root.
func Compare(ctx context.Context, src Source, own Owner, o Options) (*Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	live, err := openLive(o)
	if err != nil {
		return nil, err
	}
	c := &comparison{
		src: src, own: own, o: o, live: live, whole: src.Whole(), pool: newPool(),
		landed: map[string]string{}, parents: map[string]bool{},
	}
	_, c.signed = src.Claim("/")
	defer c.stats.report(o.Progress)()

	workers := make([]*worker, max(1, cmpOr(o.Workers, runtime.GOMAXPROCS(0))))
	for i := range workers {
		workers[i] = newWorker(c)
	}
	if err := c.walk(ctx, workers); err != nil {
		return nil, err
	}
	return c.finish(ctx, workers)
}

func cmpOr(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

// report calls progress until the function that it returns is called.
func (s *stats) report(progress func(files, bytes int64)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				progress(s.files.Load(), s.bytes.Load())
			case <-done:
				progress(s.files.Load(), s.bytes.Load())
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// walk does steps 1 to 4.
func (c *comparison) walk(ctx context.Context, workers []*worker) error {
	srcRoot, err := c.openSource("")
	if err != nil {
		return err
	}
	liveRoot, err := c.live.open("")
	if err != nil {
		srcRoot.release()
		return err
	}
	root := pairing{src: srcRoot, live: liveRoot, class: c.own.Class("/")}
	c.pool.push(job{run: func(w *worker) error { return w.pair(root) }, held: [2]*folder{srcRoot, liveRoot}})
	srcRoot.release()
	liveRoot.release()
	for {
		if err := c.pool.run(ctx, workers); err != nil {
			return err
		}
		todo := c.aliases
		c.aliases = nil
		if len(todo) == 0 {
			return nil
		}
		slices.SortFunc(todo, func(a, b alias) int {
			return strings.Compare(a.src+"\x00"+a.live, b.src+"\x00"+b.live)
		})
		for _, a := range todo {
			if err := workers[0].alias(a); err != nil {
				return err
			}
		}
	}
}

// finish does steps 5 to 7.
func (c *comparison) finish(ctx context.Context, workers []*worker) (*Result, error) {
	w := workers[0]
	for _, other := range workers {
		other.closeLoose()
		if other != w {
			w.merge(&other.found)
		}
	}
	r := &Result{src: c.src, own: c.own, index: c.o.SourceIndex, chunks: w.chunks}
	if c.signed {
		// What the manifest vouches for is known without a read.
		r.index = nil
	}
	w.dropLanded()
	var err error
	if r.asked, err = w.recorded(); err != nil {
		return nil, err
	}
	if r.links, err = w.settleLinks(ctx); err != nil {
		return nil, err
	}
	d := &change.Delta{Entries: w.entries, Identical: w.identical, Warnings: w.warnings, Kept: w.kept}
	if d.Entries, err = sortEntries(d.Entries); err != nil {
		return nil, err
	}
	for _, e := range d.Entries {
		// The further names of a hard-link group cost nothing.
		if (e.Op == change.Add || e.Op == change.Replace) && e.New.Type == change.Regular && (e.New.Link == "" || e.New.Link == e.Path) {
			d.Bytes += e.New.Size
		}
	}
	slices.SortFunc(d.Kept, func(a, b change.Kept) int { return strings.Compare(a.Path, b.Path) })
	if err := c.guard(d); err != nil {
		return nil, err
	}
	slices.Sort(d.Warnings)
	d.Warnings = slices.Compact(d.Warnings)
	r.Delta = d
	return r, nil
}

// sortEntries sorts by path, and makes one of two that bring the same to one path.
func sortEntries(entries []change.Entry) ([]change.Entry, error) {
	slices.SortFunc(entries, func(a, b change.Entry) int {
		if n := strings.Compare(a.Path, b.Path); n != 0 {
			return n
		}
		return strings.Compare(a.From, b.From)
	})
	out := entries[:0]
	for _, e := range entries {
		if len(out) > 0 && out[len(out)-1].Path == e.Path {
			last := &out[len(out)-1]
			if last.Op != e.Op || last.New == nil || e.New == nil || !alike(last.New, e.New) {
				return nil, fmt.Errorf("cannot place both %q and %q at %q: they differ", last.From, e.From, e.Path)
			}
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// alike tells whether two entries of the source may share a path.
func alike(a, b *change.Node) bool {
	if a.Type == change.Regular && (a.Digest.IsZero() || b.Digest.IsZero()) && (a.Dev != b.Dev || a.Ino != b.Ino) {
		return false
	}
	return difference(a, b)&^change.AspectMtime == 0
}

func join(dir, name string) string { return dir + "/" + name }

// parent is the folder of a path; "" for what is at the top.
func parent(p string) string {
	dir := path.Dir(p)
	if dir == "/" {
		return ""
	}
	return dir
}

func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
