package engine

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/transact"
)

// runDir is where the running system's lock and the caches of a read-only
// root lie: a tmpfs, gone with the boot.
const runDir = "/run/liveupd"

// notesDir says what was read-only before a run made it writable, for the one
// that comes after a run that was killed.
const notesDir = runDir + "/read-only"

// mode is what a session may do with the root.
type mode int

const (
	readOnly  mode = iota // lists what is there
	cacheOnly             // writes caches, where they can be written
	readWrite             // makes the root writable, under the lock
)

// session is one verb's hold on a root.
type session struct {
	e    *Engine
	k    *sys.Kernel
	req  Request
	mode mode
	lock *os.File
	root *nsmount.Root
	vols []transact.Volume
	// opened is the root where root is nil: it may only be looked at.
	opened *sys.FD
	store  *transact.Store
	// cache is where the indexes lie; nil where they can be kept nowhere.
	cache     *sys.FD
	liveIndex *catalog.Index
	warnings  []string
	rules     []change.Rule // the administrator's
}

// openSession opens the root's file systems and the store in them. With
// readWrite it takes the lock first and makes the root writable.
func openSession(e *Engine, req Request, m mode) (_ *session, err error) {
	s := &session{e: e, k: e.Kernel, req: req, mode: m}
	defer func() {
		if err != nil {
			s.restoreReadOnly()
			s.close()
		}
	}()
	if s.rules, err = loadRules(req); err != nil {
		return nil, err
	}
	st, err := os.Stat(req.Root)
	if err != nil {
		return nil, fmt.Errorf("cannot open root %s: %w", req.Root, errors.Unwrap(err))
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("cannot open root %s: not a directory", req.Root)
	}
	if m == readWrite && req.Live() {
		if s.lock, err = takeLock(req); err != nil {
			return nil, err
		}
	}
	if s.root, err = nsmount.Open(req.Root, req.Live()); err != nil {
		return nil, err
	}
	if err := s.judgeRoot(); err != nil {
		return nil, err
	}
	if m == readWrite {
		left, err := s.root.Remember(s.k, notesDir)
		if err != nil {
			return nil, err
		}
		for _, mount := range left {
			s.warnings = append(s.warnings, fmt.Sprintf("a run that was cut off had left the file system of %s writable inside the kernel (its mounts were read-only)", mount))
		}
		// The store's own; the others when it is known what changes on them.
		if err := s.root.MakeWritable(s.k, s.storeMounts()...); err != nil {
			return nil, err
		}
	}
	for _, v := range s.root.Volumes() {
		s.vols = append(s.vols, transact.Volume{Mount: v.Mount, Dir: v.Dir, ID: v.ID})
	}
	if m == readWrite {
		if s.store, err = transact.Open(s.k, s.vols); err == nil {
			err = s.store.Lock()
		}
	} else {
		s.store, err = transact.Read(s.vols)
	}
	if err != nil {
		return nil, err
	}
	if m == readWrite {
		s.settleTrust()
	}
	if m != readOnly {
		s.openCache()
	}
	return s, nil
}

// storeMounts are the root and those file systems on which transactions lie:
// they may have to be finished or collected there. One that no flag makes
// writable has none of ours.
func (s *session) storeMounts() []string {
	mounts := []string{"/"}
	for _, v := range s.root.Volumes() {
		if v.Mount == "/" {
			continue
		}
		if _, err := sys.Lstat(v.Dir, transact.Dir); err == nil {
			mounts = append(mounts, v.Mount)
		}
	}
	return mounts
}

// openVolumes makes those file systems writable that d changes something on. A
// disk that was put in read-only, and that no update writes to, stays so.
func (s *session) openVolumes(d *change.Delta) error {
	mounts := map[string]bool{}
	for _, e := range d.Entries {
		mounts[s.mountOf(e.Path)] = true
	}
	delete(mounts, "/")
	if len(mounts) == 0 {
		return nil
	}
	return s.root.MakeWritable(s.k, slices.Collect(maps.Keys(mounts))...)
}

// openCache finds a place for the indexes: ROOT/.liveupd, else under /run.
// Without one every run reads the whole tree; that is slow, not wrong.
func (s *session) openCache() {
	if s.mode == cacheOnly && (s.req.Verb == "plan" || s.req.Verb == "exec") {
		// The store makes its folder as an apply would; on a read-only root it cannot.
		if store, err := transact.Open(s.k, s.vols); err == nil {
			store.Close()
		}
	}
	if dir, err := openStateDir(s.k, s.vols[0].Dir); err == nil {
		s.cache = dir
	} else if dir, err := ensureRunDir(s.req.Root); err == nil {
		s.cache = dir
	}
	if s.cache == nil {
		s.liveIndex = &catalog.Index{}
		return
	}
	s.liveIndex = catalog.LoadIndex(s.cache, "index")
}

// openStateDir opens ROOT/.liveupd for writing. One that others could have
// written to is not used.
func openStateDir(k *sys.Kernel, root *sys.FD) (*sys.FD, error) {
	node, err := sys.Lstat(root, transact.Dir)
	if err != nil {
		return nil, err
	}
	if !node.IsDir() || node.Mode&0o077 != 0 || node.UID != uint32(os.Geteuid()) {
		return nil, fmt.Errorf("cannot use /%s: it must be a directory of mode 0700 that belongs to uid %d", transact.Dir, os.Geteuid())
	}
	dir, err := sys.OpenAt(root, transact.Dir, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks|sys.ResolveNoXDev)
	if err != nil {
		return nil, err
	}
	// Writable in earnest: a read-only file system shows only when something is made.
	probe, err := k.OpenAppend(dir, probeName)
	if err != nil {
		dir.Close()
		return nil, err
	}
	probe.Close()
	if err := k.Unlink(dir, probeName); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// probeName is made and removed to see that a directory can be written to.
const probeName = "probe"

func ensureRunDir(root string) (*sys.FD, error) {
	name := filepath.Join(runDir, "cache", strings.ReplaceAll(strings.Trim(root, "/"), "/", "-")+"-root")
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	return sys.OpenRoot(name)
}

// saveIndexes writes what this run has read. A failure costs the next run time only.
func (s *session) saveIndexes(sourceIndex *catalog.Index, sourceName string) {
	if s.cache == nil {
		return
	}
	if err := s.liveIndex.Save(s.k, s.cache, "index"); err != nil {
		s.warnings = append(s.warnings, fmt.Sprintf("the index of the root was not saved: %v", err))
	}
	if sourceIndex != nil && sourceName != "" { // an unpacked archive keeps its own
		if err := sourceIndex.Save(s.k, s.cache, sourceName); err != nil {
			s.warnings = append(s.warnings, fmt.Sprintf("the index of the source was not saved: %v", err))
		}
	}
}

// restoreReadOnly puts the file systems back to what they were. What is still
// in use is tried again for a while: the restarts have only just ended.
func (s *session) restoreReadOnly() {
	if s.root == nil || s.mode != readWrite {
		return
	}
	if s.cache != nil {
		s.cache.Close()
		s.cache = nil
	}
	if s.store != nil {
		s.store.Close()
		s.store = nil
	}
	var holders []nsmount.Holder
	var err error
	for range 20 {
		if holders, err = s.root.Restore(); err == nil && len(holders) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, h := range holders {
		s.warnings = append(s.warnings, fmt.Sprintf(
			"the file system stays writable inside the kernel (its mounts are read-only again): %s (%d) holds %s", h.Comm, h.PID, h.Path))
	}
	if err != nil && len(holders) == 0 {
		s.warnings = append(s.warnings, fmt.Sprintf("the root was not put back to read-only: %v", err))
	}
}

// leave ends a verb that had the root writable; what went wrong on the way out
// still reaches the report.
func (s *session) leave(report *change.Report) {
	s.restoreReadOnly()
	report.Warnings = append(report.Warnings, s.warnings...)
	s.warnings = nil
	s.close()
}

func (s *session) close() {
	if s.cache != nil {
		s.cache.Close()
	}
	if s.store != nil {
		s.store.Close()
	}
	if s.root != nil {
		s.root.Close()
	}
	if s.opened != nil {
		s.opened.Close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
}

// takeLock takes the running system's lock, or says who holds it. It lies in
// /run because the root cannot be written yet.
func takeLock(req Request) (*os.File, error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make %s: %w", runDir, err)
	}
	name := filepath.Join(runDir, "lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := make([]byte, 256)
		n, _ := f.ReadAt(holder, 0) // an unreadable name is "somebody"
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot lock %s: %w", name, err)
		}
		who := strings.TrimSpace(string(holder[:n]))
		if who == "" {
			who = "a process that has not said who it is"
		}
		return nil, change.WithHint(fmt.Errorf("%w: %s holds %s", change.ErrLocked, who, name),
			"wait until it ends, then run the same command again")
	}
	text := fmt.Sprintf("liveupd %s (process %d, since %s)\n", req.Verb, os.Getpid(), time.Now().Format("15:04:05"))
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(text), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot write the lock: %w", err)
	}
	return f, nil
}

// The recorded bases lie in ROOT/.liveupd as base-ID: what the update ID ships.
// The one that counts is the newest of a committed update. It is written
// before the commit, so that a recovery needs no source.
const basePrefix = "base-"

func (s *session) baseIDs() ([]string, error) {
	dir, err := sys.OpenAt(s.vols[0].Dir, transact.Dir, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, basePrefix); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// currentBase reads the base in effect and tells whose it is.
func (s *session) currentBase() (*catalog.Base, string, error) {
	ids, err := s.baseIDs()
	if err != nil {
		return nil, "", err
	}
	list, err := s.store.List()
	if err != nil {
		return nil, "", err
	}
	committed := map[string]bool{firstBase: true}
	for _, g := range list {
		committed[g.ID] = g.State == "verified"
	}
	for _, id := range slices.Backward(ids) {
		if !committed[id] {
			continue
		}
		dir, err := s.stateDir()
		if err != nil {
			return nil, "", err
		}
		base, err := catalog.ReadBase(dir, basePrefix+id)
		dir.Close()
		return base, id, err
	}
	return nil, "", nil
}

func (s *session) stateDir() (*sys.FD, error) {
	return sys.OpenAt(s.vols[0].Dir, transact.Dir, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
}

// dropBases removes the bases for which drop says so.
func (s *session) dropBases(drop func(id string) bool) error {
	ids, err := s.baseIDs()
	if err != nil || len(ids) == 0 {
		return err
	}
	dir, err := s.stateDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, id := range ids {
		if drop(id) {
			if err := s.k.Unlink(dir, basePrefix+id); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropOrphanBases removes the records of updates that never were committed:
// those that recovery has just removed, and those of which nothing is left.
func (s *session) dropOrphanBases(removed map[string]bool) error {
	list, err := s.store.List()
	if err != nil {
		return err
	}
	known := map[string]bool{firstBase: true}
	for _, g := range list {
		known[g.ID] = g.State != "rolled-back"
	}
	return s.dropBases(func(id string) bool { return removed[id] || !known[id] })
}

func randomID() string {
	var b [6]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails since Go 1.24
	return hex.EncodeToString(b[:])
}
