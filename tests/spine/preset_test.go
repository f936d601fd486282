package spine

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// presetUnits: what a preset enables is started and linked, and what the administrator
// has touched stays as it is. The way back takes the links along.
func presetUnits(t *testing.T, m *machine.Machine) {
	const dir = "usr/lib/systemd/system/"
	unit := extraUnit + "\n[Install]\nWantedBy=multi-user.target\nAlias=other-name.service\n"
	plain := extraUnit + "\n[Install]\nWantedBy=multi-user.target\n"
	m.Shell("mount -o remount,rw / && mkdir /etc/systemd/system/dropped.service.d && " +
		"printf '[Service]\nNice=1\n' >/etc/systemd/system/dropped.service.d/mine.conf && ln -s /dev/null /etc/systemd/system/barred.service && mount -o remount,ro /")
	before, units := treeOf(t, m), m.Units()
	up := fixture.NewTree(t, "bookworm").
		File("usr/lib/systemd/system-preset/10-new.preset", "enable fresh*.service\nenable dropped.service\nenable barred.service\nenable many@.service one\ndisable *\n", 0o644).
		File(dir+"fresh.service", unit, 0o644).File(dir+"dropped.service", plain, 0o644).File(dir+"barred.service", plain, 0o644).
		File(dir+"many@.service", plain, 0o644).File(dir+"unasked.service", plain, 0o644).
		File(dir+"fresh-later.service", extraUnit+"\n[Install]\nRequiredBy=rescue.target\n", 0o644)
	applied := apply(t, m, up.CopyTo(m, "/run/presets")).Want(t, 0)
	if diff := cmp.Diff(map[string]string{"fresh.service": "start", "many@one.service": "start"}, applied.Actions()); diff != "" {
		t.Errorf("the plan (-want +got):\n%s", diff)
	}
	var steps []string
	for _, s := range applied.Report.Steps {
		if s.Step.Do == "preset" && s.Result == "done" && s.Step.Undo == "revert" {
			steps = append(steps, s.Step.Target)
		}
	}
	if want := []string{"fresh-later.service", "fresh.service", "many@one.service"}; !slices.Equal(steps, want) {
		t.Errorf("the steps are of %v; want %v", steps, want)
	}
	for unit, want := range map[string]string{
		"fresh.service": "enabled", "other-name.service": "alias", "fresh-later.service": "enabled", "many@one.service": "enabled",
		"dropped.service": "disabled", "barred.service": "masked", "unasked.service": "disabled",
	} {
		if got := m.Run("systemctl", "is-enabled", unit).Stdout; got != want+"\n" {
			t.Errorf("%s is %q; want %s", unit, got, want)
		}
	}
	if got := machine.Started(units, m.Units()); !equalSets(got, []string{"fresh.service", "many@one.service"}) {
		t.Errorf("started were %v", got)
	}
	// systemctl preset itself has nothing to add.
	if links := m.Run("systemctl", "--root=/", "preset", "fresh.service", "fresh-later.service"); links.Code != 0 || links.Stderr+links.Stdout != "" {
		t.Errorf("systemctl preset still does something: %+v", links)
	}
	for _, e := range applied.Plan.Paths {
		if e.Path == "/etc/systemd/system/multi-user.target.wants/fresh.service" && (e.Op != change.Add || e.By != "preset") {
			t.Errorf("the plan has the link as %+v", e)
		}
	}
	fixture.In(t, m, "verify").Want(t, 0)
	readOnlyNow(t, m)
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	same(t, "after the rollback", before, treeOf(t, m))
	if got := machine.Started(units, m.Units()); len(got) > 0 {
		t.Errorf("%v run after the rollback", got)
	}
	readOnlyNow(t, m)
}
