package peers

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

var table = flag.String("table", "", "write what each program says into this `FILE`, as a table")

// TestCases makes each change in two ways. First liveupd plans it: the plan must be
// the least that is right. Then the change is made by hand, as a package manager would,
// and nothing is restarted; what others say of the machine afterwards is noted.
func TestCases(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: "peers", Customize: lay, Programs: machine.Programs(t)})
	compare := *table != "" || os.Getenv("LIVEUPD_LONG") != ""
	settle(t, m, compare)
	rows := []row{}
	for i, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			u := &update{root: m.Image(), files: map[string]string{}, links: map[string]string{}}
			if c.update != nil {
				c.update(t, u)
			}
			r := row{what: c.what, right: c.right}
			if c.update != nil {
				r.plan = planOf(t, m, u, i)
			}
			if r.plan != c.right {
				t.Errorf("the plan is %q; want %q", r.plan, c.right)
			}
			want, judged := afterwards[c.what]
			if !compare && !judged {
				return
			}
			before := ask(t, m, compare)
			back := place(t, m, u, c.how)
			after := ask(t, m, compare)
			back()
			if c.settle != "" {
				m.Shell(c.settle)
			}
			settle(t, m, compare)
			r.answers = after.without(before)
			if got := strings.Join(r.answers.check, ", "); judged && got != want {
				t.Errorf("check finds %q; want %q", got, want)
			}
			rows = append(rows, r)
			t.Logf("%+v", r)
		})
	}
	if compare {
		count(t, rows)
	}
	if *table != "" {
		if err := os.WriteFile(*table, []byte(markdown(rows)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// settle brings the machine to where no program finds anything.
func settle(t *testing.T, m *machine.Machine, peers bool) {
	t.Helper()
	m.Shell("systemctl daemon-reload")
	m.Run("/usr/local/bin/liveupd", "restart", "--yes")
	if found := ask(t, m, peers); len(found.needrestart) > 0 {
		m.Shell("systemctl restart " + strings.Join(found.needrestart, " ") + " || true")
	}
	for name := range services {
		unit := filepath.Base(name)
		if strings.HasPrefix(name, "usr/lib/systemd/system/") && strings.Contains(services[name], "WantedBy=") && !strings.Contains(unit, "@") {
			m.Run("systemctl", "start", unit)
		}
	}
	m.Shell("systemctl reset-failed")
	m.Shell(`for i in $(seq 100); do [ "$(systemctl is-active pymod private plugin jit)" = "$(printf 'active\nactive\nactive\nactive')" ] && break; sleep 0.1; done; sleep 0.5`)
}

// planOf is what liveupd would do, in one line.
func planOf(t *testing.T, m *machine.Machine, u *update, i int) string {
	t.Helper()
	tree := filepath.Join(t.TempDir(), "update")
	for name, content := range u.files {
		mode := fs.FileMode(0o644)
		if info, err := os.Stat(filepath.Join(u.root, name)); err == nil {
			mode = info.Mode()
		}
		if err := write(tree, name, content, mode.Perm()); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(tree, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range u.links {
		if err := link(tree, name, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("/run/update%d", i)
	if out, err := exec.Command("cp", "-a", tree, m.Path(at)).CombinedOutput(); err != nil {
		t.Fatalf("cannot copy the update: %v\n%s", err, out)
	}
	defer os.RemoveAll(m.Path(at))
	out := fixture.In(t, m, "apply", "--plan", "--allow-unsigned", "--source", "tree:"+at).Want(t, 0)
	var parts []string
	for _, unit := range out.Plan.Units {
		mark := ""
		if unit.Propagated {
			mark = "~"
		}
		parts = append(parts, mark+unit.Action.String()+" "+change.UnitKey(unit.Manager, unit.Unit))
		if len(unit.Reasons) == 0 {
			t.Errorf("%s: %s without a reason", unit.Unit, unit.Action)
		}
	}
	if a := out.Plan.HostAction; a != change.ActionNone {
		parts = append(parts, "host "+a.String())
	}
	for _, e := range out.Plan.Effects {
		parts = append(parts, e.Do)
	}
	return strings.Join(parts, ", ")
}

// place makes the change on the machine's disk by hand; back undoes it.
func place(t *testing.T, m *machine.Machine, u *update, h how) (back func()) {
	t.Helper()
	do := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var undo []func() error
	for name, content := range u.files {
		at := filepath.Join(m.Image(), name)
		info, err := os.Stat(at)
		if errors.Is(err, fs.ErrNotExist) {
			_, dir := os.Stat(filepath.Dir(at))
			do(write(m.Image(), name, content, 0o644))
			undo = append(undo, func() error { return os.Remove(at) })
			if dir != nil {
				undo = append(undo, func() error { return os.Remove(filepath.Dir(at)) })
			}
			continue
		}
		do(err)
		old, err := os.ReadFile(at)
		do(err)
		if h == inPlace {
			do(os.WriteFile(at, []byte(content), 0))
			undo = append(undo, func() error { return os.WriteFile(at, old, 0) })
			continue
		}
		if h == aside {
			do(os.Rename(at, at+".aside"))
			undo = append(undo, func() error { return os.Remove(at + ".aside") })
		}
		replace := func(content []byte) error {
			if err := os.WriteFile(at+".dpkg-new", content, info.Mode().Perm()); err != nil {
				return err
			}
			return errors.Join(os.Chmod(at+".dpkg-new", info.Mode()), os.Rename(at+".dpkg-new", at))
		}
		do(replace([]byte(content)))
		undo = append(undo, func() error { return replace(old) })
	}
	for name, to := range u.links {
		at := filepath.Join(m.Image(), name)
		old, err := os.Readlink(at)
		existed := err == nil
		do(os.MkdirAll(filepath.Dir(at), 0o755))
		if existed {
			do(os.Remove(at))
		}
		do(os.Symlink(to, at))
		undo = append(undo, func() error {
			if err := os.Remove(at); err != nil || !existed {
				return err
			}
			return os.Symlink(old, at)
		})
	}
	return func() {
		for _, f := range undo {
			do(f())
		}
	}
}

// answers are the units that each program names.
type answers struct {
	check        []string // liveupd check, with the host's action
	needrestart  []string
	checkrestart []string
	reload       []string // NeedDaemonReload
}

func (a answers) without(before answers) answers {
	minus := func(list, gone []string) []string {
		return slices.DeleteFunc(list, func(s string) bool { return slices.Contains(gone, s) })
	}
	return answers{
		minus(a.check, before.check), minus(a.needrestart, before.needrestart),
		minus(a.checkrestart, before.checkrestart), minus(a.reload, before.reload),
	}
}

var restartLine = regexp.MustCompile(`(?m)^(?:SYSTEMD|SERVICE)_COMMAND\t(.*)$`)

func ask(t *testing.T, m *machine.Machine, peers bool) answers {
	t.Helper()
	var a answers
	check := fixture.In(t, m, "check").Want(t, 0)
	for _, u := range check.Check.Units {
		a.check = append(a.check, u.Action.String()+" "+change.UnitKey(u.Manager, u.Unit))
	}
	for _, e := range check.Check.Effects {
		a.check = append(a.check, e.Do+" "+e.Target)
	}
	if h := check.Check.HostAction; h != change.ActionNone {
		a.check = append(a.check, "host "+h.String())
	}
	if !peers {
		return a
	}
	r := m.Run("needrestart", "-b", "-r", "l")
	if !strings.Contains(r.Stdout, "NEEDRESTART-VER") {
		t.Fatalf("needrestart: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	for line := range strings.Lines(r.Stdout) {
		if unit, ok := strings.CutPrefix(strings.TrimSpace(line), "NEEDRESTART-SVC: "); ok {
			a.needrestart = append(a.needrestart, unit)
		}
	}
	r = m.Run("checkrestart", "-m")
	if r.Code > 1 || strings.Contains(r.Stderr, "Traceback") {
		t.Fatalf("checkrestart: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, f := range restartLine.FindAllStringSubmatch(r.Stdout, -1) {
		for word := range strings.FieldsSeq(f[1]) {
			switch word {
			case "systemctl", "service", "restart", "try-restart", "reload", "start", "#", "CAUTION:":
				continue
			}
			a.checkrestart = append(a.checkrestart, strings.TrimSuffix(word, ".service")+".service")
		}
	}
	var unit string
	for line := range strings.Lines(m.Shell("systemctl show '*' --property=Id,NeedDaemonReload")) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch {
		case k == "Id":
			unit = v
		case v == "yes":
			a.reload = append(a.reload, unit)
		}
	}
	// Properties come in the manager's order, Id is not always the first.
	for _, list := range []*[]string{&a.check, &a.needrestart, &a.checkrestart, &a.reload} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return a
}

type row struct {
	what, right, plan string
	answers           answers
}

// count tells how often each program named just the units that are to be interrupted.
func count(t *testing.T, rows []row) {
	hits := map[string]int{}
	for _, r := range rows {
		want := unitsOf(strings.Split(r.right, ", "))
		for name, got := range map[string][]string{
			"needrestart": r.answers.needrestart, "checkrestart": r.answers.checkrestart, "NeedDaemonReload": r.answers.reload,
			"liveupd check": unitsOf(r.answers.check),
		} {
			if slices.Equal(slices.Sorted(slices.Values(got)), want) {
				hits[name]++
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(hits)) {
		t.Logf("%s names just the right units in %d of %d cases", name, hits[name], len(rows))
	}
}

// unitsOf are the units that are reloaded, restarted or stopped in their own right.
func unitsOf(actions []string) []string {
	var out []string
	for _, a := range actions {
		do, unit, _ := strings.Cut(a, " ")
		switch do {
		case "restart", "reload", "stop":
			out = append(out, unit)
		}
	}
	slices.Sort(out)
	return out
}

func markdown(rows []row) string {
	var b strings.Builder
	b.WriteString("| a change on disk | right | liveupd's plan, before it | liveupd check, after it | needrestart | checkrestart | NeedDaemonReload |\n")
	b.WriteString("| --- | --- | --- | --- | --- | --- | --- |\n")
	cell := func(list []string) string {
		if len(list) == 0 {
			return "nothing"
		}
		return strings.ReplaceAll(strings.Join(list, ", "), ".service", "")
	}
	for _, r := range rows {
		plan := "the same"
		if r.plan != r.right {
			plan = cell(strings.Split(r.plan, ", "))
		}
		right := "nothing"
		if r.right != "" {
			right = strings.ReplaceAll(r.right, ".service", "")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.what, right, plan,
			cell(r.answers.check), cell(r.answers.needrestart), cell(r.answers.checkrestart), cell(r.answers.reload))
	}
	return b.String()
}

// Times that change without the content are no change.
func TestTimesAlone(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: "peers", Customize: lay, Programs: machine.Programs(t)})
	settle(t, m, false)
	m.Shell("sleep 2; chmod o-r /usr/lib/shell/main; chown nobody /etc/envfile.conf; mkdir /var/backup && ln /usr/lib/pymod/greeting/words.py /etc/nginx/nginx.conf /var/backup")
	if got := ask(t, m, false).check; len(got) > 0 {
		t.Errorf("check finds %q after a change of modes, owners and links; want nothing", got)
	}
	m.Shell("mv /etc/envfile.conf /etc/old && cp /etc/old /etc/envfile.conf; systemctl restart shell; echo >>/usr/lib/shell/main; systemctl restart shell")
	if got := ask(t, m, false).check; !slices.Equal(got, []string{"restart envfile.service"}) {
		t.Errorf("check finds %q; want envfile.service alone: shell.service was started since", got)
	}
}
