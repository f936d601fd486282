package runner

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/devices/config"
	known "github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/liveupd/liveupd/sandbox"
)

// capabilities are those that the scripts of a whole distribution upgrade are known
// to need. Not sys_time: a script moved the host's clock. Not sys_admin, sys_boot,
// sys_module, sys_rawio, sys_ptrace, net_admin: each leads out.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
}

// readOnly are the parts of /proc that set something on the host; hidden those
// that show too much of it, or do something by being written to.
var (
	readOnly = []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi"}
	hidden   = []string{"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg", "/sys/firmware"}
)

const quiet = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC

func containerConfig(v View, s sandbox.Spec, cmd sandbox.Command, name string) (*configs.Config, []string) {
	// Machines that are containers have fewer.
	held, notes := own(), []string(nil)
	rights := slices.DeleteFunc(slices.Clone(capabilities), func(name string) bool { return !slices.Contains(held, name) })
	c := &configs.Config{
		Rootfs: v.Root,
		// In a container some calls on keyrings are forbidden; no script needs one.
		NoNewKeyring:      true,
		ParentDeathSignal: int(syscall.SIGKILL),
		RootPropagation:   syscall.MS_SLAVE | syscall.MS_REC,
		Namespaces: configs.Namespaces{
			{Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWIPC}, {Type: configs.NEWUTS},
		},
		Capabilities: &configs.Capabilities{Bounding: rights, Effective: rights, Permitted: rights},
		Mounts: []*configs.Mount{
			{Source: "proc", Device: "proc", Destination: "/proc", Flags: quiet},
			// Read-only once its nodes are made: it is the only file system here that has devices, and
			// a script that makes a node of its own there would open the host's disks.
			{
				Source: "tmpfs", Device: "tmpfs", Destination: "/dev",
				Flags: syscall.MS_NOSUID | syscall.MS_NOEXEC | syscall.MS_STRICTATIME | syscall.MS_RDONLY, Data: "mode=755,size=64k",
			},
			{Source: "devpts", Device: "devpts", Destination: "/dev/pts", Flags: syscall.MS_NOSUID | syscall.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
			{Source: "shm", Device: "tmpfs", Destination: "/dev/shm", Flags: quiet, Data: "mode=1777,size=25%"},
			{Source: "mqueue", Device: "mqueue", Destination: "/dev/mqueue", Flags: quiet},
		},
		Devices: nodes(),
		// No device rules: they need bpf, which containers forbid. No mount but /dev has devices.
		Cgroups:   &cgroups.Cgroup{Resources: &cgroups.Resources{}},
		Version:   "1.0.0",
		Umask:     s.Umask,
		MaskPaths: existing(hidden), ReadonlyPaths: existing(readOnly),
		Labels: []string{},
	}
	if cmd.Network {
		// A new sysfs would be that of the namespace that mounts it: the same, but its
		// classes are shown only to those who own the network.
		c.Mounts = append(c.Mounts, &configs.Mount{Source: "/sys", Device: "bind", Destination: "/sys", Flags: syscall.MS_BIND | syscall.MS_RDONLY | quiet})
	} else {
		c.Namespaces = append(c.Namespaces, configs.Namespace{Type: configs.NEWNET})
		if slices.Contains(held, "CAP_NET_ADMIN") {
			c.Networks = []*configs.Network{{Type: "loopback"}}
		} else {
			notes = append(notes, "the command runs without a loopback interface: this machine has no CAP_NET_ADMIN")
		}
		c.Mounts = append(c.Mounts, &configs.Mount{Source: "sysfs", Device: "sysfs", Destination: "/sys", Flags: quiet | syscall.MS_RDONLY})
	}
	notes = append(notes, limit(c.Cgroups, s, name)...)
	return c, append(notes, weaken(c, s)...)
}

// own lists the capabilities that this process has: more cannot be given.
func own() []string {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(data), "CapPrm:")
	mask, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	if err != nil {
		return nil
	}
	var out []string
	for i, name := range known.KnownCapabilities() {
		if set&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

func existing(paths []string) []string {
	var out []string
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// nodes are the devices that lead nowhere.
func nodes() []*config.Device {
	var out []*config.Device
	for name, minor := range map[string]int64{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		out = append(out, node(name, 1, minor))
	}
	return append(out, node("tty", 5, 0))
}

func node(name string, major, minor int64) *config.Device {
	return &config.Device{
		Path: "/dev/" + name, FileMode: 0o666,
		Rule: config.Rule{Type: config.CharDevice, Major: major, Minor: minor, Permissions: "rwm", Allow: true},
	}
}

// limit places the sandbox in a control group with those limits for which there are
// controllers, and tells of the others.
func limit(c *cgroups.Cgroup, s sandbox.Spec, name string) (notes []string) {
	unified := cgroups.IsCgroup2UnifiedMode()
	switch {
	case unified && s.Systemd:
		c.Systemd, c.Name, c.ScopePrefix, c.Parent = true, name, "liveupd", "system.slice"
	case unified:
		// A group beside our own: below one that holds processes no controller can be had.
		c.Path = filepath.Join("/", filepath.Dir(ownGroup()), name)
	default:
		c.Path = "/" + name
	}
	if !writableGroup(c, unified) {
		*c = cgroups.Cgroup{Resources: &cgroups.Resources{}, Rootless: true, Path: c.Path}
		if s.Memory > 0 || s.Pids > 0 {
			notes = append(notes, "the command runs without limits of memory and processes: control groups cannot be made here")
		}
		return notes
	}
	var without []string
	if s.Memory > 0 && hasController("memory", unified) {
		c.Memory, c.MemorySwap = s.Memory, s.Memory
		if unified {
			c.MemorySwap = 0
		}
	} else if s.Memory > 0 {
		without = append(without, "memory")
	}
	if s.Pids > 0 && hasController("pids", unified) {
		tasks := s.Pids + firstTasks
		c.PidsLimit = &tasks
	} else if s.Pids > 0 {
		without = append(without, "processes")
	}
	if len(without) > 0 {
		notes = append(notes, fmt.Sprintf("the command runs without a limit of %s: no controller for it is to be had here", strings.Join(without, " and ")))
	}
	return notes
}

const cgroupRoot = "/sys/fs/cgroup"

// writableGroup tries whether control groups can be made.
func writableGroup(c *cgroups.Cgroup, unified bool) bool {
	if c.Systemd {
		return true
	}
	dir := filepath.Join(cgroupRoot, c.Path)
	if !unified {
		dir = filepath.Join(cgroupRoot, "memory", c.Path)
		if _, err := os.Stat(filepath.Dir(dir)); err != nil {
			dir = filepath.Join(cgroupRoot, "pids", c.Path)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return false
	}
	return os.Remove(dir) == nil
}

func hasController(name string, unified bool) bool {
	if !unified {
		_, err := os.Stat(filepath.Join(cgroupRoot, name, "cgroup.procs"))
		return err == nil
	}
	data, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return false
	}
	return slices.Contains(strings.Fields(string(data)), name)
}

// ownGroup is this process's control group of the unified hierarchy.
func ownGroup() string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "/"
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			return p
		}
	}
	return "/"
}
