package planner

import (
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// hostRule is a set of paths that only the host as a whole can take up.
type hostRule struct {
	kind   string
	action change.Action
	files  []string
	// byFolder: one reason for all of a folder's files.
	byFolder bool
	// removal: it matters too that such a file goes.
	removal bool
	detail  string
}

var hostRules = []hostRule{
	{
		kind: "kernel", action: change.ActionKexec,
		files: []string{
			"/boot/vmlinuz*", "/boot/vmlinux*", "/boot/kernel-*", "/boot/Image*", "/boot/bzImage*",
			"/boot/efi/EFI/Linux/*.efi", "/efi/EFI/Linux/*.efi", "/usr/lib/modules/*/vmlinuz",
		},
		detail: "a kernel",
	},
	{
		// Firmware is read when a device appears: it keeps what it was given.
		kind: "firmware", action: change.ActionKexec, byFolder: true,
		files:  []string{"/usr/lib/firmware/**", "/lib/firmware/**"},
		detail: "devices keep what they were given until then",
	},
	{
		kind: "kernel", action: change.ActionReboot,
		files:  []string{"/boot/xen*"},
		detail: "the hypervisor",
	},
	{
		kind: "kernel", action: change.ActionKexec, removal: true,
		files: []string{
			"/etc/kernel/cmdline", "/usr/lib/kernel/cmdline", "/etc/kernel/cmdline.d/*", "/boot/loader/entries/*.conf",
			"/boot/cmdline.txt", "/boot/firmware/cmdline.txt", "/efi/loader/entries/*.conf", "/boot/efi/loader/entries/*.conf",
			"/boot/extlinux/extlinux.conf", "/boot/grub/grub.cfg", "/boot/grub2/grub.cfg",
		},
		detail: "the kernel's command line",
	},
	{
		kind: "initrd", action: change.ActionKexec,
		files:  []string{"/boot/initrd*", "/boot/initramfs*"},
		detail: "an initial file system",
	},
	{
		kind: "microcode", action: change.ActionReboot, byFolder: true,
		files: []string{
			"/usr/lib/firmware/intel-ucode/**", "/usr/lib/firmware/amd-ucode/**",
			"/lib/firmware/intel-ucode/**", "/lib/firmware/amd-ucode/**",
		},
		detail: "the processor takes it early in a boot",
	},
	{
		kind: "microcode", action: change.ActionReboot,
		files:  []string{"/boot/intel-ucode.img", "/boot/amd-ucode.img"},
		detail: "the processor takes it early in a boot",
	},
}

// managerFiles are the manager's own program, libraries and dynamic linker:
// read where no process can be asked.
var managerFiles = []string{
	"/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/usr/lib/systemd/systemd-executor",
	"/usr/lib/systemd/libsystemd-*.so", "/lib/systemd/libsystemd-*.so",
	"/usr/lib/*/systemd/libsystemd-*.so", "/usr/lib64/systemd/libsystemd-*.so",
	"/usr/lib/*/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6",
	"/usr/lib/*/ld-linux-*.so.*", "/usr/lib64/ld-linux-*.so.*", "/usr/lib/ld-linux-*.so.*",
}

// hostChanges is step 6 of the package comment.
func (p *planning) hostChanges() {
	for _, rule := range hostRules {
		seen := map[string]bool{}
		for _, pattern := range rule.files {
			for _, e := range p.changed.matching(pattern) {
				where := e.Path
				if rule.byFolder {
					where = folder(e.Path, pattern)
				}
				if seen[where] || e.Op == change.Remove && !rule.removal || rule.kind == "firmware" && isMicrocode(e.Path) {
					continue
				}
				seen[where] = true
				p.needHost(rule.action, change.Reason{Kind: rule.kind, Path: where, Detail: rule.detail})
			}
		}
	}
	p.kernelModules()
	for _, pattern := range []string{"/etc/default/grub", "/etc/default/grub.d/*.cfg", "/etc/grub.d/*"} {
		for _, e := range p.changed.matching(pattern) {
			p.warn("%s: it counts from a boot after update-grub has run", e.Path)
		}
	}
	if p.static {
		for _, pattern := range managerFiles {
			for _, e := range p.changed.matching(pattern) {
				if e.SameCode {
					continue
				}
				p.needHost(change.ActionDaemonReexec, change.Reason{Kind: "pid1", Path: e.Path, Detail: path.Base(e.Path) + " runs in it"})
			}
		}
	}
	if p.in.Policy.Bootme && !p.in.Delta.Empty() {
		p.needHost(change.ActionReboot, change.Reason{Kind: "bootme", Path: "/liveupd.toml", Detail: "the update asks for it"})
	}
}

// folder is the leading part of a path that a pattern DIR/** stands for.
func folder(name, pattern string) string {
	depth := strings.Count(strings.TrimSuffix(pattern, "/**"), "/") + 1
	parts := strings.SplitN(name, "/", depth+1)
	return strings.Join(parts[:depth], "/")
}

func isMicrocode(file string) bool {
	return strings.Contains(file, "/intel-ucode/") || strings.Contains(file, "/amd-ucode/")
}

// kernelModules are those that could be loaded now: the running kernel's. Those
// of another one come with that. Where no kernel runs the tree, all count.
func (p *planning) kernelModules() {
	running := p.facts.Host.Kernel
	seen := map[string]bool{}
	for _, pattern := range []string{"/usr/lib/modules/*/**", "/lib/modules/*/**"} {
		for _, e := range p.changed.matching(pattern) {
			dir := folder(e.Path, pattern)
			if e.Op == change.Remove || seen[dir] || !strings.Contains(path.Base(e.Path), ".ko") ||
				running != "" && path.Base(dir) != running {
				continue
			}
			seen[dir] = true
			p.needHost(change.ActionKexec, change.Reason{Kind: "kernel", Path: dir, Detail: "modules of a kernel"})
		}
	}
}
