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

func TestCompareKinds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		src, live []string
		own       *owner
		whole     bool
		want      []string
		then      []string // after the Delta was applied; nil: nothing
	}{
		{name: "equal", src: []string{"f a/b x", "l a/l b", "p a/p"}, live: []string{"f a/b x", "l a/l b", "p a/p"}},
		{name: "added file", src: []string{"f a/b x"}, live: []string{"d a"}, want: []string{"add /a/b"}},
		{name: "added tree", src: []string{"f a/b/c x", "l a/l b"}, want: []string{"add /a", "add /a/b", "add /a/b/c", "add /a/l"}},
		{name: "content of equal size", src: []string{"f a x"}, live: []string{"f a y"}, want: []string{"replace /a content"}},
		{name: "size", src: []string{"f a xx"}, live: []string{"f a y"}, want: []string{"replace /a content"}},
		{name: "mode", src: []string{"f a x 4755"}, live: []string{"f a x"}, want: []string{"metadata /a mode"}},
		{name: "mode of a folder", src: []string{"d a 1777"}, live: []string{"d a"}, want: []string{"metadata /a mode"}},
		{name: "content and mode", src: []string{"f a x 755"}, live: []string{"f a y"}, want: []string{"replace /a content,mode"}},
		{name: "target", src: []string{"l a x"}, live: []string{"l a y"}, want: []string{"replace /a content"}},
		{name: "file to symlink", src: []string{"l a x"}, live: []string{"f a x"}, want: []string{"replace /a type"}},
		{name: "file to folder", src: []string{"f a/b x"}, live: []string{"f a x"}, want: []string{"replace /a type", "add /a/b"}},
		{name: "symlink to nothing to folder", src: []string{"f a/b x"}, live: []string{"l a nothing"}, want: []string{"replace /a type", "add /a/b"}},
		{
			name: "owned folder to file", own: owned(), src: []string{"f a x"}, live: []string{"f a/b/c x", "f a/d y"},
			want: []string{"replace /a type", "remove /a/b", "remove /a/b/c", "remove /a/d"},
		},
		{name: "fifo to file", src: []string{"f a x"}, live: []string{"p a"}, want: []string{"replace /a type"}},
		{name: "what is not listed stays", src: []string{"d a"}, live: []string{"f a/b x"}},
		{
			name: "what is owned wholly goes", own: owned(), src: []string{"d a"}, live: []string{"f a/b/c x", "f a-b x"},
			want: []string{"remove /a-b", "remove /a/b", "remove /a/b/c"},
		},
		{
			name: "names of any bytes", src: []string{"f a\xff\n\t x", "f b\xfe\x01/\n\n y"}, live: []string{"f a\xff\n\t y"},
			want: []string{"replace /a\xff\n\t content", "add /b\xfe\x01", "add /b\xfe\x01/\n\n"},
		},
		{
			name: "sorted bytewise", src: []string{"f a/b x", "f a-b x", "f a.b x", "f ab x"},
			want: []string{"add /a", "add /a-b", "add /a.b", "add /a/b", "add /ab"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			own := tc.own
			if own == nil {
				own = listed()
			}
			b := newBed(t, build(t, tc.src...), build(t, tc.live...), own)
			b.source.whole = tc.whole
			r := b.compare(t)
			if diff := cmp.Diff(append([]string{}, tc.want...), brief(r.Delta)); diff != "" {
				t.Errorf("Compare (-want +got):\n%s", diff)
			}
			apply(t, b, r.Delta)
			if got := brief(b.compare(t).Delta); len(got) > 0 {
				t.Errorf("after it was applied: %q", got)
			}
		})
	}
}

func TestCompareMtimeOnly(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f a/f x", "l a/l f", "d a/d"), build(t, "f a/f x", "l a/l f", "d a/d"), listed())
	for _, p := range []string{"a/f", "a/l", "a/d"} {
		setMtime(t, b.src, p, old.Add(time.Nanosecond).UnixNano())
	}
	r := b.compare(t)
	if diff := cmp.Diff([]string{"metadata /a/f mtime", "metadata /a/l mtime"}, brief(r.Delta)); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
	if r.Delta.Entries[0].New.MtimeNS != old.UnixNano()+1 || r.Delta.Entries[0].Old.MtimeNS != old.UnixNano() {
		t.Errorf("mtimes %d to %d", r.Delta.Entries[0].Old.MtimeNS, r.Delta.Entries[0].New.MtimeNS)
	}
}

func TestCompareXattrs(t *testing.T) {
	t.Parallel()
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\x01\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	for _, tc := range []struct {
		name, key, val string
		side           string // src, live, both
		want           []string
		mode           uint32 // an ACL's mask shows as the group's bits
	}{
		{name: "user", key: "user.x", val: "1", side: "src", want: []string{"metadata /f xattr"}},
		{name: "user, live only", key: "user.x", val: "1", side: "live", want: []string{"metadata /f xattr"}},
		{name: "user, both", key: "user.x", val: "1", side: "both"},
		{name: "capability", key: "security.capability", val: capability, side: "src", want: []string{"metadata /f capability"}},
		{name: "capability, live only", key: "security.capability", val: capability, side: "live", want: []string{"metadata /f capability"}},
		{name: "acl", key: "system.posix_acl_access", val: acl, side: "src", want: []string{"metadata /f acl"}},
		{name: "acl, live only", key: "system.posix_acl_access", val: acl, side: "live", want: []string{"metadata /f acl"}},
		{name: "label, live only", key: "security.selinux", val: "a:b:c:s0\x00", side: "live"},
		{name: "label, source only", key: "security.selinux", val: "a:b:c:s0\x00", side: "src", want: []string{"metadata /f xattr"}},
		{name: "overlay, live only", key: "trusted.overlay.origin", val: "x", side: "live"},
		{name: "ours, live only", key: "user.liveupd.x", val: "x", side: "live"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, build(t, "f f x 664"), build(t, "f f x 664"), listed())
			for side, dir := range map[string]string{"src": b.src, "live": b.live} {
				if tc.side != side && tc.side != "both" {
					continue
				}
				if err := syscall.Setxattr(filepath.Join(dir, "f"), tc.key, []byte(tc.val), 0); err != nil {
					t.Skipf("cannot set %s here: %v", tc.key, err)
				}
			}
			r := b.compare(t)
			if diff := cmp.Diff(append([]string{}, tc.want...), brief(r.Delta)); diff != "" {
				t.Fatalf("Compare (-want +got):\n%s", diff)
			}
			apply(t, b, r.Delta)
			if got := brief(b.compare(t).Delta); len(got) > 0 {
				t.Errorf("after it was applied: %q", got)
			}
		})
	}
}

// A label of the live object stays where it changes in place. What replaces it is
// labelled when it is staged, by the root's rules or the old one's label.
func TestCompareKeepsLabels(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f f x", "f m x 755"), build(t, "f f y", "f m x"), listed())
	for _, name := range []string{"f", "m"} {
		for key, val := range map[string]string{"security.selinux": "u:r:t:s0", "user.liveupd.x": "1"} {
			if err := syscall.Setxattr(filepath.Join(b.live, name), key, []byte(val), 0); err != nil {
				t.Skipf("cannot set %s here: %v", key, err)
			}
		}
	}
	d := b.compare(t).Delta
	want := []map[string][]byte{
		nil,
		{"security.selinux": []byte("u:r:t:s0"), "user.liveupd.x": []byte("1")},
	}
	for i := range d.Entries {
		if diff := cmp.Diff(want[i], d.Entries[i].New.Xattrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", d.Entries[i].Path, diff)
		}
		if got := string(d.Entries[i].Old.Xattrs["security.selinux"]); got != "u:r:t:s0" {
			t.Errorf("%s: the old label is %q", d.Entries[i].Path, got)
		}
	}
}

func TestCompareOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	b := newBed(t, build(t, "f f x", "l l x", "d d"), build(t, "f f x", "l l x", "d d"), listed())
	for _, name := range []string{"f", "l", "d"} {
		if err := os.Lchown(filepath.Join(b.src, name), 1234, 5678); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"metadata /d owner", "metadata /f owner", "metadata /l owner"}, brief(b.compare(t).Delta)); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
}

func TestCompareHardLinks(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		own       *owner
		src, live []string
		want      []string
	}{
		{name: "equal", src: []string{"f a x", "h b a"}, live: []string{"f a x", "h b a"}},
		{name: "linked, was not", src: []string{"f a x", "h b a"}, live: []string{"f a x", "f b x"}, want: []string{"replace /a links =/a", "replace /b links =/a"}},
		{name: "not linked, was", src: []string{"f a x", "f b x"}, live: []string{"f a x", "h b a"}, want: []string{"replace /a links", "replace /b links"}},
		{name: "a name more", src: []string{"f a x", "h b a"}, live: []string{"f a x"}, want: []string{"replace /a links =/a", "add /b =/a"}},
		{
			name: "a name less, not ours", src: []string{"f a x"}, live: []string{"f a x", "h b a"},
		},
		{
			name: "a name less, ours", own: owned(), src: []string{"f a x"}, live: []string{"f a x", "h b a"},
			want: []string{"replace /a links (live)", "remove /b"},
		},
		{
			name: "new content, one name not ours", src: []string{"f a y"}, live: []string{"f a x", "h d/b a"},
			want: []string{"replace /a content", "replace /d/b links (live)"},
		},
		{
			name: "new content, two names not ours", src: []string{"f a y"}, live: []string{"f a x", "h d/b a", "h d/c a"},
			want: []string{"replace /a content", "replace /d/b links =/d/b (live)", "replace /d/c links =/d/b (live)"},
		},
		{name: "new content", src: []string{"f a y", "h b a"}, live: []string{"f a x", "h b a"}, want: []string{"replace /a content =/a", "replace /b content =/a"}},
		{name: "mode", src: []string{"f a x 755", "h b a"}, live: []string{"f a x", "h b a"}, want: []string{"metadata /a mode =/a"}},
		{
			name: "mode, one name not ours", src: []string{"f a x 755"}, live: []string{"f a x", "h d/b a"},
			want: []string{"replace /a mode,links", "replace /d/b links (live)"},
		},
		{
			name: "mode, and a name goes", own: owned(), src: []string{"f a x 755"}, live: []string{"f a x", "h b a"},
			want: []string{"replace /a mode,links", "remove /b"},
		},
		{
			name: "groups change partners", src: []string{"f a x", "h b a", "f c x", "h d c"}, live: []string{"f a x", "h c a", "f b x", "h d b"},
			want: []string{"replace /a links =/a", "replace /b links =/a", "replace /c links =/c", "replace /d links =/c"},
		},
		{
			name: "one goes, two stay", own: owned(), src: []string{"f a x", "h b a"}, live: []string{"f a x", "h b a", "h c a"},
			want: []string{"replace /a links =/a (live)", "replace /b links =/a (live)", "remove /c"},
		},
		{
			name: "a folder becomes a file, with a name in it", own: owned(), src: []string{"f a x", "f d y"}, live: []string{"f a x", "h d/b a"},
			want: []string{"replace /a links (live)", "replace /d type", "remove /d/b"},
		},
		{
			name: "a linked file becomes a folder", src: []string{"f a/b y"}, live: []string{"f a x", "h c a"},
			want: []string{"replace /a type", "add /a/b", "replace /c links (live)"},
		},
		{name: "linked symlinks", src: []string{"l a x", "h b a"}, live: []string{"l a x", "l b x"}, want: []string{"replace /a links =/a", "replace /b links =/a"}},
		{
			name: "a name stays the machine's", own: &owner{classes: map[string]change.Class{"/n": change.ClassNever}},
			src: []string{"f a y", "h n a"}, live: []string{"f a x", "h n a"},
			want: []string{"replace /a content", "replace /n links (live)"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			own := tc.own
			if own == nil {
				own = listed()
			}
			b := newBed(t, build(t, tc.src...), build(t, tc.live...), own)
			r := b.compare(t)
			if diff := cmp.Diff(append([]string{}, tc.want...), brief(r.Delta)); diff != "" {
				t.Errorf("Compare (-want +got):\n%s", diff)
			}
			apply(t, b, r.Delta)
			if got := brief(b.compare(t).Delta); len(got) > 0 {
				t.Errorf("after it was applied: %q\n%s", got, strings.Join(snapshot(t, b.live), "\n"))
			}
		})
	}
}

// Names of the source's inode outside the tree do not matter: trees are often
// copied with cp -al.
func TestCompareSourceLinkedOutside(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f a x"), build(t, "f a x"), listed())
	if err := os.Link(filepath.Join(b.src, "a"), filepath.Join(t.TempDir(), "a")); err != nil {
		t.Fatal(err)
	}
	if d := b.compare(t).Delta; !d.Empty() || d.Identical != 1 {
		t.Errorf("Compare = %q, %d identical", brief(d), d.Identical)
	}
}

func TestCompareThreeWay(t *testing.T) {
	t.Parallel()
	own := whole()
	b := newBed(t,
		build(t, "f etc/new x", "f etc/same x", "f etc/plain y", "f etc/mine y", "f etc/gone y", "f etc/unrecorded y", "f etc/machine-id y"),
		build(t, "f etc/same x", "f etc/plain x", "f etc/mine z", "f etc/unrecorded x", "f etc/obsolete x", "f etc/edited z",
			"f etc/old.d/a x", "f etc/kept.d/a x", "f etc/kept.d/machine x", "f etc/never-shipped x", "f etc/machine-id x"), own)
	b.source.whole = true
	// The base is what the live files were: x for all.
	past := newBed(t, build(t, "f etc/same x", "f etc/plain x", "f etc/mine x", "f etc/gone x", "f etc/obsolete x", "f etc/edited x",
		"f etc/old.d/a x", "f etc/kept.d/a x", "f etc/vanished x"), t.TempDir(), whole())
	past.source.whole = true
	own.base = maps.Collect(past.compare(t).BaseEntries(nil))
	r := b.compare(t)
	want := []string{
		"add /etc/mine.liveupd-new </etc/mine", "add /etc/new", "remove /etc/kept.d/a", "remove /etc/obsolete",
		"remove /etc/old.d", "remove /etc/old.d/a", "replace /etc/plain content", "replace /etc/unrecorded content",
	}
	got := brief(r.Delta)
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
	wantKept := []change.Kept{
		{Path: "/etc/edited", Reason: "the machine changed it"},
		{Path: "/etc/gone", Reason: "the machine removed it"},
		{Path: "/etc/mine", Reason: "the machine changed it", Beside: "/etc/mine.liveupd-new"},
	}
	if diff := cmp.Diff(wantKept, r.Delta.Kept); diff != "" {
		t.Errorf("Kept (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/etc/unrecorded: no base is recorded"}, r.Delta.Warnings); diff != "" {
		t.Errorf("Warnings (-want +got):\n%s", diff)
	}
	apply(t, b, r.Delta)
	before := own.base
	own.base = map[string]*change.Node{}
	var paths []string
	for p, n := range r.BaseEntries(readBase(t, sorted(before))) {
		own.base[p] = n
		paths = append(paths, p)
	}
	wantPaths := []string{"/etc", "/etc/gone", "/etc/mine", "/etc/new", "/etc/plain", "/etc/same", "/etc/unrecorded"}
	if diff := cmp.Diff(wantPaths, paths); diff != "" {
		t.Errorf("BaseEntries (-want +got):\n%s", diff)
	}
	if d := b.compare(t).Delta; !d.Empty() {
		t.Errorf("after it was applied: %q", brief(d))
	}
}

func sorted(m map[string]*change.Node) func(func(string, *change.Node) bool) {
	return func(yield func(string, *change.Node) bool) {
		keys := make([]string, 0, len(m))
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

func TestCompareWholeTree(t *testing.T) {
	t.Parallel()
	b := newBed(t,
		build(t, "l lib usr/lib", "f usr/lib/os-release 2", "f usr/bin/new x", "d home", "f home/intruder x", "d usr/local/bin", "f usr/local/bin/x x",
			"f var/lib/there y", "f var/lib/added y", "d opt", "f opt/app/x x"),
		build(t, "l lib usr/lib", "f usr/lib/os-release 1", "f usr/bin/old x", "f usr/share/d/e x", "f home/user/file x", "f usr/local/mine x",
			"f usr/share/link-target x", "f var/lib/there x", "f var/lib/other x", "f srv/data x", "d .liveupd"), whole())
	b.source.whole = true
	own := b.own
	own.classes["/opt/app"] = change.ClassWhole
	want := []string{
		"add /opt", "add /opt/app", "add /opt/app/x",
		"add /usr/bin/new", "remove /usr/bin/old", "replace /usr/lib/os-release content",
		"remove /usr/share", "remove /usr/share/d", "remove /usr/share/d/e", "remove /usr/share/link-target", "add /var/lib/added",
	}
	r := b.compare(t)
	if diff := cmp.Diff(want, brief(r.Delta)); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
	apply(t, b, r.Delta)
	if d := b.compare(t).Delta; !d.Empty() {
		t.Errorf("after it was applied: %q", brief(d))
	}
	for _, p := range []string{"home/user/file", "usr/local/mine", "var/lib/other", "srv/data"} {
		if _, err := os.Stat(filepath.Join(b.live, p)); err != nil {
			t.Errorf("%s was the machine's: %v", p, err)
		}
	}
}

// A folder that the image dropped stays where it holds a path of the machine's.
func TestCompareFolderWithMachineFiles(t *testing.T) {
	t.Parallel()
	own := owned()
	own.classes["/a/b/local"] = change.ClassNever
	b := newBed(t, build(t, "d x"), build(t, "f a/b/local/f x", "f a/b/c x", "f a/d/e x", "d x"), own)
	if diff := cmp.Diff([]string{"remove /a/b/c", "remove /a/d", "remove /a/d/e"}, brief(b.compare(t).Delta)); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
}

func TestCompareRefuses(t *testing.T) {
	t.Parallel()
	never := owned()
	never.classes["/a/b"] = change.ClassNever
	for _, tc := range []struct {
		name      string
		own       *owner
		whole     bool
		src, live []string
		mounts    []string
		allow     bool
		want      string
	}{
		{name: "merged, and the tree is not", own: whole(), whole: true, src: []string{"f lib/x x"}, live: []string{"d usr/lib", "l lib usr/lib"}, want: "/lib is a directory in it, and a symlink in the root"},
		{name: "not merged, and the tree is", own: whole(), whole: true, src: []string{"d usr/lib", "l lib usr/lib"}, live: []string{"f lib/x x"}, want: "/lib is a symlink in it, and a directory in the root"},
		{name: "a listed folder with other files", own: listed(), src: []string{"f a x"}, live: []string{"f a/b x", "f a/c x"}, want: "/a/b in it is not the update's"},
		{name: "a folder with the machine's", own: never, src: []string{"l a x"}, live: []string{"f a/a x", "f a/b x", "f a/c x"}, want: "/a/b in it is not the update's"},
		{name: "two on one path", own: listed(), src: []string{"f lib/x 1", "f usr/lib/x 2"}, live: []string{"d usr/lib", "l lib usr/lib"}, want: `"/lib/x" of the source at "/usr/lib/x"`},
		{name: "two on one path, by two links", own: listed(), src: []string{"f lib/x 1", "f lib64/x 2"}, live: []string{"d usr/lib", "l lib usr/lib", "l lib64 /usr/lib"}, want: `"/lib64/x" of the source at "/usr/lib/x"`},
		{name: "a loop", own: listed(), src: []string{"f a/x 1"}, live: []string{"l a b", "l b a"}, want: "cannot follow /a: too many symlinks"},
		{name: "our store", own: listed(), src: []string{"f .liveupd/x 1"}, want: "cannot take /.liveupd"},
		{name: "a file that is mounted on", own: listed(), src: []string{"f etc/resolv.conf 1"}, live: []string{"f etc/resolv.conf 2"}, mounts: []string{"/etc/resolv.conf"}, want: "cannot change /etc/resolv.conf"},
		{name: "a file that is mounted on, allowed or not", own: owned(), src: []string{"d etc"}, live: []string{"f etc/resolv.conf 2"}, mounts: []string{"/etc/resolv.conf"}, allow: true, want: "cannot change /etc/resolv.conf"},
		{name: "a folder with a mount", own: owned(), src: []string{"d a"}, live: []string{"d a/b/c"}, mounts: []string{"/a/b/c"}, want: "cannot remove the folder /a/b: the running system has /a/b/c mounted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, build(t, tc.src...), build(t, tc.live...), tc.own)
			b.source.whole, b.o.Mounts, b.o.AllowRemovals = tc.whole, tc.mounts, tc.allow
			before := snapshot(t, b.live)
			_, err := Compare(context.Background(), b.source, b.own, b.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Compare = %v; want %q", err, tc.want)
			}
			if diff := cmp.Diff(before, snapshot(t, b.live)); diff != "" {
				t.Errorf("the root changed:\n%s", diff)
			}
		})
	}
}

func TestCompareMerged(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		own       *owner
		src, live []string
		want      []string
	}{
		{name: "lands in the target", src: []string{"f lib/x 1", "f lib/d/y 1"}, live: []string{"f usr/lib/x 2", "l lib usr/lib"}, want: []string{"add /usr/lib/d </lib/d", "add /usr/lib/d/y </lib/d/y", "replace /usr/lib/x content </lib/x"}},
		{name: "absolute target", src: []string{"f lib/x 1"}, live: []string{"f usr/lib/x 2", "l lib /usr/lib"}, want: []string{"replace /usr/lib/x content </lib/x"}},
		{name: "target through the top", src: []string{"f lib/x 1"}, live: []string{"f usr/lib/x 2", "l lib ../../usr/lib"}, want: []string{"replace /usr/lib/x content </lib/x"}},
		{name: "two links", src: []string{"f a/b/x 1"}, live: []string{"l a c", "l c/b ../d", "d d"}, want: []string{"add /d/x </a/b/x"}},
		{name: "two equal ones", src: []string{"f lib/x 1", "f usr/lib/x 1"}, live: []string{"d usr/lib", "l lib usr/lib"}, want: []string{"add /usr/lib/x"}},
		{name: "two folders", src: []string{"f lib/d/x 1", "f usr/lib/d/y 1"}, live: []string{"d usr/lib", "l lib usr/lib"}, want: []string{"add /usr/lib/d", "add /usr/lib/d/x </lib/d/x", "add /usr/lib/d/y"}},
		{name: "the link itself", src: []string{"l lib usr/lib"}, live: []string{"d usr/lib", "l lib usr/lib"}},
		{
			name: "owned wholly, through the link", own: &owner{classes: map[string]change.Class{"/usr/lib/app": change.ClassWhole}},
			src: []string{"f lib/app/x 1"}, live: []string{"f usr/lib/app/x 1", "f usr/lib/app/y 1", "f usr/lib/z 1", "l lib usr/lib"},
			want: []string{"remove /usr/lib/app/y"},
		},
		{
			name: "both owned wholly", own: &owner{classes: map[string]change.Class{"/usr/lib/app": change.ClassWhole}},
			src: []string{"f lib/app/x 1", "f usr/lib/app/y 1"}, live: []string{"f usr/lib/app/x 1", "f usr/lib/app/y 1", "f usr/lib/app/z 1", "l lib usr/lib"},
			want: []string{"remove /usr/lib/app/z"},
		},
		{
			name: "no way around what is the machine's", own: &owner{classes: map[string]change.Class{"/home": change.ClassNever}},
			src: []string{"f home/x 1"}, live: []string{"d data/home", "l home data/home"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			own := tc.own
			if own == nil {
				own = listed()
			}
			b := newBed(t, build(t, tc.src...), build(t, tc.live...), own)
			r := b.compare(t)
			if diff := cmp.Diff(append([]string{}, tc.want...), brief(r.Delta)); diff != "" {
				t.Errorf("Compare (-want +got):\n%s", diff)
			}
			apply(t, b, r.Delta)
			if got := brief(b.compare(t).Delta); len(got) > 0 {
				t.Errorf("after it was applied: %q", got)
			}
		})
	}
}

func TestCompareMounts(t *testing.T) {
	t.Parallel()
	src := []string{"f var/log/x 1", "f var/log/y 1"}
	b := newBed(t, build(t, src...), build(t, "d var/log", "d a/b"), owned())
	b.o.Mounts, b.o.AllowRemovals = []string{"/var/log", "/a/b"}, true
	b.o.Hiding = b.o.Mounts
	d := b.compare(t).Delta
	if len(d.Warnings) != 1 || !strings.HasPrefix(d.Warnings[0], "/var/log: ") {
		t.Errorf("Warnings = %q; want one of /var/log", d.Warnings)
	}
	if diff := cmp.Diff([]string{"remove /a", "remove /a/b", "add /var/log/x", "add /var/log/y"}, brief(d)); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
}

func TestCompareManyRemovals(t *testing.T) {
	t.Parallel()
	live := []string{"d a"}
	for i := range removalsLimit {
		live = append(live, fmt.Sprintf("f a/%d x", i))
	}
	b := newBed(t, build(t, "d a"), build(t, live...), owned())
	if n := len(b.compare(t).Delta.Entries); n != removalsLimit {
		t.Fatalf("%d removals; want %d", n, removalsLimit)
	}
	extend(t, b.live, "f a/more x")
	_, err := Compare(context.Background(), b.source, b.own, b.o)
	hint, ok := errors.AsType[*change.HintError](err)
	if !ok || !strings.Contains(hint.Hint, "--allow-removals") {
		t.Errorf("Compare = %v; want an error with a hint", err)
	}
	b.o.AllowRemovals = true
	if n := len(b.compare(t).Delta.Entries); n != removalsLimit+1 {
		t.Errorf("%d removals; want %d", n, removalsLimit+1)
	}
}

func TestCompareVolumes(t *testing.T) {
	t.Parallel()
	// The root's own var lies under the file system of /var: it is never looked at.
	b := newBed(t, build(t, "f usr/x 1", "f var/lib/x 1", "f var/lib/new 1"), build(t, "f usr/x 1", "f var/lib/x 2"), listed())
	volume := build(t, "f lib/x 1", "d .liveupd")
	b.o.Volumes = []Volume{{Mount: "/", Dir: b.o.Live}, {Mount: "/var", Dir: openDir(t, volume)}}
	b.o.Mounts, b.o.Hiding = []string{"/var"}, []string{"/var"}
	d := b.compare(t).Delta
	if diff := cmp.Diff([]string{"add /var/lib/new"}, brief(d)); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
	if len(d.Warnings) > 0 {
		t.Errorf("Warnings = %q", d.Warnings)
	}
	extend(t, b.src, "f var/.liveupd/x 1")
	if _, err := Compare(context.Background(), b.source, b.own, b.o); err == nil || !strings.Contains(err.Error(), "/var/.liveupd") {
		t.Errorf("Compare = %v; want the store of /var refused", err)
	}
}

func TestCompareSocketAndSkip(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "s a/s", "f liveupd.toml x", "f a/liveupd.toml x"), build(t, "d a", "f liveupd.toml y"), listed())
	b.source.skip = map[string]bool{"/liveupd.toml": true}
	d := b.compare(t).Delta
	if diff := cmp.Diff([]string{"add /a/liveupd.toml"}, brief(d)); diff != "" {
		t.Errorf("Compare (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"/a/s of the source is a socket: left out"}, d.Warnings); diff != "" {
		t.Errorf("Warnings (-want +got):\n%s", diff)
	}
}

// A second comparison reads nothing, and sees what changed since.
func TestCompareIndex(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f a/x 1", "f a/y 1", "l a/l x", "l a/k x", "f a/m 1", "f a/w 1 600"),
		build(t, "f a/x 1", "f a/y 2", "l a/l x", "l a/k y", "f a/m 1", "f a/w 1"), listed())
	setMtime(t, b.live, "a/m", old.UnixNano()+1)
	if err := syscall.Setxattr(filepath.Join(b.live, "a/x"), "user.liveupd.x", []byte("1"), 0); err != nil {
		t.Skipf("no user attributes here: %v", err)
	}
	cache := openDir(t, t.TempDir())
	var read int64
	run := func() []string {
		t.Helper()
		b.o.Index, b.o.SourceIndex = catalog.LoadIndex(cache, "live"), catalog.LoadIndex(cache, "source")
		b.o.Progress = func(_, bytes int64) { read = bytes }
		out := brief(b.compare(t).Delta)
		for name, x := range map[string]*catalog.Index{"live": b.o.Index, "source": b.o.SourceIndex} {
			if err := x.Save(nil, cache, name); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	time.Sleep(2100 * time.Millisecond) // what is younger is racy, and not stored
	want := []string{"replace /a/k content", "metadata /a/m mtime", "metadata /a/w mode", "replace /a/y content"}
	for i, bytes := range []int64{8, 0, 0} {
		if diff := cmp.Diff(want, run()); diff != "" {
			t.Errorf("run %d (-want +got):\n%s", i, diff)
		}
		if read != bytes {
			t.Errorf("run %d read %d bytes; want %d", i, read, bytes)
		}
	}
	// Same size, same mtime: only the ctime tells.
	extend(t, b.live, "f a/x 3")
	want = slices.Insert(want, 3, "replace /a/x content")
	if diff := cmp.Diff(want, run()); diff != "" {
		t.Errorf("after a change (-want +got):\n%s", diff)
	}
	if read != 1 {
		t.Errorf("after a change %d bytes were read; want 1", read)
	}
}

func TestCompareCancelled(t *testing.T) {
	t.Parallel()
	b := newBed(t, build(t, "f a/x 1"), build(t, "f a/x 1"), listed())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Compare(ctx, b.source, b.own, b.o); !errors.Is(err, context.Canceled) {
		t.Errorf("Compare = %v; want %v", err, context.Canceled)
	}
}
