package patch

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// The blocks of the pax interchange format (POSIX.1-2017, pax, "pax Interchange
// Format"): each entry has an extended header with all that is not text, or does
// not fit, or is finer than a second.
const blockSize = 512

// xattrKey is how GNU tar since 1.31 writes the name of an attribute, which may hold an equals sign.
var xattrKey = strings.NewReplacer("%", "%25", "=", "%3D").Replace

// headers are an entry's header blocks. link is the path that it is a hard link to. Of a file
// with holes, data are the pieces that are none, and their map follows the header.
func headers(p string, n *change.Node, link string, sparse bool, data []extent) []byte {
	name := strings.TrimPrefix(p, "/")
	typ := byte('0')
	size := n.Size
	target := n.Target
	switch n.Type {
	case change.Directory:
		typ, name = '5', name+"/"
	case change.Symlink:
		typ = '2'
	case change.CharDevice:
		typ = '3'
	case change.BlockDevice:
		typ = '4'
	case change.FIFO:
		typ = '6'
	}
	if link != "" {
		typ, target, size = '1', strings.TrimPrefix(link, "/"), 0
	}
	if typ != '0' {
		size = 0
	}
	var holes []byte
	full := name
	if sparse {
		holes = sparseMap(data, n.Size)
		size, name = int64(len(holes)), "GNUSparseFile.0/file"
		for _, x := range data {
			size += x.len
		}
	}
	records := map[string]string{"mtime": seconds(n.MtimeNS)}
	if len(name) > 100 || !ascii(name) {
		records["path"] = name
	}
	if len(target) > 100 || !ascii(target) {
		records["linkpath"] = target
	}
	if size >= 1<<33 {
		records["size"] = strconv.FormatInt(size, 10)
	}
	if n.UID >= 1<<21 {
		records["uid"] = strconv.FormatUint(uint64(n.UID), 10)
	}
	if n.GID >= 1<<21 {
		records["gid"] = strconv.FormatUint(uint64(n.GID), 10)
	}
	if link == "" {
		for key, value := range n.Xattrs {
			records["SCHILY.xattr."+xattrKey(key)] = string(value)
		}
	}
	if sparse {
		records["GNU.sparse.major"], records["GNU.sparse.minor"] = "1", "0"
		records["GNU.sparse.name"], records["GNU.sparse.realsize"] = full, strconv.FormatInt(n.Size, 10)
	}
	if records["path"] != "" || records["linkpath"] != "" {
		records["hdrcharset"] = "BINARY" // names are bytes
	}
	var body strings.Builder
	if v, ok := records["hdrcharset"]; ok {
		body.WriteString(record("hdrcharset", v)) // it speaks of those that follow
		delete(records, "hdrcharset")
	}
	for _, key := range slices.Sorted(maps.Keys(records)) {
		body.WriteString(record(key, records[key]))
	}
	out := header("PaxHeaders/liveupd", 'x', int64(body.Len()), &change.Node{Mode: 0o644}, "")
	out = append(out, body.String()...)
	out = append(out, padding(int64(body.Len()))...)
	return append(append(out, header(name, typ, size, n, target)...), holes...)
}

// sparseMap is the map of a file in GNU tar's form 1.0: the number of its pieces, and offset and
// length of each. The last one is empty and says where the file ends.
func sparseMap(data []extent, size int64) []byte {
	b := fmt.Appendf(nil, "%d\n", len(data)+1)
	for _, x := range data {
		b = fmt.Appendf(b, "%d\n%d\n", x.off, x.len)
	}
	b = fmt.Appendf(b, "%d\n0\n", size)
	return append(b, padding(int64(len(b)))...)
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// record is "LENGTH KEY=VALUE\n", where the length counts its own digits.
func record(key, value string) string {
	rest := len(" ") + len(key) + len("=") + len(value) + len("\n")
	n := rest + len(strconv.Itoa(rest))
	if len(strconv.Itoa(n)) != len(strconv.Itoa(rest)) {
		n = rest + len(strconv.Itoa(n))
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// seconds writes nanoseconds as decimal seconds.
func seconds(ns int64) string {
	s, rest := ns/1e9, ns%1e9
	sign := ""
	if ns < 0 {
		sign, s, rest = "-", -s, -rest
	}
	if rest == 0 {
		return sign + strconv.FormatInt(s, 10)
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, s, rest), "0")
}

func header(name string, typ byte, size int64, n *change.Node, target string) []byte {
	b := make([]byte, blockSize)
	octal := func(at, width int, v uint64) {
		text := strconv.FormatUint(v, 8)
		if len(text) > width-1 {
			text = strings.Repeat("7", width-1) // the extended header has it
		}
		copy(b[at:], strings.Repeat("0", width-1-len(text))+text)
	}
	copy(b[:100], name)
	octal(100, 8, uint64(n.Mode))
	octal(108, 8, uint64(n.UID))
	octal(116, 8, uint64(n.GID))
	octal(124, 12, uint64(size))
	octal(136, 12, uint64(max(n.MtimeNS, 0))/1e9)
	b[156] = typ
	copy(b[157:257], target)
	copy(b[257:], "ustar\x0000")
	if typ == '3' || typ == '4' {
		// st_rdev as makedev(3) puts it together.
		octal(329, 8, n.Rdev>>8&0xfff)
		octal(337, 8, n.Rdev&0xff|n.Rdev>>12&0xffffff00)
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func padding(size int64) []byte { return make([]byte, (blockSize-size%blockSize)%blockSize) }
