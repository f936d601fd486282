package engine

import (
	"context"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// unreloaded finds the units whose files changed since the manager read them.
// The manager itself is the judge (NeedDaemonReload), but it takes half a
// millisecond for each: it is asked only about units of which a file, or a
// folder, was touched since it last read its files, by the time of the inode.
func unreloaded(ctx context.Context, b *bus, tree *change.Tree) error {
	if b.asker == nil {
		return nil
	}
	clocks, err := sys.ReadClocks()
	if err != nil {
		return err
	}
	// Of the two clocks the one that says earlier: the real one may have been set.
	since := min(int64(b.loaded.RealUSec), clocks.Real/1000-clocks.Monotonic/1000+int64(b.loaded.MonoUSec)) * 1000
	t := touched{since: since, seen: map[string]bool{}, real: map[string]string{}}
	var units, may []*change.UnitState
	for name, u := range b.units {
		if name == u.Name {
			units = append(units, u)
		}
	}
	folders, gone := t.folders(tree.DropInDirs), len(t.folders(tree.Path)) > 0
	if gone {
		// One of the load path: what lay there before is not seen any more: the manager says what it has read.
		if err := b.Fill(ctx, units, change.FieldFragment|change.FieldDropIns); err != nil {
			return err
		}
	}
	for _, u := range units {
		def := tree.Units[u.Name]
		switch {
		case t.definition(def), slices.ContainsFunc(folders, func(dir string) bool { return concerns(dir, u.Name) }),
			gone && t.other(def, u):
			may = append(may, u)
		case u.Name == "init.scope":
			// It has no file. Its answer is true while all units' is: what is
			// enabled has changed, and no reload followed.
			may = append(may, u)
		}
	}
	if err := b.Fill(ctx, may, change.FieldStaleFiles|change.FieldFragment); err != nil {
		return err
	}
	if u := b.units["init.scope"]; u != nil && u.NeedDaemonReload {
		if err := b.Fill(ctx, units, change.FieldStaleFiles|change.FieldFragment); err != nil {
			return err
		}
	}
	return nil
}

// touched finds what was changed since a moment, by the times of inodes: a
// rename and a link change these too.
type touched struct {
	since int64
	seen  map[string]bool
	real  map[string]string // folders without symlinks
}

// file looks at a path, and at what it leads to.
func (t *touched) file(name string) bool {
	if name == "" {
		return false
	}
	is, ok := t.seen[name]
	if !ok {
		is = t.newer(name, sys.TimesOf) || t.newer(name, sys.TimesOfTarget)
		t.seen[name] = is
	}
	return is
}

// newer allows for the clock that inodes get their times from, which ticks no
// finer than every 10 ms. What the manager's own generators write they write
// in the moment before it reads it.
func (t *touched) newer(name string, times func(string) (sys.Times, error)) bool {
	at, err := times(name)
	allowance := int64(20e6)
	if strings.HasPrefix(name, "/run/systemd/generator") {
		allowance = 0
	}
	return err != nil || max(at.Changed, at.Modified) > t.since-allowance
}

func (t *touched) definition(def *change.Unit) bool {
	if def == nil {
		return false
	}
	if t.file(def.Fragment) || slices.ContainsFunc(def.DropIns, t.file) {
		return true
	}
	return slices.ContainsFunc(def.Settings, func(s change.Setting) bool {
		return s.Section == "Unit" && s.Key == "SourcePath" && t.file(s.Value)
	})
}

// other tells whether the manager read other files than those that the tree has.
func (t *touched) other(def *change.Unit, u *change.UnitState) bool {
	if def == nil {
		return u.FragmentPath != "" || len(u.DropIns) > 0
	}
	return !t.same(def.Fragment, u.FragmentPath) || !slices.EqualFunc(def.DropIns, u.DropIns, t.same)
}

// same compares two paths, of which one may lead over /lib and the other over /usr/lib.
func (t *touched) same(a, b string) bool {
	if a == b {
		return true
	}
	real := func(name string) string {
		dir := path.Dir(name)
		if t.real[dir] == "" {
			t.real[dir], _ = filepath.EvalSymlinks(dir)
		}
		return t.real[dir]
	}
	return path.Base(a) == path.Base(b) && real(a) != "" && real(a) == real(b)
}

// folders are those that were touched.
func (t *touched) folders(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(dir string) bool { return !t.newer(dir, sys.TimesOfTarget) })
}

// concerns tells whether a folder of drop-ins may be one of a unit: its own, its
// template's, its type's, or that of a shortened name (foo-.service.d).
func concerns(dir, unit string) bool {
	name := strings.TrimSuffix(path.Base(dir), ".d")
	kind := path.Ext(unit)
	if name == unit || "."+name == kind {
		return true
	}
	prefix, ok := strings.CutSuffix(name, kind)
	return ok && (strings.HasSuffix(prefix, "-") || strings.HasSuffix(prefix, "@")) && strings.HasPrefix(unit, strings.TrimSuffix(prefix, "@"))
}
