package night

import (
	"strings"

	"github.com/liveupd/liveupd/change"
)

// What only a boot takes up is pending; where reboot says so, and only there, the machine reboots, and
// the run goes on after it: it asks the canary once more, and reports.
func reboot(r *rig) {
	check := r.script("canary", "")
	r.configure(`canary = ["`+check+`"]`, `reboot = "never"`, `windows = ["00:00-24:00"]`)
	r.publish(app{name: "alpha", version: "410", text: "410", file: "usr/lib/firmware/alpha.bin"})
	n := r.want(r.night(), change.NightDone)
	if n.HostAction != change.ActionKexec || n.Code != 4 || n.Reboot != 0 {
		r.t.Errorf("the report is %+v", n)
	}
	if u := r.Unit("liveupd.service"); u.ActiveState != "inactive" {
		r.t.Errorf("liveupd.service is %s although only a reboot is pending", u.ActiveState)
	}
	if got := r.Shell("cat /run/motd.d/liveupd"); !strings.Contains(got, "a kexec is pending") {
		r.t.Errorf("the motd says %s", got)
	}

	r.configure(`canary = ["`+check+`"]`, `reboot = "window"`, `windows = ["00:00-24:00"]`)
	r.publish(app{name: "alpha", version: "411", text: "411", file: "usr/lib/firmware/alpha.bin"})
	boot := r.read("/proc/sys/kernel/random/boot_id")
	r.Shell("systemctl start --no-block liveupd.service")
	r.AwaitReboot()
	if boot == r.read("/proc/sys/kernel/random/boot_id") {
		r.t.Fatal("the machine has not rebooted")
	}
	r.await("the run to be taken up", func() bool {
		n = r.last()
		return n != nil && n.Resumed != "" && r.Unit("liveupd.service").ActiveState == "inactive" && r.read("/var/lib/liveupd/unattended-run.json") == ""
	})
	r.want(n, change.NightDone)
	if n.Resumed != "the machine was rebooted" || n.HostAction != change.ActionNone || n.Code != 0 {
		r.t.Errorf("the report is %+v", n)
	}
	asked := 0
	for _, step := range n.Steps {
		if step.Step.Do == "canary" && step.Result == "done" {
			asked++
		}
	}
	if asked != 2 {
		r.t.Errorf("the canary was asked %d times; want once after the update and once after the boot: %+v", asked, n)
	}
	r.wantVersions("411 =")
	if out := r.Run("liveupd", "status").Stdout; strings.Contains(out, "pending") {
		r.t.Errorf("status says %s", out)
	}
}
