package apt

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// mark is a moment of a run that its output names, and how long it was until the next.
type mark struct {
	name string
	took time.Duration
}

// watch runs the whole upgrade and calls begun at each of its marks; once that says so, and after the
// time that it gives, all of it is killed. It gives the marks that were met.
func watch(t *testing.T, m *machine.Machine, begun func(name string) (kill bool, after time.Duration)) (marks []mark, killed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := m.Command(ctx, "/usr/local/bin/liveupd", "apply", "--full-upgrade", "--yes", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	last := time.Now()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var line struct {
			Type   string `json:"message_type"`
			Phase  string
			Do     string
			Detail string
			Step   struct{ Do string }
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			continue
		}
		name := line.Phase
		if line.Type == "step" {
			name = "after " + line.Do + line.Step.Do
		}
		if name == "" || len(marks) > 0 && marks[len(marks)-1].name == name {
			continue
		}
		if len(marks) > 0 {
			marks[len(marks)-1].took = time.Since(last)
		}
		last = time.Now()
		marks = append(marks, mark{name: name})
		if kill, after := begun(name); kill {
			time.Sleep(after)
			for _, program := range []string{"liveupd", "liveupd-sandbox", "exe"} {
				for _, pid := range m.Find(program) {
					killed = syscall.Kill(pid, syscall.SIGKILL) == nil || killed
				}
			}
			break
		}
	}
	if len(marks) > 0 && marks[len(marks)-1].took == 0 {
		marks[len(marks)-1].took = time.Since(last)
	}
	go func() {
		for lines.Scan() { // it must not wait for a reader
		}
	}()
	_ = cmd.Wait()
	return marks, killed
}

// Debian's own upgrade of a booted machine is killed at moments that are spread over all that it
// does. Each time recovery leaves the tree of before or that of after, dpkg has nothing to complain of,
// apt works, and no service is down.
func TestKillsInUpgrade(t *testing.T) {
	if os.Getenv("LIVEUPD_LONG") != "1" {
		t.Skip("upgrades a machine as often as it is killed: with LIVEUPD_LONG=1; TestReadOnlyRoot kills the update of a small package")
	}
	t.Parallel()
	machine.Require(t)
	debs := upgrades(t, "bookworm")
	m := machine.Boot(t, machine.Options{Root: "bookworm", Programs: machine.Programs(t), Free: 1200 << 20, Customize: func(root string) error {
		if err := fixture.Services(root); err != nil {
			return err
		}
		return archive(root, nil, debs...)
	}})
	m.Shell("systemctl reset-failed")
	state := func() machine.Snapshot {
		return machine.TakeSnapshot(t, m.Image(), ".liveupd", "var/log", "var/tmp", "var/lib/systemd", "var/lib/apt/lists", "var/cache/apt")
	}
	differ := func(a, b machine.Snapshot) []string {
		return slices.DeleteFunc(timeless(a).Paths(timeless(b)), func(p string) bool { return p == "." || p == "" || mayDiffer(p) })
	}
	sound := func(when string) {
		t.Helper()
		out := m.Shell("dpkg --audit; apt-get -q check >/dev/null; apt-get -q update >/dev/null; apt-get -s dist-upgrade >/dev/null; systemctl --failed --plain --no-legend; " +
			"ls -d /.liveupd/sandbox/work 2>/dev/null || :; grep sandbox /proc/mounts || :; pgrep -x apt-get || :; pgrep -x dpkg || :")
		if out != "" {
			t.Errorf("%s there is %q", when, out)
		}
	}
	before := state()
	marks, _ := watch(t, m, func(string) (bool, time.Duration) { return false, 0 })
	t.Logf("the upgrade goes through %v", marks)
	after := state()
	if n := len(differ(before, after)); n < 100 {
		t.Fatalf("the upgrade changed %d paths", n)
	}
	sound("after the upgrade")
	fixture.In(t, m, "rollback", "--yes")
	if paths := differ(before, state()); len(paths) > 0 {
		t.Fatalf("the rollback left %d paths: %q", len(paths), paths[:min(9, len(paths))])
	}

	moments := 24
	if n, err := strconv.Atoi(os.Getenv("LIVEUPD_MOMENTS")); err == nil {
		moments = n
	}
	random := seed(t)
	met := map[string]int{}
	for n := range moments {
		at := pick(marks, n, moments, random)
		how := fmt.Sprintf("killed %v after the begin of %q", at.took.Round(time.Millisecond), at.name)
		_, killed := watch(t, m, func(name string) (bool, time.Duration) { return name == at.name, at.took })
		settled(t, m)
		if out := unlocked(m, "recover"); out.Code != 0 && out.Code != 4 {
			t.Errorf("%s: recover ended with %d: %s", how, out.Code, out.Stdout+out.Stderr)
		}
		now := state()
		old, fresh := differ(before, now), differ(after, now)
		which := "the old tree"
		switch {
		case len(old) == 0:
			// Not a time more than the old one had.
			same(t, how+": the old tree", before, now, mayDiffer)
		case len(fresh) == 0:
			which = "the new tree"
		default:
			t.Fatalf("%s: %d paths differ from the old tree, %d from the new one: %q, %q", how, len(old), len(fresh), old[:min(9, len(old))], fresh[:min(9, len(fresh))])
		}
		if !killed {
			which += ", not killed"
		}
		t.Logf("%s: %s", how, which)
		met[which]++
		sound(how)
		if len(old) > 0 {
			out := unlocked(m, "rollback", "--yes")
			if paths := differ(before, state()); len(paths) > 0 {
				t.Fatalf("%s: the rollback of the new tree ended with %d (%s) and left %d paths: %q", how, out.Code, out.Stderr, len(paths), paths[:min(9, len(paths))])
			}
		}
	}
	t.Logf("%d moments: %v", moments, met)
}

// unlocked runs liveupd once the recovery that the kill set off has ended.
func unlocked(m *machine.Machine, args ...string) machine.Result {
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if out := m.Run(append([]string{"/usr/local/bin/liveupd"}, args...)...); out.Code != 5 || time.Now().After(end) {
			return out
		}
	}
}

// pick chooses the n-th of so many moments: each mark gets its share, and in it any time that it took.
func pick(marks []mark, n, of int, random *rand.Rand) mark {
	at := marks[n*len(marks)/of]
	if of < len(marks) {
		at = marks[random.IntN(len(marks))]
	}
	at.took = time.Duration(random.Int64N(int64(at.took) + 1))
	return at
}

func (m mark) String() string {
	return strings.ReplaceAll(m.name, " ", "-") + "=" + m.took.Round(time.Millisecond).String()
}
