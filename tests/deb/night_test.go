package deb

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/machine"
)

// A night whose update is liveupd itself: the service goes on after its own program was
// replaced, does the groups that are left, and takes all of it back where a canary says so.
func TestOwnNight(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: "trixie", Customize: carry(t)})
	m.Shell(apt + "install /root/old.deb")
	m.Shell(`mkdir -p /srv/archive && cd /srv/archive && mv /root/new.deb . && rm -f /etc/apt/sources.list.d/* &&
		echo 'deb [trusted=yes] file:/srv/archive ./' >/etc/apt/sources.list && echo 'Acquire::Languages "none";' >/etc/apt/apt.conf.d/51test
		{ dpkg-deb -f new.deb; echo "Filename: ./new.deb"; echo "Size: $(stat -c %s new.deb)"; echo "SHA256: $(sha256sum new.deb | cut -d ' ' -f 1)"; } >Packages
		printf 'Origin: X\nLabel: X\nSuite: stable\nCodename: stable\nDate: Sat, 21 Nov 2026 00:00:00 UTC\nSHA256:\n %s %s Packages\n' "$(sha256sum Packages | cut -d ' ' -f 1)" "$(stat -c %s Packages)" >Release`)
	night := func(canary string) *change.Night {
		t.Helper()
		m.Shell(fmt.Sprintf(`cat >/etc/liveupd/liveupd.toml.d/night.toml <<'END'
[unattended]
enabled = true
settle = "0s"
backoff = "0s"
canary = ["%s"]
[[unattended.group]]
name = "first"
units = ["none.service"]
[[unattended.group]]
name = "second"
units = ["*"]
END`, canary))
		m.Shell("systemctl start liveupd.service")
		await(t, "the end of liveupd.service", func() bool {
			return slices.Contains([]string{"inactive", "failed"}, m.Unit("liveupd.service").ActiveState)
		})
		var state struct {
			Last *change.Night `json:"last"`
		}
		if err := json.Unmarshal([]byte(m.Shell("cat /var/lib/liveupd/unattended.json")), &state); err != nil || state.Last == nil {
			t.Fatalf("the night left %+v, %v: %s", state, err, m.Journal("liveupd.service"))
		}
		for _, w := range state.Last.Warnings {
			if strings.Contains(w, "not known") || strings.Contains(w, "cannot") {
				t.Errorf("it warns: %s", w)
			}
		}
		return state.Last
	}
	version := func() string { return m.Shell("liveupd --version; dpkg --audit") }
	if n := night("/bin/false"); n.Result != change.NightRolledBack || version() != "liveupd "+oldVersion+"-1" {
		t.Errorf("the canary refuses, and the night is %s (%s), with %s", n.Result, n.Error, version())
	}
	// The control: it is content.
	n := night("/bin/true")
	if n.Result != change.NightDone || version() != "liveupd "+newVersion+"-1" {
		t.Errorf("the night is %s (%s), with %s", n.Result, n.Error, version())
	}
	canaries := 0
	for _, s := range n.Steps {
		if s.Step.Do == "canary" {
			canaries++
		}
	}
	if canaries != 2 {
		t.Errorf("%d groups had their canary: %+v", canaries, n.Steps)
	}
	if out := m.Shell("liveupd status"); strings.Contains(out, "cut off") {
		t.Errorf("status: %s", out)
	}
}
