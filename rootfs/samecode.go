package rootfs

import (
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/elfcode"
)

// MarkSameCode finds among the files that a Delta replaces those whose new
// version is the same program under the same build ID (package elfcode), and
// marks their entries: who runs the old bytes runs what the new ones hold.
// Only files that somebody uses are opened: those of the facts' hits and of
// the trees' uses; and, where no running system is looked at, what lies in a
// folder of programs or libraries.
func MarkSameCode(before, after View, in *change.Input) {
	used := map[string]bool{}
	for _, h := range in.Facts.Hits {
		used[h.Path] = true
	}
	for _, t := range []*change.Tree{in.Old, in.New} {
		for _, u := range t.Units {
			for _, use := range u.Uses {
				used[use.Path] = true
			}
		}
	}
	was, is := asTree(before), asTree(after)
	for i := range in.Delta.Entries {
		e := &in.Delta.Entries[i]
		if e.Op != change.Replace || e.Old == nil || e.New == nil || e.Old.Type != change.Regular || e.New.Type != change.Regular {
			continue
		}
		if used[e.Path] || !in.Facts.Running && codeFolder(e.Path) {
			e.SameCode = sameCode(was, is, e.Path)
		}
	}
}

func codeFolder(p string) bool {
	switch path.Base(path.Dir(p)) {
	case "bin", "sbin", "systemd":
		return true
	}
	return strings.Contains(path.Base(p), ".so")
}

func sameCode(before, after *tree, p string) bool {
	was, err := before.Open(p)
	if err != nil {
		return false
	}
	defer was.Close()
	is, err := after.Open(p)
	if err != nil {
		return false
	}
	defer is.Close()
	return elfcode.Same(was, is)
}
