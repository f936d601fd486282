package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// item is an entry of an archive that a test makes byte by byte, because what
// makers refuse to write is what is tried here.
type item struct {
	name, link string
	typ        byte
	mode       int64
	uid        string // field as it is written; "": this process's
	size       string // "": the body's
	mtime      string
	chksum     string
	magic      string // "": ustar; "-": none
	prefix     string
	major      string
	minor      string
	pax        []string // records of an extended header in front
	body       string
	sparse     string // the 126 bytes at 386
}

const gnuMagic = "ustar  \x00"

func (it item) bytes() []byte {
	var out []byte
	if it.pax != nil {
		out = item{name: "PaxHeaders/x", typ: typePax, body: paxBody(it.pax...)}.bytes()
	}
	var b raw
	put := func(off, n int, s string) {
		if len(s) > n {
			panic("field too long: " + s)
		}
		copy(b[off:off+n], s)
	}
	or := func(s, def string) string {
		if s == "" {
			return def
		}
		return s
	}
	if it.mode == 0 {
		it.mode = 0o644
	}
	put(0, 100, it.name)
	put(100, 8, fmt.Sprintf("%07o", it.mode))
	put(108, 8, or(it.uid, fmt.Sprintf("%07o", os.Getuid())))
	put(116, 8, fmt.Sprintf("%07o", os.Getgid()))
	put(124, 12, or(it.size, fmt.Sprintf("%011o", len(it.body))))
	put(136, 12, or(it.mtime, fmt.Sprintf("%011o", 1_600_000_000)))
	b[156] = it.typ
	put(157, 100, it.link)
	switch it.magic {
	case "":
		put(257, 8, "ustar\x0000")
	case "-":
	default:
		put(257, 8, it.magic)
	}
	if it.typ == typeChar || it.typ == typeBlock {
		put(329, 8, or(it.major, "0000001"))
		put(337, 8, or(it.minor, "0000003"))
	}
	put(345, 155, it.prefix)
	if it.sparse != "" {
		put(386, 126, it.sparse)
	}
	u, _ := b.checksum()
	put(148, 8, or(it.chksum, fmt.Sprintf("%06o\x00 ", u)))
	out = append(out, b[:]...)
	out = append(out, it.body...)
	return append(out, make([]byte, -len(it.body)&511)...)
}

// paxBody renders records with their lengths.
func paxBody(records ...string) string {
	var b strings.Builder
	for _, r := range records {
		n := len(r) + 2
		for n != len(r)+2+len(fmt.Sprint(n)) {
			n = len(r) + 2 + len(fmt.Sprint(n))
		}
		fmt.Fprintf(&b, "%d %s\n", n, r)
	}
	return b.String()
}

var endMark = make([]byte, 1024)

func archive(items ...item) []byte { return append(entries(items...), endMark...) }

func entries(items ...item) []byte {
	var out []byte
	for _, it := range items {
		out = append(out, it.bytes()...)
	}
	return out
}

func file(name, body string) item { return item{name: name, typ: typeRegular, body: body} }
func dir(name string) item        { return item{name: name, typ: typeDir, mode: 0o755} }
func symlink(name, to string) item {
	return item{name: name, typ: typeSymlink, link: to, mode: 0o777}
}
func hardlink(name, to string) item { return item{name: name, typ: typeLink, link: to} }

// field is a GNU sparse number of 12 bytes.
func field(v int64) string { return fmt.Sprintf("%011o\x00", v) }

// box is a destination with something beside it that must stay as it is.
type box struct {
	t    testing.TB
	top  string
	dest *sys.FD
	dir  string
}

func newBox(t testing.TB) *box {
	t.Helper()
	top := t.TempDir()
	b := &box{t: t, top: top, dir: filepath.Join(top, "dest")}
	for _, err := range []error{
		os.Mkdir(b.dir, 0o700),
		os.Mkdir(filepath.Join(top, "outside"), 0o755),
		os.WriteFile(filepath.Join(top, "outside/file"), []byte("untouched"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if b.dest, err = sys.OpenRoot(b.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.dest.Close() })
	return b
}

// outside describes all that lies beside dest, with link counts and times.
func (b *box) outside() string {
	b.t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(b.top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == b.dir {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := []byte(nil)
		if d.Type().IsRegular() {
			content, err = os.ReadFile(p)
		}
		fmt.Fprintf(&out, "%s %v %d %v %q\n", p, info.Mode(), info.Size(), info.ModTime(), content)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return out.String()
}

// list gives the names in dest, with a slash behind folders.
func (b *box) list() []string {
	b.t.Helper()
	var out []string
	err := filepath.WalkDir(b.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == b.dir {
			return err
		}
		rel, err := filepath.Rel(b.dir, p)
		if d.IsDir() {
			rel += "/"
		}
		out = append(out, rel)
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func (b *box) unpack(k *sys.Kernel, in io.Reader, o Options) (*Result, map[string]*change.Node, error) {
	b.t.Helper()
	nodes := map[string]*change.Node{}
	if o.Record == nil {
		o.Record = func(p string, n *change.Node) { nodes[p] = n }
	}
	res, err := Unpack(b.t.Context(), k, in, "test.tar", b.dest, o)
	return res, nodes, err
}

// mustFail checks an error and that nothing is left of what led to it.
func (b *box) mustFail(before string, err error, want string, refused bool) {
	b.t.Helper()
	if err == nil {
		b.t.Fatalf("Unpack() = nil; want %q; dest holds %q", want, b.list())
	}
	if !strings.Contains(err.Error(), want) {
		b.t.Errorf("Unpack() = %v; want %q", err, want)
	}
	if got := errors.Is(err, change.ErrVerification); got != refused {
		b.t.Errorf("Unpack() = %v: refused by verification = %v; want %v", err, got, refused)
	}
	for _, c := range []byte(err.Error()) {
		if c < ' ' || c >= 0x7f {
			b.t.Errorf("Unpack() = %q holds the byte %#x", err, c)
			break
		}
	}
	if left := b.list(); len(left) > 0 {
		b.t.Errorf("dest still holds %q", left)
	}
	if diff := cmp.Diff(before, b.outside()); diff != "" {
		b.t.Errorf("something changed beside dest:\n%s", diff)
	}
}

func (b *box) mustHave(err error, want []string) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("Unpack() = %v", err)
	}
	if diff := cmp.Diff(want, b.list()); diff != "" {
		b.t.Errorf("dest holds (-want +got):\n%s", diff)
	}
}

func read(b []byte) io.Reader { return bytes.NewReader(b) }

func isRefusal(err error) bool { return errors.Is(err, change.ErrVerification) }
