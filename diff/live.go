package diff

import (
	"errors"
	"fmt"
	"hash/fnv"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// volume is one file system of a tree.
type volume struct {
	mount string // "" for the root
	dir   *sys.FD
	dev   uint64
	// salt keeps equal inode numbers of different file systems apart in the
	// index, in a way that outlives a reboot.
	salt uint64
}

func newVolume(mount string, dir *sys.FD) (*volume, error) {
	node, err := dir.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", shown(mount), err)
	}
	v := &volume{mount: mount, dir: dir, dev: node.Dev}
	if mount != "" {
		h := fnv.New64a()
		h.Write([]byte(mount))
		v.salt = h.Sum64()
	}
	return v, nil
}

// key is the inode number of an object of the volume in the index. Objects
// of other devices (btrfs subvolumes, mounts on top) are not indexed: their
// numbers repeat the volume's own.
func (v *volume) key(n *change.Node) (ino uint64, ok bool) { return n.Ino ^ v.salt, n.Dev == v.dev }

// shown is a path as a person is told it.
func shown(p string) string {
	if p == "" {
		return "/"
	}
	return p
}

// liveTree is the live root: file systems put together at their mount points.
type liveTree struct {
	root    *volume
	volumes []*volume // but the root, longest mount point first
	kids    map[string]map[string]*volume
}

func openLive(o Options) (*liveTree, error) {
	t := &liveTree{kids: map[string]map[string]*volume{}}
	var err error
	for _, v := range o.Volumes {
		mount := strings.TrimSuffix(path.Clean(v.Mount), "/")
		vol, err := newVolume(mount, v.Dir)
		if err != nil {
			return nil, err
		}
		if mount == "" {
			t.root = vol
			continue
		}
		t.volumes = append(t.volumes, vol)
		dir := parent(mount)
		if t.kids[dir] == nil {
			t.kids[dir] = map[string]*volume{}
		}
		t.kids[dir][path.Base(mount)] = vol
	}
	if t.root == nil {
		if t.root, err = newVolume("", o.Live); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(t.volumes, func(a, b *volume) int { return len(b.mount) - len(a.mount) })
	return t, nil
}

// find gives the file system that holds a path, and the path in it.
func (t *liveTree) find(p string) (*volume, string) {
	for _, v := range t.volumes {
		if p == v.mount {
			return v, "."
		}
		if rest, ok := strings.CutPrefix(p, v.mount+"/"); ok {
			return v, rest
		}
	}
	if p == "" {
		return t.root, "."
	}
	return t.root, p[1:]
}

// open opens the directory at a path that goes through no symlink.
func (t *liveTree) open(p string) (*folder, error) {
	v, rel := t.find(p)
	fd, err := sys.OpenDirAt(v.dir, rel)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", shown(p), err)
	}
	f := newFolder(fd, v)
	f.inner = t.kids[p]
	return f, nil
}

// child opens the directory name in f, which is at dir.
func (t *liveTree) child(f *folder, dir, name string) (*folder, error) {
	if f.inner[name] != nil {
		return t.open(join(dir, name))
	}
	fd, err := sys.OpenDirAt(f.fd, name)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", join(dir, name), err)
	}
	sub := newFolder(fd, f.vol)
	if len(t.kids) > 0 {
		sub.inner = t.kids[join(dir, name)]
	}
	return sub, nil
}

// lstat describes the object at a path that goes through no symlink.
func (t *liveTree) lstat(p string) (*change.Node, error) {
	v, rel := t.find(p)
	return sys.LstatPath(v.dir, rel)
}

// gone tells an error of lstat and open which means that nothing is at the
// path: absent, or its parent is no directory or a symlink.
func gone(err error) bool {
	return isAbsent(err) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// isStore tells whether name in the folder at dir is the store of a file system,
// or of a btrfs subvolume in one, whose root has inode 256.
func (t *liveTree) isStore(dir, name string) bool {
	if name != storeName {
		return false
	}
	v, rel := t.find(dir)
	if rel == "." {
		return true
	}
	n, err := sys.LstatPath(v.dir, rel)
	return err == nil && n.Dev != v.dev && n.Ino == 256
}

var errLoop = errors.New("too many symlinks")

// resolve follows all symlinks of a path inside the root, as chroot would: an
// absolute target starts at the root, and ".." does not leave it. The node is
// nil where the path leads to nothing.
func (t *liveTree) resolve(p string) (string, *change.Node, error) {
	rest := strings.Split(strings.Trim(p, "/"), "/")
	at := ""
	var node *change.Node
	links := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = parent(shown(at))
			continue
		}
		next := join(at, name)
		n, err := t.lstat(next)
		if gone(err) {
			return join(next, strings.Join(rest, "/")), nil, nil
		}
		if err != nil {
			return "", nil, fmt.Errorf("cannot follow %s: %w", p, err)
		}
		if n.Type != change.Symlink {
			at, node = next, n
			continue
		}
		if links++; links > 40 {
			return "", nil, fmt.Errorf("cannot follow %s: %w", p, errLoop)
		}
		if strings.HasPrefix(n.Target, "/") {
			at = ""
		}
		rest = append(strings.Split(n.Target, "/"), rest...)
		node = nil
	}
	if node == nil || at == "" {
		var err error
		if node, err = t.lstat(at); err != nil {
			return "", nil, fmt.Errorf("cannot follow %s: %w", p, err)
		}
	}
	return at, node, nil
}

// openSource opens the directory at a path of the source.
func (c *comparison) openSource(p string) (*folder, error) {
	root := c.src.Root()
	vol, err := newVolume("", root)
	if err != nil {
		return nil, err
	}
	fd, err := sys.OpenDirAt(root, "."+p)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s of the source: %w", shown(p), err)
	}
	return newFolder(fd, vol), nil
}
