package systemd_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/internal/systemd/systemdtest"
)

func TestMachine(t *testing.T) {
	for _, root := range []string{"bookworm", "trixie"} {
		t.Run(root, func(t *testing.T) { systemdtest.Run(t, root, "^TestInside") })
	}
}

func connect(t testing.TB) *systemd.Conn {
	t.Helper()
	systemdtest.NeedInside(t)
	c, err := systemd.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// unit writes a unit file that lives until the test ends, and makes systemd read it.
func unit(t testing.TB, c *systemd.Conn, name, content string) {
	t.Helper()
	path := filepath.Join("/run/systemd/system", name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Do(context.Background(), []systemd.Job{{Kind: systemd.JobStop, Unit: name}})
		_ = c.ResetFailed(context.Background(), name)
		_ = os.Remove(path)
		_ = c.Reload(context.Background())
	})
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func do(t testing.TB, c *systemd.Conn, kind systemd.JobKind, name string) systemd.JobEnd {
	t.Helper()
	ends, _ := c.Do(t.Context(), []systemd.Job{{Kind: kind, Unit: name}})
	return ends[0]
}

func TestInsideConnect(t *testing.T) {
	c := connect(t)
	if !systemd.Booted() {
		t.Error("Booted() = false")
	}
	if !c.Private() {
		t.Error("root is not on the private socket")
	}
	if v := c.Version(); v < 250 || v > 400 {
		t.Errorf("Version() = %d", v)
	}
}

func TestInsideUnits(t *testing.T) {
	c := connect(t)
	units, err := c.Units(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	j := units["systemd-journald.service"]
	if j == nil || j.ActiveState != "active" || j.MainPID == 0 || len(j.InvocationID) != 32 || j.Type != "notify" ||
		j.ControlGroup != "/system.slice/systemd-journald.service" || j.LastStartUSec == 0 || !strings.HasSuffix(j.FragmentPath, "/systemd-journald.service") {
		t.Errorf("systemd-journald.service is %+v", j)
	}
	found := false
	for _, s := range j.TriggeredBy {
		found = found || s == "systemd-journald.socket"
	}
	if !found {
		t.Errorf("TriggeredBy of systemd-journald.service = %v", j.TriggeredBy)
	}
	if s := units["systemd-journald.socket"]; s == nil || len(s.Triggers) == 0 {
		t.Errorf("systemd-journald.socket is %+v", s)
	}
	// An alias leads to the same unit.
	if d := units["default.target"]; d == nil || d.Name == "default.target" {
		t.Errorf("default.target is %+v", d)
	}
}

func TestInsideJobs(t *testing.T) {
	c := connect(t)
	unit(t, c, "lu-a.service", "[Service]\nExecStart=/bin/sleep infinity\n")
	unit(t, c, "lu-bad.service", "[Service]\nType=exec\nExecStart=/nonexistent/program\n")
	unit(t, c, "lu-fail.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n")
	unit(t, c, "lu-manual.service", "[Unit]\nRefuseManualStart=yes\n[Service]\nExecStart=/bin/sleep infinity\n")

	if end := do(t, c, systemd.JobTryRestart, "lu-a.service"); end.Err != nil || end.Result != "done" {
		t.Errorf("try-restart of an inactive unit: %+v", end)
	}
	if states, _ := c.States(t.Context(), []string{"lu-a.service"}); states[0].ActiveState != "inactive" {
		t.Errorf("try-restart started an inactive unit: %+v", states[0])
	}
	if end := do(t, c, systemd.JobStart, "lu-a.service"); end.Err != nil || end.Result != "done" {
		t.Errorf("start: %+v", end)
	}
	ends, queued := c.Do(t.Context(), []systemd.Job{
		{Kind: systemd.JobTryRestart, Unit: "lu-a.service"},
		{Kind: systemd.JobStart, Unit: "lu-bad.service"},
		{Kind: systemd.JobStart, Unit: "lu-fail.service"},
		{Kind: systemd.JobStart, Unit: "lu-manual.service"},
		{Kind: systemd.JobStart, Unit: "lu-none.service"},
	})
	if ends[0].Result != "done" || ends[1].Result != "failed" || ends[2].Result != "failed" {
		t.Errorf("results %+v", ends)
	}
	if !errors.Is(ends[3].Err, systemd.ErrRefusesManual) || !errors.Is(ends[4].Err, systemd.ErrNoSuchUnit) {
		t.Errorf("errors %v; %v", ends[3].Err, ends[4].Err)
	}
	if len(queued) < 3 {
		t.Errorf("queued jobs: %v", queued)
	}
}

// Jobs of a batch keep systemd's ordering whatever order they are given in: b,
// which comes After=a and is enqueued first, is started second.
func TestInsideJobsAreOrdered(t *testing.T) {
	c := connect(t)
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	body := func(name, after string) string {
		return "[Unit]\nStartLimitIntervalSec=0\n" + after + "\n[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
			"ExecStart=/bin/sh -c 'sleep 0.05; echo " + name + " >> " + log + "'\n"
	}
	unit(t, c, "lu-first.service", body("first", ""))
	unit(t, c, "lu-second.service", body("second", "After=lu-first.service"))
	const rounds = 10
	for range rounds {
		ends, _ := c.Do(t.Context(), []systemd.Job{
			{Kind: systemd.JobRestart, Unit: "lu-second.service"},
			{Kind: systemd.JobRestart, Unit: "lu-first.service"},
		})
		for _, end := range ends {
			if end.Err != nil || end.Result != "done" {
				t.Fatalf("%+v", end)
			}
		}
	}
	got, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("first\nsecond\n", rounds); string(got) != want {
		t.Errorf("order:\n%s", got)
	}
}

func TestInsideJobDeadline(t *testing.T) {
	c := connect(t)
	unit(t, c, "lu-slow.service", "[Service]\nType=oneshot\nExecStart=/bin/sleep 5\n")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	ends, _ := c.Do(ctx, []systemd.Job{{Kind: systemd.JobStart, Unit: "lu-slow.service"}})
	if !errors.Is(ends[0].Err, context.DeadlineExceeded) {
		t.Errorf("a job of 5 s after 0.2 s: %+v", ends[0])
	}
	if _, err := c.Units(t.Context()); err != nil {
		t.Errorf("the connection did not survive a deadline: %v", err)
	}
}

func TestInsideReexec(t *testing.T) {
	c := connect(t)
	unit(t, c, "lu-keep.service", "[Service]\nExecStart=/bin/sleep infinity\n")
	if end := do(t, c, systemd.JobStart, "lu-keep.service"); end.Err != nil {
		t.Fatal(end.Err)
	}
	before, err := c.States(t.Context(), []string{"lu-keep.service"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Reexec(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := c.States(t.Context(), []string{"lu-keep.service"})
	if err != nil {
		t.Fatal(err)
	}
	if after[0].InvocationID != before[0].InvocationID || after[0].MainPID != before[0].MainPID {
		t.Errorf("a re-execution disturbed a service: %+v, then %+v", before[0], after[0])
	}
	if end := do(t, c, systemd.JobRestart, "lu-keep.service"); end.Err != nil || end.Result != "done" {
		t.Errorf("restart after the re-execution: %+v", end)
	}
}

func TestInsideTransient(t *testing.T) {
	c := connect(t)
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	in, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer inW.Close()
	post := filepath.Join(t.TempDir(), "post")
	r, err := c.StartTransient(t.Context(), systemd.Transient{
		Name: "lu-transient.service", Description: "a test",
		Argv: []string{"/bin/sh", "-c", "read line; echo \"$line $GREETING\"; exit 7"},
		Env:  []string{"GREETING=hello"}, Stdin: in, Stdout: out, Stderr: out,
		ExecStopPost: []string{"/bin/touch", post},
	})
	if err != nil {
		t.Fatal(err)
	}
	props, err := c.Properties(t.Context(), "lu-transient.service")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"KillMode": "mixed", "OOMScoreAdjust": int32(-900), "SendSIGHUP": false, "IgnoreSIGPIPE": true,
		"CollectMode": "inactive-or-failed", "Type": "exec",
	} {
		if props[key] != want {
			t.Errorf("%s = %v; want %v", key, props[key], want)
		}
	}
	// Nobody waits for it yet; PID 1 re-executes under it.
	if err := c.Reexec(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := inW.WriteString("word\n"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	exit, err := r.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("exit after a re-execution: %+v", exit)
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if want := "word hello\n"; string(got) != want {
		t.Errorf("output %q; want %q", got, want)
	}
	if _, err := os.Stat(post); err != nil {
		t.Errorf("ExecStopPost had not run when Wait returned: %v", err)
	}
}

func TestInsideTransientExit(t *testing.T) {
	c := connect(t)
	for _, tt := range []struct {
		name, script string
		want         systemd.Exit
	}{
		{"status", "sleep 0.1; exit 3", systemd.Exit{Known: true, Code: 1, Status: 3, Result: "exit-code"}},
		{"at once", "exit 4", systemd.Exit{Known: true, Code: 1, Status: 4, Result: "exit-code"}},
		{"killed", "kill -KILL $$", systemd.Exit{Known: true, Code: 2, Status: 9, Result: "signal"}},
	} {
		r, err := c.StartTransient(t.Context(), systemd.Transient{Name: "lu-exit.service", Argv: []string{"/bin/sh", "-c", tt.script}})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		exit, err := r.Wait(t.Context())
		if err != nil || exit != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, exit, err, tt.want)
		}
	}
	if _, err := c.StartTransient(t.Context(), systemd.Transient{Name: "lu-exit.service", Argv: []string{"/nonexistent"}}); err == nil {
		t.Error("a program that is not there was started")
	}
	if _, err := c.StartTransient(t.Context(), systemd.Transient{Name: "lu-exit.service", Argv: []string{"sh"}}); err == nil {
		t.Error("a relative program was started")
	}
}

func TestInsideJournal(t *testing.T) {
	c := connect(t)
	unit(t, c, "lu-talk.service", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo some words; exit 1'\n")
	since := time.Now()
	do(t, c, systemd.JobStart, "lu-talk.service")
	got := c.Journal(t.Context(), "lu-talk.service", "", 10)
	if !strings.Contains(got, "some words") {
		t.Errorf("Journal() = %q", got)
	}
	got = c.Journal(t.Context(), "lu-talk.service", strconv.FormatInt(since.UnixMicro(), 10), 10)
	if !strings.Contains(got, "some words") {
		t.Errorf("Journal(since %v) = %q", since, got)
	}
	if got := c.Journal(t.Context(), "lu-talk.service", strconv.FormatInt(time.Now().Add(time.Hour).UnixMicro(), 10), 10); strings.Contains(got, "some words") {
		t.Errorf("Journal(since an hour ahead) = %q", got)
	}
}

func BenchmarkUnits(b *testing.B) {
	c := connect(b)
	for b.Loop() {
		if _, err := c.Units(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
