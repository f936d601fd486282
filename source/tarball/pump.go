package tarball

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/liveupd/liveupd/change"
)

// The stream flows through goroutines in blocks of a fixed number, so that
// memory is bounded whatever the archive holds, and a file's content is copied
// once: from the block into the file. A block goes back to its pool when all
// that point into it have let go.
const (
	blockSize   = 256 << 10 // fits the second-level cache
	rawBlocks   = 6         // compressed bytes that wait
	plainBlocks = 64        // tar stream that waits: 16 MiB
)

type block struct {
	buf  []byte
	n    int
	refs atomic.Int32
	home chan *block
}

func newPool(n int) chan *block {
	pool := make(chan *block, n)
	for range n {
		pool <- &block{home: pool}
	}
	return pool
}

func (b *block) release() {
	if b.refs.Add(-1) == 0 {
		b.home <- b // has room for all its blocks
	}
}

// segment is a piece of content inside a block, which its holder releases.
type segment struct {
	data []byte
	blk  *block
}

func (s segment) release() { s.blk.release() }

type filled struct {
	blk *block
	err error // io.EOF: the regular end
}

// pump reads r to its end in blocks. seen is asked after each with the bytes so
// far, and an error of it ends the stream.
func pump(ctx context.Context, r io.Reader, pool chan *block, out chan<- filled, seen func(total int64) error) {
	defer close(out)
	var total int64
	for {
		var blk *block
		select {
		case blk = <-pool:
		case <-ctx.Done():
			return
		}
		if blk.buf == nil {
			blk.buf = make([]byte, blockSize)
		}
		n, err := readBlock(r, blk.buf)
		total += int64(n)
		if serr := seen(total); serr != nil && (err == nil || errors.Is(err, io.EOF)) {
			n, err = 0, serr
		}
		if n > 0 {
			blk.n = n
			blk.refs.Store(1)
			select {
			case out <- filled{blk: blk}:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			select {
			case out <- filled{err: err}:
			case <-ctx.Done():
			}
			return
		}
	}
}

// readBlock fills buf as far as r goes. A decoder that panics on what it is fed
// must not take the process with it: what was written so far would stay.
func readBlock(r io.Reader, buf []byte) (n int, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the decoder failed: %v: %w", p, change.ErrVerification)
		}
	}()
	for idle := 0; n < len(buf) && err == nil; {
		var m int
		m, err = r.Read(buf[n:])
		n += m
		if idle++; m > 0 {
			idle = 0
		} else if idle > 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// stream is the reading end of a pump. It is not safe for concurrent use.
type stream struct {
	ctx context.Context
	ch  <-chan filled
	cur *block
	off int
	pos int64 // bytes taken
	err error
}

// more makes sure that there is at least one byte in cur.
func (s *stream) more() error {
	for s.cur == nil || s.off == s.cur.n {
		if s.cur != nil {
			s.cur.release()
			s.cur = nil
		}
		if s.err != nil {
			return s.err
		}
		var f filled
		var ok bool
		select {
		case f, ok = <-s.ch:
		case <-s.ctx.Done():
		}
		switch {
		case !ok:
			s.err = context.Cause(s.ctx)
			if s.err == nil {
				s.err = io.ErrUnexpectedEOF // the pump was stopped: cannot be without ctx
			}
		case f.err != nil:
			s.err = f.err
		default:
			s.cur, s.off = f.blk, 0
		}
	}
	return nil
}

// close lets go of the current block.
func (s *stream) close() {
	if s.cur != nil {
		s.cur.release()
		s.cur = nil
	}
}

// take gives the next piece of at most n bytes without copying it.
func (s *stream) take(n int64) (segment, error) {
	if err := s.more(); err != nil {
		return segment{}, err
	}
	n = min(n, int64(s.cur.n-s.off))
	seg := segment{s.cur.buf[s.off : s.off+int(n)], s.cur}
	s.cur.refs.Add(1)
	s.off += int(n)
	s.pos += n
	return seg, nil
}

// Read is an io.Reader's.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.more(); err != nil {
		return 0, err
	}
	n := copy(p, s.cur.buf[s.off:s.cur.n])
	s.off += n
	s.pos += int64(n)
	return n, nil
}

// ReadByte is an io.ByteReader's: decoders that see one add no buffer of their own.
func (s *stream) ReadByte() (byte, error) {
	if err := s.more(); err != nil {
		return 0, err
	}
	c := s.cur.buf[s.off]
	s.off++
	s.pos++
	return c, nil
}

// peek gives at least one and up to n of the next bytes: n where they lie in one
// block, as the first of the stream do.
func (s *stream) peek(n int) ([]byte, error) {
	if err := s.more(); err != nil {
		return nil, err
	}
	return s.cur.buf[s.off:min(s.off+n, s.cur.n)], nil
}

// skip passes over n bytes.
func (s *stream) skip(n int64) error {
	for n > 0 {
		if err := s.more(); err != nil {
			return err
		}
		m := min(n, int64(s.cur.n-s.off))
		s.off += int(m)
		s.pos += m
		n -= m
	}
	return nil
}

// counted hashes and counts what is read of the archive. Its sum is valid once
// the end was seen.
type counted struct {
	in  io.Reader
	sum hash.Hash
	n   atomic.Int64
	err atomic.Pointer[error] // other than io.EOF
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if n > 0 {
		c.sum.Write(p[:n])
		c.n.Add(int64(n))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		c.err.Store(&err)
	}
	return n, err
}
