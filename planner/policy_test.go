package planner

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// ruled is a machine with four stale services and one that needs another.
func ruled(rules ...change.Rule) *scenario {
	s := machine().replace(libssl, "/etc/nginx/nginx.conf")
	s.unit("nginx.service", nginxUnit)
	s.unit("db.service", "").RequiredBy = []string{"api.service"}
	s.unit("api.service", "Requires=db.service")
	s.unit("app@1.service", "X-Liveupd-On-Change=none")
	s.unit("docker.service", "")
	s.in.Policy.Rules = rules
	for i := range s.in.Policy.Rules {
		s.in.Policy.Rules[i].Source = "p.toml:1"
	}
	s.in.Policy.Now = &change.WeekTime{Day: 3, Minute: 12 * 60}
	s.in.Packages = map[string][]string{libssl: {"libssl3"}}
	return s.maps("db.service", 4, "db", libssl).maps("app@1.service", 5, "app", libssl).maps("docker.service", 6, "dockerd", libssl)
}

func TestRules(t *testing.T) {
	const nothingElse = "~restart api.service, restart db.service, defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q"
	night := change.Window{Days: 127, From: 22 * 60, To: 5 * 60}
	for _, tt := range []struct {
		name  string
		rules []change.Rule
		want  string
	}{
		{"none", nil, nothingElse},
		{"of units that are not there", []change.Rule{{Units: []string{"x*.service"}, Action: "never"}}, nothingElse},
		{
			"restart, where a reload would do",
			[]change.Rule{{Units: []string{"nginx.service"}, Action: "restart"}},
			"~restart api.service, restart db.service, defer docker.service, restart nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"restart, over the table and over the unit's wish",
			[]change.Rule{{Units: []string{"docker.service", "app@*.service"}, Action: "restart"}},
			"~restart api.service, restart app@1.service, restart db.service, restart docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"reload, where there is none",
			[]change.Rule{{Units: []string{"db.service"}, Action: "reload"}},
			"defer db.service, defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"defer",
			[]change.Rule{{Units: []string{"nginx.service", "db.service"}, Action: "defer"}},
			"defer db.service, defer docker.service, defer nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"never: nor along with another",
			[]change.Rule{{Units: []string{"api.service"}, Action: "never"}},
			"defer db.service, defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
		{"ignore a path", []change.Rule{{Paths: []string{"/usr/lib/**"}, Action: "ignore"}}, "reload nginx.service, check /usr/sbin/nginx -t -q"},
		{"ignore a package", []change.Rule{{Packages: []string{"libssl*"}, Action: "ignore"}}, "reload nginx.service, check /usr/sbin/nginx -t -q"},
		{
			"ignore a path for one unit",
			[]change.Rule{{Units: []string{"db.service"}, Paths: []string{libssl}, Action: "ignore"}},
			"defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"defer a path",
			[]change.Rule{{Paths: []string{"/usr/lib/**"}, Action: "defer"}},
			"defer app@1.service, defer db.service, defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"outside of the window",
			[]change.Rule{{Units: []string{"*"}, Windows: []change.Window{night}}},
			"defer db.service, defer docker.service, defer nginx.service, check /usr/sbin/nginx -t -q",
		},
		{"in the window", []change.Rule{{Units: []string{"*"}, Windows: []change.Window{night, {Days: 1 << 3, From: 0, To: 1440}}}}, nothingElse},
		{
			"later, but not what comes first",
			[]change.Rule{{Units: []string{"*"}, Except: []string{"nginx.*"}, Action: change.RuleLater, Reason: "group two"}},
			"defer db.service, defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"never, and later does not make it less",
			[]change.Rule{{Units: []string{"db.service"}, Action: "ignore"}, {Units: []string{"db.service"}, Action: change.RuleLater, Reason: "group two"}},
			"defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
		{
			"the last one counts",
			[]change.Rule{{Units: []string{"*"}, Action: "never"}, {Units: []string{"nginx.service"}, Action: "reload"}},
			"defer app@1.service, defer db.service, defer docker.service, reload nginx.service, check /usr/sbin/nginx -t -q",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := ruled(tt.rules...)
			if tt.name == "defer a path" {
				delete(s.in.Old.Units, "app@1.service")
				delete(s.in.New.Units, "app@1.service")
			}
			p := Make(s.in)
			if got := summary(p); got != tt.want {
				t.Errorf("Make() = %s\n          want %s", got, tt.want)
			}
			wellFormed(t, p)
			for _, u := range p.Units {
				for _, r := range u.Reasons {
					if strings.Contains(r.Detail, "policy") && !strings.Contains(r.Detail, "p.toml:1") {
						t.Errorf("%s: %q does not name the rule", u.Unit, r.Detail)
					}
				}
			}
		})
	}
}

// What two reasons ask for, of which a rule holds one back, is done for the other.
func TestHeldReason(t *testing.T) {
	s := ruled(change.Rule{Paths: []string{libssl}, Action: "defer"}).replace("/usr/sbin/db")
	s.hit(change.Hit{Unit: "db.service", PID: 4, Comm: "db", Kind: "exec", Path: "/usr/sbin/db"})
	if got := summary(Make(s.in)); !strings.Contains(got, "restart db.service") {
		t.Errorf("Make() = %s; want that db.service restarts for its binary", got)
	}
}

func TestRulesOfComingAndGoing(t *testing.T) {
	s := machine().add("/usr/lib/systemd/system/new.service")
	s.in.New.Units["new.service"] = define("new.service", "[Service]\nExecStart=/bin/n")
	s.in.New.Reached["new.service"] = "multi-user.target"
	s.unit("gone.service", "[Service]\nExecStart=/bin/a")
	s.remove("gone.service")
	s.in.Policy.Rules = []change.Rule{{Units: []string{"new.service"}, Action: "ignore"}, {Units: []string{"gone.service"}, Action: "never"}}
	if got, want := summary(Make(s.in)), "defer gone.service, host daemon-reload"; got != want {
		t.Errorf("Make() = %s; want %s", got, want)
	}
}

func TestWindow(t *testing.T) {
	weekend := change.Window{Days: 1<<6 | 1, From: 22 * 60, To: 2 * 60}
	for _, tt := range []struct {
		day, minute int
		want        bool
	}{
		{6, 22 * 60, true}, {6, 22*60 - 1, false}, {0, 60, true}, {0, 2 * 60, false}, {1, 119, true}, {1, 120, false}, {6, 60, false},
	} {
		if got := weekend.Holds(change.WeekTime{Day: tt.day, Minute: tt.minute}); got != tt.want {
			t.Errorf("%v holds day %d minute %d: %v; want %v", weekend, tt.day, tt.minute, got, tt.want)
		}
	}
}
