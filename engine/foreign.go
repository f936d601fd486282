package engine

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/writable"
)

// foreignRules are the rules of who owns a path on a root in which file systems are
// mounted that no commit can span: the ESP (vfat has no stable inodes, no links,
// owners or attributes), NFS, a bind of another place, an overlay and the like. What lands below such a mount would lie
// hidden under it. Where an update only adds, as a whole tree in /boot, nothing is
// added there, and the plan says so; what an update lists or owns there is refused.
type foreignRules struct {
	*writable.Rules
	mounts map[string]nsmount.Foreign // by mount point
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
		p = path.Dir(p)
		if _, ok := f.mounts[p]; ok {
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
		return change.WithHint(fmt.Errorf("cannot %s %s: %s is %s", e.Op, e.Path, at, foreignWhat(f.mounts[at])), foreignHint(at, f.mounts[at]))
	}
	return nil
}

// foreignWhat says what is mounted there.
func foreignWhat(m nsmount.Foreign) string {
	switch {
	case m.Bind != "":
		return fmt.Sprintf("a bind of %s (%s on %s), and hides what the root has there", m.Bind, m.FSType, m.Source)
	case merger(m) != "":
		return "merged from extensions by " + merger(m)
	case m.FSType == "overlay":
		return "an overlay, beneath which nothing may change while it is mounted"
	}
	return "a " + m.FSType + ", which no commit can span"
}

func foreignHint(at string, m nsmount.Foreign) string {
	switch {
	case m.Bind != "":
		return "leave " + at + " out of the update, or unmount it; a whole file system that is mounted there would be updated with the root"
	case merger(m) != "":
		return fmt.Sprintf("run %s unmerge before the update, and %s merge after it", merger(m), merger(m))
	case m.FSType == "overlay":
		return "leave " + at + " out of the update, or unmount it for as long as the update takes"
	}
	switch m.FSType {
	case "vfat", "msdos", "exfat", "autofs":
		return "leave " + at + " out of the update; what boots from there is installed by its own tool (grub-install, bootctl update, kernel-install)"
	}
	return "leave " + at + " out of the update, or unmount it: then the change lands in the folder below it"
}

// merger is the program of systemd's that made an overlay; "" for others.
func merger(m nsmount.Foreign) string {
	if m.FSType == "overlay" && (m.Source == "sysext" || m.Source == "confext") {
		return "systemd-" + m.Source
	}
	return ""
}

// warnings tells of what source brings to the mounts and nobody takes.
func (f foreignRules) warnings(source *sys.FD) []string {
	var out []string
	for at, m := range f.mounts {
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
			out = append(out, fmt.Sprintf("%s is %s: what the source brings there is left out; %s", at, foreignWhat(m), foreignHint(at, m)))
		}
	}
	slices.Sort(out)
	return out
}
