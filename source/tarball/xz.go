package tarball

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// xzReader reads the .xz container (https://tukaani.org/xz/xz-file-format.txt,
// version 1.2.1): streams, padding between them, blocks, index and footer. The
// module's own container reader gives a block the window that its header asks
// for, which is up to 4 GiB; this one looks first. Filters other than LZMA2
// (the ones for machine code) are the xz program's alone.
type xzReader struct {
	in    *tally
	check byte
	block io.Reader    // the block that is read
	sum   hash.Hash    // of what it gives
	start int64        // in's count where its data begin
	head  int64        // bytes of its header
	n     int64        // bytes that it gave
	want  [2]int64     // compressed and uncompressed size that it claims; -1: none
	sizes hash.Hash    // over the sizes of all blocks of the stream, to compare with the index
	count uint64       // blocks of the stream
	state func() error // what comes next where no block is open
	err   error
}

// tally counts what a stream gives.
type tally struct {
	s     *stream
	n     int64
	crc   hash.Hash32
	check bool // what is read goes into crc
}

func (t *tally) Read(p []byte) (int, error) {
	n, err := t.s.Read(p)
	t.n += int64(n)
	if t.check {
		t.crc.Write(p[:n])
	}
	return n, err
}

func (t *tally) ReadByte() (byte, error) {
	c, err := t.s.ReadByte()
	if err == nil {
		t.n++
		if t.check {
			t.crc.Write([]byte{c})
		}
	}
	return c, err
}

func newXZReader(s *stream) io.ReadCloser {
	x := &xzReader{in: &tally{s: s, crc: crc32.NewIEEE()}}
	x.state = x.streamHeader
	return io.NopCloser(x)
}

func (x *xzReader) Read(p []byte) (int, error) {
	for x.err == nil {
		if x.block == nil {
			x.err = x.state()
			continue
		}
		n, err := x.block.Read(p)
		x.sum.Write(p[:n])
		x.n += int64(n)
		if errors.Is(err, io.EOF) {
			err = x.endBlock()
		}
		x.err = truncatedIf(err)
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, x.err
}

// truncatedIf: an end anywhere but between streams is too early.
func truncatedIf(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// full reads exactly n bytes.
func (x *xzReader) full(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(x.in, b)
	return b, truncatedIf(err)
}

// checkSizes are the bytes of each kind of check that the format knows.
var checkSizes = map[byte]int{0: 0, 1: 4, 4: 8, 10: 32}

var crc64ECMA = crc64.MakeTable(crc64.ECMA)

func newCheck(kind byte) hash.Hash {
	switch kind {
	case 1:
		return crc32.NewIEEE()
	case 4:
		return crc64.New(crc64ECMA)
	case 10:
		return sha256.New()
	}
	return crc32.NewIEEE() // kind 0: not compared
}

func (x *xzReader) streamHeader() error {
	b, err := x.full(12)
	if err != nil {
		return err
	}
	if string(b[:6]) != "\xfd7zXZ\x00" || b[6] != 0 || crc32.ChecksumIEEE(b[6:8]) != binary.LittleEndian.Uint32(b[8:]) {
		return errors.New("damaged stream header")
	}
	if _, ok := checkSizes[b[7]]; !ok {
		return fmt.Errorf("unknown kind of check %d", b[7])
	}
	x.check, x.sizes, x.count = b[7], sha256.New(), 0
	x.state = x.blockHeader
	return nil
}

func (x *xzReader) blockHeader() error {
	x.in.crc.Reset()
	x.in.check = true
	size, err := x.in.ReadByte()
	if err != nil {
		return truncatedIf(err)
	}
	if size == 0 {
		return x.index()
	}
	x.in.check = false
	rest, err := x.full((int(size)+1)*4 - 1)
	if err != nil {
		return err
	}
	head, sum := rest[:len(rest)-4], binary.LittleEndian.Uint32(rest[len(rest)-4:])
	if crc32.Update(crc32.ChecksumIEEE([]byte{size}), crc32.IEEETable, head) != sum {
		return errors.New("damaged block header")
	}
	x.head = int64(len(rest)) + 1
	return x.openBlock(head[0], bytes.NewReader(head[1:]))
}

func (x *xzReader) openBlock(flags byte, r *bytes.Reader) error {
	if flags&0x3c != 0 {
		return errors.New("unknown block flags")
	}
	for i, bit := range []byte{0x40, 0x80} {
		x.want[i] = -1
		if flags&bit != 0 {
			v, err := vli(r)
			if err != nil {
				return err
			}
			x.want[i] = v
		}
	}
	id, err := vli(r)
	if err != nil {
		return err
	}
	if id != 0x21 || flags&3 != 0 {
		return &unsupportedError{"cannot decompress xz: it has a filter beside LZMA2, which only the xz program knows; install it"}
	}
	n, err := vli(r)
	if err != nil {
		return err
	}
	bits, err := r.ReadByte()
	if err != nil || n != 1 || bits > 40 {
		return errors.New("wrong properties of LZMA2")
	}
	for r.Len() > 0 {
		if c, _ := r.ReadByte(); c != 0 {
			return errors.New("damaged block header")
		}
	}
	window := int64(2|bits&1) << (bits/2 + 11)
	if window > maxWindow {
		return &unsupportedError{fmt.Sprintf("cannot decompress xz: it looks back %d MiB, more than %d", window>>20, maxWindow>>20)}
	}
	x.start, x.n, x.sum = x.in.n, 0, newCheck(x.check)
	x.block, err = lzma.Reader2Config{DictCap: int(max(window, lzma.MinDictCap))}.NewReader2(x.in)
	return truncatedIf(err)
}

func (x *xzReader) endBlock() error {
	x.block = nil
	packed := x.in.n - x.start
	if x.want[0] >= 0 && x.want[0] != packed || x.want[1] >= 0 && x.want[1] != x.n {
		return errors.New("a block is not of the size that it claims")
	}
	pad, err := x.full(int(-packed & 3))
	if err != nil {
		return err
	}
	if !zeros(pad) {
		return errors.New("damaged block padding")
	}
	size := checkSizes[x.check]
	want, err := x.full(size)
	if err != nil {
		return err
	}
	have := x.sum.Sum(nil)
	if x.check == 1 || x.check == 4 { // stored in little endian
		for i, j := 0, len(have)-1; i < j; i, j = i+1, j-1 {
			have[i], have[j] = have[j], have[i]
		}
	}
	if size > 0 && !bytes.Equal(have, want) {
		return errors.New("the checksum does not match")
	}
	x.note(x.head+packed+int64(size), x.n)
	x.count++
	return nil
}

func (x *xzReader) note(unpadded, unpacked int64) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(unpadded))
	binary.LittleEndian.PutUint64(b[8:], uint64(unpacked))
	x.sizes.Write(b[:])
}

// index reads the list of blocks, whose first byte is read, and the footer.
func (x *xzReader) index() error {
	start := x.in.n - 1
	count, err := vli(x.in)
	if err != nil {
		return err
	}
	if uint64(count) != x.count {
		return errors.New("the index does not list the blocks")
	}
	seen := x.sizes.Sum(nil)
	x.sizes.Reset()
	for range count {
		unpadded, err := vli(x.in)
		if err != nil {
			return err
		}
		unpacked, err := vli(x.in)
		if err != nil {
			return err
		}
		x.note(unpadded, unpacked)
	}
	if !bytes.Equal(seen, x.sizes.Sum(nil)) {
		return errors.New("the index does not list the blocks")
	}
	pad, err := x.full(int(-(x.in.n - start) & 3))
	if err != nil {
		return err
	}
	x.in.check = false
	sum := x.in.crc.Sum32()
	size := x.in.n - start + 4
	foot, err := x.full(4 + 12)
	if err != nil {
		return err
	}
	if !zeros(pad) || binary.LittleEndian.Uint32(foot) != sum {
		return errors.New("damaged index")
	}
	foot = foot[4:]
	if crc32.ChecksumIEEE(foot[4:10]) != binary.LittleEndian.Uint32(foot) || string(foot[8:]) != string([]byte{0, x.check, 'Y', 'Z'}) ||
		(int64(binary.LittleEndian.Uint32(foot[4:]))+1)*4 != size {
		return errors.New("damaged stream footer")
	}
	x.state = x.between
	return nil
}

// between passes over padding between streams; the only place where an end is right.
func (x *xzReader) between() error {
	for {
		head, err := x.in.s.peek(1)
		if err != nil {
			return err
		}
		if head[0] != 0 {
			break
		}
		pad, err := x.full(4)
		if err != nil {
			return err
		}
		if !zeros(pad) {
			return errors.New("damaged padding between streams")
		}
	}
	return x.streamHeader()
}

// vli reads a multibyte integer of the format: at most 63 bits, no needless bytes.
func vli(r io.ByteReader) (int64, error) {
	var v uint64
	for i := range 9 {
		c, err := r.ReadByte()
		if err != nil {
			return 0, truncatedIf(err)
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				break
			}
			return int64(v), nil
		}
	}
	return 0, errors.New("damaged number")
}

// zeros tells whether b holds nothing else.
func zeros(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
