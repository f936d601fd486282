package engine

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/inspect"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/internal/systemd/systemdtest"
	"github.com/liveupd/liveupd/planner"
)

func TestMachine(t *testing.T) {
	for _, root := range []string{"bookworm", "trixie"} {
		t.Run(root, func(t *testing.T) { systemdtest.Run(t, root, "^TestInside") })
	}
}

func tell(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func put(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// look reads the machine as check does.
func look(t testing.TB) (*bus, *planner.Newer) {
	t.Helper()
	b := openBus(t.Context(), askedOfAll, true)
	t.Cleanup(b.close)
	s, err := openSession(&Engine{}, Request{Verb: "check", Root: "/"}, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	n, err := s.newer(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return b, n
}

// The units of which the manager is asked are all of those of which it would say
// yes: whatever is done to their files.
func TestInsideUnreloaded(t *testing.T) {
	systemdtest.NeedInside(t)
	const etc, run = "/etc/systemd/system/", "/run/systemd/system/"
	body := "[Service]\nExecStart=/bin/sleep infinity\n"
	aside := t.TempDir()
	linked := aside + "/lu-linked.service"
	units := []string{"lu-a", "lu-b", "lu-c", "lu-d", "lu-long-e", "lu-tpl@one", "lu-linked", "lu-source"}
	for _, name := range []string{"lu-a", "lu-b", "lu-c", "lu-long-e", "lu-tpl@"} {
		put(t, etc+name+".service", body)
	}
	put(t, run+"lu-d.service", body)
	put(t, linked, body)
	put(t, etc+"lu-c.service.d/10.conf", "[Unit]\nDescription=x\n")
	put(t, "/etc/lu-source.conf", "x")
	put(t, etc+"lu-source.service", "[Unit]\nSourcePath=/etc/lu-source.conf\n"+body)
	tell(t, "systemctl", "link", linked)
	t.Cleanup(func() {
		files, _ := filepath.Glob(etc + "lu-*")
		more, _ := filepath.Glob(run + "lu-*")
		for _, name := range slices.Concat(files, more, []string{etc + "service.d", etc + "multi-user.target.wants/lu-a.service"}) {
			_ = os.RemoveAll(name)
		}
		for _, name := range units {
			_ = exec.Command("systemctl", "stop", name).Run()
		}
		_ = exec.Command("systemctl", "daemon-reload").Run()
	})
	tell(t, "systemctl", "daemon-reload")
	for _, name := range units {
		tell(t, "systemctl", "start", name)
	}
	old := time.Now().Add(-time.Hour)
	remove := func(name string) func() {
		return func() {
			if err := os.RemoveAll(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	steps := []struct {
		name string
		do   func()
		want []string // of our units; nil: none
	}{
		{"nothing", func() {}, nil},
		{"a fragment is written", func() { put(t, etc+"lu-a.service", body+"Nice=1\n") }, []string{"lu-a.service"}},
		{"a fragment is renamed over", func() {
			put(t, etc+".new", body+"Nice=1\n")
			if err := os.Rename(etc+".new", etc+"lu-b.service"); err != nil {
				t.Fatal(err)
			}
		}, []string{"lu-b.service"}},
		{"a fragment goes", remove(etc + "lu-b.service"), []string{"lu-b.service"}},
		{"a drop-in comes", func() { put(t, etc+"lu-a.service.d/x.conf", "[Service]\nNice=1\n") }, []string{"lu-a.service"}},
		{"a drop-in comes that is old", func() {
			put(t, etc+"lu-a.service.d/x.conf", "[Service]\nNice=1\n")
			if err := os.Chtimes(etc+"lu-a.service.d/x.conf", old, old); err != nil {
				t.Fatal(err)
			}
		}, []string{"lu-a.service"}},
		{"a drop-in is written", func() { put(t, etc+"lu-c.service.d/10.conf", "[Unit]\nDescription=y\n") }, []string{"lu-c.service"}},
		{"a drop-in goes", remove(etc + "lu-c.service.d/10.conf"), []string{"lu-c.service"}},
		{"a folder of drop-ins goes", remove(etc + "lu-c.service.d"), []string{"lu-c.service"}},
		{"a drop-in of a shortened name", func() { put(t, etc+"lu-long-.service.d/x.conf", "[Service]\nNice=1\n") }, []string{"lu-long-e.service"}},
		{"a drop-in of a template", func() { put(t, etc+"lu-tpl@.service.d/x.conf", "[Service]\nNice=1\n") }, []string{"lu-tpl@one.service"}},
		{"a drop-in of the type", func() { put(t, etc+"service.d/x.conf", "[Service]\nNice=1\n") }, []string{
			"lu-a.service", "lu-b.service", "lu-c.service", "lu-d.service", "lu-linked.service", "lu-long-e.service", "lu-source.service", "lu-tpl@one.service",
		}},
		{"a template is written", func() { put(t, etc+"lu-tpl@.service", body+"Nice=2\n") }, []string{"lu-tpl@one.service"}},
		{"what a link leads to is written", func() { put(t, linked, body+"Nice=3\n") }, []string{"lu-linked.service"}},
		{"a source is written", func() { put(t, "/etc/lu-source.conf", "y") }, []string{"lu-source.service"}},
		{"a fragment of /run is written", func() { put(t, run+"lu-d.service", body+"Nice=1\n") }, []string{"lu-d.service"}},
		{"a unit is enabled", func() {
			tell(t, "systemctl", "--no-reload", "add-wants", "multi-user.target", "lu-a.service")
		}, nil},
	}
	for _, st := range steps {
		// What the step before changed is put back, and read.
		for _, name := range []string{"lu-a", "lu-b", "lu-c", "lu-long-e", "lu-tpl@"} {
			put(t, etc+name+".service", body)
		}
		put(t, etc+"lu-c.service.d/10.conf", "[Unit]\nDescription=x\n")
		for _, name := range []string{"lu-a.service.d", "lu-long-.service.d", "lu-tpl@.service.d", "service.d"} {
			remove(etc + name)()
		}
		time.Sleep(50 * time.Millisecond) // the kernel's clock for files is coarse
		tell(t, "systemctl", "daemon-reload")
		time.Sleep(50 * time.Millisecond)
		st.do()
		b, _ := look(t)
		var got, want, asked []string
		for name, u := range b.units {
			if u.NeedDaemonReload {
				got = append(got, name)
			}
			if u.Lacks&change.FieldStaleFiles == 0 {
				asked = append(asked, name)
			}
		}
		a, err := systemd.NewAsker(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		list, err := a.List(t.Context())
		if err == nil {
			err = a.Fill(t.Context(), list, change.FieldStaleFiles)
		}
		a.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range list {
			if u.NeedDaemonReload {
				want = append(want, u.Name)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: units that need a daemon-reload (-manager +found):\n%s", st.name, diff)
		}
		ours := slices.DeleteFunc(slices.Clone(got), func(name string) bool { return !strings.HasPrefix(name, "lu-") })
		if st.name == "a unit is enabled" || b.version < 255 && strings.HasPrefix(st.name, "a drop-in ") {
			// The manager may say so of all units until it is reloaded; an older one
			// does not see what comes into a folder.
			t.Logf("%s: %d of %d units", st.name, len(got), len(list))
		} else if diff := cmp.Diff(st.want, ours); diff != "" {
			t.Errorf("%s (-want +got):\n%s", st.name, diff)
		}
		t.Logf("%s: %d units asked of %d", st.name, len(asked), len(list))
	}
}

// A decision from what it asked for is the one from all that can be known.
func TestInsideCheckAsksEnough(t *testing.T) {
	systemdtest.NeedInside(t)
	const etc = "/etc/systemd/system/"
	cat, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	dir := "/opt/lu-check"
	t.Cleanup(func() {
		for _, name := range []string{"lu-plain", "lu-main", "lu-left", "lu-pids", "lu-reads"} {
			_ = exec.Command("systemctl", "stop", name).Run()
			_ = os.Remove(etc + name + ".service")
		}
		_ = os.RemoveAll(dir)
		_ = exec.Command("systemctl", "daemon-reload").Run()
	})
	put(t, dir+"/daemon", string(cat))
	put(t, dir+"/env", "A=1\n")
	tell(t, "chmod", "755", dir+"/daemon")
	tell(t, "mkfifo", dir+"/fifo")
	hold, err := os.OpenFile(dir+"/fifo", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close() })
	start := dir + "/daemon " + dir + "/fifo"
	put(t, etc+"lu-plain.service", "[Service]\nType=exec\nExecStart="+start+"\n")
	put(t, etc+"lu-main.service", "[Unit]\nRefuseManualStop=no\n[Service]\nType=exec\nExecStart="+start+"\nExecReload=/bin/true\n")
	put(t, etc+"lu-left.service", "[Service]\nType=exec\nKillMode=process\nExecStart=/bin/sh -c '"+start+" & exec sleep infinity'\n")
	put(t, etc+"lu-pids.service", "[Service]\nType=exec\nExecStart=/usr/bin/unshare -p -f "+start+"\nKillSignal=SIGKILL\n")
	put(t, etc+"lu-reads.service", "[Service]\nType=exec\nEnvironmentFile="+dir+"/env\nExecStart=/bin/sleep infinity\n")
	tell(t, "systemctl", "daemon-reload")
	tell(t, "systemctl", "start", "lu-plain", "lu-main", "lu-left", "lu-pids", "lu-reads")
	time.Sleep(1500 * time.Millisecond) // older than the next start by more than what is allowed for
	tell(t, "systemctl", "restart", "lu-left")
	running := func() (n int) {
		links, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && to == dir+"/daemon" {
				n++
			}
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); running() < 5; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d processes run", running())
		}
	}
	other, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir+"/daemon.new", string(other))
	tell(t, "chmod", "755", dir+"/daemon.new")
	tell(t, "mv", dir+"/daemon.new", dir+"/daemon")
	put(t, dir+"/env", "A=2\n")
	put(t, etc+"lu-plain.service", "[Service]\nType=exec\nExecStart="+start+"\nNice=1\n")

	got, err := (&Engine{}).Run(t.Context(), Request{Verb: "check", Root: "/"}, Events{})
	if err != nil {
		t.Fatal(err)
	}
	r := got.(*change.CheckReport)
	want := fully(t)
	for _, r := range []*change.CheckReport{r, want} {
		r.Kernel, r.Microcode, r.Waiting, r.Looked = nil, nil, nil, nil
	}
	if diff := cmp.Diff(asJSON(t, want), asJSON(t, r)); diff != "" {
		t.Errorf("check (-knowing all +asking):\n%s", diff)
	}
	var names []string
	for _, u := range r.Units {
		if strings.HasPrefix(u.Unit, "lu-") {
			names = append(names, u.Unit+" "+u.Action.String())
		}
	}
	if diff := cmp.Diff([]string{"lu-left.service restart", "lu-main.service restart", "lu-pids.service defer", "lu-plain.service restart", "lu-reads.service restart"}, names); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
	if !slices.ContainsFunc(r.Sessions, func(h change.Hit) bool { return h.Unit == "lu-left.service" && h.Leftover }) {
		t.Errorf("no leftover among %+v", r.Sessions)
	}
}

// fully decides from all states at once, as GetAll gives them.
func fully(t testing.TB) *change.CheckReport {
	t.Helper()
	c, err := systemd.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	units, err := c.Units(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, n := look(t)
	if _, lacks := planner.Find(planner.Found{Units: b.units, Newer: n, Waiting: []change.UnitPlan{
		{Unit: "lu-plain.service", Reasons: []change.Reason{{Kind: "exec", Path: "/x"}}},
	}}); len(lacks) == 0 {
		t.Error("a decision that was told the states alone lacks nothing")
	}
	res, err := inspect.Stale(context.Background(), inspect.StaleRequest{Units: units, Users: b.users, Own: ownUnits()})
	if err != nil {
		t.Fatal(err)
	}
	r, lacks := planner.Find(planner.Found{
		Hits: res.Hits, Units: units, Examined: res.Examined, Warnings: res.Warnings, Newer: n, Users: b.users, Policy: change.Policy{Max: change.ActionReboot},
	})
	if len(lacks) > 0 {
		t.Errorf("all is known, and it lacks %v", lacks)
	}
	for name, u := range units {
		if u.NeedDaemonReload && name == u.Name {
			r.HostAction = max(r.HostAction, change.ActionDaemonReload)
			r.HostReasons = append(r.HostReasons, change.Reason{Kind: "unit-files", Unit: name, Path: u.FragmentPath, Detail: "changed since systemd read it"})
		}
	}
	slices.SortFunc(r.HostReasons, func(a, b change.Reason) int { return strings.Compare(a.Kind+a.Unit, b.Kind+b.Unit) })
	return r
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
