package diff

import (
	"encoding/binary"
	"iter"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
)

// chunk is what is to be recorded of one directory of the source: for each name
// a length and the name, a length and the node as catalog encodes it. A node
// takes a third of what it takes as a value.
type chunk struct {
	dir, srcDir string
	blob        []byte
}

func appendRecord[name []byte | string](b []byte, text name, n *change.Node) []byte {
	b = binary.AppendUvarint(b, uint64(len(text)))
	b = append(b, text...)
	// The node's length stands before it and is seldom more than one byte.
	at := len(b)
	b = catalog.AppendNode(append(b, 0), n)
	length := len(b) - at - 1
	if length < 0x80 {
		b[at] = byte(length)
		return b
	}
	var head [binary.MaxVarintLen64]byte
	return slices.Replace(b, at, at+1, head[:binary.PutUvarint(head[:], uint64(length))]...)
}

// entries gives names and encoded nodes.
func (c *chunk) entries() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		take := func(b []byte) (field, rest []byte) {
			n, size := binary.Uvarint(b)
			return b[size : size+int(n)], b[size+int(n):]
		}
		for b := c.blob; len(b) > 0; {
			var name, node []byte
			name, b = take(b)
			node, b = take(b)
			if !yield(string(name), node) {
				return
			}
		}
	}
}

// recordInChunk notes a node of the directory that the worker walks.
func (w *worker) recordInChunk(name []byte, n *change.Node) { w.blob = appendRecord(w.blob, name, n) }

// closeChunk ends the directory that the worker walked.
func (w *worker) closeChunk(p *pairing) {
	if len(w.blob) > 0 {
		w.chunks = append(w.chunks, chunk{p.dir, p.srcDir, slices.Clone(w.blob)})
		w.blob = w.blob[:0]
	}
}

// record notes a node that is met by itself.
func (w *worker) record(e *encounter, n *change.Node) {
	if w.loose.dir != e.dir || w.loose.srcDir != e.srcDir {
		w.closeLoose()
		w.loose.dir, w.loose.srcDir = e.dir, e.srcDir
	}
	w.loose.blob = appendRecord(w.loose.blob, e.name, n)
}

func (w *worker) closeLoose() {
	if len(w.loose.blob) > 0 {
		w.chunks = append(w.chunks, chunk{w.loose.dir, w.loose.srcDir, slices.Clone(w.loose.blob)})
		w.loose.blob = w.loose.blob[:0]
	}
}

// lacking gives the recorded paths that the source does not bring.
func (w *worker) lacking() map[string]bool {
	lacking, dirs := map[string]bool{}, map[string]bool{}
	for p := range w.own.Recorded() {
		lacking[p] = true
		dirs[parent(p)] = true
	}
	if len(lacking) == 0 {
		return lacking
	}
	for _, c := range w.chunks {
		if !dirs[c.dir] {
			continue
		}
		for name := range c.entries() {
			delete(lacking, join(c.dir, name))
		}
	}
	return lacking
}

func sortedDescending(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for p := range set {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(b, a) })
	return out
}

// shipped is one path to be recorded.
type shipped struct {
	path string
	node []byte
	dir  string // the folder in the source
}

// BaseEntries lists, ascending bytewise, what is to be recorded once this
// update is committed: all that the source brings, the versions that were kept
// or laid beside among them, and of the base before what this source does not speak of.
//
// Digests that the comparison did not need come from the Delta, where staging
// has filled them in, and else from the source, which must still be there. A file of
// the source that cannot be read any more is recorded without a digest.
func (r *Result) BaseEntries(old *catalog.Base) iter.Seq2[string, *change.Node] {
	return func(yield func(string, *change.Node) bool) {
		list := r.shipped()
		changed, removed := r.byPath()
		next, stop := iter.Pull2(old.All())
		defer stop()
		oldPath, oldNode, more := next()
		for i := 0; i < len(list) || more; {
			if i == len(list) || more && oldPath < list[i].path {
				if r.carried(oldPath, removed) && !yield(oldPath, oldNode) {
					return
				}
				oldPath, oldNode, more = next()
				continue
			}
			s := list[i]
			i++
			if more && oldPath == s.path {
				oldPath, oldNode, more = next()
			}
			if r.own.Class(s.path) == change.ClassNever {
				continue
			}
			if !yield(s.path, r.node(s, changed)) {
				return
			}
		}
	}
}

// shipped lists what the source brings, each path once.
func (r *Result) shipped() []shipped {
	var list []shipped
	for i := range r.chunks {
		c := &r.chunks[i]
		for name, node := range c.entries() {
			list = append(list, shipped{join(c.dir, name), node, c.srcDir})
		}
	}
	slices.SortStableFunc(list, func(a, b shipped) int { return strings.Compare(a.path, b.path) })
	return slices.CompactFunc(list, func(a, b shipped) bool { return a.path == b.path })
}

func (r *Result) byPath() (changed map[string]*change.Node, removed map[string]bool) {
	changed, removed = map[string]*change.Node{}, map[string]bool{}
	for _, e := range r.Delta.Entries {
		switch {
		case e.Op == change.Remove:
			removed[e.Path] = true
		case !e.FromLive:
			changed[e.Path] = e.New
		}
	}
	return changed, removed
}

// carried tells whether a path of the base before, which the source lacks,
// stays recorded.
func (r *Result) carried(p string, removed map[string]bool) bool {
	if removed[p] {
		return false
	}
	switch r.own.Class(p) {
	case change.ClassWhole:
		return false
	case change.ClassThreeWay:
		return !r.src.Whole() && !r.asked[p]
	case change.ClassAddOnly:
		return !r.src.Whole()
	}
	return true
}

// node is what is recorded of a path.
func (r *Result) node(s shipped, changed map[string]*change.Node) *change.Node {
	n, _, err := catalog.DecodeNode(s.node)
	if err != nil {
		// The bytes are our own, and have not left this process.
		panic("diff: record of " + s.path + ": " + err.Error())
	}
	n.Link = r.links[s.path]
	if n.Type != change.Regular || !n.Digest.IsZero() {
		return n
	}
	if c := changed[s.path]; c != nil && c.Type == change.Regular && c.Size == n.Size {
		n.Digest = c.Digest
	}
	if n.Digest.IsZero() {
		r.readAgain(s, n)
	}
	return n
}

// readAgain fills in a digest that nobody needed until now.
func (r *Result) readAgain(s shipped, n *change.Node) {
	c := &comparison{src: r.src}
	if r.reader == nil {
		r.reader = newWorker(c)
	}
	f, err := c.openSource(s.dir)
	if err != nil {
		return
	}
	defer f.release()
	now := clone(n)
	if err := r.reader.digest(r.index, f, s.path[strings.LastIndexByte(s.path, '/')+1:], now); err == nil && now.Size == n.Size {
		n.Digest = now.Digest
	}
}
