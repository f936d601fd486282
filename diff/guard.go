package diff

import (
	"fmt"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// removalsLimit is how many removals pass without being asked for.
const removalsLimit = 1000

// guard does step 7: it refuses what would hit a mount of the running system, or more
// removals than anyone would expect.
func (c *comparison) guard(d *change.Delta) error {
	volumes, mounts, hiding := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, m := range c.o.Hiding {
		hiding[m] = true
	}
	for _, v := range c.live.volumes {
		volumes[v.mount] = true
	}
	above := map[string]string{} // folders with a mount below: that mount
	for _, m := range c.o.Mounts {
		if m = strings.TrimSuffix(path.Clean(m), "/"); m == "" {
			continue
		}
		mounts[m] = true
		for p := parent(m); p != ""; p = parent(p) {
			if above[p] == "" || m < above[p] {
				above[p] = m
			}
		}
	}
	removals := 0
	hidden := map[string]bool{}
	for i := range d.Entries {
		e := &d.Entries[i]
		if e.Op == change.Remove {
			removals++
		}
		if len(mounts) == 0 {
			continue
		}
		if err := c.guardMounts(e, mounts, above); err != nil {
			return err
		}
		for p := parent(e.Path); p != ""; p = parent(p) {
			if volumes[p] {
				break
			}
			if hiding[p] && !hidden[p] {
				hidden[p] = true
				d.Warnings = append(d.Warnings, fmt.Sprintf("%s: what changes below it lands under the file system that is mounted there, and is seen once that is unmounted", p))
			}
		}
	}
	if removals > removalsLimit && !c.o.AllowRemovals {
		return change.WithHint(fmt.Errorf("cannot remove %d paths: more than %d at once have to be allowed", removals, removalsLimit),
			"look at what goes with --plan; --allow-removals permits it")
	}
	return nil
}

func (c *comparison) guardMounts(e *change.Entry, mounts map[string]bool, above map[string]string) error {
	if e.Op != change.Replace && e.Op != change.Remove {
		return nil
	}
	old := e.Old.Type == change.Directory
	if mounts[e.Path] && !old {
		// The exchange would take the mount away with the old inode, or detach it.
		return change.WithHint(fmt.Errorf("cannot change %s: something is mounted on it", e.Path), "unmount it first")
	}
	if !old || c.o.AllowRemovals {
		return nil
	}
	at := above[e.Path]
	if mounts[e.Path] {
		at = e.Path
	}
	if at == "" {
		return nil
	}
	return change.WithHint(fmt.Errorf("cannot %s the folder %s: the running system has %s mounted", e.Op, e.Path, at),
		"unmount it first; --allow-removals permits it all the same")
}
