package guard

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// Stopped in any phase, a run is killed and settled: the old tree or the new one, the
// services running, the machine reached.
func TestStopped(t *testing.T) {
	m := boot(t)
	slow := map[string]string{
		"usr/lib/app/mode.py": "crash = 0\nport = 8077\n# new\n",
		"usr/lib/systemd/system/envapp.service": strings.Replace(string(must(os.ReadFile(m.Path("/usr/lib/systemd/system/envapp.service")))),
			"[Service]\n", "[Service]\nEnvironment=NEW=1\nExecStartPre=/usr/bin/sleep 2\nX-Liveupd-Check=/usr/bin/sleep 2\n", 1),
	}
	cut := map[string]string{bridgeConf: files[bridgeConf] + "UPLINK=no\n"}
	exists := func(r *running, name string) bool {
		_, err := os.Stat(filepath.Join(r.transaction(), name))
		return r.transaction() != "" && err == nil
	}
	sleeps := func(m *machine.Machine) bool { return len(m.Find("sleep")) > 1 } // bystander is one
	tests := []struct {
		name    string
		changed map[string]string
		when    func(r *running) bool
		tree    string
	}{
		{"staging", slow, func(r *running) bool { return exists(r, "up/usr/lib") }, "old"},
		{"checking", slow, func(*running) bool { return sleeps(m) }, "old"},
		{"committing", slow, func(r *running) bool { return exists(r, "journal") }, ""},
		{"restarting", slow, func(r *running) bool { return r.state() == "restarting" && sleeps(m) }, "new"},
		{"verifying", slow, func(r *running) bool {
			return r.state() == "restarting" && strings.Contains(r.stdout.String(), `"phase":"verifying"`)
		}, "new"},
		{"cut off", cut, func(r *running) bool { return r.state() == "restarting" && !reached(m, "10.77.0.2") }, "old"},
	}
	for _, tt := range tests {
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
				fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			}
			sameTree(t, before, treeOf(t, m))
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
