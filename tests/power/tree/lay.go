package tree

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// layer lays one of two trees; its first error ends it.
type layer struct {
	root string
	next bool // the update, not what it finds
	err  error
}

// The capability cap_net_bind_service=ep, revision 2 (linux/capability.h).
const capNetBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Lay lays the old tree, or the whole tree of the update, into a folder: some hundreds of objects, and between
// the two every kind of change.
func Lay(root string, next bool) error {
	l := &layer{root: root, next: next}
	version := "1"
	if next {
		version = "2"
	}
	l.file("usr/lib/os-release", "ID=test\nVERSION_ID="+version+"\n", 0o644)
	l.file("usr/lib/ld-linux-x86-64.so.2", "the loader "+version, 0o755)
	l.file("usr/lib/libc.so.6", strings.Repeat("the libc "+version, 10_000), 0o755)
	l.file("usr/share/big", strings.Repeat(version+"2345678", 200_000), 0o644)
	l.file("etc/same.conf", "the same", 0o644)
	l.file("etc/changed.conf", "changed "+version, 0o640)
	l.many(version)
	l.kinds(version)
	l.types(version)
	l.metadata()
	if !next {
		l.file(Busy+"/first", "", 0o644)
	}
	if l.err != nil {
		return l.err
	}
	// Old and new times differ for all, the same content is a change of metadata only.
	from := time.Unix(1_500_000_000, 123_456_789)
	if next {
		from = time.Unix(1_700_000_000, 987_654_321)
	}
	return Age(root, from)
}

// many are the files that make the exchange long: replaced, added, removed, the same.
func (l *layer) many(version string) {
	for i := range 320 {
		dir := fmt.Sprintf("usr/lib/pack%02d", i%16)
		l.file(fmt.Sprintf("%s/replaced%03d.so", dir, i), strings.Repeat(fmt.Sprint("object ", i, version), 1+i*7%900), 0o644)
	}
	for i := range 120 {
		dir := fmt.Sprintf("usr/share/pack%02d", i%8)
		if l.next {
			l.file(fmt.Sprintf("%s/added%03d", dir, i), strings.Repeat("added", i), 0o644)
		} else {
			l.file(fmt.Sprintf("%s/removed%03d", dir, i), strings.Repeat("removed", i), 0o644)
		}
		l.file(fmt.Sprintf("%s/same%03d", dir, i), "same", 0o644)
	}
	for i := range 40 {
		l.file(fmt.Sprintf("usr/bin/program%02d", i), fmt.Sprint("program ", i, version), 0o755)
	}
}

// kinds are symlinks, hard links, folders that come and go, devices, fifos.
func (l *layer) kinds(version string) {
	for i := range 20 {
		l.link(fmt.Sprintf("usr/lib/link%02d", i), fmt.Sprintf("pack00/%s-%d", version, i))
	}
	for i := range 12 {
		group := fmt.Sprintf("usr/share/hard%02d/", i)
		l.file(group+"a", fmt.Sprint("hard ", i, version), 0o644)
		l.hard(group+"a", group+"b")
		l.hard(group+"a", group+"c")
	}
	l.file("usr/share/joined/a", "j", 0o644)
	l.file("usr/share/parted/a", "p", 0o644)
	if l.next {
		l.hard("usr/share/joined/a", "usr/share/joined/b")
		l.file("usr/share/parted/b", "p", 0o644)
	} else {
		l.file("usr/share/joined/b", "j", 0o644)
		l.hard("usr/share/parted/a", "usr/share/parted/b")
	}
	for i := range 30 {
		top := "usr/share/oldtree"
		if l.next {
			top = "usr/share/newtree"
		}
		l.file(fmt.Sprintf("%s/a%d/b/c%d", top, i%3, i), fmt.Sprint("in a folder ", i), 0o644)
		l.link(fmt.Sprintf("%s/a%d/link%d", top, i%3, i), "nowhere")
	}
	if l.next {
		l.folder("usr/share/newtree/empty", 0o700|os.ModeSticky)
		l.node("usr/share/added.fifo", syscall.S_IFIFO|0o620, 0)
		l.node("usr/share/added.block", syscall.S_IFBLK|0o600, 0x700)
		l.node("usr/share/changed.char", syscall.S_IFCHR|0o600, 0x105)
	} else {
		l.node("usr/share/removed.fifo", syscall.S_IFIFO|0o600, 0)
		l.node("usr/share/changed.char", syscall.S_IFCHR|0o600, 0x103)
	}
}

// types change from one to another.
func (l *layer) types(version string) {
	if !l.next {
		l.file("usr/share/dir2file/a/b", "b", 0o644)
		l.file("usr/share/file2dir", "was a file", 0o644)
		l.file("usr/share/file2link", "was a file", 0o644)
		l.link("usr/share/link2file", "nowhere")
		l.file("usr/share/dir2link/x", "x", 0o644)
		l.node("usr/share/fifo2file", syscall.S_IFIFO|0o600, 0)
		return
	}
	l.file("usr/share/dir2file", "now a file", 0o644)
	l.file("usr/share/file2dir/a/b", "b"+version, 0o644)
	l.link("usr/share/file2link", "nowhere")
	l.file("usr/share/link2file", "now a file", 0o644)
	l.link("usr/share/dir2link", "/usr")
	l.file("usr/share/fifo2file", "now a file", 0o644)
}

// metadata changes alone, of files and of folders.
func (l *layer) metadata() {
	for i := range 20 {
		l.file(fmt.Sprintf("usr/share/metadata/mode%02d", i), "m", 0o644)
		l.file(fmt.Sprintf("usr/share/metadata/owner%02d", i), "m", 0o755)
		l.file(fmt.Sprintf("usr/share/metadata/xattr%02d", i), "m", 0o644)
		if l.next {
			l.do("chmod", fmt.Sprintf("usr/share/metadata/mode%02d", i), func(p string) error { return os.Chmod(p, 0o600) })
			l.do("chown", fmt.Sprintf("usr/share/metadata/owner%02d", i), func(p string) error { return os.Chown(p, 33, 34) })
			l.attribute(fmt.Sprintf("usr/share/metadata/xattr%02d", i), "user.new", "\x00\xff")
		} else {
			l.attribute(fmt.Sprintf("usr/share/metadata/xattr%02d", i), "user.old", "1")
		}
	}
	l.file("usr/share/metadata/folder/x", "x", 0o644)
	l.file("usr/bin/suid", "set-uid", 0o755|os.ModeSetuid)
	l.file("usr/bin/capable", "capable", 0o755)
	if l.next {
		l.do("chmod", "usr/share/metadata/folder", func(p string) error { return os.Chmod(p, 0o711) })
		l.attribute("usr/bin/capable", "security.capability", capNetBind)
		l.attribute("usr/lib/libc.so.6", "user.build", "2")
	}
}

func (l *layer) do(what, name string, call func(path string) error) {
	if l.err != nil {
		return
	}
	full := filepath.Join(l.root, name)
	if l.err = os.MkdirAll(filepath.Dir(full), 0o755); l.err != nil {
		return
	}
	if err := call(full); err != nil {
		l.err = fmt.Errorf("cannot %s %s: %w", what, full, err)
	}
}

func (l *layer) file(name, content string, mode os.FileMode) {
	l.do("write", name, func(p string) error {
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			return err
		}
		return os.Chmod(p, mode)
	})
}

func (l *layer) folder(name string, mode os.FileMode) {
	l.do("make", name, func(p string) error {
		if err := os.Mkdir(p, 0o700); err != nil {
			return err
		}
		return os.Chmod(p, mode)
	})
}

func (l *layer) link(name, target string) {
	l.do("make", name, func(p string) error { return os.Symlink(target, p) })
}

func (l *layer) hard(name, another string) {
	l.do("link", another, func(p string) error { return os.Link(filepath.Join(l.root, name), p) })
}

func (l *layer) node(name string, mode uint32, device int) {
	l.do("make", name, func(p string) error { return syscall.Mknod(p, mode, device) })
}

func (l *layer) attribute(name, key, value string) {
	l.do("set an attribute of", name, func(p string) error { return syscall.Setxattr(p, key, []byte(value), 0) })
}
