package engine

import (
	"os"
	"path"
	"slices"
	"strings"
)

// managerFile says which container manager has made a machine, and containerFile is where
// systemd's PID 1 repeats it (systemd-detect-virt(1) reads both).
const (
	managerFile   = "/run/host/container-manager"
	containerFile = "/run/systemd/container"
)

// containerManager is the name that the manager of the container goes by in which we are,
// where somebody else's PID 1 boots the kernel; "" where we are in none. It looks at the marks that
// container managers leave, as systemd-detect-virt --container does.
func containerManager() string {
	contained := false
	for _, name := range []string{managerFile, containerFile} {
		// A folder is no mark: a sandbox has one, so that it is not taken for a container.
		if n, err := os.Lstat(name); err != nil || n.IsDir() {
			continue
		}
		contained = true
		if b, err := os.ReadFile(name); err == nil && len(strings.TrimSpace(string(b))) > 0 {
			return strings.TrimSpace(string(b))
		}
	}
	for _, m := range []struct{ mark, name string }{{"/.dockerenv", "docker"}, {"/run/.containerenv", "podman"}} {
		if n, err := os.Lstat(m.mark); err == nil && !n.IsDir() {
			return m.name
		}
	}
	if b, err := os.ReadFile("/proc/1/environ"); err == nil {
		contained = contained || slices.ContainsFunc(strings.Split(string(b), "\x00"), func(v string) bool {
			return strings.HasPrefix(v, "container=") && v != "container="
		})
	}
	if contained {
		return "container-other" // systemd's word
	}
	return ""
}

// uncontained are folders of a view on a machine that is no container, each after the one it
// lies in. From systemd 257 on a PID namespace alone counts as a container, and scripts and
// generators that act on boot loaders, terminals or disks leave that out in one. Nothing
// says that there is none; but where systemd cannot read the first mark, it finds none.
func uncontained() []string {
	if containerManager() != "" {
		return nil
	}
	return []string{path.Dir(managerFile), managerFile}
}
