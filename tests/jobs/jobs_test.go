// Package jobs holds the tests that compare a plan with the jobs that systemd
// then runs: many units with dependencies of each kind on one booted machine,
// one update that changes them all, and each JobNew signal of it recorded.
package jobs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// dir is a folder of units that the update owns wholly, so that what its tree
// lacks is removed.
const dir = "usr/local/lib/systemd/system"

// TestMain is the recorder where the test binary is run as one in the machine:
// the bus lets nobody in from outside of it.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "record" {
		if err := record(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// connect listens to the manager on the system's bus.
func connect(signals chan *dbus.Signal) (*dbus.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := dbus.Dial("unix:path=/run/dbus/system_bus_socket")
	if err != nil {
		return nil, err
	}
	conn.Signal(signals)
	err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	if err == nil {
		err = conn.Hello()
	}
	if err == nil {
		err = conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(manager+".Manager"))
	}
	if err == nil {
		err = conn.Object(manager, managerPath).CallWithContext(ctx, manager+".Manager.Subscribe", 0).Err
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot listen to the manager: %w", err)
	}
	return conn, nil
}

const (
	manager     = "org.freedesktop.systemd1"
	managerPath = "/org/freedesktop/systemd1"
)

// record prints the unit of each JobNew signal until its input ends.
func record(in io.Reader, out io.Writer) error {
	signals := make(chan *dbus.Signal, 4096)
	conn, err := connect(signals)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(out, "ready")
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, in)
		// The answer to a last call comes after all signals before it.
		ended <- errors.Join(err, conn.Object(manager, managerPath).Call(manager+".Manager.GetUnit", 0, "init.scope").Err)
	}()
	print := func(s *dbus.Signal) {
		if s != nil && s.Name == manager+".Manager.JobNew" && len(s.Body) == 3 {
			fmt.Fprintln(out, s.Body[2])
		}
	}
	for {
		select {
		case s, ok := <-signals:
			if !ok {
				return errors.New("the manager closed the connection")
			}
			print(s)
		case err := <-ended:
			for len(signals) > 0 {
				print(<-signals)
			}
			return err
		}
	}
}

// recorder collects the units of JobNew signals.
type recorder struct {
	cmd    *exec.Cmd
	in     io.Closer
	out    *bufio.Reader
	cancel func()
}

func recording(t *testing.T, m *machine.Machine) *recorder {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	r := &recorder{cmd: m.Command(ctx, "/usr/local/bin/"+filepath.Base(os.Args[0]), "record"), cancel: cancel}
	in, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.cmd.Stderr = os.Stderr
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.in, r.out = in, bufio.NewReader(out)
	if line, err := r.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the recorder says %q: %v", line, err)
	}
	return r
}

// stop returns the units that had jobs.
func (r *recorder) stop(t *testing.T) map[string]bool {
	t.Helper()
	defer r.cancel()
	r.in.Close()
	text, err := io.ReadAll(r.out)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil {
		t.Fatalf("the recorder: %v", err)
	}
	units := map[string]bool{}
	for name := range strings.FieldsSeq(string(text)) {
		units[name] = true
	}
	return units
}

// lay writes units into a tree's folder. "-> TARGET" makes a symlink.
func lay(root string, units map[string]string) error {
	for name, text := range units {
		file := filepath.Join(root, dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, file)
		} else {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type group struct {
	start, then []string
	old, new    map[string]string
}

func all(version int) group {
	g := group{start: []string{refusedName}, old: map[string]string{refusedName: sleeper}, new: map[string]string{refusedName: sleeper}}
	for i, c := range cases {
		if version < c.from {
			continue
		}
		rename := func(s string) string { return strings.ReplaceAll(s, "@@", fmt.Sprintf("t%d", i)) }
		for name, text := range c.old {
			g.old[rename(name)] = rename(text)
			g.new[rename(name)] = rename(text)
		}
		for name, text := range c.new {
			g.new[rename(name)] = rename(text)
			if text == gone {
				delete(g.new, rename(name))
			}
		}
		for _, s := range c.start {
			if script, ok := strings.CutPrefix(s, "&& "); ok {
				g.then = append(g.then, rename(script))
				continue
			}
			g.start = append(g.start, rename(s))
		}
	}
	return g
}

// TestJobs: the units that get jobs, and what becomes of them, are those that
// the plan names, no more and no less; so it is on the way back.
func TestJobs(t *testing.T) {
	machine.Require(t)
	for root, version := range map[string]int{"small": 252, "trixie": 257} {
		t.Run(root, func(t *testing.T) {
			t.Parallel()
			g := all(version)
			var names []string
			seed, count := uint64(1), 150
			if os.Getenv("LIVEUPD_LONG") == "1" {
				seed, count = uint64(time.Now().UnixNano()), 1000
			}
			if n, err := strconv.ParseUint(os.Getenv("LIVEUPD_SEED"), 10, 64); err == nil {
				seed = n
			}
			t.Logf("LIVEUPD_SEED=%d", seed)
			m := machine.Boot(t, machine.Options{
				Root: root, ReadOnly: true, Programs: append(machine.Programs(t), os.Args[0]),
				Customize: func(root string) (err error) {
					if names, err = randomUnits(root, rand.New(rand.NewPCG(seed, uint64(version))), count); err != nil {
						return err
					}
					return lay(root, g.old)
				},
			})
			effectiveAgainst(t, m, names)
			m.Shell("systemctl reset-failed; systemctl start " + strings.Join(g.start, " ") + "\n" + strings.Join(g.then, "\n"))
			up := fixture.NewTree(t, root).File("liveupd.toml", "name = \"units\"\nowns = [\"/"+dir+"\"]\n", 0o644)
			if err := lay(up.Dir, g.new); err != nil {
				t.Fatal(err)
			}
			where := up.CopyTo(m, "/run/update")
			before, rec := m.Units(), recording(t, m)
			out := fixture.In(t, m, "apply", "--allow-unsigned", "--allow-removals", "--source", "tree:"+where, "--yes").Want(t, 0)
			compare(t, out.Plan, rec.stop(t), before, m.Units())
			wanted(t, out.Plan, version)

			before, rec = m.Units(), recording(t, m)
			back := fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			compare(t, back.Plan, rec.stop(t), before, m.Units())
			refusedUnits(t, m, root)
		})
	}
}

func ours(name string) bool {
	return len(name) > 1 && name[0] == 't' && name[1] >= '0' && name[1] <= '9'
}

// compare holds the plan against what happened.
func compare(t *testing.T, p *change.Plan, jobs map[string]bool, before, after map[string]machine.Unit) {
	t.Helper()
	planned := map[string]bool{}
	for _, u := range p.Units {
		if !ours(u.Unit) || u.Action == change.ActionDefer {
			continue
		}
		planned[u.Unit] = true
		now, was := after[u.Unit], before[u.Unit]
		if kind := u.Unit[strings.LastIndexByte(u.Unit, '.')+1:]; kind == "slice" || kind == "mount" {
			continue
		}
		happened := "nothing"
		switch {
		case was.ActiveState == "active" && now.ActiveState != "active":
			happened = "stop"
		case was.ActiveState != "active" && now.ActiveState == "active":
			happened = "start"
		case was.ActiveState == "active" && was.InvocationID != now.InvocationID:
			happened = "restart"
		case was.ActiveState == "active":
			happened = "reload"
		}
		if want := u.Action.String(); happened != want && !strings.Contains(u.Unit, "ended") {
			t.Errorf("%s: the plan says %s, what happened is %s: %+v", u.Unit, want, happened, u.Reasons)
		}
	}
	var had []string
	for name := range jobs {
		if ours(name) {
			had = append(had, name)
		}
	}
	slices.Sort(had)
	if d := cmp.Diff(slices.Sorted(maps.Keys(planned)), had); d != "" {
		t.Errorf("units with jobs (-plan +systemd):\n%s", d)
	}
	// A unit that is renamed goes on under another name, in the same invocation.
	invocations := map[string]bool{}
	for _, u := range after {
		invocations[u.InvocationID] = true
	}
	for _, name := range machine.Interrupted(before, after) {
		if ours(name) && !planned[name] && !invocations[before[name].InvocationID] {
			t.Errorf("%s was interrupted and is not in the plan", name)
		}
	}
	for _, u := range before {
		invocations[u.InvocationID+" before"] = true
	}
	for _, name := range machine.Started(before, after) {
		if ours(name) && !planned[name] && !invocations[after[name].InvocationID+" before"] {
			t.Errorf("%s was started and is not in the plan", name)
		}
	}
	t.Logf("%d units with jobs", len(had))
}

// wanted holds the plan against what each case says.
func wanted(t *testing.T, p *change.Plan, version int) {
	t.Helper()
	n := 0
	for i, c := range cases {
		if version < c.from {
			continue
		}
		n++
		prefix := fmt.Sprintf("t%d", i)
		var got []string
		for _, u := range p.Units {
			rest, ok := strings.CutPrefix(u.Unit, prefix)
			if !ok || rest[0] >= '0' && rest[0] <= '9' {
				continue
			}
			mark := ""
			if u.Propagated {
				mark = "~"
			}
			got = append(got, mark+u.Action.String()+" "+strings.TrimPrefix(rest, "-"))
		}
		slices.Sort(got)
		want := c.want
		if version < 254 && c.want252 != nil {
			want = c.want252
		}
		want = slices.Sorted(slices.Values(want))
		if d := cmp.Diff(want, got, cmp.Transformer("nil", func(s []string) string { return strings.Join(s, ", ") })); d != "" {
			t.Errorf("%s: the plan (-want +got):\n%s", c.name, d)
		}
	}
	t.Logf("%d cases", n)
}
