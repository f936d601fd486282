package peers

import (
	"os"
	"path/filepath"
	"testing"
)

// how a change gets onto the disk.
type how int

const (
	byRename how = iota // as dpkg does: written beside, renamed over
	aside               // the old one is renamed away first, and stays
	inPlace             // written over
	nothing             // the state of the machine is the case
)

// kase is a change on disk and the least that is right for it.
type kase struct {
	what   string
	how    how
	update func(t *testing.T, u *update)
	// right is what liveupd's plan must be: actions and units, sorted, "~" before what
	// systemd takes along, then the host's action and what is applied to it.
	right  string
	settle string // a script that makes the machine as it was before, beside the files
}

// afterwards is what liveupd check must say of a change that was made by hand.
var afterwards = map[string]string{
	"a library, replaced by rename":         "restart nginx.service, restart private.service",
	"the same, the old one renamed aside":   "restart nginx.service, restart private.service",
	"a Python module that is imported":      "restart pymod.service",
	"a Python module that is not":           "",
	"a Perl module":                         "restart plmod.service",
	"a file that the script sources":        "restart shell.service",
	"nginx.conf":                            "reload nginx.service",
	"an environment file":                   "restart envfile.service",
	"a file that is mounted into a service": "restart bound.service",
	"the script of a oneshot":               "",
	"Description=":                          "host daemon-reload",
	"a module of a user's service":          "restart user@65534.service/userapp.service",
	"a user's unit file":                    "daemon-reload user@65534.service",
}

// update is what changes: files by path, "" for one that goes.
type update struct {
	root  string // the machine's, as it was made
	files map[string]string
	links map[string]string
}

func (u *update) file(name, content string) { u.files[name] = content }

func (u *update) edit(t *testing.T, name string, f func(string) string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(u.root, name))
	if err != nil {
		t.Fatal(err)
	}
	changed := f(string(b))
	u.files[name] = changed
}

func (u *update) append(t *testing.T, name, line string) {
	t.Helper()
	u.edit(t, name, func(s string) string { return s + line })
}

func (u *update) setting(t *testing.T, name, line string) {
	t.Helper()
	u.files["etc/systemd/system/"+name+".d/50-new.conf"] = line + "\n"
}

func (u *update) rebuild(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		real, err := filepath.EvalSymlinks(filepath.Join(u.root, name))
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(u.root, real)
		if err != nil {
			t.Fatal(err)
		}
		u.files[rel] = rebuilt(t, real)
	}
}

var cases = []kase{
	{"a library, replaced by rename", byRename, func(t *testing.T, u *update) { u.rebuild(t, libssl) }, "restart nginx.service, restart private.service", ""},
	{"the same, the old one renamed aside", aside, func(t *testing.T, u *update) { u.rebuild(t, libssl) }, "restart nginx.service, restart private.service", ""},
	{"the same, written over in place", inPlace, func(t *testing.T, u *update) { u.rebuild(t, libssl) }, "restart nginx.service, restart private.service", ""},
	{"identical bytes, a new inode", byRename, func(t *testing.T, u *update) { u.edit(t, libssl, same) }, "", ""},
	{"the same build-id, other bytes", byRename, func(t *testing.T, u *update) { u.append(t, libssl, "\x00") }, "", ""},
	{"a plug-in that nobody has loaded", byRename, func(t *testing.T, u *update) { u.rebuild(t, "opt/plugin/idle.so") }, "", ""},
	{"a plug-in under /opt that is loaded", byRename, func(t *testing.T, u *update) { u.rebuild(t, "opt/plugin/libplug.so") }, "restart plugin.service", ""},
	{"an alternative that names another program", byRename, func(_ *testing.T, u *update) { u.links["etc/alternatives/alttool"] = "/opt/alt2/tool" }, "restart alt.service", ""},
	{"a set-id program that happens to run", byRename, func(t *testing.T, u *update) { u.rebuild(t, "usr/bin/su") }, "", ""},
	{"no change: code in /tmp and in memory", nothing, nil, "", ""},
	{"a Python module that is imported", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/pymod/greeting/words.py", "x = 1\n") }, "~restart needs.service, restart pymod.service", ""},
	{"a Python module that is not", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/pymod/greeting/unused.py", "x = 1\n") }, "", ""},
	{"a Perl module", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/plmod/Greeting.pm", "1;\n") }, "restart plmod.service", ""},
	{"the script of a service", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/shell/main", "true\n") }, "restart shell.service", ""},
	{"a file that the script sources", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/shell/common.sh", "true\n") }, "restart shell.service", ""},
	{"the script of a service that does not run", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/pymod/asleep.py", "x = 1\n") }, "", ""},
	{"nginx.conf", byRename, func(t *testing.T, u *update) { u.append(t, "etc/nginx/nginx.conf", "# changed\n") }, "reload nginx.service", ""},
	{"an environment file", byRename, func(_ *testing.T, u *update) { u.file("etc/envfile.conf", "COLOUR=red\n") }, "restart envfile.service", ""},
	{"the source of a credential", byRename, func(_ *testing.T, u *update) { u.file("etc/secret.key", "two\n") }, "restart secret.service", ""},
	{"a file that is mounted into a service", byRename, func(_ *testing.T, u *update) { u.file("etc/bound.conf", "two\n") }, "restart bound.service", ""},
	{"a file that a unit declares", byRename, func(_ *testing.T, u *update) { u.file("etc/watched.conf", "two\n") }, "restart watched.service", ""},
	{"the time zones", byRename, func(t *testing.T, u *update) { u.append(t, "usr/share/zoneinfo/Europe/Berlin", "\n") }, "", ""},
	{"the certificates of authorities", byRename, func(t *testing.T, u *update) { u.append(t, "etc/ssl/certs/ca-certificates.crt", "\n") }, "", ""},
	{"Description=", byRename, func(t *testing.T, u *update) { u.setting(t, "plain.service", "[Unit]\nDescription=Another") }, "host daemon-reload", ""},
	{"MemoryMax=", byRename, func(t *testing.T, u *update) { u.setting(t, "plain.service", "[Service]\nMemoryMax=1G") }, "host daemon-reload", ""},
	{"ExecStop=, Restart=", byRename, func(t *testing.T, u *update) {
		u.setting(t, "plain.service", "[Service]\nExecStop=/bin/true\nRestart=always")
	}, "host daemon-reload", ""},
	{"a sandbox directive", byRename, func(t *testing.T, u *update) { u.setting(t, "plain.service", "[Service]\nNoNewPrivileges=yes") }, "restart plain.service, host daemon-reload", ""},
	{"ExecStart=", byRename, func(t *testing.T, u *update) {
		u.setting(t, "plain.service", "[Service]\nExecStart=\nExecStart=/usr/bin/sleep 1000000")
	}, "restart plain.service, host daemon-reload", ""},
	{"a template", byRename, func(t *testing.T, u *update) {
		u.edit(t, "usr/lib/systemd/system/inst@.service", func(s string) string { return s + "\n[Service]\nNice=1\n" })
	}, "restart inst@1.service, restart inst@2.service, host daemon-reload", ""},
	{"a timer", byRename, func(t *testing.T, u *update) { u.setting(t, "beat.timer", "[Timer]\nOnCalendar=\nOnCalendar=weekly") }, "host daemon-reload", ""},
	{"the address of a socket", byRename, func(t *testing.T, u *update) {
		u.setting(t, "door.socket", "[Socket]\nListenStream=\nListenStream=/run/gate")
	}, "restart door.service, restart door.socket, host daemon-reload", "systemctl stop door.socket door.service"},
	{"the options of a mount", byRename, func(t *testing.T, u *update) { u.setting(t, "srv-scratch.mount", "[Mount]\nOptions=size=2m") }, "reload srv-scratch.mount, host daemon-reload", ""},
	{"a unit that is enabled", byRename, func(_ *testing.T, u *update) {
		u.file("usr/lib/systemd/system/extra.service", unit("Another", "ExecStart=/usr/bin/sleep infinity"))
		u.links["etc/systemd/system/multi-user.target.wants/extra.service"] = "/usr/lib/systemd/system/extra.service"
	}, "start extra.service, host daemon-reload", ""},
	{"a unit that is masked", byRename, func(_ *testing.T, u *update) { u.links["etc/systemd/system/plain.service"] = "/dev/null" }, "stop plain.service, host daemon-reload", ""},
	{"the script of a oneshot", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/once/run", "true\n") }, "", ""},
	{"a slice", byRename, func(_ *testing.T, u *update) {
		u.file("etc/systemd/system/system.slice.d/50-new.conf", "[Slice]\nTasksMax=10000\n")
	}, "host daemon-reload", ""},
	{"a target that wants another unit", byRename, func(_ *testing.T, u *update) {
		u.links["etc/systemd/system/multi-user.target.wants/asleep.service"] = "/usr/lib/systemd/system/asleep.service"
	}, "start asleep.service, host daemon-reload", "systemctl stop asleep.service"},
	{"a kernel setting", byRename, func(_ *testing.T, u *update) { u.file("etc/sysctl.d/50-new.conf", "net.ipv4.ip_default_ttl = 63\n") }, "sysctl", ""},
	{"a job of cron", byRename, func(_ *testing.T, u *update) { u.file("etc/cron.d/new", "0 0 * * * root true\n") }, "", ""},
	{"a rule of PAM", byRename, func(t *testing.T, u *update) { u.append(t, "etc/pam.d/other", "# changed\n") }, "", ""},
	{"a rule of the bus", byRename, func(_ *testing.T, u *update) {
		u.file("usr/share/dbus-1/system.d/org.example.conf", "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig/>\n")
	}, "reload dbus.service", ""},
	{"the bus' own program", byRename, func(t *testing.T, u *update) { u.rebuild(t, "usr/bin/dbus-daemon") }, "defer dbus.service, host soft-reboot", ""},
	{"a library of PID 1", byRename, func(t *testing.T, u *update) { u.rebuild(t, "usr/lib/x86_64-linux-gnu/systemd/libsystemd-core-257.so") }, "reload user@65534.service, host daemon-reexec", ""},
	{"a kernel", byRename, func(_ *testing.T, u *update) { u.file("boot/vmlinuz-6.99.0-1-amd64", "a kernel\n") }, "host kexec", ""},
	{"microcode", byRename, func(_ *testing.T, u *update) { u.file("usr/lib/firmware/intel-ucode/06-9e-0d", "microcode\n") }, "host reboot", ""},
	{"a service with PrivateTmp", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/python3.13/ssl.py", "\n") }, "restart private.service", ""},
	{"the root of a service with its own", byRename, func(t *testing.T, u *update) { u.rebuild(t, "srv/box/bin/busybox") }, "restart boxed.service", ""},
	{"a module of a user's service", byRename, func(t *testing.T, u *update) { u.append(t, "usr/lib/userapp/part.py", "y = 1\n") }, "restart user@65534.service/userapp.service", ""},
	{"a user's unit file", byRename, func(t *testing.T, u *update) {
		u.edit(t, "usr/lib/systemd/user/userapp.service", func(s string) string { return s + "\n[Service]\nNice=1\n" })
	}, "restart user@65534.service/userapp.service, daemon-reload", ""},
	{"liveupd itself", byRename, func(t *testing.T, u *update) { u.append(t, "usr/local/bin/liveupd", "\x00") }, "", ""},
}

func same(s string) string { return s }
