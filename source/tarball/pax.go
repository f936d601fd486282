package tarball

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// record is one "key=value" of an extended header.
type record struct{ key, value string }

// parsePax reads the body of an extended header (POSIX.1-2017 pax, "pax Header
// Block"): LENGTH SPACE KEY=VALUE NEWLINE, where LENGTH counts itself.
func parsePax(b []byte) ([]record, error) {
	var out []record
	for len(b) > 0 {
		if zeros(b) {
			break // star pads with zeros
		}
		sp := bytes.IndexByte(b[:min(len(b), 21)], ' ')
		if sp <= 0 {
			return nil, errors.New("a record without its length")
		}
		n, err := strconv.ParseUint(string(b[:sp]), 10, 31)
		if err != nil || n <= uint64(sp)+1 || n > uint64(len(b)) {
			return nil, errors.New("a record with a wrong length")
		}
		line := b[sp+1 : n]
		b = b[n:]
		if line[len(line)-1] != '\n' {
			return nil, errors.New("a record that does not end where it says")
		}
		key, value, ok := strings.Cut(string(line[:len(line)-1]), "=")
		if !ok || key == "" || strings.IndexByte(key, 0) >= 0 {
			return nil, errors.New("a record without a key")
		}
		out = append(out, record{key, value})
	}
	return out, nil
}

// globalAllowed tells what a global header may say of all entries that follow. A name,
// a size or a map for all of them has no honest use.
func globalAllowed(key string) bool {
	switch key {
	case "path", "linkpath", "size":
		return false
	}
	for _, p := range []string{"GNU.sparse.", "GNU.volume.", "SCHILY.xattr.", "LIBARCHIVE.xattr.", "SCHILY.acl.", "SCHILY.realsize"} {
		if strings.HasPrefix(key, p) {
			return false
		}
	}
	return true
}

// sparseRecords are what the three PAX forms of GNU sparse files say.
type sparseRecords struct {
	major, minor string
	size         int64 // -1: not given
	name         string
	extents      []extent
	mapped       bool // a map was given here (0.0 and 0.1)
	any          bool
}

// paxFields is what the records of one entry say, with "" and -1 for nothing.
type paxFields struct {
	path, link string
	size       int64
	uid, gid   int64
	mtime      string
	acl        [2]string
	xattrs     map[string][]byte
	sparse     sparseRecords
	ignored    []string // keys that are not known
}

// readRecords interprets records: first the global ones, then the entry's own.
func readRecords(records []record, maxExtents int) (*paxFields, error) {
	f := &paxFields{size: -1, uid: -1, gid: -1}
	f.sparse.size = -1
	twice := map[string]string{} // LIBARCHIVE.xattr, as it stands there
	for _, r := range records {
		if err := f.record(r, twice, maxExtents); err != nil {
			return nil, err
		}
	}
	return f, f.libarchive(twice)
}

// libarchive takes the attributes that bsdtar writes twice: as
// LIBARCHIVE.xattr.KEY=BASE64 and as SCHILY.xattr.KEY=VALUE, both with the key
// escaped. Which counts where they differ is what an attacker would want to choose.
func (f *paxFields) libarchive(twice map[string]string) error {
	for escaped, value := range twice {
		key, err := url.PathUnescape(escaped)
		if err != nil {
			return fmt.Errorf("has the attribute %s, whose name cannot be decoded", quote(escaped))
		}
		// libarchive writes no padding, its readers take both.
		val, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
		if err != nil {
			return fmt.Errorf("has the attribute %s, whose value cannot be decoded", quote(key))
		}
		for _, same := range []string{key, schilyKey(escaped)} {
			if have, ok := f.xattrs[same]; ok && !bytes.Equal(have, val) {
				return fmt.Errorf("has two values of the attribute %s", quote(same))
			}
		}
		if same := schilyKey(escaped); same != key {
			delete(f.xattrs, same) // half unescaped
		}
		if err := f.xattr(key, val); err != nil {
			return err
		}
	}
	return nil
}

// schilyKey undoes what GNU tar does to keys since 1.31: = is %3D and % is %25.
// star writes keys as they are, and cannot write those with an equals sign.
var schilyKey = strings.NewReplacer("%3D", "=", "%25", "%").Replace

func (f *paxFields) record(r record, twice map[string]string, maxExtents int) error {
	if key, ok := strings.CutPrefix(r.key, "SCHILY.xattr."); ok {
		return f.xattr(schilyKey(key), []byte(r.value))
	}
	if key, ok := strings.CutPrefix(r.key, "LIBARCHIVE.xattr."); ok {
		twice[key] = r.value
		return nil
	}
	if strings.HasPrefix(r.key, "GNU.sparse.") {
		return f.sparse.record(r, maxExtents)
	}
	if strings.IndexByte(r.value, 0) >= 0 && r.key != "comment" {
		return fmt.Errorf("has a NUL byte in the record %s", quote(r.key))
	}
	var err error
	switch r.key {
	case "path":
		f.path = r.value
	case "linkpath":
		f.link = r.value
	case "size":
		f.size, err = paxNumber(r, math.MaxInt64)
	case "uid":
		f.uid, err = paxNumber(r, maxID)
	case "gid":
		f.gid, err = paxNumber(r, maxID)
	case "mtime":
		f.mtime = r.value
	case "SCHILY.acl.access":
		f.acl[0] = r.value
	case "SCHILY.acl.default":
		f.acl[1] = r.value
	case "RHT.security.selinux":
		// libselinux sets labels with their NUL byte, and the kernel gives them so.
		if r.value != "" {
			err = f.xattr("security.selinux", append([]byte(r.value), 0))
		}
	case "hdrcharset":
		if r.value != "" && r.value != "BINARY" && r.value != "ISO-IR 10646 2000 UTF-8" {
			err = &unsupportedError{fmt.Sprintf("has names in the character set %s, which is not supported", quote(r.value))}
		}
	case "SCHILY.realsize", "SCHILY.filetype", "SUN.holesdata":
		err = &unsupportedError{fmt.Sprintf("has the record %s: sparse files of star and Solaris are not supported", r.key)}
	case "atime", "ctime", "comment", "charset", "uname", "gname", "LIBARCHIVE.creationtime",
		"SCHILY.dev", "SCHILY.ino", "SCHILY.nlink", "SCHILY.devmajor", "SCHILY.devminor", "SCHILY.acl.type",
		"SCHILY.volhdr", "SCHILY.release":
		// Of no meaning for what is made, or a name where a number is given.
	default:
		if strings.HasPrefix(r.key, "GNU.volume.") {
			return &unsupportedError{"is a part of a multi-volume archive, which is not supported"}
		}
		f.ignored = append(f.ignored, r.key)
	}
	return err
}

// xattr takes one attribute; a second of the name takes the place of the first,
// as POSIX has it for all records.
func (f *paxFields) xattr(key string, val []byte) error {
	switch {
	case key == "" || len(key) > maxXattrName || strings.IndexByte(key, 0) >= 0:
		return fmt.Errorf("has an attribute with the name %s, which Linux cannot have", quote(key))
	case len(val) > maxXattr:
		return fmt.Errorf("has the attribute %s of %d bytes, more than the %d that Linux can hold", quote(key), len(val), maxXattr)
	case change.MachineXattr(key) && key != "security.selinux":
		// trusted.overlay.* would change what the staged view shows;
		// security.evm and security.ima are another machine's.
		f.ignored = append(f.ignored, key)
		return nil
	}
	if f.xattrs == nil {
		f.xattrs = map[string][]byte{}
	}
	f.xattrs[key] = val
	return nil
}

func paxNumber(r record, most int64) (int64, error) {
	if r.value == "" {
		return -1, nil // takes back what a global header says
	}
	v, err := strconv.ParseUint(r.value, 10, 63)
	if err != nil || int64(v) > most {
		return 0, fmt.Errorf("has the %s %s, which is no number from 0 to %d", r.key, quote(r.value), most)
	}
	return int64(v), nil
}

func (s *sparseRecords) record(r record, maxExtents int) error {
	s.any = true
	num := func(v string) (int64, error) {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil {
			return 0, fmt.Errorf("has a sparse map with %s, which is no number", quote(v))
		}
		return int64(n), nil
	}
	var err error
	switch r.key {
	case "GNU.sparse.major":
		s.major = r.value
	case "GNU.sparse.minor":
		s.minor = r.value
	case "GNU.sparse.name":
		if strings.IndexByte(r.value, 0) >= 0 {
			return errors.New("has a NUL byte in its name")
		}
		s.name = r.value
	case "GNU.sparse.size", "GNU.sparse.realsize":
		s.size, err = num(r.value)
	case "GNU.sparse.numblocks":
		_, err = num(r.value) // tells how long the map is, which is seen
	case "GNU.sparse.offset":
		var off int64
		if off, err = num(r.value); err == nil {
			if len(s.extents) >= maxExtents {
				return fmt.Errorf("has a sparse map of more than %d pieces", maxExtents)
			}
			s.mapped = true
			s.extents = append(s.extents, extent{off, -1})
		}
	case "GNU.sparse.numbytes":
		last := len(s.extents) - 1
		if last < 0 || s.extents[last].len >= 0 {
			return errors.New("has a sparse map whose lengths and offsets do not pair")
		}
		s.extents[last].len, err = num(r.value)
	case "GNU.sparse.map":
		if s.mapped {
			return errors.New("has two sparse maps")
		}
		s.mapped = true
		parts := strings.Split(r.value, ",")
		if r.value == "" {
			parts = nil
		}
		if len(parts)%2 != 0 || len(parts)/2 > maxExtents {
			return fmt.Errorf("has a sparse map of %d numbers", len(parts))
		}
		for i := 0; i < len(parts); i += 2 {
			off, oerr := num(parts[i])
			n, nerr := num(parts[i+1])
			if err := errors.Join(oerr, nerr); err != nil {
				return err
			}
			s.extents = append(s.extents, extent{off, n})
		}
	default:
		return &unsupportedError{fmt.Sprintf("has the record %s, which is not known", quote(r.key))}
	}
	return err
}

// parseTime reads seconds since the epoch with a fraction: [-]N[.N]. Digits
// past the ninth are dropped, towards the past as in GNU tar.
func parseTime(s string) (int64, error) {
	whole, frac, _ := strings.Cut(s, ".")
	bad := fmt.Errorf("has the time %s, which is no time", quote(s))
	digits, negative := strings.CutPrefix(whole, "-")
	sec, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		if errors.Is(err, strconv.ErrRange) {
			return 0, errTime(s)
		}
		return 0, bad
	}
	var ns int64
	rest := false
	for i, c := range []byte(frac) {
		if c < '0' || c > '9' {
			return 0, bad
		}
		if i < 9 {
			ns = ns*10 + int64(c-'0')
		} else {
			rest = rest || c != '0'
		}
	}
	for range 9 - min(len(frac), 9) {
		ns *= 10
	}
	if sec > uint64(maxSeconds) {
		return 0, errTime(s)
	}
	v := int64(sec)*1e9 + ns
	if negative {
		v = -v
		if rest {
			v--
		}
	}
	return v, nil
}

func errTime(s string) error {
	return fmt.Errorf("has the time %s, which lies outside of the years 1678 to 2261", quote(s))
}
