package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func tempDir(t testing.TB) (*sys.FD, string) {
	t.Helper()
	name := t.TempDir()
	fd, err := sys.OpenRoot(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd, name
}

const settled = int64(1_600_000_000_000_000_000)

func digest(i int) (d change.Digest) {
	copy(d[:], fmt.Sprintf("digest %d", i))
	return d
}

func TestIndexRoundTrip(t *testing.T) {
	t.Parallel()
	dir, _ := tempDir(t)
	x := LoadIndex(dir, "index")
	labels := map[string][]byte{"security.selinux": []byte("a:b"), "user.empty": {}}
	type item struct {
		ino    uint64
		ctime  int64
		size   int64
		digest change.Digest
		xattrs map[string][]byte
	}
	items := []item{
		{1, settled, 5, digest(1), nil},
		{1, settled - 1, 5, digest(2), labels},
		{1 << 63, -5, 0, change.Digest{}, labels},
		{2, settled, 1 << 40, digest(3), map[string][]byte{"user.x": []byte("\x00\xff")}},
	}
	for _, i := range items {
		x.Put(i.ino, i.ctime, i.size, i.digest, i.xattrs)
	}
	if err := x.Save(nil, dir, "index"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		x = LoadIndex(dir, "index")
		for _, i := range items {
			d, xattrs, ok := x.Lookup(i.ino, i.ctime, i.size)
			if diff := cmp.Diff(i, item{i.ino, i.ctime, i.size, d, xattrs}, cmp.AllowUnexported(item{})); !ok || diff != "" {
				t.Errorf("Lookup(%d, %d, %d) = %v (-want +got):\n%s", i.ino, i.ctime, i.size, ok, diff)
			}
		}
		for _, k := range []key{{1, settled, 6}, {1, settled + 1, 5}, {3, settled, 5}} {
			if _, _, ok := x.Lookup(k.ino, k.ctime, k.size); ok {
				t.Errorf("Lookup(%v) finds what was not put", k)
			}
		}
		// Once more through a file that was written from a file.
		x.Put(77, settled, 1, digest(77), labels)
		if err := x.Save(nil, dir, "index"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIndexRacy(t *testing.T) {
	t.Parallel()
	now := time.Now()
	x := newIndex(now)
	for _, tc := range []struct {
		age  time.Duration
		want bool
	}{{3 * time.Second, true}, {2*time.Second + 1, true}, {2 * time.Second, false}, {0, false}, {-time.Hour, false}} {
		ctime := now.Add(-tc.age).UnixNano()
		x.Put(1, ctime, 1, digest(1), nil)
		if _, _, ok := x.Lookup(1, ctime, 1); ok != tc.want {
			t.Errorf("an object that came to rest %v before is stored: %v; want %v", tc.age, ok, tc.want)
		}
	}
	var zero Index
	zero.Put(1, settled, 1, digest(1), nil)
	if _, _, ok := zero.Lookup(1, settled, 1); ok {
		t.Error("the zero index stores something")
	}
	var none *Index
	none.Put(1, settled, 1, digest(1), nil)
	if _, _, ok := none.Lookup(1, settled, 1); ok {
		t.Error("a nil index stores something")
	}
}

func TestIndexPrunes(t *testing.T) {
	t.Parallel()
	keys := func(dir *sys.FD) (out []uint64) {
		x := LoadIndex(dir, "index")
		for i := range x.n {
			out = append(out, x.ino(i))
		}
		return out
	}
	for _, tc := range []struct {
		name string
		run  func(x *Index)
		want []uint64
	}{
		{"a whole run drops the rest", func(x *Index) {
			x.Lookup(1, settled, 1)
			x.Lookup(2, settled, 1)
		}, []uint64{1, 2}},
		{"a small run keeps it", func(x *Index) { x.Lookup(1, settled, 1) }, []uint64{1, 2, 3, 4}},
		{"another state of an inode takes its place", func(x *Index) { x.Put(3, settled-1, 2, digest(9), nil) }, []uint64{1, 2, 3, 4}},
		{"the same state is put again", func(x *Index) { x.Put(3, settled, 1, digest(9), nil) }, []uint64{1, 2, 3, 4}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir, _ := tempDir(t)
			x := LoadIndex(dir, "index")
			for ino := range uint64(4) {
				x.Put(ino+1, settled, 1, digest(1), nil)
			}
			if err := x.Save(nil, dir, "index"); err != nil {
				t.Fatal(err)
			}
			x = LoadIndex(dir, "index")
			tc.run(x)
			if err := x.Save(nil, dir, "index"); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, keys(dir)); diff != "" {
				t.Errorf("inodes (-want +got):\n%s", diff)
			}
		})
	}
}

// Nothing is written where nothing changed: a read-only plan stays one.
func TestSavesOnlyChanges(t *testing.T) {
	t.Parallel()
	dir, _ := tempDir(t)
	calls := 0
	k := sys.WithHook(func(sys.Call) sys.Fault { calls++; return sys.Fault{} })
	x := LoadIndex(dir, "index")
	x.Put(1, settled, 1, digest(1), nil)
	entries := func(yield func(string, *change.Node) bool) { yield("/a", &change.Node{Type: change.Regular}) }
	save := func() int {
		t.Helper()
		calls = 0
		if err := errors.Join(x.Save(k, dir, "index"), WriteBase(k, dir, "base", false, entries)); err != nil {
			t.Fatal(err)
		}
		return calls
	}
	if save() == 0 {
		t.Fatal("the first save makes no call")
	}
	x = LoadIndex(dir, "index")
	x.Lookup(1, settled, 1)
	if n := save(); n != 0 {
		t.Errorf("the second save makes %d calls; want none", n)
	}
}

// Each call that fails leaves the file that was there, or the new one.
func TestWriteIsAtomic(t *testing.T) {
	t.Parallel()
	for n := range 20 {
		dir, name := tempDir(t)
		write := func(k *sys.Kernel, text string) error { return writeFile(k, dir, "file", []byte(text)) }
		if err := write(nil, "old"); err != nil {
			t.Fatal(err)
		}
		calls := 0
		err := write(sys.WithHook(func(sys.Call) sys.Fault {
			if calls++; calls == n+1 {
				return sys.Fault{Err: syscall.EIO}
			}
			return sys.Fault{}
		}), "new")
		content, readErr := os.ReadFile(filepath.Join(name, "file"))
		if readErr != nil || string(content) != "old" && string(content) != "new" {
			t.Errorf("call %d fails: the file holds %q, %v", n, content, readErr)
		}
		if err == nil && string(content) != "new" {
			t.Errorf("call %d: no error, and the file holds %q", n, content)
		}
		if n < 3 && !errors.Is(err, syscall.EIO) {
			t.Errorf("call %d fails: %v; want %v", n, err, syscall.EIO)
		}
	}
}

func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	dir, name := tempDir(t)
	x := LoadIndex(dir, "index")
	x.Put(1, settled, 1, digest(1), map[string][]byte{"user.x": []byte("1")})
	entries := maps.All(map[string]*change.Node{"/a": {Type: change.Symlink, Target: "b"}})
	if err := errors.Join(x.Save(nil, dir, "index"), WriteBase(nil, dir, "base", false, entries)); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"index", "base"} {
		good, err := os.ReadFile(filepath.Join(name, file))
		if err != nil {
			t.Fatal(err)
		}
		damaged := map[string][]byte{"empty": {}, "longer": append(slices.Clone(good), 0)}
		for i := range good {
			damaged[fmt.Sprintf("cut at %d", i)] = good[:i]
			b := slices.Clone(good)
			b[i] ^= 0x10
			damaged[fmt.Sprintf("byte %d", i)] = b
		}
		for what, b := range damaged {
			if err := os.WriteFile(filepath.Join(name, file), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if file == "index" {
				if LoadIndex(dir, file).n != 0 {
					t.Errorf("index, %s: it loads", what)
				}
			} else if _, err := ReadBase(dir, file); err == nil {
				t.Errorf("base, %s: it loads", what)
			}
		}
	}
}

func TestIndexConcurrent(t *testing.T) {
	t.Parallel()
	dir, _ := tempDir(t)
	x := LoadIndex(dir, "index")
	for range 2 {
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range 500 {
					x.Put(uint64(i), settled, int64(g), digest(i), map[string][]byte{"user.x": {byte(i)}})
					if _, _, ok := x.Lookup(uint64(i), settled, int64(g)); !ok {
						t.Errorf("Lookup(%d, %d) finds nothing", i, g)
					}
				}
			})
		}
		wg.Wait()
		if err := x.Save(nil, dir, "index"); err != nil {
			t.Fatal(err)
		}
		if x = LoadIndex(dir, "index"); x.n != 2000 {
			t.Fatalf("%d records; want 2000", x.n)
		}
	}
}

func baseNodes() map[string]*change.Node {
	nodes := map[string]*change.Node{
		"/a":             {Type: change.Directory, Mode: 0o1777, UID: 1, GID: 1<<32 - 1, MtimeNS: -1},
		"/a/\xff\xfe\n":  {Type: change.Regular, Mode: 0o4755, Size: 1 << 40, Digest: digest(1), MtimeNS: settled, Link: "/a/first"},
		"/a/l":           {Type: change.Symlink, Mode: 0o777, Target: "../\xff x"},
		"/a/dev":         {Type: change.CharDevice, Rdev: 1<<40 + 5},
		"/a/block":       {Type: change.BlockDevice, Rdev: 7},
		"/a/p":           {Type: change.FIFO},
		"/a/unread":      {Type: change.Regular, Size: 5},
		"/a/xattrs":      {Type: change.Regular, Xattrs: map[string][]byte{"user.a": {}, "security.capability": {0, 1, 2}}},
		"/etc-x":         {Type: change.Directory},
		"/etc":           {Type: change.Directory},
		"/etc/x":         {Type: change.Regular},
		"/etc/x/impossi": {Type: change.Regular},
	}
	for i := range 100 {
		nodes[fmt.Sprintf("/usr/share/doc/package-%03d/changelog", i)] = &change.Node{Type: change.Regular, Size: int64(i), Digest: digest(i)}
	}
	return nodes
}

func inOrder(nodes map[string]*change.Node) iter.Seq2[string, *change.Node] {
	return func(yield func(string, *change.Node) bool) {
		for _, p := range slices.Sorted(maps.Keys(nodes)) {
			if !yield(p, nodes[p]) {
				return
			}
		}
	}
}

func TestBaseRoundTrip(t *testing.T) {
	t.Parallel()
	nodes := baseNodes()
	dir, _ := tempDir(t)
	if err := WriteBase(nil, dir, "base", false, inOrder(nodes)); err != nil {
		t.Fatal(err)
	}
	b, err := ReadBase(dir, "base")
	if err != nil {
		t.Fatal(err)
	}
	if b.Len() != len(nodes) {
		t.Errorf("Len = %d; want %d", b.Len(), len(nodes))
	}
	if diff := cmp.Diff(nodes, maps.Collect(b.All())); diff != "" {
		t.Errorf("All (-want +got):\n%s", diff)
	}
	var order []string
	for p := range b.All() {
		order = append(order, p)
	}
	if !slices.IsSorted(order) {
		t.Error("All is not in order")
	}
	for p, want := range nodes {
		if got, ok := b.Get(p); !ok || !cmp.Equal(want, got) || !b.Has(p) {
			t.Errorf("Get(%q) = %+v, %v; want %+v", p, got, ok, want)
		}
		for _, other := range []string{p + "\x00", p[:len(p)-1], p + "/zz"} {
			_, want := nodes[other]
			if _, got := b.Get(other); got != want || b.Has(other) != want {
				t.Errorf("Get(%q) = %v; want %v", other, got, want)
			}
		}
	}
	for prefix := range map[string]bool{"": true, "/": true, "/etc": true, "/etc/": true, "/a": true, "/usr/share/doc/package-050": true, "/none": true, "/zzz": true} {
		var want []string
		for _, p := range order {
			if trim := strings.TrimSuffix(prefix, "/"); p == trim || strings.HasPrefix(p, trim+"/") {
				want = append(want, p)
			}
		}
		if diff := cmp.Diff(want, slices.Collect(b.Paths(prefix))); diff != "" {
			t.Errorf("Paths(%q) (-want +got):\n%s", prefix, diff)
		}
	}
	for range b.Paths("/etc") {
		break
	}
	for range b.All() {
		break
	}
}

// What several readers share is the whole, each entry once.
func TestBaseParts(t *testing.T) {
	nodes := map[string]*change.Node{}
	for i := range 5*Block + 3 {
		nodes[fmt.Sprintf("/usr/%04d", i)] = &change.Node{Type: change.Regular, Size: int64(i), Digest: digest(i)}
	}
	b, err := encodeBase(inOrder(nodes))
	if err != nil {
		t.Fatal(err)
	}
	base, err := parseBase(b)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*change.Node{}
	for i := 0; i <= base.Len()+Block; i += 2 * Block {
		for p, n := range base.Part(i/Block*Block, 2*Block) {
			if got[p] != nil {
				t.Errorf("%s is given twice", p)
			}
			got[p] = n
		}
	}
	if diff := cmp.Diff(nodes, got); diff != "" {
		t.Errorf("the parts are not the whole (-want +got):\n%s", diff)
	}
}

func TestBaseEmpty(t *testing.T) {
	t.Parallel()
	dir, _ := tempDir(t)
	none, err := ReadBase(dir, "base")
	if err != nil || none != nil {
		t.Fatalf("ReadBase of no file = %v, %v; want nil, nil", none, err)
	}
	if err := WriteBase(nil, dir, "base", false, func(func(string, *change.Node) bool) {}); err != nil {
		t.Fatal(err)
	}
	empty, err := ReadBase(dir, "base")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*Base{"nil": none, "empty": empty} {
		if _, ok := b.Get("/a"); ok || b.Has("/a") || b.Len() != 0 || len(slices.Collect(b.Paths(""))) != 0 || len(maps.Collect(b.All())) != 0 {
			t.Errorf("the %s base holds something", name)
		}
	}
	if _, err := os.Stat("base"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written into the working directory: %v", err)
	}
}

func TestBaseOutOfOrder(t *testing.T) {
	t.Parallel()
	for _, paths := range [][]string{{"/b", "/a"}, {"/a", "/a"}} {
		_, err := encodeBase(func(yield func(string, *change.Node) bool) {
			for _, p := range paths {
				if !yield(p, &change.Node{Type: change.FIFO}) {
					return
				}
			}
		})
		if err == nil {
			t.Errorf("paths %q are accepted", paths)
		}
	}
}

// FuzzIndex: no bytes make the reader panic, and what it accepts it can write.
func FuzzIndex(f *testing.F) {
	x := newIndex(time.Now())
	x.Put(1, settled, 1, digest(1), map[string][]byte{"user.x": []byte("1")})
	x.Put(2, settled, 1, change.Digest{}, nil)
	b, _, err := x.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= headLen {
			copy(b, indexMagic)
			seal(b) // past the checksum, to what is behind it
		}
		x := newIndex(time.Now())
		if x.parse(b) != nil {
			return
		}
		for i := range x.n {
			k := x.key(i)
			if _, _, ok := x.Lookup(k.ino, k.ctime, k.size); !ok {
				t.Errorf("record %d is not found", i)
			}
		}
		x.Put(3, settled, 1, digest(1), map[string][]byte{"user.y": []byte("1")})
		b, _, err := x.encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := newIndex(time.Now()).parse(b); err != nil {
			t.Errorf("cannot read what was written: %v", err)
		}
	})
}

// FuzzBase: no bytes make the reader panic, and what it accepts is the same when it was written again.
func FuzzBase(f *testing.F) {
	b, err := encodeBase(inOrder(baseNodes()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= headLen {
			copy(b, baseMagic)
			seal(b)
		}
		base, err := parseBase(b)
		if err != nil {
			return
		}
		n := 0
		for p, node := range base.All() {
			n++
			if got, ok := base.Get(p); !ok || !cmp.Equal(node, got) {
				t.Errorf("Get(%q) = %+v, %v; want %+v", p, got, ok, node)
			}
		}
		if n != base.Len() || len(slices.Collect(base.Paths(""))) > n {
			t.Errorf("%d entries; Len = %d", n, base.Len())
		}
		again, err := encodeBase(base.All())
		if err != nil {
			t.Fatal(err)
		}
		second, err := parseBase(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(maps.Collect(base.All()), maps.Collect(second.All())); diff != "" {
			t.Errorf("written again (-first +second):\n%s", diff)
		}
	})
}

// 100,000 paths must be written in well under 100 ms and held in well under 25 MB.
func BenchmarkBase(b *testing.B) {
	dir, _ := tempDir(b)
	entries := func(yield func(string, *change.Node) bool) {
		n := &change.Node{Type: change.Regular, Mode: 0o644, Size: 12345, MtimeNS: settled, Digest: digest(1)}
		for i := range 100_000 {
			if !yield(fmt.Sprintf("/usr/share/doc/package-%04d/file-%02d.txt", i/100, i%100), n) {
				return
			}
		}
	}
	b.Run("Write", func(b *testing.B) {
		for i := range b.N {
			if err := WriteBase(nil, dir, fmt.Sprint("base", i%2), false, entries); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Read", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, err := ReadBase(dir, "base0"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Get", func(b *testing.B) {
		base, err := ReadBase(dir, "base0")
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			base.Get("/usr/share/doc/package-0500/file-50.txt")
		}
	})
}
