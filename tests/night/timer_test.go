package night

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

// One boot serves all: each part leaves the machine with its services up, and tells the
// next part what versions they have.
func TestNight(t *testing.T) {
	t.Parallel()
	r := boot(t)
	for _, part := range []struct {
		name string
		do   func(*rig)
		long bool // in the long form only
	}{
		{"timer", timer, false},
		{"disabled", disabled, true},
		{"failure", failure, false},
		{"hooks", hooks, true},
		{"canary", canary, true},
		{"cut", cut, false},
		{"windows", windows, false},
		{"deferrals", deferrals, false},
		{"two", two, false},
		{"reboot", reboot, true},
		{"ten nights", tenNights, true},
	} {
		if part.long && !long() {
			continue
		}
		if !t.Run(part.name, func(t *testing.T) { part.do(r.part(t)) }) {
			break // what comes after builds on it
		}
	}
}

func long() bool { return os.Getenv("LIVEUPD_LONG") == "1" }

// The packaged timer fires, the service applies what is pending, restarts and reports.
func timer(r *rig) {
	const metrics = "/var/lib/metrics/liveupd.prom"
	r.Shell("mkdir -p /var/lib/metrics")
	r.configure(`metrics = "` + metrics + `"`)
	r.wantVersions("1 1")
	r.publish(app{name: "alpha", version: "2", text: "two"})
	r.write("/run/systemd/system/liveupd.timer.d/soon.conf", "[Timer]\nOnCalendar=\nOnCalendar="+time.Now().Add(5*time.Second).UTC().Format("2006-01-02 15:04:05 UTC")+"\nRandomizedDelaySec=0\nAccuracySec=100ms\n", 0o644)
	r.Shell("systemctl daemon-reload; systemctl start liveupd.timer")
	n := r.after(nil)
	r.Shell("systemctl stop liveupd.timer; rm -r /run/systemd/system/liveupd.timer.d; systemctl daemon-reload")
	r.want(n, change.NightDone)
	r.wantVersions("2 1")
	if got := strings.Join(n.Units, " "); got != "alpha.service" {
		r.t.Errorf("restarted were %q; want alpha.service", got)
	}
	if n.ID == "" || len(n.Packages) != 1 || n.Packages[0].To != "2" || n.Source != "apt" || n.Code != 0 {
		r.t.Errorf("the report is %+v", n)
	}
	if out := r.Run("liveupd", "status").Stdout; !strings.Contains(out, "Unattended runs: enabled") || !strings.Contains(out, "done, transaction "+n.ID) {
		r.t.Errorf("status says %s", out)
	}
	if out := r.Run("liveupd", "status", "--json").Stdout; !strings.Contains(out, `"unattended":{"enabled":true,"last":{`) {
		r.t.Errorf("status --json says %s", out)
	}
	for _, want := range []string{`liveupd_unattended_last_result{result="done"} 1`, `liveupd_unattended_runs_total{result="done"} 1`, "liveupd_deferred_units 0", "# EOF"} {
		if got := r.read(metrics); !strings.Contains(got, want) {
			r.t.Errorf("the metrics lack %q:\n%s", want, got)
		}
	}
	entry := r.entry("LIVEUPD_RESULT=done")
	for _, want := range []string{"LIVEUPD_ID=" + n.ID, "LIVEUPD_PACKAGES=alpha=1>2", "MESSAGE_ID=", "PRIORITY=5", "LIVEUPD_UNITS=alpha.service"} {
		if !strings.Contains(entry, want) {
			r.t.Errorf("the journal's entry lacks %s:\n%s", want, entry)
		}
	}
	if r.read("/var/lib/liveupd/motd") != "" {
		r.t.Errorf("the motd says %q of a good run", r.read("/var/lib/liveupd/motd"))
	}
}

// entry is the last entry of the journal with a field, as journalctl exports it.
func (r *rig) entry(field string) string {
	return r.Run("journalctl", "--no-pager", "-o", "export", "-n", "1", field).Stdout
}

// Without the line that enables it nothing happens, and that is said.
func disabled(r *rig) {
	r.publish(app{name: "alpha", version: "3", text: "three"})
	r.configure()
	r.Shell("sed -i s/enabled.*/enabled=false/ /etc/liveupd/liveupd.toml")
	n := r.want(r.night(), change.NightSkipped)
	r.wantVersions("= =")
	if !strings.Contains(n.Reason, "not enabled") || n.Code != 0 {
		r.t.Errorf("the report is %+v", n)
	}
	r.configure()
	out := r.Run("liveupd", "unattended", "--dry-run")
	if out.Code != 0 || !strings.Contains(out.Stdout, "a run now would be: done") || !strings.Contains(out.Stdout, "alpha") {
		r.t.Errorf("--dry-run: %+v", out)
	}
	r.wantVersions("= =")
	r.want(r.night(), change.NightDone) // what the dry run has planned
	r.wantVersions("3 =")
	if n := r.want(r.night(), change.NightNothing); n.Code != 0 {
		r.t.Errorf("the report is %+v", n)
	}
}

// An update whose service fails is taken back, and left alone by the next nights, which say
// so and take what else is new; another version is tried.
func failure(r *rig) {
	hook := r.script("failed", "cat >/run/failed.in")
	r.configure(`on_failure = ["` + hook + `", "an argument"]`)
	r.publish(app{name: "beta", version: "2", text: "die"})
	n := r.want(r.night(), change.NightRolledBack)
	r.wantVersions("= =")
	if n.ID == "" || n.Code != 3 || len(n.BackOff) != 1 || n.BackOff[0].Failures != 1 || n.BackOff[0].Until <= n.Ended+24*3600 {
		r.t.Errorf("the report is %+v", n)
	}
	if r.count("failed") != 1 || !strings.Contains(r.read("/run/failed.env"), "LIVEUPD_RESULT=rolled-back") || !strings.Contains(r.read("/run/failed.in"), `"result":"rolled-back"`) {
		r.t.Errorf("the hook was run %d times with\n%s%s", r.count("failed"), r.read("/run/failed.env"), r.read("/run/failed.in"))
	}
	if u := r.Unit("liveupd.service"); u.ActiveState != "failed" {
		r.t.Errorf("liveupd.service is %s after a failed night", u.ActiveState)
	}
	if got := r.Shell("cat /run/motd.d/liveupd"); !strings.Contains(got, "rolled back") || !strings.Contains(got, "is left alone until") {
		r.t.Errorf("the motd is %q", got)
	}
	if got := r.Run("liveupd", "status").Stdout; !strings.Contains(got, "backed off: beta 2 failed") {
		r.t.Errorf("status says %s", got)
	}
	if got := r.Run("liveupd", "policy").Stdout; !strings.Contains(got, "beta 2 failed") {
		r.t.Errorf("policy says %s", got)
	}

	n = r.want(r.night(), change.NightBackedOff)
	if !strings.Contains(n.Reason, "beta=1>2 has failed, and is left alone until") || n.Code != 0 {
		r.t.Errorf("the report is %+v", n)
	}
	if entry := r.entry("LIVEUPD_RESULT=backed-off"); !strings.Contains(entry, "PRIORITY=4") {
		r.t.Errorf("the journal's entry is %s", entry)
	}
	r.wantVersions("= =")

	// What is new beside it is taken.
	r.publish(app{name: "alpha", version: "4", text: "four"})
	n = r.want(r.night(), change.NightDone)
	if strings.Join(n.Held, " ") != "beta" {
		r.t.Errorf("held back are %v; want beta", n.Held)
	}
	r.wantVersions("4 =")

	// A person may ask for it; the delay grows.
	until := n.BackOff[0].Until
	if out := r.Run("liveupd", "unattended", "--retry"); out.Code != 3 {
		r.t.Errorf("--retry: %+v", out)
	}
	if n = r.last(); n.BackOff[0].Failures != 2 || n.BackOff[0].Until <= until {
		r.t.Errorf("the back-off is %+v after a second failure; was until %d", n.BackOff, until)
	}
	r.wantVersions("4 =")

	r.publish(app{name: "beta", version: "3", text: "three"})
	n = r.want(r.night(), change.NightDone)
	r.wantVersions("4 3")
	if len(n.BackOff) != 0 {
		r.t.Errorf("the back-off is %+v after a version that is well", n.BackOff)
	}
	if got := r.read("/var/lib/liveupd/motd"); got != "" {
		r.t.Errorf("the motd still says %q", got)
	}
}

// Hooks: pre before anything has changed, post after it, mail; a pre that fails stops the night.
func hooks(r *rig) {
	pre := r.script("pre", "cat /run/alpha.version >/run/pre.saw")
	post := r.script("post", "cat /run/alpha.version >/run/post.saw")
	changed := r.script("changed", "cat >/run/changed.in")
	r.write("/usr/sbin/sendmail", "#!/bin/sh\ncat >>/run/mail\n", 0o755)
	common := []string{
		`post = ["` + post + `"]`, `on_change = ["` + changed + `"]`, `mail = "root@example.com"`, `mail_on = "change"`, `hook_timeout = "3s"`,
	}
	r.configure(append(common, `pre = ["`+pre+`", "one two", "$HOME"]`)...)
	r.want(r.night(), change.NightNothing)
	if r.count("pre")+r.count("post")+r.count("changed") != 0 || r.read("/run/mail") != "" {
		r.t.Error("hooks were run in a night without an update")
	}
	r.publish(app{name: "alpha", version: "5", text: "five"})
	n := r.want(r.night(), change.NightDone)
	if got := [3]int{r.count("pre"), r.count("post"), r.count("changed")}; got != [3]int{1, 1, 1} {
		r.t.Errorf("pre, post and on_change were run %v times", got)
	}
	if r.read("/run/pre.saw") != r.from[0]+"\n" || r.read("/run/post.saw") != "5\n" {
		r.t.Errorf("pre saw %q and post %q", r.read("/run/pre.saw"), r.read("/run/post.saw"))
	}
	for hook, want := range map[string]string{
		"pre": "LIVEUPD_PACKAGES=alpha=" + r.from[0] + ">5", "post": "LIVEUPD_RESULT=done\n", "changed": "LIVEUPD_ID=" + n.ID,
	} {
		if got := r.read("/run/" + hook + ".env"); !strings.Contains(got, want) {
			r.t.Errorf("%s lacks %s:\n%s", hook, want, got)
		}
	}
	if mail := r.read("/run/mail"); !regexp.MustCompile(`(?s)^To: root@example.com\nSubject: liveupd on \S+: done\n.*\n\n.*alpha \d -> 5`).MatchString(mail) {
		r.t.Errorf("the mail is %q", mail)
	}

	for name, body := range map[string]string{"refuses": "echo no thanks; exit 4", "hangs": "sleep 1000"} {
		r.publish(app{name: "alpha", version: "6", text: "six"})
		r.configure(append(common, `pre = ["`+r.script(name, body)+`"]`)...)
		before := r.count("post")
		n = r.want(r.night(), change.NightFailed)
		if !strings.Contains(n.Error, "the pre hook refuses the run") || n.Code != 1 || r.count("post") != before+1 {
			r.t.Errorf("%s: the report is %+v; post was run %d times", name, n, r.count("post")-before)
		}
		if want := map[string]string{"refuses": "no thanks", "hangs": "did not end within 3s"}[name]; !strings.Contains(n.Error, want) {
			r.t.Errorf("%s: the error is %q", name, n.Error)
		}
		if len(n.BackOff) != 0 {
			r.t.Errorf("%s: a hook's refusal is counted against the update: %+v", name, n.BackOff)
		}
		r.wantVersions("5 =")
	}
	if left := r.Shell("pgrep -f '[s]leep 1000' || :"); left != "" {
		r.t.Errorf("processes of a hook whose time was up: %s", left)
	}
	// Without the hook the same update goes through.
	r.configure()
	r.want(r.night(), change.NightDone)
	r.wantVersions("6 =")
	r.Shell("rm /usr/sbin/sendmail")
}

// A canary that fails takes an update back whose services all run.
func canary(r *rig) {
	check := r.script("canary", `[ "$(cat /run/alpha.version)" != 7 ] || { echo alpha 7 does not answer; exit 1; }`)
	line := `canary = ["` + check + `"]`
	r.publish(app{name: "alpha", version: "7", text: "seven"})
	r.configure(line)
	n := r.want(r.night(), change.NightRolledBack)
	r.wantVersions("= =")
	if !strings.Contains(n.Error, "alpha 7 does not answer") || n.Code != 3 || r.count("canary") != 1 || len(n.BackOff) != 1 {
		r.t.Errorf("the report is %+v", n)
	}
	if env := r.read("/run/canary.env"); !strings.Contains(env, "LIVEUPD_ID="+n.ID) {
		r.t.Errorf("the canary's environment is %s", env)
	}
	r.want(r.night(), change.NightBackedOff)
	// The control: without the canary, alpha 7 stays.
	r.configure()
	if out := r.Run("liveupd", "unattended", "--retry"); out.Code != 0 {
		r.t.Errorf("without the canary: %+v", out)
	}
	r.wantVersions("7 =")
	r.publish(app{name: "alpha", version: "8", text: "eight"})
	r.configure(line)
	n = r.want(r.night(), change.NightDone)
	r.wantVersions("8 =")
	if len(n.Steps) != 1 || n.Steps[0].Step.Do != "canary" || n.Steps[0].Result != "done" {
		r.t.Errorf("the steps are %+v", n.Steps)
	}
	r.t.Log(fmt.Sprint("the last report: ", n.Result, n.Units))
}
