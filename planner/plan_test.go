package planner

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/change/directive"
)

var update = flag.Bool("update", false, "write the golden plans anew")

func pretty(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(b) + "\n"
}

// Whole plans: reasons, words, steps.
func TestGoldenPlans(t *testing.T) {
	mixed := machine().replace(libssl, "/etc/nginx/nginx.conf", "/usr/share/doc/x")
	mixed.in.Delta.Identical, mixed.in.Delta.Bytes = 120, 1234567
	mixed.in.Delta.Warnings = []string{"/etc/motd: kept, the machine changed it"}
	mixed.unit("nginx.service", nginxUnit, change.Use{Path: "/usr/sbin/nginx", Kind: "exec"})
	mixed.unit("api.service", "Requires=db.service\n[Service]\nExecStart=/opt/api")
	mixed.unit("db.service", "[Service]\nExecStart=/opt/db").RequiredBy = []string{"api.service"}
	mixed.unit("cron.service", "[Service]\nExecStart=/usr/sbin/cron")
	mixed.unit("gone.service", "[Service]\nExecStart=/opt/gone")
	mixed.redefine("cron.service", "Description=Jobs\n[Service]\nExecStart=/usr/sbin/cron").remove("gone.service")
	for pid := 20; pid < 24; pid++ {
		mixed.maps("nginx.service", pid, "nginx", libssl)
	}
	mixed.maps("db.service", 30, "db", libssl).maps("session-1.scope", 40, "ssh", libssl)

	tree := machine().tree().replace("/usr/bin/a", libssl)
	tree.unit("a.service", "[Service]\nExecStart=/usr/bin/a\nUser=a",
		change.Use{Path: "/usr/bin/a", Kind: "exec", Via: fragment("a.service")},
		change.Use{Path: "/usr/lib/libcurl.so.4", Kind: "soname", Via: "/usr/bin/a"},
		change.Use{Path: libssl, Kind: "soname", Via: "/usr/lib/libcurl.so.4"})
	tree.redefine("a.service", "[Service]\nExecStart=/usr/bin/a\nUser=b")

	for name, s := range map[string]*scenario{"mixed": mixed, "tree": tree} {
		t.Run(name, func(t *testing.T) {
			got := pretty(Make(s.in))
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("plan differs from %s (-want +got), run with -update if that is right:\n%s", file, diff)
			}
		})
	}
}

func TestSteps(t *testing.T) {
	for _, c := range []struct {
		name string
		in   func() *scenario
		want string
	}{
		{"checks, stops, commit, manager, jobs, verify, host", func() *scenario {
			s := machine().replace("/etc/nginx/nginx.conf", libssl).add("/usr/lib/systemd/system/n.service", "/boot/vmlinuz-9")
			s.unit("nginx.service", nginxUnit)
			s.unit("gone.service", "[Service]\nExecStart=/a")
			s.unit("b.service", "")
			s.unit("a.service", "")
			s.in.New.Units["n.service"] = define("n.service", "[Service]\nExecStart=/n")
			s.in.New.Reached["n.service"] = "multi-user.target"
			s.in.Facts.Own = []string{"a.service"}
			return s.remove("gone.service").maps("a.service", 4, "a", libssl).maps("b.service", 5, "b", libssl)
		}, "check /usr/sbin/nginx -t -q; stop gone.service; commit 5 paths; daemon-reload systemd; reload nginx.service; " +
			"restart b.service; restart a.service; start n.service; verify /"},
		{"a re-execution reads the unit files too", func() *scenario {
			s := machine().replace(libc)
			s.unit("a.service", "Description=a")
			return s.redefine("a.service", "Description=b").maps("init.scope", 1, "systemd", libc)
		}, "commit 2 paths; daemon-reexec systemd; verify /"},
		{"without leave to re-execute the unit files are still read", func() *scenario {
			s := machine().replace(libc)
			s.in.Policy.Max = change.ActionRestart
			s.unit("a.service", "Description=a")
			return s.redefine("a.service", "Description=b").maps("init.scope", 1, "systemd", libc)
		}, "commit 2 paths; daemon-reload systemd; verify /"},
		{"what systemd restarts along has no job", func() *scenario {
			s := machine().replace(libssl)
			s.unit("a.service", "").RequiredBy = []string{"b.service"}
			s.unit("b.service", "Requires=a.service")
			return s.maps("a.service", 4, "a", libssl)
		}, "commit 1 path; restart a.service; verify /"},
		{"stop with the old definition, start with the new, dependants as well", func() *scenario {
			s := machine()
			s.unit("a.service", "X-StopIfChanged=yes\n[Service]\nExecStart=/a").RequiredBy = []string{"b.service"}
			s.unit("b.service", "Requires=a.service")
			return s.redefine("a.service", "X-StopIfChanged=yes\n[Service]\nExecStart=/b")
		}, "stop a.service; commit 1 path; daemon-reload systemd; start a.service; start b.service; verify /"},
		{"nothing permitted: the commit alone", func() *scenario {
			s := machine().replace(libssl)
			s.in.Policy.Max = change.ActionNone
			s.unit("a.service", "[Service]\nExecStart=/a")
			return s.redefine("a.service", "[Service]\nExecStart=/b").maps("a.service", 4, "a", libssl)
		}, "commit 2 paths; verify /"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Make(c.in().in)
			if diff := cmp.Diff(c.want, steps(p)); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

// Equal trees and nothing changed: nothing to do, whatever runs.
func TestNothingChangesNothing(t *testing.T) {
	for _, c := range cases {
		s := c.in()
		s.in.Delta = &change.Delta{Identical: 7}
		s.in.New = s.in.Old
		s.in.Facts.Hits = nil
		if p := Make(s.in); !p.Empty() || len(p.Steps) != 0 {
			t.Errorf("%s: plan without a change: %s; steps %s", c.name, summary(p), steps(p))
		}
	}
}

// The order in which anything is listed is no part of the input.
func TestOrderOfInputs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range cases {
		want := pretty(Make(c.in().in))
		for range 5 {
			s := c.in()
			shuffle(rng, s.in.Delta.Entries)
			shuffle(rng, s.in.Facts.Hits)
			for _, tree := range []*change.Tree{s.in.Old, s.in.New} {
				for _, u := range tree.Units {
					shuffle(rng, u.Uses)
				}
			}
			for _, st := range s.in.Facts.Units {
				shuffle(rng, st.RequiredBy)
				shuffle(rng, st.Names)
				shuffle(rng, st.PropagatesReloadTo)
			}
			if diff := cmp.Diff(want, pretty(Make(s.in))); diff != "" {
				t.Fatalf("%s: the plan depends on the order of its inputs:\n%s", c.name, diff)
			}
		}
	}
}

func shuffle[T any](rng *rand.Rand, s []T) {
	rng.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
}

// height orders what can happen to a unit by how much it is touched, a
// deferral standing for the need that it postpones.
func height(a change.Action) int {
	return slices.Index([]change.Action{
		change.ActionNone, change.ActionReload, change.ActionStart, change.ActionRestart, change.ActionDefer, change.ActionStop,
	}, a)
}

// A further change never lowers what happens to a unit or to the host.
func TestFurtherChangeNeverLowers(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	services := []string{"a.service", "b.service", "nginx.service", "dbus.service", "docker.service", "user@0.service", "one.service"}
	build := func(picks []int) *change.Plan {
		s := machine()
		s.unit("a.service", "")
		s.unit("b.service", "Requires=a.service\nX-Liveupd-Watch=/etc/b", change.Use{Path: "/opt/3", Kind: "script"})
		s.in.Facts.Units["a.service"].RequiredBy = []string{"b.service"}
		s.unit("nginx.service", nginxUnit)
		s.unit("dbus.service", nginxUnit)
		s.unit("docker.service", "")
		s.unit("user@0.service", nginxUnit)
		s.unit("one.service", "[Service]\nType=oneshot").SubState = "exited"
		for _, n := range picks {
			switch {
			case n < 70: // a process of a service maps a file that goes
				p := fmt.Sprintf("/opt/%d", n/7)
				s.replace(p).maps(services[n%7], 100+n, "x", p)
			case n < 74:
				s.replace([]string{"/etc/nginx/a", "/etc/b", "/etc/dbus-1/system.conf", "/boot/vmlinuz-1"}[n-70])
			case n < 77:
				s.maps("init.scope", 1, "systemd", libc).replace(libc)
			default:
				s.redefine("a.service", "[Service]\nNice=1")
			}
		}
		return Make(s.in)
	}
	for range 300 {
		all := rng.Perm(80)[:1+rng.IntN(8)]
		fewer, more := build(all[:len(all)-1]), build(all)
		after := map[string]change.Action{}
		for _, u := range more.Units {
			after[u.Unit] = u.Action
		}
		for _, u := range fewer.Units {
			if height(after[u.Unit]) < height(u.Action) {
				// The bus is reloaded where that settles part of its need; the rest stays with the host.
				if u.Unit == "dbus.service" && more.HostAction >= change.ActionSoftReboot {
					continue
				}
				t.Fatalf("changes %v: %s went from %s to %s with one more", all, u.Unit, u.Action, after[u.Unit])
			}
		}
		if more.HostAction < fewer.HostAction {
			t.Fatalf("changes %v: the host went from %s to %s with one more", all, fewer.HostAction, more.HostAction)
		}
	}
}

func TestIDStandsForWhatIsDone(t *testing.T) {
	build := func(pid int, comm string, hour uint64, max change.Action, ctime string) string {
		s := machine().replace(libssl)
		s.in.Delta.Entries[0].New = file("new")
		s.in.Delta.Entries[0].New.CtimeNS = int64(ctime[0])
		s.in.Policy.Max = max
		s.unit("a.service", "").LastStartUSec = hour
		s.maps("a.service", pid, comm, libssl)
		s.maps("session-1.scope", pid+1, comm, libssl)
		return Make(s.in).ID
	}
	id := build(10, "a", 1, change.ActionReboot, "x")
	if len(id) != 16 {
		t.Errorf("ID %q: want 16 digits", id)
	}
	if got := build(99, "worker", 7, change.ActionReboot, "x"); got != id {
		t.Errorf("the ID depends on processes and times: %s, then %s", id, got)
	}
	if got := build(10, "a", 1, change.ActionReboot, "y"); got == id {
		t.Error("a source that was written to has the same ID")
	}
	if got := build(10, "a", 1, change.ActionReload, "x"); got == id {
		t.Error("other actions have the same ID")
	}
}

// An index that has learned a digest since must not make another plan of it.
func TestIDWithoutDigests(t *testing.T) {
	build := func(forget func(*change.Entry)) string {
		s := machine().replace(libssl)
		forget(&s.in.Delta.Entries[0])
		return Make(s.in).ID
	}
	known := build(func(*change.Entry) {})
	for _, forget := range []func(*change.Entry){
		func(e *change.Entry) { e.Old.Digest = change.Digest{} },
		func(e *change.Entry) { e.New.Digest = change.Digest{} },
	} {
		if got := build(forget); got != known {
			t.Errorf("with a digest less the ID is %s; want %s", got, known)
		}
	}
}

func TestReasonsOfManyProcessesAreOne(t *testing.T) {
	s := machine().replace(libssl)
	s.unit("a.service", "")
	for pid := 12; pid >= 10; pid-- {
		s.maps("a.service", pid, "a", libssl)
	}
	want := []change.Reason{{
		Kind: "mapped", Path: libssl, PID: 10, Comm: "a", Detail: "and 2 more of its processes",
		Via: []change.Link{{Kind: "mapped", PID: 10, Comm: "a"}, {Kind: "process", Unit: "a.service"}},
	}}
	if diff := cmp.Diff(want, Make(s.in).Units[0].Reasons); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
}

func TestSessionsAreTold(t *testing.T) {
	s := machine().replace(libssl)
	s.maps("session-1.scope", 4, "ssh", libssl).maps("session-1.scope", 5, "bash", libssl)
	want := []string{"session-1.scope: processes of a session keep what they have loaded until they end (bash, ssh)"}
	if diff := cmp.Diff(want, Make(s.in).Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// An update of liveupd itself: what runs it is not restarted by it, nor is a unit of it
// that is new begun under it; another service of that program is restarted.
func TestOwnRuns(t *testing.T) {
	const program = "/usr/bin/liveupd"
	s := machine().replace(program)
	for _, n := range []string{"liveupd-apply-1.service", "liveupd.service", "watcher.service"} {
		s.unit(n, "")
		s.hit(change.Hit{Kind: "exec", Path: program, PID: 10 + len(n), Comm: "liveupd", Unit: n})
	}
	for _, u := range Make(s.in).Units {
		if u.Unit != "watcher.service" {
			t.Errorf("%s: %s", u.Unit, u.Action)
		}
	}
	if got := len(Make(s.in).Units); got != 1 {
		t.Errorf("%d units are acted on; want watcher.service", got)
	}
}

func TestUnaffected(t *testing.T) {
	s := machine().replace(libssl)
	for _, n := range []string{"a.service", "b.service", "c.service"} {
		s.unit(n, "")
	}
	s.unit("d.service", "").SubState = "exited"
	s.unit("e.timer", "")
	if got := Make(s.maps("a.service", 4, "a", libssl).in).Unaffected; got != 2 {
		t.Errorf("Unaffected = %d; want 2", got)
	}
}

func TestPathsAreLeftOutPastTheLimit(t *testing.T) {
	s := machine()
	for i := range change.PathsLimit + 1 {
		s.add(fmt.Sprintf("/usr/share/x/%d", i))
	}
	p := Make(s.in)
	if p.Paths != nil || p.Changes.Added != change.PathsLimit+1 {
		t.Errorf("%d paths listed, %d counted; want none, %d", len(p.Paths), p.Changes.Added, change.PathsLimit+1)
	}
}

func TestNilInputIsAnEmptyPlan(t *testing.T) {
	p := Make(change.Input{})
	if !p.Empty() || !p.Static {
		t.Errorf("Make(nothing) = %s", pretty(p))
	}
	wellFormed(t, p)
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		unit, section, key string
		want               directive.Class
	}{
		{"service", "Unit", "After", directive.Manager},
		{"service", "Unit", "ConditionPathExists", directive.Manager},
		{"service", "Unit", "JoinsNamespaceOf", directive.Exec},
		{"service", "Service", "ExecStart", directive.Exec},
		{"service", "Service", "ExecStop", directive.Manager},
		{"service", "Service", "KillMode", directive.Manager},
		{"service", "Service", "IPAddressDeny", directive.Cgroup},
		{"service", "Service", "Slice", directive.Exec},
		{"service", "Service", "NoSuchThing", directive.Exec},
		{"service", "X-Foo", "Bar", directive.Inert},
		{"socket", "Socket", "ListenStream", directive.Listen},
		{"socket", "Socket", "MaxConnections", directive.Manager},
		{"socket", "Socket", "Environment", directive.Manager},
		{"socket", "Socket", "MemoryMax", directive.Cgroup},
		{"mount", "Mount", "Options", directive.Remount},
		{"mount", "Mount", "What", directive.Mount},
		{"mount", "Mount", "LazyUnmount", directive.Manager},
		{"swap", "Swap", "Priority", directive.Swap},
		{"timer", "Timer", "OnCalendar", directive.Manager},
		{"slice", "Slice", "CPUWeight", directive.Cgroup},
	} {
		if got := directive.ClassOf(c.unit, c.section, c.key); got != c.want {
			t.Errorf("ClassOf(%q, %q, %q) = %d; want %d", c.unit, c.section, c.key, got, c.want)
		}
	}
}

// Every path of the tables is one that the matcher understands.
func TestTablesMatch(t *testing.T) {
	for pattern, name := range map[string]string{
		"/etc/nginx/**":           "/etc/nginx/conf.d/a.conf",
		"/usr/lib/modules/*/**":   "/usr/lib/modules/6.1/kernel/a.ko",
		"/etc/sudoers.d/*":        "/etc/sudoers.d/x",
		"/etc/php/8.2/fpm/**":     "/etc/php/8.2/fpm/pool.d/www.conf",
		"/boot/vmlinuz*":          "/boot/vmlinuz-6.1",
		"/etc/dhcp/dhclient-*/**": "/etc/dhcp/dhclient-exit-hooks.d/x",
	} {
		if !match(pattern, name) {
			t.Errorf("match(%q, %q) = false", pattern, name)
		}
	}
	for pattern, name := range map[string]string{
		"/etc/nginx/**":         "/etc/nginxx/a",
		"/usr/lib/modules/*/**": "/usr/lib/modules/x",
		"/etc/sudoers.d/*":      "/etc/sudoers.d/a/b",
	} {
		if match(pattern, name) {
			t.Errorf("match(%q, %q) = true", pattern, name)
		}
	}
}

func TestCheck(t *testing.T) {
	units := map[string]*change.UnitState{}
	for _, n := range []string{"a.service", "dbus.service", "user@0.service", "getty@tty1.service"} {
		units[n] = &change.UnitState{Name: n, Names: []string{n}, ActiveState: "active", SubState: "running", Type: "simple"}
	}
	hits := []change.Hit{
		{Unit: "session-2.scope", PID: 9, Comm: "bash", Kind: "mapped", Path: libc},
		{Unit: "a.service", PID: 3, Comm: "a", Kind: "mapped", Path: libc},
		{Unit: "a.service", PID: 2, Comm: "a", Kind: "mapped", Path: libc, Leftover: true},
		{Unit: "dbus.service", PID: 4, Comm: "dbus-daemon", Kind: "mapped", Path: libc},
		{Unit: "init.scope", PID: 1, Comm: "systemd", Kind: "mapped", Path: libc},
		{Unit: "user@0.service", UserUnit: "x.service", PID: 6, Comm: "x", Kind: "mapped", Path: libc},
		{Unit: "getty@tty1.service", PID: 7, Comm: "agetty", Kind: "mapped", Path: libc},
	}
	r := Check(Found{Hits: hits, Units: units, Examined: 70, Warnings: []string{"w"}, Policy: change.Policy{Max: change.ActionReboot}})
	var got []string
	for _, u := range r.Units {
		got = append(got, u.Action.String()+" "+strings.TrimPrefix(u.Manager+"/"+u.Unit, "/"))
	}
	want := []string{"restart a.service", "defer dbus.service", "restart getty@tty1.service", "defer user@0.service/x.service"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
	if r.HostAction != change.ActionSoftReboot || len(r.HostReasons) != 2 || r.Examined != 70 || len(r.Sessions) != 2 || len(r.Warnings) != 1 {
		t.Errorf("Check() = %s", pretty(r))
	}

	p := RestartPlan(r, change.ActionReboot)
	if want := "daemon-reexec systemd; restart a.service; restart getty@tty1.service; verify /"; steps(p) != want {
		t.Errorf("RestartPlan steps = %s; want %s", steps(p), want)
	}
	wellFormed(t, p)
	if p := RestartPlan(r, change.ActionReload); steps(p) != "" {
		t.Errorf("RestartPlan up to reload has steps %s; want none", steps(p))
	}
	if p := RestartPlan(Check(Found{Policy: change.Policy{Max: change.ActionReboot}}), change.ActionReboot); !p.Empty() {
		t.Errorf("RestartPlan of nothing = %s", pretty(p))
	}
}
