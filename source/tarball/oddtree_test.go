package tarball

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: devices, owners, capabilities")
	}
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s: %v", name, err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TAR_OPTIONS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// oddTree makes a tree of all that an archive of the kind can hold: plain leaves
// out what v7 and ustar cannot.
func oddTree(t *testing.T, top string, plain bool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(top, name) }
	write := func(name, body string) { t.Helper(); must(os.WriteFile(at(name), []byte(body), 0o644)) }
	for _, d := range []string{"dir", "dir/inner", "sticky", "group", "closed", "empty"} {
		must(os.Mkdir(at(d), 0o755))
	}
	for name, size := range map[string]int{"size0": 0, "size1": 1, "size511": 511, "size512": 512, "size513": 513, "big": 300_000, "bigger": 3<<20 + 7} {
		write("dir/"+name, strings.Repeat("0123456789abcde\n", size/16+1)[:size])
	}
	write("dir/exec", "#!/bin/sh\n")
	write("dir/setuid", "suid")
	write("dir/secret", "mode 0")
	write("closed/inside", "x")
	write("with space", "")
	write("-dash", "")
	write(`back\slash`, "")
	write(".wh.file", "")
	write("dir/links1", "linked")
	must(os.Link(at("dir/links1"), at("dir/inner/links0")))
	must(os.Link(at("dir/links1"), at("links2")))
	must(os.Symlink("links2", at("dir/inner/sym")))
	must(os.Symlink("/nowhere/at/all", at("dangling")))
	must(os.Symlink("../outside", at("leaves")))
	must(os.Chown(at("dir/size1"), 12345, 54321))
	must(os.Lchown(at("dangling"), 7, 8))
	must(os.Chown(at("dir/setuid"), 65534, 65534))
	if !plain {
		write("new\nline", "")
		write("\xff\xfe not utf-8", "bytes")
		write("ünïcödé", "")
		write(strings.Repeat("n", 255), "long name")
		deep := strings.Repeat(strings.Repeat("d", 90)+"/", 4)
		must(os.MkdirAll(at(deep), 0o755))
		write(deep+"file", "deep")
		must(os.Symlink(strings.Repeat("t", 200), at("longlink")))
		must(os.Symlink("\xff\xfe not utf-8", at("to bytes")))
		must(os.Link(at("dangling"), at("dangling too")))
		must(os.Link(at(deep+"file"), at("far")))
		must(syscall.Mknod(at("null"), syscall.S_IFCHR|0o666, int(rdev(1, 3))))
		must(syscall.Mknod(at("loop"), syscall.S_IFBLK|0o660, int(rdev(7, 300))))
		must(syscall.Mkfifo(at("fifo"), 0o600))
		write("huge id", "")
		must(os.Chown(at("huge id"), 3_000_000_000, 2_999_999))
		sparse(t, at("sparse"), 4<<20+77, 0, 1<<20, 3<<20)
		sparse(t, at("sparse end"), 2<<20, 64<<10)
		sparse(t, at("all hole"), 1<<20)
		var many []int64
		for i := range int64(100) {
			many = append(many, i*64<<10)
		}
		sparse(t, at("sparse many"), 8<<20, many...)
	}
	for name, mode := range map[string]uint32{"dir/exec": 0o755, "dir/setuid": 0o6755, "dir/secret": 0, "sticky": 0o1777, "group": 0o2775, "closed": 0} {
		must(syscall.Chmod(at(name), mode))
	}
	dir, err := sys.OpenRoot(top)
	must(err)
	defer dir.Close()
	var k *sys.Kernel
	// From the leaves up, so that a folder's time is the last that is set in it.
	var all []string
	must(filepath.WalkDir(top, func(p string, _ fs.DirEntry, err error) error {
		if p != top {
			all = append(all, strings.TrimPrefix(p, top+"/"))
		}
		return err
	}))
	slices.Reverse(all)
	for i, name := range all {
		ns := int64(1_500_000_000+i) * 1e9
		if !plain {
			ns += 123_456_789
		}
		if name == "with space" && !plain {
			ns = -1_500_000_000
		}
		must(k.SetMtime(dir, name, ns))
	}
}

// attributes adds what only pax archives hold.
func attributes(t *testing.T, top string) {
	t.Helper()
	dir, err := sys.OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var k *sys.Kernel
	for _, a := range []struct{ name, key, val string }{
		{"dir/size0", "user.empty", ""},
		{"dir/size1", "user.binary", "a\x00=\nb\xff"},
		{"dir/size1", "user.key=with", "x"},
		{"dir/size1", "user.100% odd%3D key", "x"},
		{"dir/inner", "user.on.a.folder", "1"},
		{"dir/exec", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
		{"dangling", "trusted.on.a.symlink", "1"},
		{"fifo", "trusted.on.a.fifo", "1"},
		{"dir/size513", "security.selinux", "system_u:object_r:etc_t:s0\x00"},
		{"dir/size512", "trusted.big", strings.Repeat("v", 900)},
	} {
		if err := k.SetXattr(dir, a.name, a.key, []byte(a.val)); err != nil {
			t.Fatalf("%s %s: %v", a.name, a.key, err)
		}
	}
	command(t, "setfacl", "-m", "u:1234:rw,g:4321:r,u:0:r,m::rw", filepath.Join(top, "dir/size511"))
	command(t, "setfacl", "-m", "u:1234:rwx,d:u:1234:rx,d:g:77:r", filepath.Join(top, "empty"))
	command(t, "setfacl", "-m", "d:u::rwx,d:g::rx,d:o::-", filepath.Join(top, "sticky"))
}

// sparse makes a file with 4096 bytes of data at each offset.
func sparse(t *testing.T, name string, size int64, data ...int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range data {
		if _, err := f.WriteAt([]byte(strings.Repeat("data", 1024)), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// describe renders each object below top, by path.
func describe(t *testing.T, top string) map[string]string {
	t.Helper()
	root, err := sys.OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	out := map[string]string{}
	first := map[uint64]string{}
	err = filepath.WalkDir(top, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == top {
			return err
		}
		rel := strings.TrimPrefix(p, top+"/")
		n, err := sys.Lstat(root, rel)
		if err != nil {
			return err
		}
		if n.Xattrs, err = sys.Xattrs(root, rel); err != nil {
			return err
		}
		if n.Nlink > 1 && !n.IsDir() {
			if first[n.Ino] == "" {
				first[n.Ino] = rel
			}
		}
		text := fmt.Sprintf("%v %04o %d:%d %d bytes, time %d, device %d, %d links with %q", n.Type, n.Mode, n.UID, n.GID, n.Size, n.MtimeNS, n.Rdev, n.Nlink, first[n.Ino])
		if n.IsDir() { // its link count is the file system's
			text = fmt.Sprintf("%v %04o %d:%d, time %d", n.Type, n.Mode, n.UID, n.GID, n.MtimeNS)
		}
		for _, key := range slices.Sorted(maps.Keys(n.Xattrs)) {
			text += fmt.Sprintf("\n  %s=%q", key, n.Xattrs[key])
		}
		switch n.Type {
		case change.Symlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf("\n  to %q", target)
		case change.Regular:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf("\n  sha256 %x\n  data at%s", sha256.Sum256(b), dataMap(t, p))
		}
		out[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dataMap lists where a file holds data.
func dataMap(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const seekData, seekHole = 3, 4
	out, at := "", int64(0)
	for {
		data, err := f.Seek(at, seekData)
		if err != nil {
			return out // ENXIO: only a hole follows
		}
		if at, err = f.Seek(data, seekHole); err != nil {
			t.Fatal(err)
		}
		out += fmt.Sprintf(" %d-%d", data, at)
	}
}

// checkNodes compares what Record was told with what lies on disk.
func checkNodes(t *testing.T, top string, nodes map[string]*change.Node, implied []string) {
	t.Helper()
	root, err := sys.OpenRoot(top)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	seen := 0
	err = filepath.WalkDir(top, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == top {
			return err
		}
		rel := strings.TrimPrefix(p, top+"/")
		got := nodes["/"+rel]
		if got == nil {
			if !slices.Contains(implied, "/"+rel) {
				t.Errorf("Record() was not told of %q", rel)
			}
			return nil
		}
		seen++
		want, err := sys.Lstat(root, rel)
		if err != nil {
			return err
		}
		if want.Xattrs, err = sys.Xattrs(root, rel); err != nil {
			return err
		}
		want.Link = got.Link
		if (got.Link != "") != (want.Nlink > 1 && !want.IsDir()) {
			t.Errorf("Record(%q) has the link group %q with %d links", rel, got.Link, want.Nlink)
		}
		switch want.Type {
		case change.Symlink:
			want.Target, err = os.Readlink(p)
		case change.Regular:
			var b []byte
			b, err = os.ReadFile(p)
			want.Digest = sha256.Sum256(b)
		case change.Directory:
			want.Nlink = got.Nlink
		}
		if err != nil {
			return err
		}
		if g, w := nodeText(got), nodeText(want); g != w {
			t.Errorf("Record(%q) =\n%s; want\n%s", rel, g, w)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(nodes) {
		t.Errorf("Record() was told of %d paths, %d are there", len(nodes), seen)
	}
}

func nodeText(n *change.Node) string {
	own := *n
	own.Xattrs = nil
	text := fmt.Sprintf("%+v", own)
	for _, key := range slices.Sorted(maps.Keys(n.Xattrs)) {
		text += " " + key + "=" + hex.EncodeToString(n.Xattrs[key])
	}
	return text
}
