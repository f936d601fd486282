package tree

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/trust"
)

// The manifest of digests is text, one line for each path, and there is
// exactly one text for one tree: paths ascend bytewise, fields are separated by
// one space, numbers have no leading zeros, and every byte that need not be
// escaped is not. What differs from that is refused.
//
//	liveupd-manifest 1
//	name NAME                 free text, escaped
//	version VERSION           free text, escaped
//	sequence NUMBER
//	bootme true|false
//	expires SECONDS           since the epoch; only where it expires
//	signed SECONDS            since the epoch; only where the signer said when
//	revokes ID,ID,...         minisign key IDs, ascending; only where it revokes any
//	toml SHA256|-             digest of liveupd.toml, - where there is none
//	TYPE MODE UID GID SIZE DATA XATTRS PATH
//	...
//
// TYPE is f (regular file), d (directory), l (symlink), c and b (character
// and block device), p (FIFO), s (socket). MODE is st_mode & 07777 as four
// octal digits. SIZE is the bytes of a regular file, else 0. DATA is the
// SHA-256 of a regular file in hexadecimal, the target of a symlink (escaped),
// st_rdev of a device in decimal, else -. XATTRS is - or KEY=BASE64, ascending by
// key and joined with commas, keys escaped. PATH is absolute and escaped. The
// root itself is not listed: an update never changes it.
//
// Escaping is lossless for any bytes: what is not printable ASCII, and
// space, backslash, comma and equals sign, become \xHH in lower case. An empty
// text is \e. The line ends with one newline, the last one too.
const magic = "liveupd-manifest 1"

// maxManifest bounds what is read into memory: some 800,000 paths.
const maxManifest = 128 << 20

const typeLetters = "?fdlcbps" // indexed by change.Type

// header is what the manifest says of the tree as a whole.
type header struct {
	trust.Head
	Bootme bool
	TOML   change.Digest // zero: there is no liveupd.toml
}

// digests is a parsed manifest. It keeps the text and where each line starts,
// which for 100,000 paths is some 15 MB, a third of what nodes would take;
// a line is parsed again when its path is asked for.
type digests struct {
	header header
	text   []byte
	lines  []uint32        // offset of each path's line, ascending by path
	seen   []atomic.Uint32 // one bit for each line: Claim has been asked for it
}

// parseManifest reads the whole manifest and refuses whatever the format does
// not allow, so that later reads of single lines cannot fail.
func parseManifest(text []byte) (*digests, error) {
	if len(text) > maxManifest {
		return nil, fmt.Errorf("longer than %d bytes", maxManifest)
	}
	d := &digests{text: text}
	off, no := 0, 0
	next := func() (string, error) {
		no++
		end := bytes.IndexByte(text[off:], '\n')
		if end < 0 {
			return "", fmt.Errorf("line %d: not ended by a newline", no)
		}
		line := string(text[off : off+end])
		off += end + 1
		return line, nil
	}
	if err := d.header.parse(next); err != nil {
		return nil, fmt.Errorf("line %d: %w", no, err)
	}
	dirs := map[string]bool{"/": true}
	last := ""
	for off < len(text) {
		start := off
		line, err := next()
		if err != nil {
			return nil, err
		}
		p, node, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", no, err)
		}
		if p <= last {
			return nil, fmt.Errorf("line %d: %s does not come after %s", no, quote(p), quote(last))
		}
		if !dirs[path.Dir(p)] {
			return nil, fmt.Errorf("line %d: %s lies in no listed directory", no, quote(p))
		}
		if node.IsDir() {
			dirs[p] = true
		}
		last = p
		d.lines = append(d.lines, uint32(start))
	}
	d.seen = make([]atomic.Uint32, (len(d.lines)+31)/32)
	return d, nil
}

func (h *header) parse(next func() (string, error)) error {
	line, err := next()
	if err != nil {
		return err
	}
	if line != magic {
		return fmt.Errorf("want %q, have %.60q", magic, line)
	}
	passed := false // the line is still to be read as the next key
	for _, field := range []struct {
		key      string
		optional bool
		set      func(string) error
	}{
		{"name", false, func(v string) (err error) { h.Name, err = unescape(v); return err }},
		{"version", false, func(v string) (err error) { h.Version, err = unescape(v); return err }},
		{"sequence", false, func(v string) (err error) { h.Sequence, err = parseUint(v, 64); return err }},
		{"bootme", false, func(v string) (err error) { h.Bootme, err = parseBool(v); return err }},
		{"expires", true, func(v string) (err error) { h.Expires, err = parseSeconds(v); return err }},
		{"signed", true, func(v string) (err error) { h.Signed, err = parseSeconds(v); return err }},
		{"revokes", true, func(v string) (err error) { h.Revokes, err = parseIDs(v); return err }},
		{"toml", false, func(v string) (err error) { h.TOML, err = parseOptional(v); return err }},
	} {
		if !passed {
			if line, err = next(); err != nil {
				return err
			}
		}
		value, ok := strings.CutPrefix(line, field.key+" ")
		if passed = !ok && field.optional; passed {
			continue
		}
		if !ok {
			return fmt.Errorf("want the key %s, have %.60q", field.key, line)
		}
		if err := field.set(value); err != nil {
			return err
		}
	}
	return h.Check()
}

func (h *header) append(b []byte) []byte {
	b = fmt.Appendf(b, "%s\nname %s\nversion %s\nsequence %d\nbootme %t\n",
		magic, escape(h.Name), escape(h.Version), h.Sequence, h.Bootme)
	if h.Expires != 0 {
		b = fmt.Appendf(b, "expires %d\n", h.Expires)
	}
	if h.Signed != 0 {
		b = fmt.Appendf(b, "signed %d\n", h.Signed)
	}
	for i, id := range h.Revokes {
		before := ","
		if i == 0 {
			before = "revokes "
		}
		b = append(b, before+id.String()...)
	}
	if len(h.Revokes) > 0 {
		b = append(b, '\n')
	}
	b = append(b, "toml "...)
	if h.TOML.IsZero() {
		return append(b, "-\n"...)
	}
	return append(b, h.TOML.String()+"\n"...)
}

// appendLine renders one path; it is the inverse of parseLine.
func appendLine(b []byte, p string, n *change.Node) []byte {
	data := "-"
	switch n.Type {
	case change.Regular:
		data = n.Digest.String()
	case change.Symlink:
		data = escape(n.Target)
	case change.CharDevice, change.BlockDevice:
		data = strconv.FormatUint(n.Rdev, 10)
	}
	b = fmt.Appendf(b, "%c %04o %d %d %d %s ", typeLetters[n.Type], n.Mode, n.UID, n.GID, n.Size, data)
	if len(n.Xattrs) == 0 {
		b = append(b, '-')
	}
	for i, key := range slices.Sorted(maps.Keys(n.Xattrs)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%s=%s", escape(key), base64.StdEncoding.EncodeToString(n.Xattrs[key]))
	}
	b = append(b, ' ')
	b = append(b, escape(p)...)
	return append(b, '\n')
}

// parseLine reads one path's line, without its newline.
func parseLine(line string) (string, *change.Node, error) {
	f := strings.Split(line, " ")
	if len(f) != 8 {
		return "", nil, fmt.Errorf("%d fields, want 8", len(f))
	}
	p, err := unescape(f[7])
	if err != nil {
		return "", nil, err
	}
	if err := checkListed(p); err != nil {
		return "", nil, err
	}
	n := new(change.Node)
	t := strings.Index(typeLetters, f[0])
	if len(f[0]) != 1 || t < 1 {
		return "", nil, fmt.Errorf("%s has the unknown type %.20q", quote(p), f[0])
	}
	n.Type = change.Type(t)
	mode, err := strconv.ParseUint(f[1], 8, 12)
	if err != nil {
		return "", nil, fmt.Errorf("%s has the mode %.20q, which is not four octal digits", quote(p), f[1])
	}
	n.Mode = uint32(mode)
	uid, err := parseUint(f[2], 32)
	if err != nil {
		return "", nil, err
	}
	gid, err := parseUint(f[3], 32)
	if err != nil {
		return "", nil, err
	}
	n.UID, n.GID = uint32(uid), uint32(gid)
	size, err := parseUint(f[4], 63)
	if err != nil {
		return "", nil, err
	}
	n.Size = int64(size)
	switch n.Type {
	case change.Regular:
		n.Digest, err = parseDigest(f[5])
		if err == nil && n.Digest.IsZero() {
			err = fmt.Errorf("%s has no digest", quote(p)) // zero means "not read" to all that compare
		}
	case change.Symlink:
		n.Target, err = unescape(f[5])
	case change.CharDevice, change.BlockDevice:
		n.Rdev, err = parseUint(f[5], 64)
	}
	if err != nil {
		return "", nil, err
	}
	if n.Type == change.Symlink && (n.Target == "" || strings.ContainsRune(n.Target, 0)) {
		return "", nil, fmt.Errorf("%s has the target %s, which no symlink can have", quote(p), quote(n.Target))
	}
	if n.Type != change.Regular && n.Size != 0 {
		return "", nil, fmt.Errorf("%s is no regular file and has a size", quote(p))
	}
	if n.Xattrs, err = parseXattrs(f[6]); err != nil {
		return "", nil, fmt.Errorf("%s: %w", quote(p), err)
	}
	// One text for one tree: what would be written otherwise is refused here,
	// for all fields at once.
	if again := appendLine(nil, p, n); string(again[:len(again)-1]) != line {
		return "", nil, fmt.Errorf("%s is not in canonical form", quote(p))
	}
	return p, n, nil
}

func parseXattrs(s string) (map[string][]byte, error) {
	if s == "-" {
		return nil, nil
	}
	out := map[string][]byte{}
	for part := range strings.SplitSeq(s, ",") {
		key, val, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("extended attribute %.60q has no value", part)
		}
		name, err := unescape(key)
		if err != nil {
			return nil, err
		}
		if name == "" || strings.ContainsRune(name, 0) || change.MachineXattr(name) {
			return nil, fmt.Errorf("extended attribute %s cannot be listed", quote(name))
		}
		raw, err := base64.StdEncoding.DecodeString(val)
		if err != nil {
			return nil, fmt.Errorf("cannot decode extended attribute %s: %w", quote(name), err)
		}
		out[name] = raw
	}
	return out, nil
}

// checkListed refuses paths that no update can have.
func checkListed(p string) error {
	switch {
	case !strings.HasPrefix(p, "/") || p == "/" || path.Clean(p) != p || strings.ContainsRune(p, 0):
		return fmt.Errorf("%s is not an absolute, clean path below the root", quote(p))
	case slices.Contains(strings.Split(p, "/"), storeName):
		return fmt.Errorf("%s lies in %s, which is liveupd's own", quote(p), storeName)
	case skipped(p):
		return fmt.Errorf("%s describes the tree and cannot be listed in it", quote(p))
	}
	return nil
}

// find gives the number of p's line.
func (d *digests) find(p string) (int, bool) {
	return slices.BinarySearchFunc(d.lines, p, func(off uint32, p string) int {
		return strings.Compare(pathOf(d.line(off)), p)
	})
}

func (d *digests) line(off uint32) []byte {
	rest := d.text[off:]
	return rest[:bytes.IndexByte(rest, '\n')]
}

// pathOf reads only the path of a line that parseLine has accepted before.
func pathOf(line []byte) string {
	field := string(line[bytes.LastIndexByte(line, ' ')+1:])
	p, err := unescape(field)
	if err != nil {
		return field
	}
	return p
}

// mark notes that line i was asked for; safe for concurrent use.
func (d *digests) mark(i int) { d.seen[i/32].Or(1 << (i % 32)) }

func (d *digests) marked(i int) bool { return d.seen[i/32].Load()&(1<<(i%32)) != 0 }

func parseUint(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil || s != strconv.FormatUint(n, 10) {
		return 0, fmt.Errorf("%.30q is not a decimal number of at most %d bits", s, bits)
	}
	return n, nil
}

// parseSeconds reads a time; where there is none, there is no line.
func parseSeconds(s string) (int64, error) {
	n, err := parseUint(s, 63)
	if err == nil && n == 0 {
		err = errors.New("the time is zero")
	}
	return int64(n), err
}

// parseIDs reads key IDs.
func parseIDs(s string) ([]trust.KeyID, error) {
	var out []trust.KeyID
	for part := range strings.SplitSeq(s, ",") {
		id, err := trust.ParseKeyID(part)
		if err == nil && id.String() != part {
			err = fmt.Errorf("%.40q is not a key ID of 16 digits in capitals", part)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, nil
}

func parseBool(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, fmt.Errorf("%.30q is neither true nor false", s)
	}
	return s == "true", nil
}

// parseOptional reads a digest, or - for none.
func parseOptional(s string) (change.Digest, error) {
	if s == "-" {
		return change.Digest{}, nil
	}
	d, err := parseDigest(s)
	if err == nil && d.IsZero() {
		err = errors.New("the digest is zero")
	}
	return d, err
}

func parseDigest(s string) (change.Digest, error) {
	var d change.Digest
	if len(s) != 2*len(d) || s != strings.ToLower(s) {
		return d, fmt.Errorf("%.80q is not a SHA-256 in lower-case hexadecimal", s)
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return d, fmt.Errorf("%.80q is not a SHA-256: %w", s, err)
	}
	return d, nil
}

// escape renders any bytes as one word of printable ASCII.
func escape(s string) string {
	if s == "" {
		return `\e`
	}
	plain := true
	for i := range len(s) {
		plain = plain && isPlain(s[i])
	}
	if plain && s != "-" {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		// A lone "-" stands for "nothing" in some fields.
		if isPlain(s[i]) && s != "-" {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		}
	}
	return b.String()
}

func isPlain(c byte) bool { return c > ' ' && c < 0x7f && c != '\\' && c != ',' && c != '=' }

// unescape is the inverse of escape, and refuses what escape would not write.
func unescape(s string) (string, error) {
	if s == `\e` {
		return "", nil
	}
	out := s
	if strings.IndexByte(s, '\\') >= 0 {
		b := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			if s[i] != '\\' {
				b = append(b, s[i])
				continue
			}
			if i+4 > len(s) || s[i+1] != 'x' {
				return "", fmt.Errorf("%.60q holds an incomplete escape", s)
			}
			c, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
			if err != nil {
				return "", fmt.Errorf("%.60q holds an escape that is not hexadecimal", s)
			}
			b = append(b, byte(c))
			i += 3
		}
		out = string(b)
	}
	if escape(out) != s {
		return "", fmt.Errorf("%.60q is not escaped the one way that is allowed", s)
	}
	return out, nil
}

// quote renders a path for a message: bytes that are not text cannot reach a terminal.
func quote(p string) string {
	if escape(p) == p {
		return p
	}
	return strconv.QuoteToASCII(p)
}
