package rootkind

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Host is where the running system shows itself.
type Host struct {
	Sys  string // sysfs
	Run  string // /run of the system that runs from the root; "" where none does
	Root bool   // the file system is the root's own, and not one inside it
}

// Look gathers the evidence of the file system that m is a mount of, whose root
// directory is dir.
func Look(dir *sys.FD, m *sys.Mount, h Host) (*Evidence, error) {
	e := &Evidence{FSType: m.FSType, Options: m.SuperOptions}
	block := filepath.Join(h.Sys, "dev/block", fmt.Sprintf("%d:%d", m.Major, m.Minor))
	ro, err := os.ReadFile(filepath.Join(block, "ro"))
	e.DeviceReadOnly = err == nil && bytes.HasPrefix(ro, []byte("1")) // without a block device there is nothing to read
	e.Mappers = mappers(block, 0)
	if m.FSType == "btrfs" {
		if e.SubvolReadOnly, err = sys.SubvolumeReadOnly(dir); err != nil {
			return nil, err
		}
	}
	if m.FSType == "overlay" {
		e.Upper = upperType(m.SuperOptions)
	}
	if h.Root {
		e.marks(dir, h.Run)
	}
	return e, nil
}

// upperType is the type of the file system that an overlay's upper layer lies on.
func upperType(options string) string {
	for opt := range strings.SplitSeq(options, ",") {
		dir, ok := strings.CutPrefix(opt, "upperdir=")
		if !ok || !filepath.IsAbs(dir) {
			continue // a relative name says nothing: relative to whom?
		}
		fd, err := sys.OpenRoot(dir)
		if err != nil {
			return ""
		}
		defer fd.Close()
		return sys.FSType(fd)
	}
	return ""
}

// maxStack bounds the walk down a stack of block devices: the real ones are
// three or four deep.
const maxStack = 16

// mappers are device-mapper's UUIDs of a block device and of those that it is
// made of: a volume of LVM may lie on dm-verity. What cannot be read is none.
func mappers(block string, depth int) []string {
	var out []string
	if uuid, err := os.ReadFile(filepath.Join(block, "dm/uuid")); err == nil {
		out = append(out, strings.TrimSpace(string(uuid)))
	}
	slaves, err := os.ReadDir(filepath.Join(block, "slaves"))
	if err != nil || depth == maxStack {
		return out
	}
	for _, s := range slaves {
		out = append(out, mappers(filepath.Join(block, "slaves", s.Name()), depth+1)...)
	}
	return out
}

// marks looks for what systems that manage their own root leave. A running one is
// known by what it left in run; a tree by what lies in it.
func (e *Evidence) marks(root *sys.FD, run string) {
	if run != "" {
		e.OSTree = exists(filepath.Join(run, "ostree-booted"))
	} else {
		e.OSTree = ostreeTree(root)
	}
	system := run != "" && exists(filepath.Join(run, "current-system"))
	nix, gnu := isType(root, "nix/store", change.Directory), isType(root, "gnu/store", change.Directory)
	e.NixOS = nix && (system || isType(root, "etc/NIXOS", change.Regular))
	e.Guix = gnu && !nix && (system || isType(root, "var/guix/profiles/system", change.Symlink))
	e.OSRelease = osReleaseID(root)
}

// ostreeTree knows a deployment by its link into the physical root, and a physical
// root by its deployments: libostree's ostree-sysroot(7) and ostree-prepare-root.
func ostreeTree(root *sys.FD) bool {
	if target, err := sys.Readlink(root, "ostree"); err == nil {
		return target == "sysroot/ostree"
	}
	return isType(root, "ostree/deploy", change.Directory) && isType(root, "ostree/repo", change.Directory)
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

func isType(root *sys.FD, name string, want change.Type) bool {
	n, err := sys.LstatPath(root, name)
	return err == nil && n.Type == want
}

// osReleaseID reads ID from os-release(5), "" where there is none.
func osReleaseID(root *sys.FD) string {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		f, err := sys.OpenRegular(root, name, sys.ResolveInRoot)
		if err != nil {
			continue
		}
		text, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<10))
		f.Close()
		if err != nil {
			continue
		}
		for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
			if id, ok := strings.CutPrefix(strings.TrimSpace(sc.Text()), "ID="); ok {
				return strings.Trim(id, `"'`)
			}
		}
	}
	return ""
}
