package diff

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
)

func TestVerify(t *testing.T) {
	t.Parallel()
	tree := []string{
		"f usr/a x", "f usr/b x", "f usr/mode x", "f usr/gone x", "f usr/type x", "f usr/first x", "h usr/second usr/first",
		"f usr/third x", "l usr/link a", "f usr/d/e x", "f etc/conf x", "f var/state x", "l var/lock ../run/lock", "f usr/local/x x",
	}
	b := newBed(t, build(t, tree...), build(t, tree...), whole())
	b.source.whole = true
	r := b.compare(t)
	if !r.Delta.Empty() {
		t.Fatalf("Compare = %q", brief(r.Delta))
	}
	base := readBase(t, r.BaseEntries(nil))
	if _, ok := base.Get("/usr/local/x"); ok {
		t.Error("what is never the update's is recorded")
	}
	verify := func() []string {
		t.Helper()
		var damage []change.Damage
		report, err := Verify(context.Background(), b.o, base, b.own.Class, func(d change.Damage) { damage = append(damage, d) })
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(damage, func(a, b change.Damage) int { return strings.Compare(a.Path, b.Path) })
		if report.Checked != base.Len() || report.Checked == 0 {
			t.Errorf("Checked = %d; want %d", report.Checked, base.Len())
		}
		var out []string
		for _, d := range damage {
			out = append(out, fmt.Sprintf("%s %s %s %s", d.Path, d.Problem, strings.Join(d.Aspects, ","), d.Owner))
		}
		return out
	}
	if got := verify(); len(got) > 0 {
		t.Fatalf("Verify of a whole root = %q", got)
	}
	at := func(p string) string { return filepath.Join(b.live, p) }
	for _, err := range []error{
		os.Chmod(at("usr/mode"), 0o4755), os.Remove(at("usr/gone")), os.Remove(at("usr/type")), os.Mkdir(at("usr/type"), 0o755),
		os.Remove(at("usr/second")), os.Remove(at("usr/third")), os.Link(at("usr/b"), at("usr/third")),
		os.Remove(at("usr/link")), os.RemoveAll(at("usr/d")), os.Remove(at("var/state")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	extend(t, b.live, "f usr/a y", "f usr/second x", "l usr/link b", "f usr/extra/x x", "f usr/local/y x", "f etc/conf y", "f etc/extra y", "f usr/b x")
	want := []string{
		"/etc/conf differs content machine",
		"/usr/a differs content damage",
		"/usr/d missing  damage",
		"/usr/d/e missing  damage",
		"/usr/extra unexpected  damage",
		"/usr/gone missing  damage",
		"/usr/link differs content damage",
		"/usr/mode differs mode damage",
		"/usr/second differs links damage",
		"/usr/third differs links damage",
		"/usr/type differs type damage",
		"/var/state missing  machine",
	}
	if diff := cmp.Diff(want, verify()); diff != "" {
		t.Errorf("Verify (-want +got):\n%s", diff)
	}
}

// An index is believed unless Full says to read: a lie in it hides damage.
func TestVerifyFull(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f usr/a x"), build(t, "f usr/a x"), whole())
	base := readBase(t, b.compare(t).BaseEntries(nil))
	time.Sleep(2100 * time.Millisecond)
	b.o.Index = catalog.LoadIndex(openDir(t, t.TempDir()), "index")
	node, err := newLstat(b.live, "usr/a")
	if err != nil {
		t.Fatal(err)
	}
	b.o.Index.Put(node.Ino, node.CtimeNS, node.Size, change.Digest{1}, nil)
	for _, tc := range []struct {
		full bool
		want int
	}{{false, 1}, {true, 0}} {
		b.o.Full = tc.full
		report, err := Verify(context.Background(), b.o, base, b.own.Class, nil)
		if err != nil || report.Damaged != tc.want {
			t.Errorf("Verify with Full = %v: %d damaged, %v; want %d", tc.full, report.Damaged, err, tc.want)
		}
	}
}

func newLstat(dir, p string) (*change.Node, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(dir, p), &st); err != nil {
		return nil, err
	}
	return &change.Node{Ino: st.Ino, CtimeNS: st.Ctim.Nano(), Size: st.Size}, nil
}

func TestBaseEntries(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f usr/a x", "h usr/b usr/a", "f usr/big xx", "f etc/n x", "f home/x x", "l usr/l a"),
		build(t, "f usr/big x", "f usr/old x"), whole())
	b.source.whole = true
	old := readBase(t, sorted(map[string]*change.Node{
		"/etc/dropped": {Type: change.FIFO}, "/opt/other": {Type: change.FIFO}, "/usr/old": {Type: change.FIFO}, "/usr/absent": {Type: change.FIFO},
	}))
	b.own.classes["/opt"] = change.ClassListed // another, partial update brought it
	r := b.compare(t)
	got := maps.Collect(r.BaseEntries(old))
	want := []string{"/etc", "/etc/n", "/opt/other", "/usr", "/usr/a", "/usr/b", "/usr/big", "/usr/l"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("BaseEntries (-want +got):\n%s", diff)
	}
	for _, p := range []string{"/usr/a", "/usr/b", "/usr/big", "/etc/n"} {
		if got[p].Digest.IsZero() {
			t.Errorf("%s is recorded without a digest", p)
		}
	}
	if got["/usr/a"].Link != "/usr/a" || got["/usr/b"].Link != "/usr/a" || got["/usr/l"].Target != "a" || got["/usr/big"].Link != "" {
		t.Errorf("links or targets are not recorded: %+v", got)
	}
	// A partial update leaves what it does not bring.
	part := newBed(t, build(t, "f opt/app x"), b.live, listed())
	got = maps.Collect(part.compare(t).BaseEntries(readBase(t, sorted(got))))
	want = slices.Sorted(slices.Values(append(want, "/opt", "/opt/app")))
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("BaseEntries of a partial update (-want +got):\n%s", diff)
	}
}

// claimsOf lists a tree as its manifest would.
func claimsOf(t *testing.T, b *bed) map[string]*change.Node {
	t.Helper()
	r := newBed(t, b.src, t.TempDir(), listed()).compare(t)
	return maps.Collect(r.BaseEntries(nil))
}

// askedSource remembers which paths were claimed, as a signed tree does.
type askedSource struct {
	*treeSource
	asked chan string
}

func (s *askedSource) Claim(p string) (*change.Node, bool) {
	s.asked <- p
	return s.treeSource.Claim(p)
}

func TestCompareSigned(t *testing.T) {
	t.Parallel()
	tree := []string{"f a/f x", "l a/l f", "f a/n y", "d a/d 700"}
	for _, tc := range []struct {
		name string
		do   func(b *bed)
		want string
	}{
		{name: "as listed", do: func(*bed) {}},
		{name: "unlisted", do: func(b *bed) { extend(t, b.src, "f a/x x") }, want: `"/a/x": the manifest does not list it`},
		{name: "mode", do: func(b *bed) { extend(t, b.src, "f a/f x 4755") }, want: `"/a/f": its mode is 4755, and the manifest says 0644`},
		{name: "size", do: func(b *bed) { extend(t, b.src, "f a/f xx") }, want: `"/a/f": its size`},
		{name: "type", do: func(b *bed) {
			b.source.claims["/a/f"].Type = change.FIFO
		}, want: `"/a/f": its type`},
		{name: "target", do: func(b *bed) { b.source.claims["/a/l"].Target = "g" }, want: `"/a/l": its target`},
		{name: "owner", do: func(b *bed) { b.source.claims["/a/l"].UID += 5 }, want: `"/a/l": its owner`},
		{name: "attributes", do: func(b *bed) {
			b.source.claims["/a/f"].Xattrs = map[string][]byte{"security.capability": {1}}
		}, want: `"/a/f": its attributes ([capability])`},
		{name: "in a folder that stays", do: func(b *bed) {
			extend(t, b.src, "f home/x x")
		}, want: `"/home": the manifest does not list it`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, build(t, tree...), build(t, "f a/f x", "f a/n z"), &owner{classes: map[string]change.Class{"/home": change.ClassNever}})
			b.source.claims = claimsOf(t, b)
			tc.do(b)
			r, err := Compare(context.Background(), b.source, b.own, b.o)
			if tc.want != "" {
				if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Compare = %v; want %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"add /a/d", "add /a/l", "replace /a/n content"}, brief(r.Delta)); diff != "" {
				t.Errorf("Compare (-want +got):\n%s", diff)
			}
		})
	}
}

// Each path is claimed, also where nothing of it lands: the source counts them.
func TestCompareSignedClaimsAll(t *testing.T) {
	t.Parallel()
	own := whole()
	b := newBed(t, build(t, "f home/a/b x", "f var/lib/d/e x", "f etc/gone.d/x x", "f usr/x x"), build(t, "f var/lib/d x", "f usr/x x"), own)
	b.source.whole = true
	b.source.claims = claimsOf(t, b)
	own.base = map[string]*change.Node{"/etc/gone.d": {Type: change.Directory}, "/etc": {Type: change.Directory}}
	src := &askedSource{b.source, make(chan string, 100)}
	if _, err := Compare(context.Background(), src, own, b.o); err != nil {
		t.Fatal(err)
	}
	close(src.asked)
	asked := map[string]bool{}
	for p := range src.asked {
		asked[p] = true
	}
	for p := range b.source.claims {
		if !asked[p] {
			t.Errorf("%s was not claimed", p)
		}
	}
}

// A claim's digest stands for the source's content: only the root is read, and
// what differs from the claim's digest differs, whatever the source holds.
func TestCompareSignedDigest(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f a x"), build(t, "f a x"), listed())
	b.source.claims = claimsOf(t, b)
	b.source.claims["/a"].Digest[0] ^= 1
	d := b.compare(t).Delta
	if diff := cmp.Diff([]string{"replace /a content"}, brief(d)); diff != "" {
		t.Fatalf("Compare (-want +got):\n%s", diff)
	}
	if d.Entries[0].New.Digest != b.source.claims["/a"].Digest {
		t.Error("staging is not told the claimed digest")
	}
}

// A file that changes while it is read is not taken for what it was before.
func TestDigestOfRestlessFile(t *testing.T) {
	t.Parallel()
	dir := build(t, "f a x")
	b := newBed(t, dir, dir, listed())
	live, err := openLive(b.o)
	if err != nil {
		t.Fatal(err)
	}
	f, err := live.open("")
	if err != nil {
		t.Fatal(err)
	}
	defer f.release()
	w := newWorker(&comparison{live: live})
	// Described before, changed since: the node becomes what is there now.
	n, err := live.lstat("/a")
	if err != nil {
		t.Fatal(err)
	}
	extend(t, dir, "f a yyy")
	if err := w.digest(nil, f, "a", n); err != nil {
		t.Fatal(err)
	}
	if n.Size != 3 {
		t.Errorf("size %d; want 3", n.Size)
	}
	// Changed in each attempt, by a hash that writes to the file.
	grown := "x"
	w.hash = &meddler{Hash: w.hash, do: func() {
		grown += "x"
		extend(t, dir, "f a "+grown)
	}}
	if err := w.digest(nil, f, "a", n); !errors.Is(err, errRestless) {
		t.Errorf("digest = %v; want %v", err, errRestless)
	}
}
