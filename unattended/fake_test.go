package unattended

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// fake is a machine whose clock the test moves, with an engine that knows one update. What is
// asked of it is recorded, a line each.
type fake struct {
	t   *testing.T
	dir string // the state
	etc string // the configuration's root
	now time.Time

	boot     string
	log      []string
	list     []change.Generation
	plan     *change.Plan // pending; nil: nothing
	applyErr error        // what becomes of an apply that was agreed to
	host     change.Action
	waiting  []string // what an apply puts off
	during   func(verb string, ctx context.Context) error
	commands map[string]error // by what
	battery  bool
	metered  bool
	users    []string
	rebootAt time.Time
	seq      int
	slow     string // the command that takes an hour
	mu       sync.Mutex
}

// move moves the clock, which the run's own watch over the window reads, too.
func (f *fake) move(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

func newFake(t *testing.T, config string) *fake {
	t.Helper()
	f := &fake{t: t, dir: t.TempDir(), etc: t.TempDir(), boot: "boot1", now: time.Date(2026, 11, 21, 3, 0, 0, 0, time.Local), commands: map[string]error{}}
	f.configure(config)
	return f
}

func (f *fake) configure(text string) {
	f.t.Helper()
	name := filepath.Join(f.etc, "etc/liveupd/liveupd.toml")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("source = \"apt\"\n[unattended]\nenabled = true\n"+text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// update makes an update of packages pending: NAME=VERSION.
func (f *fake) update(packages ...string) {
	f.plan = &change.Plan{ID: "plan" + strings.Join(packages, "+"), Source: "apt", Content: strings.Join(packages, "+")}
	f.plan.Changes.Replaced = 1
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		f.plan.Packages = append(f.plan.Packages, change.Package{Name: name, Arch: "all", From: "0", To: version})
	}
}

func (f *fake) note(format string, args ...any) { f.log = append(f.log, fmt.Sprintf(format, args...)) }

func (f *fake) run(o Options) (*change.Night, error) {
	f.log = nil
	return f.again(o)
}

func (f *fake) again(o Options) (*change.Night, error) {
	o.Dir, o.root = f.dir, f.etc
	return Run(f.t.Context(), f, o)
}

func (f *fake) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fake) Sleep(_ context.Context, d time.Duration) error {
	f.move(d)
	return nil
}

func (f *fake) Do(ctx context.Context, req engine.Request, ev engine.Events) (any, error) {
	line := req.Verb
	for _, r := range req.Rules {
		line += fmt.Sprintf(" %s:%s", r.Action, strings.Join(r.Units, ","))
		if len(r.Except) > 0 {
			line += "!" + strings.Join(r.Except, ",")
		}
	}
	if req.Apt != nil && len(req.Apt.Hold) > 0 {
		line += " hold:" + strings.Join(req.Apt.Hold, ",")
	}
	if len(req.Units) > 0 {
		line += " units:" + strings.Join(req.Units, ",")
	}
	if req.ID != "" {
		line += " " + req.ID
	}
	f.note("%s", line)
	during := func() error {
		if f.during == nil {
			return nil
		}
		return f.during(req.Verb, ctx)
	}
	report := &change.Report{Verb: req.Verb, Result: "done", Steps: []change.StepResult{}}
	switch req.Verb {
	case "apply", "plan":
		p := f.pending(req)
		if req.Verb == "plan" {
			return p, nil
		}
		if p.Empty() {
			report.Result = "nothing-to-do"
			return report, nil
		}
		if !ev.Confirm(p) {
			return nil, engine.ErrDeclined
		}
		if err := during(); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			report.Result = "undone"
			return report, fmt.Errorf("interrupted before the commit point: %w", engine.ErrNothingCommitted)
		}
		if f.applyErr != nil {
			if errors.Is(f.applyErr, engine.ErrRolledBack) {
				report.ID = f.commit("rolled-back")
			}
			return report, f.applyErr
		}
		report.ID = f.commit("verified")
		f.plan = nil
		return report, nil
	case "restart":
		if !ev.Confirm(&change.Plan{Units: []change.UnitPlan{{Unit: req.Units[0], Action: change.ActionRestart}}}) {
			return nil, engine.ErrDeclined
		}
		if err := during(); err != nil {
			return nil, err
		}
		for i := range f.list {
			f.list[i].Waiting = slices.DeleteFunc(f.list[i].Waiting, func(w change.Waiting) bool { return slices.Contains(req.Units, w.Unit) })
		}
		for _, u := range req.Units {
			report.Steps = append(report.Steps, change.StepResult{Step: change.Step{Do: "restart", Target: u}, Result: "done"})
		}
		return report, nil
	case "rollback":
		if err := during(); err != nil {
			return nil, err
		}
		for i := range f.list {
			if f.list[i].ID == req.ID {
				f.list[i].State, f.list[i].Waiting, f.list[i].HostAction = "rolled-back", nil, change.ActionNone
			}
		}
		return report, nil
	case "recover":
		report.Result = "nothing-to-do"
		return report, during()
	}
	f.t.Errorf("no such verb %q", req.Verb)
	return nil, nil
}

// pending is the plan of what is not held back.
func (f *fake) pending(req engine.Request) *change.Plan {
	p := &change.Plan{Source: "apt"}
	if f.plan == nil {
		return p
	}
	*p = *f.plan
	p.Packages = slices.DeleteFunc(slices.Clone(f.plan.Packages), func(pkg change.Package) bool { return slices.Contains(req.Apt.Hold, pkg.Name) })
	if len(p.Packages) == 0 {
		p.Changes = change.Counts{}
	}
	return p
}

func (f *fake) commit(state string) string {
	f.seq++
	g := change.Generation{ID: fmt.Sprintf("tx%03d", f.seq), State: state, Time: f.now.Unix()}
	if state == "verified" {
		g.HostAction = f.host
		for _, u := range f.waiting {
			g.Waiting = append(g.Waiting, change.Waiting{Unit: u, Since: f.now.Unix(), Needs: change.ActionRestart})
		}
	}
	f.list = append([]change.Generation{g}, f.list...)
	return g.ID
}

func (f *fake) Look(context.Context, engine.Request) ([]change.Generation, error) {
	return slices.Clone(f.list), nil
}
func (f *fake) Boot() string { return f.boot }

func (f *fake) Command(_ context.Context, c Command) (string, error) {
	f.note("%s", c.What)
	if f.slow == c.What {
		f.move(time.Hour)
	}
	return "", f.commands[c.What]
}
func (f *fake) OnBattery() (bool, string) { return f.battery, "as the test says" }
func (f *fake) Metered(context.Context) (bool, string) {
	return f.metered, "as the test says"
}
func (f *fake) Users(context.Context) ([]string, error) { return f.users, nil }
func (f *fake) Reboot(_ context.Context, at time.Time, _ string) error {
	f.rebootAt = at
	f.note("reboot")
	return nil
}
func (f *fake) Log(Entry) error                            { return nil }
func (f *fake) Status(string)                              {}
func (f *fake) Alive(context.Context, string) (bool, bool) { return false, false }
func (f *fake) End(context.Context, string) error          { return nil }
func (f *fake) Settled(context.Context, []string) error    { return nil }
func (f *fake) Hostname() string                           { return "host" }
func (f *fake) Sendmail() string                           { return "/usr/sbin/sendmail" }
