package rootfs

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// unmet lists the conditions and assertions of a unit on paths of /etc and /usr that do not
// hold in the tree (systemd.unit(5), "Conditions and Asserts"). Elsewhere a file system may
// be mounted that the tree does not show. One of several ("|") decides nothing alone.
func (s *unitSet) unmet(u *change.Unit) []change.Setting {
	var out []change.Setting
	for _, set := range u.Settings {
		if set.Section != "Unit" || !strings.HasPrefix(set.Key, "Condition") && !strings.HasPrefix(set.Key, "Assert") {
			continue
		}
		file, not := strings.CutPrefix(set.Value, "!")
		file = path.Clean(file)
		if strings.ContainsAny(file, "%|") || !strings.HasPrefix(file, "/etc/") && !strings.HasPrefix(file, "/usr/") {
			continue
		}
		if holds, known := s.holds(strings.TrimPrefix(strings.TrimPrefix(set.Key, "Condition"), "Assert"), file); known && holds == not {
			out = append(out, set)
		}
	}
	return out
}

// holds tells whether a path is what a condition asks for; known is false where it asks for
// something else, or where nobody knows.
func (s *unitSet) holds(what, file string) (holds, known bool) {
	n, err := s.t.stat2(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, false
	}
	there := err == nil
	switch what {
	case "PathExists":
		return there, true
	case "PathIsDirectory":
		return there && n.IsDir(), true
	case "FileNotEmpty":
		return there && n.Type == change.Regular && n.Size > 0, true
	case "FileIsExecutable":
		return there && n.Type == change.Regular && n.Mode&0o111 != 0, true
	case "DirectoryNotEmpty":
		if !there || !n.IsDir() {
			return false, true
		}
		names, err := s.t.ReadDir(file)
		return len(names) > 0, err == nil
	}
	return false, false
}
