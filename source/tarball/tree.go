package tarball

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// entry is one path of the tree that the archive describes. What it says of a
// path is settled here, before anything is made: dest holds nothing that is not
// in this tree.
type entry struct {
	name     string
	parent   *entry
	node     *change.Node      // nil for a hard link
	children map[string]*entry // folders only
	target   *entry            // hard links only: never a hard link itself
	links    []*entry          // the hard links to this
	implied  bool              // a folder that no entry has named yet
	skipped  bool
}

func (e *entry) isDir() bool { return e.node.IsDir() }

// rel is the path below dest; "." for the root.
func (e *entry) rel() string {
	if e.parent == nil {
		return "."
	}
	n := -1
	for at := e; at.parent != nil; at = at.parent {
		n += 1 + len(at.name)
	}
	b := make([]byte, n)
	for at := e; at.parent != nil; at = at.parent {
		n -= len(at.name)
		copy(b[n:], at.name)
		if n--; n >= 0 {
			b[n] = '/'
		}
	}
	return string(b)
}

// path is the entry's path inside the root.
func (e *entry) path() string {
	if e.parent == nil {
		return "/"
	}
	return "/" + e.rel()
}

// kind says what an entry is, for messages.
func (e *entry) kind() string {
	if e.node == nil {
		return "hard link"
	}
	return e.node.Type.String()
}

// sorted gives the children bytewise.
func (e *entry) sorted() []*entry {
	return slices.SortedFunc(maps.Values(e.children), func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
}

// tree is what was read so far.
type tree struct {
	root  *entry
	lim   *Limits
	count int64 // entries, implied folders among them
	meta  int64 // bytes of names, targets and attributes
	// made is told of each folder that must be there before what lies in it.
	made func(*entry) error
	skip func(path string) bool
}

func newTree(lim *Limits, skip func(string) bool, made func(*entry) error) *tree {
	return &tree{
		root: &entry{node: &change.Node{Type: change.Directory}, implied: true, children: map[string]*entry{}},
		lim:  lim, made: made, skip: skip,
	}
}

// grow counts an entry against the limits.
func (t *tree) grow(name string, bytes int) error {
	t.count++
	t.meta += int64(bytes)
	switch {
	case t.count > t.lim.Entries:
		return change.WithHint(refuse(name, "is one entry more than the limit of %d", t.lim.Entries), limitHint)
	case t.meta > t.lim.Meta:
		return change.WithHint(refuse(name, "exceeds the limit of %d bytes for names and attributes", t.lim.Meta), limitHint)
	}
	return nil
}

const limitHint = "if the archive is meant to be that large, raise the limit"

// parents walks to the folder of the last component and makes the folders on the
// way that no entry has named.
func (t *tree) parents(name string, parts []string) (*entry, error) {
	at := t.root
	for _, part := range parts[:len(parts)-1] {
		next := at.children[part]
		switch {
		case next == nil:
			if err := t.grow(name, len(part)); err != nil {
				return nil, err
			}
			next = &entry{
				name: strings.Clone(part), parent: at, implied: true, children: map[string]*entry{},
				node: &change.Node{Type: change.Directory, Mode: 0o755},
			}
			next.skipped = at.skipped || t.skip != nil && t.skip(next.path())
			if err := t.add(next); err != nil {
				return nil, err
			}
		case next.node != nil && next.node.Type == change.Symlink:
			return nil, refuse(name, "lies below %s, which is a symlink of the archive", quote(next.rel()))
		case !next.isDir():
			return nil, refuse(name, "lies below %s, which is a %s of the archive", quote(next.rel()), next.kind())
		}
		at = next
	}
	return at, nil
}

func (t *tree) add(e *entry) error {
	e.parent.children[e.name] = e
	if e.isDir() && !e.skipped {
		return t.made(e)
	}
	return nil
}

// place puts an object into the tree. A nil entry: there is nothing to make, a
// folder that is there already.
func (t *tree) place(name string, parts []string, node *change.Node) (*entry, error) {
	parent, err := t.parents(name, parts)
	if err != nil {
		return nil, err
	}
	last := parts[len(parts)-1]
	if have := parent.children[last]; have != nil {
		switch {
		case !have.isDir() || !node.IsDir():
			return nil, change.WithHint(refuse(name, "is there twice, as %s and as %s", have.kind(), kindOf(node)),
				"tar -r and tar -u append newer versions of a name: make the archive anew with tar -c")
		case have.implied:
			have.node, have.implied = node, false
			t.count-- // it counts already
			return nil, t.grow(name, xattrBytes(node))
		case !sameFolder(have.node, node):
			return nil, refuse(name, "is there twice, with different owner, mode, time or attributes")
		}
		return nil, nil
	}
	if err := t.grow(name, len(last)+xattrBytes(node)); err != nil {
		return nil, err
	}
	// parts are pieces of the whole name, which need not be kept.
	e := &entry{name: strings.Clone(last), parent: parent, node: node, skipped: parent.skipped}
	if node.IsDir() {
		e.children = map[string]*entry{}
	}
	if t.skip != nil && !e.skipped {
		e.skipped = t.skip(e.path())
	}
	return e, t.add(e)
}

// link puts a hard link to an entry that came before into the tree.
func (t *tree) link(name string, parts []string, linkname string) (*entry, error) {
	to, slash, err := splitName(linkname, t.lim.Depth)
	if err != nil {
		return nil, refuse(name, "is a hard link to %s, which %v", quote(linkname), err)
	}
	at := t.root
	for i, part := range to {
		if at.node != nil && at.node.Type == change.Symlink {
			return nil, refuse(name, "is a hard link to %s, which leads through the symlink %s", quote(linkname), quote(strings.Join(to[:i], "/")))
		}
		if at = at.children[part]; at == nil {
			return nil, refuse(name, "is a hard link to %s, which is not in the archive before it", quote(linkname))
		}
	}
	if at.isDir() || slash {
		return nil, refuse(name, "is a hard link to %s, which is a folder", quote(linkname))
	}
	if at.target != nil {
		at = at.target
	}
	e, err := t.place(name, parts, nil)
	if err != nil {
		return nil, err
	}
	if at.skipped && !e.skipped {
		return nil, cannot(name, "is a hard link to %s, which is left out", quote(linkname))
	}
	e.target = at
	if !e.skipped {
		at.links = append(at.links, e)
	}
	return e, nil
}

func kindOf(n *change.Node) string {
	if n == nil {
		return "hard link"
	}
	return n.Type.String()
}

func xattrBytes(n *change.Node) int {
	if n == nil {
		return 0
	}
	sum := len(n.Target)
	for key, val := range n.Xattrs {
		sum += len(key) + len(val)
	}
	return sum
}

func sameFolder(a, b *change.Node) bool {
	return a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.MtimeNS == b.MtimeNS &&
		maps.EqualFunc(a.Xattrs, b.Xattrs, slices.Equal)
}
