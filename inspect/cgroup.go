package inspect

import (
	"bytes"
	"strings"

	"github.com/liveupd/liveupd/internal/sys"
)

// hierarchy says where the units' cgroups are found in /proc/PID/cgroup.
type hierarchy struct {
	// controller is the second field of the line to read: "" for cgroup v2
	// ("0::"), "name=systemd" where systemd tracks units in a v1 hierarchy.
	controller string
	// prefix is what stands before the units' paths: in a container that does
	// not have a cgroup namespace of its own, or seen from outside of it.
	prefix string
}

// findHierarchy reads PID 1's cgroup file: systemd lives in init.scope of the
// hierarchy that it tracks units in. ok is false where PID 1 is not systemd.
func findHierarchy(pid1 []byte) (h hierarchy, ok bool) {
	for _, controller := range []string{"", "name=systemd"} {
		path, found := cgroupPath(pid1, controller)
		if !found {
			continue
		}
		if prefix, is := strings.CutSuffix(path, "/init.scope"); is {
			return hierarchy{controller: controller, prefix: prefix}, true
		}
	}
	return hierarchy{}, false
}

// mountedHierarchy does so by what is mounted, where hidepid= keeps PID 1's file
// from us: its places are systemd's, and what of it is mounted tells the prefix.
func mountedHierarchy(mounts []sys.Mount) hierarchy {
	for _, at := range []struct{ point, kind, controller string }{
		{"/sys/fs/cgroup", "cgroup2", ""}, {"/sys/fs/cgroup/unified", "cgroup2", ""}, {"/sys/fs/cgroup/systemd", "cgroup", "name=systemd"},
	} {
		for i := range mounts {
			if m := &mounts[i]; m.Point == at.point && m.FSType == at.kind {
				return hierarchy{controller: at.controller, prefix: strings.TrimSuffix(m.Root, "/")}
			}
		}
	}
	return hierarchy{}
}

// cgroupPath finds a hierarchy's line in a file of the form cgroups(7):
//
//	1:name=systemd:/system.slice/ssh.service
//	0::/system.slice/ssh.service
func cgroupPath(file []byte, controller string) (string, bool) {
	for len(file) > 0 {
		line := file
		if i := bytes.IndexByte(file, '\n'); i >= 0 {
			line, file = file[:i], file[i+1:]
		} else {
			file = nil
		}
		id, rest, ok1 := bytes.Cut(line, []byte(":"))
		names, path, ok2 := bytes.Cut(rest, []byte(":"))
		if !ok1 || !ok2 || string(names) != controller || controller == "" && string(id) != "0" {
			continue
		}
		if len(path) == 0 || path[0] != '/' {
			continue
		}
		return string(path), true
	}
	return "", false
}

// unit finds the units that a process of this cgroup file belongs to: the
// system manager's, and below a user@UID.service the user manager's. Both are
// "" for a process that is in no unit of this systemd.
func (h hierarchy) unit(file []byte) (system, user string) {
	path, ok := cgroupPath(file, h.controller)
	if !ok {
		return "", ""
	}
	rest, ok := strings.CutPrefix(path, h.prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return "", ""
	}
	return unitsOf(rest)
}

// unitsOf splits a cgroup path in systemd's way: slices, then a unit; below a
// user manager again slices, then a unit. A directory that is neither ends it,
// so that /lxc.payload.x/system.slice/nginx.service, a container's own unit,
// is not taken for the host's nginx.
func unitsOf(path string) (system, user string) {
	var name string
	name, path = nextUnit(path)
	system = name
	if strings.HasPrefix(name, "user@") && strings.HasSuffix(name, ".service") {
		user, _ = nextUnit(path)
	}
	return system, user
}

// nextUnit passes over slices and returns the unit below them with the rest.
func nextUnit(path string) (name, rest string) {
	path = strings.TrimLeft(path, "/")
	for path != "" {
		name, rest, _ = strings.Cut(path, "/")
		// systemd puts "_" before a name that could be taken for a kernel file.
		name = strings.TrimPrefix(name, "_")
		if !strings.HasSuffix(name, ".slice") {
			if validUnit(name) {
				return name, rest
			}
			return "", ""
		}
		path = strings.TrimLeft(rest, "/")
	}
	return "", ""
}

// validUnit tells whether a name is one of the unit types that have processes.
func validUnit(name string) bool {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || len(name) > 255 {
		return false
	}
	switch name[dot+1:] {
	case "service", "scope", "socket", "mount", "swap":
	default:
		return false
	}
	for i := range dot {
		c := name[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(`:-_.\@`, c) >= 0
		if !ok {
			return false
		}
	}
	return name[0] != '@'
}
