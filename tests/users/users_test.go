package users

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

func source(dir string) []string { return []string{"--source", "tree:" + dir, "--allow-unsigned"} }

func apply(t *testing.T, m *machine.Machine, dir string) *fixture.Output {
	t.Helper()
	return fixture.In(t, m, append([]string{"apply", "--yes"}, source(dir)...)...)
}

// What a change on disk does to the services of two users, and its way back.
func TestCases(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"trixie", "bookworm"} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			machine.Require(t)
			m := machine.Boot(t, machine.Options{Root: root, Customize: lay, Programs: machine.Programs(t)})
			m.Shell("systemctl reset-failed")
			cases(t, m, root)
		})
	}
}

func cases(t *testing.T, m *machine.Machine, root string) {
	for i, tt := range []struct {
		name   string
		update func(*fixture.Tree)
		want   map[string]string
		steps  []string // that users' managers carry out
	}{
		{"a module", func(u *fixture.Tree) { u.File(modulePart, "x = 2\n", 0o644) }, map[string]string{
			"user@1000.service/module.service": "restart", "user@1001.service/module.service": "restart",
			"user@1000.service/desk.service": "defer", "user@1001.service/desk.service": "defer",
		}, []string{"restart user@1000.service/module.service", "restart user@1001.service/module.service"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := fixture.NewTree(t, root)
			tt.update(up)
			before := all(t, m)
			applied := apply(t, m, up.CopyTo(m, fmt.Sprintf("/run/update%d", i))).Want(t, 0)
			if diff := cmp.Diff(tt.want, applied.Actions()); diff != "" {
				t.Errorf("the plan (-want +got):\n%s", diff)
			}
			var steps []string
			for _, s := range applied.Plan.Steps {
				if s.Manager != "" {
					steps = append(steps, s.Do+" "+s.Manager+"/"+s.Target)
				}
			}
			if diff := cmp.Diff(tt.steps, steps); diff != "" {
				t.Errorf("the steps (-want +got):\n%s", diff)
			}
			var want []string
			for unit, action := range tt.want {
				if action == "restart" {
					want = append(want, unit)
				}
			}
			slices.Sort(want)
			after := all(t, m)
			if got := interrupted(before, after); !slices.Equal(got, want) {
				t.Errorf("interrupted were %v; want %v", got, want)
			}
			if len(applied.Report.Warnings) > 0 {
				t.Logf("warnings: %s", strings.Join(applied.Report.Warnings, "\n"))
			}
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			if got := interrupted(after, all(t, m)); !slices.Equal(got, want) {
				t.Errorf("the rollback interrupted %v; want %v", got, want)
			}
		})
	}
}
