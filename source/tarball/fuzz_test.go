package tarball

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
)

// fuzzLimits keep what the fuzzer finds from costing time.
var fuzzLimits = Limits{Bytes: 4 << 20, Entries: 200, Meta: 64 << 10, Header: 64 << 10, Depth: 20, Extents: 100, Ratio: 50, RatioFrom: 1 << 20}

// FuzzUnpack: whatever comes in, nothing is written beside dest, an error leaves
// nothing, and a message holds no byte that a terminal acts upon. In a success what
// Record was told is what lies there.
func FuzzUnpack(f *testing.F) {
	for _, group := range [][]hostile{leaves(), names(), damages(), headers(), sparseMaps()} {
		for _, c := range group {
			if len(c.data) < 8<<10 {
				f.Add(c.data)
			}
		}
	}
	small := archive(dir("a"), file("a/b", "content"), hardlink("c", "a/b"), symlink("d", "c"),
		item{name: "s", typ: typeRegular, body: "ab", pax: []string{"GNU.sparse.size=9000", "GNU.sparse.map=5,1,7000,1", "SCHILY.xattr.user.k=v", "mtime=1.5"}})
	f.Add(small)
	for _, p := range packers() {
		f.Add(p.pack(f, small))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = fixSums(data)
		b := newBox(t)
		before := b.outside()
		res, nodes, err := b.unpack(nil, bytes.NewReader(data), Options{Limits: fuzzLimits, XZ: "-", Layer: len(data)%2 == 0})
		if err != nil {
			b.mustFail(before, err, "cannot unpack test.tar: ", isRefusal(err))
			return
		}
		if before != b.outside() {
			t.Error("something changed beside dest")
		}
		checkNodes(t, b.dir, nodes, res.Implied)
	})
}

// FuzzReader: the parser alone, without a file system: it ends, and what it gives
// keeps its promises.
func FuzzReader(f *testing.F) {
	for _, group := range [][]hostile{damages(), headers(), sparseMaps()} {
		for _, c := range group {
			if len(c.data) < 8<<10 {
				f.Add(c.data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newTestStream(t.Context(), fixSums(data))
		lim := fuzzLimits.withDefaults()
		r := &reader{s: s, lim: &lim, warn: func(string) {}}
		for {
			h, err := r.next()
			if err != nil {
				return
			}
			if h.size < 0 || h.stored < 0 || h.stored > h.size || h.size > lim.Bytes || h.uid == 1<<32-1 || h.gid == 1<<32-1 || h.mode > 0o7777 {
				t.Fatalf("next() = %+v", h)
			}
			if h.typ != typeRegular && h.size != 0 {
				t.Fatalf("%q of type %c has %d bytes", h.name, h.typ, h.size)
			}
			if h.sparse && checkSparse(h.extents, h.size, h.stored) != nil {
				t.Fatalf("%q has the map %v", h.name, h.extents)
			}
		}
	})
}

// fixSums gives what looks like a header its checksum: no mutation would find it,
// and all would end there.
func fixSums(data []byte) []byte {
	data = bytes.Clone(data)
	for at := 0; at+headerSize <= len(data); at += headerSize {
		if b := (*raw)(data[at : at+headerSize]); bytes.HasPrefix(b[257:], []byte("ustar")) {
			sum, _ := b.checksum()
			copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
		}
	}
	return data
}

func newTestStream(ctx context.Context, data []byte) *stream {
	ch := make(chan filled)
	go pump(ctx, bytes.NewReader(data), newPool(2), ch, func(int64) error { return nil })
	return &stream{ctx: ctx, ch: ch}
}

func FuzzPax(f *testing.F) {
	f.Add([]byte(paxBody("path=a", "mtime=1.5", "SCHILY.xattr.user.k=a\nb")))
	f.Add([]byte("9 path=ab\n"))
	f.Add([]byte("11 path=a\n\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := parsePax(b)
		if err != nil {
			return
		}
		var text []string
		for _, r := range records {
			if r.key == "" || strings.ContainsAny(r.key, "=\x00") {
				t.Fatalf("parsePax() gives the key %q", r.key)
			}
			text = append(text, r.key+"="+r.value)
		}
		again, err := parsePax([]byte(paxBody(text...)))
		if err != nil || len(again) != len(records) {
			t.Fatalf("%q does not come back: %v", text, err)
		}
		_, _ = readRecords(records, 10) // must not panic
	})
}

func FuzzTime(f *testing.F) {
	for _, s := range []string{"0", "-1.5", "1.999999999999", "-0.5", "9223372035.999999999", "-9223372036", "1e9", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ns, err := parseTime(s)
		if err == nil && (ns < 0) != strings.HasPrefix(s, "-") && ns != 0 {
			t.Fatalf("parseTime(%q) = %d", s, ns)
		}
	})
}

func FuzzNumber(f *testing.F) {
	f.Add([]byte("0000644\x00"))
	f.Add([]byte("\x80\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := number(b)
		if err == nil && v < 0 && b[0]&0xc0 != 0xc0 {
			t.Fatalf("number(%q) = %d", b, v)
		}
	})
}

func FuzzACL(f *testing.F) {
	for _, s := range []string{
		"user::rwx,group::r-x,other::r--", "u::rw-\nu:5:r--\ng::r--\nm::r--\no::---\n", "user::rwx,user:ann:r-x:1000,group::r-x,mask::rwx,other:r-x",
		"user::rwx #effective:r--,group::7,other::0",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := parseACL(s, func(bool, string) (uint32, error) { return 7, nil })
		if err != nil {
			return
		}
		if len(b) < 4+3*8 || (len(b)-4)%8 != 0 || len(b) > maxXattr {
			t.Fatalf("parseACL(%q) gives %d bytes", s, len(b))
		}
	})
}

func FuzzSparse(f *testing.F) {
	f.Add([]byte("2\n0\n5\n10\n5\n"))
	f.Add([]byte("1\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		extents, err := newSparse(50, func() (*raw, error) {
			if len(b) == 0 {
				return nil, io.EOF
			}
			r := new(raw)
			b = b[copy(r[:], b):]
			return r, nil
		})
		if err == nil && len(extents) > 50 {
			panic("more pieces than the limit")
		}
	})
}

func FuzzXZ(f *testing.F) {
	for _, p := range packers() {
		if p.name == "xz" {
			f.Add(p.pack(f, []byte("some text, some text, some text")))
			f.Add(p.pack(f, nil))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newXZReader(newTestStream(t.Context(), data))
		_, _ = readBlockwise(io.LimitReader(r, 1<<20))
	})
}

// readBlockwise reads as pump does, which guards against decoders that panic.
func readBlockwise(r io.Reader) (n int, err error) {
	buf := make([]byte, 64<<10)
	for err == nil {
		var m int
		m, err = readBlock(r, buf)
		n += m
	}
	return n, err
}
