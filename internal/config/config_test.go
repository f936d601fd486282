package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoad(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  Config
		err   string
	}{
		{"none", nil, Config{}, ""},
		{"etc hides usr/lib whole", map[string]string{
			"etc/liveupd/liveupd.toml": `source = "tree:/a"`, "usr/lib/liveupd/liveupd.toml": "keep = 9",
		}, Config{Source: "tree:/a"}, ""},
		{"drop-ins win, by name over levels", map[string]string{
			"etc/liveupd/liveupd.toml":               `source = "tree:/a"`,
			"usr/lib/liveupd/liveupd.toml.d/20.toml": `source = "tree:/c"`,
			"etc/liveupd/liveupd.toml.d/10.toml":     `source = "tree:/b"` + "\nkeep = 4",
		}, Config{Source: "tree:/c", Keep: 4}, ""},
		{"etc hides a drop-in of the same name", map[string]string{
			"usr/lib/liveupd/liveupd.toml.d/20.toml": "keep = 7",
			"etc/liveupd/liveupd.toml.d/20.toml":     "",
		}, Config{}, ""},
		{"live data", map[string]string{"etc/liveupd/liveupd.toml": `live_data = "after"`}, Config{LiveData: "after"}, ""},
		{"no caches", map[string]string{"etc/liveupd/liveupd.toml": `cache_max = "0"`}, Config{CacheMax: "0"}, ""},
		{"caches of no size", map[string]string{"etc/liveupd/liveupd.toml": `cache_max = "much"`}, Config{}, "512M"},
		{"live data that is no word", map[string]string{"etc/liveupd/liveupd.toml": `live_data = "now"`}, Config{}, "refuse, after"},
		{"unknown key", map[string]string{"etc/liveupd/liveupd.toml": "sorce = 1"}, Config{}, "unknown setting sorce (line 1, column 1)"},
		{"unknown keys", map[string]string{"etc/liveupd/liveupd.toml": "keep = 1\na = 1\n[unattended]\nb = 1"}, Config{}, "unknown settings a (line 2, column 1), unattended.b (line 4, column 1)"},
		{"another type", map[string]string{"etc/liveupd/liveupd.toml": `keep = "two"`}, Config{}, "line 1, column 8: keep takes a whole number"},
		{"a table in a table", map[string]string{"etc/liveupd/liveupd.toml": `keep = {a = 1}`}, Config{}, "keep takes a whole number"},
		{"more than one table", map[string]string{"etc/liveupd/liveupd.toml": "[[unattended]]"}, Config{}, "unattended takes one table"},
		{"syntax", map[string]string{"etc/liveupd/liveupd.toml": "a b"}, Config{}, "line 1"},
		{"rung", map[string]string{"etc/liveupd/liveupd.toml": `max = "explode"`}, Config{}, "no rung"},
		{"start is no rung", map[string]string{"etc/liveupd/liveupd.toml": `max = "start"`}, Config{}, "no rung"},
		{"what one file lacks comes with the next", map[string]string{
			"etc/liveupd/liveupd.toml":           "keep = 3\nunattended.reboot = \"window\"",
			"etc/liveupd/liveupd.toml.d/10.toml": `unattended.windows = ["02:00-03:00"]`,
		}, Config{Keep: 3, Unattended: Unattended{Reboot: "window", Windows: []window{{Days: 127, From: 120, To: 180}}}}, ""},
		{"what one file lacks and the next takes away", map[string]string{
			"etc/liveupd/liveupd.toml":           "[unattended]\nreboot = \"window\"\nwindows = [\"02:00-03:00\"]",
			"etc/liveupd/liveupd.toml.d/10.toml": `unattended.windows = []`,
			"etc/liveupd/liveupd.toml.d/20.toml": `keep = 3`,
		}, Config{}, "10.toml: unattended.reboot"},
		{"negative", map[string]string{"etc/liveupd/liveupd.toml": `keep = -1`}, Config{}, "negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tt.files {
				name = filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Load(root)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("Load = %v; want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, *got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCacheBytes(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "0": -1, "512M": 512 << 20, "2g": 2 << 30, "77": 77, "1T": 1 << 40} {
		if got := (&Config{CacheMax: text}).CacheBytes(); got != want {
			t.Errorf("cache_max = %q is %d bytes; want %d", text, got, want)
		}
	}
	for _, bad := range []string{"M", "-1", "1.5G", "99999999999999T", "1MB"} {
		if n, err := ParseSize(bad); err == nil {
			t.Errorf("the size %q is read as %d", bad, n)
		}
	}
}
