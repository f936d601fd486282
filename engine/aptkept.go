package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/rootfs"
	"github.com/liveupd/liveupd/source/apt"
)

// What the package manager made for a plan is kept, and the apply that follows takes
// it: the plan that was shown is the one that is carried out, byte for byte. It counts
// for the same request, while the package lists are fresh, and as long as every path
// that it replaces, the package manager's configuration and the files that were named are as they were.
const (
	keptName = "kept.json"
	keptFor  = time.Hour
)

type keptWork struct {
	Key      string
	Time     int64
	Spec     json.RawMessage
	Delta    *change.Delta
	Packages []change.Package
	Recorded apt.Recorded
	Warnings []string
	Live     []liveData
}

// workKey names what a kept work was made for.
func (s *session) workKey(o apt.Options) string {
	b, err := json.Marshal(change.Escaped([]any{s.req.Root, s.req.Source, o, s.aptInputs(o)}))
	if err != nil {
		return "" // no option has another kind than text, list and flag
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// aptInputs describes what decides over the package manager's work and is not changed by it: its
// configuration, where a source may have been taken out or a package pinned since, and package
// files, which may have been built anew under the same name.
func (s *session) aptInputs(o apt.Options) []string {
	var out []string
	view := rootfs.Volumes(s.rootVolumes()...)
	var add func(name string)
	add = func(name string) {
		n, err := view.Lstat(name)
		if err != nil {
			return // one that is missing is one that is missing the next time
		}
		if n.IsDir() {
			names, err := view.ReadDir(name)
			out = append(out, fmt.Sprintf("%s/ %d %v", name, len(names), err))
			for _, child := range names {
				add(path.Join(name, child))
			}
			return
		}
		out = append(out, fmt.Sprintf("%s %d %d %d %d", name, n.Ino, n.Size, n.MtimeNS, n.CtimeNS))
		if to, err := view.Resolve(name); err == nil && to != name {
			if n, err := view.Lstat(to); err == nil && !n.IsDir() {
				add(to)
			}
		}
	}
	for _, name := range apt.Inputs {
		add(name)
	}
	for _, deb := range o.Debs {
		st, err := os.Stat(deb)
		if err != nil {
			out = append(out, err.Error())
			continue
		}
		text := fmt.Sprintf("%s %d %d", deb, st.Size(), st.ModTime().UnixNano())
		if raw, ok := st.Sys().(*syscall.Stat_t); ok {
			text += fmt.Sprintf(" %d %d", raw.Ino, raw.Ctim.Nano())
		}
		out = append(out, text)
	}
	return out
}

// keep lets what the sandbox wrote outlive this run; a Delta whose paths cannot be
// written as text is made anew.
func (w *work) keep(key string, did *aptWork) {
	for i := range did.delta.Entries {
		e := &did.delta.Entries[i]
		if !utf8.ValidString(e.Path) || !utf8.ValidString(e.From) || e.New != nil && !utf8.ValidString(e.New.Target) || e.Old != nil && !utf8.ValidString(e.Old.Target) {
			return
		}
	}
	spec, err := json.Marshal(w.spec)
	if err != nil {
		return
	}
	b, err := json.Marshal(keptWork{
		Key: key, Time: time.Now().Unix(), Spec: spec, Delta: did.delta, Packages: did.packages, Recorded: did.recorded, Warnings: did.warnings, Live: did.live,
	})
	if err != nil {
		return
	}
	f, err := w.s.k.Create(w.dir, keptName, 0o600)
	if err != nil {
		return // the next run makes it anew
	}
	defer f.Close()
	w.kept = w.s.k.Write(f, b) == nil
}

// openKept takes over what an earlier run kept, nil where there is none that fits.
func (s *session) openKept(key string) (*work, *aptWork) {
	if key == "" {
		return nil, nil
	}
	homes := []func() (*sys.FD, error){func() (*sys.FD, error) {
		home, _, err := s.workHome()
		return home, err
	}}
	for _, name := range s.cacheHomes() {
		homes = append(homes, func() (*sys.FD, error) { return openPrivate(name) })
	}
	for _, open := range homes {
		home, err := open()
		if err != nil {
			continue
		}
		w := &work{s: s, home: home}
		did, err := w.loadKept(key)
		if err == nil {
			return w, did
		}
		home.Close()
	}
	return nil, nil
}

var errUnfit = errors.New("what was kept does not fit")

func (w *work) loadKept(key string) (*aptWork, error) {
	if ok, err := sys.TryLock(w.home); err != nil || !ok {
		return nil, errors.Join(errUnfit, err)
	}
	var err error
	if w.dir, err = sys.OpenDirAt(w.home, workDirName); err != nil {
		return nil, err
	}
	did, err := w.readKept(key)
	if err != nil {
		w.dir.Close()
		return nil, err
	}
	// From now on it is used up: what is taken from it cannot be taken again.
	if err := w.s.k.Unlink(w.dir, keptName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.dir.Close()
		return nil, err
	}
	return did, nil
}

func (w *work) readKept(key string) (*aptWork, error) {
	f, err := sys.OpenAt(w.dir, keptName, sys.OpenRead|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxNote))
	if err != nil {
		return nil, err
	}
	var kept keptWork
	if err := json.Unmarshal(b, &kept); err != nil {
		return nil, err
	}
	age := time.Since(time.Unix(kept.Time, 0))
	if kept.Key != key || age < 0 || age > keptFor || kept.Delta == nil {
		return nil, errUnfit
	}
	if err := json.Unmarshal(kept.Spec, &w.spec); err != nil {
		return nil, err
	}
	for i := range kept.Delta.Entries {
		if err := w.s.unchanged(&kept.Delta.Entries[i]); err != nil {
			return nil, err
		}
	}
	return &aptWork{delta: kept.Delta, packages: kept.Packages, recorded: kept.Recorded, warnings: kept.Warnings, live: kept.Live}, nil
}

// unchanged tells whether the live object of an entry is the one that was compared.
func (s *session) unchanged(e *change.Entry) error {
	vol, rel := s.volumeOf(e.Path)
	n, err := sys.LstatPath(vol, relativeTo(rel))
	if errors.Is(err, fs.ErrNotExist) || err != nil && e.Old == nil {
		if e.Old == nil {
			return nil
		}
		return fmt.Errorf("%s is gone: %w", e.Path, errUnfit)
	}
	if err != nil {
		return err
	}
	switch {
	case e.Old == nil || n.Type != e.Old.Type || n.Ino != e.Old.Ino || n.Mode != e.Old.Mode || n.UID != e.Old.UID || n.GID != e.Old.GID,
		n.Type != change.Directory && (n.CtimeNS != e.Old.CtimeNS || n.Size != e.Old.Size):
		return fmt.Errorf("%s has changed: %w", e.Path, errUnfit)
	}
	return nil
}

func relativeTo(p string) string {
	for len(p) > 0 && p[0] == '/' {
		p = p[1:]
	}
	if p == "" {
		return "."
	}
	return p
}
