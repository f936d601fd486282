package planner

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// conf is what a tree holds of one kind of file, by name.
func conf(kind string, paths ...string) *change.HostConfig {
	h := &change.HostConfig{Effective: map[string]map[string]string{kind: {}}}
	for _, p := range paths {
		h.Effective[kind][p[strings.LastIndexByte(p, '/')+1:]] = p
	}
	return h
}

func sysctls(lines ...string) *change.HostConfig {
	h := &change.HostConfig{}
	for _, l := range lines {
		key, value, ok := strings.Cut(l, "=")
		key, minus := strings.CutPrefix(key, "-")
		h.Sysctl = append(h.Sysctl, change.SysctlLine{Key: key, Value: value, File: "/usr/lib/sysctl.d/a.conf", Lenient: minus && ok, Exclude: minus && !ok})
	}
	return h
}

func rules(path string, list ...change.UdevRule) *change.HostConfig {
	h := conf("udev", path)
	h.Udev = map[string][]change.UdevRule{path: list}
	return h
}

func rule(text, action string, subsystems, names []string) change.UdevRule {
	return change.UdevRule{Text: text, Match: change.UdevMatch{Action: action, Subsystems: subsystems, Names: names}}
}

const extraRules = "/usr/lib/udev/rules.d/90-a.rules"

// Each case is what an update changes of the host's settings, and the steps.
var effectCases = []struct {
	name     string
	in       func() *scenario
	old, new *change.HostConfig
	want     []string
	warning  string
}{
	{name: "a new file of users and one of folders: users first", in: func() *scenario {
		return machine().add("/usr/lib/tmpfiles.d/a.conf")
	}, new: conf("tmpfiles", "/usr/lib/tmpfiles.d/a.conf"), want: []string{"tmpfiles a.conf"}},
	{name: "one that another of its name in /etc hides: nothing", in: func() *scenario {
		return machine().replace("/usr/lib/sysusers.d/a.conf")
	}, old: conf("sysusers", "/etc/sysusers.d/a.conf"), new: conf("sysusers", "/etc/sysusers.d/a.conf")},
	{name: "one that goes: what it made stays", in: func() *scenario {
		s := machine()
		s.in.Delta.Entries = []change.Entry{{Path: "/usr/lib/tmpfiles.d/a.conf", Op: change.Remove, Old: file("x")}}
		return s
	}, old: conf("tmpfiles", "/usr/lib/tmpfiles.d/a.conf"), new: conf("tmpfiles")},
	{name: "one that is no longer hidden", in: func() *scenario {
		s := machine()
		s.in.Delta.Entries = []change.Entry{{Path: "/etc/sysusers.d/a.conf", Op: change.Remove, Old: file("x")}}
		return s
	}, old: conf("sysusers", "/etc/sysusers.d/a.conf"), new: conf("sysusers", "/usr/lib/sysusers.d/a.conf"), want: []string{"sysusers a.conf"}},

	{
		name: "kernel settings: those that differ in the end", in: machine,
		old: sysctls("a.same=1", "a.changed=1", "a.comment=1", "a.over=1", "a.over=2"), new: sysctls("a.same=1", "a.changed=2", "a.new=1  2", "a.over=5", "a.over=2"),
		want: []string{"sysctl a.changed = 2", "sysctl a.new = 1 2"}, warning: "a.comment is set by no file any more",
	},
	{name: "one that the kernel has already", in: machine, new: sysctls("a.set=7\t8")},
	{name: "one that the kernel lacks", in: machine, new: sysctls("b.none=7"), warning: "no setting b.none"},
	{name: "one whose failure is none", in: machine, new: sysctls("-a.new=3"), want: []string{"sysctl -a.new = 3"}},
	{
		name: "a wildcard, less what is set or left out by name", in: machine, old: sysctls("n.eth0.rp=1"), new: sysctls("n.eth0.rp=1", "n.*.rp=2", "-n.all.rp"),
		want: []string{"sysctl n.lo.rp = 2"},
	},

	{
		name: "modules: new ones, less what is there", in: machine,
		new:  &change.HostConfig{Modules: map[string]string{"br_netfilter": "/etc/modules", "loop": "/etc/modules", "ext4": "/etc/modules", "strange": "/etc/modules"}},
		want: []string{"modules-load br_netfilter"}, warning: "no module strange",
	},
	{name: "a module that is no longer named", in: machine, old: &change.HostConfig{Modules: map[string]string{"loop": "/etc/modules"}}, warning: "stays loaded"},
	{
		name: "a module before the settings that it brings", in: machine,
		new: &change.HostConfig{Modules: map[string]string{"br_netfilter": "/m"}, Sysctl: sysctls("net.bridge.x=1").Sysctl}, want: []string{"modules-load br_netfilter", "sysctl net.bridge.x = 1"},
	},

	{
		name: "binary formats: new, changed and gone", in: machine,
		old:  &change.HostConfig{Binfmt: map[string]string{"a": ":a:1", "b": ":b:1", "c": ":c:1"}, BinfmtFile: map[string]string{"a": "/f", "b": "/f", "c": "/f"}},
		new:  &change.HostConfig{Binfmt: map[string]string{"a": ":a:1", "b": ":b:2", "d": ":d:1"}, BinfmtFile: map[string]string{"a": "/f", "b": "/f", "d": "/f"}},
		want: []string{"binfmt -c", "binfmt :b:2", "binfmt :d:1"},
	},

	{
		name: "rules of devices: what they name, together", in: func() *scenario { return machine().replace(extraRules) },
		old: rules(extraRules, rule("a", "change", []string{"tty"}, nil), rule("b", "change", []string{"net"}, nil)),
		new: rules(extraRules, rule("a2", "change", []string{"tty"}, nil), rule("b", "change", []string{"net"}, nil),
			rule("c", "change", []string{"block"}, nil), rule("d", "change", []string{"block"}, []string{"sd*"}), rule("e", "add", []string{"usb"}, nil), rule("f", "change", nil, []string{"vd?"})),
		want: []string{
			"udev-reload rules", "udev-trigger --action=add --subsystem-match=usb", "udev-trigger --action=change --subsystem-match=block --subsystem-match=tty",
			"udev-trigger --action=change --sysname-match=vd?",
		},
	},
	{
		name: "a rule that names nothing: all devices", in: func() *scenario { return machine().add(extraRules) },
		new:  rules(extraRules, rule("a", "change", nil, nil), rule("b", "change", []string{"net"}, nil)),
		want: []string{"udev-reload rules", "udev-trigger --action=change"},
	},
	{
		name: "a changed comment: reload alone", in: func() *scenario { return machine().replace(extraRules) },
		old: rules(extraRules, rule("a", "change", []string{"tty"}, nil)), new: rules(extraRules, rule("a", "change", []string{"tty"}, nil)), want: []string{"udev-reload rules"},
	},
	{
		name: "a jump decides for what follows", in: func() *scenario { return machine().replace(extraRules) },
		old:  rules(extraRules, change.UdevRule{Text: "j", Flow: true}, rule("a", "change", []string{"tty"}, nil)),
		new:  rules(extraRules, change.UdevRule{Text: "k", Flow: true}, rule("a", "change", []string{"tty"}, nil)),
		want: []string{"udev-reload rules", "udev-trigger --action=change --subsystem-match=tty"},
	},
	{name: "without udev: nothing", in: func() *scenario {
		s := machine().add(extraRules)
		delete(s.in.Facts.Units, "systemd-udevd.service")
		return s
	}, new: rules(extraRules, rule("a", "change", nil, nil))},
	{
		name: "hardware database", in: func() *scenario { return machine().add("/usr/lib/udev/hwdb.d/a.hwdb") },
		new: conf("hwdb", "/usr/lib/udev/hwdb.d/a.hwdb"), want: []string{"hwdb update"},
	},
	{
		name: "hardware database that the update brings made", in: func() *scenario { return machine().add("/usr/lib/udev/hwdb.d/a.hwdb", "/usr/lib/udev/hwdb.bin") },
		new: conf("hwdb", "/usr/lib/udev/hwdb.d/a.hwdb"),
	},
	{
		name: "names of interfaces: for those that appear", in: func() *scenario { return machine().add("/etc/systemd/network/10-a.link") },
		new: conf("link", "/etc/systemd/network/10-a.link"), want: []string{"udev-reload rules"},
	},

	{name: "AppArmor: the profile that changes", in: func() *scenario {
		s := machine().replace("/etc/apparmor.d/usr.sbin.a", "/etc/apparmor.d/b")
		s.in.Facts.Host.AppArmor = true
		return s
	}, want: []string{"apparmor /etc/apparmor.d/b", "apparmor /etc/apparmor.d/usr.sbin.a"}},
	{name: "AppArmor where it is off: nothing", in: func() *scenario { return machine().replace("/etc/apparmor.d/b") }},
	{name: "SELinux: the policy is loaded", in: func() *scenario {
		s := machine().replace("/etc/selinux/default/policy/policy.33")
		s.in.Facts.Host.SELinux = true
		return s
	}, want: []string{"selinux policy"}},
	{name: "an initrd that holds copies", in: func() *scenario {
		s := machine().replace("/usr/bin/udevadm")
		s.in.Facts.Host.Initrd, s.in.Facts.Host.Rebuild = []string{"/usr/bin/udevadm"}, []string{"update-initramfs", "-u", "-k", "all"}
		return s
	}, want: []string{"initrd update-initramfs -u -k all"}},
	{name: "who allows nothing", in: func() *scenario {
		s := machine()
		s.in.Policy.Max = change.ActionNone
		return s
	}, new: sysctls("a.new=3"), warning: "more than the permitted none"},
	{name: "a rule that keeps it back", in: func() *scenario {
		s := machine()
		s.in.Policy.Rules = []change.Rule{{Paths: []string{"/usr/lib/sysctl.d/**"}, Action: "defer", Source: "p.toml:1"}}
		return s
	}, new: sysctls("a.new=3"), warning: "p.toml:1"},
}

func TestEffects(t *testing.T) {
	for _, tt := range effectCases {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.in()
			if !strings.HasPrefix(tt.name, "without udev") {
				s.unit("systemd-udevd.service", "")
			}
			s.in.Old.Host, s.in.New.Host = tt.old, tt.new
			s.in.Facts.Host.Sysctl = map[string]string{
				"a.same": "1", "a.changed": "1", "a.comment": "1", "a.new": "0", "a.over": "2", "a.set": "7 8", "n.eth0.rp": "1", "n.lo.rp": "0", "n.all.rp": "0",
			}
			s.in.Facts.Host.Modules = map[string]string{"br_netfilter": "available", "loop": "loaded", "ext4": "builtin", "strange": "absent"}
			p := Make(s.in)
			wellFormed(t, p)
			var got []string
			for _, e := range p.Effects {
				got = append(got, e.Do+" "+e.Target)
				if len(e.Reasons) == 0 || e.Reasons[0].Path == "" {
					t.Errorf("%s %s without a reason that names a path", e.Do, e.Target)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("effects (-want +got):\n%s", d)
			}
			if len(p.Units) > 0 || p.HostAction != change.ActionNone {
				t.Errorf("Make() = %s; want no unit and no action of the host", summary(p))
			}
			if text := strings.Join(p.Warnings, "\n"); !strings.Contains(text, tt.warning) || tt.warning == "" && text != "" {
				t.Errorf("the warnings are %q; want %q", text, tt.warning)
			}
		})
	}
}

// The way back of an update restores what its steps recorded.
func TestRestoredSettings(t *testing.T) {
	s := machine()
	s.in.Old.Host, s.in.New.Host = sysctls("a.x=5"), sysctls()
	s.in.Facts.Host.Sysctl = map[string]string{"a.x": "5"}
	s.in.Restore = []change.Step{{Do: "sysctl", Target: "a.x = 5", Undo: "a.x = 3"}}
	if got := steps(Make(s.in)); !strings.Contains(got, "sysctl a.x = 3") {
		t.Errorf("steps: %s; want a.x set back to 3", got)
	}
	s.in.Facts.Host.Sysctl["a.x"] = "6" // somebody has set it since
	if got := steps(Make(s.in)); strings.Contains(got, "sysctl") {
		t.Errorf("steps: %s; want none for a setting that somebody changed since", got)
	}
}

func TestFstab(t *testing.T) {
	s := machine().replace("/etc/fstab")
	entries := func(options, what string) []change.FstabEntry {
		return []change.FstabEntry{
			{What: "/dev/a", Where: "/", Type: "ext4", Options: "defaults"},
			{What: "/dev/b", Where: "/srv/my data", Type: "ext4", Options: options},
			{What: what, Where: "/data", Type: "ext4", Options: "defaults"},
		}
	}
	for _, n := range []string{"-.mount", `srv-my\x20data.mount`, "data.mount", "old.mount"} {
		s.unit(n, "")
	}
	s.unit("db.service", "")
	s.in.Facts.Units["data.mount"].RequiredBy = []string{"db.service"}
	s.in.Old.Host = &change.HostConfig{Fstab: append(entries("rw,nofail", "/dev/c"), change.FstabEntry{What: "/dev/o", Where: "/old", Type: "ext4"})}
	s.in.New.Host = &change.HostConfig{Fstab: append(entries("rw,noexec,x-systemd.device-timeout=9", "/dev/d"),
		change.FstabEntry{What: "tmpfs", Where: "/new", Type: "tmpfs", Options: "size=1m"}, change.FstabEntry{What: "/dev/n", Where: "/never", Type: "ext4", Options: "noauto"})}
	p := Make(s.in)
	if got, want := summary(p), `restart data.mount, ~restart db.service, start new.mount, reload srv-my\x20data.mount, host daemon-reload`; got != want {
		t.Errorf("Make() = %s\n          want %s", got, want)
	}
	if !strings.Contains(strings.Join(p.Warnings, "\n"), "/old is no longer in it") {
		t.Errorf("warnings: %q", p.Warnings)
	}
}

// A changed policy bars the soft-reboot that something else asks for.
func TestPolicyBarsSoftReboot(t *testing.T) {
	s := machine().replace("/usr/bin/dbus-daemon", "/etc/selinux/default/policy/policy.33")
	s.in.Facts.Host.SELinux = true
	s.unit("dbus.service", nginxUnit)
	s.hit(change.Hit{Unit: "dbus.service", PID: 3, Comm: "dbus-daemon", Kind: "exec", Path: "/usr/bin/dbus-daemon"})
	if p := Make(s.in); p.HostAction != change.ActionKexec {
		t.Errorf("host %v; want kexec", p.HostAction)
	}
}

func TestKernelModules(t *testing.T) {
	for _, tt := range []struct {
		path string
		want change.Action
	}{
		{"/usr/lib/modules/6.1/kernel/a.ko.xz", change.ActionKexec},
		{"/usr/lib/modules/6.1/modules.dep", change.ActionNone},
		{"/usr/lib/modules/6.2/kernel/a.ko", change.ActionNone},
		{"/usr/lib/modules/6.2/vmlinuz", change.ActionKexec},
		{"/usr/lib/firmware/iwlwifi-1.ucode", change.ActionKexec},
		{"/usr/lib/firmware/amd-ucode/a.bin", change.ActionReboot},
		{"/boot/loader/entries/a.conf", change.ActionKexec},
		{"/etc/default/grub", change.ActionNone},
	} {
		s := machine().replace(tt.path)
		s.in.Facts.Host.Kernel = "6.1"
		if got := Make(s.in).HostAction; got != tt.want {
			t.Errorf("%s: host %v; want %v", tt.path, got, tt.want)
		}
	}
}
