package inspect

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// place is an object within a file system: the device as mountinfo has it, and
// the path from the file system's own root, whatever is mounted where.
type place struct {
	dev  uint64
	path string
}

// namespaces adds hits for the units whose namespaces a swap would damage.
// Mounts follow the object that they stand upon, not its name: after the
// exchange a mount upon a replaced file has gone with the old copy, and a bind
// of it shows the old copy.
func (c *collector) namespaces(d *change.Delta, volumes []Volume) ([]string, error) {
	own, err := sys.ReadMountinfo("/proc/1/mountinfo")
	if err != nil {
		if own, err = sys.ReadMountinfo("/proc/self/mountinfo"); err != nil {
			return nil, fmt.Errorf("cannot read the mounts: %w", err)
		}
	}
	moved := movedPlaces(d, own, volumes)
	if len(moved) == 0 {
		return nil, nil
	}
	var warnings []string
	for _, dmg := range damaged(own, moved) {
		if dmg.bind && dmg.point != dmg.path {
			warnings = append(warnings, fmt.Sprintf(
				"%s is a bind mount of %s: it shows the old version until it is mounted again", dmg.point, dmg.path))
		}
	}
	for _, s := range c.spaces {
		slices.Sort(s.pids)
		for _, pid := range s.pids {
			mounts, err := sys.ReadMountinfo(fmt.Sprintf("/proc/%d/mountinfo", pid))
			if err != nil || len(mounts) == 0 {
				continue // it has ended; another one may live there
			}
			c.damage(s, damaged(mounts, moved))
			break
		}
	}
	return warnings, nil
}

func (c *collector) damage(s *space, list []damagedMount) {
	for _, dmg := range list {
		for _, who := range s.members {
			hit := who
			hit.Kind, hit.Path = "namespace", dmg.path
			if dmg.bind {
				hit.Detail = "it is bound to " + dmg.point + " in the unit's mount namespace"
			} else {
				hit.Detail = "something is mounted upon it in the unit's mount namespace"
			}
			c.hits = append(c.hits, hit)
		}
	}
}

// movedPlaces are the objects that lose their name, by place.
func movedPlaces(d *change.Delta, mounts []sys.Mount, volumes []Volume) map[place]string {
	out := map[place]string{}
	for i := range d.Entries {
		e := &d.Entries[i]
		if !goes(e) {
			continue
		}
		if m := mountOf(mounts, volumes, e.Path); m != nil {
			out[place{m.Dev, path.Join(m.Root, below(e.Path, m.Point))}] = e.Path
		}
	}
	return out
}

// mountOf is the mount that a path of the root lies on. With volumes, foreign
// mounts do not count: the update goes below them.
func mountOf(mounts []sys.Mount, volumes []Volume, p string) *sys.Mount {
	point := ""
	if v := volumeOf(volumes, p); v != nil {
		point = v.Mount
	}
	var best *sys.Mount
	for i := range mounts {
		m := &mounts[i]
		if point != "" && m.Point != point || !under(p, m.Point) {
			continue
		}
		if best == nil || len(m.Point) >= len(best.Point) {
			best = m
		}
	}
	return best
}

// damagedMount is a mount that a swap breaks.
type damagedMount struct {
	path  string // the path that changes
	point string
	bind  bool // it shows the old object; else it stands upon it
}

// damaged finds the mounts upon, and of, places that move.
func damaged(mounts []sys.Mount, moved map[place]string) []damagedMount {
	byID := make(map[int]*sys.Mount, len(mounts))
	for i := range mounts {
		byID[mounts[i].ID] = &mounts[i]
	}
	var out []damagedMount
	for i := range mounts {
		m := &mounts[i]
		if parent := byID[m.Parent]; parent != nil && parent != m && under(m.Point, parent.Point) {
			at := place{parent.Dev, path.Join(parent.Root, below(m.Point, parent.Point))}
			if p, ok := moved[at]; ok {
				out = append(out, damagedMount{path: p, point: m.Point})
				continue
			}
		}
		if p, ok := moved[place{m.Dev, strings.TrimSuffix(m.Root, "//deleted")}]; ok {
			out = append(out, damagedMount{path: p, point: m.Point, bind: true})
		}
	}
	return out
}
