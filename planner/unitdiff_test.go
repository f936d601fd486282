package planner

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/change/directive"
)

// ofUnit is a unit file that sets one key in the section of its type.
func ofUnit(name, key, value string) string {
	kind := kindOf(name)
	section := strings.ToUpper(kind[:1]) + kind[1:]
	base := map[string]string{
		"service": "ExecStart=/bin/a\n", "socket": "ListenStream=80\n", "mount": "What=/dev/a\nWhere=/srv/x\n",
		"automount": "Where=/srv/x\n", "swap": "What=/dev/a\n", "timer": "OnCalendar=daily\n", "path": "PathExists=/a\n",
	}[kind]
	if value == "" {
		return "[" + section + "]\n" + base
	}
	return "[" + section + "]\n" + base + key + "=" + value + "\n"
}

// Each setting of the list, in each type of unit that takes it, does what its
// class says when it is set anew.
func TestEachSetting(t *testing.T) {
	types := map[string][]string{
		"exec": {"service", "socket", "mount", "swap"}, "kill": {"service", "socket", "mount", "swap", "scope"},
		"cgroup": {"service", "socket", "mount", "swap", "slice", "scope"},
	}
	n := 0
	for _, d := range directive.All() {
		if d.Group == "unit" || d.Group == "install" || d.Key == "ExecStart" || d.Key == "PathExists" || d.Key == "Accept" ||
			d.Key == "Where" || d.Key == "What" || d.Key == "ListenStream" || d.Key == "Sockets" || d.Key == "Type" {
			continue // the base sets it, or it changes what the unit is
		}
		kinds := types[d.Group]
		if kinds == nil {
			kinds = []string{d.Group}
		}
		for _, kind := range kinds {
			n++
			name := map[string]string{"mount": "srv-x.mount", "automount": "srv-x.automount"}[kind]
			if name == "" {
				name = "a." + kind
			}
			s := machine()
			s.in.Facts.SystemdVersion = 999
			s.unit(name, ofUnit(name, d.Key, ""))
			p := Make(s.redefine(name, ofUnit(name, d.Key, "7x7")).in)
			want := "host daemon-reload"
			switch c := directive.ClassOf(kind, strings.ToUpper(kind[:1])+kind[1:], d.Key); {
			case c == directive.Remount:
				want = "reload " + name + ", " + want
			case c == directive.Swap:
				want = "defer " + name + ", " + want
			case c >= directive.Exec:
				want = "restart " + name + ", " + want
			}
			if got := summary(p); got != want {
				t.Errorf("%s: %s= gives %s; want %s", name, d.Key, got, want)
			}
		}
	}
	if n < 600 {
		t.Errorf("%d settings tried only", n)
	}
	t.Logf("%d settings tried", n)
}

// What a unit file says in another spelling, or of a unit that the manager
// does not read it for, is no change.
func TestNoDifference(t *testing.T) {
	for _, c := range []struct{ name, old, new string }{
		{"booleans", "[Service]\nPrivateTmp=yes", "[Service]\nPrivateTmp=1"},
		{"a default that is written down", "[Service]\nExecStart=/a", "[Service]\nExecStart=/a\nDynamicUser=no\nUMask=0022"},
		{"times", "[Service]\nWatchdogSec=90", "[Service]\nWatchdogSec=1min 30s"},
		{"a specifier and what it stands for", "[Service]\nExecStart=/bin/a %n %i", "[Service]\nExecStart=/bin/a a@x.service x"},
		{"%% is a percent sign, and no specifier of the running machine is known", "[Service]\nExecStart=/bin/a %H", "[Service]\nExecStart=/bin/a '%H'"},
		{"dependencies in another order", "After=b.service c.service", "After=c.service\nAfter=b.service"},
		{"an older name", "[Service]\nReadWriteDirectories=/a", "[Service]\nReadWritePaths=/a"},
		{"keys of others", "[Service]\nX-Foo=1", "[Service]\nX-Foo=2\n[X-Bar]\nA=1"},
		{"a section of another type", "[Service]\nExecStart=/a", "[Service]\nExecStart=/a\n[Socket]\nListenStream=80"},
	} {
		s := machine()
		s.unit("a@x.service", c.old)
		p := Make(s.redefine("a@x.service", c.new).in)
		if got := summary(p); got != "host daemon-reload" {
			t.Errorf("%s: %s; want nothing but a daemon-reload", c.name, got)
		}
	}
}

func TestReasonsSayOldAndNew(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"[Service]\nExecStart=/bin/a", "[Service]\nExecStart=/bin/b", "[Service] ExecStart= (/bin/a → /bin/b)"},
		{"[Service]\nExecStart=/bin/a", "[Service]\nExecStart=/bin/a\nUser=me", "[Service] User= (unset → me)"},
		{"[Service]\nEnvironment=A=1 B=2", "[Service]\nEnvironment=A=1 B=3", "[Service] Environment= (A=1 B=2 → A=1 B=3)"},
		{"[Service]\nEnvironment=A=1\nEnvironment=B=2", "[Service]\nEnvironment=A=1\nEnvironment=B=3", "[Service] Environment= (-B=2, +B=3)"},
		{"[Service]\nEnvironment=DB_PASSWORD=x", "[Service]\nEnvironment=DB_PASSWORD=y", "[Service] Environment= (DB_PASSWORD=… → DB_PASSWORD=…)"},
		{"[Service]\nSetCredential=a:x", "[Service]\nSetCredential=a:y", "[Service] SetCredential= (differs)"},
		{"[Service]\nExecStart=/a\nExecStartPre=/b\nExecStartPre=/c", "[Service]\nExecStart=/a\nExecStartPre=/c\nExecStartPre=/b", "[Service] ExecStartPre= (in another order)"},
		{"[Service]\nUser=\x1b[31m", "[Service]\nUser=b", `[Service] User= ("\x1b[31m" → b)`},
	} {
		s := machine()
		s.unit("a.service", c.old)
		p := Make(s.redefine("a.service", c.new).in)
		if len(p.Units) != 1 || len(p.Units[0].Reasons) != 1 || p.Units[0].Reasons[0].Detail != c.want ||
			p.Units[0].Reasons[0].Path != "/usr/lib/systemd/system/a.service" {
			t.Errorf("%q to %q: %+v; want %s", c.old, c.new, p.Units, c.want)
		}
	}
}

// A file that another one of its name hides is nothing; where that goes, it is
// the reason.
func TestShadows(t *testing.T) {
	const etc, run, lib = "/etc/systemd/system/a.service", "/etc/systemd/system/a.service.d/x.conf", "/usr/lib/systemd/system/a.service.d/x.conf"
	shadow := func() *scenario {
		s := machine()
		s.unit("a.service", "[Service]\nExecStart=/bin/a").FragmentPath = etc
		for _, t := range []*change.Tree{s.in.Old, s.in.New} {
			t.Units["a.service"].Fragment, t.Units["a.service"].DropIns = etc, []string{run}
		}
		return s
	}
	if got := summary(Make(shadow().replace(fragment("a.service"), lib).in)); got != "" {
		t.Errorf("hidden files change: %s; want nothing", got)
	}
	s := shadow()
	s.in.New.Units["a.service"] = define("a.service", "[Service]\nExecStart=/bin/b")
	s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{Path: etc, Op: change.Remove, Old: file("x")})
	p := Make(s.in)
	if got := summary(p); got != "restart a.service, host daemon-reload" || p.Units[0].Reasons[0].Path != etc {
		t.Errorf("the file that hid another goes: %s\n%s", got, pretty(p))
	}
}

func TestHeldMounts(t *testing.T) {
	s := machine()
	for _, m := range []string{"srv-a", "srv-b", "srv-c", "var-lib", "usr-local", "home-x"} {
		s.unit(m+".mount", "[Mount]\nWhat=/dev/a\nWhere=/"+strings.ReplaceAll(m, "-", "/"))
		s.redefine(m+".mount", "[Mount]\nWhat=/dev/b\nWhere=/"+strings.ReplaceAll(m, "-", "/"))
	}
	s.unit("free.service", "[Service]\nExecStart=/srv/a/x", change.Use{Path: "/srv/a/x", Kind: "exec"})
	s.unit("bound.service", "[Service]\nExecStart=/srv/b/x", change.Use{Path: "/srv/b/x", Kind: "exec"})
	s.in.Facts.Units["srv-b.mount"].RequiredBy = []string{"bound.service"}
	s.unit("home-x-y.mount", "[Mount]\nWhat=/dev/c\nWhere=/home/x/y")
	const want = "~restart bound.service, defer home-x.mount, defer srv-a.mount, restart srv-b.mount, restart srv-c.mount, " +
		"defer usr-local.mount, defer var-lib.mount, host daemon-reload"
	if got := summary(Make(s.in)); got != want {
		t.Errorf("Make() = %s\n          want %s", got, want)
	}
}

// A further change never lowers what is done to a unit, the order of the
// changes does not matter, and equal trees give an empty plan.
func TestUnitDiffProperties(t *testing.T) {
	keys := []string{
		"Description=x", "After=b.service", "[Service]\nExecStop=/b", "[Service]\nMemoryMax=1G", "[Service]\nUser=me",
		"[Service]\nNice=5", "[Service]\nRestart=always", "[Service]\nNoSuchThing=1", "X-Foo=1", "Requires=c.service",
	}
	r := rand.New(rand.NewPCG(7, 7))
	rank := func(p *change.Plan) map[string]change.Action {
		out := map[string]change.Action{}
		for _, u := range p.Units {
			out[u.Unit] = u.Action
		}
		return out
	}
	build := func(parts []string, shuffle bool) change.Input {
		s := machine()
		for _, n := range []string{"a.service", "b.service", "c.service"} {
			s.unit(n, "[Service]\nExecStart=/bin/a")
		}
		s.redefine("a.service", strings.Join(append(slices.Clone(parts), "[Service]\nExecStart=/bin/a"), "\n"))
		s.replace("/usr/share/x", "/usr/share/y")
		if shuffle {
			r.Shuffle(len(s.in.Delta.Entries), func(i, j int) {
				s.in.Delta.Entries[i], s.in.Delta.Entries[j] = s.in.Delta.Entries[j], s.in.Delta.Entries[i]
			})
		}
		return s.in
	}
	const rounds = 300
	for range rounds {
		var parts []string
		for _, k := range r.Perm(len(keys))[:r.IntN(len(keys))] {
			parts = append(parts, keys[k])
		}
		// Lines of [Unit] come first.
		slices.SortFunc(parts, func(a, b string) int { return strings.Count(a, "[") - strings.Count(b, "[") })
		less := rank(Make(build(parts[:len(parts)/2], false)))
		p := Make(build(parts, false))
		more := rank(p)
		for u, a := range less {
			if more[u] < a {
				t.Fatalf("%q: %s is %v with a part of the changes and %v with all", parts, u, a, more[u])
			}
		}
		if q := Make(build(parts, true)); pretty(p) != pretty(q) {
			t.Fatalf("%q: the order of the changes matters:\n%s\n%s", parts, pretty(p), pretty(q))
		}
	}
	s := machine()
	for i, k := range keys {
		s.unit(fmt.Sprintf("u%d.service", i), k)
	}
	if p := Make(s.in); !p.Empty() || len(p.Steps) > 0 {
		t.Errorf("equal trees give %s", pretty(p))
	}
	t.Logf("%d rounds", rounds)
}

func TestPresets(t *testing.T) {
	add := func(rules ...change.Preset) *scenario {
		s := machine().add("/usr/lib/systemd/system/new.service", "/usr/lib/systemd/system/tpl@.service")
		s.in.New.Units["new.service"] = define("new.service", "[Service]\nExecStart=/n\n[Install]\nWantedBy=graphical.target multi-user.target")
		s.in.New.Units["tpl@.service"] = define("tpl@.service", "[Service]\nExecStart=/n\n[Install]\nWantedBy=multi-user.target\nDefaultInstance=d")
		s.in.New.Presets = rules
		return s
	}
	rule := func(do, pattern string, instances ...string) change.Preset {
		return change.Preset{Do: do, Pattern: pattern, Instances: instances, File: "/usr/lib/systemd/system-preset/50-x.preset"}
	}
	for _, c := range []struct {
		s    *scenario
		want string
	}{
		{add(), "host daemon-reload"},
		{add(rule("enable", "new.service")), "start new.service, host daemon-reload"},
		{add(rule("disable", "n*"), rule("enable", "new.service")), "host daemon-reload"},
		{add(rule("enable", "tpl@.service", "a", "b")), "start tpl@a.service, start tpl@b.service, host daemon-reload"},
		{add(rule("enable", "tpl@.service")), "start tpl@d.service, host daemon-reload"},
		{add(rule("ignore", "*"), rule("enable", "*")), "host daemon-reload"},
	} {
		p := Make(c.s.in)
		if got := summary(p); got != c.want {
			t.Errorf("%+v: %s; want %s", c.s.in.New.Presets, got, c.want)
		}
	}
	s := add(rule("enable", "new.service"))
	s.in.Old.Units["new.service"] = s.in.New.Units["new.service"]
	if got := summary(Make(s.in)); strings.Contains(got, "start") {
		t.Errorf("a unit that was there: %s; want no start", got)
	}
}

// A unit without a fragment does not make each path a unit file, and a file
// that many units read is told in a few words.
func TestUnitFileReasons(t *testing.T) {
	s := machine().replace("/etc/motd")
	s.unit("user-1000.slice", "[Slice]\nTasksMax=9")
	for _, tree := range []*change.Tree{s.in.Old, s.in.New} {
		tree.Units["user-1000.slice"].Fragment = ""
	}
	if got := summary(Make(s.in)); got != "" {
		t.Errorf("%s; want nothing", got)
	}
	const conf = "/usr/lib/systemd/system/service.d/x.conf"
	s = machine().add(conf)
	for i := range 9 {
		name := fmt.Sprintf("a%d.service", i)
		s.unit(name, "[Service]\nExecStart=/a")
		u := s.in.New.Units[name]
		u.DropIns = []string{conf}
		u.Settings = append(u.Settings, change.Setting{Section: "Service", Key: "TimeoutStopSec", Value: "5", File: conf})
	}
	p := Make(s.in)
	if len(p.Units) != 0 || len(p.HostReasons) != 1 || !strings.HasSuffix(p.HostReasons[0].Detail, ", and 6 more units") {
		t.Errorf("%s", pretty(p))
	}
}
