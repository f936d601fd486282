package ui

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

func fullCheck() *change.CheckReport {
	r := exampleCheck()
	r.Waiting = []string{"docker.service"}
	r.Kernel = &change.Release{Running: "6.1.0-13-amd64", Newest: "6.1.0-18-amd64", State: "newer"}
	r.Microcode = &change.Release{Running: "0x22", Newest: "0x22", State: "current"}
	r.Units = append(r.Units,
		change.Stale{Unit: "lxc@web|1.service", Action: change.ActionDefer},
		change.Stale{Unit: "odd\"\\\nname.service", Action: change.ActionRestart},
	)
	return r
}

// incompleteCheck is what an ordinary user gets.
func incompleteCheck() *change.CheckReport {
	return &change.CheckReport{Examined: 3, Incomplete: true, Unread: 97, Gaps: []string{"97 processes could not be looked at (not permitted): whether they run old code is not known"}}
}

func TestFormats(t *testing.T) {
	now := time.Unix(1800000000, 0)
	for name, r := range map[string]*change.CheckReport{"full": fullCheck(), "clean": {Examined: 9}, "incomplete": incompleteCheck()} {
		line, status := Nagios(r)
		got := "exit " + string(rune('0'+status)) + "\n" + line + "\n-- batch\n" + string(Batch(r)) + "-- openmetrics\n" + string(OpenMetrics(r, now))
		golden := filepath.Join("testdata", "formats-"+name+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatalf("%v (write it with -update)", err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
		if strings.Count(line, "|") != 1 || strings.ContainsAny(line, "\n") {
			t.Errorf("%q: a plugin's line has one bar, before its performance data", line)
		}
	}
}

// What a monitoring plugin exits with, for each thing that a check can find.
func TestNagiosStatus(t *testing.T) {
	for name, c := range map[string]struct {
		r    change.CheckReport
		want int
	}{
		"nothing":           {change.CheckReport{}, NagiosOK},
		"a unit":            {change.CheckReport{Units: []change.Stale{{Unit: "a.service", Action: change.ActionRestart}}}, NagiosWarning},
		"a session":         {change.CheckReport{Sessions: []change.Hit{{Unit: "session-1.scope"}}}, NagiosWarning},
		"put off":           {change.CheckReport{Waiting: []string{"a.service"}}, NagiosWarning},
		"a daemon-reload":   {change.CheckReport{HostAction: change.ActionDaemonReload}, NagiosWarning},
		"a soft-reboot":     {change.CheckReport{HostAction: change.ActionSoftReboot}, NagiosCritical},
		"a kernel":          {change.CheckReport{Kernel: &change.Release{State: "newer"}}, NagiosCritical},
		"the same kernel":   {change.CheckReport{Kernel: &change.Release{State: "current"}}, NagiosOK},
		"nothing of a part": {*incompleteCheck(), NagiosUnknown},
		"a unit of a part":  {change.CheckReport{Incomplete: true, Unread: 5, Units: []change.Stale{{Unit: "a.service"}}}, NagiosWarning},
		"unknown firmware":  {change.CheckReport{Microcode: &change.Release{State: "unknown"}}, NagiosOK},
	} {
		if line, got := Nagios(&c.r); got != c.want {
			t.Errorf("%s: exits %d (%s); want %d", name, got, line, c.want)
		}
	}
}

// Each line of the metrics is what OpenMetrics 1.0 calls a descriptor, a sample
// or the end, each family is described before its samples, and no sample is
// there twice.
func TestOpenMetricsSyntax(t *testing.T) {
	sample := regexp.MustCompile(`^([a-z_]+)(\{([a-z_]+="(\\[\\n"]|[^\\"\n])*",?)*\})? -?[0-9.]+$`)
	text := string(OpenMetrics(fullCheck(), time.Now()))
	if !strings.HasSuffix(text, "\n# EOF\n") {
		t.Error("the end is not marked")
	}
	seen, family := map[string]bool{}, ""
	for line := range strings.Lines(strings.TrimSuffix(text, "# EOF\n")) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			family, _, _ = strings.Cut(rest, " ")
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil || m[1] != family {
			t.Errorf("%q is no sample of %s", line, family)
			continue
		}
		series := line[:strings.LastIndexByte(line, ' ')]
		if seen[series] {
			t.Errorf("%q is there twice", series)
		}
		seen[series] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d samples", len(seen))
	}
}

// A script that restarts what it reads must not take a user's unit for the system's.
func TestBatchOfUsers(t *testing.T) {
	got := string(Batch(&change.CheckReport{Units: []change.Stale{
		{Unit: "nginx.service", Action: change.ActionRestart},
		{Unit: "nginx.service", Manager: "user@1000.service", Action: change.ActionRestart},
		{Unit: "b.service", Manager: "user@1000.service", Action: change.ActionRestart},
	}}))
	if strings.Count(got, "NEEDRESTART-SVC:") != 1 || strings.Count(got, "NEEDRESTART-SESS: user@1000.service\n") != 1 {
		t.Errorf("the lines are\n%s", got)
	}
}
