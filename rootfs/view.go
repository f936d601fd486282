package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// View answers what a root tree holds. Paths are absolute inside the root;
// symlinks, absolute ones too, resolve inside it, and ".." stops at it. What
// is absent gives an error that matches fs.ErrNotExist. A View remembers its
// answers: it is good for one reading, make a new one after a change. It is
// safe for concurrent use; the nodes that it gives are shared and not to be
// changed.
type View interface {
	// ReadFile reads a regular file, following symlinks.
	ReadFile(path string) ([]byte, error)
	// Lstat describes path itself: symlinks before its last name are followed.
	Lstat(path string) (*change.Node, error)
	// ReadDir lists the names in a directory, sorted.
	ReadDir(path string) ([]string, error)
	// Readlink reads the target of the symlink that path itself is.
	Readlink(path string) (string, error)
	// Resolve gives the path that path leads to when all symlinks are followed.
	Resolve(path string) (string, error)
}

// File is an open regular file.
type File interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Opener is what a View may also be able to do: open a file for reading in
// parts. The views of this package are.
type Opener interface {
	Open(path string) (File, error)
}

// maxText is the size in bytes above which a file is not read as text; the
// largest that occurs, a package's file list, has some 10 MB.
const maxText = 64 << 20

// maxLinks is the number of symlinks after which a resolution gives up, as
// the kernel's own (path_resolution(7)).
const maxLinks = 40

// layer answers for paths that go through no symlink ("real" paths).
type layer interface {
	lstat(real string) (*change.Node, error) // with the target of a symlink
	readDir(real string) ([]string, error)
	open(real string) (File, error)
}

type lookup struct {
	node *change.Node
	err  error
}

type listing struct {
	names []string
	err   error
}

// tree resolves symlinks over a layer and remembers what it was told.
type tree struct {
	layer
	nodes memo[string, lookup]
	dirs  memo[string, listing]
}

// Dir is the view of an open root directory. Mounts below it are seen.
func Dir(root *sys.FD) View { return Volumes(Volume{Mount: "/", Dir: root}) }

// Volume is one file system of a root.
type Volume struct {
	Mount string // "/", "/var", ...
	Dir   *sys.FD
}

// Volumes is the view of a root that is put together from several file
// systems: a path is read from the one with the longest mount point.
//
// In /run units come and go by themselves, each login's scope for one. What was read there is
// kept, so that trees which are laid over this view hold the same as it, and differ by an update alone.
func Volumes(vols ...Volume) View {
	vols = slices.Clone(vols)
	slices.SortStableFunc(vols, func(a, b Volume) int { return len(b.Mount) - len(a.Mount) })
	return &tree{layer: &volumes{list: vols}}
}

type volumes struct {
	list []Volume
	run  memo[string, content] // of files in /run
}

type content struct {
	bytes []byte
	err   error
}

func (vs *volumes) find(real string) (*sys.FD, string, error) {
	for _, v := range vs.list {
		if v.Mount == "/" {
			if real == "/" {
				return v.Dir, ".", nil
			}
			return v.Dir, real[1:], nil
		}
		if real == v.Mount {
			return v.Dir, ".", nil
		}
		if rest, ok := strings.CutPrefix(real, v.Mount+"/"); ok {
			return v.Dir, rest, nil
		}
	}
	return nil, "", &fs.PathError{Op: "lookup", Path: real, Err: fs.ErrNotExist}
}

func (vs *volumes) lstat(real string) (*change.Node, error) {
	dir, name, err := vs.find(real)
	if err != nil {
		return nil, err
	}
	node, err := sys.LstatPath(dir, name)
	if errors.Is(err, syscall.ENOTDIR) {
		err = &fs.PathError{Op: "lookup", Path: real, Err: fs.ErrNotExist}
	}
	return node, err
}

func (vs *volumes) readDir(real string) ([]string, error) {
	dir, name, err := vs.find(real)
	if err != nil {
		return nil, err
	}
	fd, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	return sys.ReadDirNames(fd)
}

func (vs *volumes) open(real string) (File, error) {
	dir, name, err := vs.find(real)
	if err != nil {
		return nil, err
	}
	open := func() (File, error) { return sys.OpenRegular(dir, name, sys.ResolveBeneath|sys.ResolveNoSymlinks) }
	if !fleeting(real) {
		return open()
	}
	kept := vs.run.get(real, func() content {
		f, err := open()
		if err != nil {
			return content{nil, err}
		}
		defer f.Close()
		b, err := readText(f, real)
		return content{b, err}
	})
	if kept.err != nil {
		return nil, kept.err
	}
	return memFile{bytes.NewReader(kept.bytes)}, nil
}

// fleeting tells of paths that come and go by themselves.
func fleeting(p string) bool { return strings.HasPrefix(p, "/run/") }

func (t *tree) stat(real string) (*change.Node, error) {
	l := t.nodes.get(real, func() lookup {
		n, err := t.lstat(real)
		return lookup{n, err}
	})
	return l.node, l.err
}

// walk follows p from the root. It gives the path without symlinks, what is
// there, and the symlinks that were followed, in order, by their own real
// paths; the last name is followed only where last says so.
func (t *tree) walk(p string, last bool) (real string, node *change.Node, trail []string, err error) {
	absent := func() error { return &fs.PathError{Op: "lookup", Path: p, Err: fs.ErrNotExist} }
	real = "/"
	if node, err = t.stat("/"); err != nil {
		return "", nil, nil, err
	}
	rest := p
	for {
		rest = strings.TrimLeft(rest, "/")
		if rest == "" {
			return real, node, trail, nil
		}
		if !node.IsDir() {
			return "", nil, trail, absent()
		}
		name, tail, _ := strings.Cut(rest, "/")
		rest = tail
		switch name {
		case ".":
			continue
		case "..":
			real = path.Dir(real)
			if node, err = t.stat(real); err != nil {
				return "", nil, trail, err
			}
			continue
		}
		next := join(real, name)
		n, err := t.stat(next)
		if err != nil {
			return "", nil, trail, err
		}
		if n.Type != change.Symlink || !last && strings.Trim(rest, "/") == "" {
			real, node = next, n
			continue
		}
		if len(trail) == maxLinks {
			return "", nil, trail, &fs.PathError{Op: "lookup", Path: p, Err: syscall.ELOOP}
		}
		trail = append(trail, next)
		if n.Target == "" {
			return "", nil, trail, absent()
		}
		if strings.HasPrefix(n.Target, "/") {
			real = "/"
			if node, err = t.stat("/"); err != nil {
				return "", nil, trail, err
			}
		}
		rest = n.Target + "/" + rest
	}
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

func (t *tree) Lstat(p string) (*change.Node, error) {
	_, node, _, err := t.walk(p, false)
	return node, err
}

func (t *tree) Readlink(p string) (string, error) {
	_, node, _, err := t.walk(p, false)
	if err != nil {
		return "", err
	}
	if node.Type != change.Symlink {
		return "", &fs.PathError{Op: "readlink", Path: p, Err: syscall.EINVAL}
	}
	return node.Target, nil
}

func (t *tree) Resolve(p string) (string, error) {
	real, _, _, err := t.walk(p, true)
	return real, err
}

func (t *tree) ReadDir(p string) ([]string, error) {
	real, node, _, err := t.walk(p, true)
	if err != nil {
		return nil, err
	}
	if !node.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: p, Err: syscall.ENOTDIR}
	}
	l := t.dirs.get(real, func() listing {
		names, err := t.readDir(real)
		return listing{names, err}
	})
	return l.names, l.err
}

func (t *tree) Open(p string) (File, error) {
	real, node, _, err := t.walk(p, true)
	if err != nil {
		return nil, err
	}
	if node.Type != change.Regular {
		return nil, fmt.Errorf("cannot read %s: it is a %s", p, node.Type)
	}
	return t.open(real)
}

func (t *tree) ReadFile(p string) ([]byte, error) {
	f, err := t.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readText(f, p)
}

func readText(f File, p string) ([]byte, error) {
	if f.Size() > maxText {
		return nil, fmt.Errorf("cannot read %s: its %d bytes are above the limit of %d", p, f.Size(), maxText)
	}
	b := make([]byte, f.Size())
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read %s: %w", p, err)
	}
	return b[:n], nil
}

// asTree gives the resolver behind a view; one of another make is asked
// through its methods, so that resolution (and what was followed) is ours.
func asTree(v View) *tree {
	if t, ok := v.(*tree); ok {
		return t
	}
	return &tree{layer: foreign{v}}
}

// foreign is a layer over a View of another package.
type foreign struct{ View }

func (f foreign) lstat(real string) (*change.Node, error) {
	n, err := f.Lstat(real)
	if err != nil || n.Type != change.Symlink || n.Target != "" {
		return n, err
	}
	c := *n
	c.Target, err = f.Readlink(real)
	return &c, err
}

func (f foreign) readDir(real string) ([]string, error) { return f.ReadDir(real) }

func (f foreign) open(real string) (File, error) {
	if o, ok := f.View.(Opener); ok {
		return o.Open(real)
	}
	b, err := f.ReadFile(real)
	if err != nil {
		return nil, err
	}
	return memFile{bytes.NewReader(b)}, nil
}

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

// below is the tree seen from a directory of it: what a service with
// RootDirectory= sees. dir is a real path.
type below struct {
	t   *tree
	dir string
}

func (s below) path(real string) string { return strings.TrimSuffix(s.dir+real, "/") }

func (s below) lstat(real string) (*change.Node, error) { return s.t.stat(s.path(real)) }
func (s below) readDir(real string) ([]string, error)   { return s.t.readDir(s.path(real)) }
func (s below) open(real string) (File, error)          { return s.t.open(s.path(real)) }
