package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// Stopped in any phase, a run is killed and settled: the old tree or the new one, the
// services running, the machine reached.
func testStopped(t *testing.T, m *machine.Machine) {
	slow := map[string]string{
		"usr/lib/app/mode.py": "crash = 0\nport = 8077\n# new\n",
		"usr/lib/systemd/system/envapp.service": strings.Replace(string(must(os.ReadFile(m.Path("/usr/lib/systemd/system/envapp.service")))),
			"[Service]\n", "[Service]\nEnvironment=NEW=1\nExecStartPre=/usr/bin/sleep 2\nX-Liveupd-Check=/usr/bin/sleep 2\n", 1),
	}
	many := map[string]string{"usr/lib/app/mode.py": "crash = 0\nport = 8077\n# many\n"}
	if long() {
		for i := range 4000 {
			many[fmt.Sprintf("usr/share/many/%d", i)] = "new\n"
		}
	}
	cut := map[string]string{bridgeConf: files[bridgeConf] + "UPLINK=no\n"}
	exists := func(r *running, name string) bool {
		_, err := os.Stat(filepath.Join(r.transaction(), name))
		return r.transaction() != "" && err == nil
	}
	sleeps := func(m *machine.Machine) bool { return len(m.Find("sleep")) > 1 } // bystander is one
	tests := []struct {
		name    string
		short   bool
		changed map[string]string
		when    func(r *running) bool
		tree    string
	}{
		{"staging", false, slow, func(r *running) bool { return exists(r, "up/usr/lib") }, "old"},
		{"checking", false, slow, func(*running) bool { return sleeps(m) }, "old"},
		{"before the commit", false, slow, func(r *running) bool { return exists(r, "journal") }, ""},
		{"committing", false, many, func(r *running) bool { return r.state() == "committing" }, ""},
		{"restarting", false, slow, func(r *running) bool { return r.state() == "restarting" && sleeps(m) }, "new"},
		{"verifying", false, slow, func(r *running) bool {
			return r.state() == "restarting" && strings.Contains(r.stdout.String(), `"phase":"verifying"`)
		}, "new"},
		{"cut off", true, cut, func(r *running) bool { return r.state() == "restarting" && !reached(m, "10.77.0.2") }, "old"},
	}
	for _, tt := range tests {
		if !tt.short && !long() {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			before := treeOf(t, m)
			dir := update(t, m, tt.changed)
			r := start(t, m, "apply", "--yes", "--json", "--source", "tree:"+dir, "--allow-unsigned")
			workers := r.workers()
			r.await(tt.name, func() bool { return tt.when(r) })
			stop(t, workers)
			state := r.state()
			began := time.Now()
			got := r.wait()
			t.Logf("stopped in %q; settled after %s with exit code %d: %s", state, time.Since(began).Round(time.Second), got.Code, got.Stderr)
			isNew := len(before.Diff(treeOf(t, m))) > 0
			if tt.tree != "" && isNew != (tt.tree == "new") {
				t.Errorf("the tree is new: %v; want the %s one", isNew, tt.tree)
			}
			want := 1
			switch {
			case isNew:
				want = 0
			case tt.name == "cut off":
				want = 3
			}
			if got.Code != want {
				t.Errorf("exit code %d; want %d", got.Code, want)
			}
			unharmed(t, m)
			if !reached(m, "10.77.0.2") || !reached(m, "10.78.0.2") {
				t.Errorf("the machine is not reached:\n%s", network(m))
			}
			if out := fixture.In(t, m, "recover").Want(t, 0); out.Report.Result != "nothing-to-do" {
				t.Errorf("recover once more: %+v", out.Report)
			}
			if isNew {
				rollback(t, m)
			}
			sameTree(t, before, treeOf(t, m))
		})
	}
}

// A run that nothing watches stays stopped: the negative control.
func testUnwatched(t *testing.T, m *machine.Machine) {
	dir := update(t, m, map[string]string{bridgeConf: files[bridgeConf] + "PAUSE=2\n"})
	configure(t, m, healthOff)
	if err := os.WriteFile(m.Path("/run/liveupd/liveupd.toml.d/20-stuck.toml"), []byte("[guard]\nstuck = \"1h\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := start(t, m, "apply", "--yes", "--json", "--source", "tree:"+dir, "--allow-unsigned")
	workers := r.workers()
	r.await("restarting", func() bool { return r.state() == "restarting" })
	stop(t, workers)
	select {
	case <-r.ended:
		t.Errorf("a stopped run ended by itself: %+v", r.wait())
	case <-time.After(12 * time.Second):
	}
	if state := r.state(); state != "restarting" {
		t.Errorf("a stopped run is %q", state)
	}
	for _, pid := range workers {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	if got := r.wait(); got.Code != 0 {
		t.Errorf("it went on, and ended with %d: %s", got.Code, got.Stderr)
	}
	m.Shell("rm /run/liveupd/liveupd.toml.d/20-stuck.toml")
	rollback(t, m)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
