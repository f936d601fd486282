package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// suite writes a module of one test file and enters it.
func suite(t *testing.T, body, skips string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":      "module github.com/liveupd/liveupd\n\ngo 1.26\n",
		"a/a.go":      "package a\n",
		"a/a_test.go": "package a\n\nimport (\n\t\"testing\"\n\t\"time\"\n)\n\nvar _ = time.Now\n\n" + body,
		"skips.txt":   skips,
	} {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "-mod=mod")
}

func TestRun(t *testing.T) {
	const skipping = "func TestS(t *testing.T) { t.Run(\"case\", func(t *testing.T) { t.Skip(\"needs a moon\") }) }\n"
	const failing = "func TestF(t *testing.T) { t.Log(\"said before\"); t.Run(\"x\", func(t *testing.T) { t.Fatal(\"broken\") }) }\n"
	const passing = "func TestP(t *testing.T) { t.Log(\"silence\") }\n"
	tests := []struct {
		name, body, skips string
		strict, verbose   bool
		err               string // "" wants none
		want, never       []string
	}{
		{name: "passes", body: passing, strict: true, want: []string{"ok  \tgithub.com/liveupd/liveupd/a"}, never: []string{"silence", "PASS", "==="}},
		{name: "fails", body: passing + failing, err: "go test failed", want: []string{"broken", "said before", "--- FAIL: TestF", "FAIL\tgithub.com"}, never: []string{"silence"}},
		{name: "panics", body: "func TestX(t *testing.T) { panic(\"aargh\") }\n", err: "go test failed", want: []string{"aargh", "FAIL\tgithub.com"}},
		{name: "does not build", body: "func TestX(t *testing.T) { nonsense }\n", err: "go test failed", want: []string{"undefined: nonsense"}},
		{name: "skips are counted", body: skipping, want: []string{"1 tests skipped"}},
		{name: "skips are listed", body: skipping, verbose: true, want: []string{"skipped github.com/liveupd/liveupd/a TestS/case:", "needs a moon", "not listed"}},
		{name: "skips in CI", body: skipping, strict: true, err: "1 skipped tests are not listed", want: []string{"ok  \t", "needs a moon"}},
		{name: "skips in CI, listed", body: skipping, skips: "# why\na TestS no moon here\n", strict: true, want: []string{"allowed: no moon here"}},
		{name: "another is listed", body: skipping, skips: "b TestS no moon here\na TestT no moon here\n", strict: true, err: "1 skipped tests"},
		{name: "listed without a reason", body: passing, skips: "a TestS\n", err: "line 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			suite(t, tt.body, tt.skips)
			var out bytes.Buffer
			err := run(options{args: []string{"test", "-json", "./..."}, timeout: time.Minute, strict: tt.strict, verbose: tt.verbose}, "skips.txt", &out)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("run = %v; want %q\n%s", err, tt.err, &out)
			}
			for _, s := range tt.want {
				if !strings.Contains(out.String(), s) {
					t.Errorf("the output lacks %q:\n%s", s, &out)
				}
			}
			for _, s := range tt.never {
				if strings.Contains(out.String(), s) {
					t.Errorf("the output has %q:\n%s", s, &out)
				}
			}
		})
	}
}

// The whole run ends in time, and says what still ran.
func TestRunTimeout(t *testing.T) {
	suite(t, "func TestHang(t *testing.T) { time.Sleep(time.Hour) }\n", "")
	var out bytes.Buffer
	// Compiled once before, so that the time goes to the test alone.
	if err := run(options{args: []string{"test", "-json", "-run", "^$", "./..."}, timeout: time.Minute}, "skips.txt", &out); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err := run(options{args: []string{"test", "-json", "./..."}, timeout: 5 * time.Second}, "skips.txt", &out)
	if err == nil || !strings.Contains(err.Error(), "did not end within") {
		t.Errorf("run = %v; want the timeout", err)
	}
	if d := time.Since(start); d > 40*time.Second {
		t.Errorf("run ended after %s", d)
	}
	if !strings.Contains(out.String(), "time.Sleep") {
		t.Errorf("the output does not show where the test hung:\n%s", &out)
	}
}
