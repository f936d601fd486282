package planner

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// alice's manager, with its units in both trees.
type hers struct {
	*scenario
	m *change.UserManager
}

func (s *scenario) user() *hers {
	s.unit("user@1000.service", "").CanReload = true
	m := &change.UserManager{Unit: "user@1000.service", UID: 1000, Name: "alice", Units: map[string]*change.UnitState{}, Version: 257}
	for _, t := range []**change.Tree{&m.Old, &m.New} {
		*t = &change.Tree{
			Units: map[string]*change.Unit{}, Reached: map[string]string{},
			Path: []string{"/home/alice/.config/systemd/user", "/etc/systemd/user", "/usr/lib/systemd/user"},
		}
	}
	s.in.Facts.Users = append(s.in.Facts.Users, m)
	h := &hers{s, m}
	h.service("default.target", "")
	return h
}

func userFile(name string) string { return "/usr/lib/systemd/user/" + name }

func defined(name, text string, uses ...change.Use) *change.Unit {
	return &change.Unit{Name: name, Fragment: userFile(name), Settings: settings(userFile(name), text), Uses: uses}
}

func (h *hers) service(name, text string, uses ...change.Use) *change.UnitState {
	for _, t := range []*change.Tree{h.m.Old, h.m.New} {
		t.Units[name] = defined(name, text, uses...)
		t.Reached[name] = "default.target"
	}
	st := &change.UnitState{
		Name: name, Names: []string{name}, LoadState: "loaded", ActiveState: "active", SubState: "running", FragmentPath: userFile(name),
	}
	if kindOf(name) == "service" {
		st.Type = "simple"
	}
	h.m.Units[name] = st
	return st
}

func (h *hers) maps(unit, path string) *hers {
	h.hit(change.Hit{Unit: "user@1000.service", UserUnit: unit, PID: 77, Comm: "x", Kind: "mapped", Path: path})
	return h
}

func TestUsers(t *testing.T) {
	lib := "/usr/lib/libx.so.1"
	rule := func(action string, units ...string) change.Rule {
		return change.Rule{Units: units, Action: action, Source: "p.toml:1"}
	}
	for _, c := range []struct {
		name  string
		h     func() *hers
		want  string
		steps string // of the manager
	}{
		{"a library", func() *hers {
			h := machine().replace(lib).user()
			h.service("a.service", "")
			return h.maps("a.service", lib)
		}, "restart user@1000.service/a.service", "restart a.service"},
		{"by its name the system has another", func() *hers {
			s := machine().replace(lib)
			s.unit("a.service", "")
			h := s.user()
			h.service("a.service", "")
			return h.maps("a.service", lib)
		}, "restart user@1000.service/a.service", "restart a.service"},
		{"a manager that does not answer", func() *hers {
			h := machine().replace(lib).user()
			h.service("a.service", "")
			h.m.Problem, h.m.Units, h.m.Old, h.m.New = "it did not answer", nil, nil, nil
			return h.maps("a.service", lib)
		}, "defer user@1000.service/a.service", ""},
		{"its unit file", func() *hers {
			h := machine().replace(userFile("a.service")).user()
			h.service("a.service", "[Service]\nExecStart=/bin/a")
			h.m.New.Units["a.service"] = defined("a.service", "[Service]\nExecStart=/bin/b")
			return h
		}, "restart user@1000.service/a.service", "daemon-reload systemd; restart a.service"},
		{"a description", func() *hers {
			h := machine().replace(userFile("a.service")).user()
			h.service("a.service", "[Unit]\nDescription=x")
			h.m.New.Units["a.service"] = defined("a.service", "[Unit]\nDescription=y")
			return h
		}, "", "daemon-reload systemd"},
		{"a unit file that her own hides", func() *hers {
			h := machine().replace(userFile("a.service")).user()
			h.service("a.service", "")
			for _, tree := range []*change.Tree{h.m.Old, h.m.New} {
				tree.Units["a.service"].Fragment = "/home/alice/.config/systemd/user/a.service"
			}
			return h
		}, "", ""},
		{"nothing is run that she wrote", func() *hers {
			h := machine().replace(lib).user()
			h.service("a.service", "[Service]\nX-Liveupd-Check=/bin/sh\nX-Liveupd-Health=/bin/sh")
			return h.maps("a.service", lib)
		}, "restart user@1000.service/a.service", "restart a.service"},
		{"the built-in table is of the system's daemons", func() *hers {
			h := machine().replace("/etc/nginx/nginx.conf").user()
			h.service("nginx.service", nginxUnit)
			return h
		}, "", ""},
		{"the bus of her session", func() *hers {
			h := machine().replace(lib).user()
			h.service("dbus.service", "")
			return h.maps("dbus.service", lib)
		}, "defer user@1000.service/dbus.service", ""},
		{"a part of a graphical session, and what would take it along", func() *hers {
			h := machine().replace(lib).user()
			h.service("shell.service", "[Unit]\nPartOf=graphical-session.target\nRequires=a.service")
			h.service("a.service", "").RequiredBy = []string{"shell.service"}
			return h.maps("a.service", lib)
		}, "defer user@1000.service/a.service", ""},
		{"an application", func() *hers {
			h := machine().replace(lib).user()
			h.service("app-editor@1.service", "")
			return h.maps("app-editor@1.service", lib)
		}, "defer user@1000.service/app-editor@1.service", ""},
		{"started by hand", func() *hers {
			h := machine().replace(lib).user()
			h.service("run-1.service", "").FragmentPath = "/run/user/1000/systemd/transient/run-1.service"
			return h.maps("run-1.service", lib)
		}, "defer user@1000.service/run-1.service", ""},
		{"a scope of hers", func() *hers { return machine().replace(lib).user().maps("app-x.scope", lib) }, "", ""},
		{"needs another", func() *hers {
			h := machine().replace(lib).user()
			h.service("b.service", "[Unit]\nRequires=a.service")
			h.service("a.service", "").RequiredBy = []string{"b.service"}
			return h.maps("a.service", lib)
		}, "restart user@1000.service/a.service, ~restart user@1000.service/b.service", "restart a.service"},
		{"a new unit for all", func() *hers {
			h := machine().add(userFile("n.service")).user()
			h.m.New.Units["n.service"] = defined("n.service", "[Service]\nExecStart=/bin/n")
			h.m.New.Reached["n.service"] = "default.target"
			return h
		}, "start user@1000.service/n.service", "daemon-reload systemd; start n.service"},
		{"a unit that goes", func() *hers {
			h := machine().user()
			h.in.Delta.Entries = append(h.in.Delta.Entries, change.Entry{Path: userFile("a.service"), Op: change.Remove, Old: file("a")})
			h.service("a.service", "")
			delete(h.m.New.Units, "a.service")
			delete(h.m.New.Reached, "a.service")
			return h
		}, "stop user@1000.service/a.service", "stop a.service; daemon-reload systemd"},
		{"a rule for the unit", func() *hers {
			h := machine().replace(lib).user()
			h.in.Policy.Rules = []change.Rule{rule("defer", "a.service")}
			h.service("a.service", "")
			return h.maps("a.service", lib)
		}, "defer user@1000.service/a.service", ""},
		{"a rule for all units of all users", func() *hers {
			h := machine().replace(lib).user()
			h.in.Policy.Rules = []change.Rule{rule("never", "user@*.service/*")}
			h.service("a.service", "")
			return h.maps("a.service", lib)
		}, "defer user@1000.service/a.service", ""},
		{"a rule for the manager", func() *hers {
			h := machine().replace(lib).user()
			h.in.Policy.Rules = []change.Rule{rule("defer", "user@1000.service")}
			h.service("a.service", "")
			return h.maps("a.service", lib)
		}, "defer user@1000.service/a.service", ""},
		{"a rule for another's", func() *hers {
			h := machine().replace(lib).user()
			h.in.Policy.Rules = []change.Rule{rule("defer", "user@1001.service", "user@1001.service/*")}
			h.service("a.service", "")
			return h.maps("a.service", lib)
		}, "restart user@1000.service/a.service", "restart a.service"},
		{"no more than a reload is permitted", func() *hers {
			h := machine().replace(lib).user()
			h.in.Policy.Max = change.ActionReload
			h.service("a.service", "")
			return h.maps("a.service", lib)
		}, "defer user@1000.service/a.service", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Make(c.h().in)
			if got := summary(p); got != c.want {
				t.Errorf("the plan is %q; want %q", got, c.want)
			}
			var own []string
			for _, st := range p.Steps {
				switch {
				case st.Manager != "":
					own = append(own, st.Do+" "+st.Target)
				case strings.Contains(st.Target, "a.service"), st.Do == "check", st.Do == "health":
					t.Errorf("a step of the system's: %+v", st)
				}
			}
			if got := strings.Join(own, "; "); got != c.steps {
				t.Errorf("the manager's steps are %q; want %q", got, c.steps)
			}
			if again := Make(c.h().in); again.ID != p.ID {
				t.Errorf("the ID is %s, and then %s", p.ID, again.ID)
			}
		})
	}
}

// Who logs in between a plan and its apply does not make it another plan, as long
// as nothing of theirs is interrupted.
func TestUserComes(t *testing.T) {
	of := func(come bool) string {
		s := machine().replace(userFile("a.service"))
		if come {
			s.user()
		}
		return Make(s.in).ID
	}
	s := machine().replace(userFile("a.service"))
	s.user()
	if Make(s.in).Steps[1].Manager == "" {
		t.Fatal("no step is the manager's: this test shows nothing")
	}
	if of(true) != of(false) {
		t.Error("the plan has another ID when a user has logged in")
	}
}

func TestPresetLinks(t *testing.T) {
	rule := func(do, pattern string) change.Preset {
		return change.Preset{Do: do, Pattern: pattern, File: "/usr/lib/systemd/system-preset/1.preset"}
	}
	const install = "[Install]\nWantedBy=multi-user.target"
	for _, c := range []struct {
		name  string
		text  string
		shape func(old, new *change.Tree)
		rules []change.Preset
		want  string
	}{
		{"enabled", install, nil, []change.Preset{rule("enable", "n.service")}, "multi-user.target.wants/n.service"},
		{"no rule", install, nil, nil, ""},
		{"the first rule counts", install, nil, []change.Preset{rule("disable", "n*"), rule("enable", "n.service")}, ""},
		{
			"all ways", "[Install]\nWantedBy=a.target\nRequiredBy=b.target\nUpheldBy=c.target\nAlias=m.service\nAlias=m.timer", nil,
			[]change.Preset{rule("enable", "*")},
			"a.target.wants/n.service b.target.requires/n.service c.target.upholds/n.service m.service",
		},
		{"a path in the place of a name", "[Install]\nWantedBy=../../x.target", nil, []change.Preset{rule("enable", "*")}, ""},
		{"it was there before", install, func(old, _ *change.Tree) { old.Units["n.service"] = define("n.service", install) }, []change.Preset{rule("enable", "*")}, ""},
		{"the administrator has a drop-in", install, func(old, _ *change.Tree) { old.Touched = map[string]bool{"n.service": true} }, []change.Preset{rule("enable", "*")}, ""},
		{"it is masked", install, func(_, new *change.Tree) { new.Units["n.service"].Masked = true }, []change.Preset{rule("enable", "*")}, ""},
		{"the tree enables it elsewhere", install, func(_, new *change.Tree) {
			new.Units["x.target"] = &change.Unit{Name: "x.target", Settings: []change.Setting{
				{Section: "Unit", Key: "Wants", Value: "n.service", File: "/etc/systemd/system/x.target.wants/n.service"},
			}}
		}, []change.Preset{rule("enable", "*")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			old, new := &change.Tree{Units: map[string]*change.Unit{}}, &change.Tree{Units: map[string]*change.Unit{}, Presets: c.rules}
			new.Units["n.service"] = define("n.service", c.text)
			if c.shape != nil {
				c.shape(old, new)
			}
			var got []string
			for _, l := range PresetLinks(old, new) {
				got = append(got, strings.TrimPrefix(l.Path, "/etc/systemd/system/"))
				if l.Target != fragment("n.service") || l.Unit != "n.service" {
					t.Errorf("%+v", l)
				}
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("the links are %q; want %q", s, c.want)
			}
		})
	}
}
