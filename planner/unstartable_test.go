package planner

import (
	"testing"

	"github.com/liveupd/liveupd/change"
)

// A unit whose program goes, or the condition of its start, is stopped: its restart would
// fail after the commit, and take all of the update back.
func TestUnstartable(t *testing.T) {
	const prog = "/usr/sbin/server"
	gone := func(s *scenario, paths ...string) *scenario {
		for _, p := range paths {
			s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{Path: p, Op: change.Remove, Old: file("old " + p)})
		}
		return s
	}
	runs := func(unit string) *scenario {
		s := machine()
		s.unit("server.service", unit)
		return s.maps("server.service", 5, "server", prog)
	}
	for name, c := range map[string]struct {
		in   *scenario
		want string
	}{
		"the program goes, the unit file stays": {gone(runs("[Service]\nExecStart="+prog+" -D\n"), prog), "stop server.service"},
		"as it is named without a merged /usr":  {gone(runs("[Service]\nExecStart=@/sbin/server server\n"), prog), "stop server.service"},
		"the program stays, another file goes":  {gone(runs("[Service]\nExecStart="+prog+"\n").replace(prog), "/usr/share/doc/server"), "restart server.service"},
		"its absence is no failure":             {gone(runs("[Service]\nExecStart=-"+prog+"\n"), prog), "restart server.service"},
		"a condition on what goes": {
			gone(runs("ConditionFileNotEmpty=/etc/server.conf\n[Service]\nExecStart="+prog+"\n").replace(prog), "/etc/server.conf"), "stop server.service",
		},
		"an assertion on what goes": {
			gone(runs("AssertPathExists=/usr/share/server\n[Service]\nExecStart="+prog+"\n").replace(prog), "/usr/share/server"), "stop server.service",
		},
		"a condition against what comes": {
			runs("ConditionPathExists=!/etc/server.off\n[Service]\nExecStart=" + prog + "\n").replace(prog).add("/etc/server.off"), "stop server.service",
		},
		"a condition against what goes": {
			gone(runs("ConditionPathExists=!/etc/server.off\n[Service]\nExecStart="+prog+"\n").replace(prog), "/etc/server.off"), "restart server.service",
		},
		"one of several conditions": {
			gone(runs("ConditionPathExists=|/etc/server.conf\n[Service]\nExecStart="+prog+"\n").replace(prog), "/etc/server.conf"), "restart server.service",
		},
		"a condition alone restarts nothing": {
			func() *scenario {
				s := gone(machine(), "/usr/share/server")
				s.unit("server.service", "ConditionPathExists=/usr/share/server\n[Service]\nExecStart="+prog+"\n")
				return s
			}(), "",
		},
		"the new definition starts another program": {
			gone(runs("[Service]\nExecStart="+prog+"\n"), prog).redefine("server.service", "[Service]\nExecStart=/usr/sbin/server2\n"), "restart server.service, host daemon-reload",
		},
		"what is not to be interrupted is not stopped either": {
			func() *scenario {
				s := gone(runs("[Service]\nExecStart="+prog+"\n"), prog)
				s.in.Policy.Max = change.ActionReload
				return s
			}(), "defer server.service",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := Make(c.in.in)
			if got := summary(p); got != c.want {
				t.Errorf("Make() = %s; want %s\n%s", got, c.want, pretty(p))
			}
			wellFormed(t, p)
		})
	}
}

// The way back, and the package that is installed again: what a boot would start now, and
// could not before, is started.
func TestStartableAgain(t *testing.T) {
	const prog = "/usr/sbin/server"
	stopped := func(unit string) *scenario {
		s := machine()
		s.unit("server.service", unit)
		delete(s.in.Facts.Units, "server.service")
		return s
	}
	gone := func(s *scenario, p string) *scenario {
		s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{Path: p, Op: change.Remove, Old: file("old " + p)})
		return s
	}
	for name, c := range map[string]struct {
		in   *scenario
		want string
	}{
		"the program comes":             {stopped("[Service]\nExecStart=" + prog + "\n").add(prog), "start server.service"},
		"another file comes":            {stopped("[Service]\nExecStart=" + prog + "\n").add("/usr/share/doc/server"), ""},
		"a condition on what comes":     {stopped("ConditionPathExists=/etc/on\n[Service]\nExecStart=" + prog + "\n").add("/etc/on"), "start server.service"},
		"a condition against what goes": {gone(stopped("ConditionPathExists=!/etc/off\n[Service]\nExecStart="+prog+"\n"), "/etc/off"), "start server.service"},
		"a oneshot":                     {stopped("[Service]\nType=oneshot\nExecStart=" + prog + "\n").add(prog), ""},
		"no boot starts it": {func() *scenario {
			s := stopped("[Service]\nExecStart=" + prog + "\n").add(prog)
			delete(s.in.Old.Reached, "server.service")
			delete(s.in.New.Reached, "server.service")
			return s
		}(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := Make(c.in.in)
			if got := summary(p); got != c.want {
				t.Errorf("Make() = %s; want %s\n%s", got, c.want, pretty(p))
			}
			wellFormed(t, p)
		})
	}
}

// A condition that does not hold in the new tree: who would be started is not, who would be
// restarted is stopped where the update made it so, and else is left.
func TestUnmet(t *testing.T) {
	one := change.Setting{Section: "Unit", Key: "ConditionPathExists", Value: "/etc/one", File: fragment("a.service")}
	two := change.Setting{Section: "Unit", Key: "AssertPathExists", Value: "/etc/two", File: fragment("a.service")}
	runs := func(old, new []change.Setting) *scenario {
		s := machine()
		s.unit("a.service", "[Service]\nExecStart=/usr/bin/a\n")
		s.maps("a.service", 5, "a", libssl).replace(libssl)
		s.in.Old.Units["a.service"].Unmet, s.in.New.Units["a.service"].Unmet = old, new
		return s
	}
	comes := machine()
	comes.in.New.Units["a.service"] = define("a.service", "[Service]\nExecStart=/usr/bin/a\n")
	comes.in.New.Units["a.service"].Unmet = []change.Setting{one}
	comes.in.New.Reached["a.service"] = "multi-user.target"
	for name, c := range map[string]struct {
		in   *scenario
		want string
	}{
		"holds":                    {runs([]change.Setting{one}, nil), "restart a.service"},
		"the update brings it":     {runs(nil, []change.Setting{one}), "stop a.service"},
		"it did not hold before":   {runs([]change.Setting{one}, []change.Setting{one}), "defer a.service"},
		"the update brings a next": {runs([]change.Setting{one}, []change.Setting{one, two}), "stop a.service"},
		"a new unit":               {comes, ""},
	} {
		p := Make(c.in.in)
		if got := summary(p); got != c.want {
			t.Errorf("%s: Make() = %s; want %s\n%s", name, got, c.want, pretty(p))
		}
		wellFormed(t, p)
	}
}
