package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

const (
	herHome = "/home/alice"
	herRun  = "/run/user/12345"
)

func alice() *User {
	return &User{UID: 12345, GID: 12345, Name: "alice", Home: herHome, Runtime: herRun}
}

// Each level hides those below it (systemd.unit(5), "User Unit Search Path").
func TestUserLoadPath(t *testing.T) {
	levels := []string{
		herHome + "/.config/systemd/user.control", herRun + "/systemd/user.control", herRun + "/systemd/transient",
		herRun + "/systemd/generator.early", herHome + "/.config/systemd/user", "/etc/xdg/systemd/user", "/etc/systemd/user",
		herRun + "/systemd/user", "/run/systemd/user", herRun + "/systemd/generator", herHome + "/.local/share/systemd/user",
		"/usr/local/share/systemd/user", "/usr/share/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user",
		herRun + "/systemd/generator.late",
	}
	fs := files{"/usr/lib/systemd/system/a.service": "[Service]\nExecStart=/bin/system\n"}
	for _, dir := range levels {
		fs[dir+"/a.service"] = "[Service]\nExecStart=" + dir + "\n"
	}
	dir := writeTree(t, fs)
	for _, level := range levels {
		u := load(t, Dir(openDir(t, dir)), LoadOptions{Run: true, User: alice()}).Units["a.service"]
		if u == nil || u.Fragment != level+"/a.service" {
			t.Fatalf("the unit is %+v; want the one of %s", u, level)
		}
		if err := os.Remove(filepath.Join(dir, level, "a.service")); err != nil {
			t.Fatal(err)
		}
	}
	if u := load(t, Dir(openDir(t, dir)), LoadOptions{Run: true, User: alice()}).Units["a.service"]; u != nil {
		t.Errorf("the system's unit is the user's: %+v", u)
	}
}

func TestUserSettings(t *testing.T) {
	v := viewOf(t, files{
		"/usr/lib/systemd/user/a.service":                    "[Service]\nEnvironment=AT=%h/%t/%S/%C/%E/%u/%U/%n/%%h\nX-Liveupd-Watch=/etc/a.conf\n",
		herHome + "/.config/systemd/user/a.service.d/x.conf": "[Service]\nX-Liveupd-Watch=/**\nNice=%i1\n",
		"/etc/passwd": "alice:x:12345:12345::/elsewhere:/bin/sh\n",
	})
	got := settingsOf(load(t, v, LoadOptions{Run: true, User: alice()}).Units["a.service"])
	want := "Environment=AT=" + herHome + "/" + herRun + "/" + herHome + "/.local/state/" + herHome + "/.cache/" + herHome + "/.config/alice/12345/%n/%%h"
	if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want+" <- ") }) {
		t.Errorf("the settings are %q; want %q", got, want)
	}
	if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "/etc/a.conf") }) || slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "/**") }) {
		t.Errorf("the settings are %q; want that the system's are watched, and the user's are not", got)
	}
}

// What a user could not read is not read for that user either, whoever we are; the
// control is the same load for root.
func TestReadAsUser(t *testing.T) {
	dir := writeTree(t, files{
		"/etc/secret":        "[Service]\nEnvironment=SECRET=1\n",
		"/etc/closed/public": "[Service]\nEnvironment=SECRET=2\n",
		"/etc/group":         "[Service]\nEnvironment=GROUP=1\n",
		herHome + "/.config/systemd/user/secret.service": "-> /etc/secret",
		herHome + "/.config/systemd/user/closed.service": "-> /etc/closed/public",
		herHome + "/.config/systemd/user/plain.service":  "[Service]\nExecStart=/home/alice/run\n",
		herHome + "/run": "#!/etc/secret\n",
	})
	for name, mode := range map[string]os.FileMode{"etc/secret": 0o600, "etc/closed": 0o700, "etc/group": 0o640} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	read := func(u *User) (secrets []string, tree *change.Tree) {
		tree = load(t, Dir(openDir(t, dir)), LoadOptions{User: u, Names: []string{"plain.service"}})
		for _, name := range []string{"secret.service", "closed.service"} {
			if unit := tree.Units[name]; unit != nil {
				for _, s := range settingsOf(unit) {
					if strings.Contains(s, "SECRET") {
						secrets = append(secrets, s)
					}
				}
			}
		}
		return secrets, tree
	}
	secrets, tree := read(alice())
	if len(secrets) > 0 {
		t.Errorf("as alice %q was read", secrets)
	}
	if tree.Units["plain.service"] == nil {
		t.Error("her own unit was not read")
	}
	root := alice()
	root.UID = 0
	if secrets, _ := read(root); len(secrets) != 2 {
		t.Errorf("as root %q was read; want both: this test shows nothing", secrets)
	}
}
