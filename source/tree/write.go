package tree

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
)

// WriteManifest writes the manifest of digests of the tree at dir to w: the
// text that is to be signed. The same tree gives the same bytes. It reads
// liveupd.toml where Open would, and signs nothing by itself.
func WriteManifest(ctx context.Context, dir string, w io.Writer) error {
	_, err := WriteSigned(ctx, dir, trust.Head{}, w)
	return err
}

// WriteSigned is WriteManifest with what the signer says beside liveupd.toml. Where both
// say something they must agree. It gives what both say together.
func WriteSigned(ctx context.Context, dir string, said trust.Head, w io.Writer) (trust.Head, error) {
	t, err := openDir(dir, "", false)
	if err != nil {
		return said, err
	}
	defer t.Close()
	m, sum, err := t.loadTOML()
	if err != nil {
		return said, err
	}
	if said, err = m.Head().Join(said); err != nil {
		return said, fmt.Errorf("cannot write the manifest of %s: %s says something else of: %w", t.dir, tomlName, err)
	}
	if err := said.Check(); err != nil {
		return said, fmt.Errorf("cannot write the manifest of %s: %w", t.dir, err)
	}
	wr := &writer{tree: t, ctx: ctx}
	if err := wr.walk(t.root, ""); err != nil {
		return said, fmt.Errorf("cannot write the manifest of %s: %w", t.dir, err)
	}
	// A folder's names ascend, but "/a-b" sorts between "/a" and "/a/c".
	slices.SortFunc(wr.out, func(a, b listed) int { return strings.Compare(a.path, b.path) })
	h := header{Head: said, Bootme: m.Bootme, TOML: sum}
	buf := bufio.NewWriterSize(w, 1<<16)
	line := h.append(nil)
	for _, e := range wr.out {
		if _, err := buf.Write(line); err != nil {
			return said, fmt.Errorf("cannot write the manifest of %s: %w", t.dir, err)
		}
		line = appendLine(line[:0], e.path, e.node)
	}
	_, err = buf.Write(line)
	if err = errors.Join(err, buf.Flush()); err != nil {
		return said, fmt.Errorf("cannot write the manifest of %s: %w", t.dir, err)
	}
	return said, nil
}

type listed struct {
	path string
	node *change.Node
}

type writer struct {
	ctx  context.Context
	tree *Tree
	out  []listed
}

// walk lists what lies in the open folder at prefix.
func (w *writer) walk(dir *sys.FD, prefix string) error {
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		p := prefix + "/" + name
		if skipped(p) {
			continue
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := checkListed(p); err != nil {
			return err
		}
		if err := w.add(dir, name, p); err != nil {
			return fmt.Errorf("%s: %w", quote(p), err)
		}
	}
	return nil
}

func (w *writer) add(dir *sys.FD, name, p string) error {
	n, err := sys.Lstat(dir, name)
	if err != nil {
		return err
	}
	if n.Xattrs, err = sys.Xattrs(dir, name); err != nil {
		return err
	}
	n.Xattrs = ownXattrs(n.Xattrs)
	w.out = append(w.out, listed{p, n})
	switch n.Type {
	case change.Symlink:
		n.Target, err = sys.Readlink(dir, name)
		return err
	case change.Regular:
		return w.hash(dir, name, n)
	case change.Directory:
		sub, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
		if err != nil {
			return err
		}
		defer sub.Close()
		return w.walk(sub, p)
	}
	return nil
}

func (w *writer) hash(dir *sys.FD, name string, n *change.Node) error {
	fd, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return err
	}
	defer fd.Close()
	f, err := os.Open(fd.ProcPath())
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return err
	}
	if size != n.Size {
		return fmt.Errorf("it changed from %d to %d bytes while it was read", n.Size, size)
	}
	n.Digest = change.Digest(sum.Sum(nil))
	return nil
}
