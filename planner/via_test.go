package planner

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// The way from a changed path to the unit names each link and what it does.
func TestWayFrom(t *testing.T) {
	def := &change.Unit{Name: "a.service", Uses: []change.Use{
		{Path: "/opt/app.py", Kind: "script", Via: "/etc/systemd/system/a.service"},
		{Path: "/usr/bin/python3", Kind: "interpreter", Via: "/opt/app.py"},
		{Path: "/usr/lib/libz.so.1", Kind: "soname", Via: "/usr/bin/python3"},
		{Path: "/usr/lib/python3/a.py", Kind: "module", Via: "/opt/app.py"},
		{Path: "/usr/lib/python3/b.py", Kind: "module", Via: "/usr/lib/python3/a.py"},
		{Path: "/etc/default/a", Kind: "environment", Via: "/etc/systemd/system/a.service"},
		{Path: "/opt/lib.sh", Kind: "script", Via: "/opt/app.py"},
		{Path: "/usr/bin/env", Kind: "exec", Via: "/etc/systemd/system/a.service"},
		{Path: "/usr/bin/ruby", Kind: "interpreter", Via: "/usr/bin/env"},
		{Path: "/opt/main.rb", Kind: "script", Via: "/usr/bin/ruby"},
		// Two that name each other end.
		{Path: "/x", Kind: "module", Via: "/y"},
		{Path: "/y", Kind: "module", Via: "/x"},
	}}
	link := func(kind, path string) change.Link { return change.Link{Kind: kind, Path: path} }
	unit := func(kind string) change.Link { return change.Link{Kind: kind, Unit: "a.service"} }
	for from, c := range map[string]struct {
		way   []change.Link
		words string
	}{
		"/opt/app.py":           {[]change.Link{unit("executes")}, ""},
		"/usr/bin/python3":      {[]change.Link{link("shebang", "/opt/app.py"), unit("executes")}, "through /opt/app.py"},
		"/usr/lib/libz.so.1":    {[]change.Link{link("needed", "/usr/bin/python3"), link("shebang", "/opt/app.py"), unit("executes")}, "through /opt/app.py, /usr/bin/python3"},
		"/usr/lib/python3/b.py": {[]change.Link{link("imports", "/usr/lib/python3/a.py"), link("imports", "/opt/app.py"), unit("executes")}, "through /opt/app.py, /usr/lib/python3/a.py"},
		"/opt/lib.sh":           {[]change.Link{link("sources", "/opt/app.py"), unit("executes")}, "through /opt/app.py"},
		"/opt/main.rb":          {[]change.Link{link("executes", "/usr/bin/ruby"), link("executes", "/usr/bin/env"), unit("executes")}, "through /usr/bin/env, /usr/bin/ruby"},
		"/etc/default/a":        {[]change.Link{unit("environment")}, ""},
		"/x":                    {[]change.Link{link("imports", "/y"), unit("imports")}, "through /y"},
		"/not/used":             {nil, ""},
	} {
		way := wayFrom(def, "a.service", from)
		if diff := cmp.Diff(c.way, way); diff != "" {
			t.Errorf("%s (-want +got):\n%s", from, diff)
		}
		if got := through(way); got != c.words {
			t.Errorf("%s: %q; want %q", from, got, c.words)
		}
	}
	// What a process shows.
	v := &verdict{unit: "a.service", reasons: []change.Reason{{Kind: "mapped", Path: "/l", PID: 7, Comm: "a"}, {Kind: "config", Path: "/c"}}}
	want := []change.Reason{
		{Kind: "config", Path: "/c", Via: []change.Link{unit("reads")}},
		{Kind: "mapped", Path: "/l", PID: 7, Comm: "a", Via: []change.Link{{Kind: "mapped", PID: 7, Comm: "a"}, unit("process")}},
	}
	if diff := cmp.Diff(want, v.told()); diff != "" {
		t.Errorf("told() (-want +got):\n%s", diff)
	}
}
