package spine

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// codeServices are services whose code lies in several files: Perl and shell
// scripts with what they load, a program behind a link, one that is a copy.
func codeServices(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	sleep, err := os.ReadFile(filepath.Join(root, "usr/bin/sleep"))
	if err != nil {
		return err
	}
	unit := func(start string) string {
		return "[Unit]\nDescription=Code in several files\n\n[Service]\nExecStart=" + start + "\n"
	}
	for name, content := range map[string]string{
		"usr/lib/systemd/system/perlapp.service": unit("/usr/lib/perlapp/run"),
		"usr/lib/perlapp/run":                    "#!/usr/bin/perl -w\nuse strict;\nuse lib '/usr/lib/perlapp/lib';\nuse Used::Part;\nsleep 3600 while 1;\n",
		"usr/lib/perlapp/lib/Used/Part.pm":       "package Used::Part;\n1;\n",
		"usr/lib/perlapp/lib/Unused.pm":          "package Unused;\n1;\n",
		"usr/lib/systemd/system/shapp.service":   unit("/usr/lib/shapp/run"),
		"usr/lib/shapp/run":                      "#!/bin/sh\n. \"$(dirname \"$0\")/common.sh\"\nwhile true; do sleep 3600; done\n",
		"usr/lib/shapp/common.sh":                "GREETING=hello\n",
		"usr/lib/systemd/system/altapp.service":  unit("/usr/lib/altapp/current/app infinity"),
		"usr/lib/altapp/1/app":                   string(sleep),
		"usr/lib/altapp/2/app":                   string(sleep) + "second",
		"usr/lib/altapp/plugin.so":               string(sleep),
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(content), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"perlapp", "shapp", "altapp"} {
		wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants", name+".service")
		if err := os.Symlink("/usr/lib/systemd/system/"+name+".service", wants); err != nil {
			return err
		}
	}
	return os.Symlink("1", filepath.Join(root, "usr/lib/altapp/current"))
}

// What a change of code interrupts, and that the way back interrupts no more.
func TestCodeOnDisk(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{ReadOnly: true, Customize: codeServices, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed")
	b, err := os.ReadFile(filepath.Join(machine.CachedRoot(t, "bookworm"), "usr/bin/sleep"))
	if err != nil {
		t.Fatal(err)
	}
	sleep := string(b)
	b[len(b)/2] ^= 0xff // within what is loaded, where the program never comes
	patched := string(b)
	restart := func(unit string) map[string]string { return map[string]string{unit: "restart"} }
	for i, tt := range []struct {
		name   string
		update func(*fixture.Tree)
		units  map[string]string
	}{
		{"a Perl module that is loaded", func(u *fixture.Tree) {
			u.File("usr/lib/perlapp/lib/Used/Part.pm", "package Used::Part;\nour $x = 2;\n1;\n", 0o755)
		}, restart("perlapp.service")},
		{"a Perl module that is not", func(u *fixture.Tree) {
			u.File("usr/lib/perlapp/lib/Unused.pm", "package Unused;\nour $x = 2;\n1;\n", 0o755)
		}, nil},
		{"what a shell script sources from its own folder", func(u *fixture.Tree) {
			u.File("usr/lib/shapp/common.sh", "GREETING=hi\n", 0o755)
		}, restart("shapp.service")},
		{"other bytes under one build ID", func(u *fixture.Tree) {
			u.File("usr/lib/altapp/1/app", sleep+"~signature~", 0o755)
		}, nil},
		{"other code under the old build ID", func(u *fixture.Tree) {
			u.File("usr/lib/altapp/1/app", patched, 0o755)
		}, restart("altapp.service")},
		{"a plugin that nobody has mapped", func(u *fixture.Tree) {
			u.File("usr/lib/altapp/plugin.so", patched, 0o755)
		}, nil},
		{"a link to another version", func(u *fixture.Tree) {
			u.Symlink("usr/lib/altapp/current", "2")
		}, restart("altapp.service")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := fixture.NewTree(t, "bookworm")
			tt.update(up)
			before, units := treeOf(t, m), m.Units()
			applied := apply(t, m, up.CopyTo(m, fmt.Sprintf("/run/code%d", i))).Want(t, 0)
			if diff := cmp.Diff(orEmpty(tt.units), applied.Actions()); diff != "" {
				t.Errorf("the plan (-want +got):\n%s", diff)
			}
			if applied.Plan.HostAction != change.ActionNone {
				t.Errorf("the host's action is %v; want none", applied.Plan.HostAction)
			}
			reasons(t, applied.Plan)
			after := m.Units()
			if got := machine.Interrupted(units, after); !equalSets(got, restarts(applied.Plan)) {
				t.Errorf("interrupted were %v; the plan said %v", got, restarts(applied.Plan))
			}
			if check := fixture.In(t, m, "check"); check.Check == nil || len(check.Check.Units) > 0 {
				t.Errorf("check finds units stale after the apply: %s", check.Stdout)
			}
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			same(t, "after the rollback", before, treeOf(t, m))
			if got := machine.Interrupted(after, m.Units()); !equalSets(got, restarts(applied.Plan)) {
				t.Errorf("the rollback interrupted %v; want %v", got, restarts(applied.Plan))
			}
		})
	}
}
