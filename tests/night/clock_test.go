package night

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/machine"
	"github.com/liveupd/liveupd/tests/vm"
)

// vmLimit is how long the virtual machine may take: an idle host takes a tenth of that.
const vmLimit = 25 * time.Minute

// step is a night of the machine whose clock is set.
type step struct {
	name    string
	at      []string // times that the clock is set to, one after the other
	publish []app
	do      string // further commands, before the clock is set
	long    bool   // in the long form only

	result   string // of the run
	runs     int    // how many reports there are
	versions string // that the apps run after it
	backOff  string // packages that are left alone, and how often they have failed: NAME VERSION FAILURES
	deferred string // a unit that waits, and for how many days: UNIT DAYS
	held     string // packages
	backward bool   // the clock goes back while it runs
	late     bool   // the timer's time is over once the clock is set
}

// The machine boots at noon of Monday, 1 March 2027.
const clockAtBoot = "2027-03-01T12:00:00"

// evening is right before the timer's time, over which the clock goes by itself.
func evening(day string) []string { return []string{day + " 23:59:53"} }

// heavy is a version of alpha that nothing compresses to nothing: what is kept of it is seen.
func heavy(version string) []app {
	return []app{{name: "alpha", version: version, text: strings.Repeat(version, 100000)}}
}

// belt has the timer wait for so long where its calendar does not start it.
func belt(after string) string {
	return `printf '[Timer]\nOnUnitActiveSec=\nOnCalendar=daily\nOnUnitActiveSec=` + after + `\n' >/run/systemd/system/liveupd.timer.d/belt.conf
systemctl daemon-reload`
}

const sunday = `[[rule]]
units = ["beta.service"]
windows = ["Sun 01:00-06:00"]
reason = "the shop is open"
`

var steps = []step{
	{name: "bad", at: evening("2027-03-01"), publish: heavy("3"), result: change.NightRolledBack, versions: "1 1", backOff: "alpha 3 1"},
	{name: "left-alone", at: evening("2027-03-02"), result: change.NightBackedOff, versions: "1 1", backOff: "alpha 3 1", held: "alpha", long: true},
	// A week back, to before all that has been.
	{
		name: "back", at: evening("2027-02-24"), publish: []app{{name: "beta", version: "2", text: "two"}},
		result: change.NightDone, versions: "1 2", backOff: "alpha 3 1", held: "alpha",
	},
	// The machine was off for a night and a morning. What failed is tried again a day and a half after
	// it failed, and not when the clock has caught up.
	{name: "off", at: []string{"2027-02-26 14:00:00"}, result: change.NightRolledBack, versions: "1 2", backOff: "alpha 3 2", long: true},

	{name: "mended", at: evening("2027-02-26"), publish: heavy("4"), result: change.NightDone, versions: "4 2", long: true},
	{name: "nothing", at: evening("2027-02-27"), result: change.NightNothing, versions: "4 2", long: true},
	{name: "off-for-days", at: []string{"2027-03-03 13:00:00"}, publish: heavy("5"), result: change.NightDone, versions: "5 2", long: true},
	{
		name: "dies", at: evening("2027-03-03"), publish: []app{{name: "beta", version: "3", text: "die"}},
		result: change.NightRolledBack, versions: "5 2", backOff: "beta 3 1", long: true,
	},
	{
		name: "put-off", at: evening("2027-03-04"), publish: []app{{name: "beta", version: "4", text: "four"}},
		do:     "mkdir -p /etc/liveupd/policy.d; cat >/etc/liveupd/policy.d/beta.toml <<'END'\n" + sunday + "END",
		result: change.NightDone, versions: "5 2", deferred: "beta.service 0", long: true,
	},
	{name: "still-put-off", at: evening("2027-03-05"), result: change.NightNothing, versions: "5 2", deferred: "beta.service 1", long: true},
	// The run waits for the hour of what was put off.
	{name: "window", at: []string{"2027-03-06 23:59:53", "2027-03-07 01:00:03"}, result: change.NightDone, runs: 2, versions: "5 4", long: true},
	// A clock that is years ahead starts the run, and is set right while it is under way: systemd waits for the day after
	// that one, and what counts from the last run, here for less long, starts the next.
	{
		name: "ahead", at: evening("2033-05-01"), publish: heavy("6"), do: "echo 2027-03-07 12:00:00 >/set",
		result: change.NightDone, versions: "6 4", backward: true, late: true, long: true,
	},
	{name: "right-again", publish: heavy("7"), do: belt("3min"), result: change.NightDone, versions: "7 4", long: true},
	// And the nights come at their time again.
	{name: "last", at: evening("2027-03-07"), do: belt("30h"), result: change.NightNothing, versions: "7 4", long: true},
}

// clockCanary refuses alpha in the version 3, and sets the clock right where it is told to.
const clockCanary = `#!/bin/sh
if [ -e /set ]; then date -s "$(cat /set)"; rm /set; fi
case $(cat /run/alpha.version) in 3) echo alpha 3 is not well; exit 1;; esac
`

// clockDriver runs on the machine when it is up, and leaves what it saw in /result.
const clockDriver = `#!/bin/bash
cd /result
exec >log 2>&1
runs() { # without another process: they are slow in an emulation
	runs=0
	while read -r name n; do case $name in liveupd_unattended_runs_total*) runs=$((runs + n)) ;; esac; done </srv/metrics
}
state() { systemctl show -P ActiveState liveupd.service; }
look() {
	liveupd status --json >"$1.status"
	cat /run/alpha.version /run/beta.version >"$1.versions"
	runs; echo $runs >"$1.runs"
	{ du -sk --apparent-size /.liveupd /var/lib/liveupd; find /.liveupd | wc -l; find /var/lib/liveupd | wc -l; } 2>/dev/null | cut -f1 >"$1.used"
	find /run/liveupd ! -type d >"$1.run" 2>/dev/null
	systemctl is-active alpha beta liveupd.timer >"$1.active"
	systemctl show -P NextElapseUSecRealtime liveupd.timer >"$1.elapse"
}
over() { # over NAME RUNS TIME...: the clock goes to these
	runs
	step=$1 before=$runs want=$((runs + $2)); shift 2
	cp "/srv/steps/$step/"* /srv/archive/ 2>/dev/null
	[ $# = 0 ] || { date -s "$1"; shift; }
	runs; echo "$(state) $((runs - before))" >"$step.early"
	for i in $(seq 300); do
		runs
		if [ $# -gt 0 ] && [ $runs -gt $before ]; then date -s "$1"; shift; fi
		if [ $runs -ge $want ]; then case $(state) in inactive | failed) break ;; esac; fi
		sleep 1
	done
	echo "$step: the run has ended, up for $(cat /proc/uptime)"
	sleep 3 # for one run too many
	look "$step"
	echo "$step: up for $(cat /proc/uptime)"
	echo "TEST $step $runs reports, $(echo $(cat "$step.versions" "$step.elapse"))" >/dev/ttyS0
	[ $runs -ge $want ] || end
}
end() {
	systemctl --no-pager status liveupd.timer liveupd.service
	systemctl list-jobs --no-legend
	ps -e -o pid,ppid,etimes,stat,wchan:20,args | grep -v '\]$'
	systemctl --failed --no-legend
	journalctl --no-pager -u 'liveupd*' >journal
	echo "TEST ended" >/dev/ttyS0
	sync
	systemctl poweroff --force --force
	exit
}
rm -f /etc/apt/sources.list.d/*
echo 'liveupd_unattended_runs_total 0' >/srv/metrics
systemctl show -P NextElapseUSecRealtime liveupd.timer >packaged.elapse
# What the timer adds to its time is thrown anew with each change of the clock: an hour is too long to wait.
mkdir -p /run/systemd/system/liveupd.timer.d /run/systemd/system/liveupd.service.d
printf '[Timer]\nRandomizedDelaySec=2s\nAccuracySec=100ms\n' >/run/systemd/system/liveupd.timer.d/soon.conf
# By the clock that nobody sets all nights are within two hours.
printf '[Unit]\nStartLimitIntervalSec=0\n' >/run/systemd/system/liveupd.service.d/soon.conf
systemctl daemon-reload
for i in $(seq 60); do [ "$(systemctl is-active alpha beta | uniq)" = active ] && break; sleep 1; done
look first
STEPS
end
`

const clockUnit = `[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/result/script
`

const clockConfig = `source = "apt"
[unattended]
enabled = true
settle = "100ms"
wait = "2m"
metrics = "/srv/metrics"
canary = ["/usr/local/sbin/canary"]
`

// clockDisk makes the machine's disk.
func clockDisk(t *testing.T, list []step) string {
	t.Helper()
	root := filepath.Join(vm.Memory(t), "root")
	machine.CopyRoot(t, "trixie", root)
	for _, p := range machine.Programs(t) {
		if out, err := exec.Command("install", "-D", "-t", filepath.Join(root, "usr/local/bin"), p).CombinedOutput(); err != nil {
			t.Fatalf("install: %v: %s", err, out)
		}
	}
	if err := install(t, root); err != nil {
		t.Fatal(err)
	}
	// What unattended runs ask for: a commit that is cut off is taken up at boot.
	if out, err := exec.Command(machine.Program(t, "liveupd"), "setup", "--root", root, "--yes").CombinedOutput(); err != nil {
		t.Fatalf("liveupd setup: %v: %s", err, out)
	}
	archive := t.TempDir()
	for _, name := range apps {
		app{name: name, version: "1", text: "one"}.build(t, archive)
	}
	var script strings.Builder
	for _, s := range list {
		if len(s.publish) > 0 {
			for _, a := range s.publish {
				a.build(t, archive)
			}
			index(t, archive)
			dir := filepath.Join(root, "srv/steps", s.name)
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("cp", "-r", archive, dir).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
		}
		if s.do != "" {
			script.WriteString(s.do + "\n")
		}
		fmt.Fprintf(&script, "over %s %d", s.name, max(1, s.runs))
		for _, at := range s.at {
			fmt.Fprintf(&script, " '%s'", at)
		}
		script.WriteString("\n")
	}
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	for name, content := range map[string]string{
		"etc/fstab": "", "etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "vm\n",
		"etc/systemd/system/test.service": clockUnit, "etc/liveupd/liveupd.toml": clockConfig, "usr/local/sbin/canary": clockCanary,
		"result/script": strings.Replace(clockDriver, "STEPS\n", script.String(), 1),
	} {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/systemd/system/test.service", filepath.Join(wants, "test.service")); err != nil {
		t.Fatal(err)
	}
	// Debian's own timers would fire each night, too.
	if out, err := exec.Command("systemctl", "--root", root, "mask", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer").CombinedOutput(); err != nil {
		t.Fatalf("systemctl mask: %v: %s", err, out)
	}
	for _, name := range []string{"usr/share/doc", "usr/share/locale"} {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(vm.Memory(t), "disk")
	vm.Image(t, root, image, "900M")
	return image
}

// Nights in a row on a machine of its own, whose real clock is set: the packaged timer is what starts each.
func TestClock(t *testing.T) {
	t.Parallel()
	vm.Require(t)
	var list []step
	for _, s := range steps {
		if !s.long || long() {
			list = append(list, s)
		}
	}
	image := clockDisk(t, list)
	kernel, _ := vm.Kernel(t)
	began := time.Now()
	m := vm.Start(t, vm.Config{
		Kernel: kernel, Initrd: vm.FromDisk(t, vm.Trixie, "overlay"), MemoryMB: 1024, Drives: []vm.Drive{{Path: image}},
		Append:    "root=/dev/vda rw panic=-1 quiet no_timer_check systemd.mask=serial-getty@ttyS0.service systemd.mask=getty@tty1.service init=/usr/local/lib/liveupd/liveupd-init",
		Arguments: []string{"-rtc", "base=" + clockAtBoot},
	})
	for _, s := range list {
		match, err := m.Await("TEST "+s.name+" (.*)\r?\n", vmLimit)
		if err != nil {
			t.Error(err)
			break
		}
		t.Logf("%s after %v: %s", s.name, time.Since(began).Round(time.Second), match[1])
	}
	m.Wait(vmLimit)
	files := vm.ReadImage(t, image, "result")
	// The packaged timer's time, before anything of it is changed for this test.
	if got := strings.TrimSpace(string(files["packaged.elapse"])); !strings.HasPrefix(got, "Tue 2027-03-02 00:") {
		t.Errorf("the timer is to fire at %q; want the first hour of the next day", got)
	}
	runs := 0
	for _, s := range list {
		runs += max(1, s.runs)
		s.check(t, files, runs)
	}
	if t.Failed() {
		t.Logf("the machine's log:\n%s\n%s", files["log"], files["journal"])
	}
}

// check compares what a step left; runs is how many there have been.
func (s *step) check(t *testing.T, files map[string][]byte, runs int) {
	t.Helper()
	var status struct {
		Unattended change.NightStatus `json:"unattended"`
	}
	text := func(what string) string { return strings.Join(strings.Fields(string(files[s.name+"."+what])), " ") }
	if err := json.Unmarshal(files[s.name+".status"], &status); err != nil || status.Unattended.Last == nil {
		t.Errorf("%s: no status: %v: %s", s.name, err, text("status"))
		return
	}
	n := status.Unattended.Last
	t.Logf("%s: %s, began at %s, used are %s", s.name, n.Result, time.Unix(n.Began, 0).UTC().Format("Mon 2006-01-02 15:04:05"), text("used"))
	var backOff, deferred []string
	for _, b := range status.Unattended.BackOff {
		for _, p := range b.Packages {
			backOff = append(backOff, p.Name, p.To, fmt.Sprint(b.Failures))
		}
		if b.Last > n.Ended || b.Until > n.Ended+31*86400 {
			t.Errorf("%s: a failure is of the future: %+v", s.name, b)
		}
	}
	for _, w := range n.Deferred {
		deferred = append(deferred, w.Key(), fmt.Sprint((n.Ended-w.Since)/86400))
	}
	for _, is := range []struct{ what, got, want string }{
		{"the run is", n.Result, s.result},
		{"the apps run", text("versions"), s.versions},
		{"left alone are", strings.Join(backOff, " "), s.backOff},
		{"put off are", strings.Join(deferred, " "), s.deferred},
		{"held back are", strings.Join(n.Held, " "), s.held},
		{"units are", text("active"), "active active active"},
		{"reports are", text("runs"), fmt.Sprint(runs)},
		{"the clock went back", fmt.Sprint(n.Ended < n.Began), fmt.Sprint(s.backward)},
	} {
		if is.got != is.want {
			t.Errorf("%s: %s %q; want %q", s.name, is.what, is.got, is.want)
		}
	}
	var used [4]int // kB and files of the two
	if _, err := fmt.Sscan(text("used"), &used[0], &used[1], &used[2], &used[3]); err != nil {
		t.Errorf("%s: %q is used: %v", s.name, text("used"), err)
	}
	// Two generations are kept, of 0.6 MB each, and the sandbox's last work.
	limits := [4]int{4500, 64, 120, 12}
	if s.result == change.NightRolledBack {
		limits[0] += 900 << 10 / 64 // what was reserved on this disk may stay until the next run
	}
	for i, most := range limits {
		if used[i] > most {
			t.Errorf("%s: used are %v kB of .liveupd and of /var/lib/liveupd, and files of these; want no more than %d at %d", s.name, used, most, i)
		}
	}
	if got := text("run"); got != "/run/liveupd/lock" && got != "" {
		t.Errorf("%s: in /run/liveupd lies %s", s.name, got)
	}
	// The control: right before the time nothing runs.
	if early := text("early"); len(s.at) > 0 && strings.HasSuffix(s.at[0], ":53") && !s.late && early != "inactive 0" && early != "failed 0" {
		t.Errorf("%s: before the timer's time: %q", s.name, early)
	}
	// And for what counts from the last run: systemd waits for years.
	if got := text("elapse"); strings.Contains(got, "2033") != s.backward {
		t.Errorf("%s: the calendar starts the next run at %q", s.name, got)
	}
}
