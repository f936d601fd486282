package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// The header block is 512 bytes (POSIX.1-2017 pax, "ustar Interchange Format";
// GNU tar's manual, "Basic Tar Format"; star(4)):
//
//	  0 name 100    100 mode 8   108 uid 8       116 gid 8     124 size 12   136 mtime 12
//	148 chksum 8    156 type 1   157 linkname 100
//	257 magic 6     263 version 2   265 uname 32   297 gname 32   329 devmajor 8   337 devminor 8
//	345 prefix 155                                        ustar, pax; 131 in star, which has "tar\0" at 508
//	386 4 x (offset 12, length 12)  482 extended 1  483 realsize 12      GNU, type S
const headerSize = 512

// The formats by their magic.
const (
	formatV7 = iota
	formatUSTAR
	formatGNU
	formatStar
)

var formatNames = []string{"v7", "ustar", "gnu", "star"}

// Types of entries. What is not here is refused by its letter.
const (
	typeRegular    = '0'
	typeOld        = 0 // v7: a regular file, or a folder whose name ends with a slash
	typeLink       = '1'
	typeSymlink    = '2'
	typeChar       = '3'
	typeBlock      = '4'
	typeDir        = '5'
	typeFIFO       = '6'
	typeContiguous = '7'
	typePax        = 'x'
	typeSunPax     = 'X'
	typeGlobal     = 'g'
	typeLongName   = 'L'
	typeLongLink   = 'K'
	typeSparse     = 'S'
	typeLabel      = 'V'
)

// foreign are the letters that are known and not supported.
var foreign = map[byte]string{
	'M': "a part of a file of a multi-volume archive",
	'D': "a folder of an incremental archive of GNU tar",
	'N': "a list of long names of an old GNU tar",
	'A': "an access control list of Solaris",
	'E': "an extended attribute of Solaris",
	'I': "an inode of star without its content",
	's': "a socket",
}

// raw is a header block.
type raw [headerSize]byte

// checksum gives the sum of the block with blanks for the sum itself, with bytes
// as unsigned numbers and, as some old programs did, as signed ones.
func (b *raw) checksum() (unsigned, signed int64) {
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return unsigned, signed
}

func (b *raw) sumOK() bool {
	want, err := octal(b[148:156])
	u, s := b.checksum()
	return err == nil && (want == u || want == s)
}

// isHeader tells whether head begins with a header block.
func isHeader(head []byte) bool {
	if len(head) < headerSize {
		return false
	}
	b := (*raw)(head)
	return b.sumOK() && !zeros(b[:])
}

func (b *raw) format() int {
	switch magic := string(b[257:265]); {
	case magic == "ustar  \x00":
		return formatGNU
	case strings.HasPrefix(magic, "ustar\x00"):
		if string(b[508:512]) == "tar\x00" {
			return formatStar
		}
		return formatUSTAR
	}
	return formatV7
}

// text is a field up to its first NUL byte.
func text(field []byte) string {
	if i := bytes.IndexByte(field, 0); i >= 0 {
		field = field[:i]
	}
	return string(field)
}

// name joins prefix and name by the rules of the format.
func (b *raw) name() string {
	prefix := ""
	switch b.format() {
	case formatUSTAR:
		prefix = text(b[345:500])
	case formatStar:
		prefix = text(b[345:476])
	}
	if prefix != "" {
		prefix += "/"
	}
	return prefix + text(b[:100])
}

// errNumber is why a numeric field cannot be read.
var errNumber = errors.New("is no number")

// number reads a numeric field: octal digits, or base 256 where the highest
// bit is set (GNU, star; the next bit is the sign of the two's complement).
func number(field []byte) (int64, error) {
	if len(field) == 0 || field[0]&0x80 == 0 {
		return octal(field)
	}
	var flip byte
	if field[0]&0x40 != 0 {
		flip = 0xff
	}
	var v uint64
	for i, c := range field {
		c ^= flip
		if i == 0 {
			c &= 0x7f
		}
		if v>>56 != 0 {
			return 0, fmt.Errorf("is a number of more than 64 bits")
		}
		v = v<<8 | uint64(c)
	}
	if v > math.MaxInt64 {
		return 0, fmt.Errorf("is a number of more than 63 bits")
	}
	if flip != 0 {
		return ^int64(v), nil
	}
	return int64(v), nil
}

// octal reads digits between blanks and NUL bytes; nothing at all is 0.
func octal(field []byte) (int64, error) {
	digits := bytes.Trim(field, " \x00")
	if len(digits) == 0 {
		return 0, nil
	}
	v, err := strconv.ParseUint(string(digits), 8, 63)
	if err != nil {
		return 0, errNumber
	}
	return int64(v), nil
}

// extent is a piece of a sparse file that holds data.
type extent struct{ off, len int64 }

func (e extent) end() int64 { return e.off + e.len }

// header is an entry, with all that extended headers say of it.
type header struct {
	name, link   string
	typ          byte
	mode         uint32
	uid, gid     uint32
	stored       int64 // bytes of the body
	size         int64 // bytes of the file; more than stored where it has holes
	mtimeNS      int64
	major, minor uint32
	extents      []extent // nil: no holes
	sparse       bool
	xattrs       map[string][]byte
	acl          [2]string // access, default: text, "" for none
}

// numbers fills the numeric fields of the block, other than the sizes.
func (h *header) numbers(b *raw) error {
	for _, f := range []struct {
		what string
		b    []byte
		most int64
		set  func(int64)
	}{
		{"mode", b[100:108], 1<<32 - 1, func(v int64) { h.mode = uint32(v) & 0o7777 }},
		{"user id", b[108:116], math.MaxInt64, nil},
		{"group id", b[116:124], math.MaxInt64, nil},
	} {
		v, err := number(f.b)
		if err != nil {
			return fmt.Errorf("has a %s that %w", f.what, err)
		}
		if f.set != nil {
			if v < 0 || v > f.most {
				return fmt.Errorf("has the %s %d", f.what, v)
			}
			f.set(v)
		}
	}
	if h.typ != typeChar && h.typ != typeBlock {
		return nil
	}
	for _, f := range []struct {
		b    []byte
		most int64
		to   *uint32
	}{{b[329:337], maxMajor, &h.major}, {b[337:345], maxMinor, &h.minor}} {
		v, err := number(f.b)
		if err != nil {
			return fmt.Errorf("has a device number that %w", err)
		}
		if v < 0 || v > f.most {
			return fmt.Errorf("has the device number %d, which Linux cannot have", v)
		}
		*f.to = uint32(v)
	}
	return nil
}
