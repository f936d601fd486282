package rootfs

import (
	"strings"

	"github.com/liveupd/liveupd/change/directive"
)

// resetGroup names the set of keys that an empty assignment of one of them
// resets together: conditions, asserts, a socket's addresses, a timer's times, a
// path unit's paths, and the older and newer name of one setting.
func resetGroup(section, key string) string {
	switch {
	case section == "Unit" && strings.HasPrefix(key, "Condition"):
		return "Condition"
	case section == "Unit" && strings.HasPrefix(key, "Assert"):
		return "Assert"
	case section == "Socket" && strings.HasPrefix(key, "Listen"):
		return "Listen"
	case section == "Timer":
		switch key {
		case "OnActiveSec", "OnBootSec", "OnStartupSec", "OnUnitActiveSec", "OnUnitInactiveSec", "OnCalendar":
			return "On"
		}
	case section == "Path":
		switch key {
		case "PathExists", "PathExistsGlob", "PathChanged", "PathModified", "DirectoryNotEmpty":
			return "Path"
		}
	}
	_, modern := directive.Modern(section, key)
	return modern
}

func wordSet(words string) map[string]bool {
	set := map[string]bool{}
	for w := range strings.FieldsSeq(words) {
		set[w] = true
	}
	return set
}
