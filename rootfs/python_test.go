package rootfs

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestScanPython(t *testing.T) {
	cases := []struct {
		name, src string
		main      bool
		want      string
	}{
		{"plain", "import a\nimport b.c as d, e\n", false, "a b.c e"},
		{"from", "from a import b, c as d\nfrom a.b import (c,  # x\n  d as e,\n)\nfrom a import *\n", false, "a:b,c a.b:c,d a:"},
		{"relative", "from . import a\nfrom .. import b\nfrom .c import d\nfrom ... e import f\n", false, ".:a ..:b .c:d ...e:f"},
		{"continued lines", "from a \\\n import b\nimport \\\n  c\n", false, "a:b c"},
		{"several in a line", "import a; import b\nif x: import c\ntry: import d\nexcept ImportError: import e\nelse: pass\n", false, "a b c d e"},
		{"in functions and conditions", "def f():\n    import a\n    if x:\n\timport b\n", false, "a b"},
		{"not in strings and comments", "'import a'\n\"\"\"\nimport b\n\"\"\"\n# import c\nx = 'it\\'s'; import d\nr'\\'; import e\n'''x''' ; import f\n", false, "d f"},
		{"f-strings and prefixes", "x = f'{a}' + rb\"\\\"\" ; import a\n", false, "a"},
		{"not as part of an expression", "x = import_ = 1\nreraise(from_=1)\nyield_from = 2\nraise X from import_\ny = [\nimport_a\n]\n", false, ""},
		{"yield from, raise from", "def g():\n yield from a\n raise B from c\n", false, ""},
		{"type checking is never run", "import a\nif TYPE_CHECKING:\n    import b\n    from c import d\nelse:\n    import e\nif typing.TYPE_CHECKING: import f\nimport g\n", false, "a e g"},
		{"the main guard counts for the script only", "import a\nif __name__ == '__main__':\n    import b\nimport c\n", false, "a c"},
		{"the main guard of the script", "import a\nif __name__ == '__main__':\n    import b\n", true, "a b"},
		{"dynamic, by a literal name", "importlib.import_module('a.b')\n__import__(\"c\")\nimport_module(name)\nimport_module('.d', __package__)\n", false, "a.b c .d"},
		{"a lambda, a slice, a dict", "f = lambda: x\ny = z[a:b]\nd = {1: b}\nimport c\n", false, "c"},
		{"an open string ends with its line", "x = 'open\nimport a\n", false, "a"},
		{"line ends and a mark", "\xef\xbb\xbfimport a\r\nfrom b import (c,\r\n d)\r\nimport e", false, "a b:c,d e"},
		{"nothing", "import\nfrom\nfrom x\nfrom . \nimport ,\n", false, ""},
	}
	for _, c := range cases {
		var got []string
		for _, imp := range scanPython(c.src, c.main) {
			s := strings.Repeat(".", imp.level) + imp.module
			if imp.names != nil {
				s += ":" + strings.Join(imp.names, ",")
			}
			got = append(got, s)
		}
		if d := cmp.Diff(c.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	inFunction := map[string]bool{}
	src := "import a\ndef f(x=[\n1]):\n  import b\n  def g():\n    import c\n  import d\nimport e\nclass C:\n  import h\n  async def m(self):\n    import i\n  import j\n"
	for _, imp := range scanPython(src, false) {
		inFunction[imp.module] = imp.inFunction
	}
	want := map[string]bool{"a": false, "b": true, "c": true, "d": true, "e": false, "h": false, "i": true, "j": false}
	if d := cmp.Diff(want, inFunction); d != "" {
		t.Errorf("in functions (-want +got):\n%s", d)
	}
}

// pythonTree has an interpreter with a small standard library.
func pythonTree(more files) files {
	const std = "usr/lib/python3.11/"
	fs := withLoader(files{
		"usr/bin/python3.11": program(), "usr/bin/python3": "-> python3.11", "usr/bin/env": program(),
		std + "os.py": "import stat\ndef popen():\n    import subprocess\n", std + "stat.py": "", std + "subprocess.py": "", std + "runpy.py": "", std + "encodings/__init__.py": "",
		std + "json/__init__.py": "from .decoder import D\n", std + "json/decoder.py": "import _json\n", std + "json/tool.py": "",
		std + "lib-dynload/_json.cpython-311-x86_64-linux-gnu.so": lib("", "libjson.so.1"), "usr/lib/libjson.so.1": lib("libjson.so.1"),
		std + "__pycache__/stat.cpython-311.pyc": "", std + "__pycache__/stat.cpython-39.pyc": "", std + "time.py": "",
	})
	maps.Copy(fs, more)
	return fs
}

func TestPythonModules(t *testing.T) {
	const std, site = "module /usr/lib/python3.11/", "module /usr/lib/python3/dist-packages/"
	start := []string{std + "os.py", std + "stat.py", std + "__pycache__/stat.cpython-311.pyc", std + "encodings/__init__.py"}
	exe := []string{"exec /usr/bin/python3", "exec /usr/bin/python3.11"}
	cases := []struct {
		name, unit string
		fs         files
		want       []string
	}{
		{
			"the script's folder, packages, what is not imported is not used", "ExecStart=/usr/bin/python3 /opt/app/main.py\n",
			files{
				"opt/app/main.py": "import mod, pkg.sub\n", "opt/app/mod.py": "def f():\n    import lazy\n", "opt/app/lazy.py": "", "opt/app/other.py": "",
				"opt/app/pkg/__init__.py": "from . import inner\n", "opt/app/pkg/inner.py": "from ..x import y\n", "opt/app/pkg/sub.py": "from .side import s\n", "opt/app/pkg/side.py": "", "opt/app/pkg/unused.py": "",
			},
			[]string{
				"script /opt/app/main.py", "module /opt/app/mod.py", "module /opt/app/lazy.py", "module /opt/app/pkg/__init__.py", "module /opt/app/pkg/inner.py",
				"module /opt/app/pkg/sub.py", "module /opt/app/pkg/side.py",
			},
		},
		{
			"a shebang, a package's name that may be a module, an extension module with its library", "ExecStart=/opt/tool\n",
			files{"opt/tool": "#!/usr/bin/python3\nfrom json import tool, loads\nimport time\n"},
			[]string{
				"script /opt/tool", std + "json/__init__.py", std + "json/decoder.py", std + "json/tool.py", std + "lib-dynload/_json.cpython-311-x86_64-linux-gnu.so",
				"soname /usr/lib/libjson.so.1",
			},
		},
		{
			"-m with a package, its __main__, the working folder first", "WorkingDirectory=/srv\nExecStart=/usr/bin/python3 -u -W ignore -m svc arg\n",
			files{"srv/svc/__init__.py": "", "srv/svc/__main__.py": "from . import run\nif __name__ == '__main__':\n    import guarded\n", "srv/svc/run.py": "", "srv/guarded.py": ""},
			[]string{"module /srv/svc/__init__.py", "module /srv/svc/__main__.py", "module /srv/svc/run.py", "module /srv/guarded.py", std + "runpy.py"},
		},
		{
			"folders that the source adds to its search path", "ExecStart=/usr/bin/python3 /opt/app/bin/main.py\n",
			files{
				"opt/app/bin/main.py": "import os, sys\nfrom pathlib import Path\nHERE = os.path.dirname(os.path.abspath(__file__))\n" +
					"sys.path.insert(0, os.path.join(HERE, os.pardir, 'one'))\nsys.path.append('/opt/two')\nif x:\n    sys.path[0:0] = [f'{HERE}/../three', '/opt/four']\n" +
					"ROOT = Path(__file__).resolve().parents[1]\nsys.path.insert(0, str(ROOT / 'five'))\nsite.addsitedir(str(Path(__file__).parent.parent.joinpath('six')))\n" +
					"sys.path.insert(0, made())\n# sys.path.insert(0, '/opt/seven')\nimport a, b, c, d, e, f, g\n",
				"opt/app/one/a.py": "", "opt/two/b.py": "", "opt/app/three/c.py": "", "opt/four/d.py": "", "opt/app/five/e.py": "", "opt/app/six/f.py": "", "opt/seven/g.py": "",
				"opt/two/a.py": "",
			},
			[]string{
				"script /opt/app/bin/main.py", "module /opt/app/one/a.py", "module /opt/two/b.py", "module /opt/app/three/c.py", "module /opt/four/d.py", "module /opt/app/five/e.py",
				"module /opt/app/six/f.py",
			},
		},
		{
			"a folder that -c adds, and one by a file that it has not", "ExecStart=/usr/bin/python3 -c 'import sys; sys.path.insert(0, \"/opt/one\"); sys.path.insert(0, __file__); import a'\n",
			files{"opt/one/a.py": ""},
			[]string{"module /opt/one/a.py"},
		},
		{
			"the folder that env, a shell and its script change to", "ExecStart=/usr/bin/env -u A --chdir=/opt/one B=1 python3 main.py\nExecStart=/usr/bin/env -C /opt/two python3 main.py\n" +
				"ExecStart=/usr/bin/sh -c 'cd /opt/three && exec python3 main.py'\nExecStart=/opt/four/run\nExecStart=/usr/bin/python3 main.py\n",
			files{
				"usr/bin/sh": program(), "opt/one/main.py": "", "opt/two/main.py": "", "opt/three/main.py": "", "opt/four/lib/main.py": "", "main.py": "",
				"opt/four/run": "#!/usr/bin/sh\ncd \"$(dirname \"$0\")\" || exit 1\ncd -P lib\ncd $UNKNOWN; cd /nowhere\nexec python3 main.py\n",
			},
			[]string{
				"script /opt/one/main.py", "script /opt/two/main.py", "script /opt/three/main.py", "script /opt/four/lib/main.py", "script /main.py", "script /opt/four/run",
				"exec /usr/bin/env", "exec /usr/bin/sh",
			},
		},
		{
			"-c", "ExecStart=/usr/bin/python3 -c 'import third; third.main()'\n",
			files{"usr/lib/python3/dist-packages/third.py": ""},
			[]string{site + "third.py"},
		},
		{
			"PYTHONPATH, and -I which ignores it and the script's folder", "Environment=PYTHONPATH=/opt/lib\nExecStart=/usr/bin/python3 /opt/a/one.py\nExecStart=/usr/bin/python3 -I /opt/a/two.py\n",
			files{"opt/a/one.py": "import x\n", "opt/a/two.py": "import y, z\n", "opt/lib/x.py": "", "opt/lib/y.py": "", "opt/a/z.py": ""},
			[]string{"script /opt/a/one.py", "script /opt/a/two.py", "module /opt/lib/x.py"},
		},
		{
			"a namespace package over two folders", "Environment=PYTHONPATH=/opt/l1:/opt/l2\nExecStart=/usr/bin/python3 /opt/main.py\n",
			files{"opt/main.py": "import ns.a, ns.b\n", "opt/l1/ns/a.py": "", "opt/l2/ns/b.py": "", "opt/l2/ns/c.py": ""},
			[]string{"script /opt/main.py", "module /opt/l1/ns/a.py", "module /opt/l2/ns/b.py"},
		},
		{
			"a regular package hides a namespace portion before it", "Environment=PYTHONPATH=/opt/l1:/opt/l2\nExecStart=/usr/bin/python3 /opt/main.py\n",
			files{"opt/main.py": "import p.a\n", "opt/l1/p/a.py": "", "opt/l2/p/__init__.py": "", "opt/l2/p/a.py": ""},
			[]string{"script /opt/main.py", "module /opt/l2/p/__init__.py", "module /opt/l2/p/a.py"},
		},
		{
			".pth files: a folder that is added, a module that is imported", "ExecStart=/usr/bin/python3 /opt/main.py\n",
			files{
				"opt/main.py": "import dev\n", "usr/lib/python3/dist-packages/x.pth": "# c\n/opt/dev\nimport hook; hook.go()\n", "opt/dev/dev.py": "",
				"usr/lib/python3/dist-packages/hook.py": "",
			},
			[]string{"script /opt/main.py", site + "x.pth", site + "hook.py", "module /opt/dev/dev.py"},
		},
		{
			"a module that is a symlink", "ExecStart=/usr/bin/python3 /opt/main.py\n",
			files{"opt/main.py": "import m\n", "opt/m.py": "-> /etc/alternatives/m.py", "etc/alternatives/m.py": "-> /opt/real/m2.py", "opt/real/m2.py": "import n\n", "opt/n.py": ""},
			[]string{"script /opt/main.py", "module /opt/m.py", "module /etc/alternatives/m.py", "module /opt/real/m2.py", "module /opt/n.py"},
		},
		{
			"the compiled file of a module, of this version", "ExecStart=/usr/bin/python3 /opt/main.py\n",
			files{"opt/main.py": "import m\n", "opt/m.py": "", "opt/__pycache__/m.cpython-311.pyc": "", "opt/__pycache__/m.cpython-310.pyc": "", "opt/__pycache__/main.cpython-311.pyc": ""},
			[]string{"script /opt/main.py", "module /opt/m.py", "module /opt/__pycache__/m.cpython-311.pyc"},
		},
		{
			"what an application server is told to import", "WorkingDirectory=/srv\nExecStart=/usr/bin/python3 /opt/gunicorn -b 127.0.0.1:80 site.wsgi:app\n",
			files{"opt/gunicorn": "", "srv/site/__init__.py": "", "srv/site/wsgi.py": "import urls\n", "srv/urls.py": "", "srv/other.py": ""},
			[]string{"script /opt/gunicorn", "module /srv/site/__init__.py", "module /srv/site/wsgi.py", "module /srv/urls.py"},
		},
		{
			"a folder as the script", "ExecStart=/usr/bin/python3 /opt/app\n",
			files{"opt/app/__main__.py": "import m\n", "opt/app/m.py": ""},
			[]string{"script /opt/app", "module /opt/app/__main__.py", "module /opt/app/m.py"},
		},
	}
	for _, c := range cases {
		got, tree := serviceUses(t, c.unit, pythonTree(c.fs))
		got = slices.DeleteFunc(got, func(s string) bool {
			return slices.Contains(start, s) || slices.Contains(exe, s) || strings.HasPrefix(s, "interpreter ")
		})
		slices.Sort(c.want)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if len(tree.Warnings) > 0 {
			t.Errorf("%s: warnings %q", c.name, tree.Warnings)
		}
	}
	got, _ := serviceUses(t, "ExecStart=/usr/bin/python3 /opt/m.py\n", pythonTree(files{"opt/m.py": ""}))
	want := slices.Concat([]string{"script /opt/m.py"}, exe, start)
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("an empty script (-want +got):\n%s", d)
	}
}

func TestPythonVenv(t *testing.T) {
	for _, c := range []struct{ system, want string }{
		{"false", "module /opt/v/lib/python3.11/site-packages/flask.py"},
		{"true", "module /opt/v/lib/python3.11/site-packages/flask.py module /usr/lib/python3/dist-packages/sysmod.py"},
	} {
		got, _ := serviceUses(t, "ExecStart=/opt/v/bin/serve\n", pythonTree(files{
			"opt/v/bin/python": "-> python3", "opt/v/bin/python3": "-> /usr/bin/python3", "opt/v/bin/serve": "#!/opt/v/bin/python\nimport flask, sysmod\n",
			"opt/v/pyvenv.cfg": "home = /usr/bin\ninclude-system-site-packages = " + c.system + "\nversion = 3.11.2\n",
			"opt/v/lib/python3.11/site-packages/flask.py":  "",
			"usr/lib/python3/dist-packages/sysmod.py":      "",
			"usr/lib/python3/dist-packages/flask.py":       "",
			"opt/v/lib/python3.11/site-packages/unused.py": "",
		}))
		got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, "/usr/lib/python3.11/") })
		want := append(strings.Split(strings.ReplaceAll(c.want, " module", "\x00module"), "\x00"),
			"interpreter /opt/v/bin/python", "interpreter /opt/v/bin/python3", "interpreter /usr/bin/python3", "interpreter /usr/bin/python3.11",
			"module /opt/v/pyvenv.cfg", "script /opt/v/bin/serve")
		slices.Sort(want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("include-system-site-packages = %s (-want +got):\n%s", c.system, d)
		}
	}
}

func FuzzScanPython(f *testing.F) {
	f.Add("from . import (a, # b\n c)\nif __name__ == '__main__':\n\timport x\n'''", true)
	f.Add("import a.b as c; from x import y\\\n, z\nif TYPE_CHECKING: import q", false)
	f.Add("\\\r\nf'{'x'}'[:1] __import__('a' \\", false)
	f.Fuzz(func(t *testing.T, src string, main bool) {
		for _, imp := range scanPython(src, main) {
			if imp.module == "" && imp.level == 0 {
				t.Errorf("an import of nothing: %+v", imp)
			}
			for _, n := range append(imp.names, strings.Split(imp.module, ".")...) {
				if strings.ContainsAny(n, "/ \n") {
					t.Errorf("a name that is none: %q", n)
				}
			}
		}
	})
}
