package unattended

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/config"
)

// Options say how a run is meant.
type Options struct {
	Dir    string // where its state lies; "" is Dir
	DryRun bool   // decide and plan, and change nothing
	Retry  bool   // also what has failed before
	Wait   bool   // until the window opens, and for the windows of what was put off
	// Emit gets what the engine tells: the plan, steps, progress. May be nil.
	Emit func(any)
	// Ended gets each run's report: one that waits has more than one.
	Ended func(*change.Night)
	// Code maps an error to an exit status.
	Code func(error) int
	// Terminated is closed when this process is told to end.
	Terminated <-chan struct{}
	root       string // where the configuration is read, "" for /
}

func (o *Options) confRoot() string {
	if o.root == "" {
		return "/"
	}
	return o.root
}

// longestWait is how long a run waits for a window: the next timer comes after a day.
const longestWait = 24 * time.Hour

// clockStep is how far a clock may be corrected without anybody's noticing.
const clockStep = 5 * time.Minute

// run is one unattended run.
type run struct {
	h     Host
	o     Options
	cfg   *config.Config
	u     *config.Unattended
	rules []change.Rule // the administrator's
	state *State
	p     *Progress
	n     *change.Night
	emit  func(any)
	// late: a window of what was put off has opened; the update was looked for before.
	late bool
}

// Run is an unattended run from its begin to its report. The error is what the report
// tells, for the exit status.
func Run(ctx context.Context, h Host, o Options) (*change.Night, error) {
	if o.Dir == "" {
		o.Dir = Dir
	}
	if o.Emit == nil {
		o.Emit = func(any) {}
	}
	late := false
	for {
		night, again, err := once(ctx, h, o, late)
		if night != nil && o.Ended != nil {
			o.Ended(night)
		}
		if again.IsZero() || !o.Wait || o.DryRun || ctx.Err() != nil {
			return night, err
		}
		h.Status("waiting until " + again.Format("2006-01-02 15:04") + " for the window to open")
		if e := sleepUntil(ctx, h, again); e != nil {
			return night, errors.Join(err, remove(o.Dir, runName))
		}
		late = night == nil || night.Result != change.NightSkipped
	}
}

// sleepUntil waits by the wall clock, which may be set meanwhile. Where that goes back, the time may be
// years away, and the wait ends: what it was for is to be looked at anew.
func sleepUntil(ctx context.Context, h Host, at time.Time) error {
	least := at.Sub(h.Now())
	for {
		left := at.Sub(h.Now())
		if left <= 0 || left > least+clockStep {
			return nil
		}
		least = min(least, left)
		if err := h.Sleep(ctx, min(left, time.Minute)); err != nil {
			return err
		}
	}
}

// once is one run. again is when the same process should run again, the zero time for never.
func once(ctx context.Context, h Host, o Options, late bool) (_ *change.Night, again time.Time, err error) {
	r := &run{h: h, o: o, emit: o.Emit, late: late}
	r.n = newNight(h.Now())
	unread := r.configure()
	if o.DryRun {
		if unread != nil {
			return nil, again, unread
		}
		night, err := r.dryRun(ctx)
		return night, again, err
	}
	lock, err := takeLock(o.Dir)
	if err != nil {
		return nil, again, err
	}
	defer lock.Close()
	if err := r.open(); err != nil {
		return nil, again, err
	}
	if unread != nil {
		// Nobody looks at a night that fails each time before it begins, unless it is told like others.
		return r.n, again, r.misconfigured(unread)
	}
	settled, err := r.takeUp(ctx)
	if errors.Is(err, engine.ErrLeft) {
		return nil, again, err
	}
	if !settled && err == nil {
		again, err = r.night(ctx)
		if errors.Is(err, engine.ErrLeft) {
			return nil, time.Time{}, err // the note stays for the next start
		}
	}
	err = errors.Join(err, r.finish(ctx, again))
	return r.n, again, err
}

// configure reads the configuration and the rules.
func (r *run) configure() error {
	r.cfg, r.u = &config.Config{}, &config.Unattended{}
	cfg, err := config.Load(r.o.confRoot())
	if err != nil {
		return engine.Usage(err)
	}
	r.cfg, r.u = cfg, &cfg.Unattended
	if r.rules, err = config.LoadPolicy(r.o.confRoot()); err != nil {
		return engine.Usage(err)
	}
	return nil
}

// misconfigured ends a run whose configuration cannot be understood. What a run that was cut off
// has left stays noted for the next.
func (r *run) misconfigured(err error) error {
	_ = r.fails(err)
	if r.n.Code = 2; r.o.Code != nil {
		r.n.Code = r.o.Code(err)
	}
	r.n.Ended = r.h.Now().Unix()
	r.state.Last, r.state.Looked = r.n, r.n
	r.state.Runs[r.n.Result]++
	r.log(MessageFailed, Sentence(r.n), nil)
	list, e := r.h.Look(context.Background(), engine.Request{Verb: "status", Unattended: true})
	if e != nil {
		r.warn(fmt.Sprintf("what is put off is not known: %v", e))
	}
	return errors.Join(err, writeJSON(r.o.Dir, stateName, r.state), publish(r.h, r.o.Dir, r.u, r.state, list))
}

func newNight(now time.Time) *change.Night {
	return &change.Night{
		MessageType: "report", Schema: engine.Schema, Verb: "unattended", Began: now.Unix(),
		Units: []string{}, Steps: []change.StepResult{}, Deferred: []change.Waiting{}, BackOff: []change.BackOff{}, Warnings: []string{},
	}
}

// takeLock makes the folder and takes the lock, which is held by an open file and goes with its process.
func takeLock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, change.WithHint(fmt.Errorf("cannot keep the state of unattended runs: %w", err), "make "+dir+" a folder that can be written to")
	}
	name := filepath.Join(dir, "unattended.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock of unattended runs: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, change.WithHint(fmt.Errorf("%w: another unattended run holds %s", change.ErrLocked, name), "see: systemctl status liveupd.service")
		}
		return nil, fmt.Errorf("cannot lock %s: %w", name, err)
	}
	return f, nil
}

// open reads what earlier runs left.
func (r *run) open() error {
	var err error
	var warning string
	if r.state, err = LoadState(r.o.Dir); err != nil {
		if warning, err = setAside(err); err != nil {
			return err
		}
		r.warn(warning)
	}
	r.state.BackOff = rebase(r.state.BackOff, r.h.Now())
	if r.p, err = loadProgress(r.o.Dir); err != nil {
		if warning, err = setAside(err); err != nil {
			return err
		}
		r.warn(warning)
	}
	return nil
}

func (r *run) warn(text string) {
	if text != "" && !slices.Contains(r.n.Warnings, text) {
		r.n.Warnings = append(r.n.Warnings, text)
	}
}

// phase notes what comes next, before it begins.
func (r *run) phase(name string) error {
	r.p.Phase, r.p.Night = name, r.n
	r.h.Status(name)
	return writeJSON(r.o.Dir, runName, r.p)
}

// night is a run without what went before it: from the decision to the reboot.
func (r *run) night(ctx context.Context) (again time.Time, err error) {
	r.p = &Progress{Version: version, Boot: r.h.Boot(), Night: r.n}
	for _, a := range r.allowances(ctx) {
		if a.Allows {
			continue
		}
		r.n.Result, r.n.Reason = change.NightSkipped, a.Detail
		if a.What == whatWindows && a.Changes > 0 && r.o.Wait {
			if opens := time.Unix(a.Changes, 0); opens.Sub(r.h.Now()) <= longestWait {
				return opens, nil
			}
		}
		return again, nil
	}
	r.log(MessageStarted, "unattended run begins", nil)
	list, err := r.h.Look(ctx, engine.Request{Verb: "status", Unattended: true})
	if err != nil {
		return again, r.fails(err)
	}
	if len(list) > 0 {
		r.p.Before = list[0].ID
	}
	takenBack(r.state, list, r.h.Now(), r.u.BackOff.Or(firstBackOff))
	if err := r.phase(phasePlanning); err != nil {
		return again, r.fails(err)
	}
	if !r.late {
		if err := r.update(ctx); err != nil || r.ended() {
			return again, err
		}
	}
	if err := r.deferred(ctx); err != nil {
		return again, err
	}
	if r.n.Result == "" {
		r.n.Result = change.NightNothing
	}
	if r.reboot(ctx); r.n.Reboot > 0 {
		return again, nil
	}
	return r.nextWindow(ctx), nil
}

// ended tells whether nothing more is to be done in this run.
func (r *run) ended() bool {
	switch r.n.Result {
	case "", change.NightDone, change.NightNothing, change.NightBackedOff:
		return false
	}
	return true
}

// fails notes an error as the run's result, and gives it back.
func (r *run) fails(err error) error {
	r.n.Result = change.NightFailed
	switch {
	case errors.Is(err, change.ErrNeedsPerson):
		r.n.Result = change.NightPerson
	case errors.Is(err, engine.ErrRolledBack):
		r.n.Result = change.NightRolledBack
	}
	r.n.Error = err.Error()
	if h, ok := errors.AsType[*change.HintError](err); ok {
		r.n.Hint = h.Hint
	}
	return err
}

// nextWindow is when what is still put off may be done, where that is soon: the next time that
// a rule's window opens while the run's own windows are open, too.
func (r *run) nextWindow(ctx context.Context) time.Time {
	if !r.o.Wait || len(r.waiting(ctx)) == 0 {
		return time.Time{}
	}
	now := r.h.Now()
	var next time.Time
	for _, rule := range r.rules {
		if len(rule.Windows) == 0 || Open(rule.Windows, now) {
			continue
		}
		at := Opens(rule.Windows, now)
		for !at.IsZero() && at.Sub(now) <= longestWait && !Open(r.cfg.Windows(), at) {
			// The later of the two has to open while the other is.
			both := Opens(r.cfg.Windows(), at)
			if both.IsZero() || Open(rule.Windows, both) {
				at = both
				break
			}
			at = Opens(rule.Windows, both)
		}
		if !at.IsZero() && at.Sub(now) <= longestWait && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}
