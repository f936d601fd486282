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
