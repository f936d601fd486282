package tarball

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// reader takes a tar stream apart. The standard library's archive/tar is not used,
// because it gives no way to learn where a file's holes are, has one error
// ("invalid tar header") for all that can be wrong, passes over what readers
// disagree on (a size on a folder, two long names for one entry) and reads an archive that
// lacks its end like a whole one.
type reader struct {
	s      *stream
	lim    *Limits
	warn   func(string)
	global map[string]string
	last   string // the entry before, for messages
	format string
	remain int64 // of the body
	buf    raw   // the last block
	pad    int64 // behind the body
}

// place says where in the stream something is wrong.
func (r *reader) place() string {
	if r.last == "" {
		return fmt.Sprintf("at byte %d of the tar stream", r.s.pos)
	}
	return fmt.Sprintf("at byte %d of the tar stream, behind %s", r.s.pos, quote(r.last))
}

// truncated names the entry that the stream ends in.
func (r *reader) truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return damaged("the archive is truncated %s", r.place())
	}
	return err
}

// block reads a block of 512 bytes, valid until the next; io.EOF: there is none at all.
func (r *reader) block() (*raw, error) {
	b := &r.buf
	n, err := io.ReadFull(r.s, b[:])
	if n > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
		if r.format == "" {
			return nil, damaged("it is no tar archive: it holds %d bytes", n)
		}
		return nil, r.truncated(io.EOF)
	}
	return b, err
}

// pending is what extended headers say of the entry that follows.
type pending struct {
	pax              []record
	name, link       string
	hasPax           bool
	hasName, hasLink bool
}

func (p *pending) any() bool { return p.hasPax || p.hasName || p.hasLink }

// next gives the next entry; io.EOF: the archive has ended as it should.
func (r *reader) next() (*header, error) {
	if err := r.s.skip(r.remain + r.pad); err != nil {
		return nil, r.truncated(err)
	}
	r.remain, r.pad = 0, 0
	var p pending
	for {
		b, err := r.block()
		if errors.Is(err, io.EOF) {
			return nil, damaged("the archive is truncated: it has no end mark %s", r.place())
		}
		if err != nil {
			return nil, err
		}
		if zeros(b[:]) {
			if p.any() {
				return nil, damaged("an extended header without an entry %s", r.place())
			}
			return nil, r.end()
		}
		if !b.sumOK() {
			if r.format == "" && r.last == "" {
				return nil, damaged("it is no tar archive, or damaged from its start")
			}
			return nil, damaged("a header with a wrong checksum %s", r.place())
		}
		h, err := r.header(b, &p)
		if err != nil || h != nil {
			return h, err
		}
	}
}

// end reads what follows the end mark, which must be zeros: archives are padded
// to whole records.
func (r *reader) end() error {
	b, err := r.block()
	if errors.Is(err, io.EOF) {
		r.warn("the archive ends with one block of zeros instead of two")
		return io.EOF
	}
	if err != nil {
		return err
	}
	for zeros(b[:]) {
		if b, err = r.block(); err != nil {
			return err // io.EOF among them
		}
	}
	return change.WithHint(damaged("something follows the end of the archive %s", r.place()),
		"archives that were joined with cat are not read on: tar -A joins them")
}

// header reads what one block begins: nil for an extended header, which goes into p.
func (r *reader) header(b *raw, p *pending) (*header, error) {
	typ := b[156]
	size, err := number(b[124:136])
	if err != nil {
		return nil, refuse(b.name(), "has a size that %v", err)
	}
	if size < 0 {
		return nil, refuse(b.name(), "has the size %d", size)
	}
	if r.format == "" {
		r.format = formatNames[b.format()]
		if typ == typePax || typ == typeGlobal || typ == typeSunPax {
			r.format = "pax"
		}
	}
	switch typ {
	case typePax, typeSunPax, typeGlobal:
		body, err := r.body(b, size)
		if err != nil {
			return nil, err
		}
		records, err := parsePax(body)
		if err != nil {
			return nil, damaged("an extended header holds %v %s", err, r.place())
		}
		if typ == typeGlobal {
			return nil, r.globals(records)
		}
		if p.hasPax {
			return nil, damaged("two extended headers for one entry %s", r.place())
		}
		p.pax, p.hasPax = records, true
		return nil, nil
	case typeLongName, typeLongLink:
		body, err := r.body(b, size)
		if err != nil {
			return nil, err
		}
		value := text(body)
		if !zeros(body[len(value):]) {
			return nil, refuse(value, "is a long name that holds a NUL byte")
		}
		to, has := &p.name, &p.hasName
		if typ == typeLongLink {
			to, has = &p.link, &p.hasLink
		}
		if *has {
			return nil, damaged("two long names for one entry %s", r.place())
		}
		*to, *has = value, true
		return nil, nil
	case typeLabel:
		if size != 0 || p.any() {
			return nil, damaged("a volume label with content %s", r.place())
		}
		r.warn("the archive's volume label was not used")
		return nil, nil
	}
	return r.entry(b, typ, size, p)
}

// body reads the body of an extended header into memory.
func (r *reader) body(b *raw, size int64) ([]byte, error) {
	if size > r.lim.Header {
		return nil, refuse(b.name(), "is an extended header of %d bytes, more than the limit of %d", size, r.lim.Header)
	}
	// It grows with what is there, not with what is claimed.
	body, err := io.ReadAll(io.LimitReader(r.s, size))
	if err == nil && int64(len(body)) < size {
		err = io.EOF
	}
	if err == nil {
		err = r.s.skip(-size & (headerSize - 1))
	}
	return body, r.truncated(err)
}

func (r *reader) globals(records []record) error {
	for _, rec := range records {
		if !globalAllowed(rec.key) {
			return damaged("a global header says %s for all entries %s", quote(rec.key), r.place())
		}
		if r.global == nil {
			r.global = map[string]string{}
		}
		if r.global[rec.key] = rec.value; rec.value == "" {
			delete(r.global, rec.key)
		}
	}
	if len(r.global) > 1000 {
		return damaged("global headers of more than 1000 keys %s", r.place())
	}
	return nil
}

// entry puts the block and the extended headers together.
func (r *reader) entry(b *raw, typ byte, size int64, p *pending) (*header, error) {
	h := &header{typ: typ, name: b.name(), link: text(b[157:257]), stored: size}
	records := p.pax
	if len(r.global) > 0 {
		records = nil
		for _, key := range slices.Sorted(maps.Keys(r.global)) {
			records = append(records, record{key, r.global[key]})
		}
		records = append(records, p.pax...)
	}
	f, ferr := readRecords(records, r.lim.Extents)
	if f == nil {
		f = &paxFields{size: -1, uid: -1, gid: -1}
		for _, rec := range records { // for the message
			if rec.key == "path" {
				f.path = rec.value
			}
		}
	}
	names := []struct {
		to             *string
		long, pax, gnu string
		has            bool
	}{
		{&h.name, p.name, f.path, f.sparse.name, p.hasName},
		{&h.link, p.link, f.link, "", p.hasLink},
	}
	for _, n := range names {
		switch {
		case n.gnu != "":
			// The path beside it is one that other readers can use.
			*n.to = n.gnu
		case n.pax != "":
			*n.to = n.pax
		case n.has:
			*n.to = n.long
		}
		if n.has && (n.pax != "" && n.pax != n.long || n.gnu != "" && n.gnu != n.long) {
			return nil, refuse(*n.to, "has two long names, of which readers take different ones")
		}
	}
	r.last = h.name
	if ferr != nil {
		return nil, r.recordError(h, ferr)
	}
	for _, key := range f.ignored {
		r.warn("the records " + quote(key) + " were not used")
	}
	if err := r.fill(h, b, f); err != nil {
		return nil, r.recordError(h, err)
	}
	return h, nil
}

// recordError puts the entry in front: refused, or merely not supported.
func (r *reader) recordError(h *header, err error) error {
	var unsupported *unsupportedError
	var passed *passedError
	switch {
	case errors.Is(err, change.ErrVerification):
		return err
	case errors.As(err, &unsupported):
		return cannot(h.name, "%v", err)
	case errors.As(err, &passed):
		return passed.err
	}
	return refuse(h.name, "%v", err)
}

// passedError is an error of the stream itself, which is none of the entry's.
type passedError struct{ err error }

func (e *passedError) Error() string { return e.err.Error() }
func (e *passedError) Unwrap() error { return e.err }

// fill checks and completes an entry whose name is known.
func (r *reader) fill(h *header, b *raw, f *paxFields) error {
	if err := h.numbers(b); err != nil {
		return err
	}
	if err := h.owner(b, f); err != nil {
		return err
	}
	if f.mtime != "" {
		var err error
		if h.mtimeNS, err = parseTime(f.mtime); err != nil {
			return err
		}
	} else if sec, err := number(b[136:148]); err != nil {
		return fmt.Errorf("has a time that %w", err)
	} else if sec > maxSeconds || sec < -maxSeconds {
		return errTime(fmt.Sprint(sec))
	} else {
		h.mtimeNS = sec * 1e9
	}
	if f.size >= 0 {
		h.stored = f.size
	}
	h.size = h.stored
	h.xattrs, h.acl = f.xattrs, f.acl
	if err := h.normalise(); err != nil {
		return err
	}
	if h.typ != typeRegular && h.stored != 0 {
		// GNU tar passes over such a body, others look for a header in it.
		return fmt.Errorf("is a %s with a body of %d bytes, which readers treat differently", typeName(h.typ), h.stored)
	}
	if h.stored > r.lim.Bytes {
		return fmt.Errorf("has %d bytes, more than the limit of %d", h.stored, r.lim.Bytes)
	}
	r.remain, r.pad = h.stored, -h.stored&(headerSize-1)
	return r.holes(h, b, f)
}

// maxSeconds is how far from 1970 a time in nanoseconds can lie.
const maxSeconds = int64(1<<63-1)/int64(1e9) - 1

// owner takes numbers only: the names beside them are another machine's.
func (h *header) owner(b *raw, f *paxFields) error {
	for _, o := range []struct {
		what  string
		field []byte
		pax   int64
		to    *uint32
	}{{"user id", b[108:116], f.uid, &h.uid}, {"group id", b[116:124], f.gid, &h.gid}} {
		v := o.pax
		if v < 0 {
			var err error
			if v, err = number(o.field); err != nil {
				return fmt.Errorf("has a %s that %w", o.what, err)
			}
		}
		if v < 0 || v > maxID {
			return fmt.Errorf("has the %s %d, which Linux cannot have", o.what, v)
		}
		*o.to = uint32(v)
	}
	return nil
}

// normalise settles the type.
func (h *header) normalise() error {
	switch h.typ {
	case typeOld, typeRegular, typeContiguous:
		h.typ = typeRegular
		if strings.HasSuffix(h.name, "/") {
			h.typ = typeDir // v7 had no type for it
		}
	case typeSparse:
		h.typ, h.sparse = typeRegular, true
	case typeLink, typeSymlink, typeChar, typeBlock, typeDir, typeFIFO:
	default:
		if what := foreign[h.typ]; what != "" {
			return &unsupportedError{"is " + what + ", which is not supported"}
		}
		return &unsupportedError{"has the unknown type " + quote(string([]byte{h.typ}))}
	}
	return nil
}

func typeName(typ byte) string {
	switch typ {
	case typeLink:
		return "hard link"
	case typeSymlink:
		return "symlink"
	case typeChar, typeBlock:
		return "device"
	case typeDir:
		return "folder"
	case typeFIFO:
		return "fifo"
	}
	return "file"
}

// holes reads the map of a sparse file, whichever form it has.
func (r *reader) holes(h *header, b *raw, f *paxFields) error {
	sp := &f.sparse
	switch {
	case !h.sparse && !sp.any:
		return nil
	case h.sparse && sp.any:
		return errors.New("has two sparse maps")
	case h.typ != typeRegular:
		return errors.New("has a sparse map and is no file")
	case h.sparse:
		extents, size, err := oldSparse(b, r.lim.Extents, func() (*raw, error) {
			next, err := r.block()
			if err != nil {
				err = &passedError{r.truncated(err)}
			}
			return next, err
		})
		if err != nil {
			return err
		}
		h.extents, h.size = extents, size
	case sp.major == "1" && sp.minor == "0":
		if sp.mapped || sp.size < 0 {
			return errors.New("has a sparse map of two forms, or without a size")
		}
		extents, err := newSparse(r.lim.Extents, func() (*raw, error) {
			if r.remain < headerSize {
				return nil, errors.New("has a sparse map that is longer than its body")
			}
			next, err := r.block()
			if err != nil {
				return nil, &passedError{r.truncated(err)}
			}
			r.remain -= headerSize
			return next, nil
		})
		if err != nil {
			return err
		}
		h.extents, h.size, h.stored = extents, sp.size, r.remain
	case (sp.major == "" && sp.minor == "" || sp.major == "0") && sp.mapped && sp.size >= 0:
		h.extents, h.size = sp.extents, sp.size
	case sp.major == "" && sp.minor == "" && !sp.mapped && sp.size == h.stored:
		return nil // no holes after all
	case sp.major != "" && sp.major != "0" && sp.major != "1":
		return &unsupportedError{fmt.Sprintf("has a sparse map of the version %s.%s, which is not supported", quote(sp.major), quote(sp.minor))}
	default:
		return errors.New("has an incomplete sparse map")
	}
	h.sparse = true
	if h.size > r.lim.Bytes {
		return fmt.Errorf("has %d bytes, more than the limit of %d", h.size, r.lim.Bytes)
	}
	return checkSparse(h.extents, h.size, h.stored)
}

// take gives the next piece of the body; its holder releases it.
func (r *reader) take() (segment, error) {
	seg, err := r.s.take(r.remain)
	if err != nil {
		return segment{}, r.truncated(err)
	}
	r.remain -= int64(len(seg.data))
	return seg, nil
}
