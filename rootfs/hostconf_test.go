package rootfs

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

func TestReadHost(t *testing.T) {
	v := viewOf(t, files{
		"usr/lib/sysctl.d/10-a.conf": "# c\nnet.ipv4.ip_forward = 1\n-kernel.panic=10\nnet/ipv4/conf/eth0.1/rp_filter = 2\nbroken\n",
		"usr/lib/sysctl.d/50-b.conf": "vm.swappiness=1\n",
		"etc/sysctl.d/50-b.conf":     "vm.swappiness = 9\n-net.ipv4.conf.all.rp_filter\n",
		"usr/lib/sysctl.d/60-c.conf": "fs.a=1\n", "etc/sysctl.d/60-c.conf": "",
		"etc/sysctl.d/70-n.conf": "-> /dev/null", "usr/lib/sysctl.d/70-n.conf": "fs.b=1\n",
		"etc/sysctl.conf": "fs.unread = 1\n", "etc/sysctl.d/note": "fs.c=1\n",
		"etc/modules-load.d/a.conf": "br-netfilter\n; x\n", "etc/modules": "loop max_loop=8\n", "etc/modules-load.d/modules.conf": "-> ../modules",
		"usr/lib/binfmt.d/q.conf": ":qemu:M::\\x7fELF::/usr/bin/qemu:F\n::bad\n",
	})
	got, warnings := ReadHost(v, []string{"/usr/lib/sysctl.d/10-a.conf", "/etc/modules", "/usr/lib/binfmt.d/q.conf", "/usr/bin/x"})
	if len(warnings) > 0 {
		t.Error(warnings)
	}
	const a, b = "/usr/lib/sysctl.d/10-a.conf", "/etc/sysctl.d/50-b.conf"
	want := &change.HostConfig{
		Effective: map[string]map[string]string{
			"sysctl": {"10-a.conf": a, "50-b.conf": b}, "binfmt": {"q.conf": "/usr/lib/binfmt.d/q.conf"},
			"modules-load": {"a.conf": "/etc/modules-load.d/a.conf", "modules.conf": "/etc/modules"},
		},
		Sysctl: []change.SysctlLine{
			{Key: "net.ipv4.ip_forward", Value: "1", File: a},
			{Key: "kernel.panic", Value: "10", File: a, Lenient: true},
			{Key: "net.ipv4.conf.eth0/1.rp_filter", Value: "2", File: a},
			{Key: "vm.swappiness", Value: "9", File: b},
			{Key: "net.ipv4.conf.all.rp_filter", File: b, Exclude: true},
		},
		Modules: map[string]string{"br_netfilter": "/etc/modules-load.d/a.conf", "loop": "/etc/modules"},
		Binfmt:  map[string]string{"qemu": ":qemu:M::\\x7fELF::/usr/bin/qemu:F"}, BinfmtFile: map[string]string{"qemu": "/usr/lib/binfmt.d/q.conf"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, _ := ReadHost(v, []string{"/usr/bin/x"}); got != nil {
		t.Errorf("ReadHost of nothing that counts = %+v", got)
	}
}

func TestParseUdev(t *testing.T) {
	rules := parseUdev(`# comment
ACTION!="add|change", GOTO="end"
SUBSYSTEM!="net", GOTO="net_end"
ATTR{address}=="00:11:*", \
  NAME="lan0"
LABEL="net_end"
SUBSYSTEM=="block", KERNEL=="sd*|nvme*", ENV{ID_A-B}="1"
ACTION=="add", SUBSYSTEM=="usb", RUN+="/bin/x a=\"b\""
ACTION=="remove", SUBSYSTEM=="tty", RUN+="y"
ATTRS{idVendor}=="1d6b", MODE="0660"
LABEL="end"
`)
	var got []string
	for _, r := range rules {
		got = append(got, strings.Join([]string{r.Match.Action, strings.Join(r.Match.Subsystems, "|"), strings.Join(r.Match.Names, "|"), flags(r)}, " "))
	}
	want := []string{
		"change   flow", "change   flow", "change net  ", "change   flow", "change block sd*|nvme* ", "add usb  ", "change tty  idle", "change   ", "change   flow",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func flags(r change.UdevRule) string {
	switch {
	case r.Flow:
		return "flow"
	case r.Idle:
		return "idle"
	}
	return ""
}

func TestParseFstab(t *testing.T) {
	got := parseFstab("UUID=1 / ext4 ro 0 1\n# c\n/dev/a /srv/my\\040files/ xfs defaults,x-systemd.automount\nswap none swap\nshort\n")
	want := []change.FstabEntry{
		{What: "UUID=1", Where: "/", Type: "ext4", Options: "ro"},
		{What: "/dev/a", Where: "/srv/my files", Type: "xfs", Options: "defaults,x-systemd.automount"},
		{What: "swap", Where: "none", Type: "swap", Options: "defaults"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSysctlKey(t *testing.T) {
	for in, want := range map[string]string{
		"kernel.panic": "kernel.panic", "kernel/panic": "kernel.panic", "net.ipv4.conf.eth0/1.x": "net.ipv4.conf.eth0/1.x",
		"/net/ipv4/conf/eth0.1/x": "net.ipv4.conf.eth0/1.x", "": "", "a..b": "", "../../etc/passwd": "etc.passwd", "a/../b": "",
	} {
		if got := SysctlKey(in); got != want {
			t.Errorf("SysctlKey(%q) = %q; want %q", in, got, want)
		}
	}
}

func FuzzHostConfig(f *testing.F) {
	f.Add("net.ipv4.ip_forward = 1\n-kernel.panic\nSUBSYSTEM==\"net\", ATTR{a}==\"b\", GOTO=\"e\"\n:q:M::a::/b:F\nUUID=1 /a\\040b ext4\n")
	f.Fuzz(func(t *testing.T, s string) {
		for _, l := range parseSysctl(s, "/f") {
			if l.Key == "" || SysctlKey(l.Key) != l.Key || slices.Contains(strings.Split(strings.NewReplacer(".", "/", "/", ".").Replace(l.Key), "/"), "..") {
				t.Errorf("key %q", l.Key)
			}
		}
		for _, m := range parseModules(s) {
			if m == "" || strings.ContainsAny(m, "/ \n") || m[0] == '-' {
				t.Errorf("module %q", m)
			}
		}
		for _, l := range lines(s) {
			if n := binfmtName(l); strings.Contains(n, "/") || n == ".." {
				t.Errorf("binfmt %q", n)
			}
		}
		for _, e := range parseFstab(s) {
			if e.What == "" && e.Where == "" {
				t.Errorf("fstab %+v", e)
			}
		}
		for _, r := range parseUdev(s) {
			if r.Text == "" || strings.Contains(r.Text, "\n") {
				t.Errorf("rule %q", r.Text)
			}
		}
		parseCrypttab(s)
	})
}

func FuzzPackages(f *testing.F) {
	f.Add("/.\n/etc\n/etc/a\n", "pkg /etc/a\n", "/etc/a")
	f.Fuzz(func(t *testing.T, list, registry, ask string) {
		if strings.ContainsAny(ask, "\n\x00") || !strings.HasPrefix(ask, "/") {
			return
		}
		v := viewOf(t, files{"var/lib/dpkg/info/p.list": list, "var/lib/ucf/registry": registry})
		got, err := Packages(v).Owners(ask)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(strings.Split(list, "\n"), ask) != slices.Contains(got[ask], "p") && !strings.Contains(registry, ask) {
			t.Errorf("Owners(%q) = %v of the list %q", ask, got, list)
		}
	})
}
