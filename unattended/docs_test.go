package unattended

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

// What others rely on is documented: message IDs, metrics, results, settings.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../docs/unattended.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	source, err := os.ReadFile("messages.go")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`[0-9a-f]{32}`).FindAllString(string(source), -1)
	if len(want) != 14 || len(slices.Compact(slices.Sorted(slices.Values(want)))) != len(want) {
		t.Errorf("%d message IDs", len(want))
	}
	night := &change.Night{Result: change.NightDone}
	list := []change.Generation{{Waiting: []change.Waiting{{Unit: "a.service"}}}}
	for line := range strings.Lines(string(metrics(&State{Last: night, Changed: night}, true, list))) {
		if name := regexp.MustCompile(`^[a-z_]+`).FindString(line); name != "" {
			want = append(want, "| "+name)
		}
	}
	for result := range resultMessages {
		want = append(want, "| "+result+" |")
	}
	settings, err := os.ReadFile("../internal/config/unattended.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`toml:\"([a-z_]+)\"`").FindAllStringSubmatch(string(settings), -1) {
		if m[1] != "group" {
			want = append(want, "    "+m[1]+" = ")
		}
	}
	for _, w := range want {
		if !strings.Contains(doc, w) {
			t.Errorf("docs/unattended.md lacks %q", w)
		}
	}
}

// Every line is one that a collector understands.
func TestMetrics(t *testing.T) {
	night := &change.Night{Result: change.NightRolledBack, Began: 10, Ended: 70}
	list := []change.Generation{{HostAction: change.ActionKexec, Waiting: []change.Waiting{{Unit: "a\"b\\c\n.service", Since: 5}}}}
	text := string(metrics(&State{Last: night, Changed: night, Runs: map[string]int64{change.NightDone: 3}}, true, list))
	sample := regexp.MustCompile(`^[a-z_]+(\{[a-z]+="([^"\\\n]|\\["\\n])*"\})? -?[0-9]+$`)
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(line, "\n"); !strings.HasPrefix(line, "# ") && !sample.MatchString(line) {
			t.Errorf("no sample: %q", line)
		}
	}
	for _, want := range []string{
		`liveupd_unattended_last_result{result="rolled-back"} 1`, `liveupd_unattended_last_result{result="done"} 0`,
		"liveupd_unattended_last_duration_seconds 60", `liveupd_unattended_runs_total{result="done"} 3`,
		`liveupd_deferred_since_timestamp_seconds{unit="a\"b\\c\n.service"} 5`, `liveupd_pending_host_action{action="kexec"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the metrics lack %s:\n%s", want, text)
		}
	}
	if !strings.HasSuffix(text, "# EOF\n") {
		t.Error("the metrics have no end")
	}
}

func TestMotd(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	if got := Motd(&State{Looked: &change.Night{Result: change.NightDone}}, nil, now); got != "" {
		t.Errorf("after a good night: %q", got)
	}
	state := &State{
		Looked:  &change.Night{Result: change.NightRolledBack, Error: "the canary: \x1b[31mno\nmore", Ended: now.Unix() - 3600},
		BackOff: []change.BackOff{{Source: "apt", Packages: []change.Package{{Name: "a", To: "1"}}, Failures: 1, Until: now.Unix() + 60, Error: "no"}},
	}
	list := []change.Generation{{HostAction: change.ActionReboot, Waiting: []change.Waiting{
		{Unit: "b.service", Since: now.Add(-73 * time.Hour).Unix(), Reasons: []change.Reason{{Kind: "mapped", Path: "/lib/x", Detail: "the shop is open"}}},
	}}}
	got := Motd(state, list, now)
	for _, want := range []string{
		"liveupd: unattended run failed and was rolled back: the canary: ?[31mno (2026-11-21 07:00)\n", "a=1 has failed, and is left alone until",
		"b.service still runs the old state, since 2026-11-18 07:00 (3 days): the shop is open\n", "a reboot is pending\n", "see: liveupd status\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the message lacks %q:\n%s", want, got)
		}
	}
}

func TestOnBattery(t *testing.T) {
	for _, tt := range []struct {
		name     string
		supplies map[string]map[string]string
		want     bool
	}{
		{"a server", nil, false},
		{"mains", map[string]map[string]string{"AC": {"type": "Mains", "online": "1"}, "BAT0": {"type": "Battery", "status": "Charging"}}, false},
		{"no mains", map[string]map[string]string{"AC": {"type": "Mains", "online": "0"}, "BAT0": {"type": "Battery", "status": "Discharging"}}, true},
		{"no mains, and a battery that does not say", map[string]map[string]string{"AC": {"type": "Mains", "online": "0"}, "BAT0": {"type": "Battery", "status": "Unknown"}}, true},
		{"a battery alone", map[string]map[string]string{"BAT0": {"type": "Battery", "status": "Discharging"}}, true},
		{"a full one", map[string]map[string]string{"BAT0": {"type": "Battery", "status": "Full"}}, false},
		{"a mouse's", map[string]map[string]string{"hid": {"type": "Battery", "scope": "Device", "status": "Discharging"}}, false},
		{"a charger by USB", map[string]map[string]string{"usb": {"type": "USB", "online": "1"}, "BAT0": {"type": "Battery", "status": "Discharging"}}, false},
		{"no battery in its bay", map[string]map[string]string{"AC": {"type": "Mains", "online": "0"}, "BAT0": {"type": "Battery", "present": "0", "status": "Discharging"}}, false},
	} {
		dir := t.TempDir()
		for name, files := range tt.supplies {
			if err := os.Mkdir(dir+"/"+name, 0o755); err != nil {
				t.Fatal(err)
			}
			for file, text := range files {
				if err := os.WriteFile(dir+"/"+name+"/"+file, []byte(text+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, why := onBattery(dir); got != tt.want || why == "" {
			t.Errorf("%s: %v (%s); want %v", tt.name, got, why, tt.want)
		}
	}
}
