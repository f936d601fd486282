package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/guard"
	"github.com/liveupd/liveupd/health"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
)

// touched are the units that steps interrupt or start, and those that systemd does along.
func (r *run) touched(steps []change.Step) health.Touched {
	out := health.Touched{}
	for _, st := range steps {
		switch st.Do {
		case "restart", "start":
			out[st.Target] = health.Touch{Started: true}
		case "reload":
			if _, ok := out[st.Target]; !ok {
				out[st.Target] = health.Touch{}
			}
		}
	}
	for _, u := range r.p.plan.Units {
		if u.Manager != "" || u.Action != change.ActionReload && u.Action != change.ActionRestart && u.Action != change.ActionStart {
			continue
		}
		t := out[u.Unit]
		t.Started = t.Started || u.Action != change.ActionReload
		t.Configured = slices.ContainsFunc(u.Reasons, configured)
		out[u.Unit] = t
	}
	return out
}

// readdress marks the services whose sockets are opened for them and change: where they
// listen is said by the socket's unit.
func (w *watching) readdress(plan *change.Plan) {
	changes := map[string]bool{}
	for _, u := range plan.Units {
		if strings.HasSuffix(u.Unit, ".socket") && u.Manager == "" {
			changes[u.Unit] = u.Action == change.ActionStop || slices.ContainsFunc(u.Reasons, configured)
		}
	}
	for name, t := range w.touched {
		u := w.before.Units[name]
		if u != nil && slices.ContainsFunc(u.TriggeredBy, func(socket string) bool { return changes[socket] }) {
			t.Configured = true
			w.touched[name] = t
		}
	}
}

// configured tells whether a reason is what an administrator or a packager says of how a
// unit is to run, and not the program itself.
func configured(reason change.Reason) bool {
	return slices.Contains([]string{"config", "environment", "credential", "unit-file", "bind"}, reason.Kind)
}

// look reads how the units are and who listens.
func (r *run) look(ctx context.Context) (*health.Look, error) {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	units, err := bus.Units(ctx)
	if err != nil {
		return nil, err
	}
	w := r.watching
	now, err := sys.ReadClocks()
	if err != nil {
		return nil, err
	}
	l := &health.Look{Units: map[string]*change.UnitState{}, MonoUSec: uint64(now.Monotonic / 1000)}
	groups := map[string]string{}
	for name, u := range units {
		if name != u.Name || w.stopped[name] {
			continue
		}
		l.Units[name] = u
		if _, ours := w.touched[name]; ours && u.ControlGroup != "" {
			groups[name] = u.ControlGroup
		}
	}
	if len(groups) > 0 {
		if l.Listeners, err = guard.Listeners(); err != nil {
			return nil, err
		}
		if dir := cgroupfs(); dir != "" {
			health.Own(l.Listeners, "/proc", dir, groups)
		}
	}
	return l, nil
}

// healthy watches the units for their time.
func (r *run) healthy(ctx context.Context, acted bool) []change.HealthCheck {
	w := r.watching
	if w.before == nil || !acted {
		return nil
	}
	return health.Watch(ctx, r.look, w.before, w.touched, health.Options{
		Settle: w.health.Settle.D(), Listen: w.health.Listen.D(), Ignore: w.health.Ignore,
	})
}

// tellCommands puts what the units' own commands said into the report.
func (r *run) tellCommands(results []change.StepResult) {
	for _, res := range results {
		if res.Step.Do != "health" || r.watching == nil {
			continue
		}
		unit, line, _ := strings.Cut(res.Step.Target, " ")
		c := change.HealthCheck{Check: health.CheckCommand, Unit: unit, What: line, Detail: res.Detail, USec: res.USec}
		switch res.Result {
		case "done":
			c.Result = change.HealthOK
		case "failed":
			c.Result = change.HealthFailed
		default:
			c.Result = change.HealthSkipped
		}
		c.Deadline = r.watching.health.Command.D().Microseconds()
		r.report.Health = append(r.report.Health, c)
	}
}

// ask runs a unit's own command in a unit of its own, as the unit's user and with its
// environment: what it can see is what the unit can be expected to. With "+" before it
// it is root's. It does not see the root that only this run can write to.
func (r *run) ask(ctx context.Context, unit string, argv []string) error {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	argv = slices.Clone(argv)
	var full bool
	argv[0], full = strings.CutPrefix(argv[0], "+")
	if argv, err = located(argv); err != nil {
		return err
	}
	out, err := os.CreateTemp(runDir, "health-")
	if err != nil {
		return fmt.Errorf("cannot ask %s: %w", unit, err)
	}
	defer out.Close()
	defer os.Remove(out.Name())
	t := systemd.Transient{
		Name: "liveupd-health-" + randomID() + ".service", Description: "Is " + unit + " well?", Argv: argv, Stdout: out, Stderr: out,
	}
	if !full {
		if t.Like, err = bus.Properties(ctx, unit); err != nil {
			return err
		}
	}
	if until, ok := ctx.Deadline(); ok {
		t.Limit = max(time.Until(until), time.Second)
	}
	running, err := bus.StartTransient(ctx, t)
	if err != nil {
		return err
	}
	exit, err := running.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	if exit.Known && exit.Result == "success" {
		return nil
	}
	text := make([]byte, 2000)
	n, _ := out.ReadAt(text, 0) // an end of file is how it ends
	said := string(bytes.ReplaceAll(bytes.TrimSpace(text[:n]), []byte("\n"), []byte("; ")))
	how := "how it ended is not known"
	if exit.Known {
		how = exit.Result
		if exit.Result == "exit-code" {
			how = fmt.Sprintf("exit status %d", exit.Status)
		}
	}
	if said != "" {
		how += ": " + said
	}
	return errors.New(strings.Join(argv, " ") + ": " + how)
}

// located gives a program its whole path, by where a service would find it.
func located(argv []string) ([]string, error) {
	if strings.HasPrefix(argv[0], "/") {
		return argv, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if st, err := os.Stat(dir + "/" + argv[0]); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return append([]string{dir + "/" + argv[0]}, argv[1:]...), nil
		}
	}
	return nil, fmt.Errorf("there is no %s", argv[0])
}
