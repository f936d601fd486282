package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// The four forms of GNU tar's sparse files (its manual, "Storing Sparse Files"):
//
//	type S          the map is in the header block, and in blocks that follow it
//	GNU.sparse 0.0  one record for each offset and for each length
//	GNU.sparse 0.1  one record GNU.sparse.map=OFFSET,LENGTH,...
//	GNU.sparse 1.0  the map is text in front of the data: COUNT, then OFFSET and LENGTH, a line each
//
// The body holds the pieces one behind the other.

// oldSparse reads the map of type S. next gives the blocks that follow.
func oldSparse(b *raw, maxExtents int, next func() (*raw, error)) (extents []extent, size int64, err error) {
	if b.format() != formatGNU {
		return nil, 0, errors.New("is a sparse file in an archive that is not GNU tar's")
	}
	if size, err = number(b[483:495]); err != nil || size < 0 {
		return nil, 0, errors.New("has a sparse map without the file's size")
	}
	table, more := b[386:482], b[482] != 0
	for {
		for ; len(table) > 0; table = table[24:] {
			if table[0] == 0 || table[12] == 0 {
				break // the rest of the table is not used
			}
			off, oerr := number(table[:12])
			n, nerr := number(table[12:24])
			if oerr != nil || nerr != nil || off < 0 || n < 0 {
				return nil, 0, errors.New("has a sparse map that holds no numbers")
			}
			if len(extents) >= maxExtents {
				return nil, 0, fmt.Errorf("has a sparse map of more than %d pieces", maxExtents)
			}
			extents = append(extents, extent{off, n})
		}
		if !more {
			return extents, size, nil
		}
		if b, err = next(); err != nil {
			return nil, 0, err
		}
		table, more = b[:504], b[504] != 0
	}
}

// newSparse reads the map of GNU.sparse 1.0 from the blocks that next gives, each
// of which counts against the body.
func newSparse(maxExtents int, next func() (*raw, error)) ([]extent, error) {
	bad := errors.New("has a sparse map that is damaged")
	var buf []byte
	line := func() (int64, error) {
		for {
			if i := bytes.IndexByte(buf, '\n'); i >= 0 {
				v, err := strconv.ParseUint(string(buf[:i]), 10, 63)
				buf = buf[i+1:]
				if err != nil {
					return 0, bad
				}
				return int64(v), nil
			}
			if len(buf) > 20 { // no number is longer
				return 0, bad
			}
			b, err := next()
			if err != nil {
				return 0, err
			}
			buf = append(slices.Clip(buf), b[:]...)
		}
	}
	count, err := line()
	if err != nil {
		return nil, err
	}
	if count > int64(maxExtents) {
		return nil, fmt.Errorf("has a sparse map of %d pieces, more than %d", count, maxExtents)
	}
	var extents []extent // grows with what is really there
	for range count {
		off, err := line()
		if err != nil {
			return nil, err
		}
		n, err := line()
		if err != nil {
			return nil, err
		}
		extents = append(extents, extent{off, n})
	}
	if !zeros(buf) {
		return nil, bad
	}
	return extents, nil
}

// checkSparse refuses a map that is not ascending, reaches beyond the file, or
// does not fit the body.
func checkSparse(extents []extent, size, stored int64) error {
	var at, sum int64
	for _, e := range extents {
		switch {
		case e.len < 0:
			return errors.New("has a sparse map whose lengths and offsets do not pair")
		case e.off < at:
			return errors.New("has a sparse map whose pieces overlap or are out of order")
		case e.off > size || e.len > size-e.off:
			return fmt.Errorf("has a sparse map that reaches beyond its size of %d bytes", size)
		}
		at = e.end()
		sum += e.len
	}
	if sum != stored {
		return fmt.Errorf("has a sparse map of %d bytes and %d bytes of data", sum, stored)
	}
	return nil
}
