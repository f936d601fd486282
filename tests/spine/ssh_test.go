package spine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// sshKeys lets root of the machine log in to itself.
func sshKeys(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	dir := filepath.Join(root, "root/.ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if out, err := exec.Command("chroot", root, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make a key: %w: %s", err, out)
	}
	key, err := os.ReadFile(filepath.Join(dir, "id_ed25519.pub"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "authorized_keys"), key, 0o600)
}

// harshSSH makes a restart of ssh end all of its sessions: they stay in the
// service's cgroup, and that is killed whole.
func harshSSH(root string) error {
	files := map[string]string{
		"etc/ssh/sshd_config.d/pam.conf":               "UsePAM no\n",
		"etc/systemd/system/ssh.service.d/killed.conf": "[Service]\nKillMode=control-group\n",
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return sshKeys(root)
}

// An update that restarts ssh, applied from a session of ssh.
func TestSSH(t *testing.T) {
	tests := []struct {
		name, root string
		customize  func(string) error
		cut        bool // the session ends with the restart
	}{
		{"the session stays", "bookworm", sshKeys, false},
		{"the session is killed", "trixie", harshSSH, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			machine.Require(t)
			m := machine.Boot(t, machine.Options{Root: tt.root, ReadOnly: true, Customize: tt.customize, Programs: machine.Programs(t)})
			m.Shell("systemctl reset-failed")
			// Linked by each sshd of Debian, also where it starts a program for each session.
			up := fixture.NewTree(t, tt.root).Upgrade(fixture.LibSSL(tt.root), "usr/lib/*/libcrypto.so.3").
				Replace(fixture.PyappModule, "hello 1", "hello 2")
			dir := up.CopyTo(m, "/run/update")
			before, units := treeOf(t, m), m.Units()
			planned := fixture.In(t, m, append([]string{"apply", "--plan"}, source(dir)...)...).Want(t, 0)
			want := restarts(planned.Plan)
			if !slices.Contains(want, "ssh.service") {
				t.Fatalf("the plan restarts %v; want ssh.service among them", want)
			}

			args := []string{
				"ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "root@127.0.0.1",
				"/usr/local/bin/liveupd apply --yes --json " + strings.Join(source(dir), " "),
			}
			if tt.cut {
				args = slices.Insert(args, 1, "-tt")
			}
			got := m.Run(args...)
			settled(t, m)
			t.Logf("ssh ended with %d: %s", got.Code, got.Stderr)
			if !tt.cut {
				out := fixture.Parse(t, got).Want(t, 0)
				if out.Report == nil || out.Report.Result != "done" {
					t.Errorf("the report is %+v; want done", out.Report)
				}
			} else if got.Code == 0 {
				t.Error("the session was not killed: this test shows nothing")
			}
			if interrupted := machine.Interrupted(units, m.Units()); !equalSets(interrupted, want) {
				t.Errorf("interrupted were %v; the plan said %v", interrupted, want)
			}
			if list := m.Run("liveupd", "history").Stdout; !strings.Contains(list, "verified") {
				t.Errorf("the history is %s", list)
			}
			fixture.In(t, m, "verify").Want(t, 0)
			readOnlyNow(t, m)
			if got := fixture.Greeting(m); got != "hello 2" {
				t.Errorf("pyapp says %q", got)
			}
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			same(t, "after the rollback", before, treeOf(t, m))
		})
	}
}
