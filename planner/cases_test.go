package planner

import (
	"slices"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// Each case is a change on disk and the least that is right for it.
var cases = []struct {
	name string
	in   func() *scenario
	want string
}{
	{"library: restart those that map it and nothing else", func() *scenario {
		s := machine().replace(libssl)
		s.unit("nginx.service", nginxUnit)
		s.unit("cron.service", "")
		return s.maps("nginx.service", 10, "nginx", libssl).maps("nginx.service", 11, "nginx", libssl)
	}, "restart nginx.service"},
	{"identical bytes under a new inode: nothing", func() *scenario {
		s := machine()
		s.unit("nginx.service", nginxUnit)
		s.in.Delta.Entries = []change.Entry{{
			Path: libssl, Op: change.Replace, Old: file("same"), New: file("same"), Aspects: change.AspectLinks,
		}}
		return s.maps("nginx.service", 10, "nginx", libssl)
	}, ""},
	{"metadata alone: nothing", func() *scenario {
		s := machine()
		s.unit("app.service", "", change.Use{Path: "/opt/app/run.py", Kind: "script"})
		s.in.Delta.Entries = []change.Entry{{
			Path: "/opt/app/run.py", Op: change.Metadata, Old: file("x"), New: file("x"), Aspects: change.AspectMode | change.AspectMtime,
		}, {
			Path: "/usr/lib/systemd/system/app.service", Op: change.Metadata, Old: file("x"), New: file("x"), Aspects: change.AspectMtime,
		}}
		return s
	}, ""},
	{"plugin that nobody has mapped: nothing", func() *scenario {
		s := machine().replace("/usr/lib/nginx/modules/geoip.so")
		s.unit("nginx.service", nginxUnit, change.Use{Path: "/usr/lib/nginx/modules/geoip.so", Kind: "soname"})
		return s
	}, ""},
	{"plugin below /opt that is mapped: restart", func() *scenario {
		s := machine().replace("/opt/app/plugin.so")
		s.unit("app.service", "")
		return s.maps("app.service", 10, "app", "/opt/app/plugin.so")
	}, "restart app.service"},
	{"libc: PID 1 executes itself anew, what bears it restarts, the bus waits for a new user space", func() *scenario {
		s := machine().replace(libc)
		s.unit("cron.service", "")
		s.unit("dbus.service", "")
		s.unit("getty@tty1.service", "")
		s.unit("lightdm.service", "")
		return s.maps("init.scope", 1, "systemd", libc).maps("cron.service", 9, "cron", libc).
			maps("dbus.service", 8, "dbus-daemon", libc).maps("getty@tty1.service", 7, "agetty", libc).
			maps("lightdm.service", 6, "lightdm", libc)
	}, "restart cron.service, defer dbus.service, restart getty@tty1.service, defer lightdm.service, host soft-reboot"},
	{"getty on which somebody is logged in: defer", func() *scenario {
		s := machine().replace(libc)
		s.unit("getty@tty1.service", "")
		return s.maps("getty@tty1.service", 7, "login", libc)
	}, "defer getty@tty1.service"},
	{"library that resolves elsewhere now: restart", func() *scenario {
		s := machine().relink("/usr/lib/libz.so.1", "libz.so.1.2.13", "libz.so.1.3").add("/usr/lib/libz.so.1.3")
		s.unit("app.service", "", change.Use{Path: "/usr/lib/libz.so.1.2.13", Kind: "soname", Via: "/usr/bin/app"})
		s.in.New.Units["app.service"].Uses = []change.Use{{Path: "/usr/lib/libz.so.1.3", Kind: "soname", Via: "/usr/bin/app"}}
		return s
	}, "restart app.service"},
	{"libsystemd-shared: PID 1 and user managers execute themselves anew", func() *scenario {
		lib := "/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so"
		s := machine().replace(lib)
		s.unit("user@1000.service", "").CanReload = true
		return s.maps("init.scope", 1, "systemd", lib).
			hit(change.Hit{Unit: "user@1000.service", UserUnit: "init.scope", PID: 50, Comm: "systemd", Kind: "mapped", Path: lib}).
			hit(change.Hit{Unit: "user@1000.service", UserUnit: "init.scope", PID: 51, Comm: "(sd-pam)", Kind: "mapped", Path: lib})
	}, "reload user@1000.service, host daemon-reexec"},
	{"user manager whose unit has no reload: a signal does it", func() *scenario {
		s := machine().replace(libc)
		s.unit("user@1000.service", "")
		return s.hit(change.Hit{Unit: "user@1000.service", UserUnit: "init.scope", PID: 50, Comm: "systemd", Kind: "mapped", Path: libc})
	}, "reload user@1000.service"},
	{"link to another JDK: restart its users", func() *scenario {
		s := machine().relink("/etc/alternatives/java", "/usr/lib/jvm/17/bin/java", "/usr/lib/jvm/21/bin/java")
		s.unit("tomcat.service", "[Service]\nExecStart=/usr/bin/java -jar x.jar", change.Use{Path: "/usr/lib/jvm/17/bin/java", Kind: "exec"})
		s.in.New.Units["tomcat.service"].Uses = []change.Use{{Path: "/usr/lib/jvm/21/bin/java", Kind: "exec"}}
		return s
	}, "restart tomcat.service"},
	{"set-uid helper that happens to run: nothing", func() *scenario {
		s := machine().replace("/usr/bin/sudo")
		s.unit("cron.service", "")
		return s.hit(change.Hit{Unit: "cron.service", PID: 9, Comm: "sudo", Kind: "exec", Path: "/usr/bin/sudo", Setuid: true})
	}, ""},
	{"session of an earlier sshd: sshd restarts, the session stays", func() *scenario {
		s := machine().replace("/usr/sbin/sshd")
		s.unit("ssh.service", "")
		return s.hit(change.Hit{Unit: "ssh.service", PID: 9, Comm: "sshd", Kind: "exec", Path: "/usr/sbin/sshd"}).
			hit(change.Hit{Unit: "session-3.scope", PID: 90, Comm: "sshd", Kind: "exec", Path: "/usr/sbin/sshd"})
	}, "restart ssh.service"},
	{"only leftovers of an earlier start: nothing more", func() *scenario {
		s := machine().replace("/usr/sbin/sshd")
		s.unit("ssh.service", "")
		return s.hit(change.Hit{Unit: "ssh.service", PID: 9, Comm: "sshd", Kind: "exec", Path: "/usr/sbin/sshd", Leftover: true})
	}, ""},
	{"python module that the script imports: restart", func() *scenario {
		s := machine().replace("/usr/lib/python3/dist-packages/yaml/loader.py")
		s.unit("app.service", "", change.Use{Path: "/opt/app.py", Kind: "script"},
			change.Use{Path: "/usr/lib/python3/dist-packages/yaml/loader.py", Kind: "module", Via: "/opt/app.py"})
		s.unit("other.service", "", change.Use{Path: "/opt/other.py", Kind: "script"})
		return s
	}, "restart app.service"},
	{"shell script that is the ExecStart: restart", func() *scenario {
		s := machine().replace("/opt/run.sh")
		s.unit("app.service", "", change.Use{Path: "/opt/run.sh", Kind: "script"})
		return s
	}, "restart app.service"},
	{"nginx.conf: validate, then reload", func() *scenario {
		s := machine().replace("/etc/nginx/nginx.conf").add("/etc/nginx/sites-enabled/x.liveupd-new")
		s.unit("nginx.service", nginxUnit)
		return s
	}, "reload nginx.service, check /usr/sbin/nginx -t -q"},
	{"nginx.conf where nginx does not run: nothing", func() *scenario {
		s := machine().replace("/etc/nginx/nginx.conf")
		s.unit("nginx.service", nginxUnit).ActiveState = "inactive"
		return s
	}, ""},
	{"nginx.conf and its library: one restart, validated", func() *scenario {
		s := machine().replace("/etc/nginx/nginx.conf", libssl)
		s.unit("nginx.service", nginxUnit)
		return s.maps("nginx.service", 10, "nginx", libssl)
	}, "restart nginx.service, check /usr/sbin/nginx -t -q"},
	{"configuration of a service without reload: restart", func() *scenario {
		s := machine().replace("/etc/rsyslog.d/50-default.conf")
		s.unit("rsyslog.service", "")
		return s
	}, "restart rsyslog.service, check /usr/sbin/rsyslogd -N1"},
	{"instance's own configuration only", func() *scenario {
		s := machine().replace("/etc/postgresql/15/main/postgresql.conf")
		s.unit("postgresql@15-main.service", nginxUnit)
		s.unit("postgresql@13-old.service", nginxUnit)
		return s
	}, "reload postgresql@15-main.service"},
	{"php-fpm: the version of the unit's name", func() *scenario {
		s := machine().replace("/etc/php/8.2/fpm/php.ini")
		s.unit("php8.2-fpm.service", nginxUnit)
		s.unit("php7.4-fpm.service", nginxUnit)
		return s
	}, "reload php8.2-fpm.service, check /usr/sbin/php-fpm8.2 -t"},
	{"configuration of the unit's package: reload; what others read: nothing", func() *scenario {
		s := machine().replace("/etc/foo/foo.conf", "/etc/logrotate.d/foo")
		s.unit("foo.service", nginxUnit, change.Use{Path: "/etc/foo/foo.conf", Kind: "config", Via: "package foo"},
			change.Use{Path: "/etc/logrotate.d/foo", Kind: "config", Via: "package foo"})
		s.unit("bar.service", nginxUnit, change.Use{Path: "/etc/logrotate.d/foo", Kind: "config", Via: "package foo"})
		return s
	}, "reload foo.service"},
	{"declared file: reload or restart, as the unit can", func() *scenario {
		s := machine().replace("/srv/app/rules.d/a.rules")
		s.unit("app.service", "X-Liveupd-Watch=/srv/app/rules.d/*.rules\n"+nginxUnit)
		s.unit("old.service", "X-Liveupd-Watch=/srv/app/rules.d/*.rules")
		s.unit("shy.service", "X-Liveupd-Watch=/srv/app/rules.d/*.rules\nX-Liveupd-On-Change=defer")
		s.unit("deaf.service", "X-Liveupd-Watch=/srv/app/rules.d/*.rules\nX-Liveupd-On-Change=none")
		return s
	}, "reload app.service, restart old.service, defer shy.service"},
	{"declared check", func() *scenario {
		s := machine().replace("/srv/app/rules")
		s.unit("app@x.service", "X-Liveupd-Watch=/srv/app/rules\nX-Liveupd-Check=/usr/bin/app --check 'the %i'")
		return s
	}, "restart app@x.service, check /usr/bin/app --check the x"},
	{"EnvironmentFile and credential: restart", func() *scenario {
		s := machine().replace("/etc/default/a", "/etc/credstore/b")
		s.unit("a.service", "", change.Use{Path: "/etc/default/a", Kind: "environment"})
		s.unit("b.service", "", change.Use{Path: "/etc/credstore/b", Kind: "credential"})
		return s
	}, "restart a.service, restart b.service"},
	{"file over which the namespace has a mount: restart", func() *scenario {
		s := machine().replace("/etc/resolv.conf")
		s.unit("a.service", "")
		return s.hit(change.Hit{Unit: "a.service", PID: 4, Comm: "a", Kind: "namespace", Path: "/etc/resolv.conf"})
	}, "restart a.service"},
	{"time zones, certificates, locales, PAM: nothing", func() *scenario {
		s := machine().replace("/usr/share/zoneinfo/UTC", "/etc/ssl/certs/ca-certificates.crt", "/usr/lib/locale/locale-archive",
			"/etc/nsswitch.conf", "/etc/pam.d/sshd", "/etc/cron.d/x", "/etc/crontab")
		s.unit("cron.service", nginxUnit)
		s.unit("ssh.service", nginxUnit)
		return s.maps("cron.service", 3, "cron", "/usr/lib/locale/locale-archive")
	}, ""},
	{"sudoers: a validator alone", func() *scenario {
		return machine().add("/etc/sudoers.d/ops")
	}, "check /usr/sbin/visudo -c"},
	{"Description, limits, stop commands: daemon-reload", func() *scenario {
		s := machine()
		s.unit("a.service", "Description=a\n[Service]\nExecStart=/bin/a")
		s.unit("b.service", "[Service]\nExecStart=/bin/a\nMemoryMax=1G")
		s.unit("c.service", "[Service]\nExecStart=/bin/a\nExecStop=/bin/b")
		return s.redefine("a.service", "Description=b\n[Service]\nExecStart=/bin/a").
			redefine("b.service", "[Service]\nExecStart=/bin/a\nMemoryMax=2G\nCPUWeight=20").
			redefine("c.service", "[Service]\nExecStart=/bin/a\nExecStop=/bin/c\nTimeoutStopSec=9\nRestart=always")
	}, "host daemon-reload"},
	{"ExecStart or a sandbox directive: daemon-reload and restart", func() *scenario {
		s := machine()
		s.unit("a.service", "[Service]\nExecStart=/bin/a")
		s.unit("b.service", "[Service]\nExecStart=/bin/a")
		return s.redefine("a.service", "[Service]\nExecStart=/bin/a -v").
			redefine("b.service", "[Service]\nExecStart=/bin/a\nProtectSystem=strict")
	}, "restart a.service, restart b.service, host daemon-reload"},
	{"directive that nobody knows: restart", func() *scenario {
		s := machine()
		s.unit("a.service", "[Service]\nExecStart=/bin/a")
		return s.redefine("a.service", "[Service]\nExecStart=/bin/a\nQuantumSlice=7")
	}, "restart a.service, host daemon-reload"},
	{"unit file with a changed comment: daemon-reload", func() *scenario {
		s := machine()
		s.unit("a.service", "[Service]\nExecStart=/bin/a")
		return s.redefine("a.service", "[Service]\nExecStart=/bin/a")
	}, "host daemon-reload"},
	{"new drop-in: as its directives say", func() *scenario {
		s := machine().add("/etc/systemd/system/a.service.d/x.conf", "/etc/systemd/system/b.service.d/x.conf")
		for _, n := range []string{"a.service", "b.service"} {
			s.unit(n, "[Service]\nExecStart=/bin/a")
			u := s.in.New.Units[n]
			d := "/etc/systemd/system/" + n + ".d/x.conf"
			u.DropIns = []string{d}
			key := map[string]string{"a.service": "Nice", "b.service": "CPUWeight"}[n]
			u.Settings = append(u.Settings, change.Setting{Section: "Service", Key: key, Value: "5", File: d})
		}
		return s
	}, "restart a.service, host daemon-reload"},
	{"template: the running instances only", func() *scenario {
		s := machine()
		for _, t := range []*change.Tree{s.in.Old, s.in.New} {
			t.Units["foo@.service"] = define("foo@.service", "[Service]\nExecStart=/bin/foo %i")
		}
		for _, n := range []string{"foo@a.service", "foo@b.service"} {
			st := s.unit(n, "")
			delete(s.in.Old.Units, n)
			delete(s.in.New.Units, n)
			if n == "foo@b.service" {
				st.ActiveState = "inactive"
			}
		}
		return s.redefine("foo@.service", "[Service]\nExecStart=/bin/foo -x %i")
	}, "restart foo@a.service, host daemon-reload"},
	{"timer, path and slice: daemon-reload", func() *scenario {
		s := machine()
		s.unit("a.timer", "[Timer]\nOnCalendar=daily")
		s.unit("b.path", "[Path]\nPathChanged=/a")
		s.unit("c.slice", "[Slice]\nMemoryMax=1G")
		return s.redefine("a.timer", "[Timer]\nOnCalendar=weekly").
			redefine("b.path", "[Path]\nPathChanged=/b").redefine("c.slice", "[Slice]\nMemoryMax=2G")
	}, "host daemon-reload"},
	{"socket's address: socket and service", func() *scenario {
		s := machine()
		s.unit("a.socket", "[Socket]\nListenStream=80").Triggers = []string{"a.service"}
		s.unit("a.service", "")
		return s.redefine("a.socket", "[Socket]\nListenStream=81")
	}, "restart a.service, restart a.socket, host daemon-reload"},
	{"socket with an instance for each connection: the socket alone", func() *scenario {
		s := machine()
		s.unit("a.socket", "[Socket]\nListenStream=80\nAccept=yes").Triggers = []string{"a@1-2.service"}
		s.unit("a@1-2.service", "")
		return s.redefine("a.socket", "[Socket]\nListenStream=81\nAccept=yes")
	}, "restart a.socket, host daemon-reload"},
	{"socket's trigger limit: daemon-reload", func() *scenario {
		s := machine()
		s.unit("a.socket", "[Socket]\nListenStream=80").Triggers = []string{"a.service"}
		s.unit("a.service", "")
		return s.redefine("a.socket", "[Socket]\nListenStream=80\nTriggerLimitBurst=5\nExecStartPre=/bin/x\nUser=me")
	}, "host daemon-reload"},
	{"mount: options are remounted, another device is mounted anew, the root never", func() *scenario {
		s := machine()
		for _, n := range []string{"srv.mount", "data.mount", "-.mount"} {
			s.unit(n, "[Mount]\nWhat=/dev/a\nOptions=ro")
		}
		return s.redefine("srv.mount", "[Mount]\nWhat=/dev/a\nOptions=rw").
			redefine("data.mount", "[Mount]\nWhat=/dev/b\nOptions=ro").redefine("-.mount", "[Mount]\nWhat=/dev/b\nOptions=ro")
	}, "defer -.mount, restart data.mount, reload srv.mount, host daemon-reload"},
	{"target gains a dependency: start it", func() *scenario {
		s := machine().add("/usr/lib/systemd/system/new.service", "/etc/systemd/system/multi-user.target.wants/new.service")
		s.in.New.Units["new.service"] = define("new.service", "[Service]\nExecStart=/bin/n")
		s.in.New.Reached["new.service"] = "multi-user.target"
		mu := s.in.New.Units["multi-user.target"]
		mu.Settings = append(mu.Settings, change.Setting{Section: "Unit", Key: "Wants", Value: "new.service", File: "/etc/systemd/system/multi-user.target.wants/new.service"})
		return s
	}, "start new.service, host daemon-reload"},
	{"new timer: the timer starts, its service waits", func() *scenario {
		s := machine().add("/usr/lib/systemd/system/new.timer", "/usr/lib/systemd/system/new.service")
		s.in.New.Units["new.timer"] = define("new.timer", "[Timer]\nOnCalendar=daily")
		s.in.New.Units["new.service"] = define("new.service", "[Service]\nExecStart=/bin/n")
		s.in.New.Reached["new.timer"] = "timers.target"
		s.in.New.Reached["new.service"] = "new.timer"
		return s
	}, "start new.timer, host daemon-reload"},
	{"new unit of a target that this boot did not enter: nothing", func() *scenario {
		s := machine().add("/usr/lib/systemd/system/new.service")
		s.unit("graphical.target", "").ActiveState = "inactive"
		s.in.New.Units["new.service"] = define("new.service", "[Service]\nExecStart=/bin/n")
		s.in.New.Reached["new.service"] = "graphical.target"
		return s
	}, "host daemon-reload"},
	{"newly enabled unit that runs already: nothing", func() *scenario {
		s := machine().add("/etc/systemd/system/multi-user.target.wants/a.service")
		s.unit("a.service", "")
		delete(s.in.Old.Reached, "a.service")
		return s
	}, "host daemon-reload"},
	{"removed unit that runs: stop; one that does not: nothing", func() *scenario {
		s := machine()
		s.unit("a.service", "[Service]\nExecStart=/bin/a")
		s.unit("b.service", "[Service]\nExecStart=/bin/b").ActiveState = "inactive"
		return s.remove("a.service").remove("b.service")
	}, "stop a.service, host daemon-reload"},
	{"masked unit that runs: stop", func() *scenario {
		s := machine().relink("/etc/systemd/system/a.service", "x", "/dev/null")
		s.unit("a.service", "[Service]\nExecStart=/bin/a")
		s.in.New.Units["a.service"] = &change.Unit{Name: "a.service", Masked: true, Fragment: "/etc/systemd/system/a.service"}
		return s
	}, "stop a.service, host daemon-reload"},
	{"transient unit: no tree says that it goes", func() *scenario {
		s := machine()
		s.unit("run-1.service", "").FragmentPath = "/run/systemd/transient/run-1.service"
		return s.remove("run-1.service")
	}, "host daemon-reload"},
	{"oneshot that remains after its exit: nothing, unless it opts in", func() *scenario {
		s := machine().replace("/opt/a.sh")
		for n, more := range map[string]string{"a.service": "", "b.service": "X-Liveupd-On-Change=restart\n"} {
			st := s.unit(n, more+"[Service]\nType=oneshot\nExecStart=/opt/a.sh", change.Use{Path: "/opt/a.sh", Kind: "script"})
			st.SubState, st.RemainAfterExit = "exited", true
		}
		return s.redefine("a.service", "[Service]\nType=oneshot\nExecStart=/opt/a.sh -v")
	}, "restart b.service, host daemon-reload"},
	{"a unit that requires the stale one: restarted along with it", func() *scenario {
		s := machine().replace(libssl)
		s.unit("a.service", "Requires=b.service")
		s.unit("b.service", "").RequiredBy = []string{"a.service", "gone.service"}
		s.unit("c.service", "PartOf=a.service")
		s.in.Facts.Units["a.service"].ConsistsOf = []string{"c.service"}
		return s.maps("b.service", 4, "b", libssl)
	}, "~restart a.service, restart b.service, ~restart c.service"},
	{"a dependency that the new tree drops does not carry the restart", func() *scenario {
		s := machine().replace(libssl)
		s.unit("a.service", "Requires=b.service")
		s.unit("b.service", "").RequiredBy = []string{"a.service"}
		return s.redefine("a.service", "Wants=b.service").maps("b.service", 4, "b", libssl)
	}, "restart b.service, host daemon-reload"},
	{"a restart that would take containers along: defer", func() *scenario {
		s := machine().replace(libssl)
		s.unit("docker.service", "Requires=b.service")
		s.unit("b.service", "").RequiredBy = []string{"docker.service"}
		return s.maps("b.service", 4, "b", libssl)
	}, "defer b.service"},
	{"a restart stops what PropagatesStopTo= names, but not before systemd 254", func() *scenario {
		s := machine().replace(libssl)
		s.unit("a.service", "").PropagatesStopTo = []string{"b.service"}
		s.unit("b.service", "")
		return s.maps("a.service", 4, "a", libssl)
	}, "restart a.service, ~stop b.service"},
	{"the same on systemd 252", func() *scenario {
		s := machine().replace(libssl)
		s.in.Facts.SystemdVersion = 252
		s.unit("a.service", "").PropagatesStopTo = []string{"b.service"}
		s.unit("b.service", "")
		return s.maps("a.service", 4, "a", libssl)
	}, "restart a.service"},
	{"reload reaches what it propagates to", func() *scenario {
		s := machine().replace("/etc/nginx/nginx.conf")
		s.unit("nginx.service", nginxUnit).PropagatesReloadTo = []string{"side.service", "plain.service"}
		s.unit("side.service", nginxUnit)
		s.unit("plain.service", "")
		return s
	}, "reload nginx.service, ~reload side.service, check /usr/sbin/nginx -t -q"},
	{"bus policy: reload; its binary: a new user space", func() *scenario {
		s := machine().replace("/usr/share/dbus-1/system.d/x.conf")
		s.unit("dbus.service", nginxUnit)
		return s
	}, "reload dbus.service"},
	{"bus policy and its library: reload now, a new user space later", func() *scenario {
		s := machine().replace("/etc/dbus-1/system.d/x.conf", "/usr/bin/dbus-daemon")
		s.unit("dbus.service", nginxUnit)
		return s.hit(change.Hit{Unit: "dbus.service", PID: 3, Comm: "dbus-daemon", Kind: "exec", Path: "/usr/bin/dbus-daemon"})
	}, "reload dbus.service, host soft-reboot"},
	{"new kernel: kexec; the modules of one that goes: nothing", func() *scenario {
		s := machine().add("/boot/vmlinuz-6.12", "/boot/initrd.img-6.12", "/usr/lib/modules/6.12/kernel/a.ko")
		s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{Path: "/usr/lib/modules/6.1/kernel/a.ko", Op: change.Remove, Old: file("x")})
		return s
	}, "host kexec"},
	{"microcode: reboot", func() *scenario {
		return machine().replace("/usr/lib/firmware/intel-ucode/06-55-04")
	}, "host reboot"},
	{"the update asks for a boot", func() *scenario {
		s := machine().add("/usr/share/x")
		s.in.Policy.Bootme = true
		return s
	}, "host reboot"},
	{"an update that changes nothing asks for no boot", func() *scenario {
		s := machine()
		s.in.Policy.Bootme = true
		return s
	}, ""},
	{"container that shares the host's files: defer", func() *scenario {
		s := machine().replace(libssl)
		s.unit("machine-a.scope", "")
		s.unit("systemd-nspawn@b.service", "")
		return s.hit(change.Hit{Unit: "machine-a.scope", PID: 4, Comm: "x", Kind: "mapped", Path: libssl, Container: true}).
			maps("systemd-nspawn@b.service", 5, "y", libssl)
	}, "defer machine-a.scope, defer systemd-nspawn@b.service"},
	{"service with a root of its own: the host's file is another", func() *scenario {
		s := machine().replace(libssl)
		s.unit("img.service", "[Service]\nRootDirectory=/srv/img", change.Use{Path: "/srv/img" + libssl, Kind: "soname"})
		return s
	}, ""},
	{"user's service, and a manager that was not asked: defer", func() *scenario {
		s := machine().replace(libssl)
		s.unit("user@1000.service", "").CanReload = true
		return s.hit(change.Hit{Unit: "user@1000.service", UserUnit: "syncthing.service", PID: 4, Comm: "syncthing", Kind: "mapped", Path: libssl})
	}, "defer user@1000.service/syncthing.service"},
	{"unit that systemd refuses to stop: defer", func() *scenario {
		s := machine().replace(libc)
		s.unit("auditd.service", "").RefuseManualStop = true
		return s.maps("auditd.service", 4, "auditd", libc)
	}, "defer auditd.service"},
	{"virtlogd: its reload executes the new binary", func() *scenario {
		s := machine().replace(libc)
		s.unit("virtlogd.service", nginxUnit)
		return s.maps("virtlogd.service", 4, "virtlogd", libc)
	}, "reload virtlogd.service"},
	{"the scope of the very run: nothing", func() *scenario {
		s := machine().replace(libc)
		s.unit("run-u1.scope", "")
		s.in.Facts.Own = []string{"run-u1.scope"}
		return s.maps("run-u1.scope", 4, "liveupd", libc)
	}, ""},
	{"NixOS's keys", func() *scenario {
		s := machine().replace(libc)
		s.unit("a.service", "X-RestartIfChanged=false")
		s.unit("b.service", "X-ReloadIfChanged=true\n"+nginxUnit)
		s.unit("c.service", "X-Restart-Triggers=1")
		s.unit("d.service", "X-Reload-Triggers=1\n"+nginxUnit)
		return s.maps("a.service", 4, "a", libc).maps("b.service", 5, "b", libc).
			redefine("c.service", "X-Restart-Triggers=2").redefine("d.service", "X-Reload-Triggers=2\n"+nginxUnit)
	}, "defer a.service, reload b.service, restart c.service, reload d.service, host daemon-reload"},
	{"above what is permitted: defer", func() *scenario {
		s := machine().replace(libc, "/etc/nginx/nginx.conf")
		s.in.Policy.Max = change.ActionReload
		s.unit("nginx.service", nginxUnit)
		s.unit("cron.service", "")
		return s.maps("cron.service", 4, "cron", libc)
	}, "defer cron.service, reload nginx.service, check /usr/sbin/nginx -t -q"},

	// The same questions where no running system answers.
	{"tree: what the old default target reaches is taken to run", func() *scenario {
		s := machine().tree().replace(libssl)
		uses := []change.Use{{Path: "/usr/bin/a", Kind: "exec"}, {Path: libssl, Kind: "soname", Via: "/usr/bin/a"}}
		s.unit("a.service", "[Service]\nExecStart=/usr/bin/a", uses...)
		s.unit("b.service", "[Service]\nExecStart=/usr/bin/a", uses...)
		s.unit("c.service", "[Service]\nType=oneshot\nExecStart=/usr/bin/a", uses...)
		delete(s.in.Old.Reached, "b.service")
		delete(s.in.New.Reached, "b.service")
		return s
	}, "restart a.service"},
	{"tree: configuration, masks and new units", func() *scenario {
		s := machine().tree().replace("/etc/nginx/nginx.conf").add("/usr/lib/systemd/system/new.service")
		s.unit("nginx.service", nginxUnit)
		s.unit("a.service", "[Service]\nExecStart=/bin/a")
		s.unit("b.service", "BindsTo=a.service\n[Service]\nExecStart=/bin/b")
		s.in.New.Units["new.service"] = define("new.service", "[Service]\nExecStart=/bin/n")
		s.in.New.Reached["new.service"] = "multi-user.target"
		s.relink("/etc/systemd/system/a.service", "x", "/dev/null")
		s.in.New.Units["a.service"] = &change.Unit{Name: "a.service", Masked: true, Fragment: "/etc/systemd/system/a.service"}
		delete(s.in.New.Reached, "a.service")
		return s
	}, "stop a.service, ~stop b.service, start new.service, reload nginx.service, host daemon-reload, check /usr/sbin/nginx -t -q"},
	{"tree: restart reaches along the new tree's dependencies", func() *scenario {
		s := machine().tree().replace("/usr/bin/a")
		s.unit("a.service", "[Service]\nExecStart=/usr/bin/a", change.Use{Path: "/usr/bin/a", Kind: "exec"})
		s.unit("b.service", "Requires=a.service\n[Service]\nExecStart=/bin/b")
		s.unit("c.service", "Wants=a.service\n[Service]\nExecStart=/bin/b")
		return s
	}, "restart a.service, ~restart b.service"},
	{"tree: what the manager's own library needs is PID 1's too", func() *scenario {
		s := machine().tree().replace("/usr/lib/libz.so.1.3")
		s.unit("systemd-journald.service", "[Service]\nExecStart=/usr/lib/systemd/systemd-journald",
			change.Use{Path: "/usr/lib/systemd/systemd-journald", Kind: "exec"},
			change.Use{Path: "/usr/lib/systemd/libsystemd-shared-257.so", Kind: "soname", Via: "/usr/lib/systemd/systemd-journald"},
			change.Use{Path: "/usr/lib/libcrypto.so.3", Kind: "soname", Via: "/usr/lib/systemd/libsystemd-shared-257.so"},
			change.Use{Path: "/usr/lib/libz.so.1.3", Kind: "soname", Via: "/usr/lib/libcrypto.so.3"})
		return s
	}, "restart systemd-journald.service, host daemon-reexec"},
	{"tree: libc is PID 1's too", func() *scenario {
		return machine().tree().replace(libc)
	}, "host daemon-reexec"},
}

func TestCases(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := Make(c.in().in)
			if got := summary(p); got != c.want {
				t.Errorf("Make() = %s\n          want %s\n%s", got, c.want, pretty(p))
			}
			wellFormed(t, p)
		})
	}
}

// wellFormed holds of every plan.
func wellFormed(t *testing.T, p *change.Plan) {
	t.Helper()
	if p.HostReasons == nil || p.Units == nil || p.Steps == nil || p.Warnings == nil {
		t.Error("a list of the plan is null in JSON")
	}
	reasons := p.HostReasons
	for _, u := range p.Units {
		if len(u.Reasons) == 0 {
			t.Errorf("%s: %s without a reason", u.Unit, u.Action)
		}
		reasons = append(slices.Clip(reasons), u.Reasons...)
	}
	for _, r := range reasons {
		if r.Path == "" && r.Unit == "" {
			t.Errorf("reason %+v names neither a path nor a unit", r)
		}
	}
	if p.HostAction != change.ActionNone && len(p.HostReasons) == 0 {
		t.Errorf("host %s without a reason", p.HostAction)
	}
	for i, st := range p.Steps {
		if st.Seq != i+1 {
			t.Errorf("step %d has number %d", i+1, st.Seq)
		}
	}
}
