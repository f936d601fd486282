package inspect

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/internal/sys"
)

func TestUnitOfCgroup(t *testing.T) {
	const (
		v2      = "0::/init.scope\n"
		hybrid  = "12:pids:/init.scope\n1:name=systemd:/init.scope\n0::/init.scope\n"
		v1      = "12:cpu,cpuacct:/\n1:name=systemd:/init.scope\n"
		payload = "5:memory:/\n1:name=systemd:/\n0::/payload/init.scope\n"
		nested  = "0::/../m1/payload/init.scope\n"
	)
	tests := []struct {
		name, pid1, file, system, user string
	}{
		{"v2", v2, "0::/system.slice/nginx.service\n", "nginx.service", ""},
		{"v2 instance in a slice", v2, "0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service", ""},
		{"a unit's own sub-cgroup", v2, "0::/system.slice/docker.service/workers/a.scope\n", "docker.service", ""},
		{"session", v2, "0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope", ""},
		{"user unit", v2, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service\n", "user@1000.service", "foo.service"},
		{"user manager", v2, "0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", "user@1000.service", "init.scope"},
		{"user unit, nested slices", v2, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.slice/app-x-1.scope\n", "user@1000.service", "app-x-1.scope"},
		{"pid 1", v2, v2, "init.scope", ""},
		{"kernel or stray", v2, "0::/\n", "", ""},
		{"only a slice", v2, "0::/system.slice\n", "", ""},
		{"machine's payload", v2, "0::/machine.slice/systemd-nspawn@x.service/payload/system.slice/nginx.service\n", "systemd-nspawn@x.service", ""},
		{"docker", v2, "0::/system.slice/docker-0123abc.scope\n", "docker-0123abc.scope", ""},
		{"lxc's payload is no host unit", v2, "0::/lxc.payload.x/system.slice/nginx.service\n", "", ""},
		{"cgroupfs docker", v2, "0::/docker/0123abc\n", "", ""},
		{"escaped", v2, "0::/system.slice/_cpu.service\n", "cpu.service", ""},
		{"escaped path in the name", v2, `0::/system.slice/dev-disk-by\x2dlabel.swap` + "\n", `dev-disk-by\x2dlabel.swap`, ""},
		{"deleted cgroup", v2, "0::/system.slice/x.service (deleted)\n", "", ""},
		{"hybrid", hybrid, "3:pids:/other\n1:name=systemd:/system.slice/cron.service\n0::/system.slice/cron.service\n", "cron.service", ""},
		{"v1", v1, "3:cpu,cpuacct:/system.slice\n1:name=systemd:/system.slice/cron.service\n", "cron.service", ""},
		{"v1 without the line", v1, "3:cpu,cpuacct:/system.slice/cron.service\n", "", ""},
		{"payload", payload, "1:name=systemd:/\n0::/payload/system.slice/ssh.service\n", "ssh.service", ""},
		{"outside the payload", payload, "1:name=systemd:/\n0::/supervisor\n", "", ""},
		{"a name that begins as the payload", payload, "0::/payload2/system.slice/ssh.service\n", "", ""},
		{"seen from another namespace", nested, "0::/../m1/payload/system.slice/ssh.service\n", "ssh.service", ""},
	}
	for _, tt := range tests {
		h, ok := findHierarchy([]byte(tt.pid1))
		if !ok {
			t.Errorf("%s: no systemd in %q", tt.name, tt.pid1)
			continue
		}
		system, user := h.unit([]byte(tt.file))
		if system != tt.system || user != tt.user {
			t.Errorf("%s: unit(%q) = %q, %q; want %q, %q", tt.name, tt.file, system, user, tt.system, tt.user)
		}
	}
	if _, ok := findHierarchy([]byte("1:name=systemd:/\n0::/\n")); ok {
		t.Error("a PID 1 that is not systemd was taken for it")
	}
}

func FuzzUnitOfCgroup(f *testing.F) {
	f.Add([]byte("0::/init.scope\n"), []byte("0::/system.slice/a.service\n"))
	f.Add([]byte("1:name=systemd:/x/init.scope"), []byte("1:name=systemd:/x/user.slice/user@1.service/a.scope"))
	f.Fuzz(func(t *testing.T, pid1, file []byte) {
		h, ok := findHierarchy(pid1)
		if !ok {
			return
		}
		system, user := h.unit(file)
		if user != "" && !strings.HasPrefix(system, "user@") {
			t.Errorf("unit(%q) = %q, %q", file, system, user)
		}
		if strings.ContainsAny(system+user, "/\n") {
			t.Errorf("unit(%q) = %q, %q", file, system, user)
		}
	})
}

func TestMountedHierarchy(t *testing.T) {
	mount := func(point, kind, root string) sys.Mount { return sys.Mount{Point: point, FSType: kind, Root: root} }
	top := mount("/sys/fs/cgroup", "tmpfs", "/")
	for _, c := range []struct {
		name   string
		mounts []sys.Mount
		want   hierarchy
	}{
		{"unified", []sys.Mount{mount("/sys/fs/cgroup", "cgroup2", "/")}, hierarchy{}},
		{"unified, in a container", []sys.Mount{mount("/sys/fs/cgroup", "cgroup2", "/machine/x")}, hierarchy{prefix: "/machine/x"}},
		{"hybrid", []sys.Mount{top, mount("/sys/fs/cgroup/systemd", "cgroup", "/"), mount("/sys/fs/cgroup/unified", "cgroup2", "/")}, hierarchy{}},
		{"legacy", []sys.Mount{top, mount("/sys/fs/cgroup/systemd", "cgroup", "/")}, hierarchy{controller: "name=systemd"}},
		{"none", nil, hierarchy{}},
	} {
		if got := mountedHierarchy(c.mounts); got != c.want {
			t.Errorf("%s: mountedHierarchy() = %+v; want %+v", c.name, got, c.want)
		}
	}
}
