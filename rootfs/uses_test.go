package rootfs

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

const unitDir = "usr/lib/systemd/system/"

// service makes a tree with x.service of these lines, and loads its uses
// without those of the loader.
func serviceUses(t *testing.T, lines string, more files) ([]string, *change.Tree) {
	t.Helper()
	fs := withLoader(files{
		"usr/bin/dash": program(), "usr/bin/sh": "-> dash", "usr/bin/env": program(), "usr/bin/perl": program(), "usr/sbin/daemon": program("liba.so"),
		"usr/lib/x86_64-linux-gnu/liba.so": lib("liba.so"), "usr/bin/nice": program(),
	})
	maps.Copy(fs, more)
	fs[unitDir+"x.service"] = "[Service]\n" + lines
	tree := load(t, viewOf(t, fs), LoadOptions{Names: []string{"x.service"}})
	return slices.DeleteFunc(usesOf(t, tree, "x.service"), func(s string) bool {
		return strings.Contains(s, "ld-linux") || s == "soname /lib64" || s == "soname /lib"
	}), tree
}

func TestServiceUses(t *testing.T) {
	const daemon = "exec /usr/sbin/daemon"
	const liba = "soname /usr/lib/x86_64-linux-gnu/liba.so"
	dash := []string{"exec /bin", "exec /usr/bin/dash", "exec /usr/bin/sh"}
	cases := []struct {
		name, unit string
		fs         files
		want       []string
	}{
		{"a binary and its library", "ExecStart=/usr/sbin/daemon -x\n", nil, []string{daemon, liba}},
		{"prefixes", "ExecStart=-@!/usr/sbin/daemon argv0 -x\n", nil, []string{daemon, liba}},
		{"a symlinked folder on the way", "ExecStart=/sbin/daemon\n", nil, []string{"exec /sbin", daemon, liba}},
		{"a name without a path", "ExecStart=daemon\n", nil, []string{daemon, liba}},
		{
			"ExecStartPre, ExecStop and ExecReload belong to the manager",
			"ExecStart=/usr/sbin/daemon\nExecStartPre=/usr/bin/perl\nExecStop=/usr/bin/env\nExecReload=/usr/bin/nice\n", nil,
			[]string{daemon, liba},
		},
		{"several commands", "Type=oneshot\nExecStart=/usr/bin/perl ; /usr/sbin/daemon\nExecStart=/usr/bin/env\n", nil, []string{"exec /usr/bin/env", "exec /usr/bin/perl", daemon, liba}},
		{"a program that is not there", "ExecStart=/opt/gone\n", nil, nil},
		{
			"a shell script: itself, its interpreter, what it sources and becomes", "ExecStart=/opt/run.sh\n",
			files{
				"opt/run.sh":  "#!/bin/sh -e\n. /opt/lib.sh\n/usr/bin/perl -e 1\nDAEMON=/usr/sbin/daemon\nexec $DAEMON --flag\n",
				"opt/lib.sh":  ". /opt/deep.sh\n",
				"opt/deep.sh": ". /opt/lib.sh # a circle\n",
			},
			[]string{daemon, "interpreter /bin", "interpreter /usr/bin/dash", "interpreter /usr/bin/sh", "script /opt/deep.sh", "script /opt/lib.sh", "script /opt/run.sh", liba},
		},
		{
			"sh -c: each program with a path", `ExecStart=/bin/sh -c 'test -x /no && /usr/bin/perl x; exec /usr/sbin/daemon "$@"'` + "\n", nil,
			slices.Concat(dash, []string{"exec /usr/bin/perl", daemon, liba}),
		},
		{
			"env in a shebang", "ExecStart=/opt/run\n",
			files{"opt/run": "#!/usr/bin/env -S perl -w\n"},
			[]string{"interpreter /usr/bin/env", "interpreter /usr/bin/perl", "script /opt/run"},
		},
		{"a script as an argument", "ExecStart=/usr/bin/perl -w -I /opt /opt/run.pl arg\n", files{"opt/run.pl": "", "opt/x": ""}, []string{"exec /usr/bin/perl", "script /opt/run.pl"}},
		{"a wrapper", "ExecStart=/usr/bin/nice -n 5 /usr/sbin/daemon\n", nil, []string{"exec /usr/bin/nice", daemon, liba}},
		{
			"a script that is a symlink, by an alternatives link", "ExecStart=/usr/bin/tool\n",
			files{"usr/bin/tool": "-> /etc/alternatives/tool", "etc/alternatives/tool": "-> /opt/tool-2", "opt/tool-2": "#!/usr/bin/perl\n"},
			[]string{"interpreter /usr/bin/perl", "script /etc/alternatives/tool", "script /opt/tool-2", "script /usr/bin/tool"},
		},
		{
			"a script that starts itself ends", "ExecStart=/opt/self\n",
			files{"opt/self": "#!/bin/sh\nexec /opt/self\nexec /opt/self again\n"},
			[]string{"interpreter /bin", "interpreter /usr/bin/dash", "interpreter /usr/bin/sh", "script /opt/self"},
		},
		{
			"environment files, also by a pattern and with a variable for the program's argument",
			"EnvironmentFile=-/etc/default/x\nEnvironmentFile=/etc/gone\nEnvironmentFile=/etc/x.d/*.env\nExecStart=/usr/bin/perl $OPTS ${SCRIPT}\n",
			files{"etc/default/x": "SCRIPT=/opt/s.pl\nOPTS='-w -t'\n", "etc/x.d/1.env": "A=1\n", "etc/x.d/no": "", "opt/s.pl": ""},
			[]string{"environment /etc/default/x", "environment /etc/x.d/1.env", "exec /usr/bin/perl", "script /opt/s.pl"},
		},
		{
			"credentials",
			"LoadCredential=a:/etc/cred/a\nLoadCredential=b\nLoadCredentialEncrypted=c\nLoadCredential=dir:/etc/creds\nLoadCredential=gone\nImportCredential=imp.*\nSetCredential=s:/etc/no\n",
			files{"etc/cred/a": "1", "usr/lib/credstore/b": "1", "etc/credstore.encrypted/c": "1", "etc/credstore/c": "plain", "etc/creds/one": "1", "etc/creds/two/three": "1", "etc/credstore/imp.x": "1"},
			[]string{
				"credential /etc/cred/a", "credential /etc/creds", "credential /etc/creds/one", "credential /etc/creds/two/three",
				"credential /etc/credstore.encrypted/c", "credential /etc/credstore/imp.x", "credential /usr/lib/credstore/b",
			},
		},
		{
			"bind mounts: the sources", "BindPaths=/srv/a:/mnt -/srv/gone\nBindReadOnlyPaths=\"/srv/with space\"\n",
			files{"srv/a/deep": "", "srv/with space": ""},
			[]string{"bind /srv/a", "bind /srv/with space"},
		},
		{
			"what the unit watches", "X-Liveupd-Watch=/etc/x/*.conf /etc/y /etc/z/**/q\n",
			files{"etc/x/a.conf": "", "etc/x/b.txt": "", "etc/y/1": "", "etc/y/s/2": "", "etc/z/a/b/q": "", "etc/z/q": "", "etc/z/r": ""},
			[]string{"config /etc/x/a.conf", "config /etc/y", "config /etc/y/1", "config /etc/y/s/2", "config /etc/z/a/b/q", "config /etc/z/q"},
		},
		{
			"a root directory: its own tree only, the manager's files from the host",
			"RootDirectory=/srv/root\nExecStart=/bin/app\nEnvironmentFile=/etc/env\n",
			files{
				"srv/root/bin/app": elfSpec{interp: ldso, needed: []string{"liba.so"}}.build(), "srv/root/lib/liba.so": "-> /real/liba.so",
				"srv/root/real/liba.so": lib("liba.so"), "srv/root/lib64/ld-linux-x86-64.so.2": lib("ld"), "etc/env": "A=1\n", "srv/root/etc/env": "",
			},
			[]string{"environment /etc/env", "exec /srv/root/bin/app", "root /srv/root", "soname /srv/root/lib/liba.so", "soname /srv/root/real/liba.so"},
		},
		{"a root image is one path", "RootImage=/var/lib/app.raw\nExecStart=/usr/sbin/daemon\n", files{"var/lib/app.raw": "x"}, []string{"root /var/lib/app.raw"}},
		{"specifiers in names", "EnvironmentFile=%E/%p.env\nExecStart=/usr/sbin/%N-not\n", files{"etc/x.env": ""}, []string{"environment /etc/x.env"}},
		{"a program of another kind", "ExecStart=/opt/other\n", files{"opt/other": "\xca\xfe\xba\xbe"}, []string{"exec /opt/other"}},
		{"java", "ExecStart=/usr/bin/java -cp /opt/j/*:/opt/one.jar -jar /opt/app.jar\n", files{"usr/bin/java": program(), "opt/j/a.jar": "", "opt/j/no.txt": "", "opt/one.jar": "", "opt/app.jar": ""}, []string{"exec /usr/bin/java", "module /opt/j/a.jar", "module /opt/one.jar", "script /opt/app.jar"}},
		{
			"LD_PRELOAD and LD_LIBRARY_PATH of the unit", "Environment=LD_PRELOAD=/opt/pre.so \"LD_LIBRARY_PATH=/opt/l\"\nExecStart=/usr/sbin/daemon\n",
			files{"opt/pre.so": lib("pre.so"), "opt/l/liba.so": lib("liba.so")},
			[]string{daemon, "soname /opt/l/liba.so", "soname /opt/pre.so"},
		},
	}
	for _, c := range cases {
		got, tree := serviceUses(t, c.unit, c.fs)
		slices.Sort(c.want)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if len(tree.Warnings) > 0 {
			t.Errorf("%s: warnings %q", c.name, tree.Warnings)
		}
	}
}

func TestOddFilesBecomeWarnings(t *testing.T) {
	damaged := program("liba.so")[:100]
	got, tree := serviceUses(t, "ExecStart=/opt/damaged\nExecStart=/usr/sbin/daemon\n[broken\n", files{"opt/damaged": damaged})
	want := []string{"exec /opt/damaged", "exec /usr/sbin/daemon", "soname /usr/lib/x86_64-linux-gnu/liba.so"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("uses (-want +got):\n%s", d)
	}
	if len(tree.Warnings) != 2 || !strings.Contains(tree.Warnings[0]+tree.Warnings[1], "/opt/damaged") {
		t.Errorf("warnings = %q; want one about the program and one about the unit", tree.Warnings)
	}
}

func TestChain(t *testing.T) {
	_, tree := serviceUses(t, "ExecStart=/opt/run\n", files{
		"opt/run": "#!/bin/sh\nexec /usr/sbin/daemon\n", "usr/lib/x86_64-linux-gnu/liba.so": lib("liba.so", "libb.so"), "usr/lib/libb.so": lib("libb.so"),
	})
	u := tree.Units["x.service"]
	want := []string{"/opt/run", "/usr/sbin/daemon", "/usr/lib/x86_64-linux-gnu/liba.so", "/usr/lib/libb.so"}
	if d := cmp.Diff(want, u.Chain("/usr/lib/libb.so")); d != "" {
		t.Errorf("chain (-want +got):\n%s", d)
	}
	if c := u.Chain("/not/used"); c != nil {
		t.Errorf("chain of a path that is not used = %q; want none", c)
	}
}

// Which services are read: the reached ones or the named ones, no others.
func TestLoadChooses(t *testing.T) {
	v := viewOf(t, withLoader(files{
		"usr/bin/p":                     program(),
		unitDir + "default.target":      "[Unit]\nWants=boot.service\n",
		unitDir + "boot.service":        "[Service]\nExecStart=/usr/bin/p\n",
		unitDir + "tpl@.service":        "[Service]\nExecStart=/usr/bin/p %i\n",
		unitDir + "idle.service":        "[Service]\nExecStart=/usr/bin/p\n",
		"etc/systemd/system/al.service": "-> /usr/lib/systemd/system/idle.service",
	}))
	for _, c := range []struct {
		o    LoadOptions
		want []string
	}{
		{LoadOptions{}, nil},
		{LoadOptions{Static: true}, []string{"boot.service"}},
		{LoadOptions{Names: []string{"tpl@a.service", "al.service", "gone.service"}}, []string{"idle.service", "tpl@a.service"}},
	} {
		tree := load(t, v, c.o)
		var got []string
		for name, u := range tree.Units {
			if len(u.Uses) > 0 && name == u.Name {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%+v reads the uses of (-want +got):\n%s", c.o, d)
		}
	}
}

// The new tree of an update: a changed symlink leads to another library.
func TestUsesThroughOverlay(t *testing.T) {
	base := viewOf(t, withLoader(files{
		"usr/sbin/daemon": program("liba.so.1"), "usr/lib/liba.so.1": "-> liba.so.1.0", "usr/lib/liba.so.1.0": lib("liba.so.1"),
		unitDir + "x.service": "[Service]\nExecStart=/usr/sbin/daemon\n",
	}))
	src := openDir(t, writeTree(t, files{"usr/lib/liba.so.1.1": lib("liba.so.1", "libnew.so"), "usr/lib/libnew.so": lib("libnew.so")}))
	file := &change.Node{Type: change.Regular, Size: 1}
	d := &change.Delta{Entries: []change.Entry{
		{Path: "/usr/lib/liba.so.1", Op: change.Replace, Old: &change.Node{Type: change.Symlink}, New: &change.Node{Type: change.Symlink, Target: "liba.so.1.1"}},
		{Path: "/usr/lib/liba.so.1.0", Op: change.Remove, Old: file},
		{Path: "/usr/lib/liba.so.1.1", Op: change.Add, New: file, From: "/usr/lib/liba.so.1.1"},
		{Path: "/usr/lib/libnew.so", Op: change.Add, New: file, From: "/usr/lib/libnew.so"},
	}}
	sonames := func(v View) []string {
		return slices.DeleteFunc(usesOf(t, load(t, v, LoadOptions{Names: []string{"x.service"}}), "x.service"), func(s string) bool {
			return !strings.Contains(s, "/usr/lib/liba") && !strings.Contains(s, "libnew")
		})
	}
	if d := cmp.Diff([]string{"soname /usr/lib/liba.so.1", "soname /usr/lib/liba.so.1.0"}, sonames(base)); d != "" {
		t.Errorf("before (-want +got):\n%s", d)
	}
	want := []string{"soname /usr/lib/liba.so.1", "soname /usr/lib/liba.so.1.1", "soname /usr/lib/libnew.so"}
	if d := cmp.Diff(want, sonames(Overlay(base, d, src))); d != "" {
		t.Errorf("after (-want +got):\n%s", d)
	}
}

func TestCommands(t *testing.T) {
	env := map[string]string{"A": "one two", "B": "b"}
	cases := map[string][]string{
		`/a b "c d" 'e f'`:        {"/a", "b", "c d", "e f"},
		`/a $A ${A} x${B}y $NONE`: {"/a", "one", "two", "one two", "xby"},
		`/a $$B \x41 a\ b \;`:     {"/a", "$B", "A", "a b", ";"},
		`:/a $A ${B}`:             {"/a", "$A", "${B}"},
		`@/a argv0 x`:             {"/a", "x"},
		`/a 'unclosed`:            {"/a"},
		`+!!/a`:                   {"/a"},
	}
	for in, want := range cases {
		var got []string
		for _, c := range commands(in, func(s string) string { return s }, env) {
			got = append(append(got, c.program), c.args...)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("commands(%s) (-want +got):\n%s", in, d)
		}
	}
}

func TestShellCommands(t *testing.T) {
	src := "#!/bin/sh\nset -e\nX=/opt/x; Y=\"$X/y\"\nif [ -f /etc/f ]; then . /etc/f; fi # /no/comment\n" +
		"cat <<EOF\n/not/a/command\nEOF\n/a > /out 2>&1 < /in && /b \\\n  arg | /c `/d` $(/e f) || ! /f\nA=1 \"$X\" '/g h'\nexec -a name /i \"$@\"\n"
	var got []string
	for _, c := range shellCommands(src, nil) {
		s := strings.Join(c.words, " ")
		if c.exec {
			s = "exec: " + s
		}
		got = append(got, s)
	}
	want := []string{
		"set -e", "[ -f /etc/f ]", ". /etc/f", "fi", "cat", "/a 2", "/b arg", "/c", "/d", "$", "/e f", "/f", "/opt/x /g h", "exec: /i $@",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("shellCommands (-want +got):\n%s", d)
	}
}

func TestShebang(t *testing.T) {
	for in, want := range map[string][]string{
		"#!/bin/sh": {"/bin/sh"}, "#! /bin/sh  -e -x ": {"/bin/sh", "-e -x"}, "#!": {""}, "no": {""}, "#!/bin/sh\r": {"/bin/sh"},
	} {
		name, args := shebang(in)
		if d := cmp.Diff(want, append([]string{name}, args...)); d != "" {
			t.Errorf("shebang(%q) (-want +got):\n%s", in, d)
		}
	}
}

func FuzzShebang(f *testing.F) {
	f.Add("#! /usr/bin/env  -S python3 -u\x00")
	f.Fuzz(func(t *testing.T, s string) {
		if name, args := shebang(s); strings.ContainsAny(name, " \t\x00") || len(args) > 1 {
			t.Errorf("shebang(%q) = %q, %q", s, name, args)
		}
	})
}

func FuzzShellCommands(f *testing.F) {
	f.Add("a <<X\nb\nX\nexec \"c${d}\" 'e' `f` $(g) <<")
	f.Add("$ $( ${ \" ' \\")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range shellCommands(s, map[string]string{"A": "b"}) {
			if len(c.words) == 0 {
				t.Error("a command without words")
			}
		}
	})
}
