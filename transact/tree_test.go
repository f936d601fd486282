package transact

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// rig is a live tree, a source tree and the volumes of the live one.
type rig struct {
	t         testing.TB
	live, src string
	mounts    []string                // of volumes; "/" first
	srcNodes  map[string]*change.Node // what nodes says of src, where that is known
}

func newRig(t testing.TB, base string) *rig {
	r := &rig{t: t, live: filepath.Join(base, "live"), src: filepath.Join(base, "src"), mounts: []string{"/"}}
	for _, dir := range []string{r.live, r.src} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// volumes opens the volumes anew, as a new process would.
func (r *rig) volumes() []Volume {
	r.t.Helper()
	var out []Volume
	for _, m := range r.mounts {
		fd, err := sys.OpenRoot(filepath.Join(r.live, m))
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { fd.Close() })
		out = append(out, Volume{Mount: m, Dir: fd})
	}
	return out
}

func (r *rig) store(k *sys.Kernel) *Store {
	r.t.Helper()
	s, err := Open(k, r.volumes())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(s.Close)
	return s
}

// apply runs a whole transaction the way the engine does.
func (r *rig) apply(s *Store, d *change.Delta) (*Tx, error) {
	tx, err := s.Begin(Header{Source: "tree:" + r.src})
	if err != nil {
		return nil, err
	}
	defer tx.Close()
	src, err := sys.OpenRoot(r.src)
	if err != nil {
		return tx, err
	}
	defer src.Close()
	ctx := context.Background()
	err = tx.Stage(ctx, d, src, nil)
	if err == nil {
		err = tx.Prepare(ctx, &change.Plan{ID: "p"})
	}
	if err == nil {
		_, err = tx.Commit(ctx)
	}
	if err != nil {
		if !errors.Is(err, change.ErrNeedsPerson) {
			err = errors.Join(err, tx.Discard())
		}
		return tx, err
	}
	return tx, tx.Verified()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write makes a file and the folders that lead to it.
func write(t testing.TB, root, name, content string, mode os.FileMode) {
	t.Helper()
	p := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(p), 0o755))
	must(t, os.WriteFile(p, []byte(content), 0o600))
	must(t, os.Chmod(p, mode))
}

// age gives every object of a tree a time of its own, folders last.
func age(t testing.TB, root string, from time.Time) {
	t.Helper()
	k := (*sys.Kernel)(nil)
	dir, err := sys.OpenRoot(root)
	must(t, err)
	defer dir.Close()
	var names []string
	must(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		names = append(names, rel)
		return err
	}))
	for i, rel := range slices.Backward(names) {
		must(t, k.SetMtime(dir, rel, from.UnixNano()+int64(i)*1_000_000_007))
	}
}

// snapshot describes every object of a tree but .liveupd: content, owner, mode,
// mtime, xattrs, links.
func snapshot(t testing.TB, root string) map[string]string {
	t.Helper()
	dir, err := sys.OpenRoot(root)
	must(t, err)
	defer dir.Close()
	out := map[string]string{}
	links := map[[2]uint64]string{}
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == Dir {
			return filepath.SkipDir
		}
		rel, _ := filepath.Rel(root, p)
		n := node(t, dir, rel)
		line := fmt.Sprintf("%s %04o %d:%d size=%d mtime=%d rdev=%d target=%q digest=%.8s", n.Type, n.Mode, n.UID, n.GID, n.Size, n.MtimeNS, n.Rdev, n.Target, n.Digest)
		keys := make([]string, 0, len(n.Xattrs))
		for k := range n.Xattrs {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			line += fmt.Sprintf(" %s=%x", k, n.Xattrs[k])
		}
		if !n.IsDir() {
			key := [2]uint64{n.Dev, n.Ino}
			if _, ok := links[key]; !ok {
				links[key] = rel
			}
			line += fmt.Sprintf(" nlink=%d link=%s", n.Nlink, links[key])
		}
		out[rel] = line
		return nil
	}))
	return out
}

func node(t testing.TB, dir *sys.FD, rel string) *change.Node {
	t.Helper()
	n, err := sys.Lstat(dir, rel)
	must(t, err)
	n.Xattrs, err = sys.Xattrs(dir, rel)
	must(t, err)
	switch n.Type {
	case change.Symlink:
		n.Target, err = sys.Readlink(dir, rel)
		must(t, err)
	case change.Regular:
		b, err := os.ReadFile(filepath.Join(dir.Name(), rel))
		must(t, err)
		n.Digest = sha256.Sum256(b)
	}
	return n
}

// compare makes the Delta that turns the live tree into the source.
func (r *rig) compare() *change.Delta {
	r.t.Helper()
	live, src := r.nodes(r.live), map[string]*change.Node{}
	for p, n := range r.srcNodes {
		fresh := *n
		src[p] = &fresh
	}
	if r.srcNodes == nil {
		src = r.nodes(r.src)
	}
	moved := map[string]bool{} // names that get another inode or go
	for p, old := range live {
		now := src[p]
		moved[p] = now == nil || now.Type != old.Type || (!old.IsDir() && aspects(old, now).InPlace() == false) || (!old.IsDir() && old.Link != now.Link)
	}
	// One name that moves takes all names of its inode along, old and new.
	for again := true; again; {
		again = false
		groups := map[string]bool{}
		for _, tree := range []struct {
			prefix string
			nodes  map[string]*change.Node
		}{{"old ", live}, {"new ", src}} {
			for p, n := range tree.nodes {
				if n.Link != "" && (moved[p] || live[p] == nil) {
					groups[tree.prefix+n.Link] = true
				}
			}
			for p, n := range tree.nodes {
				if n.Link != "" && groups[tree.prefix+n.Link] && !moved[p] && live[p] != nil {
					moved[p], again = true, true
				}
			}
		}
	}
	d := &change.Delta{}
	for p, old := range live {
		now := src[p]
		e := change.Entry{Path: p, Old: old, New: now, From: p}
		switch {
		case now == nil:
			e.Op, e.From = change.Remove, ""
		case moved[p]:
			e.Op, e.Aspects = change.Replace, aspects(old, now)|change.AspectLinks
		case aspects(old, now) != 0 || old.MtimeNS != now.MtimeNS:
			e.Op, e.Aspects, e.From = change.Metadata, aspects(old, now)|change.AspectMtime, ""
		default:
			d.Identical++
			continue
		}
		d.Entries = append(d.Entries, e)
	}
	for p, now := range src {
		if live[p] == nil {
			d.Entries = append(d.Entries, change.Entry{Path: p, Op: change.Add, New: now, From: p})
		}
	}
	slices.SortFunc(d.Entries, func(a, b change.Entry) int { return strings.Compare(a.Path, b.Path) })
	return d
}

func (r *rig) nodes(root string) map[string]*change.Node {
	r.t.Helper()
	dir, err := sys.OpenRoot(root)
	must(r.t, err)
	defer dir.Close()
	out := map[string]*change.Node{}
	links := map[[2]uint64][]string{}
	must(r.t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == Dir {
			return filepath.SkipDir
		}
		rel, _ := filepath.Rel(root, p)
		n := node(r.t, dir, rel)
		abs := filepath.Join("/", rel)
		out[abs] = n
		if !n.IsDir() && n.Nlink > 1 {
			links[[2]uint64{n.Dev, n.Ino}] = append(links[[2]uint64{n.Dev, n.Ino}], abs)
		}
		return nil
	}))
	for _, names := range links {
		for _, p := range names {
			out[p].Link = slices.Min(names)
		}
	}
	return out
}

func sameTree(t testing.TB, what string, want, got map[string]string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

// aloneInStore checks that no inode of the live tree has a name under .liveupd.
func (r *rig) aloneInStore() {
	r.t.Helper()
	live := map[[2]uint64]string{}
	var kept [][2]uint64
	must(r.t, filepath.WalkDir(r.live, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		key := [2]uint64{st.Dev, st.Ino}
		if strings.Contains(p, "/"+Dir+"/") {
			kept = append(kept, key)
		} else {
			live[key] = p
		}
		return nil
	}))
	for _, key := range kept {
		if p, ok := live[key]; ok {
			r.t.Errorf("live inode of %s has a name under %s", p, Dir)
		}
	}
}

var oldTime, newTime = time.Unix(1_500_000_000, 123456789), time.Unix(1_700_000_000, 987654321)

// capNetBind is security.capability with cap_net_bind_service=ep, revision 2.
var capNetBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// aclUser1 is system.posix_acl_access: user::rw- user:1:r-- group::r-- mask::r-- other::---.
var aclUser1 = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x01\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"

func setxattr(t testing.TB, root, name, key, val string) {
	t.Helper()
	must(t, syscall.Setxattr(filepath.Join(root, name), key, []byte(val), 0))
}

// everyChange fills the two trees with every kind of change.
func (r *rig) everyChange() {
	t, o, n := r.t, r.live, r.src
	root := os.Geteuid() == 0
	link := func(root, target, name string) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		must(t, os.Symlink(target, filepath.Join(root, name)))
	}
	hard := func(root, a, b string) { must(t, os.Link(filepath.Join(root, a), filepath.Join(root, b))) }
	both := func(name, oldContent, newContent string, mode os.FileMode) {
		write(t, o, name, oldContent, mode)
		write(t, n, name, newContent, mode)
	}
	both("usr/bin/tool", "old tool", "a newer tool", 0o755)
	both("usr/bin/suid", "old", "new!", 0o755|os.ModeSetuid)
	both("usr/lib/libfoo.so.1", "old lib", "new lib", 0o644)
	both("usr/lib/ld-linux.so.2", "old ld", "new ld", 0o755)
	both("usr/lib/libc.so.6", "old libc", "new libc", 0o755)
	both("usr/lib/os-release", "VERSION=1", "VERSION=2", 0o644)
	both("usr/lib/systemd/system/a.service", "[Service]\nExecStart=/a", "[Service]\nExecStart=/b", 0o644)
	both("usr/share/same", "same", "same", 0o644)
	both("usr/share/big", strings.Repeat("x", 1<<20+1), strings.Repeat("y", 1<<20+5), 0o644)
	both("etc/odd \xff\n%41 name", "old", "newer", 0o600)
	write(t, o, "etc/gone", "gone", 0o644)
	write(t, n, "etc/added", "added", 0o640)
	write(t, n, "etc/empty", "", 0o640)
	// Type changes both ways.
	write(t, o, "etc/dir2file/a", "a", 0o644)
	write(t, o, "etc/dir2file/b/c", "c", 0o644)
	write(t, n, "etc/dir2file", "now a file", 0o644)
	write(t, o, "etc/file2dir", "was a file", 0o644)
	write(t, n, "etc/file2dir/x/y", "y", 0o644)
	write(t, o, "etc/file2link", "was a file", 0o644)
	link(n, "added", "etc/file2link")
	link(o, "gone", "etc/link2file")
	write(t, n, "etc/link2file", "now a file", 0o644)
	link(o, "/usr/share/same", "etc/retarget")
	link(n, "../usr/share/big", "etc/retarget")
	write(t, o, "etc/dir2link/x", "x", 0o644)
	link(n, "/usr", "etc/dir2link")
	link(o, "/usr", "etc/link2dir")
	write(t, n, "etc/link2dir/x", "x", 0o644)
	// Trees.
	write(t, o, "usr/share/oldtree/a/b/c", "c", 0o644)
	write(t, o, "usr/share/oldtree/d", "d", 0o644)
	link(o, "d", "usr/share/oldtree/e")
	write(t, n, "usr/share/newtree/a/b/c", "c2", 0o644)
	write(t, n, "usr/share/newtree/d", "d2", 0o755)
	link(n, "nowhere", "usr/share/newtree/e")
	must(t, os.MkdirAll(filepath.Join(n, "usr/share/newtree/empty"), 0o755))
	must(t, os.Chmod(filepath.Join(n, "usr/share/newtree/empty"), 0o700|os.ModeSticky))
	// A name that sorts between a folder and what it holds.
	write(t, n, "usr/share/newtree-x", "x", 0o644)
	// Hard links: both replaced, joined, parted, one added.
	both("usr/share/h/h1", "old h", "new h", 0o644)
	hard(o, "usr/share/h/h1", "usr/share/h/h2")
	hard(n, "usr/share/h/h1", "usr/share/h/h2")
	both("usr/share/h/join1", "j", "j", 0o644)
	write(t, o, "usr/share/h/join2", "j", 0o644)
	hard(n, "usr/share/h/join1", "usr/share/h/join2")
	both("usr/share/h/part1", "p", "p", 0o644)
	hard(o, "usr/share/h/part1", "usr/share/h/part2")
	write(t, n, "usr/share/h/part2", "p", 0o644)
	both("usr/share/h/more1", "m", "m", 0o644)
	hard(n, "usr/share/h/more1", "usr/share/h/more2")
	both("usr/share/h/less1", "l", "l", 0o644)
	hard(o, "usr/share/h/less1", "usr/share/h/less2")
	// Metadata only.
	both("usr/share/m/mode", "m", "m", 0o644)
	must(t, os.Chmod(filepath.Join(n, "usr/share/m/mode"), 0o600))
	both("usr/share/m/mtime", "m", "m", 0o644)
	both("usr/share/m/dir/x", "x", "x", 0o644)
	must(t, os.Chmod(filepath.Join(n, "usr/share/m/dir"), 0o711))
	both("usr/share/m/xattr", "x", "x", 0o644)
	setxattr(t, o, "usr/share/m/xattr", "user.gone", "1")
	setxattr(t, o, "usr/share/m/xattr", "user.both", "1")
	setxattr(t, n, "usr/share/m/xattr", "user.both", "2")
	setxattr(t, n, "usr/share/m/xattr", "user.new", "\x00\xff")
	both("usr/share/x/content", "x", "xx", 0o644)
	setxattr(t, n, "usr/share/x/content", "user.new", "v")
	link(o, "a", "usr/share/m/symlink")
	link(n, "a", "usr/share/m/symlink")
	must(t, syscall.Mkfifo(filepath.Join(o, "usr/share/fifo2file"), 0o600))
	write(t, n, "usr/share/fifo2file", "f", 0o644)
	must(t, syscall.Mkfifo(filepath.Join(n, "usr/share/fifo"), 0o620))
	must(t, syscall.Mknod(filepath.Join(n, "usr/share/socket"), syscall.S_IFSOCK|0o600, 0))
	if root {
		chown := func(root, name string, uid, gid int) { must(t, os.Lchown(filepath.Join(root, name), uid, gid)) }
		both("usr/share/m/owner", "m", "m", 0o755|os.ModeSetuid)
		chown(n, "usr/share/m/owner", 33, 34)
		must(t, os.Chmod(filepath.Join(n, "usr/share/m/owner"), 0o755|os.ModeSetuid))
		chown(n, "usr/share/m/symlink", 5, 6)
		chown(n, "usr/share/newtree/e", 5, 6)
		both("usr/share/m/caps", "c", "c", 0o755)
		setxattr(t, n, "usr/share/m/caps", "security.capability", capNetBind)
		both("usr/share/m/capsowner", "c", "c", 0o755)
		chown(n, "usr/share/m/capsowner", 7, 7)
		setxattr(t, o, "usr/share/m/capsowner", "security.capability", capNetBind)
		setxattr(t, n, "usr/share/m/capsowner", "security.capability", capNetBind)
		both("usr/bin/caps", "c", "cc", 0o755)
		setxattr(t, n, "usr/bin/caps", "security.capability", capNetBind)
		both("usr/share/m/acl", "a", "a", 0o640)
		setxattr(t, n, "usr/share/m/acl", "system.posix_acl_access", aclUser1)
		both("usr/share/m/noacl", "a", "a", 0o640)
		setxattr(t, o, "usr/share/m/noacl", "system.posix_acl_access", aclUser1)
		setxattr(t, n, "usr/share/newtree/a", "system.posix_acl_default", aclUser1)
		must(t, syscall.Mknod(filepath.Join(o, "usr/share/dev"), syscall.S_IFCHR|0o600, 0x103))
		must(t, syscall.Mknod(filepath.Join(n, "usr/share/dev"), syscall.S_IFCHR|0o600, 0x105))
		must(t, syscall.Mknod(filepath.Join(n, "usr/share/block"), syscall.S_IFBLK|0o600, 0x700))
	}
	age(t, o, oldTime)
	age(t, n, newTime)
}
