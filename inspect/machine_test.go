package inspect

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/internal/systemd/systemdtest"
)

func TestMachine(t *testing.T) {
	for _, root := range []string{"bookworm", "trixie"} {
		t.Run(root, func(t *testing.T) { systemdtest.Run(t, root, "^TestInside") })
	}
}

func service(t testing.TB, c *systemd.Conn, name, content string) {
	t.Helper()
	path := filepath.Join("/run/systemd/system", name)
	write(t, path, content)
	t.Cleanup(func() {
		c.Do(context.Background(), []systemd.Job{{Kind: systemd.JobStop, Unit: name}})
		_ = os.Remove(path)
		_ = c.Reload(context.Background())
	})
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	job(t, c, systemd.JobStart, name)
}

func job(t testing.TB, c *systemd.Conn, kind systemd.JobKind, name string) {
	t.Helper()
	ends, _ := c.Do(t.Context(), []systemd.Job{{Kind: kind, Unit: name}})
	if ends[0].Err != nil || ends[0].Result != "done" {
		t.Fatalf("%+v", ends[0])
	}
}

// who names who is hit for a path, with the kind and the marks.
func who(hits []change.Hit, path string) []string {
	var out []string
	for _, h := range hits {
		if h.Path != path {
			continue
		}
		s := h.Unit + " " + h.Kind
		if h.Leftover {
			s += " leftover"
		}
		if h.Container {
			s += " container"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestInsideCollect(t *testing.T) {
	systemdtest.NeedInside(t)
	c, err := systemd.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	dir := "/opt/liveupd-test"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cat, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	daemon, other, config := dir+"/daemon", dir+"/other", dir+"/config"
	write(t, daemon, string(cat))
	write(t, other, string(cat))
	write(t, config, "x")

	// cat of a FIFO without a writer waits for ever.
	fifo := dir + "/fifo"
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	hold, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close() })
	run := "[Service]\nType=exec\nExecStart=" + daemon + " " + fifo + "\n"
	service(t, c, "lu-plain.service", run)
	service(t, c, "lu-sandbox.service", run+"PrivateTmp=yes\nProtectSystem=strict\nProtectHome=yes\n")
	service(t, c, "lu-other.service", strings.ReplaceAll(run, daemon, other))
	service(t, c, "lu-bind.service", strings.ReplaceAll(run, daemon, other)+"BindReadOnlyPaths="+config+":/etc/hostname\n")
	service(t, c, "lu-session.service", "[Service]\nType=exec\nKillMode=process\nExecStart=/bin/sh -c '"+daemon+" "+fifo+" & exec sleep infinity'\n")
	service(t, c, "lu-pids.service", "[Service]\nType=exec\nExecStart=/usr/bin/unshare -p -f "+daemon+" "+fifo+"\nKillSignal=SIGKILL\n")
	// Older than the second invocation by more than what is allowed for.
	time.Sleep(1500 * time.Millisecond)
	job(t, c, systemd.JobRestart, "lu-session.service")

	units, err := c.Units(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	delta := &change.Delta{Entries: []change.Entry{replace(t, daemon), replace(t, config)}}
	deadline := time.Now().Add(5 * time.Second)
	var facts *change.Facts
	wantDaemon := []string{
		"lu-pids.service exec container", "lu-plain.service exec", "lu-sandbox.service exec",
		"lu-session.service exec", "lu-session.service exec leftover",
	}
	for {
		start := time.Now()
		if facts, err = Collect(t.Context(), Request{Delta: delta, Units: units}); err != nil {
			t.Fatal(err)
		}
		t.Logf("Collect took %v", time.Since(start))
		// sh and unshare start their children in their own time.
		if len(who(facts.Hits, daemon)) >= len(wantDaemon) || time.Now().After(deadline) {
			break
		}
	}
	if diff := cmp.Diff(wantDaemon, who(facts.Hits, daemon)); diff != "" {
		t.Errorf("hits for the executable (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"lu-bind.service namespace"}, who(facts.Hits, config)); diff != "" {
		t.Errorf("hits for the bound file (-want +got):\n%s", diff)
	}
	if !facts.Running {
		t.Error("Running = false")
	}

	// The same from Stale once the executable is replaced.
	cat[len(cat)/2] ^= 0xff // bytes that are appended alone would be the same program
	write(t, daemon+".new", string(cat))
	rename(t, daemon+".new", daemon)
	res, err := Stale(t.Context(), StaleRequest{Units: units})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantDaemon, who(res.Hits, daemon)); diff != "" {
		t.Errorf("stale (-want +got):\n%s", diff)
	}
	for _, h := range res.Hits {
		if h.Path != daemon {
			t.Errorf("a false alarm: %+v", h)
		}
	}
}

// A real library: the hits are the units whose processes have it in their maps.
func TestInsideCollectLibrary(t *testing.T) {
	systemdtest.NeedInside(t)
	c, err := systemd.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	units, err := c.Units(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob("/usr/lib/*/systemd/libsystemd-shared-*.so")
	if err != nil || len(found) == 0 {
		t.Skip("no libsystemd-shared here")
	}
	lib := found[0]
	want := map[string]bool{}
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range pids {
		maps, _ := os.ReadFile(p + "/maps")
		group, _ := os.ReadFile(p + "/cgroup")
		if strings.Contains(string(maps), lib) {
			if _, after, ok := strings.Cut(string(group), "/system.slice/"); ok {
				want[strings.TrimSpace(after)+" mapped"] = true
			} else if strings.Contains(string(group), "init.scope") {
				want["init.scope mapped"] = true
			}
		}
	}
	facts, err := Collect(t.Context(), Request{Delta: &change.Delta{Entries: []change.Entry{replace(t, lib)}}, Units: units})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) == 0 {
		t.Fatalf("nobody maps %s", lib)
	}
	t.Logf("%s: %v", lib, names)
	if diff := cmp.Diff(names, who(facts.Hits, lib)); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
}
