package tarball

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// sample has one of all that is made by different calls.
func sample() []byte {
	items := []item{
		dir("./"),
		dir("a"),
		file("a/small", "x"),
		file("a/empty\n\x1b[31m\xff", ""),
		file("a/large", strings.Repeat("0123456789", 200_000)),
		symlink("a/s", "small"),
		hardlink("b", "a/small"),
		hardlink("c/d/e", "a/large"),
		{name: "fifo", typ: typeFIFO},
		{name: "x", typ: typeRegular, pax: []string{"SCHILY.xattr.user.k=v", "mtime=1.5"}},
		{name: "sp", typ: typeRegular, body: "ab", pax: []string{"GNU.sparse.size=90000", "GNU.sparse.map=5,1,70000,1"}},
		{name: "acl", typ: typeDir, pax: []string{"SCHILY.acl.default=user::rwx,group::r-x,other::r-x"}},
	}
	return archive(items...)
}

// A fault at each mutating call leaves nothing, and so does a short write none.
func TestFaults(t *testing.T) {
	data := sample()
	var calls atomic.Int64
	count := sys.WithHook(func(sys.Call) sys.Fault { calls.Add(1); return sys.Fault{} })
	b := newBox(t)
	if _, _, err := b.unpack(count, read(data), Options{Workers: 2}); err != nil {
		t.Fatal(err)
	}
	total := calls.Load()
	b = newBox(t)
	before := b.outside()
	step := int64(1)
	for n := int64(1); n <= total; n += step {
		for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EPERM} {
			var at atomic.Int64
			var hit sync.Map
			k := sys.WithHook(func(c sys.Call) sys.Fault {
				if at.Add(1) == n {
					hit.Store("call", c.Name)
					return sys.Fault{Err: errno}
				}
				return sys.Fault{}
			})
			res, _, err := b.unpack(k, read(data), Options{Workers: 2})
			if err == nil {
				t.Fatalf("call %d failing with %v: Unpack() = %+v", n, errno, res)
			}
			what, _ := hit.Load("call")
			if !errors.Is(err, errno) || errors.Is(err, change.ErrVerification) {
				t.Errorf("call %d (%v) failing with %v: Unpack() = %v", n, what, errno, err)
			}
			if text := err.Error(); strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
				t.Errorf("Unpack() = %q", text)
			}
			var hint *change.HintError
			if errors.As(err, &hint) != (errno == syscall.ENOSPC) {
				t.Errorf("Unpack() = %v with the hint %+v", err, hint)
			}
			if left := b.list(); len(left) > 0 {
				t.Fatalf("call %d (%v) failing with %v leaves %q", n, what, errno, left)
			}
		}
	}
	short := sys.WithHook(func(c sys.Call) sys.Fault { return sys.Fault{Short: max(1, c.Len/3)} })
	_, nodes, err := b.unpack(short, read(data), Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkNodes(t, b.dir, nodes, []string{"/c", "/c/d"})
	if before != b.outside() {
		t.Error("something changed beside dest")
	}
	t.Logf("%d calls, each with 3 errors", total)
}

// The negative control of the test above: without the clean-up's calls something is left.
func TestFaultsControl(t *testing.T) {
	b := newBox(t)
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "linkat" {
			return sys.Fault{Err: syscall.EIO}
		}
		return sys.Fault{Skip: c.Name == "unlinkat"}
	})
	_, _, err := b.unpack(k, read(sample()), Options{})
	if err == nil || len(b.list()) == 0 {
		t.Errorf("Unpack() = %v leaves %q; want an error and files", err, b.list())
	}
}

// A failed clean-up is told beside what led to it.
func TestCleanupFails(t *testing.T) {
	b := newBox(t)
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "unlinkat" {
			return sys.Fault{Err: syscall.EROFS}
		}
		return sys.Fault{}
	})
	_, _, err := b.unpack(k, read(sample()[:6000]), Options{})
	if err == nil || !strings.Contains(err.Error(), "truncated") || !strings.Contains(err.Error(), "cannot clean up") || !errors.Is(err, syscall.EROFS) {
		t.Errorf("Unpack() = %v; want the archive's fault and the clean-up's", err)
	}
}

// A ctx that ends at any time ends Unpack with its cause and leaves nothing.
func TestCancel(t *testing.T) {
	data := sample()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	tried := 0
	for _, in := range [][]byte{data, packed.Bytes()} {
		b := newBox(t)
		for n := int64(1); ; n += 2 {
			tried++
			ctx, cancel := context.WithCancelCause(t.Context())
			var at atomic.Int64
			k := sys.WithHook(func(sys.Call) sys.Fault {
				if at.Add(1) == n {
					cancel(why)
				}
				return sys.Fault{}
			})
			_, err := Unpack(ctx, k, read(in), "test.tar", b.dest, Options{Workers: 2})
			cancel(nil)
			if err == nil && at.Load() < n {
				break // there is no such call
			}
			if !errors.Is(err, why) {
				t.Fatalf("ended at call %d of %d: Unpack() = %v", n, at.Load(), err)
			}
			if left := b.list(); len(left) > 0 {
				t.Fatalf("ended at call %d: dest holds %q", n, left)
			}
		}
	}
	t.Logf("%d times", tried)
}

// A Read that never returns does not hold up the end, at the start and in the middle.
func TestCancelBlockedRead(t *testing.T) {
	data := sample()
	for _, n := range []int{0, 100, 5000, len(data) - 2000} {
		b := newBox(t)
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, _ = w.Write(data[:n]) // ends when the test closes the pipe
			cancel()
		}()
		_, err := Unpack(ctx, nil, r, "test.tar", b.dest, Options{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after %d bytes: Unpack() = %v", n, err)
		}
		if left := b.list(); len(left) > 0 {
			t.Errorf("after %d bytes: dest holds %q", n, left)
		}
		r.Close()
		cancel()
	}
}

// What in says counts for more than what a decoder makes of it, and is no verdict on the archive.
func TestReadError(t *testing.T) {
	why := errors.New("connection reset")
	for _, p := range append(packers(), packer{"none", func(_ testing.TB, b []byte) []byte { return b }}) {
		t.Run(p.name, func(t *testing.T) {
			whole := p.pack(t, sample())
			for _, n := range []int{0, 5, len(whole) / 2, len(whole)} {
				b := newBox(t)
				before := b.outside()
				_, _, err := b.unpack(nil, io.MultiReader(read(whole[:n]), failing{why}), Options{})
				b.mustFail(before, err, "cannot read it: connection reset", false)
				if !errors.Is(err, why) {
					t.Errorf("Unpack() = %v", err)
				}
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Bombs end early: by their ratio, by the bytes of the stream where it is padding
// or headers that grow, and by what they say of themselves.
func TestBombs(t *testing.T) {
	for _, p := range packers() {
		for _, c := range []struct {
			name string
			data io.Reader
			lim  Limits
			want string
		}{
			{"content by ratio", io.MultiReader(read(item{name: "zeros", typ: '0', size: "07777777777"}.bytes()), &nothing{n: 8 << 20}), Limits{Ratio: 100, RatioFrom: 1 << 20}, "beyond the limit of 1:100"},
			{"content by bytes", io.MultiReader(read(item{name: "zeros", typ: '0', size: "07777777777"}.bytes()), &nothing{n: 8 << 20}), Limits{Bytes: 4 << 20}, `"zeros" has 1073741823 bytes, more than the limit`},
			{"padding by bytes", io.MultiReader(read(archive(file("a", ""))), &nothing{n: 8 << 20}), Limits{Bytes: 4 << 20}, `a decompression bomb at byte`},
			{"padding by ratio", io.MultiReader(read(archive(file("a", ""))), &nothing{n: 8 << 20}), Limits{Ratio: 100, RatioFrom: 1 << 20}, `behind "a": `},
		} {
			t.Run(p.name+"/"+c.name, func(t *testing.T) {
				plain, err := io.ReadAll(c.data)
				if err != nil {
					t.Fatal(err)
				}
				packed := p.pack(t, plain)
				b := newBox(t)
				before := b.outside()
				_, _, err = b.unpack(nil, read(packed), Options{Limits: c.lim})
				b.mustFail(before, err, c.want, true)
				if got := fmt.Sprint(len(packed)); c.lim.Ratio > 0 && strings.Contains(err.Error(), got+" bytes became") && len(packed) > 1<<20 {
					t.Errorf("it was read to its end: %v", err)
				}
			})
		}
	}
}

type nothing struct{ n int64 }

func (z *nothing) Read(b []byte) (int, error) {
	if z.n <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), z.n))
	clear(b[:n])
	z.n -= int64(n)
	return n, nil
}

// Progress counts up to what the Result says, from one goroutine.
func TestProgress(t *testing.T) {
	var last Progress
	calls := 0
	b := newBox(t)
	res, _, err := b.unpack(nil, read(sample()), Options{Progress: func(p Progress) {
		calls++
		if p.Read < last.Read || p.Written < last.Written || p.Entries < last.Entries {
			t.Errorf("Progress went from %+v to %+v", last, p)
		}
		last = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	if calls == 0 || last.Read != res.Read || last.Written != res.Bytes {
		t.Errorf("%d calls, the last with %+v; Result is %+v", calls, last, res)
	}
}

// Memory stays bounded, whatever the size of files and their number.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 300 MB")
	}
	const size = 100 << 20
	var parts []io.Reader
	for i := range 3 {
		head := item{name: fmt.Sprint("large", i), typ: typeRegular, size: fmt.Sprintf("%011o", size)}.bytes()
		parts = append(parts, read(head), &nothing{n: size})
	}
	parts = append(parts, read(endMark))
	b := newBox(t)
	runtime.GC() // what other tests left
	var most uint64
	_, _, err := b.unpack(nil, io.MultiReader(parts...), Options{Progress: func(Progress) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapInuse)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if most > 100<<20 {
		t.Errorf("%d MiB of heap; want less than 100", most>>20)
	}
	t.Logf("%d MiB of heap", most>>20)
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
}
