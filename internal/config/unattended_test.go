package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/liveupd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/liveupd/liveupd.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return Load(root)
}

func TestUnattended(t *testing.T) {
	// One line turns it on, and the rest has defaults that a server can bear.
	c, err := loadText(t, "unattended.enabled = true")
	if err != nil {
		t.Fatal(err)
	}
	u := &c.Unattended
	if !u.Enabled || u.Most() != change.ActionRestart || len(c.Windows()) != 0 || u.Reboot != "" || u.BackOff.Or(time.Hour) != time.Hour {
		t.Errorf("%+v", u)
	}
	c, err = loadText(t, `
[unattended]
enabled = true
max = "daemon-reexec"
windows = ["Mon..Fri 02:00-04:30", "Sat,Sun 22:00-06:00"]
reboot = "window"
reboot_delay = "10m"
never = ["postgresql@*.service", "db.service"]
pre = ["/usr/local/sbin/drain", "--all"]
hook_timeout = "90s"
backoff = "2d"
settle = "0s"

[[unattended.group]]
name = "first"
units = ["web1.service"]
wait = "30s"
canary = ["/usr/local/sbin/canary"]

[[unattended.group]]
name = "rest"
units = ["*"]
`)
	if err != nil {
		t.Fatal(err)
	}
	u = &c.Unattended
	if u.Most() != change.ActionDaemonReexec || len(c.Windows()) != 2 || c.Windows()[0].String() != "Mon,Tue,Wed,Thu,Fri 02:00-04:30" ||
		strings.Join(u.NeverUnits(), " ") != "postgresql@*.service db.service" || u.BackOff.Or(0) != 48*time.Hour ||
		u.RebootDelay.Or(0) != 10*time.Minute || u.Settle.Or(time.Hour) != 0 || len(u.Groups) != 2 || u.Groups[0].Wait.Or(0) != 30*time.Second ||
		strings.Join(u.Groups[1].Names(), " ") != "*" {
		t.Errorf("%+v", u)
	}
}

func TestUnattendedWrong(t *testing.T) {
	const group, everything = "[[unattended.group]]\nname = \"a\"\n", "units = [\"*\"]\n"
	for text, want := range map[string]string{
		`enabled = "yes"`:                       "line 2, column 11: unattended.enabled takes true or false",
		`windows = "02:00-03:00"`:               "unattended.windows takes a list",
		`hold = [2026-01-01]`:                   "unattended.hold takes a text in quotes",
		`max = "reboot"`:                        "unattended.reboot",
		`max = "explode"`:                       "none of none, daemon-reload",
		`reboot = "sometimes"`:                  "none of never, window, auto",
		`reboot = "window"`:                     "needs unattended.windows",
		`windows = ["25:00-26:00"]`:             "no window",
		`windows = ["Funday 02:00-03:00"]`:      "names no day",
		`never = ["postgresql"]`:                "it has no type",
		`pre = ["drain"]`:                       "no absolute path",
		`canary = [""]`:                         "no absolute path",
		`settle = "soon"`:                       "no length of time",
		`settle = "-3s"`:                        "no length of time",
		`hook_timeout = "0s"`:                   "1s at least",
		`limit = "1ms"`:                         "1s at least",
		`backoff = "900d"`:                      "no length of time",
		`metered = "perhaps"`:                   "none of auto, yes, no",
		`mail_on = "never"`:                     "none of failure, change, always",
		`mail = "-oQ/tmp root"`:                 "no address",
		`metrics = "liveupd.prom"`:              "no absolute path",
		`windwos = []`:                          "unknown setting",
		`[[unattended.group]]`:                  "has no name",
		group:                                   "has no units",
		group + `units = ["a"]`:                 "it has no type",
		group + everything + group + everything: "two are called",
	} {
		_, err := loadText(t, "[unattended]\n"+text+"\n")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "liveupd.toml") {
			t.Errorf("%s: %v; want an error with %q that names the file", text, err, want)
		}
	}
}
