package neighbours

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/internal/laid"
)

func root(t *testing.T, files map[string]string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.Symlink(target, name); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func names(files []laid.File) []string {
	var out []string
	for _, f := range files {
		out = append(out, f.Path)
	}
	slices.Sort(out)
	return out
}

const (
	uu     = "usr/bin/unattended-upgrade"
	keeper = "usr/bin/etckeeper"
)

func TestInspect(t *testing.T) {
	for _, tt := range []struct {
		name       string
		files      map[string]string
		unattended bool
		found      string
		lays       []string
	}{
		{"nothing", nil, true, "", nil},
		{"unattended-upgrades, and liveupd's own mode off", map[string]string{uu: "", "etc/apt/apt.conf.d/20auto-upgrades": `APT::Periodic::Unattended-Upgrade "1";`}, false, "installs upgrades", []string{dropIn}},
		{"and on", map[string]string{uu: ""}, true, "switched off", []string{aptConf, dropIn}},
		{"a comment is no setting", map[string]string{uu: "", "etc/apt/apt.conf.d/20x": "// APT::Periodic::Unattended-Upgrade \"1\";\n# APT::Periodic::Unattended-Upgrade \"1\";\n"}, false, "switched off", []string{dropIn}},
		{"the last file counts", map[string]string{uu: "", "etc/apt/apt.conf.d/20x": `APT::Periodic::Unattended-Upgrade "1";`, "etc/apt/apt.conf.d/30x": `apt::periodic::unattended-upgrade "0";`}, false, "switched off", []string{dropIn}},
		{"our own file is not what the administrator says", map[string]string{uu: "", "etc/apt/apt.conf.d/20x": `APT::Periodic::Unattended-Upgrade "1";`, aptConf: `APT::Periodic::Unattended-Upgrade "0";`}, true, "installs upgrades", []string{aptConf, dropIn}},
		{"a file that apt does not read", map[string]string{uu: "", "etc/apt/apt.conf.d/20x.dpkg-old": `APT::Periodic::Unattended-Upgrade "1";`}, false, "switched off", []string{dropIn}},
		{"etckeeper without a repository", map[string]string{keeper: ""}, true, "no repository", nil},
		{"etckeeper", map[string]string{keeper: "", "etc/.git/HEAD": "x"}, true, "before and after apt", []string{HooksDir + "/50-etckeeper"}},
		{"needrestart is left alone", map[string]string{"usr/sbin/needrestart": "", "etc/apt/apt.conf.d/99needrestart": "x"}, true, "after each apt", nil},
		{"snapper without a configuration", map[string]string{"usr/bin/snapper": ""}, true, "no configuration", nil},
		{"snapper", map[string]string{"usr/bin/snapper": "", "etc/snapper/configs/root": "x"}, true, "around apt", []string{HooksDir + "/40-snapper"}},
		{"apt's timers are left alone", map[string]string{"usr/lib/systemd/system/apt-daily.timer": "", "etc/systemd/system/apt-daily-upgrade.timer": "-> /dev/null", "etc/systemd/system/timers.target.wants/apt-daily.timer": "x"}, true, "apt-daily.timer is enabled, apt-daily-upgrade.timer is masked", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := Inspect(root(t, tt.files), Options{Unattended: tt.unattended, Program: "/usr/bin/liveupd"})
			if err != nil {
				t.Fatal(err)
			}
			now := ""
			for _, n := range b.Found {
				now += n.Now
				if n.Keeps == "" || (n.Change == "") != (len(tt.lays) == 0) {
					t.Errorf("%+v, and lays %q", n, tt.lays)
				}
			}
			if !strings.Contains(now, tt.found) || tt.found == "" && now != "" {
				t.Errorf("it says %q; want %q", now, tt.found)
			}
			if got := names(b.Files); !slices.Equal(got, tt.lays) {
				t.Errorf("it lays %q; want %q", got, tt.lays)
			}
			for _, f := range b.Files {
				if strings.Contains(f.Text, "@") || !strings.Contains(f.Text, "liveupd setup --undo") || b.Owner("/"+f.Path) == "" || b.Text("/"+f.Path) != f.Text {
					t.Errorf("%s is for %q: %s", f.Path, b.Owner("/"+f.Path), f.Text)
				}
			}
		})
	}
}

// Without being asked again nothing is laid that nobody agreed to, but for the file that
// unattended-upgrades stands down by.
func TestSettled(t *testing.T) {
	b, err := Inspect(root(t, map[string]string{uu: "", keeper: "", "etc/.git/HEAD": "x"}), Options{Unattended: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(b.Settled(func(file string) bool { return file == dropIn })), []string{aptConf, dropIn}; !slices.Equal(got, want) {
		t.Errorf("it lays %q; want %q", got, want)
	}
}
