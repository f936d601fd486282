package tarball

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/liveupd/liveupd/change"
)

// Archives that look odd and are honest are unpacked.
func TestOdd(t *testing.T) {
	long := strings.Repeat("l", 200)
	for _, c := range []struct {
		name string
		data []byte
		o    Options
		want []string
		warn string
	}{
		{name: "nothing but an end", data: endMark},
		{name: "root alone", data: archive(dir("./"))},
		{name: "root by several names", data: archive(dir("./"), dir("."), dir(".//")), want: nil},
		{name: "names of many spellings", data: archive(file("./a//b/./c", ""), file(".//d", "")), want: []string{"a/", "a/b/", "a/b/c", "d"}},
		{name: "folders twice, alike", data: archive(dir("a/"), dir("./a")), want: []string{"a/"}},
		{name: "folder behind what lies in it", data: archive(file("a/b", ""), dir("a")), want: []string{"a/", "a/b"}},
		{name: "old folder", data: archive(item{name: "a/", typ: 0, magic: "-"}, item{name: "a/f", typ: 0, magic: "-", body: "x"}), want: []string{"a/", "a/f"}},
		{name: "contiguous file", data: archive(item{name: "a", typ: '7', body: "x"}), want: []string{"a"}},
		{name: "dots that are names", data: archive(file("...", ""), file("a..", ""), file("..a", "")), want: []string{"...", "..a", "a.."}},
		{name: "almost the store", data: archive(file(".liveupd2", ""), file("x.liveupd", "")), want: []string{".liveupd2", "x.liveupd"}},
		{name: "prefix", data: archive(item{name: "f", prefix: "p/" + long[:100], typ: '0'}), want: []string{"p/", "p/" + long[:100] + "/", "p/" + long[:100] + "/f"}},
		{name: "prefix field of GNU is no prefix", data: archive(item{name: "f", prefix: "00000000000", typ: '0', magic: gnuMagic}), want: []string{"f"}},
		{name: "long name", data: archive(item{name: "L", typ: 'L', magic: gnuMagic, body: long + "\x00"}, item{name: "x", typ: '0', magic: gnuMagic}), want: []string{long}},
		{name: "long name without its NUL byte", data: archive(item{name: "L", typ: 'L', magic: gnuMagic, body: long}, item{name: "x", typ: '0', magic: gnuMagic}), want: []string{long}},
		{name: "long name and the same in pax", data: archive(item{name: "L", typ: 'L', magic: gnuMagic, body: "y\x00"}, item{name: "x", typ: '0', pax: []string{"path=y"}}), want: []string{"y"}},
		{name: "checksum of signed bytes", data: archive(signed(item{name: "\xe4\xf6\xfc", typ: '0'})), want: []string{"\xe4\xf6\xfc"}},
		{name: "fields with blanks", data: archive(item{name: "a", typ: '0', uid: "     0 \x00", size: "          0 ", mtime: "          0 "}), want: []string{"a"}},
		{name: "empty fields", data: archive(item{name: "a", typ: '0', mtime: "\x00"}), want: []string{"a"}},
		{name: "one block of zeros", data: append(entries(file("a", "")), make([]byte, 512)...), want: []string{"a"}, warn: "one block of zeros"},
		{name: "a tape's padding", data: append(archive(file("a", "")), make([]byte, 1<<20)...), want: []string{"a"}},
		{name: "Sun's extended header", data: archive(item{name: "X", typ: 'X', body: paxBody("path=b")}, file("a", "")), want: []string{"b"}},
		{name: "the last record counts", data: archive(item{name: "a", typ: '0', pax: []string{"path=b", "path=c"}}), want: []string{"c"}},
		{name: "an empty record takes back", data: archive(item{name: "a", typ: '0', pax: []string{"path=", "size=", "uid="}, body: "x"}), want: []string{"a"}},
		{name: "git's global header", data: archive(item{name: "pax_global_header", typ: 'g', body: paxBody("comment=3f9c")}, file("a", "")), want: []string{"a"}},
		{name: "unknown records", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.fflags=nodump", "VENDOR.x=1"}}), want: []string{"a"}, warn: `the records "SCHILY.fflags" were not used`},
		{name: "another machine's attributes", data: archive(item{name: "a", typ: '0', pax: []string{"SCHILY.xattr.trusted.overlay.opaque=y", "SCHILY.xattr.security.evm=x"}}), want: []string{"a"}, warn: "trusted.overlay.opaque"},
		{name: "symlinks to anywhere", data: archive(symlink("a", "/etc/shadow"), symlink("b", "../../.."), symlink("c", ".liveupd")), want: []string{"a", "b", "c"}},
		{name: "hard link to a hard link", data: archive(file("a", "x"), hardlink("b", "a"), hardlink("d/c", "./b")), want: []string{"a", "b", "d/", "d/c"}},
		{name: "whiteouts that are files", data: archive(file(".wh.a", ""), file("d/.wh..wh..opq", "")), want: []string{".wh.a", "d/", "d/.wh..wh..opq"}},
		{name: "left out", data: archive(dir("a"), file("a/b", "x"), file("c/d/e", "x"), file("f", "y")), o: Options{Skip: func(p string) bool { return p == "/a" || p == "/c/d" }}, want: []string{"c/", "f"}},
		{name: "sparse without holes", data: archive(item{name: "s", typ: '0', body: "abc", pax: []string{"GNU.sparse.size=3"}}), want: []string{"s"}},
		{name: "sparse that is empty", data: archive(item{name: "s", typ: '0', pax: []string{"GNU.sparse.size=0", "GNU.sparse.map="}}), want: []string{"s"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			before := b.outside()
			res, nodes, err := b.unpack(nil, read(c.data), c.o)
			b.mustHave(err, c.want)
			if b.outside() != before {
				t.Error("something changed beside dest")
			}
			checkNodes(t, b.dir, nodes, res.Implied)
			if got := strings.Join(res.Warnings, "; "); !strings.Contains(got, c.warn) || c.warn == "" && got != "" {
				t.Errorf("Warnings = %q; want %q", got, c.warn)
			}
			if want := change.Digest(sha256.Sum256(c.data)); res.Digest != want || res.Read != int64(len(c.data)) {
				t.Errorf("Result has the digest %v of %d bytes; want %v of %d", res.Digest, res.Read, want, len(c.data))
			}
		})
	}
}

// signed gives an item the checksum that old programs computed with signed bytes.
func signed(it item) item {
	b := (*raw)(it.bytes())
	_, sum := b.checksum()
	it.chksum = strings.Repeat("0", 6)
	digits := []byte(it.chksum)
	for i := 5; i >= 0; i, sum = i-1, sum/8 {
		digits[i] = byte('0' + sum%8)
	}
	it.chksum = string(digits) + "\x00 "
	return it
}

func TestLayer(t *testing.T) {
	b := newBox(t)
	data := archive(dir("etc"), file("etc/.wh.gone", ""), file("etc/.wh.gone", ""), file("var/.wh..wh..opq", ""), file(".wh.top", ""),
		file(".wh..wh..opq", ""), file(".wh..wh.plnk/1.2", ""), file("etc/new", "x"))
	res, _, err := b.unpack(nil, read(data), Options{Layer: true})
	b.mustHave(err, []string{"etc/", "etc/new"})
	if diff := cmp.Diff([]string{"/etc/gone", "/top"}, res.Removed); diff != "" {
		t.Errorf("Removed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/", "/var"}, res.Opaque); diff != "" {
		t.Errorf("Opaque (-want +got):\n%s", diff)
	}
}

// The root's entry is told and not applied, and folders that no entry names are listed.
func TestRootAndImplied(t *testing.T) {
	b := newBox(t)
	res, nodes, err := b.unpack(nil, read(archive(item{name: "./", typ: '5', mode: 0o755}, file("a/b/c", ""), item{name: "a", typ: '5', mode: 0o711})), Options{})
	b.mustHave(err, []string{"a/", "a/b/", "a/b/c"})
	if res.Root == nil || res.Root.Mode != 0o755 {
		t.Errorf("Root = %+v; want mode 0755", res.Root)
	}
	if diff := cmp.Diff([]string{"/a/b"}, res.Implied); diff != "" {
		t.Errorf("Implied (-want +got):\n%s", diff)
	}
	if nodes["/a/b"] != nil || nodes["/a"] == nil || nodes["/"] != nil {
		t.Errorf("Record() was told of %v", nodes)
	}
	info, err := os.Stat(b.dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("dest has the mode %v, %v; want 0700", info.Mode(), err)
	}
	if info, err = os.Stat(filepath.Join(b.dir, "a/b")); err != nil || info.Mode().Perm() != 0o755 || info.ModTime().Unix() != 0 {
		t.Errorf("an implied folder is %v of %v, %v; want 0755 of 1970", info.Mode(), info.ModTime(), err)
	}
}

// dest must be empty and closed: what is refused there is left as it is.
func TestDest(t *testing.T) {
	b := newBox(t)
	if err := os.Chmod(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.unpack(nil, read(archive(file("a", ""))), Options{}); err == nil || !strings.Contains(err.Error(), "has the mode 0755, not 0700") {
		t.Errorf("Unpack() into an open folder = %v", err)
	}
	if err := os.Chmod(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := b.unpack(nil, read(archive(file("a", ""))), Options{})
	if err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("Unpack() into a full folder = %v", err)
	}
	b.mustHave(nil, []string{"mine"})
}

type packer struct {
	name string
	pack func(t testing.TB, b []byte) []byte
}

func packers() []packer {
	return []packer{
		{"gzip", func(t testing.TB, b []byte) []byte {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			return closed(t, w, b, &out)
		}},
		{"xz", func(t testing.TB, b []byte) []byte {
			var out bytes.Buffer
			w, err := xz.NewWriter(&out)
			if err != nil {
				t.Fatal(err)
			}
			return closed(t, w, b, &out)
		}},
		{"zstd", func(t testing.TB, b []byte) []byte {
			var out bytes.Buffer
			w, err := zstd.NewWriter(&out)
			if err != nil {
				t.Fatal(err)
			}
			return closed(t, w, b, &out)
		}},
		{"bzip2", func(t testing.TB, b []byte) []byte { // Go only reads it
			t.Helper()
			name := filepath.Join(t.TempDir(), "x")
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			command(t, "bzip2", name)
			out, err := os.ReadFile(name + ".bz2")
			if err != nil {
				t.Fatal(err)
			}
			return out
		}},
	}
}

func closed(t testing.TB, w interface {
	Write([]byte) (int, error)
	Close() error
}, b []byte, out *bytes.Buffer,
) []byte {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Each compression is read in one piece and in several, by both decoders of xz,
// and refused where it is damaged, cut short, or followed by something else.
func TestCompressions(t *testing.T) {
	data := archive(file("a", strings.Repeat("some content ", 60_000)), file("b", "x"))
	for _, p := range packers() {
		for _, o := range []Options{{}, {XZ: "-"}} {
			if p.name != "xz" && o.XZ != "" {
				continue
			}
			t.Run(p.name+o.XZ, func(t *testing.T) {
				whole := p.pack(t, data)
				several := append(append(p.pack(t, data[:700]), p.pack(t, nil)...), p.pack(t, data[700:])...)
				for _, good := range [][]byte{whole, several} {
					b := newBox(t)
					res, _, err := b.unpack(nil, read(good), o)
					b.mustHave(err, []string{"a", "b"})
					if res.Compression != p.name || res.Digest != change.Digest(sha256.Sum256(good)) {
						t.Errorf("Result is %q with %v", res.Compression, res.Digest)
					}
				}
				refuse := func(what string, bad []byte, want string) {
					t.Helper()
					b := newBox(t)
					before := b.outside()
					_, _, err := b.unpack(nil, read(bad), o)
					t.Logf("%s: %v", what, err)
					b.mustFail(before, err, want, true)
				}
				refuse("cut", whole[:len(whole)-3], p.name)
				refuse("cut in half", whole[:len(whole)/2], p.name)
				refuse("garbage behind", append(bytes.Clone(whole), "garbage!"...), p.name)
				refuse("a tar stream behind", append(bytes.Clone(whole), data...), p.name)
				for _, at := range []int{len(whole) / 3, len(whole) / 2, len(whole) - 9} {
					bad := bytes.Clone(whole)
					bad[at] ^= 0x10
					if p.name == "gzip" && at == len(whole)-9 {
						bad[len(whole)-6] ^= 1 // the checksum
					}
					refuse("damaged", bad, "")
				}
				refuse("compressed twice", p.pack(t, whole), "it is no tar archive")
				refuse("truncated inside", p.pack(t, data[:len(data)-1024]), "has no end mark")
			})
		}
	}
}

// xz streams of other kinds than the module's writer makes, by the program itself.
func TestXZKinds(t *testing.T) {
	top := t.TempDir()
	name := filepath.Join(top, "t.tar")
	data := archive(file("a", strings.Repeat("some content ", 60_000)), file("b", "x"))
	for _, args := range [][]string{
		{"-0"},
		{"-9e"},
		{"--check=none"},
		{"--check=crc32"},
		{"--check=sha256"},
		{"--block-size=100000", "-T2"},
		{"--lzma2=dict=4KiB"},
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, "xz", append(args, "-f", name)...)
		packed, err := os.ReadFile(name + ".xz")
		if err != nil {
			t.Fatal(err)
		}
		padded := append(append(bytes.Clone(packed), 0, 0, 0, 0, 0, 0, 0, 0), packed[:0]...)
		for _, o := range []Options{{}, {XZ: "-"}} {
			for _, in := range [][]byte{packed, padded} {
				b := newBox(t)
				_, _, err := b.unpack(nil, read(in), o)
				b.mustHave(err, []string{"a", "b"})
			}
		}
	}
	// What only the program can do is said so by the decoder, and a window that is too large by both.
	for _, c := range []struct{ arg, o, want string }{
		{"--x86", "-", "a filter beside LZMA2"},
		{"--lzma2=dict=512MiB", "-", "it looks back 512 MiB, more than 128"},
		{"--lzma2=dict=512MiB", "", "it looks back more than 128 MiB"},
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{c.arg, "-f", name}
		if c.arg == "--x86" {
			args = append([]string{"--x86", "--lzma2"}, args[1:]...)
		}
		command(t, "xz", args...)
		packed, err := os.ReadFile(name + ".xz")
		if err != nil {
			t.Fatal(err)
		}
		b := newBox(t)
		before := b.outside()
		_, _, err = b.unpack(nil, read(packed), Options{XZ: c.o})
		b.mustFail(before, err, c.want, false)
	}
}

func TestForeign(t *testing.T) {
	for magic, want := range map[string]string{
		"PK\x03\x04": "kind zip", "LZIP\x01": "kind lzip", "\x04\x22\x4d\x18": "kind lz4", "!<arch>\ndebian-binary": "Debian package",
		"070701": "kind cpio", "hsqs": "kind squashfs", "7z\xbc\xaf\x27\x1c": "7-Zip",
	} {
		b := newBox(t)
		before := b.outside()
		_, _, err := b.unpack(nil, strings.NewReader(magic+strings.Repeat(".", 2000)), Options{})
		b.mustFail(before, err, want, false)
	}
}
