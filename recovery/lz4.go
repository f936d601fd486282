package recovery

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// lz4Magic begins LZ4's legacy frame, the one that the kernel unpacks (lz4 -l):
// blocks of 8 MiB, each with its compressed size before it
// (https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md, "Legacy frame").
const lz4Magic = "\x02\x21\x4c\x18"

const lz4Block = 8 << 20

// lz4Reader unpacks a legacy frame.
type lz4Reader struct {
	r    *bufio.Reader
	in   []byte
	out  []byte
	rest []byte // of out, still to be read
}

func newLZ4(r *bufio.Reader) (io.Reader, error) {
	_, err := r.Discard(len(lz4Magic))
	return &lz4Reader{r: r}, err
}

func (z *lz4Reader) Read(p []byte) (int, error) {
	for len(z.rest) == 0 {
		if err := z.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

func (z *lz4Reader) next() error {
	var size [4]byte
	n, err := io.ReadFull(z.r, size[:])
	if n == 0 && errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err != nil {
		return fmt.Errorf("the frame is cut short: %w", err)
	}
	length := binary.LittleEndian.Uint32(size[:])
	switch {
	case string(size[:]) == lz4Magic: // another frame
		return nil
	case length == 0:
		return io.EOF
	case length > lz4Block+lz4Block/255+16: // LZ4_compressBound
		return fmt.Errorf("a block of %d bytes is too long", length)
	}
	z.in = append(z.in[:0], make([]byte, length)...)
	if _, err := io.ReadFull(z.r, z.in); err != nil {
		return fmt.Errorf("the frame is cut short: %w", err)
	}
	if z.out, err = unpackLZ4(z.out[:0], z.in); err != nil {
		return err
	}
	z.rest = z.out
	return nil
}

var errLZ4 = errors.New("the block is damaged")

// unpackLZ4 appends what a block holds: sequences of a token, literals and a copy
// of what was unpacked before (lz4_Block_format.md).
func unpackLZ4(out, in []byte) ([]byte, error) {
	length := func(n int) (int, bool) {
		if n != 15 {
			return n, true
		}
		for len(in) > 0 {
			b := in[0]
			in = in[1:]
			n += int(b)
			if b != 255 {
				return n, true
			}
		}
		return 0, false
	}
	for len(in) > 0 {
		token := in[0]
		in = in[1:]
		n, ok := length(int(token >> 4))
		if !ok || n > len(in) || len(out)+n > lz4Block {
			return out, errLZ4
		}
		out, in = append(out, in[:n]...), in[n:]
		if len(in) == 0 {
			return out, nil // the last sequence has no copy
		}
		if len(in) < 2 {
			return out, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(in))
		in = in[2:]
		n, ok = length(int(token & 15))
		const shortest = 4
		n += shortest
		if !ok || offset == 0 || offset > len(out) || len(out)+n > lz4Block {
			return out, errLZ4
		}
		for from := len(out) - offset; n > 0; n-- { // it may overlap what it appends
			out = append(out, out[from])
			from++
		}
	}
	return out, nil
}
