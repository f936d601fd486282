package planner

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// changes finds the paths of a Delta.
type changes struct {
	sorted []*change.Entry // all entries, by path
	byPath map[string]*change.Entry
	// content are the paths whose content changes, sorted; directories that
	// come or go are among them, for a unit may bind them.
	content []*change.Entry
	links   []*change.Entry // those that are or were symbolic links
}

func newChanges(d *change.Delta) changes {
	c := changes{byPath: make(map[string]*change.Entry, len(d.Entries))}
	c.sorted = make([]*change.Entry, len(d.Entries))
	for i := range d.Entries {
		c.sorted[i] = &d.Entries[i]
	}
	slices.SortFunc(c.sorted, func(a, b *change.Entry) int { return cmp.Compare(a.Path, b.Path) })
	for _, e := range c.sorted {
		c.byPath[e.Path] = e
		if !contentChanges(e) {
			continue
		}
		c.content = append(c.content, e)
		if isLink(e.Old) || isLink(e.New) {
			c.links = append(c.links, e)
		}
	}
	return c
}

func isLink(n *change.Node) bool { return n != nil && n.Type == change.Symlink }

// contentChanges tells whether whoever reads the path gets something else
// afterwards. A replacement by equal bytes, for the sake of hard links, does not.
func contentChanges(e *change.Entry) bool {
	switch e.Op {
	case change.Add, change.Remove:
		return true
	case change.Replace:
		if e.Old != nil && e.New != nil && e.Old.Type == e.New.Type && e.Old.Type == change.Regular &&
			!e.Old.Digest.IsZero() && e.Old.Digest == e.New.Digest {
			return false
		}
		return e.Aspects == 0 || e.Aspects&(change.AspectType|change.AspectContent) != 0
	}
	return false
}

// at tells whether the content at a path changes.
func (c *changes) at(p string) bool {
	e := c.byPath[p]
	return e != nil && contentChanges(e)
}

// same tells that a path is in the Delta and its content stays, or that other
// bytes are the same program.
func (c *changes) same(p string) bool {
	e := c.byPath[p]
	return e != nil && (e.SameCode || !contentChanges(e))
}

// whySame tells why it is the same.
func (c *changes) whySame(p string) string {
	if e := c.byPath[p]; e != nil && e.SameCode && contentChanges(e) {
		return "the same program under the same build ID: only symbols, a signature or a debug link differ"
	}
	return "its bytes stay"
}

// below gives the changes of content that a pattern names. A pattern is a
// path, a glob as path.Match has it, or "DIR/**": everything below DIR.
// Files that editors and package managers leave beside configuration are none.
func (c *changes) matching(pattern string) []*change.Entry {
	fixed := pattern
	if i := strings.IndexAny(fixed, `*?[\`); i >= 0 {
		fixed = fixed[:i]
	}
	start, _ := slices.BinarySearchFunc(c.content, fixed, func(e *change.Entry, p string) int { return cmp.Compare(e.Path, p) })
	var out []*change.Entry
	for _, e := range c.content[start:] {
		if !strings.HasPrefix(e.Path, fixed) {
			break
		}
		if match(pattern, e.Path) && !leftBeside(e.Path) && !directory(e) {
			out = append(out, e)
		}
	}
	return out
}

func directory(e *change.Entry) bool {
	return (e.Old == nil || e.Old.IsDir()) && (e.New == nil || e.New.IsDir())
}

func match(pattern, name string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/**"); ok {
		if !strings.ContainsAny(dir, `*?[\`) {
			return strings.HasPrefix(name, dir+"/")
		}
		depth := strings.Count(dir, "/") + 1
		parts := strings.Split(name, "/")
		if len(parts) <= depth {
			return false
		}
		name, pattern = strings.Join(parts[:depth], "/"), dir
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// leftBeside tells whether a name is a copy that no daemon reads.
func leftBeside(p string) bool {
	for _, suffix := range []string{".liveupd-new", ".dpkg-new", ".dpkg-dist", ".dpkg-old", ".ucf-dist", ".rpmnew", ".rpmsave", "~", ".swp"} {
		if strings.HasSuffix(p, suffix) {
			return true
		}
	}
	return false
}
