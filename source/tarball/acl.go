package tarball

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The kernel's form of a POSIX ACL (linux/posix_acl_xattr.h), little endian: u32
// version 2, then for each entry u16 tag, u16 permissions, u32 id.
const (
	aclVersion = 2

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclNoID = 1<<32 - 1

	aclAccessKey  = "system.posix_acl_access"
	aclDefaultKey = "system.posix_acl_default"
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// parseACL turns the text of acl(5), long or short, into the kernel's form. An
// entry is TAG:QUALIFIER:PERMISSIONS, with commas or newlines between; star and
// libarchive add the number of a user or group that they name as a fourth field.
// Where only a name stands, id is asked.
func parseACL(text string, id func(group bool, name string) (uint32, error)) ([]byte, error) {
	var acl []aclEntry
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		if i := strings.IndexByte(part, '#'); i >= 0 {
			part = part[:i] // getfacl's "#effective:r--"
		}
		if part = strings.Trim(part, " \t"); part == "" {
			continue
		}
		e, err := parseACLEntry(part, id)
		if err != nil {
			return nil, err
		}
		acl = append(acl, e)
	}
	slices.SortFunc(acl, func(a, b aclEntry) int { return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id)) })
	seen := uint16(0)
	for i, e := range acl {
		if i > 0 && acl[i-1].tag == e.tag && acl[i-1].id == e.id {
			return nil, errors.New("two entries for one user or group")
		}
		seen |= e.tag
	}
	const base = aclUserObj | aclGroupObj | aclOther
	if seen&base != base {
		return nil, errors.New("no entry for the owner, its group or others")
	}
	if seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0 {
		return nil, errors.New("no mask")
	}
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range acl {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	if len(out) > maxXattr {
		return nil, errors.New("more entries than Linux can hold")
	}
	return out, nil
}

func parseACLEntry(part string, id func(group bool, name string) (uint32, error)) (aclEntry, error) {
	e := aclEntry{id: aclNoID}
	f := strings.Split(part, ":")
	bad := fmt.Errorf("the entry %s, which is none", quote(part))
	// "other:r-x" and "mask:rwx" are how Solaris and star write those.
	if len(f) == 2 && (f[0] == "other" || f[0] == "o" || f[0] == "mask" || f[0] == "m") {
		f = []string{f[0], "", f[1]}
	}
	if len(f) < 3 || len(f) > 4 {
		return e, bad
	}
	named := f[1] != ""
	switch f[0] {
	case "user", "u":
		e.tag = aclUserObj
		if named {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if named {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return e, bad
	}
	if named && (e.tag == aclMask || e.tag == aclOther) || len(f) == 4 && !named {
		return e, bad
	}
	var err error
	if e.perm, err = parsePerm(f[2]); err != nil {
		return e, bad
	}
	if !named {
		return e, nil
	}
	number := f[1]
	if len(f) == 4 {
		number = f[3]
	}
	if v, perr := strconv.ParseUint(number, 10, 32); perr == nil && v <= maxID {
		e.id = uint32(v)
		return e, nil
	}
	if len(f) == 4 || number[0] >= '0' && number[0] <= '9' {
		return e, bad
	}
	if id == nil {
		return e, &unsupportedError{fmt.Sprintf("an access control list that names %s without a number", quote(number))}
	}
	if e.id, err = id(e.tag == aclGroup, number); err != nil {
		return e, &unsupportedError{fmt.Sprintf("an access control list that names %s: %v", quote(number), err)}
	}
	return e, nil
}

// parsePerm reads "rwx" with - for what is not given, or the digits of it.
func parsePerm(s string) (uint16, error) {
	if len(s) == 1 && s[0] >= '0' && s[0] <= '7' {
		return uint16(s[0] - '0'), nil
	}
	var perm uint16
	for i, c := range []byte(s) {
		bit := strings.IndexByte("xwr", c)
		switch {
		case c == '-' && i < 3:
		case bit >= 0 && perm&(1<<bit) == 0:
			perm |= 1 << bit
		default:
			return 0, errors.New("no permissions")
		}
	}
	if s == "" {
		return 0, errors.New("no permissions")
	}
	return perm, nil
}

// minimalACL tells whether an ACL in the kernel's form says no more than the
// mode does: the kernel then keeps only the mode.
func minimalACL(b []byte) bool { return len(b) <= 4+3*8 }
