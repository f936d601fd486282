package health

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// ephemeral tells whether a port may be one that the kernel or a library has
// chosen: of ip_local_port_range's default, or of bindresvport(3).
func ephemeral(port int) bool { return port >= 32768 || port >= 600 && port < 1024 }

// clients are the UDP ports that a DHCP client opens while it has an address to
// renew; package guard looks at the address itself.
var clients = map[int]bool{68: true, 546: true}

// Vanished are the sockets that a unit of the update listened on and that nobody
// listens on any more.
func Vanished(before, after []change.Listener, touched Touched, ignore []string) []change.HealthCheck {
	var out []change.HealthCheck
	seen := map[string]bool{}
	for _, was := range before {
		var unit string
		for _, u := range was.Units {
			if _, ours := touched[u]; ours && !ignored(u, ignore) {
				unit = u
			}
		}
		name := Name(was)
		if unit == "" || seen[name] || slices.ContainsFunc(after, func(l change.Listener) bool { return covers(l, was) }) {
			continue
		}
		seen[name] = true
		if was.Proto == "udp" && clients[was.Port] {
			continue
		}
		c := change.HealthCheck{Check: CheckListeners, Unit: unit, What: name, Result: change.HealthFailed, Detail: "nothing listens on it any more"}
		switch instead, ok := moved(was, unit, before, after); {
		case ok:
			c.Result, c.Detail = change.HealthNoted, "it listens on "+Name(instead)+" now"
		case was.Proto == "udp" && ephemeral(was.Port):
			continue // the socket of a question that has been answered
		case touched[unit].Configured:
			c.Result = change.HealthNoted
			c.Detail += "; the update changes the unit's configuration"
		}
		out = append(out, c)
	}
	return out
}

// Name is how a person calls a socket.
func Name(l change.Listener) string {
	if l.Proto == "unix" {
		return "unix " + l.Addr
	}
	host := l.Addr
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() {
		host = "[" + host + "]"
	}
	return l.Proto + " " + host + ":" + strconv.Itoa(l.Port)
}

// covers tells whether who spoke to was reaches l now.
func covers(l, was change.Listener) bool {
	if l.Proto != was.Proto || l.Port != was.Port {
		return false
	}
	if l.Addr == was.Addr {
		return true
	}
	if was.Proto == "unix" {
		return false
	}
	old, err1 := netip.ParseAddr(was.Addr)
	now, err2 := netip.ParseAddr(l.Addr)
	if err1 != nil || err2 != nil || !now.IsUnspecified() {
		return false
	}
	if now.Is4() {
		return old.Is4()
	}
	return old.Is6() || !l.V6Only
}

// moved finds a new socket of the same unit in the place of one whose name is chosen
// anew at each start: a port out of the range for that, or a path with a number in it.
func moved(was change.Listener, unit string, before, after []change.Listener) (change.Listener, bool) {
	for _, l := range after {
		if l.Proto != was.Proto || !slices.Contains(l.Units, unit) ||
			slices.ContainsFunc(before, func(b change.Listener) bool { return Name(b) == Name(l) }) {
			continue
		}
		if was.Proto == "unix" {
			if shape(l.Addr) == shape(was.Addr) {
				return l, true
			}
		} else if ephemeral(was.Port) && ephemeral(l.Port) && l.Addr == was.Addr {
			return l, true
		}
	}
	return change.Listener{}, false
}

var numbers = regexp.MustCompile(`[0-9a-fA-F-]*[0-9][0-9a-fA-F-]*`)

// shape is a path with what may be a number left out.
func shape(p string) string { return numbers.ReplaceAllString(p, "#") }

// Own marks the listeners with those of the units whose processes hold them. groups
// are the units' control groups, below cgroupfs; what cannot be read is nobody's.
func Own(list []change.Listener, proc, cgroupfs string, groups map[string]string) {
	holders := map[uint64][]string{}
	for unit, group := range groups {
		for _, pid := range members(filepath.Join(cgroupfs, group)) {
			dir := filepath.Join(proc, pid, "fd")
			fds, _ := os.ReadDir(dir) // it may have ended
			for _, fd := range fds {
				to, err := os.Readlink(filepath.Join(dir, fd.Name()))
				if inode, ok := strings.CutPrefix(to, "socket:["); err == nil && ok {
					if n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 64); err == nil && !slices.Contains(holders[n], unit) {
						holders[n] = append(holders[n], unit)
					}
				}
			}
		}
	}
	for i := range list {
		list[i].Units = holders[list[i].Inode]
		slices.Sort(list[i].Units)
	}
}

// members are the processes of a control group and those below it.
func members(dir string) []string {
	var out []string
	_ = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil // it went away
		}
		b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		out = append(out, strings.Fields(string(b))...)
		return nil
	})
	return out
}

// Hierarchy is where systemd's control groups are mounted: the unified hierarchy, or
// the one that systemd keeps for itself beside v1 controllers.
func Hierarchy() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		if _, err := os.Stat(filepath.Join(dir, "init.scope")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("cannot find systemd's control groups below /sys/fs/cgroup")
}
