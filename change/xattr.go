package change

import "strings"

// MachineXattr tells whether an extended attribute is given by the machine
// that holds the object, its security modules or its overlays, and not by who made the
// object: it is not part of an update, and no sign that somebody changed something.
func MachineXattr(key string) bool {
	switch key {
	case "security.selinux", "security.ima", "security.evm":
		return true
	}
	return strings.HasPrefix(key, "trusted.overlay.")
}
