package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

func TestParseUnit(t *testing.T) {
	cases := []struct {
		name, in string
		want     []string
		warnings int
	}{
		{"plain", "[Unit]\nDescription = a b \n", []string{"Unit.Description=a b"}, 0},
		{"byte order mark", "\xef\xbb\xbf[Unit]\nA=1\n", []string{"Unit.A=1"}, 0},
		{"comments", "# x\n[Unit]\n ; y\nA=1#not\n  # z\n", []string{"Unit.A=1#not"}, 0},
		{"continued", "[Service]\nExecStart=/a \\\n  b \\\n# a comment inside\n  c\nX=1\n", []string{"Service.ExecStart=/a    b    c", "Service.X=1"}, 0},
		{"continued at the end", "[Unit]\nA=b \\", []string{"Unit.A=b"}, 0},
		{"escaped backslash", "[Unit]\nA=b\\\\\nB=1\n", []string{"Unit.A=b\\\\", "Unit.B=1"}, 0},
		{"blank after backslash does not continue", "[Unit]\nA=b\\ \nB=1\n", []string{"Unit.A=b\\", "Unit.B=1"}, 0},
		{"line ends", "[Unit]\r\nA=1\r\nB=2\rC=3\n", []string{"Unit.A=1", "Unit.B=2", "Unit.C=3"}, 0},
		{"empty value", "[Unit]\nA=\n", []string{"Unit.A="}, 0},
		{"value with equals", "[Service]\nEnvironment=A=b\n", []string{"Service.Environment=A=b"}, 0},
		{"unknown kept", "[X-Mine]\nFoo=1\n[Unit]\nX-Liveupd-Watch=/etc/x\n", []string{"X-Mine.Foo=1", "Unit.X-Liveupd-Watch=/etc/x"}, 0},
		{"outside of a section", "A=1\n[Unit]\nB=1\n", []string{"Unit.B=1"}, 1},
		{"no assignment", "[Unit]\nnonsense\n=x\nB=1\n", []string{"Unit.B=1"}, 2},
		{"section not closed", "[Unit]\nA=1\n[Serv\nB=1\n", []string{"Unit.A=1"}, 1},
	}
	for _, c := range cases {
		settings, warnings, _ := parseUnit([]byte(c.in), "f")
		var got []string
		for _, s := range settings {
			got = append(got, s.Section+"."+s.Key+"="+s.Value)
		}
		if d := cmp.Diff(c.want, got); d != "" || len(warnings) != c.warnings {
			t.Errorf("%s: parseUnit warns %q (-want +got):\n%s", c.name, warnings, d)
		}
	}
}

func TestEffective(t *testing.T) {
	cases := []struct {
		name string
		in   string
		want []string
	}{
		{
			"a list accumulates and is reset", "[Service]\nExecStart=/a\nEnvironment=A=1\nExecStart=\nExecStart=/b\nEnvironment=B=1\n",
			[]string{"Service.Environment=A=1", "Service.ExecStart=/b", "Service.Environment=B=1"},
		},
		{"a scalar's last wins", "[Service]\nUser=a\nUser=b\n", []string{"Service.User=b"}},
		{"a scalar is unset", "[Service]\nUser=a\nUser=\n", nil},
		{"a reset holds for its section only", "[Unit]\nX-A=1\n[Service]\nX-A=2\nX-A=\n", []string{"Unit.X-A=1"}},
		{"dependencies cannot be reset", "[Unit]\nWants=a.service\nWants=\nAfter=b.service\nAfter=\n", []string{"Unit.Wants=a.service", "Unit.After=b.service"}},
		{"conditions are reset together", "[Unit]\nConditionPathExists=/a\nAssertHost=x\nConditionHost=y\nConditionHost=\n", []string{"Unit.AssertHost=x"}},
		{"timers are reset together", "[Timer]\nOnBootSec=1\nOnCalendar=daily\nOnCalendar=\nOnCalendar=weekly\n", []string{"Timer.OnCalendar=weekly"}},
		{"addresses are reset together", "[Socket]\nListenStream=1\nListenDatagram=2\nListenStream=\nListenStream=3\n", []string{"Socket.ListenStream=3"}},
		{"an unknown key accumulates", "[Service]\nFutureKey=1\nFutureKey=2\n", []string{"Service.FutureKey=1", "Service.FutureKey=2"}},
	}
	for _, c := range cases {
		settings, _, _ := parseUnit([]byte(c.in), "f")
		var got []string
		for _, s := range effective(settings) {
			got = append(got, s.Section+"."+s.Key+"="+s.Value)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

// dropInTree has drop-ins of every level and kind for one unit.
var dropInTree = files{
	"usr/lib/systemd/system/foo-bar.service":                       "[Service]\nExecStart=/bin/foo\nUser=lib\n",
	"usr/lib/systemd/system/foo-bar.service.d/10-a.conf":           "[Service]\nEnvironment=A=lib\n",
	"usr/lib/systemd/system/foo-bar.service.d/50-b.conf":           "[Service]\nEnvironment=B=lib\n",
	"usr/lib/systemd/system/foo-bar.service.d/60-m.conf":           "[Service]\nEnvironment=M=lib\n",
	"usr/lib/systemd/system/foo-bar.service.d/readme.txt":          "[Service]\nEnvironment=NO=1\n",
	"usr/local/lib/systemd/system/foo-bar.service.d/20-local.conf": "[Service]\nEnvironment=L=local\n",
	"etc/systemd/system/foo-bar.service.d/50-b.conf":               "[Service]\nEnvironment=B=etc\n",
	"etc/systemd/system/foo-bar.service.d/60-m.conf":               "-> /dev/null",
	"etc/systemd/system/foo-.service.d/10-a.conf":                  "[Service]\nEnvironment=A=prefix-etc\n",
	"usr/lib/systemd/system/foo-.service.d/30-prefix.conf":         "[Service]\nEnvironment=P=prefix\n",
	"usr/lib/systemd/system/service.d/05-type.conf":                "[Service]\nEnvironment=T=type\nUser=type\n",
	"usr/lib/systemd/system/service.d/50-b.conf":                   "[Service]\nEnvironment=B=type\n",
	"etc/systemd/system/alias.service":                             "-> /usr/lib/systemd/system/foo-bar.service",
	"etc/systemd/system/alias.service.d/70-alias.conf":             "[Service]\nEnvironment=AL=alias\n",
	"etc/systemd/system/default.target":                            "[Unit]\nWants=foo-bar.service tpl@one.service\n",
	"usr/lib/systemd/system/tpl@.service":                          "[Service]\nExecStart=/bin/tpl %i\n",
	"usr/lib/systemd/system/tpl@.service.d/10-t.conf":              "[Service]\nEnvironment=T=1\n",
	"usr/lib/systemd/system/tpl@one.service.d/10-t.conf":           "[Service]\nEnvironment=T=one\n",
	"etc/systemd/system/tpl@one.service.d/20-i.conf":               "[Service]\nEnvironment=I=one\n",
}

func TestDropIns(t *testing.T) {
	tree := load(t, viewOf(t, dropInTree), LoadOptions{})
	u := tree.Units["foo-bar.service"]
	if tree.Units["alias.service"] != u {
		t.Error("the alias is not the unit")
	}
	if d := cmp.Diff([]string{"alias.service"}, u.Aliases); d != "" {
		t.Errorf("aliases:\n%s", d)
	}
	want := []string{
		"/usr/lib/systemd/system/service.d/05-type.conf",
		"/etc/systemd/system/foo-.service.d/10-a.conf",
		"/usr/local/lib/systemd/system/foo-bar.service.d/20-local.conf",
		"/usr/lib/systemd/system/foo-.service.d/30-prefix.conf",
		"/etc/systemd/system/foo-bar.service.d/50-b.conf",
		"/etc/systemd/system/foo-bar.service.d/60-m.conf", // masks another
		"/etc/systemd/system/alias.service.d/70-alias.conf",
	}
	if d := cmp.Diff(want, u.DropIns); d != "" {
		t.Errorf("drop-ins (-want +got):\n%s", d)
	}
	const lib, etc = " <- /usr/lib/systemd/system/", " <- /etc/systemd/system/"
	wantSettings := []string{
		"Service.ExecStart=/bin/foo" + lib + "foo-bar.service",
		"Service.Environment=T=type" + lib + "service.d/05-type.conf",
		"Service.User=type" + lib + "service.d/05-type.conf",
		"Service.Environment=A=prefix-etc" + etc + "foo-.service.d/10-a.conf",
		"Service.Environment=L=local <- /usr/local/lib/systemd/system/foo-bar.service.d/20-local.conf",
		"Service.Environment=P=prefix" + lib + "foo-.service.d/30-prefix.conf",
		"Service.Environment=B=etc" + etc + "foo-bar.service.d/50-b.conf",
		"Service.Environment=AL=alias" + etc + "alias.service.d/70-alias.conf",
	}
	if d := cmp.Diff(wantSettings, settingsOf(u)); d != "" {
		t.Errorf("settings (-want +got):\n%s", d)
	}
	one := tree.Units["tpl@one.service"]
	want = []string{
		"/usr/lib/systemd/system/service.d/05-type.conf",
		"/usr/lib/systemd/system/tpl@one.service.d/10-t.conf",
		"/etc/systemd/system/tpl@one.service.d/20-i.conf",
		"/usr/lib/systemd/system/service.d/50-b.conf",
	}
	if d := cmp.Diff(want, one.DropIns); d != "" || one.Fragment != "/usr/lib/systemd/system/tpl@.service" {
		t.Errorf("instance of a template: fragment %s (-want +got):\n%s", one.Fragment, d)
	}
	if len(tree.Warnings) > 0 {
		t.Errorf("warnings: %q", tree.Warnings)
	}
}

func TestUnitNamesAndMasks(t *testing.T) {
	v := viewOf(t, files{
		"lib":                                                 "-> usr/lib",
		"usr/lib/systemd/system/a.service":                    "[Service]\nExecStart=/a\n",
		"etc/systemd/system/a.service":                        "-> /lib/systemd/system/a.service", // itself: no alias
		"usr/lib/systemd/system/masked.service":               "[Service]\nExecStart=/m\n",
		"etc/systemd/system/masked.service":                   "-> /dev/null",
		"usr/lib/systemd/system/relmask.service":              "-> ../../../../dev/null",
		"etc/systemd/system/empty.service":                    "",
		"etc/systemd/system/linked.service":                   "-> /opt/app/linked.service",
		"opt/app/linked.service":                              "[Service]\nExecStart=/opt/app/run\n",
		"etc/systemd/system/dangling.service":                 "-> /opt/nowhere.service",
		"etc/systemd/system/wrong.service":                    "-> /lib/systemd/system/wrong.socket",
		"usr/lib/systemd/system/old@.service":                 "[Service]\nExecStart=/old %i\n",
		"etc/systemd/system/new@.service":                     "-> /lib/systemd/system/old@.service",
		"etc/systemd/system/en@x.service":                     "-> /lib/systemd/system/old@.service",
		"etc/systemd/system/multi.target.wants/old@w.service": "-> /lib/systemd/system/old@.service",
		"usr/lib/systemd/system/only.service.d/x.conf":        "[Service]\nX-A=1\n",
		"etc/systemd/system/notaunit.txt":                     "",
		"etc/systemd/system/circle1.service":                  "-> circle2.service",
		"etc/systemd/system/circle2.service":                  "-> circle1.service",
		"run/systemd/transient/run-1.service":                 "[Service]\nExecStart=/r\n",
		"run/systemd/system/a.service":                        "[Service]\nExecStart=/never\n",
		"run/systemd/generator/g.service":                     "[Service]\nExecStart=/g\n",
	})
	tree := load(t, v, LoadOptions{Instances: []string{"new@i.service", "only.service", "gone.service", "bad name"}})
	type unit struct {
		Name, Fragment string
		Masked         bool
		Exec           string
	}
	get := func(tree *change.Tree, name string) unit {
		u := tree.Units[name]
		if u == nil {
			return unit{}
		}
		return unit{u.Name, u.Fragment, u.Masked, value(u, "Service", "ExecStart")}
	}
	const lib, etc = "/usr/lib/systemd/system/", "/etc/systemd/system/"
	for name, want := range map[string]unit{
		"a.service":        {"a.service", lib + "a.service", false, "/a"},
		"masked.service":   {"masked.service", etc + "masked.service", true, ""},
		"relmask.service":  {"relmask.service", lib + "relmask.service", true, ""},
		"empty.service":    {"empty.service", etc + "empty.service", true, ""},
		"linked.service":   {"linked.service", etc + "linked.service", false, "/opt/app/run"},
		"dangling.service": {},
		"wrong.service":    {},
		"new@i.service":    {"old@i.service", lib + "old@.service", false, "/old %i"},
		"old@i.service":    {"old@i.service", lib + "old@.service", false, "/old %i"},
		"en@x.service":     {"old@x.service", lib + "old@.service", false, "/old %i"},
		"old@w.service":    {"old@w.service", lib + "old@.service", false, "/old %i"},
		"only.service":     {"only.service", "", false, ""},
		"gone.service":     {},
		"g.service":        {},
	} {
		if got := get(tree, name); got != want {
			t.Errorf("%s = %+v; want %+v", name, got, want)
		}
	}
	// The settings name the file that holds the content.
	if f := tree.Units["linked.service"].Settings[0].File; f != "/opt/app/linked.service" {
		t.Errorf("linked.service's setting stands in %s; want /opt/app/linked.service", f)
	}
	if !slices.Contains(tree.Warnings, "unit /etc/systemd/system/dangling.service is a symlink to /opt/nowhere.service, which is not there") {
		t.Errorf("no word about the dangling unit: %q", tree.Warnings)
	}
	live := load(t, v, LoadOptions{Run: true})
	for name, want := range map[string]string{"run-1.service": "/r", "g.service": "/g", "a.service": "/never"} {
		if got := get(live, name).Exec; got != want {
			t.Errorf("with /run, %s runs %q; want %q", name, got, want)
		}
	}
}

func TestReached(t *testing.T) {
	lib := "usr/lib/systemd/system/"
	v := viewOf(t, files{
		lib + "default.target":    "-> multi-user.target",
		lib + "multi-user.target": "[Unit]\nRequires=basic.target\nWants=missing.service\n",
		lib + "basic.target":      "[Unit]\n",
		"etc/systemd/system/multi-user.target.wants/web.service":    "-> /usr/lib/systemd/system/web.service",
		"etc/systemd/system/multi-user.target.wants/off.service":    "-> /usr/lib/systemd/system/off.service",
		"etc/systemd/system/off.service":                            "-> /dev/null",
		lib + "multi-user.target.wants/nulled.service":              "-> ../nulled.service",
		"etc/systemd/system/multi-user.target.wants/nulled.service": "-> /dev/null",
		lib + "nulled.service":                                      "[Service]\nExecStart=/n\n",
		lib + "off.service":                                         "[Service]\nExecStart=/off\n",
		lib + "web.service":                                         "[Unit]\nBindsTo=db@main.service\nOnFailure=cry.service\n[Service]\nExecStart=/web\n",
		lib + "db@.service":                                         "[Unit]\nWants=log@%i.service helper@.service\n[Service]\nExecStart=/db\n",
		lib + "log@.service":                                        "[Service]\nExecStart=/log\n",
		lib + "helper@.service":                                     "[Service]\nExecStart=/helper\n",
		lib + "cry.service":                                         "[Service]\nExecStart=/cry\n",
		lib + "basic.target.wants/api.socket":                       "-> ../api.socket",
		lib + "api.socket":                                          "[Socket]\nListenStream=1\n",
		lib + "api.service":                                         "[Service]\nExecStart=/api\n",
		lib + "basic.target.wants/acc.socket":                       "-> ../acc.socket",
		lib + "acc.socket":                                          "[Socket]\nListenStream=2\nAccept=yes\n",
		lib + "acc.service":                                         "[Service]\nExecStart=/acc\n",
		lib + "basic.target.requires/nightly.timer":                 "-> ../nightly.timer",
		lib + "nightly.timer":                                       "[Timer]\nOnCalendar=daily\nUnit=job.service\n",
		lib + "nightly.service":                                     "[Service]\nExecStart=/never\n",
		lib + "job.service":                                         "[Service]\nExecStart=/job\n",
		lib + "basic.target.upholds/spool.path":                     "-> ../spool.path",
		lib + "spool.path":                                          "[Path]\nPathExists=/spool\n",
		lib + "spool.service":                                       "[Unit]\nRequisite=late.service\n[Service]\nExecStart=/spool\n",
		lib + "late.service":                                        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/late\n",
		lib + "sysinit.target":                                      "[Unit]\n",
		lib + "installed.service":                                   "[Service]\nExecStart=/i\n[Install]\nWantedBy=multi-user.target\n",
	})
	tree := load(t, v, LoadOptions{})
	want := map[string]string{
		"multi-user.target":   "default.target",
		"basic.target":        "multi-user.target",
		"web.service":         "multi-user.target",
		"db@main.service":     "web.service",
		"log@main.service":    "db@main.service",
		"helper@main.service": "db@main.service",
		"api.socket":          "basic.target",
		"acc.socket":          "basic.target",
		"api.service":         "api.socket",
		"nightly.timer":       "basic.target",
		"job.service":         "nightly.timer",
		"spool.path":          "basic.target",
		"spool.service":       "spool.path",
		"late.service":        "spool.service",
		"sysinit.target":      tree.Reached["sysinit.target"], // whichever service comes first
	}
	if d := cmp.Diff(want, tree.Reached); d != "" {
		t.Errorf("reached (-want +got):\n%s", d)
	}
	if tree.Reached["sysinit.target"] == "" {
		t.Error("sysinit.target, an implicit dependency, is not reached")
	}
	// An enablement stands as a setting of the unit that wants.
	if s := settingsOf(tree.Units["multi-user.target"]); !slices.Contains(s,
		"Unit.Wants=web.service <- /etc/systemd/system/multi-user.target.wants/web.service") {
		t.Errorf("the enablement symlink is not among the target's settings: %q", s)
	}
	for range 5 {
		if d := cmp.Diff(tree, load(t, v, LoadOptions{})); d != "" {
			t.Fatalf("a second load differs:\n%s", d)
		}
	}
}

func TestSpecifiers(t *testing.T) {
	u := &change.Unit{Name: `foo-bar@a-b\x20c.service`, Fragment: "/usr/lib/systemd/system/foo-bar@.service"}
	for in, want := range map[string]string{
		"%n": `foo-bar@a-b\x20c.service`, "%N": `foo-bar@a-b\x20c`, "%p": "foo-bar", "%P": "foo/bar",
		"%i": `a-b\x20c`, "%I": "a/b c", "%j": "bar", "%f": "/a/b c", "%t/x": "/run/x", "%S%C%L%E": "/var/lib/var/cache/var/log/etc",
		"%h": "/root", "100%%": "100%", "%b": "%b", "end%": "end%", "%d": `/run/credentials/foo-bar@a-b\x20c.service`,
		"%Y": "/usr/lib/systemd/system",
	} {
		if got := specifiers(u, in); got != want {
			t.Errorf("specifiers(%q) = %q; want %q", in, got, want)
		}
	}
}

func FuzzParseUnit(f *testing.F) {
	f.Add("[Unit]\nA=b\\\n# c\n d\n[")
	f.Add("\xef\xbb\xbf[Service]\nExecStart=-/bin/sh -c 'a \\\n b'\nExecStart=\n")
	f.Fuzz(func(t *testing.T, s string) {
		settings, _, _ := parseUnit([]byte(s), "f")
		for _, set := range settings {
			if set.Key == "" {
				t.Errorf("an assignment without a key: %+v", set)
			}
		}
		u := &change.Unit{Name: "a@b.service", Settings: effective(settings)}
		for _, set := range u.Settings {
			if set.Value == "" {
				t.Errorf("an empty assignment survives: %+v", set)
			}
			commands(set.Value, func(s string) string { return specifiers(u, s) }, nil)
		}
	})
}

// Units of /run come and go while they are read. The tree of an update differs from the old one by the
// update alone, and one that has just gone is nothing to warn of.
func TestTransientUnitsGo(t *testing.T) {
	const first, second = "/run/systemd/transient/session-1.scope", "/run/systemd/transient/session-2.scope"
	dir := writeTree(t, files{
		first: "[Unit]\nDescription=one\n", second: "[Unit]\nDescription=two\n", "etc/systemd/system/a.service": "[Service]\nExecStart=/bin/true\n",
	})
	v := Dir(openDir(t, dir))
	for _, p := range []string{first, second} {
		if _, err := v.Lstat(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.ReadDir(filepath.Dir(first)); err != nil {
		t.Fatal(err)
	}
	remove := func(p string) {
		if err := os.Remove(filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	remove(first)
	old := load(t, v, LoadOptions{Run: true})
	remove(second)
	next := load(t, Overlay(v, &change.Delta{}, nil), LoadOptions{Run: true})
	if len(old.Warnings)+len(next.Warnings) > 0 {
		t.Errorf("the warnings are %q, %q", old.Warnings, next.Warnings)
	}
	if old.Units["session-2.scope"] == nil || len(old.Units["session-2.scope"].Settings) == 0 {
		t.Error("the second scope was not read: this test shows nothing")
	}
	if d := cmp.Diff(old.Units, next.Units); d != "" {
		t.Errorf("the trees differ without an update (-old +new):\n%s", d)
	}
}
