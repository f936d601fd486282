package night

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

// slow makes each phase of an update of both apps last long enough to be met.
func slow(version int) []app {
	service := "X-Liveupd-Check=/usr/bin/sleep 2.5\nExecStartPre=/usr/bin/sleep 2.25\nEnvironment=V=" + fmt.Sprint(version)
	return []app{
		{name: "alpha", version: fmt.Sprint(version), text: fmt.Sprint(version), service: service},
		{name: "beta", version: fmt.Sprint(version), text: fmt.Sprint(version), service: service},
	}
}

// progress is how far a run says that it has come.
type progress struct {
	Phase, Worker string
}

func (r *rig) progress() progress {
	var p progress
	_ = json.Unmarshal([]byte(r.read("/var/lib/liveupd/unattended-run.json")), &p) // none: the zero value
	return p
}

// runs tells whether a process of the machine runs with these arguments.
func (r *rig) runs(program string, args ...string) []int {
	var found []int
	for _, pid := range r.Find(program) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		argv := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		if len(argv) > len(args) && slices.Equal(argv[1:1+len(args)], args) {
			found = append(found, pid)
		}
	}
	return found
}

func (r *rig) sleeps(seconds string) bool { return len(r.runs("sleep", seconds)) > 0 }

func (r *rig) run() []int { return r.runs("liveupd", "unattended") }

func (r *rig) workers() []int {
	return append(r.runs("liveupd", "worker-inside"), r.runs("liveupd", "worker")...)
}

// cuts are the points at which a run is killed or stopped.
var cuts = []struct {
	name string
	when func(r *rig) bool
	// worker: the engine works; else the run itself is between two requests.
	worker bool
	short  string // the signal and its target that the short form tries
}{
	{"planning", func(r *rig) bool { return r.progress().Phase == "planning" && len(r.workers()) == 2 }, true, ""},
	{"pre", func(r *rig) bool { return r.sleeps("1.75") }, true, ""},
	{"checking", func(r *rig) bool { return r.sleeps("2.5") }, true, ""},
	{"restarting", func(r *rig) bool { return r.progress().Phase == "update" && r.sleeps("2.25") }, true, "stop worker"},
	{"canary", func(r *rig) bool { return r.sleeps("1.5") }, false, "stop run"},
	{"group", func(r *rig) bool { return r.progress().Phase == "group" && r.sleeps("2.25") }, true, ""},
}

// Killed or stopped in any phase, a run comes to its end by itself: both apps at the new version.
func cut(r *rig) {
	pre, check := r.script("pre", "sleep 1.75"), r.script("canary", "sleep 1.5")
	r.configure(
		`pre = ["`+pre+`"]`, `[[unattended.group]]`, `name = "first"`, `units = ["alpha.*"]`, `canary = ["`+check+`"]`,
		`[[unattended.group]]`, `name = "second"`, `units = ["*"]`, `wait = "0s"`,
	)
	r.write("/run/systemd/system/liveupd.service.d/test.conf", "[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=5s\nRestartSec=200ms\n", 0o644)
	r.Shell("systemctl daemon-reload")
	version, tried := 100, 0
	for _, c := range cuts {
		for _, how := range []string{"kill run", "stop run", "kill worker", "stop worker"} {
			if how != c.short && !long() || strings.HasSuffix(how, "worker") && !c.worker {
				continue
			}
			version++
			tried++
			r.t.Run(c.name+", "+how, func(t *testing.T) { cutAt(r.part(t), version, how, c.when) })
		}
	}
	r.t.Logf("%d points tried", tried)
	if long() {
		r.t.Run("control", func(t *testing.T) { stayStopped(r.part(t), version+1) })
	}
	r.Shell("rm -r /run/systemd/system/liveupd.service.d; systemctl daemon-reload")
}

func cutAt(r *rig, version int, how string, when func(r *rig) bool) {
	r.publish(slow(version)...)
	before := r.last()
	r.Shell("systemctl reset-failed liveupd.service || :; systemctl start --no-block liveupd.service")
	r.await("the phase", func() bool { return when(r) })
	signal := map[string]syscall.Signal{"kill": syscall.SIGKILL, "stop": syscall.SIGSTOP}[strings.Fields(how)[0]]
	targets := r.run
	if strings.HasSuffix(how, "worker") {
		targets = r.workers
	}
	pids := targets()
	if len(pids) == 0 {
		r.t.Fatalf("there is nobody to %s", how)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, signal); err != nil && signal != syscall.SIGKILL {
			r.t.Fatal(err)
		}
	}
	n := r.after(before)
	r.want(n, change.NightDone)
	want := fmt.Sprint(version)
	r.wantVersions(want + " " + want)
	if r.read("/var/lib/liveupd/unattended-run.json") != "" {
		r.t.Error("the run is still noted as under way")
	}
	if out := r.Run("liveupd", "recover", "--json").Stdout; !strings.Contains(out, "nothing-to-do") {
		r.t.Errorf("recover still finds something: %s", out)
	}
	if len(n.Deferred) > 0 {
		r.t.Errorf("put off are still %+v", n.Deferred)
	}
	if left := r.Run("liveupd", "check", "--json").Stdout; strings.Contains(left, "alpha.service") || strings.Contains(left, "beta.service") {
		r.t.Errorf("check finds %s", left)
	}
	r.t.Logf("resumed: %q, warnings %q", n.Resumed, n.Warnings)
}

// stayStopped is the control: without the watch over the worker a stopped one stays so.
func stayStopped(r *rig, version int) {
	r.Shell(`sed -i 's/^stall.*/stall = "1h"/' /etc/liveupd/liveupd.toml`)
	r.publish(slow(version)...)
	before := r.last()
	r.Shell("systemctl start --no-block liveupd.service")
	r.await("the check", func() bool { return r.sleeps("2.5") })
	pids := r.workers()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			r.t.Fatal(err)
		}
	}
	time.Sleep(15 * time.Second)
	if u := r.Unit("liveupd.service"); u.ActiveState != "active" || r.progress().Phase != "update" {
		r.t.Errorf("liveupd.service is %s in %q although its worker is stopped", u.ActiveState, r.progress().Phase)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
	r.want(r.after(before), change.NightDone)
}
