package apt

import (
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// What makes boot entries is not run in the sandbox, but on the host after the commit,
// and once more after the rollback. The root is read-only here, and /var a file system of its own.
func TestHostStepsAndVar(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	booter := func(version string) pack {
		return pack{name: "booter", version: version, files: map[string]string{
			"usr/share/booter/version": version + "\n", "var/lib/booter/owned": version + "\n",
		}, scripts: map[string]string{"postinst": "#!/bin/sh\nset -e\nmkdir -p /var/lib/booter-made\necho " + version + " >/var/lib/booter-made/x\nupdate-grub\ntouch /run/reboot-required\necho booter >>/run/reboot-required.pkgs\n"}}
	}
	m := machine.Boot(t, machine.Options{
		Root: "bookworm", ReadOnly: true, WritableVar: true, Programs: machine.Programs(t),
		Customize: func(root string) error {
			if err := put(root, map[string]string{"usr/sbin/update-grub": "#!/bin/sh\ncat /usr/share/booter/version >>/run/grub-log\n"}); err != nil {
				return err
			}
			if err := installed(root, booter("1")); err != nil {
				return err
			}
			return archive(root, []pack{booter("2")})
		},
	})
	m.Shell("systemctl reset-failed; rm -f /run/grub-log")
	planned := fixture.In(t, m, "apply", "--plan").Want(t, 0)
	if !slices.ContainsFunc(planned.Plan.Steps, func(s change.Step) bool { return s.Do == "run" && s.Target == "update-grub" }) {
		t.Errorf("the plan's steps: %+v", planned.Plan.Steps)
	}
	if got := m.Shell("cat /run/grub-log 2>/dev/null || :"); got != "" {
		t.Errorf("the plan ran update-grub: %q", got)
	}
	all := "cat /run/grub-log /usr/share/booter/version /var/lib/booter/owned /var/lib/booter-made/x; dpkg --audit; dpkg -s booter | grep ^Version"
	fixture.In(t, m, "apply", "--yes", "--expect", planned.Plan.ID).Want(t, 0)
	if got := strings.Fields(m.Shell(all)); !slices.Equal(got, []string{"2", "2", "2", "2", "Version:", "2"}) {
		t.Errorf("after the apply: %q", got)
	}
	if got := m.Shell("ls /run/reboot-required; cat /run/reboot-required.pkgs"); got != "/run/reboot-required\nbooter" {
		t.Errorf("that a package asks for a reboot is noted as %q", got)
	}
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	if got := m.Shell("ls /run/reboot-required* 2>/dev/null || :"); got != "" {
		t.Errorf("after the rollback there is %q", got)
	}
	if got := strings.Fields(m.Shell(all)); !slices.Equal(got, []string{"2", "1", "1", "1", "1", "Version:", "1"}) {
		t.Errorf("after the rollback: %q", got)
	}
}
