package patch

import "bytes"

// extent is a piece of a file that is no hole.
type extent struct{ off, len int64 }

// A piece of holeSize bytes, at a multiple of that, is a hole where it is all zeros. A file has holes where
// those are sparseFrom bytes together, and half of it: else a patch of it is worth more. They
// are found by content: what file systems tell of them differs between two copies of one
// tree, and the same trees give the same patch.
const (
	holeSize   = 64 << 10
	sparseFrom = 1 << 20
)

// holes finds the pieces of a file that are none.
func (t *tree) holes(p string) (data []extent, sparse bool, err error) {
	size := t.nodes[p].Size
	if size < sparseFrom {
		return nil, false, nil
	}
	var zeros [holeSize]byte
	buf := make([]byte, 0, 16*holeSize)
	empty := int64(0)
	for at := int64(0); at < size; at += int64(len(buf)) {
		if buf, err = t.read(p, at, min(int64(cap(buf)), size-at), buf[:0]); err != nil {
			return nil, false, err
		}
		for off := 0; off < len(buf); off += holeSize {
			part := buf[off:min(off+holeSize, len(buf))]
			from := at + int64(off)
			switch last := len(data) - 1; {
			case bytes.Equal(part, zeros[:len(part)]):
				empty += int64(len(part))
			case last >= 0 && data[last].off+data[last].len == from:
				data[last].len += int64(len(part))
			default:
				data = append(data, extent{from, int64(len(part))})
			}
		}
	}
	if empty < sparseFrom || empty < size/2 {
		return nil, false, nil
	}
	return data, true, nil
}

// pieces adds the content of a file with holes. What is in it is rare, and small: it has no base.
func (m *maker) pieces(p string, data []extent) {
	sum := int64(0)
	for _, x := range data {
		sum += x.len
		for off := int64(0); off < x.len; off += groupBytes / 2 {
			m.add(piece{file: p, off: x.off + off, len: min(groupBytes/2, x.len-off)})
		}
	}
	m.add(piece{literal: padding(sum)})
}
