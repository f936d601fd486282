package rootfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Overlay is the view of base as it will be once d is applied. Nothing is
// staged for it: the content of what is added or replaced is read from src at
// Entry.From, from base where the entry says FromLive, or is Made. Symlinks resolve
// through the result, so that a changed symlink or folder leads elsewhere.
func Overlay(base View, d *change.Delta, src *sys.FD) View {
	o := &overlay{
		base: asTree(base), src: src,
		entries: make(map[string]*change.Entry, len(d.Entries)),
		added:   map[string][]string{}, fresh: map[string]bool{},
	}
	for i := range d.Entries {
		e := &d.Entries[i]
		o.entries[e.Path] = e
		if e.Op == change.Add || e.Op == change.Replace {
			dir := path.Dir(e.Path)
			o.added[dir] = append(o.added[dir], path.Base(e.Path))
		}
		if e.New.IsDir() && !e.Old.IsDir() && e.Op != change.Metadata {
			o.fresh[e.Path] = true
		}
	}
	return &tree{layer: o}
}

type overlay struct {
	base    *tree
	src     *sys.FD
	entries map[string]*change.Entry
	added   map[string][]string // names to add, by their folder
	fresh   map[string]bool     // folders below which nothing of the base shows
}

// covered tells whether a folder that the delta brings stands above real: the
// base may hold something there through what was a symlink before.
func (o *overlay) covered(real string) bool {
	if len(o.fresh) == 0 {
		return false
	}
	for dir := path.Dir(real); dir != "/"; dir = path.Dir(dir) {
		if o.fresh[dir] {
			return true
		}
	}
	return false
}

func (o *overlay) lstat(real string) (*change.Node, error) {
	e := o.entries[real]
	switch {
	case e != nil && e.Op == change.Remove, e == nil && o.covered(real):
		return nil, &fs.PathError{Op: "lookup", Path: real, Err: fs.ErrNotExist}
	case e == nil || e.New == nil:
		return o.base.stat(real)
	}
	if e.New.Type != change.Symlink || e.New.Target != "" {
		return e.New, nil
	}
	n := *e.New
	var err error
	switch {
	case e.Op == change.Metadata:
		n.Target, err = o.base.Readlink(real)
	case e.FromLive:
		n.Target, err = o.base.Readlink(e.From)
	default:
		var from *change.Node
		if from, err = o.source(e); err == nil {
			n.Target = from.Target
		}
	}
	return &n, err
}

func (o *overlay) source(e *change.Entry) (*change.Node, error) {
	if o.src == nil {
		return nil, fmt.Errorf("cannot read %s of the update: its content is not at hand", e.From)
	}
	return sys.LstatPath(o.src, relative(e.From))
}

func relative(from string) string {
	if rel := strings.TrimPrefix(path.Clean(from), "/"); rel != "" {
		return rel
	}
	return "."
}

func (o *overlay) readDir(real string) ([]string, error) {
	if e := o.entries[real]; e == nil || !o.fresh[real] {
		if !o.covered(real) {
			return o.merged(real)
		}
	}
	return slices.Sorted(slices.Values(o.added[real])), nil
}

func (o *overlay) merged(real string) ([]string, error) {
	names, err := o.base.ReadDir(real)
	if err != nil {
		return nil, err
	}
	set := make(map[string]bool, len(names))
	for _, name := range names {
		if e := o.entries[join(real, name)]; e == nil || e.Op != change.Remove {
			set[name] = true
		}
	}
	for _, name := range o.added[real] {
		set[name] = true
	}
	return slices.Sorted(maps.Keys(set)), nil
}

func (o *overlay) open(real string) (File, error) {
	e := o.entries[real]
	if e == nil || e.Op == change.Metadata {
		return o.base.open(real)
	}
	if e.FromLive {
		return o.base.Open(e.From)
	}
	if e.Made != nil {
		return memFile{bytes.NewReader(e.Made)}, nil
	}
	if o.src == nil {
		return nil, fmt.Errorf("cannot read %s of the update: its content is not at hand", e.From)
	}
	return sys.OpenRegular(o.src, relative(e.From), sys.ResolveBeneath|sys.ResolveNoSymlinks)
}
