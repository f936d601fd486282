package systemd

import (
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]int{
		"252.39-1~deb12u1": 252, "257": 257, "v258~rc1": 258, "250.4-6.el9": 250, "": 0, "main": 0,
	} {
		if got := parseVersion(in); got != want {
			t.Errorf("parseVersion(%q) = %d; want %d", in, got, want)
		}
	}
}

func TestUnitState(t *testing.T) {
	v := dbus.MakeVariant
	props := map[string]dbus.Variant{
		"Id": v("a.service"), "Names": v([]string{"a.service", "b.service"}), "ActiveState": v("active"),
		"InactiveExitTimestampMonotonic": v(uint64(1000)), "ActiveEnterTimestampMonotonic": v(uint64(4000)),
		"ConditionResult": v(false), "ConditionTimestampMonotonic": v(uint64(0)),
		"RequiredBy": v([]string{}),
	}
	u := unitState("b.service", props)
	if u.Name != "a.service" || u.LastStartUSec != 3000 || u.ConditionUnmet || u.RequiredBy != nil {
		t.Errorf("unitState() = %+v", u)
	}
	// While it starts again, the last ActiveEnter is older than this start.
	props["InactiveExitTimestampMonotonic"] = v(uint64(9000))
	props["ConditionTimestampMonotonic"] = v(uint64(8000))
	if u := unitState("b.service", props); u.LastStartUSec != 0 || !u.ConditionUnmet {
		t.Errorf("unitState() of a starting unit = %+v", u)
	}
}

// A job may end before the reply that names it has been read.
func TestFollowerKeepsEarlyEnds(t *testing.T) {
	f := follower{waiting: map[dbus.ObjectPath][]int{}, ended: map[dbus.ObjectPath]jobEnd{}}
	f.see(&dbus.Signal{Name: managerIface + ".JobNew", Body: []any{uint32(7), dbus.ObjectPath("/job/7"), "a.service"}})
	f.see(&dbus.Signal{Name: managerIface + ".JobRemoved", Body: []any{uint32(7), dbus.ObjectPath("/job/7"), "a.service", "done"}})
	f.see(&dbus.Signal{Name: managerIface + ".JobRemoved", Body: []any{"of another form"}})
	if f.ended["/job/7"].result != "done" || len(f.ended) != 1 {
		t.Errorf("ended = %v", f.ended)
	}
	if diff := cmp.Diff([]Queued{{7, "a.service"}}, f.queued); diff != "" {
		t.Errorf("queued (-want +got):\n%s", diff)
	}
}

func TestVerbatim(t *testing.T) {
	got := verbatim([]string{"/bin/x", "$HOME/a$b", "plain"})
	if diff := cmp.Diff([]string{"/bin/x", "$$HOME/a$$b", "plain"}, got); diff != "" {
		t.Errorf("verbatim() (-want +got):\n%s", diff)
	}
}
