package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"slices"

	"github.com/liveupd/liveupd/change"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errTruncated = errors.New("truncated")

const (
	flagDigest = 1 << iota
	flagXattrs
	flagLink
)

// reader takes fields off the front of bytes that may be anything. After the
// first error all fields are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(errTruncated)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uvarint()
	if v > math.MaxUint32 {
		r.fail(fmt.Errorf("number %d exceeds 32 bits", v))
		return 0
	}
	return uint32(v)
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail(errTruncated)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail(errTruncated)
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) text() string { return string(r.bytes(r.uvarint())) }

// xattrs reads an attribute set. Values are copied, so that they do not keep
// the file's bytes alive and cannot be changed through them.
func (r *reader) xattrs() map[string][]byte {
	count := r.uvarint()
	if r.err == nil && (count == 0 || count > uint64(len(r.b))/2) {
		r.fail(fmt.Errorf("%d extended attributes", count))
	}
	if r.err != nil {
		return nil
	}
	out := make(map[string][]byte, count)
	last := ""
	for i := range count {
		key := r.text()
		val := append([]byte{}, r.bytes(r.uvarint())...)
		if r.err != nil {
			return nil
		}
		if i > 0 && key <= last {
			r.fail(errors.New("extended attributes out of order"))
			return nil
		}
		out[key], last = val, key
	}
	return out
}

func appendXattrs(b []byte, xattrs map[string][]byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(xattrs)))
	var few [4]string
	keys := few[:0]
	for key := range maps.Keys(xattrs) {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		b = appendText(b, key)
		b = binary.AppendUvarint(b, uint64(len(xattrs[key])))
		b = append(b, xattrs[key]...)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// AppendNode encodes what a node is, without its identity on a live file
// system, in the form of the recorded base.
func AppendNode(b []byte, n *change.Node) []byte {
	var flags byte
	if n.Type == change.Regular && !n.Digest.IsZero() {
		flags |= flagDigest
	}
	if len(n.Xattrs) > 0 {
		flags |= flagXattrs
	}
	if n.Link != "" {
		flags |= flagLink
	}
	b = append(b, byte(n.Type), flags)
	b = binary.AppendUvarint(b, uint64(n.Mode))
	b = binary.AppendUvarint(b, uint64(n.UID))
	b = binary.AppendUvarint(b, uint64(n.GID))
	b = binary.AppendVarint(b, n.MtimeNS)
	switch n.Type {
	case change.Regular:
		b = binary.AppendUvarint(b, uint64(n.Size))
		if flags&flagDigest != 0 {
			b = append(b, n.Digest[:]...)
		}
	case change.Symlink:
		b = appendText(b, n.Target)
	case change.CharDevice, change.BlockDevice:
		b = binary.AppendUvarint(b, n.Rdev)
	}
	if flags&flagXattrs != 0 {
		b = appendXattrs(b, n.Xattrs)
	}
	if flags&flagLink != 0 {
		b = appendText(b, n.Link)
	}
	return b
}

// DecodeNode reads what AppendNode wrote, and returns the bytes behind it.
func DecodeNode(b []byte) (*change.Node, []byte, error) {
	r := reader{b: b}
	n := r.node()
	if r.err != nil {
		return nil, nil, r.err
	}
	return n, r.b, nil
}

func (r *reader) node() *change.Node {
	n := &change.Node{Type: change.Type(r.byte())}
	flags := r.byte()
	n.Mode, n.UID, n.GID, n.MtimeNS = r.uint32(), r.uint32(), r.uint32(), r.varint()
	if r.err == nil && (n.Type < change.Regular || n.Type > change.Socket || flags >= flagLink<<1 ||
		flags&flagDigest != 0 && n.Type != change.Regular) {
		r.fail(fmt.Errorf("object of type %d with flags %d", n.Type, flags))
	}
	switch n.Type {
	case change.Regular:
		size := r.uvarint()
		if size > math.MaxInt64 {
			r.fail(fmt.Errorf("size %d", size))
		}
		n.Size = int64(size)
		if flags&flagDigest != 0 {
			copy(n.Digest[:], r.bytes(uint64(len(n.Digest))))
		}
	case change.Symlink:
		n.Target = r.text()
	case change.CharDevice, change.BlockDevice:
		n.Rdev = r.uvarint()
	}
	if flags&flagXattrs != 0 {
		n.Xattrs = r.xattrs()
	}
	if flags&flagLink != 0 {
		n.Link = r.text()
	}
	return n
}
