package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"

	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/source/tree"
	"github.com/liveupd/liveupd/transact"
)

// update is an opened source: a tree, wherever it came from.
type update struct {
	*tree.Tree
	// unpacked is what an archive became; nil for a tree that was one before.
	unpacked *unpacked
	// patch: it is part of a tree, whatever it holds; gone are the paths that it
	// removes.
	patch    bool
	gone     map[string]bool
	warnings []string
}

// Whole tells whether the source is a whole system's tree.
func (u *update) Whole() bool { return !u.patch && u.Tree.Whole() }

// fromWhole tells whether the source is a whole system's tree, or a patch between two.
func (u *update) fromWhole() bool { return u.Whole() || u.patch && u.unpacked.note.Whole }

// owns are the paths that the update owns wholly.
func (u *update) owns() []string {
	if u.patch {
		return nil // what the new tree's own manifest says is of all of it
	}
	return u.Manifest().Owns
}

// Close lets go of the source, and of what was unpacked and used up.
func (u *update) Close() {
	u.Tree.Close()
	u.unpacked.close()
}

// Warnings are what the tree and its archive have to tell.
func (u *update) Warnings() []string {
	w := u.Tree.Warnings()
	if u.unpacked != nil {
		w = append(w, u.unpacked.note.Warnings...)
	}
	return append(w, u.warnings...)
}

// isImplied tells of a folder that the archive says nothing of.
func (u *update) isImplied(path string) bool { return u.unpacked != nil && u.unpacked.implied[path] }

// take lets a transaction have the files of an unpacked archive instead of copies.
func (u *update) take(tx *transact.Tx) error {
	if u == nil || u.unpacked == nil {
		return nil
	}
	if err := u.unpacked.useUp(); err != nil {
		return err
	}
	tx.TakeSource()
	return nil
}

// openSource opens what SPEC names.
func (s *session) openSource(ctx context.Context, ev Events) (*update, error) {
	kind, where, ok := strings.Cut(s.req.Source, ":")
	switch {
	case s.req.Source == "":
		return nil, usage("no source is given and none is configured: give one, for example --source tree:DIR")
	case !ok || where == "":
		return nil, usage("cannot read source %q: want KIND:WHERE, for example tree:DIR", s.req.Source)
	case kind == "tree":
		t, err := s.openTree(ctx, where)
		if err != nil {
			return nil, err
		}
		return &update{Tree: t}, nil
	case kind == "tar", kind == "patch":
		return s.openArchive(ctx, kind, where, ev)
	}
	return nil, usage("cannot read source %q: kind %q is not known; known are: tree, tar, patch, apt, deb", s.req.Source, kind)
}

func (s *session) openTree(ctx context.Context, where string) (*tree.Tree, error) {
	src, err := tree.Open(ctx, where, tree.Options{Keys: s.keyring(), AllowUnsigned: s.req.AllowUnsigned})
	if err != nil {
		return nil, err
	}
	if s.req.Live() {
		return src, nil
	}
	// A source inside the root it updates, or the other way round, would be read while it is written.
	if rel, err := filepath.Rel(s.req.Root, where); err == nil && (rel == "." || !strings.HasPrefix(rel, "..")) {
		src.Close()
		return nil, usage("cannot apply %s to %s: the source lies inside the root", s.req.Source, s.req.Root)
	}
	if rel, err := filepath.Rel(where, s.req.Root); err == nil && !strings.HasPrefix(rel, "..") {
		src.Close()
		return nil, usage("cannot apply %s to %s: the root lies inside the source", s.req.Source, s.req.Root)
	}
	return src, nil
}

// sourceIndex is the index of the source's digests, and its name in the cache; an
// unpacked archive has one of its own.
func (s *session) sourceIndex(u *update) (*catalog.Index, string) {
	if u.unpacked != nil {
		return u.unpacked.index, ""
	}
	sum := sha256.Sum256([]byte(s.req.Source))
	name := "source-" + hex.EncodeToString(sum[:8])
	if s.cache == nil {
		return &catalog.Index{}, name
	}
	return catalog.LoadIndex(s.cache, name), name
}
