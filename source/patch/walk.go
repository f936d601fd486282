package patch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// atRoot are names at the root of a tree that are not part of it: what liveupd keeps,
// and the signed list of a whole tree, which a part of it cannot answer.
var atRoot = map[string]bool{storeName: true, "liveupd.manifest": true, "liveupd.manifest.minisig": true}

// manifestName is what says which update it is; a patch always carries it.
const manifestName = "/liveupd.toml"

// tree is a tree that was walked.
type tree struct {
	root  *sys.FD
	nodes map[string]*change.Node
	// first is the path that sorts first of each inode with several links.
	first map[change.InodeKey]string
}

// walk reads a tree without its files' contents.
func walk(ctx context.Context, root *sys.FD) (*tree, error) {
	t := &tree{root: root, nodes: map[string]*change.Node{}, first: map[change.InodeKey]string{}}
	if err := t.below(ctx, root, ""); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", root.Name(), err)
	}
	for _, p := range t.sorted() {
		n := t.nodes[p]
		if key := (change.InodeKey{Dev: n.Dev, Ino: n.Ino}); n.Nlink > 1 && !n.IsDir() && t.first[key] == "" {
			t.first[key] = p
		}
	}
	return t, nil
}

func (t *tree) sorted() []string { return slices.Sorted(maps.Keys(t.nodes)) }

func (t *tree) below(ctx context.Context, dir *sys.FD, at string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if at == "" && atRoot[name] {
			continue
		}
		n, err := sys.LstatPath(dir, name)
		if err != nil {
			return err
		}
		if n.Xattrs, err = sys.Xattrs(dir, name); err != nil {
			return err
		}
		full := at + "/" + name
		if n.Type == change.Socket {
			continue // no archive can hold one, and a server makes its own
		}
		t.nodes[full] = n
		if !n.IsDir() {
			continue
		}
		sub, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
		if err != nil {
			return err
		}
		err = t.below(ctx, sub, full)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) open(p string) (*sys.RegularFile, error) {
	return sys.OpenRegular(t.root, strings.TrimPrefix(p, "/"), sys.ResolveBeneath|sys.ResolveNoSymlinks)
}

// link is the path that p is a hard link to, "" where it is the first or only one.
func (t *tree) link(p string) string {
	n := t.nodes[p]
	if first := t.first[change.InodeKey{Dev: n.Dev, Ino: n.Ino}]; n.Nlink > 1 && !n.IsDir() && first != p {
		return first
	}
	return ""
}

// digest reads a file's content.
func (t *tree) digest(p string) (change.Digest, error) {
	n := t.nodes[p]
	if !n.Digest.IsZero() {
		return n.Digest, nil
	}
	f, err := t.open(p)
	if err != nil {
		return change.Digest{}, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, n.Size)); err != nil {
		return change.Digest{}, fmt.Errorf("cannot read %s: %w", p, err)
	}
	n.Digest = change.Digest(sum.Sum(nil))
	return n.Digest, nil
}

// changed tells whether a path of the new tree is another thing in the old one. A
// folder's time alone is no change: whatever happens in it sets that.
func changed(old, new *tree, p string) (bool, error) {
	a, b := old.nodes[p], new.nodes[p]
	if a == nil || p == manifestName {
		return true, nil
	}
	if a.Type != b.Type || a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Rdev != b.Rdev || a.Target != b.Target ||
		!maps.EqualFunc(a.Xattrs, b.Xattrs, bytes.Equal) {
		return true, nil
	}
	if b.IsDir() {
		return false, nil
	}
	if a.MtimeNS != b.MtimeNS || a.Size != b.Size || old.link(p) != new.link(p) {
		return true, nil
	}
	if b.Type != change.Regular {
		return false, nil
	}
	x, err := old.digest(p)
	if err != nil {
		return false, err
	}
	y, err := new.digest(p)
	return x != y, err
}

// gone lists each path that the new tree lacks.
func gone(old, new *tree) ([]Gone, error) {
	var out []Gone
	for _, p := range old.sorted() {
		if new.nodes[p] != nil {
			continue
		}
		g := Gone{Path: []byte(p)}
		if old.nodes[p].Type == change.Regular {
			d, err := old.digest(p)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			g.Digest = d
		}
		out = append(out, g)
	}
	return out, nil
}
