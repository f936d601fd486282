package patch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/source/tarball"
)

// seeded gives the random numbers of a test: LIVEUPD_SEED sets them.
func seeded(t testing.TB) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("LIVEUPD_SEED"); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		do(t, err)
	}
	t.Logf("LIVEUPD_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// forest makes random trees and changes them.
type forest struct {
	t   testing.TB
	r   *rand.Rand
	k   *sys.Kernel
	dir string
	n   int
}

func (f *forest) root() *sys.FD { return dir(f.t, f.dir) }

func (f *forest) at(p string) string { return filepath.Join(f.dir, p) }

// paths lists what is there, folders or all else.
func (f *forest) paths(folders bool) []string {
	var out []string
	do(f.t, filepath.WalkDir(f.dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() == folders && (p != f.dir || folders) {
			out = append(out, strings.TrimPrefix(strings.TrimPrefix(p, f.dir), "/"))
		}
		return err
	}))
	return out
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// oddNames are what names can hold.
var oddNames = []string{"plain", "with space", "new\nline", "quote\"'`", "back\\slash", "uml\u00e4ut", "not\xff\xfeutf8", "tab\t", "-dash", "a=b,c", "%25", "libfoo.so.1.2.", strings.Repeat("long", 60)}

func (f *forest) name() string {
	f.n++
	return fmt.Sprintf("%s%d", pick(f.r, oddNames), f.n)
}

func (f *forest) text(size int) []byte {
	var b bytes.Buffer
	for b.Len() < size {
		fmt.Fprintf(&b, "%d %s\n", f.r.IntN(1000), pick(f.r, oddNames[:6]))
	}
	return b.Bytes()[:size]
}

func (f *forest) write(p string, b []byte) {
	do(f.t, os.RemoveAll(f.at(p)))
	do(f.t, os.WriteFile(f.at(p), b, 0o644))
}

// add makes one new object.
func (f *forest) add() {
	p := filepath.Join(pick(f.r, f.paths(true)), f.name())
	if len(p) > 900 {
		return
	}
	switch f.r.IntN(9) {
	case 0, 1:
		do(f.t, os.Mkdir(f.at(p), 0o755))
	case 2:
		do(f.t, os.Symlink(pick(f.r, []string{"a", "../x", "/etc/\xffodd name", strings.Repeat("t/", 200)}), f.at(p)))
	case 3:
		do(f.t, syscall.Mkfifo(f.at(p), 0o600))
	case 4:
		do(f.t, syscall.Mknod(f.at(p), pick(f.r, []uint32{syscall.S_IFCHR, syscall.S_IFBLK})|0o640, pick(f.r, []int{1<<8 | 3, 0xfff<<8 | 0xff, 0x123<<8 | 0x45 | 0x67<<20})))
	case 5:
		f.write(p, nil)
		if f.r.IntN(2) == 0 {
			file, err := os.OpenFile(f.at(p), os.O_RDWR, 0)
			do(f.t, err)
			_, err = file.WriteAt(f.text(5000), int64(f.r.IntN(3<<20)))
			do(f.t, errors.Join(err, file.Truncate(4<<20), file.Close()))
		}
	case 6:
		if files := f.regular(); len(files) > 0 {
			do(f.t, os.Link(f.at(pick(f.r, files)), f.at(p)))
			return
		}
		fallthrough
	default:
		f.write(p, f.text(f.r.IntN(60000)))
	}
	f.meta(p)
}

func (f *forest) regular() []string {
	return slices.DeleteFunc(f.paths(false), func(p string) bool {
		st, err := os.Lstat(f.at(p))
		do(f.t, err)
		return !st.Mode().IsRegular()
	})
}

// meta changes what is not content.
func (f *forest) meta(p string) {
	root := f.root()
	n, err := sys.LstatPath(root, p)
	do(f.t, err)
	do(f.t, f.k.Chown(root, p, pick(f.r, []uint32{0, 0, 1000, 3000000}), pick(f.r, []uint32{0, 7, 4000000000})))
	if n.Type != change.Symlink {
		do(f.t, f.k.Chmod(root, p, pick(f.r, []uint32{0o644, 0o755, 0o4755, 0o2750, 0o1777, 0})))
	}
	if n.Type == change.Regular && f.r.IntN(4) == 0 {
		// VFS_CAP_REVISION_2, effective, cap_net_bind_service
		do(f.t, f.k.SetXattr(root, p, "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")))
	}
	if (n.Type == change.Regular || n.IsDir()) && f.r.IntN(4) == 0 {
		do(f.t, f.k.SetXattr(root, p, "user.a=b%c", []byte("\x00\n=\xff")))
		acl := binary.LittleEndian.AppendUint32(nil, 2)
		for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 4, 1234}, {4, 4, 1<<32 - 1}, {0x10, 4, 1<<32 - 1}, {0x20, 0, 1<<32 - 1}} {
			acl = binary.LittleEndian.AppendUint16(acl, uint16(e[0]))
			acl = binary.LittleEndian.AppendUint16(acl, uint16(e[1]))
			acl = binary.LittleEndian.AppendUint32(acl, e[2])
		}
		key := "system.posix_acl_access"
		if n.IsDir() {
			key = "system.posix_acl_default"
		}
		do(f.t, f.k.SetXattr(root, p, key, acl))
	}
	do(f.t, f.k.SetMtime(root, p, pick(f.r, []int64{0, 1700000000e9, 1700000000123456789, -5e9, -1, 9e18})))
}

// alter changes the tree in one place.
func (f *forest) alter() {
	files, folders := f.paths(false), f.paths(true)[1:]
	if len(files) == 0 || len(folders) == 0 {
		f.add()
		return
	}
	p := pick(f.r, files)
	switch f.r.IntN(8) {
	case 0:
		do(f.t, os.Remove(f.at(p)))
	case 1:
		do(f.t, os.RemoveAll(f.at(pick(f.r, folders))))
	case 2: // a version
		do(f.t, os.Rename(f.at(p), f.at(filepath.Join(filepath.Dir(p), f.name()))))
	case 3:
		f.meta(p)
	case 4: // another type
		if f.r.IntN(2) == 0 {
			do(f.t, os.Remove(f.at(p)))
			do(f.t, os.Mkdir(f.at(p), 0o700))
			f.write(p+"/below", f.text(100))
			return
		}
		d := pick(f.r, folders)
		f.write(d, f.text(300))
	case 5:
		f.add()
	default:
		list := f.regular()
		if len(list) == 0 {
			return
		}
		p = pick(f.r, list)
		b, err := os.ReadFile(f.at(p))
		do(f.t, err)
		for range 1 + f.r.IntN(3) {
			at := f.r.IntN(len(b) + 1)
			b = slices.Insert(b, at, f.text(f.r.IntN(30))...)
		}
		if f.r.IntN(3) == 0 {
			do(f.t, os.Remove(f.at(p))) // its further names stay as they are
		}
		do(f.t, os.WriteFile(f.at(p), b, 0o644))
	}
}

// picture is all that a tree is but for the times of folders, a line for each path.
func picture(t testing.TB, at string) map[string]string {
	t.Helper()
	w, err := walk(t.Context(), dir(t, at))
	do(t, err)
	out := map[string]string{}
	for _, p := range w.sorted() {
		n := *w.nodes[p]
		if n.Type == change.Regular {
			n.Digest, err = w.digest(p)
			do(t, err)
		}
		n.Link = w.link(p)
		n.Dev, n.Ino, n.CtimeNS, n.Nlink = 0, 0, 0, 0
		if n.IsDir() {
			n.MtimeNS = 0
		}
		if len(n.Xattrs) == 0 {
			n.Xattrs = nil
		}
		out[p] = fmt.Sprintf("%+v", n)
	}
	return out
}

func copyOf(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	run(t, nil, "cp", "-a", from, to)
	return to
}

// unpackOnto carries a patch out upon a folder, with the reader of archives that an engine uses.
func unpackOnto(t testing.TB, patch []byte, old string) {
	t.Helper()
	p, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, old)), nil)
	do(t, err)
	made := t.TempDir()
	do(t, os.Chmod(made, 0o700))
	var list []string
	nodes := map[string]*change.Node{}
	_, err = tarball.Unpack(t.Context(), nil, p.Tar(t.Context()), "the patch", dir(t, made), tarball.Options{Record: func(at string, n *change.Node) {
		list, nodes[at] = append(list, at), n
	}})
	do(t, err)
	for _, g := range slices.Backward(p.Gone()) {
		do(t, os.RemoveAll(old+string(g.Path)))
	}
	k, to := (*sys.Kernel)(nil), dir(t, old)
	for _, at := range list {
		n := nodes[at]
		if !n.IsDir() {
			do(t, os.RemoveAll(old+at), os.Rename(made+at, old+at))
			continue
		}
		if st, err := os.Lstat(old + at); err == nil && !st.IsDir() {
			do(t, os.Remove(old+at))
		}
		do(t, os.MkdirAll(old+at, 0o700))
		have, err := sys.Xattrs(to, at[1:])
		do(t, err)
		for key := range have {
			do(t, k.RemoveXattr(to, at[1:], key))
		}
		do(t, k.Chown(to, at[1:], n.UID, n.GID), k.Chmod(to, at[1:], n.Mode))
		for key, val := range n.Xattrs {
			do(t, k.SetXattr(to, at[1:], key, val))
		}
	}
}

// Random trees of all that Linux has: names of any bytes, folders with owners and default ACLs, capabilities,
// devices, times before 1970, links that join and part, types that change.
func TestForest(t *testing.T) {
	needRoot(t)
	r := seeded(t)
	rounds := 10
	if os.Getenv("LIVEUPD_LONG") != "" {
		rounds = 300
	}
	changes := 0
	for range rounds {
		f := &forest{t: t, r: r, dir: t.TempDir()}
		for range 10 + r.IntN(40) {
			f.add()
		}
		old := copyOf(t, f.dir)
		for range 1 + r.IntN(15) {
			f.alter()
		}
		b, s := makePatch(t, old, f.dir, Options{Level: 3})
		want := picture(t, f.dir)
		if s.Entries == 0 && s.Gone == 0 {
			if d := cmp.Diff(want, picture(t, old)); d != "" {
				t.Fatalf("nothing differs, it is said, but:\n%s", d)
			}
			continue
		}
		if again, _ := makePatch(t, copyOf(t, old), copyOf(t, f.dir), Options{Level: 3}); !bytes.Equal(b, again) {
			t.Fatal("the same trees gave two patches")
		}
		unpackOnto(t, b, old)
		if d := cmp.Diff(want, picture(t, old)); d != "" {
			t.Fatalf("the old tree with the patch is not the new tree (-want +got):\n%s", d)
		}
		changes += s.Entries + s.Gone
	}
	t.Logf("%d pairs of trees, %d paths that differ", rounds, changes)
}

// Real packages in two versions.
func TestDebian(t *testing.T) {
	needRoot(t)
	var trees [2]string
	parts := []string{"usr/sbin", "usr/lib/systemd"}
	if os.Getenv("LIVEUPD_LONG") != "" {
		parts = []string{"usr", "etc"}
	}
	for i, name := range []string{"bookworm", "trixie"} {
		root, err := filepath.EvalSymlinks(filepath.Join("/var/cache/liveupd/roots", name))
		if err != nil {
			t.Skipf("no Debian root (tests/setup/root.sh %s): %v", name, err)
		}
		trees[i] = filepath.Join(t.TempDir(), "tree")
		for _, part := range parts {
			to := filepath.Join(trees[i], part)
			do(t, os.MkdirAll(filepath.Dir(to), 0o755))
			run(t, nil, "cp", "-a", filepath.Join(root, part), to)
		}
	}
	b, s := makePatch(t, trees[0], trees[1], Options{Level: 3})
	unpackOnto(t, b, trees[0])
	if d := cmp.Diff(picture(t, trees[1]), picture(t, trees[0])); d != "" {
		t.Errorf("it is not the new tree: %s", d)
	}
	t.Logf("%+v", *s)
}

// A hole stays a hole, however large, and costs nothing.
func TestHoles(t *testing.T) {
	needRoot(t)
	old, new := t.TempDir(), t.TempDir()
	for name, data := range map[string]int64{"at the end": 0, "at the start": 200 << 20, "on both sides": 100 << 20, "all of it": -1} {
		f, err := os.Create(filepath.Join(new, name))
		do(t, err)
		if data >= 0 {
			_, err = f.WriteAt([]byte("data"), data)
		}
		do(t, err, f.Truncate(200<<20+4), f.Close())
	}
	b, _ := makePatch(t, old, new, Options{Level: 3})
	unpackOnto(t, b, old)
	if d := cmp.Diff(picture(t, new), picture(t, old)); d != "" {
		t.Error(d)
	}
	entries, err := os.ReadDir(old)
	do(t, err)
	for _, e := range entries {
		info, err := e.Info()
		do(t, err)
		if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 1<<20 {
			t.Errorf("%s takes %d bytes on disk", e.Name(), used)
		}
	}
	if len(entries) != 4 || len(b) > 10_000 {
		t.Errorf("%d files, a patch of %d bytes", len(entries), len(b))
	}
}
