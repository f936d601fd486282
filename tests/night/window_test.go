package night

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
)

// clock sets the machine's time zone so that its clock shows a time of day now: a zone's
// offset has seconds (tzfile(5)), and the kernel's clock is the host's, which no test may set.
func (r *rig) clock(shows string) {
	r.t.Helper()
	r.clockOn(0, shows)
}

// clockOn does so for a day after today.
func (r *rig) clockOn(day int, shows string) {
	r.t.Helper()
	at, err := time.Parse("15:04:05", shows)
	if err != nil {
		r.t.Fatal(err)
	}
	now := time.Now().UTC()
	offset := int32(day*86400 + (at.Hour()-now.Hour())*3600 + (at.Minute()-now.Minute())*60 + at.Second() - now.Second())
	zone := append([]byte("TZif"), make([]byte, 16)...)
	for _, count := range []uint32{0, 0, 0, 0, 1, 4} {
		zone = binary.BigEndian.AppendUint32(zone, count)
	}
	zone = binary.BigEndian.AppendUint32(zone, uint32(offset))
	zone = append(zone, 0, 0, 'T', 'S', 'T', 0)
	if _, err := time.LoadLocationFromTZData("TST", zone); err != nil {
		r.t.Fatal(err)
	}
	_ = os.Remove(r.Path("/etc/localtime"))
	r.write("/etc/localtime", string(zone), 0o644)
}

// The windows of the configuration: waited for, closed before and after the commit.
func windows(r *rig) {
	if long() {
		waitsForWindow(r)
	}
	closesBefore(r.part(r.t))
	if long() {
		closesAfter(r.part(r.t))
	}
	r.Shell("rm /etc/localtime")
}

func waitsForWindow(r *rig) {
	r.publish(app{name: "alpha", version: "200", text: "200"}, app{name: "beta", version: "200", text: "200"})
	r.configure(`windows = ["10:01-11:00"]`)
	r.clock("10:00:30")
	before := r.versions()
	out := r.Run("liveupd", "unattended")
	if out.Code != 0 || !strings.Contains(out.Stdout, "the window is closed (10:01-11:00), and opens") || r.versions() != before {
		r.t.Errorf("in a closed window: %+v", out)
	}
	if out := r.Run("liveupd", "policy"); !strings.Contains(out.Stdout, "may change nothing") || !strings.Contains(out.Stdout, "the window is closed") {
		r.t.Errorf("policy says %s", out.Stdout)
	}
	if out := r.Run("liveupd", "policy", "--at", "10:30"); !strings.Contains(out.Stdout, "may change something") {
		r.t.Errorf("policy --at says %s", out.Stdout)
	}
	r.clock("10:00:52")
	last := r.last()
	r.Shell("systemctl start --no-block liveupd.service")
	r.await("the run to wait", func() bool { return r.progress().Phase == "waiting" })
	if r.versions() != before {
		r.t.Error("it did not wait")
	}
	n := r.after(last)
	if n.Result == change.NightSkipped {
		n = r.after(n)
	}
	r.want(n, change.NightDone)
	r.wantVersions("200 200")
}

// It closes while the update is checked: nothing has changed.
func closesBefore(r *rig) {
	check := "X-Liveupd-Check=/usr/bin/sleep 30"
	r.publish(app{name: "alpha", version: "201", text: "201", service: check})
	r.configure(`windows = ["09:00-10:01"]`)
	r.clock("10:00:45")
	n := r.want(r.night(), change.NightUndone)
	if !strings.Contains(n.Reason, "the window closed") || n.Code != 0 || len(n.BackOff) != 0 {
		r.t.Errorf("the report is %+v", n)
	}
	r.wantVersions("= =")
	if out := r.Run("liveupd", "recover", "--json").Stdout; !strings.Contains(out, "nothing-to-do") {
		r.t.Errorf("something is left: %s", out)
	}
	// The control: in an open window the same update goes through.
	r.configure()
	r.want(r.night(), change.NightDone)
	r.wantVersions("201 =")
}

// It closes after the first group: the second is put off, and comes in the next window.
func closesAfter(r *rig) {
	r.publish(app{name: "alpha", version: "202", text: "202"}, app{name: "beta", version: "202", text: "202"})
	var n *change.Night
	for seconds := 20; ; seconds *= 2 {
		end := time.Now().Add(time.Duration(seconds) * time.Second)
		canary := r.script("canary", fmt.Sprintf(`while [ "$(date +%%s)" -le %d ]; do sleep .2; done`, end.Unix()))
		r.configure(
			`windows = ["09:00-10:10"]`, `[[unattended.group]]`, `name = "first"`, `units = ["alpha.*"]`, `canary = ["`+canary+`"]`,
			`[[unattended.group]]`, `name = "second"`, `units = ["*"]`,
		)
		r.clock(time.Date(0, 1, 1, 10, 10, 0, 0, time.UTC).Add(-time.Until(end)).Format("15:04:05"))
		if n = r.night(); n.Result == change.NightUndone && seconds < 100 {
			continue // too slow a machine for that
		}
		break
	}
	r.want(n, change.NightDone)
	r.wantVersions("202 =")
	if len(n.Deferred) != 1 || n.Deferred[0].Unit != "beta.service" || !strings.Contains(strings.Join(n.Warnings, " "), "the window closed before group second") {
		r.t.Errorf("the report is %+v", n)
	}
	r.clock("09:30:00")
	n = r.want(r.night(), change.NightDone)
	r.wantVersions("202 202")
	if len(n.Deferred) != 0 || n.ID != "" {
		r.t.Errorf("the report is %+v", n)
	}
}

// What a rule puts off keeps its reason and its age, is done when its window opens, and
// forgotten where somebody has done it.
func deferrals(r *rig) {
	r.configure()
	r.write("/etc/liveupd/policy.d/beta.toml", "[[rule]]\nunits = [\"beta.service\"]\nwindows = [\"10:30-11:00\"]\nreason = \"the shop is open\"\n", 0o644)
	r.clock("10:05:00")
	r.publish(app{name: "alpha", version: "300", text: "300"}, app{name: "beta", version: "300", text: "300"})
	out := r.Run("liveupd", "unattended") // does not wait
	n := r.last()
	if out.Code != 0 || n.Result != change.NightDone || len(n.Deferred) != 1 || n.Deferred[0].Unit != "beta.service" || n.Deferred[0].Since < n.Began {
		r.t.Fatalf("%+v\n%+v", out, n)
	}
	r.wantVersions("300 =")
	for _, cmd := range []string{"liveupd status", "cat /run/motd.d/liveupd", "liveupd policy"} {
		if got := r.Shell(cmd); !strings.Contains(got, "beta.service") || !strings.Contains(got, "since 20") || !strings.Contains(got, "the shop is open") {
			r.t.Errorf("%s says %s", cmd, got)
		}
	}
	if got := r.Run("liveupd", "status", "--json").Stdout; !strings.Contains(got, `"waiting":[{"unit":"beta.service","since":`) {
		r.t.Errorf("status --json says %s", got)
	}
	if entry := r.entry("LIVEUPD_UNIT=beta.service"); !strings.Contains(entry, "the shop is open") {
		r.t.Errorf("the journal has %s", entry)
	}
	// Outside of its window it stays, and keeps its age.
	since := n.Deferred[0].Since
	r.Run("liveupd", "unattended")
	if n = r.last(); n.Result != change.NightNothing || len(n.Deferred) != 1 || n.Deferred[0].Since != since {
		r.t.Errorf("the report is %+v", n)
	}
	r.wantVersions("300 =")
	// The service waits for the window, and no update is pending.
	r.clock("10:29:50")
	last := r.last()
	r.Shell("systemctl start --no-block liveupd.service")
	var done *change.Night
	r.await("the window", func() bool {
		done = r.last()
		return done.Began != last.Began && done.Result == change.NightDone
	})
	r.wantVersions("300 300")
	if len(done.Deferred) != 0 || strings.Join(done.Units, " ") != "beta.service" {
		r.t.Errorf("the report is %+v", done)
	}
	r.await("the run to end", func() bool { return r.Unit("liveupd.service").ActiveState == "inactive" })
	if got := r.read("/var/lib/liveupd/motd"); got != "" {
		r.t.Errorf("the motd still says %q", got)
	}

	// Put off again, with never in spite of its window, and restarted by hand.
	r.publish(app{name: "beta", version: "301", text: "301"})
	r.configure(`never = ["beta.*"]`)
	r.clock("10:40:00")
	r.Run("liveupd", "unattended")
	if n = r.last(); n.Result != change.NightDone || len(n.Deferred) != 1 || len(n.Units) != 0 {
		r.t.Errorf("the report is %+v", n)
	}
	r.wantVersions("300 300")
	r.Shell("systemctl restart beta.service")
	if got := r.Shell("liveupd status"); strings.Contains(got, "deferred") {
		r.t.Errorf("status still says %s", got)
	}
	if n = r.want(r.night(), change.NightNothing); len(n.Deferred) != 0 {
		r.t.Errorf("still put off is %+v", n.Deferred)
	}
	r.Shell("rm /etc/localtime /etc/liveupd/policy.d/beta.toml")
}

// There is one run at a time.
func two(r *rig) {
	r.configure(`pre = ["` + r.script("pre", "while [ ! -e /run/go ]; do sleep .1; done") + `"]`)
	r.publish(app{name: "alpha", version: "400", text: "400"})
	last := r.last()
	r.Shell("rm -f /run/go; systemctl start --no-block liveupd.service")
	r.await("the pre hook", func() bool { return r.progress().Phase == "pre" })
	for _, args := range [][]string{{"unattended"}, {"unattended", "--wait"}, {"apply", "--yes"}} {
		if out := r.Run(append([]string{"liveupd"}, args...)...); out.Code != 5 {
			r.t.Errorf("liveupd %v beside a run: %+v", args, out)
		}
	}
	if out := r.Run("liveupd", "status").Stdout; !strings.Contains(out, "under way since") {
		r.t.Errorf("status says %s", out)
	}
	if out := r.Run("liveupd", "policy").Stdout; !strings.Contains(out, "holds /run/liveupd/lock") {
		r.t.Errorf("policy says %s", out)
	}
	r.Shell("touch /run/go")
	r.want(r.after(last), change.NightDone)
	r.wantVersions("400 =")
}
