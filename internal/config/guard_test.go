package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestGuard(t *testing.T) {
	for _, tt := range []struct {
		text  string
		mode  string
		wait  time.Duration
		fails string
	}{
		{"", ModeOn, 30 * time.Second, ""},
		{"guard = \"off\"\n", ModeOff, 30 * time.Second, ""},
		{"[guard]\nmode = \"report\"\nwait = \"2m30s\"\nignore = [\"wg*\"]\n", ModeReport, 150 * time.Second, ""},
		{"[health]\nsettle = \"9s\"\n", ModeOn, 30 * time.Second, ""},
		{"guard = \"maybe\"\n", "", 0, "none of on, report, off"},
		{"[guard]\nmode = \"of\"\n", "", 0, "none of on, report, off"},
		{"[guard]\nwait = \"soon\"\n", "", 0, "no span of time"},
		{"[guard]\nwait = \"-3s\"\n", "", 0, "more than nothing"},
		{"[guard]\nwait = \"10ms\"\n", "", 0, "not between"},
		{"[guard]\nstuck = \"1s\"\n", "", 0, "not between"},
		{"[guard]\nwaits = \"1s\"\n", "", 0, "unknown setting"},
		{"[guard]\nignore = [\"eth[\"]\n", "", 0, "no pattern"},
		{"[health]\nsettle = \"1ms\"\n", "", 0, "not between"},
		{"[health]\nignore = [\"\"]\n", "", 0, "no pattern"},
		{"guard = false\n", ModeOff, 30 * time.Second, ""},
		{"guard = 3\n", "", 0, "none of"},
	} {
		root := t.TempDir()
		name := filepath.Join(root, "etc/liveupd/liveupd.toml")
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := Load(root)
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) || !strings.Contains(err.Error(), name) {
				t.Errorf("Load(%q) = %v; want an error with %q and the file's name", tt.text, err, tt.fails)
			}
			continue
		}
		if err != nil {
			t.Errorf("Load(%q): %v", tt.text, err)
			continue
		}
		g := c.Guard.Defaults()
		if g.Mode != tt.mode || g.Wait.D() != tt.wait {
			t.Errorf("Load(%q) = mode %s, wait %s; want %s, %s", tt.text, g.Mode, g.Wait.D(), tt.mode, tt.wait)
		}
	}
}
