package rootfs

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestConfigReaders(t *testing.T) {
	const info = "var/lib/dpkg/info/"
	v := viewOf(t, files{
		"lib":                                "-> usr/lib",
		unitDir + "nginx.service":            "[Service]\nExecStart=/n\n",
		unitDir + "systemd-logind.service":   "[Service]\nExecStart=/l\n",
		unitDir + "systemd-journald.service": "[Service]\nExecStart=/j\n",
		unitDir + "ssh.service":              "[Service]\nExecStart=/s\n",
		unitDir + "multi-a.service":          "[Service]\nExecStart=/a\n",
		unitDir + "multi-b.service":          "[Service]\nExecStart=/b\n",
		unitDir + "tpl@.service":             "[Service]\nExecStart=/t\n",
		"etc/systemd/system/local.service":   "[Service]\nExecStart=/local\n",
		info + "nginx-common.list":           "/.\n/etc\n/etc/nginx\n/etc/nginx/nginx.conf\n/etc/init.d/nginx\n/etc/logrotate.d/nginx\n/lib/systemd/system/nginx.service\n",
		info + "systemd.list":                "/etc/systemd/logind.conf\n/etc/systemd/journald.conf\n/lib/systemd/system/systemd-logind.service\n/usr/lib/systemd/system/systemd-journald.service\n",
		info + "openssh-server:amd64.list":   "/lib/systemd/system/ssh.service\n",
		info + "multi.list":                  "/etc/multi/all.conf\n/etc/multi/b.conf\n/usr/lib/systemd/system/multi-a.service\n/usr/lib/systemd/system/multi-b.service\n",
		info + "tpl.list":                    "/etc/tpl.conf\n/usr/lib/systemd/system/tpl@.service",
		info + "tzdata.list":                 "/etc/timezone.conf\n",
		info + "nginx-common.md5sums":        "x /etc/never\n",
		info + "broken.list/":                "",
		"var/lib/ucf/registry":               "openssh-server \t /etc/ssh/sshd_config\n",
	})
	tree := load(t, v, LoadOptions{Instances: []string{"tpl@one.service"}})
	paths := []string{
		"/etc/nginx/nginx.conf", "/etc/nginx/local.conf", "/etc/init.d/nginx", "/etc/logrotate.d/nginx", "/etc/systemd/logind.conf", "/etc/ssh/sshd_config",
		"/etc/multi/all.conf", "/etc/multi/b.conf", "/etc/tpl.conf", "/etc/timezone.conf", "/usr/lib/x", "/etc/never",
	}
	for range 2 { // a second time adds nothing
		tree.Warnings = nil
		ConfigReaders(v, tree, paths)
	}
	if len(tree.Warnings) != 1 || !strings.Contains(tree.Warnings[0], "broken.list") {
		t.Errorf("a list that cannot be read: warnings %q", tree.Warnings)
	}
	got := map[string][]string{}
	for name, u := range tree.Units {
		for _, use := range u.Uses {
			if use.Kind != "config" || use.Via == "" {
				t.Errorf("%s: %+v; want a use of kind config with the package", name, use)
			}
			got[use.Path] = append(got[use.Path], name)
		}
	}
	for _, names := range got {
		slices.Sort(names)
	}
	want := map[string][]string{
		"/etc/nginx/nginx.conf":    {"nginx.service"},
		"/etc/systemd/logind.conf": {"systemd-logind.service"},
		"/etc/ssh/sshd_config":     {"ssh.service"},
		"/etc/multi/all.conf":      {"multi-a.service", "multi-b.service"},
		"/etc/multi/b.conf":        {"multi-b.service"},
		"/etc/tpl.conf":            {"tpl@.service", "tpl@one.service"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("readers (-want +got):\n%s", d)
	}
}

func TestDiversions(t *testing.T) {
	v := viewOf(t, files{
		"lib":                         "-> usr/lib",
		"var/lib/dpkg/info/dash.list": "/bin/dash\n/bin/sh\n", "var/lib/dpkg/info/bash.list": "/bin/bash\n/bin/sh\n/etc/local\n",
		"var/lib/dpkg/diversions": "/bin/sh\n/bin/sh.distrib\ndash\n/etc/local\n/etc/local.dpkg\n:\n",
	})
	got, err := Packages(v).Owners("/bin/sh", "/bin/sh.distrib", "/etc/local", "/etc/local.dpkg", "/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"/bin/sh": {"dash"}, "/bin/sh.distrib": {"bash"}, "/etc/local.dpkg": {"bash"}, "/bin/bash": {"bash"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestOtherManager(t *testing.T) {
	for name, f := range map[string]files{
		"rpm": {"usr/lib/sysimage/rpm/rpmdb.sqlite": ""}, "apk": {"lib/apk/db/installed": ""}, "": {"var/lib/dpkg/info/a.list": "", "var/lib/rpm/x": ""},
	} {
		if got := Packages(viewOf(t, f)).Other(); got != name {
			t.Errorf("Other() = %q; want %q", got, name)
		}
	}
}

func TestPackagesAbsent(t *testing.T) {
	got, err := Packages(viewOf(t, files{"etc/x": ""})).Owners("/etc/x")
	if err != nil || len(got) != 0 {
		t.Errorf("Owners without dpkg = %v, %v; want none", got, err)
	}
}

// The machine's own database, where it has one, knows who owns dpkg.
func TestPackagesOfThisMachine(t *testing.T) {
	v := Dir(openDir(t, "/"))
	if _, err := v.Lstat(dpkgInfo); err != nil {
		t.Skip("no dpkg here")
	}
	got, err := Packages(v).Owners("/usr/bin/dpkg", "/usr/bin", "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"dpkg"}, got["/usr/bin/dpkg"]); d != "" || len(got["/usr/bin"]) < 10 || got["/nowhere"] != nil {
		t.Errorf("owners of dpkg:\n%s\nof /usr/bin: %d packages", d, len(got["/usr/bin"]))
	}
}
