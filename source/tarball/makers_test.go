package tarball

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// maker is a program that makes an archive OUT of the folder DIR.
type maker struct {
	name  string
	plain bool // the format holds little
	attrs bool // the format holds attributes
	args  []string
	make  func(t *testing.T, out, dir string)
}

const python = `
import os, sys, tarfile
out, top, fmt = sys.argv[1:]
with tarfile.open(out, 'w', format=getattr(tarfile, fmt + '_FORMAT'), errors='surrogateescape') as t:
    t.add(top, arcname='.')
`

func makers() []maker {
	all := []string{"--xattrs", "--xattrs-include=*", "--acls", "--selinux", "--sparse"}
	gnu := func(args ...string) []string {
		return append(append([]string{"tar", "-cf", "OUT", "-C", "DIR"}, args...), ".")
	}
	bsd := func(format string, args ...string) []string {
		return append(append([]string{"bsdtar", "-cf", "OUT", "-C", "DIR", "--format=" + format}, args...), ".")
	}
	py := func(format string) []string { return []string{"/usr/bin/python3", "-c", python, "OUT", "DIR", format} }
	return []maker{
		{name: "GNU tar, gnu", args: gnu("--format=gnu", "--sparse")},
		{name: "GNU tar, oldgnu", args: gnu("--format=oldgnu", "--sparse")},
		{name: "GNU tar, gnu without holes", args: gnu("--format=gnu")},
		{name: "GNU tar, pax", args: gnu(append(all, "--format=pax", "--numeric-owner")...), attrs: true},
		{name: "GNU tar, pax, sparse 0.0", args: gnu(append(all, "--format=pax", "--sparse-version=0.0")...), attrs: true},
		{name: "GNU tar, pax, sparse 0.1", args: gnu(append(all, "--format=pax", "--sparse-version=0.1")...), attrs: true},
		{name: "GNU tar, pax in gzip", args: gnu(append(all, "--format=pax", "--gzip")...), attrs: true},
		{name: "GNU tar, pax in xz", args: gnu(append(all, "--format=pax", "--xz")...), attrs: true},
		{name: "GNU tar, pax in zstd", args: gnu(append(all, "--format=pax", "--zstd")...), attrs: true},
		{name: "GNU tar, pax in bzip2", args: gnu(append(all, "--format=pax", "--bzip2")...), attrs: true},
		{name: "GNU tar, ustar", args: gnu("--format=ustar"), plain: true},
		{name: "GNU tar, v7", args: gnu("--format=v7"), plain: true},
		{name: "GNU tar, labelled", args: gnu("--format=gnu", "--label=backup", "--blocking-factor=64"), plain: true},
		{name: "GNU tar, hard links as files", args: gnu("--format=gnu", "--hard-dereference"), plain: true},
		{name: "bsdtar, pax", args: bsd("pax", "--xattrs", "--acls", "--fflags"), attrs: true},
		{name: "bsdtar, restricted pax", args: bsd("paxr")},
		{name: "bsdtar, gnutar", args: bsd("gnutar")},
		{name: "bsdtar, ustar", args: bsd("ustar"), plain: true},
		{name: "bsdtar, v7", args: bsd("v7"), plain: true},
		{name: "busybox tar", args: []string{"busybox", "tar", "-cf", "OUT", "-C", "DIR", "."}, plain: true},
		{name: "Python, pax", args: py("PAX")},
		{name: "Python, gnu", args: py("GNU")},
		{name: "Python, ustar", args: py("USTAR"), plain: true},
		{name: "Go, pax", make: goTar(tar.FormatPAX, "./"), attrs: true},
		{name: "Go, gnu", make: goTar(tar.FormatGNU, "./")},
		{name: "Go, ustar", make: goTar(tar.FormatUSTAR, "./"), plain: true},
		{name: "Docker layer", make: goTar(tar.FormatPAX, ""), attrs: true},
	}
}

// goTar writes with the standard library: names with prefix in front, as
// container tools do without one.
func goTar(format tar.Format, prefix string) func(t *testing.T, out, dir string) {
	return func(t *testing.T, out, dir string) {
		t.Helper()
		f, err := os.Create(out)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		root, err := sys.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		w := tar.NewWriter(f)
		names := map[uint64]string{}
		err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == dir {
				return err
			}
			rel := strings.TrimPrefix(p, dir+"/")
			if format == tar.FormatPAX && strings.Contains(rel, "\xff") {
				return nil // the writer refuses what is not UTF-8 in pax
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			target := ""
			if info.Mode()&fs.ModeSymlink != 0 {
				if target, err = os.Readlink(p); err != nil {
					return err
				}
				if format == tar.FormatPAX && strings.Contains(target, "\xff") {
					return nil
				}
			}
			h, err := tar.FileInfoHeader(info, target)
			if err != nil {
				return err
			}
			h.Format, h.Uname, h.Gname = format, "", ""
			h.Name = prefix + rel
			if d.IsDir() {
				h.Name += "/"
			}
			if format != tar.FormatPAX {
				h.AccessTime, h.ChangeTime = h.ModTime.Truncate(1e9), h.ModTime.Truncate(1e9)
				h.ModTime = h.ModTime.Truncate(1e9)
			}
			if format == tar.FormatUSTAR {
				h.AccessTime, h.ChangeTime = info.ModTime().AddDate(-9999, 0, 0), info.ModTime().AddDate(-9999, 0, 0)
				h = &tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, Format: format}
			}
			st := info.Sys().(*syscall.Stat_t)
			if first := names[st.Ino]; first != "" && !d.IsDir() {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, prefix+first, 0
			}
			names[st.Ino] = rel
			if format == tar.FormatPAX {
				xattrs, err := sys.Xattrs(root, rel)
				if err != nil {
					return err
				}
				for key, val := range xattrs {
					if strings.ContainsAny(key, "=") {
						continue // the writer refuses it
					}
					if h.PAXRecords == nil {
						h.PAXRecords = map[string]string{}
					}
					h.PAXRecords["SCHILY.xattr."+key] = string(val)
				}
			}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			if h.Typeflag != tar.TypeReg {
				return nil
			}
			in, err := os.Open(p)
			if err != nil {
				return err
			}
			defer in.Close()
			_, err = io.Copy(w, in)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What each maker writes becomes entry by entry what tar -x makes of it, or what it
// was in the source where tar loses something: content, holes, owner, mode, time,
// attributes, links.
func TestMakers(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	trees := map[[2]bool]string{}
	source := func(m maker) string {
		key := [2]bool{m.plain, m.attrs}
		if trees[key] == "" {
			dir := filepath.Join(top, "source"+strings.Repeat("p", len(trees)))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			oddTree(t, dir, m.plain)
			if m.attrs {
				attributes(t, dir)
			}
			trees[key] = dir
		}
		return trees[key]
	}
	for i, m := range makers() {
		dir := source(m)
		t.Run(m.name, func(t *testing.T) {
			out := filepath.Join(top, "archive"+string(rune('a'+i)))
			if m.make != nil {
				m.make(t, out, dir)
			} else {
				args := make([]string, len(m.args))
				for i, a := range m.args {
					args[i] = map[string]string{"OUT": out, "DIR": dir}[a]
					if args[i] == "" {
						args[i] = a
					}
				}
				command(t, args[0], args[1:]...)
			}
			defer os.Remove(out)
			compareWithTar(t, out, dir)
		})
	}
}

func compareWithTar(t *testing.T, name, source string) {
	t.Helper()
	ref := filepath.Join(t.TempDir(), "ref")
	if err := os.Mkdir(ref, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, "tar", "-xpf", name, "-C", ref, "--xattrs", "--xattrs-include=*", "--acls", "--selinux", "--numeric-owner", "--same-owner", "--no-overwrite-dir", "--delay-directory-restore")
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	b := newBox(t)
	before := b.outside()
	res, nodes, err := b.unpack(nil, in, Options{ID: hostIDs(t)})
	if err != nil {
		t.Fatal(err)
	}
	want, got := describe(t, ref), describe(t, b.dir)
	// tar passes over ACLs that are given as attributes (Go, Docker) and unescapes
	// bsdtar's attribute names by half: there the source decides.
	own := describe(t, source)
	for p, text := range got {
		if want[p] != "" && want[p] != text && own[p] == text {
			want[p] = text
			t.Logf("%q is what it was in the source, and not what tar -x makes of it", p)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Unpack() made something else than tar (-tar +Unpack):\n%s", diff)
	}
	checkNodes(t, b.dir, nodes, res.Implied)
	if before != b.outside() {
		t.Error("something changed beside dest")
	}
	var files, bytes int64
	seen := map[uint64]bool{}
	for _, n := range nodes {
		if n.Type == change.Regular && !seen[n.Ino] {
			seen[n.Ino] = true
			files++
			bytes += n.Size
		}
	}
	if res.Files != files || res.Bytes != bytes || res.Entries != int64(len(nodes)) {
		t.Errorf("Result has %d files, %d bytes, %d entries; want %d, %d, %d", res.Files, res.Bytes, res.Entries, files, bytes, len(nodes))
	}
	t.Logf("%d entries, %s in %s, warnings %q", res.Entries, res.Format, res.Compression, res.Warnings)
}
