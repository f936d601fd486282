package planner

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// What reaches a unit and leaves it alone is told, each with why; a unit that
// is acted on is not among them.
func TestSpared(t *testing.T) {
	const plugin, sudo, zone, script = "/usr/lib/nginx/modules/geoip.so", "/usr/bin/sudo", "/usr/share/zoneinfo/UTC", "/opt/job"
	s := machine().replace(libssl, plugin, sudo, zone, script, "/opt/asleep")
	s.unit("nginx.service", nginxUnit, change.Use{Path: plugin, Kind: "soname"})
	s.unit("cron.service", "")
	s.unit("sshd.service", "", change.Use{Path: libssl, Kind: "soname"})
	s.unit("job.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\n", change.Use{Path: script, Kind: "script"})
	s.unit("asleep.service", "", change.Use{Path: "/opt/asleep", Kind: "script"})
	delete(s.in.Facts.Units, "asleep.service")
	delete(s.in.Old.Reached, "asleep.service")
	delete(s.in.New.Reached, "asleep.service")
	s.unit("app.service", "Description=old")
	s.redefine("app.service", "Description=new")
	s.hit(change.Hit{Unit: "cron.service", PID: 4, Comm: "sudo", Kind: "exec", Path: sudo, Setuid: true})
	s.hit(change.Hit{Unit: "cron.service", PID: 5, Comm: "cron", Kind: "mapped", Path: zone})
	s.hit(change.Hit{Unit: "cron.service", PID: 6, Comm: "old", Kind: "mapped", Path: libssl, Leftover: true})
	s.maps("sshd.service", 7, "sshd", libssl)

	p := Make(s.in)
	if got := summary(p); got != "restart sshd.service, host daemon-reload" {
		t.Errorf("the plan: %s", got)
	}
	got := map[string]string{}
	for _, u := range p.Spared {
		if u.Action != change.ActionNone {
			t.Errorf("%s: spared with %s", u.Unit, u.Action)
		}
		for _, r := range u.Reasons {
			got[u.Unit] += r.Path + ": " + r.Detail + "\n"
		}
	}
	for unit, want := range map[string][]string{
		"nginx.service":  {plugin + ": none of its processes uses it"},
		"cron.service":   {sudo + ": a set-id program", zone + ": data", libssl + ": the process is older"},
		"job.service":    {script + ": a oneshot has done its work"},
		"asleep.service": {"/opt/asleep: it does not run"},
	} {
		for _, w := range want {
			if !strings.Contains(got[unit], w) {
				t.Errorf("%s: %q; want %q in it", unit, got[unit], w)
			}
		}
	}
	if got["sshd.service"] != "" {
		t.Errorf("sshd.service is restarted, and said to be left alone: %q", got["sshd.service"])
	}
	before := p.ID
	s.in.Facts.Hits = s.in.Facts.Hits[3:]
	if after := Make(s.in).ID; after != before {
		t.Error("what is left alone counts for the plan's ID")
	}
}
