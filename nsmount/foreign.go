package nsmount

import (
	"path"
	"slices"
	"strings"
)

// Foreign is a mount that hides paths of a volume, keeps what is written to it, and
// cannot be updated.
type Foreign struct {
	FSType string
	Source string // as mountinfo has it: "sysext" is systemd-sysext's
	Bind   string // the directory of a disk that is shown here; "" where it is no bind
}

// fleetingTypes are those whose content goes with the boot: an update of what lies
// below them counts, and what they hide now comes back.
var fleetingTypes = []string{"tmpfs", "ramfs"}

// Foreign lists those mount points among the covered on which nothing can be
// committed. vfat and its like have no owners, links and stable inodes, those on a
// network or of another process no exchange or no promise that what is synced is
// safe; an autofs stands for what it will mount; what an overlay shows of the
// directory below it must not change beneath it; and of a bind only a part of the
// file system is at hand. One that shows a directory of a volume where that has it
// hides nothing.
func (r *Root) Foreign() map[string]Foreign {
	out := map[string]Foreign{}
	for _, c := range r.covered {
		if slices.Contains(fleetingTypes, c.mount.FSType) || r.showsItself(&c) {
			continue
		}
		f := Foreign{FSType: c.mount.FSType, Source: c.mount.Source}
		if slices.Contains(diskTypes, f.FSType) && c.mount.Root != "/" {
			f.Bind = c.mount.Root
		}
		out[c.point] = f
	}
	return out
}

// Hiding lists the covered mount points that show something else than the volume has
// at their place.
func (r *Root) Hiding() []string {
	var out []string
	for _, c := range r.covered {
		if !r.showsItself(&c) {
			out = append(out, c.point)
		}
	}
	return out
}

// showsItself tells of a directory that is bound to itself, as it is done to make it
// read-only or nosuid.
func (r *Root) showsItself(c *cover) bool {
	at := r.vols[0]
	for _, v := range r.vols {
		if len(v.Mount) > len(at.Mount) && strings.HasPrefix(c.point, v.Mount+"/") {
			at = v
		}
	}
	return at.mount.Dev == c.mount.Dev && at.mount.Dev != 0 && c.mount.Root == at.rootOf(c.point, r.path)
}

// rootOf is the directory of the file system that a volume has at point.
func (v *volume) rootOf(point string, root string) string {
	rel := relative(v.Mount, point)
	if v.Mount == "/" {
		// The root may lie below its mount point, as that of --root DIR does.
		rel = relative(v.mount.Point, path.Join(root, point))
	}
	return path.Join(v.mount.Root, rel)
}
