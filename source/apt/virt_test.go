package apt

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Who asks systemd-detect-virt means the machine.
func TestDetectVirt(t *testing.T) {
	real, first := t.TempDir(), t.TempDir()
	write := func(dir, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "systemd-detect-virt"), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(real, "#!/bin/sh\necho real $*\n")
	for _, tt := range []struct{ container, args, want, status string }{
		{"", "--container", "none", "1"},
		{"", "--quiet --container", "", "1"},
		{"", "-cq", "", "1"},
		{"", "", "real --vm", "0"},
		{"", "-q", "real --vm --quiet", "0"},
		{"", "--vm", "real --vm", "0"},
		{"", "--list", "real --list", "0"},
		{"lxc", "-c", "lxc", "0"},
		{"lxc", "", "lxc", "0"},
		{"lxc", "--quiet", "", "0"},
		{"lxc", "--vm", "real --vm", "0"},
	} {
		write(first, Stubs(tt.container)[RunDir+"/bin/systemd-detect-virt"])
		out, err := exec.Command("env", "PATH="+first+":"+real+":"+os.Getenv("PATH"), "sh", "-c", "systemd-detect-virt "+tt.args+"; echo status $?").Output()
		want := strings.TrimSpace(tt.want + "\nstatus " + tt.status)
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("in %q, systemd-detect-virt %s says %q, %v; want %q", tt.container, tt.args, got, err, want)
		}
	}
}

// What a script asks systemctl for is noted, its questions are answered from the machine's units
// and from what was asked before, and the real one changes files only.
func TestSystemctl(t *testing.T) {
	real, first := t.TempDir(), t.TempDir()
	units, record := filepath.Join(first, "units"), filepath.Join(first, "record")
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(real, "systemctl"), "#!/bin/sh\necho real \"$@\"\ncase $* in *unheard*) exit 5 ;; esac\n")
	stub := Stubs("")[RunDir+"/bin/systemctl"]
	write(filepath.Join(first, "systemctl"), strings.NewReplacer(recordUnits, units, recordPolicy, record).Replace(stub))
	for _, tt := range []struct{ script, want, asked string }{
		{"systemctl restart a b.socket", "", "a.service restart,b.socket restart"},
		{"systemctl enable --now a", "real enable a", "a.service start"},
		{"systemctl --now enable a x@1", "real enable a x@1", "a.service start,x@1.service start"},
		{"systemctl enable --now unheard || echo $?", "real enable unheard\n5", ""},
		{"systemctl disable --now up.service; systemctl is-active up || echo $?", "real disable up.service\ninactive\n3", "up.service stop"},
		{"systemctl mask up", "real mask up", ""},
		{"systemctl enable /opt/x/app.service --now", "real enable /opt/x/app.service", "app.service start"},
		{"systemctl is-active up", "active", ""},
		{"systemctl is-active down || echo $?", "inactive\n3", ""},
		{"systemctl is-active --quiet nosuch || echo $?", "3", ""},
		{`systemctl is-active 'dev-a\x2db.mount'`, "active", ""},
		{"systemctl is-failed bad", "failed", ""},
		{"systemctl is-failed up || echo $?", "active\n1", ""},
		{"systemctl is-system-running || echo $?", "degraded\n1", ""},
		{"systemctl stop up; while systemctl is-active -q up; do :; done", "", "up.service stop"},
		{"systemctl -s HUP kill up", "", "up.service kill"},
		{"systemctl --user enable --now up", "real --user enable --now up", ""},
		{"systemctl --root=/x enable --now up", "real --root=/x enable --now up", ""},
		{"systemctl daemon-reload", "real daemon-reload", ""},
		{"systemctl set-default multi-user.target", "real set-default multi-user.target", ""},
		{"systemctl", "real", ""},
	} {
		for _, content := range Units(map[string]string{"up.service": "active", "down.service": "inactive", "bad.service": "failed", `dev-a\x2db.mount`: "active"}) {
			write(units, content)
		}
		write(record, "")
		cmd := exec.Command("timeout", "20", "sh", "-c", tt.script)
		cmd.Env = []string{"PATH=" + first + ":" + real + ":" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		asked, _ := os.ReadFile(record)
		if got := strings.TrimSpace(string(out)); err != nil || got != tt.want {
			t.Errorf("%s: says %q, %v; want %q", tt.script, got, err, tt.want)
		}
		if got := strings.ReplaceAll(strings.TrimSpace(string(asked)), "\n", ","); got != tt.asked {
			t.Errorf("%s: notes %q; want %q", tt.script, got, tt.asked)
		}
	}
	// On a root that does not run the real one answers.
	if err := os.Remove(units); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "systemctl restart a --now")
	cmd.Env = []string{"PATH=" + first + ":" + real + ":" + os.Getenv("PATH")}
	if out, err := cmd.Output(); err != nil || string(out) != "real restart a --now\n" {
		t.Errorf("on a root that does not run: %q, %v", out, err)
	}
	r := Recorded{Actions: []string{"a stop", "b.service stop", "b start", "c.socket restart", "c.socket stop", "d try-restart"}}
	if got := strings.Join(r.Stopped(), " "); got != "a.service c.socket" {
		t.Errorf("stopped are %q", got)
	}
}
