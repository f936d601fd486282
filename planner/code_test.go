package planner

import (
	"testing"

	"github.com/liveupd/liveupd/change"
)

// sameCode marks what has been replaced so far as the same program.
func (s *scenario) sameCode() *scenario {
	for i := range s.in.Delta.Entries {
		s.in.Delta.Entries[i].SameCode = true
	}
	return s
}

var codeCases = []struct {
	name string
	in   func() *scenario
	want string
}{
	{"a stripped library under the same build ID: nothing", func() *scenario {
		s := machine().replace(libssl, libc).sameCode()
		s.unit("nginx.service", nginxUnit)
		return s.maps("nginx.service", 10, "nginx", libssl).maps("init.scope", 1, "systemd", libc)
	}, ""},
	{"one of two libraries is the same program: the other counts", func() *scenario {
		s := machine().replace(libssl).sameCode().replace(libc)
		s.unit("nginx.service", nginxUnit)
		s.unit("cron.service", "")
		return s.maps("nginx.service", 10, "nginx", libssl).maps("cron.service", 11, "cron", libc)
	}, "restart cron.service"},
	{"a signed program and its extension module, in a tree: nothing", func() *scenario {
		s := machine().tree().replace("/usr/bin/a", "/usr/lib/python3/dist-packages/x.so", libc).sameCode()
		s.unit("a.service", "", change.Use{Path: "/usr/bin/a", Kind: "exec"},
			change.Use{Path: "/usr/lib/python3/dist-packages/x.so", Kind: "module"}, change.Use{Path: libc, Kind: "soname"})
		return s
	}, ""},
	{"a namespace is damaged by the swap, whatever the file holds", func() *scenario {
		s := machine().replace(libssl).sameCode()
		s.unit("a.service", "")
		return s.hit(change.Hit{Unit: "a.service", PID: 4, Comm: "a", Kind: "namespace", Path: libssl})
	}, "restart a.service"},
	{"a compiled module alone: nothing; with its source: restart", func() *scenario {
		s := machine().replace("/opt/__pycache__/m.cpython-311.pyc", "/opt/n.py", "/opt/__pycache__/n.cpython-311.pyc")
		s.unit("a.service", "", change.Use{Path: "/opt/m.py", Kind: "module"}, change.Use{Path: "/opt/__pycache__/m.cpython-311.pyc", Kind: "module"})
		s.unit("b.service", "", change.Use{Path: "/opt/n.py", Kind: "module"}, change.Use{Path: "/opt/__pycache__/n.cpython-311.pyc", Kind: "module"})
		return s
	}, "restart b.service"},
	{"an extension module that no process has mapped: nothing; in a tree it is reached", func() *scenario {
		s := machine().replace("/opt/m.cpython-311-x86_64-linux-gnu.so")
		s.unit("a.service", "", change.Use{Path: "/opt/m.cpython-311-x86_64-linux-gnu.so", Kind: "module"})
		return s
	}, ""},
	{"the same in a tree", func() *scenario {
		s := machine().tree().replace("/opt/m.cpython-311-x86_64-linux-gnu.so")
		s.unit("a.service", "", change.Use{Path: "/opt/m.cpython-311-x86_64-linux-gnu.so", Kind: "module"})
		return s
	}, "restart a.service"},
	{"a Perl module that a script loads: restart; its sibling: nothing", func() *scenario {
		s := machine().replace("/usr/share/perl5/A.pm", "/usr/share/perl5/B.pm")
		s.unit("a.service", "", change.Use{Path: "/opt/a.pl", Kind: "script"}, change.Use{Path: "/usr/share/perl5/A.pm", Kind: "module", Via: "/opt/a.pl"})
		s.unit("c.service", "", change.Use{Path: "/opt/c.pl", Kind: "script"})
		return s
	}, "restart a.service"},
	{"a loader configuration that leads a library elsewhere: restart; the others stay", func() *scenario {
		s := machine().replace("/etc/ld.so.conf.d/x.conf", "/etc/ld.so.cache")
		s.unit("a.service", "", change.Use{Path: "/usr/lib/liba.so.1", Kind: "soname", Via: "/usr/bin/a"})
		s.in.New.Units["a.service"].Uses = []change.Use{{Path: "/opt/lib/liba.so.1", Kind: "soname", Via: "/usr/bin/a"}}
		s.unit("b.service", "", change.Use{Path: "/usr/lib/libb.so.1", Kind: "soname", Via: "/usr/bin/b"})
		return s
	}, "restart a.service"},
}

func TestCodeCases(t *testing.T) {
	for _, c := range codeCases {
		t.Run(c.name, func(t *testing.T) {
			p := Make(c.in().in)
			if got := summary(p); got != c.want {
				t.Errorf("Make() = %s\n          want %s\n%s", got, c.want, pretty(p))
			}
			wellFormed(t, p)
		})
	}
}
