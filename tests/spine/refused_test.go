package spine

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// What a validator refuses costs nothing; what fails after the commit is taken
// back by itself.
func TestRefused(t *testing.T) {
	t.Parallel()
	m := boot(t, "bookworm")
	before, units := treeOf(t, m), m.Units()

	t.Run("nginx.conf", func(t *testing.T) {
		good := fixture.NewTree(t, "bookworm").Append(fixture.NginxConf, "# changed\n").CopyTo(m, "/run/good")
		bad := fixture.NewTree(t, "bookworm").Append(fixture.NginxConf, "no_such_directive on;\n").CopyTo(m, "/run/bad")
		watcher := machine.Watch(t, m.Path("/"), []string{"etc/nginx"}, []string{fixture.NginxConf})
		out := apply(t, m, bad).Want(t, 1)
		changes, committed := watcher.BeforeCommit()
		if committed || len(changes) > 0 {
			t.Errorf("committed: %v; changes: %v", committed, changes)
		}
		if !strings.Contains(out.Error, "no_such_directive") || !strings.Contains(out.Error, "/etc/nginx/nginx.conf") {
			t.Errorf("the error is %q; want nginx's words and the path", out.Error)
		}
		if out.Report == nil || out.Report.Result != "failed" {
			t.Errorf("the report is %+v; want failed", out.Report)
		}
		same(t, "after the refusal", before, treeOf(t, m))
		unharmed(t, m, units)
		readOnlyNow(t, m)
		if left := transactions(m); len(left) > 0 {
			t.Errorf("%v are left", left)
		}
		ok := apply(t, m, good).Want(t, 0)
		if got := ok.Actions()["nginx.service"]; got != "reload" {
			t.Errorf("the action of a configuration that nginx accepts is %q; want reload", got)
		}
		unharmed(t, m, units)
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		same(t, "after the rollback", before, treeOf(t, m))
	})

	tests := []struct {
		name    string
		update  func(*fixture.Tree)
		unit    string
		restart []string // what may be interrupted
		journal string
	}{
		{"a module that raises", func(u *fixture.Tree) {
			u.Replace(fixture.PyappModule, "def text", "raise RuntimeError('broken on purpose')\n\n\ndef text")
		}, "pyapp.service", []string{"pyapp.service", "follower.service"}, "broken on purpose"},
		{"a unit file", func(u *fixture.Tree) {
			u.Replace(fixture.GuardedUnit, "ExecStart=/usr/bin/python3 -B /usr/lib/guarded/main.py", "ExecStart=/usr/bin/false").
				Replace(fixture.EnvappUnit, "[Service]\n", "[Service]\nEnvironment=NEW=1\n")
		}, "guarded.service", []string{"guarded.service", "envapp.service"}, ""},
		{"a program", func(u *fixture.Tree) {
			u.File("usr/bin/sleep", "no program\n", 0o755)
		}, "bystander.service", []string{"bystander.service", "envapp.service", "follower.service"}, "203/EXEC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			up := fixture.NewTree(t, "bookworm")
			tt.update(up)
			units := m.Units()
			out := apply(t, m, up.CopyTo(m, "/run/"+strings.ReplaceAll(tt.name, " ", "-"))).Want(t, 3)
			same(t, "after the failure", before, treeOf(t, m))
			readOnlyNow(t, m)
			unharmed(t, m, units, tt.restart...)
			if out.Report == nil || out.Report.Result != "rolled-back" {
				t.Fatalf("the report is %+v; want rolled-back", out.Report)
			}
			if !strings.Contains(out.Error, tt.unit) {
				t.Errorf("the error %q does not name %s", out.Error, tt.unit)
			}
			var failed []change.StepResult
			for _, s := range out.Report.Steps {
				if s.Result == "failed" && s.Step.Target == tt.unit {
					failed = append(failed, s)
				}
			}
			if len(failed) != 1 || failed[0].Journal == "" || !strings.Contains(failed[0].Journal, tt.journal) {
				t.Errorf("the failed steps of %s are %+v; want one with its journal, %q in it", tt.unit, failed, tt.journal)
			}
			if got := fixture.Greeting(m); got != "hello 1" {
				t.Errorf("pyapp says %q", got)
			}
			if list := m.Run("liveupd", "history").Stdout; !strings.Contains(list, "rolled-back") {
				t.Errorf("the history does not tell of it: %s", list)
			}
			if left := m.Run("test", "-e", "/.liveupd/tx/"+out.Report.ID); left.Code == 0 {
				t.Errorf("what was staged stays: %s", m.Shell("du -a /.liveupd/tx"))
			}
		})
	}
}
