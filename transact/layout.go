package transact

import (
	"fmt"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
)

// item is one entry of the Delta, with its place.
type item struct {
	*change.Entry
	vol int
	rel string // in the volume
	// under is the index of the entry whose one rename moves this one too; -1
	// where the entry moves by itself.
	under  int
	staged string // in the transaction's folder, for what is staged or removed; "" for metadata
}

// inPlace tells whether the entry changes metadata of an object that stays.
func (it *item) inPlace() bool {
	return it.Op == change.Metadata || it.Op == change.Replace && it.Old.IsDir() && it.New.IsDir()
}

// staging is what Stage learned and Prepare writes down.
type staging struct {
	items  []item
	byPath map[string]int
	used   []bool // volumes that change
}

// layOut gives each entry its place and finds the folders that move whole.
func (t *Tx) layOut(d *change.Delta) (*staging, error) {
	mounts := make([]string, len(t.vols))
	for i, v := range t.vols {
		mounts[i] = v.mount
	}
	st := &staging{items: make([]item, len(d.Entries)), byPath: make(map[string]int, len(d.Entries)), used: make([]bool, len(t.vols))}
	for i := range d.Entries {
		e := &d.Entries[i]
		it := &st.items[i]
		it.Entry, it.under = e, -1
		if err := checkEntry(e); err != nil {
			return nil, err
		}
		if _, twice := st.byPath[e.Path]; twice {
			return nil, fmt.Errorf("cannot stage %s: it is listed twice", e.Path)
		}
		it.vol, it.rel = locate(mounts, e.Path)
		if it.rel == "." && !it.inPlace() {
			return nil, fmt.Errorf("cannot %s %s: it is a mount point", e.Op, e.Path)
		}
		st.byPath[e.Path] = i
		st.used[it.vol] = true
	}
	removed := 0
	for i := range st.items {
		it := &st.items[i]
		if err := st.findAbove(i, mounts); err != nil {
			return nil, err
		}
		switch {
		case it.inPlace():
		case it.Op == change.Remove && it.under < 0:
			removed++
			it.staged = fmt.Sprintf("%s/%06d", delName, removed)
		case it.Op != change.Remove:
			it.staged = path.Join(upName, it.rel)
		}
	}
	// What moves with a removed folder lies below that folder's name in del.
	for i := range st.items {
		if it := &st.items[i]; it.under >= 0 && it.New == nil {
			top := &st.items[it.under]
			it.staged = path.Join(top.staged, strings.TrimPrefix(it.rel, top.rel))
		}
	}
	return st, nil
}

func checkEntry(e *change.Entry) error {
	if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || strings.ContainsRune(e.Path, 0) {
		return fmt.Errorf("cannot stage %q: the path is not clean and absolute", e.Path)
	}
	if e.Path == "/"+Dir || strings.HasPrefix(e.Path, "/"+Dir+"/") || strings.HasSuffix(e.Path, "/"+Dir) {
		return fmt.Errorf("cannot stage %s: liveupd keeps its own there", e.Path)
	}
	ok := false
	switch e.Op {
	case change.Add:
		ok = e.Old == nil && e.New != nil
	case change.Replace, change.Metadata:
		ok = e.Old != nil && e.New != nil
	case change.Remove:
		ok = e.Old != nil && e.New == nil
	}
	if !ok {
		return fmt.Errorf("cannot stage %s: operation %q does not fit what it was and will be", e.Path, e.Op)
	}
	if e.Op == change.Metadata && e.Old.Type != e.New.Type {
		return fmt.Errorf("cannot stage %s: a %s cannot become a %s in place", e.Path, e.Old.Type, e.New.Type)
	}
	return nil
}

// findAbove finds the topmost entry above i that moves a whole folder, and
// checks that i goes the same way.
func (st *staging) findAbove(i int, mounts []string) error {
	it := &st.items[i]
	for dir := path.Dir(it.Path); ; dir = path.Dir(dir) {
		if j, ok := st.byPath[dir]; ok {
			top := &st.items[j]
			if !top.inPlace() {
				switch {
				case it.Old == nil && top.New.IsDir() && !top.Old.IsDir():
				case it.New == nil && top.Old.IsDir() && !top.New.IsDir():
				default:
					return fmt.Errorf("cannot %s %s: %s above it is to %s", it.Op, it.Path, top.Path, top.Op)
				}
				if it.vol != top.vol {
					return fmt.Errorf("cannot %s %s: %s is mounted below it", top.Op, top.Path, mounts[it.vol])
				}
				it.under = j
			}
		}
		if dir == "/" {
			return nil
		}
	}
}

// classify orders what is exchanged.
func classify(p string, n *change.Node) journal.Class {
	base := path.Base(p)
	switch {
	case p == "/usr/lib/os-release" || p == "/etc/os-release":
		return journal.ClassRelease
	case isLibc(base):
		return journal.ClassLibc
	case isUnitFile(p, n):
		return journal.ClassUnit
	case n.Type == change.Regular && n.Mode&0o111 != 0 && !isLibrary(base):
		return journal.ClassExecutable
	}
	return journal.ClassData
}

func isLibrary(base string) bool {
	return strings.HasSuffix(base, ".so") || strings.Contains(base, ".so.")
}

// isLibc: ld.so and libc must be of one build; they also carry the parts of
// libc that older releases kept beside it.
func isLibc(base string) bool {
	if !isLibrary(base) {
		return false
	}
	for _, prefix := range []string{"ld-", "ld.so", "ld64.so", "libc.so.", "libc-2.", "libpthread.so.", "libpthread-2.", "libdl.so.", "librt.so."} {
		if strings.HasPrefix(base, prefix) {
			return true
		}
	}
	return false
}

func isUnitFile(p string, n *change.Node) bool {
	if n.Type == change.Regular && n.Mode&0o111 != 0 {
		return false // systemd's own programs lie beside the units
	}
	for _, dir := range []string{"/usr/lib/systemd/", "/lib/systemd/", "/etc/systemd/", "/usr/local/lib/systemd/"} {
		if strings.HasPrefix(p, dir) {
			return true
		}
	}
	return false
}
