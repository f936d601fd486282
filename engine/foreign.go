package engine

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/writable"
)

// foreignRules are the rules of who owns a path on a root in which file systems are
// mounted that no commit can span: the ESP (vfat has no stable inodes, no links,
// owners or attributes), NFS and the like. What lands below such a mount would lie
// hidden under it. Where an update only adds, as a whole tree in /boot, nothing is
// added there, and the plan says so; what an update lists or owns there is refused.
type foreignRules struct {
	*writable.Rules
	mounts map[string]string // mount point and type of file system
}

// Class is the class of a path.
func (f foreignRules) Class(p string) change.Class {
	c := f.Rules.Class(p)
	if c == change.ClassAddOnly && f.mountOf(p) != "" {
		return change.ClassNever
	}
	return c
}

// mountOf is the mount point that p lies below, "" for none. The mount point
// itself is a folder of what it is mounted on.
func (f foreignRules) mountOf(p string) string {
	for p != "/" && p != "." {
		if p = path.Dir(p); f.mounts[p] != "" {
			return p
		}
	}
	return ""
}

// refuse refuses what d changes below the mounts.
func (f foreignRules) refuse(d *change.Delta) error {
	for i := range d.Entries {
		e := &d.Entries[i]
		at := f.mountOf(e.Path)
		if at == "" {
			continue
		}
		return change.WithHint(fmt.Errorf("cannot %s %s: %s is a %s, which no commit can span", e.Op, e.Path, at, f.mounts[at]), foreignHint(at, f.mounts[at]))
	}
	return nil
}

func foreignHint(at, fstype string) string {
	switch fstype {
	case "vfat", "msdos", "exfat", "autofs":
		return "leave " + at + " out of the update; what boots from there is installed by its own tool (grub-install, bootctl update, kernel-install)"
	}
	return "leave " + at + " out of the update, or unmount it: then the change lands in the folder below it"
}

// warnings tells of what source brings to the mounts and nobody takes.
func (f foreignRules) warnings(source *sys.FD) []string {
	var out []string
	for at, fstype := range f.mounts {
		if f.Class(path.Join(at, "x")) != change.ClassNever || f.Rules.Class(path.Join(at, "x")) == change.ClassNever {
			continue
		}
		dir, err := sys.OpenAt(source, strings.TrimPrefix(at, "/"), sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
		if err != nil {
			continue // the source brings nothing there
		}
		names, err := sys.ReadDirNames(dir)
		dir.Close()
		if err == nil && len(names) > 0 {
			out = append(out, fmt.Sprintf("%s is a %s, which no commit can span: what the source brings there is left out; %s", at, fstype, foreignHint(at, fstype)))
		}
	}
	slices.Sort(out)
	return out
}
