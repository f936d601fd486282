package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

func unit(name, active, sub string, restarts uint32) *change.UnitState {
	return &change.UnitState{Name: name, ActiveState: active, SubState: sub, NRestarts: restarts, InvocationID: "1"}
}

func look(units ...*change.UnitState) *Look {
	l := &Look{MonoUSec: 1000e6, Units: map[string]*change.UnitState{}}
	for _, u := range units {
		l.Units[u.Name] = u
	}
	return l
}

// told renders findings shortly.
func told(list []change.HealthCheck) []string {
	var out []string
	for _, c := range list {
		out = append(out, strings.TrimSpace(c.Unit+" "+c.What+" "+c.Result))
	}
	return out
}

func TestFailed(t *testing.T) {
	ours := Touched{"ours.service": {Started: true}}
	for _, tt := range []struct {
		name          string
		before, after *change.UnitState
		want          string
	}{
		{"ours", unit("ours.service", "active", "running", 0), unit("ours.service", "failed", "failed", 0), "failed"},
		{"ours, which did not run", unit("ours.service", "inactive", "dead", 0), unit("ours.service", "failed", "failed", 0), "failed"},
		{"another that ran", unit("x.service", "active", "running", 0), unit("x.service", "failed", "failed", 0), "failed"},
		{"a mount", unit("x.mount", "active", "mounted", 0), unit("x.mount", "failed", "failed", 0), "failed"},
		{"a job of a timer", unit("x.service", "inactive", "dead", 0), unit("x.service", "failed", "failed", 0), "noted"},
		{"a job that ran just then", unit("x.service", "activating", "start", 0), unit("x.service", "failed", "failed", 0), "noted"},
		{"a finished job", unit("x.service", "active", "exited", 0), unit("x.service", "failed", "failed", 0), "noted"},
		{"new", unit("y.service", "active", "running", 0), unit("x.service", "failed", "failed", 0), "noted"},
		{"it had failed", unit("x.service", "failed", "failed", 0), unit("x.service", "failed", "failed", 0), ""},
		{"it is well", unit("x.service", "active", "running", 0), unit("x.service", "active", "running", 0), ""},
		{"a session", unit("session-1.scope", "active", "running", 0), unit("session-1.scope", "failed", "failed", 0), ""},
		{"liveupd's own", unit("liveupd-x.service", "active", "running", 0), unit("liveupd-x.service", "failed", "failed", 0), ""},
		{"one that does not count", unit("odd.service", "active", "running", 0), unit("odd.service", "failed", "failed", 0), ""},
	} {
		got := Failed(look(tt.before), look(tt.after), ours, []string{"odd*"})
		if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || got[0].Result != tt.want) {
			t.Errorf("%s: Failed() = %v; want %q", tt.name, got, tt.want)
		}
	}
}

func TestRestarts(t *testing.T) {
	ours := Touched{"ours.service": {Started: true}, "kept.service": {}}
	again := func(u *change.UnitState) *change.UnitState { u.InvocationID = "2"; return u }
	lately := func(u *change.UnitState) *change.UnitState { u.InvokedMonoUSec = 990e6; return u }
	for _, tt := range []struct {
		name          string
		before, after *change.UnitState
		want          string
	}{
		{"restarted by us", unit("ours.service", "active", "running", 3), again(unit("ours.service", "active", "running", 0)), ""},
		{"once since", unit("ours.service", "active", "running", 3), again(unit("ours.service", "active", "running", 1)), "failed"},
		{"it waits", unit("ours.service", "active", "running", 0), again(unit("ours.service", "activating", "auto-restart", 0)), "failed"},
		{"ours, not restarted after all", unit("ours.service", "inactive", "dead", 4), unit("ours.service", "inactive", "dead", 4), ""},
		{"reloaded, and well", unit("kept.service", "active", "running", 4), unit("kept.service", "active", "running", 4), ""},
		{"reloaded, and ended", unit("kept.service", "active", "running", 4), again(unit("kept.service", "active", "running", 5)), "failed"},
		{"another, once", unit("x.service", "active", "running", 0), again(unit("x.service", "active", "running", 1)), ""},
		{"another, twice", unit("x.service", "active", "running", 0), again(unit("x.service", "active", "running", 2)), "failed"},
		{"another that always did", lately(unit("x.service", "active", "running", 9)), again(unit("x.service", "active", "running", 11)), "noted"},
		{"ours that always did", lately(unit("ours.service", "active", "running", 9)), again(unit("ours.service", "active", "running", 1)), "noted"},
	} {
		got := Restarts(look(tt.before), look(tt.after), ours, nil)
		if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || got[0].Result != tt.want) {
			t.Errorf("%s: Restarts() = %v; want %q", tt.name, got, tt.want)
		}
	}
}

func tcp(addr string, port int, units ...string) change.Listener {
	return change.Listener{Proto: "tcp", Addr: addr, Port: port, Units: units}
}

func udp(port int, units ...string) change.Listener {
	return change.Listener{Proto: "udp", Addr: "0.0.0.0", Port: port, Units: units}
}

func unixAt(p string, units ...string) change.Listener {
	return change.Listener{Proto: "unix", Addr: p, Units: units}
}

func TestVanished(t *testing.T) {
	touched := Touched{"a.service": {}, "conf.service": {Configured: true}}
	only := tcp("::", 80)
	only.V6Only = true
	for _, tt := range []struct {
		name          string
		before, after []change.Listener
		want          []string
	}{
		{"there", []change.Listener{tcp("0.0.0.0", 80, "a.service")}, []change.Listener{tcp("0.0.0.0", 80, "a.service")}, nil},
		{"gone", []change.Listener{tcp("0.0.0.0", 80, "a.service")}, nil, []string{"a.service tcp 0.0.0.0:80 failed"}},
		{"another's", []change.Listener{tcp("0.0.0.0", 80, "b.service")}, nil, nil},
		{"nobody's", []change.Listener{tcp("0.0.0.0", 80)}, nil, nil},
		{"taken over", []change.Listener{tcp("0.0.0.0", 80, "a.service")}, []change.Listener{tcp("0.0.0.0", 80)}, nil},
		{"on another port", []change.Listener{tcp("0.0.0.0", 80, "a.service")}, []change.Listener{tcp("0.0.0.0", 81, "a.service")}, []string{"a.service tcp 0.0.0.0:80 failed"}},
		{"on loopback only", []change.Listener{tcp("0.0.0.0", 80, "a.service")}, []change.Listener{tcp("127.0.0.1", 80, "a.service")}, []string{"a.service tcp 0.0.0.0:80 failed"}},
		{"on all addresses", []change.Listener{tcp("10.0.0.2", 80, "a.service")}, []change.Listener{tcp("0.0.0.0", 80, "a.service")}, nil},
		{"on both families", []change.Listener{tcp("0.0.0.0", 80, "a.service")}, []change.Listener{tcp("::", 80, "a.service")}, nil},
		{"on IPv6 only", []change.Listener{tcp("0.0.0.0", 80, "a.service")}, []change.Listener{only}, []string{"a.service tcp 0.0.0.0:80 failed"}},
		{"on IPv4 only", []change.Listener{tcp("::", 80, "a.service")}, []change.Listener{tcp("0.0.0.0", 80, "a.service")}, []string{"a.service tcp [::]:80 failed"}},
		{"two of one address", []change.Listener{tcp("0.0.0.0", 80, "a.service"), tcp("0.0.0.0", 80, "a.service")}, nil, []string{"a.service tcp 0.0.0.0:80 failed"}},
		{"configured otherwise", []change.Listener{tcp("0.0.0.0", 80, "conf.service")}, nil, []string{"conf.service tcp 0.0.0.0:80 noted"}},
		{"a port by chance", []change.Listener{tcp("0.0.0.0", 40001, "a.service")}, []change.Listener{tcp("0.0.0.0", 40002, "a.service")}, []string{"a.service tcp 0.0.0.0:40001 noted"}},
		{"a high port that is gone", []change.Listener{tcp("0.0.0.0", 50051, "a.service")}, nil, []string{"a.service tcp 0.0.0.0:50051 failed"}},
		{"a reserved port by chance", []change.Listener{udp(712, "a.service")}, []change.Listener{udp(811, "a.service")}, []string{"a.service udp 0.0.0.0:712 noted"}},
		{"a question", []change.Listener{udp(45678, "a.service")}, nil, nil},
		{"a DHCP client", []change.Listener{udp(68, "a.service")}, nil, nil},
		{"a name server", []change.Listener{udp(53, "a.service")}, nil, []string{"a.service udp 0.0.0.0:53 failed"}},
		{"a path", []change.Listener{unixAt("/run/a/socket", "a.service")}, nil, []string{"a.service unix /run/a/socket failed"}},
		{"another path", []change.Listener{unixAt("/run/a/socket", "a.service")}, []change.Listener{unixAt("/run/a/other", "a.service")}, []string{"a.service unix /run/a/socket failed"}},
		{"a path with a number", []change.Listener{unixAt("/tmp/a.1234.sock", "a.service")}, []change.Listener{unixAt("/tmp/a.99.sock", "a.service")}, []string{"a.service unix /tmp/a.1234.sock noted"}},
	} {
		if diff := cmp.Diff(tt.want, told(Vanished(tt.before, tt.after, touched, nil))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestWatch(t *testing.T) {
	ours := Touched{"ours.service": {Started: true}}
	well := func() *Look {
		l := look(unit("ours.service", "active", "running", 0))
		l.Listeners = []change.Listener{tcp("0.0.0.0", 80, "ours.service")}
		return l
	}
	for _, tt := range []struct {
		name string
		at   func(l *Look, over time.Duration) error
		bad  string
		took time.Duration // at least
		most time.Duration
	}{
		{"well", func(*Look, time.Duration) error { return nil }, "", 5 * time.Second, 6 * time.Second},
		{"a crash after three seconds", func(l *Look, over time.Duration) error {
			if over >= 3*time.Second {
				l.Units["ours.service"].NRestarts, l.Units["ours.service"].InvocationID = 1, "2"
			}
			return nil
		}, "it ended and systemd started it again", 3 * time.Second, 4 * time.Second},
		{"a socket that is late", func(l *Look, over time.Duration) error {
			if over < 12*time.Second {
				l.Listeners = nil
			}
			return nil
		}, "", 12 * time.Second, 13 * time.Second},
		{
			"a socket that does not come", func(l *Look, _ time.Duration) error { l.Listeners = nil; return nil },
			"nothing listens", 30 * time.Second, 31 * time.Second,
		},
		{"systemd does not answer for a moment", func(_ *Look, over time.Duration) error {
			if over < time.Second {
				return errors.New("no answer")
			}
			return nil
		}, "", 5 * time.Second, 6 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				read := func(context.Context) (*Look, error) {
					l := well()
					return l, tt.at(l, time.Since(began))
				}
				got := Watch(t.Context(), read, well(), ours, Options{Settle: 5 * time.Second, Listen: 30 * time.Second})
				if bad := Bad(got); tt.bad == "" && bad != "" || !strings.Contains(bad, tt.bad) {
					t.Errorf("Watch() finds %q; want %q", bad, tt.bad)
				}
				if took := time.Since(began); took < tt.took || took > tt.most {
					t.Errorf("it took %s", took)
				}
				if len(got) < 3 {
					t.Errorf("only %v is told", got)
				}
			})
		})
	}
}

func TestOwn(t *testing.T) {
	proc, groups := t.TempDir(), t.TempDir()
	fd := func(pid, n int, to string) {
		dir := filepath.Join(proc, fmt.Sprint(pid), "fd")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	fd(10, 3, "socket:[77]")
	fd(10, 4, "/dev/null")
	fd(11, 3, "socket:[78]")
	fd(12, 3, "socket:[77]")
	for group, pids := range map[string]string{"a.service": "10\n", "a.service/below": "11\n", "b.service": "12\n13\n"} {
		if err := os.MkdirAll(filepath.Join(groups, group), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(groups, group, "cgroup.procs"), []byte(pids), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list := []change.Listener{{Inode: 77}, {Inode: 78}, {Inode: 79}}
	Own(list, proc, groups, map[string]string{"a.service": "/a.service", "b.service": "/b.service", "c.service": "/c.service"})
	want := [][]string{{"a.service", "b.service"}, {"a.service"}, nil}
	for i, l := range list {
		if diff := cmp.Diff(want[i], l.Units); diff != "" {
			t.Errorf("the units of %d (-want +got):\n%s", l.Inode, diff)
		}
	}
}
