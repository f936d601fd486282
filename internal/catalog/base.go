package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"sort"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

const (
	baseMagic = "LUPDBAS\x01"
	baseHead  = 16
	// restart is how many entries share prefixes: each 16th path stands whole.
	restart = 16
)

// wholeBit of the number of entries says that they are a whole system's.
const wholeBit = 1 << 31

// Block is of which number of entries Part begins at a multiple.
const Block = restart

// Base is the recorded base, read. It keeps the file's bytes and where each
// 16th entry starts. A nil Base holds nothing.
type Base struct {
	data   []byte // entries
	n      int
	whole  bool
	starts []uint32
}

// WriteBase writes a recorded base to name below dir, replacing it at once.
// The entries come in ascending bytewise order of their paths; whole says that they
// are all of a system. Where the file already holds the same nothing is written.
func WriteBase(k *sys.Kernel, dir *sys.FD, name string, whole bool, entries iter.Seq2[string, *change.Node]) error {
	b, err := encodeBase(entries)
	if err != nil {
		return fmt.Errorf("cannot write the recorded base: %w", err)
	}
	if whole {
		binary.LittleEndian.PutUint32(b[12:], binary.LittleEndian.Uint32(b[12:])|wholeBit)
		seal(b)
	}
	if err := writeFile(k, dir, name, b); err != nil {
		return fmt.Errorf("cannot write the recorded base: %w", err)
	}
	return nil
}

// Whole tells whether the record is that of a whole system.
func (b *Base) Whole() bool { return b != nil && b.whole }

func encodeBase(entries iter.Seq2[string, *change.Node]) ([]byte, error) {
	b := make([]byte, baseHead, 1<<16)
	copy(b, baseMagic)
	last, n := "", uint32(0)
	for path, node := range entries {
		if n > 0 && path <= last {
			return nil, fmt.Errorf("path %q does not come after %q", path, last)
		}
		shared := 0
		if n%restart != 0 {
			for shared < len(last) && shared < len(path) && last[shared] == path[shared] {
				shared++
			}
		}
		b = binary.AppendUvarint(b, uint64(shared))
		b = appendText(b, path[shared:])
		b = AppendNode(b, node)
		last = path
		n++
		if len(b) > maxFile || len(b) > math.MaxUint32 {
			return nil, fmt.Errorf("more than %d bytes", maxFile)
		}
	}
	binary.LittleEndian.PutUint32(b[12:], n)
	seal(b)
	return b, nil
}

// ReadBase reads the recorded base name below dir: nil where there is none
// yet, an error where it is damaged.
func ReadBase(dir *sys.FD, name string) (*Base, error) {
	b, err := readFile(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var base *Base
	if err == nil {
		base, err = parseBase(b)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the recorded base %s: %w", name, err)
	}
	return base, nil
}

func parseBase(b []byte) (*Base, error) {
	if err := unseal(b, baseMagic); err != nil {
		return nil, err
	}
	if len(b) < baseHead {
		return nil, errTruncated
	}
	n := binary.LittleEndian.Uint32(b[12:])
	base := &Base{data: b[baseHead:], n: int(n &^ wholeBit), whole: n&wholeBit != 0}
	n &^= wholeBit
	if uint64(n) > uint64(len(base.data)) {
		return nil, errTruncated
	}
	c := cursor{r: reader{b: base.data}}
	for i := range base.n {
		if i%restart == 0 {
			base.starts = append(base.starts, uint32(len(base.data)-len(c.r.b)))
		}
		last := string(c.path)
		shared := c.next()
		c.r.node()
		switch {
		case c.r.err != nil:
			return nil, fmt.Errorf("entry %d: %w", i, c.r.err)
		case i%restart == 0 && shared != 0:
			return nil, fmt.Errorf("entry %d: its path does not stand whole", i)
		case i > 0 && string(c.path) <= last:
			return nil, fmt.Errorf("entry %d: paths out of order", i)
		}
	}
	if len(c.r.b) != 0 {
		return nil, errors.New("bytes behind the last entry")
	}
	return base, nil
}

// cursor walks over entries; path is valid until the next call of next.
type cursor struct {
	r    reader
	path []byte
}

// next reads a path and stands before its node.
func (c *cursor) next() (shared uint64) {
	shared = c.r.uvarint()
	if shared > uint64(len(c.path)) {
		c.r.fail(errors.New("a path shares more than the path before it has"))
		return 0
	}
	c.path = append(c.path[:shared], c.r.bytes(c.r.uvarint())...)
	return shared
}

// skip passes over a node without building it.
func (c *cursor) skip() {
	t, flags := change.Type(c.r.byte()), c.r.byte()
	c.r.uvarint()
	c.r.uvarint()
	c.r.uvarint()
	c.r.varint()
	switch t {
	case change.Regular:
		c.r.uvarint()
		if flags&flagDigest != 0 {
			c.r.bytes(32)
		}
	case change.Symlink:
		c.r.bytes(c.r.uvarint())
	case change.CharDevice, change.BlockDevice:
		c.r.uvarint()
	}
	if flags&flagXattrs != 0 {
		for range c.r.uvarint() {
			c.r.bytes(c.r.uvarint())
			c.r.bytes(c.r.uvarint())
		}
	}
	if flags&flagLink != 0 {
		c.r.bytes(c.r.uvarint())
	}
}

// seek returns a cursor that stands before the node of the first path that is
// not below want, and the number of that entry; b.n where there is none.
func (b *Base) seek(want string) (cursor, int) {
	// The last block that starts at or before want holds it.
	block := max(0, sort.Search(len(b.starts), func(i int) bool {
		c := cursor{r: reader{b: b.data[b.starts[i]:]}}
		c.r.uvarint()
		return string(c.r.bytes(c.r.uvarint())) > want
	})-1)
	c := cursor{r: reader{b: b.data[b.starts[block]:]}}
	for i := block * restart; i < b.n; i++ {
		c.next()
		if string(c.path) >= want {
			return c, i
		}
		c.skip()
	}
	return c, b.n
}

// Len is the number of paths.
func (b *Base) Len() int {
	if b == nil {
		return 0
	}
	return b.n
}

// Get gives the node of a path.
func (b *Base) Get(path string) (*change.Node, bool) {
	if b.Len() == 0 {
		return nil, false
	}
	c, i := b.seek(path)
	if i == b.n || string(c.path) != path {
		return nil, false
	}
	return c.r.node(), true
}

// Has tells whether a path is recorded.
func (b *Base) Has(path string) bool {
	if b.Len() == 0 {
		return false
	}
	c, i := b.seek(path)
	return i < b.n && string(c.path) == path
}

// Paths lists prefix and the paths below it, ascending bytewise; all for "" and "/".
func (b *Base) Paths(prefix string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if b.Len() == 0 {
			return
		}
		prefix := strings.TrimSuffix(prefix, "/")
		if prefix != "" && b.Has(prefix) && !yield(prefix) {
			return
		}
		// "/etc-x" sorts between "/etc" and "/etc/x": what is below is one run by itself.
		below := prefix + "/"
		c, i := b.seek(below)
		for i < b.n && strings.HasPrefix(string(c.path), below) {
			if !yield(string(c.path)) {
				return
			}
			c.skip()
			if i++; i < b.n {
				c.next()
			}
		}
	}
}

// Part lists n paths with their nodes from the entry number i on, which is a
// multiple of Block: what several readers share.
func (b *Base) Part(i, n int) iter.Seq2[string, *change.Node] {
	return func(yield func(string, *change.Node) bool) {
		if i >= b.Len() {
			return
		}
		c := cursor{r: reader{b: b.data[b.starts[i/restart]:]}}
		for range min(n, b.n-i) {
			c.next()
			if !yield(string(c.path), c.r.node()) {
				return
			}
		}
	}
}

// All lists all paths with their nodes, ascending bytewise.
func (b *Base) All() iter.Seq2[string, *change.Node] {
	return func(yield func(string, *change.Node) bool) {
		if b.Len() == 0 {
			return
		}
		c := cursor{r: reader{b: b.data}}
		for range b.n {
			c.next()
			if !yield(string(c.path), c.r.node()) {
				return
			}
		}
	}
}
