package ui

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

var update = flag.Bool("update", false, "write the golden texts anew")

const libssl = "/usr/lib/x86_64-linux-gnu/libssl.so.3"

func examplePlan() *change.Plan {
	p := &change.Plan{
		MessageType: "plan", Schema: 1, ID: "25278a2541559d4b", Source: "tree:/srv/shop", Root: "/",
		Name: "shop", Version: "2.1", Sequence: 7, Signed: true, SignedBy: "ops",
		Changes:    change.Counts{Added: 1, Replaced: 14, Metadata: 1, Identical: 12345, Bytes: 12_345_678},
		HostAction: change.ActionDaemonReload,
		HostReasons: []change.Reason{
			{Kind: "unit-files", Path: "/usr/lib/systemd/system/api.service", Detail: "api.service: Nice="},
		},
		Units: []change.UnitPlan{
			{
				Unit: "api.service", Action: change.ActionRestart, Propagated: true, LastStartUSec: 1_040_000,
				Reasons: []change.Reason{{Kind: "propagated", Unit: "db.service", Detail: "its restart restarts this one"}},
			},
			{Unit: "db.service", Action: change.ActionRestart, LastStartUSec: 212_000, Reasons: []change.Reason{
				{Kind: "mapped", Path: libssl, PID: 1234, Comm: "db", Detail: "and 3 more of its processes"},
				{Kind: "module", Path: "/a", Detail: "through /opt/db.py", Via: []change.Link{
					{Kind: "imports", Path: "/opt/db\npy"}, {Kind: "executes", Unit: "db.service"},
				}},
				{Kind: "mapped", Path: "/b"},
				{Kind: "mapped", Path: "/c"},
				{Kind: "mapped", Path: "/d"},
			}},
			{Unit: "dbus.service", Action: change.ActionDefer, Reasons: []change.Reason{{Kind: "exec", Path: "/usr/bin/dbus-daemon", PID: 9, Comm: "dbus-daemon"}}},
			{Unit: "gone.service", Action: change.ActionStop, Reasons: []change.Reason{{Kind: "unit-removed", Path: "/usr/lib/systemd/system/gone.service"}}},
			{Unit: "new.service", Action: change.ActionStart, Reasons: []change.Reason{{Kind: "unit-added", Path: "/etc/systemd/system/multi-user.target.wants/new.service", Unit: "multi-user.target"}}},
			{Unit: "nginx.service", Action: change.ActionReload, LastStartUSec: 90_000, Reasons: []change.Reason{{Kind: "config", Path: "/etc/nginx/nginx.conf"}}},
			{Unit: "sync.service", Manager: "user@1000.service", Action: change.ActionDefer, Reasons: []change.Reason{{Kind: "mapped", Path: libssl, PID: 77, Comm: "sync"}}},
		},
		Checks:     []change.Check{{Unit: "nginx.service", Argv: []string{"/usr/sbin/nginx", "-t", "-q"}, Path: "/etc/nginx/nginx.conf"}},
		Steps:      []change.Step{{Seq: 1, Do: "check", Target: "/usr/sbin/nginx -t -q"}, {Seq: 2, Do: "commit", Target: "16 paths", Undo: "revert"}},
		Warnings:   []string{"/etc/motd stays: the machine changed it"},
		Unaffected: 41,
	}
	for i := range 16 {
		op := change.Replace
		switch i {
		case 0:
			op = change.Add
		case 1:
			op = change.Metadata
		}
		c := change.PathChange{Path: "/usr/share/shop/" + string(rune('a'+i)), Op: op, Aspects: []string{"mode", "mtime"}}
		p.Paths = append(p.Paths, c)
	}
	return p
}

func exampleReport() *change.Report {
	return &change.Report{
		Verb: "apply", ID: "20261120-1", Result: "pending", SwapUSec: 3100, HostAction: change.ActionSoftReboot,
		Deferred: []change.UnitPlan{{Unit: "dbus.service", Reasons: []change.Reason{{Kind: "exec", Path: "/usr/bin/dbus-daemon"}}}},
		Warnings: []string{"session-1.scope: processes of a session keep what they have loaded until they end (ssh)"},
	}
}

func exampleCheck() *change.CheckReport {
	return &change.CheckReport{
		Units: []change.Stale{
			{Unit: "nginx.service", Action: change.ActionRestart, Reasons: []change.Reason{{Kind: "mapped", Path: libssl, PID: 3, Comm: "nginx"}}},
			{Unit: "docker.service", Action: change.ActionDefer, Reasons: []change.Reason{{Kind: "exec", Path: "/usr/bin/dockerd", PID: 4, Comm: "dockerd", Detail: "without live-restore its containers would end"}}},
		},
		HostAction:  change.ActionDaemonReexec,
		HostReasons: []change.Reason{{Kind: "pid1", Path: libssl, PID: 1, Comm: "systemd"}},
		Sessions: []change.Hit{
			{Unit: "session-1.scope", PID: 8, Comm: "ssh", Kind: "mapped", Path: libssl},
			{Unit: "session-1.scope", PID: 9, Comm: "curl", Kind: "mapped", Path: libssl},
		},
		Examined: 212,
	}
}

func exampleCaches() []change.Cache {
	return []change.Cache{{Name: "archives", What: "packages", Bytes: 140 << 20}, {Name: "lists", What: "package lists", Bytes: 60 << 20}}
}

func exampleGenerations() []change.Generation {
	return []change.Generation{
		{ID: "3", State: "swapped", Time: 1_795_000_000, Source: "tree:/srv/a"},
		{
			ID: "2", State: "verified", Time: 1_794_000_000, Name: "shop", Version: "2.1", Retained: true,
			HostAction: change.ActionKexec, Deferred: []string{"docker.service"}, Waiting: []change.Waiting{{Unit: "docker.service", Since: 1_799_000_000, Needs: change.ActionRestart, Reasons: []change.Reason{{Kind: "exec", Path: "/usr/bin/dockerd", Detail: "without live-restore its containers would end"}}}}, Snapshot: "/.liveupd/snapshots/2", Changes: change.Counts{Replaced: 1200},
		},
		{ID: "1", State: "verified", Time: 1_793_000_000, Source: "tree:/srv/a", HostAction: change.ActionDaemonReload},
	}
}

func TestText(t *testing.T) {
	empty := &change.Plan{Source: "tree:/x", Root: "/", Changes: change.Counts{Identical: 5120}}
	quiet := &change.Plan{Source: "tree:/x", Root: "/mnt", Static: true, ID: "1", Changes: change.Counts{Added: 20000, Bytes: 3}}
	hostile := &change.Plan{
		Source: "tree:/x", Root: "/", ID: "1", Changes: change.Counts{Added: 1},
		Paths: []change.PathChange{{Path: "/tmp/\x1b[31mred\n\xff\u202egpj", Op: change.Add}},
		Units: []change.UnitPlan{{Unit: "a\rb.service", Action: change.ActionRestart, Reasons: []change.Reason{{Kind: "mapped", Path: "/\a", Comm: "\x9b1m", PID: 2}}}},
	}
	failed := change.StepResult{
		Step: change.Step{Do: "restart", Target: "nginx.service"}, Result: "failed", USec: 1_200_000,
		Detail: "its job failed", Journal: "nginx[1]: cannot open\tfile\nnginx[1]: \x1b[2Jexiting\n",
	}
	damage := &change.VerifyReport{Generation: "2", Checked: 90000, Damaged: 1, Machine: 1}
	findings := []change.Damage{
		{Path: "/usr/bin/x", Problem: "differs", Aspects: []string{"content", "mode"}, Owner: "damage", Detail: "sha256"},
		{Path: "/etc/y", Problem: "differs", Owner: "machine"},
	}
	verify := func(r Renderer) {
		for _, d := range findings {
			r.Finding(d)
		}
		r.Verify(damage)
	}
	for _, c := range []struct {
		name string
		o    Options
		do   func(Renderer)
	}{
		{"plan", Options{}, func(r Renderer) { r.Plan(examplePlan()) }},
		{"plan-verbose", Options{Verbose: true}, func(r Renderer) { r.Plan(examplePlan()) }},
		{"plan-color", Options{Color: true, Width: 80}, func(r Renderer) { r.Plan(examplePlan()) }},
		{"plan-empty", Options{}, func(r Renderer) { r.Plan(empty) }},
		{"plan-tree", Options{}, func(r Renderer) { r.Plan(quiet) }},
		{"plan-hostile", Options{Verbose: true}, func(r Renderer) { r.Plan(hostile) }},
		{"steps", Options{}, func(r Renderer) {
			r.Step(change.StepResult{Step: change.Step{Do: "commit", Target: "3 paths"}, Result: "done", USec: 31_000})
			r.Step(change.StepResult{Step: change.Step{Do: "reload", Target: "a.service"}, Result: "skipped"})
			r.Step(failed)
		}},
		{"report", Options{}, func(r Renderer) { r.Report(exampleReport()) }},
		{"report-rolled-back", Options{}, func(r Renderer) { r.Report(&change.Report{Verb: "apply", Result: "rolled-back"}) }},
		{"check", Options{}, func(r Renderer) { r.Check(exampleCheck()) }},
		{"check-verbose", Options{Verbose: true}, func(r Renderer) { r.Check(exampleCheck()) }},
		{"check-incomplete", Options{}, func(r Renderer) { r.Check(incompleteCheck()) }},
		{"check-incomplete-unit", Options{}, func(r Renderer) {
			c := incompleteCheck()
			c.Explanations = []change.Explanation{{Unit: "a.service", State: "active (running)", Unread: 2}}
			r.Check(c)
		}},
		{"check-clean", Options{}, func(r Renderer) { r.Check(&change.CheckReport{Examined: 1200}) }},
		{"verify", Options{}, verify},
		{"verify-verbose", Options{Verbose: true}, verify},
		{"verify-clean", Options{}, func(r Renderer) { r.Verify(&change.VerifyReport{Generation: "2", Checked: 1}) }},
		{"history", Options{}, func(r Renderer) { r.History(exampleGenerations()); r.History(nil) }},
		{"status", Options{}, func(r Renderer) {
			r.Status(exampleGenerations(), exampleNights(), exampleCaches())
			r.Status(nil, nil, nil)
		}},
		{"night", Options{}, func(r Renderer) {
			s := exampleNights()
			r.Night(s.Last)
			r.Night(s.Changed)
			r.Night(&change.Night{Result: change.NightSkipped, Reason: "the window is closed", DryRun: true, Held: []string{"a", "b"}})
		}},
		{"policy", Options{}, func(r Renderer) { r.Policy(examplePolicy()) }},
		{"error", Options{}, func(r Renderer) {
			r.Error(errors.New("cannot accept the new /etc/nginx/nginx.conf: nginx -t refuses it:\n  [emerg] \x1bunknown"), "mend it", 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, diag bytes.Buffer
			r := New(&out, &diag, c.o)
			r.(*text).zone = time.UTC
			r.(*text).now = func() time.Time { return time.Unix(1_800_000_000, 0) }
			c.do(r)
			got := "-- out --\n" + out.String() + "-- diag --\n" + diag.String()
			if !c.o.Color && strings.ContainsFunc(got, func(r rune) bool { return r != '\n' && unicode.IsControl(r) || r == utf8.RuneError }) {
				t.Errorf("control characters reach a pipe: %q", got)
			}
			file := filepath.Join("testdata", c.name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("text differs from %s (-want +got), run with -update if that is right:\n%s", file, diff)
			}
		})
	}
}

func TestProgressLine(t *testing.T) {
	var out, diag bytes.Buffer
	r := New(&out, &diag, Options{Width: 30})
	r.Progress(change.Progress{Phase: "staging", Done: 1_000_000, Total: 4_000_000, Unit: "bytes", Detail: "/a/very/long/path/indeed"})
	if got, want := diag.String(), "\r\x1b[Kstaging 1.0 MB of 4.0 MB (25…"; got != want {
		t.Errorf("progress = %q; want %q", got, want)
	}
	diag.Reset()
	r.Step(change.StepResult{Step: change.Step{Do: "commit", Target: "1 path"}, Result: "done"})
	if got := diag.String(); !strings.HasPrefix(got, "\r\x1b[K  done") {
		t.Errorf("the progress line is not taken away before a step: %q", got)
	}
	if out.Len() != 0 {
		t.Errorf("progress reached the results: %q", out.String())
	}
}

func TestProgressTellsRateAndTimeLeft(t *testing.T) {
	var diag strings.Builder
	r := New(new(bytes.Buffer), &diag, Options{Width: 120})
	r.Progress(change.Progress{Phase: "staging", Done: 120_000_000, Total: 700_000_000, Unit: "bytes", Files: 1203, Rate: 85_200_000, LeftSec: 67})
	if want := "staging 120.0 MB of 700.0 MB (17%), 1,203 files, 85.2 MB/s, 1m7s left"; !strings.HasSuffix(diag.String(), want) {
		t.Errorf("the line is %q; want %q", diag.String(), want)
	}
}

func TestNoProgressOnAPipe(t *testing.T) {
	var out, diag bytes.Buffer
	New(&out, &diag, Options{}).Progress(change.Progress{Phase: "reading"})
	if out.Len()+diag.Len() != 0 {
		t.Errorf("progress on a pipe: %q %q", out.String(), diag.String())
	}
}

// That there is nothing to do is said once, and of no paths where none were compared.
func TestNothingToDoIsSaidOnce(t *testing.T) {
	var out bytes.Buffer
	r := New(&out, new(bytes.Buffer), Options{})
	r.Plan(&change.Plan{Source: "check", Root: "/"})
	r.Report(&change.Report{Verb: "restart", Result: "nothing-to-do"})
	if got, want := out.String(), "check on /\nNothing to do.\n"; got != want {
		t.Errorf("a plan and its report say %q; want %q", got, want)
	}
	out.Reset()
	New(&out, new(bytes.Buffer), Options{}).Report(&change.Report{Verb: "clean", Result: "nothing-to-do"})
	if got, want := out.String(), "Nothing to do.\n"; got != want {
		t.Errorf("a report alone says %q; want %q", got, want)
	}
}

// What became of a Ctrl-C is told on a pipe too.
func TestInterrupted(t *testing.T) {
	var out, diag bytes.Buffer
	New(&out, &diag, Options{}).Progress(change.Progress{Phase: change.PhaseInterrupted, Detail: "past the commit point: the run goes on to its end"})
	if got, want := diag.String(), "interrupted, past the commit point: the run goes on to its end\n"; got != want || out.Len() != 0 {
		t.Errorf("diagnostics = %q, results = %q; want %q and nothing", got, out.String(), want)
	}
}

func TestJSONLines(t *testing.T) {
	var out, diag bytes.Buffer
	r := New(&out, &diag, Options{JSON: true, Color: true, Width: 80})
	r.Progress(change.Progress{Phase: "reading", Done: 3})
	r.Plan(&change.Plan{})
	r.Step(change.StepResult{Result: "done"})
	r.Report(&change.Report{Verb: "apply"})
	r.Check(&change.CheckReport{})
	r.Finding(change.Damage{})
	r.Verify(&change.VerifyReport{})
	r.History(nil)
	r.Status(exampleGenerations(), exampleNights(), exampleCaches())
	r.Error(errors.New("cannot <do> it\nat all"), "hint", 6)
	if diag.Len() != 0 {
		t.Errorf("JSON on the diagnostics: %q", diag.String())
	}
	want := []string{"progress", "plan", "step", "report", "report", "damage", "report", "report", "report", "error"}
	var got []string
	for line := range bytes.Lines(out.Bytes()) {
		var v map[string]any
		if err := json.Unmarshal(line, &v); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		got = append(got, v["message_type"].(string))
		for key, field := range v {
			if field == nil {
				t.Errorf("%s line: %s is null", v["message_type"], key)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("message types (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), "cannot <do> it") {
		t.Error("text is escaped as for HTML")
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 12_345_678: "12.3 MB", 1 << 40: "1.1 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q; want %q", n, got, want)
		}
	}
	for n, want := range map[uint64]string{7: "7 us", 90_000: "90 ms", 1_040_000: "1.0 s", 75_400_000: "1m15s"} {
		if got := duration(n); got != want {
			t.Errorf("duration(%d) = %q; want %q", n, got, want)
		}
	}
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q; want %q", n, got, want)
		}
	}
	if got := plural(1, "process") + ", " + plural(2, "process") + ", " + plural(3, "unit"); got != "1 process, 2 processes, 3 units" {
		t.Errorf("plural: %s", got)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"/usr/bin/ö": "/usr/bin/ö", "a\nb": `a\nb`, "\x1b[0m": `\x1b[0m`, "\xff": `\xff`, "\u202e": `\u202e`, "\x9b": `\x9b`, "\u009b": `\u009b`, "\ufffd": "\ufffd",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %s; want %s", in, got, want)
		}
	}
}
