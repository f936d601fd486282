package night

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// One boot serves all: each part leaves the machine with its services up.
func TestNight(t *testing.T) {
	t.Parallel()
	r := boot(t)
	for _, part := range []struct {
		name string
		do   func(*rig)
	}{
		{"timer", timer},
	} {
		t.Run(part.name, func(t *testing.T) { part.do(&rig{r.Machine, t}) })
	}
}

// The packaged timer fires, the service applies what is pending, restarts and reports.
func timer(r *rig) {
	r.configure()
	r.wantVersions("1 1")
	r.publish(app{name: "alpha", version: "2", text: "two"})
	r.write("/run/systemd/system/liveupd.timer.d/soon.conf", "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/5\nRandomizedDelaySec=0\nAccuracySec=100ms\n", 0o644)
	r.Shell("systemctl daemon-reload; systemctl start liveupd.timer")
	n := r.after(nil)
	r.Shell("systemctl stop liveupd.timer; rm -r /run/systemd/system/liveupd.timer.d; systemctl daemon-reload")
	r.want(n, change.NightDone)
	r.wantVersions("2 1")
	if got := strings.Join(n.Units, " "); got != "alpha.service" {
		r.t.Errorf("restarted were %q; want alpha.service", got)
	}
	r.t.Logf("%s", r.Run("liveupd", "status").Stdout)
}
