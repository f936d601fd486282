package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/guard"
	"github.com/liveupd/liveupd/health"
	"github.com/liveupd/liveupd/internal/config"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/restart"
)

// watching is the watch over one run: what the machine was reached by and how its units
// were before the first step, and what was done since.
type watching struct {
	guard  config.Guard
	health config.Health

	monitor *guard.Monitor // nil where the network is not watched
	before  *health.Look   // nil where the units are not
	touched health.Touched
	stopped map[string]bool // units that the update takes away

	course  []done
	batch   time.Time // when the last jobs were enqueued
	told    bool      // a loss was told, and is no reason to roll back
	undoing bool      // what is done now takes steps back
}

// done is a step with the time that it took.
type done struct {
	step       change.Step
	begin, end time.Time
}

// memory is what of a watch is kept in /run, so that the one who settles a killed
// run knows how it was before.
type memory struct {
	ID      string
	Mode    string // of the guard
	Network *change.Network
	Look    *health.Look
}

const memoryFile = runDir + "/before.json"

// watch begins to watch. A machine that cannot be watched is told, and updated.
func (r *run) watch(ctx context.Context, steps []change.Step) (end func()) {
	if !r.s.req.Live() || r.watching != nil {
		return func() {}
	}
	kept := recall(r.id())
	w := &watching{stopped: map[string]bool{}}
	r.watching = w
	cfg, err := config.Load(r.s.req.Root)
	if err != nil {
		// Who mends what a killed run left must not fail for a setting.
		r.warn("the configuration of the guard is not heeded: %v", err)
		cfg = &config.Config{}
	}
	w.guard, w.health = cfg.Guard.Defaults(), cfg.Health.Defaults()
	if w.guard.Mode = cmp.Or(r.s.req.Guard, kept.Mode, w.guard.Mode); w.guard.Mode != config.ModeOff {
		if w.monitor, err = guard.Watch(kept.Network, w.guard.Ignore); err != nil {
			r.warn("the network is not watched: %v", err)
		}
	}
	w.touched = r.touched(steps)
	for _, st := range steps {
		if st.Do == "stop" {
			w.stopped[st.Target] = true
		}
	}
	if w.health.Mode != config.ModeOff && len(steps) > 0 && systemd.Booted() {
		if w.before = kept.Look; w.before == nil {
			if w.before, err = r.look(ctx); err != nil {
				r.warn("the units are not compared with before: %v", err)
			}
		}
		if w.before != nil {
			w.readdress(r.p.plan)
		}
	}
	if r.id() != "" {
		remember(memory{r.id(), w.guard.Mode, w.network(), w.before})
	}
	return func() {
		if w.monitor != nil {
			w.monitor.Close()
		}
		// What needs a person is settled by a later recovery.
		if r.id() != "" && (r.tx == nil || !slices.Contains([]journal.State{journal.Committing, journal.Swapped, journal.Restarting, journal.RollingBack}, r.tx.State())) {
			forget()
		}
	}
}

func (w *watching) network() *change.Network {
	if w == nil || w.monitor == nil {
		return nil
	}
	return w.monitor.Before()
}

// id is that of the transaction, "" where there is none.
func (r *run) id() string {
	if r.tx == nil {
		return r.of
	}
	return r.tx.ID()
}

func (r *run) warn(format string, args ...any) {
	r.s.warnings = append(r.s.warnings, fmt.Sprintf(format, args...))
}

// remember writes what was before; without it a killed run is settled all the same.
func remember(m memory) {
	b, err := json.Marshal(m)
	if err != nil {
		return
	}
	beside := memoryFile + ".new"
	if os.WriteFile(beside, b, 0o600) == nil {
		_ = os.Rename(beside, memoryFile)
	}
}

// recall reads what the run with this id remembered.
func recall(id string) memory {
	m, ok := left()
	if !ok || m.ID != id || id == "" {
		return memory{}
	}
	return m
}

func forget() {
	if err := os.Remove(memoryFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return // it is of one transaction, and no other believes it
	}
}

// observe makes the executor of steps tell of what it does.
func (r *run) observe(o *restart.Options) {
	w := r.watching
	if w == nil {
		return
	}
	o.HealthTimeout = w.health.Command.D()
	o.Health = r.ask
	o.OnJobs = func() { w.batch = time.Now() }
	inner := o.OnResult
	o.OnResult = func(res change.StepResult) {
		inner(res)
		if res.Result == "skipped" {
			return
		}
		d := done{step: res.Step, end: time.Now(), begin: time.Now().Add(-time.Duration(res.USec) * time.Microsecond)}
		if unitVerb(res.Step.Do) {
			// The result of a unit comes when it has been watched for a while.
			d.begin, d.end = w.batch, w.batch.Add(time.Duration(res.USec)*time.Microsecond)
		}
		w.course = append(w.course, d)
	}
	o.Between = func(ctx context.Context) error {
		if w.undoing {
			return nil
		}
		return r.connected(ctx, 0)
	}
}

func unitVerb(do string) bool {
	return slices.Contains([]string{"reload", "restart", "start", "stop"}, do)
}

// connected tells whether everything that the machine is reached by is there, or comes
// back in time; it looks for at least so long.
func (r *run) connected(ctx context.Context, atLeast time.Duration) error {
	w := r.watching
	if w == nil || w.monitor == nil || w.told {
		return nil
	}
	lost, err := w.monitor.Lost()
	if err == nil && (len(lost) > 0 || atLeast > 0) {
		if len(lost) > 0 {
			r.ev.progress("verifying", 0, 0, "", lost[0].What+" is gone; it may come back by itself")
		}
		lost, err = w.monitor.Settle(ctx, atLeast, w.guard.Wait.D())
	}
	if err != nil {
		r.warn("the network cannot be looked at: %v", err)
		return nil
	}
	if len(lost) == 0 {
		return nil
	}
	cause := r.cutOff(lost)
	if w.guard.Mode == config.ModeReport {
		w.told = true
		r.warn("%v", cause)
		return nil
	}
	return cause
}

// cutOff says what vanished and after what.
func (r *run) cutOff(lost []guard.Loss) error {
	text := lost[0].What + " was lost"
	if after := r.watching.after(lost[0].Since); after != "" {
		text += " after " + after
	}
	if lost[0].Detail != "" {
		text += " (" + lost[0].Detail + ")"
	}
	if n := len(lost) - 1; n > 0 {
		var names []string
		for _, l := range lost[1:] {
			names = append(names, l.What)
		}
		const most = 3
		if len(names) > most {
			names = append(names[:most], fmt.Sprintf("%d more", n-most))
		}
		text += "; so were " + strings.Join(names, ", ")
	}
	return errors.New(text)
}

// stillThere looks once more after what cannot be taken back: what is lost is told, and
// brought back where that can be done.
func (r *run) stillThere(ctx context.Context) {
	err := r.connected(ctx, 0)
	if err == nil {
		return
	}
	if back := r.reconnect(ctx); back != nil {
		err = fmt.Errorf("%w; %w", err, back)
	}
	r.warn("%v; the update is not taken back for it", err)
}

// began notes the steps that a run which was cut off had carried out.
func (w *watching) began(recorded []change.StepResult) {
	for _, res := range recorded {
		w.course = append(w.course, done{step: res.Step})
	}
}

// managers are the units that are in charge of the network, as path.Match has them.
var managers = []string{
	"systemd-networkd.service", "NetworkManager.service", "networking.service", "network.service", "ifup@*.service", "ifplugd*.service",
	"netplan-*.service", "wicked*.service", "connman.service", "dhcpcd*.service", "wpa_supplicant*.service", "iwd.service",
	"openvswitch-switch.service", "ovs-vswitchd.service", "systemd-udevd.service", "wg-quick@*.service",
}

func manages(unit string) bool {
	return slices.ContainsFunc(managers, func(glob string) bool { ok, _ := path.Match(glob, unit); return ok })
}

// after names the step that something was lost after: of those that had begun by then,
// the one in charge of the network, or else the one that was under way.
func (w *watching) after(at time.Time) string {
	const late = 200 * time.Millisecond // an event is looked at a little later
	var begun []done
	for _, d := range w.course {
		if !d.begin.After(at.Add(late)) {
			begun = append(begun, d)
		}
	}
	if len(begun) == 0 && len(w.course) > 0 {
		begun = w.course[:1]
	}
	if len(begun) == 0 {
		return ""
	}
	slices.Reverse(begun) // of equals the later one
	slices.SortStableFunc(begun, func(a, b done) int {
		near := func(d done) time.Duration { return max(d.end.Sub(at), at.Sub(d.end)) }
		if x, y := manages(a.step.Target), manages(b.step.Target); x != y {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Compare(near(a), near(b))
	})
	st := begun[0].step
	if unitVerb(st.Do) {
		return st.Do + " of " + st.Target
	}
	return strings.TrimSpace("the step " + st.Do + " " + st.Target)
}

// tellNetwork puts what was watched into the report.
func (r *run) tellNetwork() {
	w := r.watching
	if w == nil || w.monitor == nil {
		return
	}
	r.report.Network = nil
	for _, l := range w.monitor.Findings() {
		if l.Result != change.NetKept && l.Result != change.NetChanged {
			l.After = w.after(l.Since)
		}
		r.report.Network = append(r.report.Network, l.NetworkFinding)
	}
}

// reconnect sees to it that the machine is reached again, now that the old files are
// back and their units run: it waits, restarts what is in charge of the network, and at
// last puts back what it can by itself.
func (r *run) reconnect(ctx context.Context) error {
	w := r.watching
	if w == nil || w.monitor == nil || w.guard.Mode != config.ModeOn {
		return nil
	}
	w.undoing = true
	was := w.missing()
	lost, err := w.monitor.Settle(ctx, 0, w.guard.Wait.D())
	if err == nil && len(lost) > 0 {
		was = append(was, names(lost)...)
		if steps := r.managersSteps(ctx); len(steps) > 0 {
			r.warn("%s did not come back with the old files: what is in charge of the network is restarted", lost[0].What)
			if _, err := r.runSteps(ctx, steps); err != nil {
				r.warn("%v", err)
			}
			lost, err = w.monitor.Settle(ctx, 0, w.guard.Wait.D())
		}
	}
	var put []string
	if err == nil && len(lost) > 0 {
		put = names(lost)
		r.warn("%s did not come back by itself: it is put back as it was before, and what is in charge of the network does not know of it", strings.Join(put, ", "))
		if err := guard.PutBack(w.monitor.Before(), findings(lost)); err != nil {
			r.warn("%v", err)
		}
		lost, err = w.monitor.Settle(ctx, 0, min(w.guard.Wait.D(), 5*time.Second))
	}
	r.tellNetwork()
	for i := range r.report.Network {
		f := &r.report.Network[i]
		switch {
		case f.Result == change.NetLost:
		case slices.Contains(put, f.What):
			f.Result = change.NetPutBack
		case slices.Contains(was, f.What):
			f.Result = change.NetRestored
		}
	}
	if err != nil {
		return fmt.Errorf("whether the machine can be reached is not known: %w", err)
	}
	if len(lost) > 0 {
		return fmt.Errorf("%s has not come back, with the old files neither", lost[0].What)
	}
	return nil
}

// standsAlone is verified for a rollback, which has no tree to go back to: what is
// missing of the network is brought back, and told.
func (r *run) standsAlone(ctx context.Context, acted bool) error {
	err := r.verified(ctx, acted)
	if err == nil || r.watching.monitor == nil {
		return err
	}
	if lost, lookErr := r.watching.monitor.Lost(); lookErr != nil || len(lost) == 0 {
		return err
	}
	if back := r.reconnect(ctx); back != nil {
		return fmt.Errorf("%w; %w", err, back)
	}
	r.warn("%v; it is there again", err)
	if bad := health.Bad(r.report.Health); bad != "" && r.watching.health.Mode == config.ModeOn {
		return errors.New(bad)
	}
	return nil
}

// missing are the things that were away at some time.
func (w *watching) missing() []string {
	var out []string
	for _, l := range w.monitor.Findings() {
		if l.Result == change.NetLost || l.Result == change.NetBack {
			out = append(out, l.What)
		}
	}
	return out
}

func names(list []guard.Loss) []string {
	var out []string
	for _, l := range list {
		out = append(out, l.What)
	}
	return out
}

func findings(list []guard.Loss) []change.NetworkFinding {
	var out []change.NetworkFinding
	for _, l := range list {
		out = append(out, l.NetworkFinding)
	}
	return out
}

// managersSteps restart the units in charge of the network that run, or ran before.
func (r *run) managersSteps(ctx context.Context) []change.Step {
	if !systemd.Booted() {
		return nil
	}
	units, err := unitsNow(ctx)
	if err != nil {
		r.warn("what is in charge of the network is not known: %v", err)
		return nil
	}
	var out []change.Step
	for name, u := range units {
		ran := r.watching.before != nil && r.watching.before.Units[name] != nil && r.watching.before.Units[name].Active()
		if name != u.Name || !manages(name) || name == "systemd-udevd.service" || !u.Active() && !ran {
			continue
		}
		out = append(out, change.Step{Seq: len(out) + 1, Do: "restart", Target: name, Undo: "restart"})
		if !u.Active() {
			out = append(out, change.Step{Seq: len(out) + 1, Do: "start", Target: name, Undo: "stop"})
		}
	}
	slices.SortStableFunc(out, func(a, b change.Step) int { return strings.Compare(a.Target, b.Target) })
	return out
}

func unitsNow(ctx context.Context) (map[string]*change.UnitState, error) {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	return bus.Units(ctx)
}

// verified is the last look before a run counts as done: the units and the network at
// once, each as long as it may take. Where no step was carried out one look will do.
func (r *run) verified(ctx context.Context, acted bool) error {
	w := r.watching
	if w == nil {
		return nil
	}
	if acted {
		r.ev.progress("verifying", 0, 0, "", "the units and the network are watched for a while")
	}
	atLeast := time.Duration(0)
	if acted {
		atLeast = w.guard.Settle.D()
	}
	found := make(chan []change.HealthCheck, 1)
	go func() { found <- r.healthy(ctx, acted) }()
	cut := r.connected(ctx, atLeast)
	r.report.Health = append(r.report.Health, <-found...)
	r.tellNetwork()
	if cut != nil {
		return cut
	}
	bad := health.Bad(r.report.Health)
	if bad == "" {
		return nil
	}
	if w.health.Mode == config.ModeReport {
		r.warn("%s", bad)
		return nil
	}
	return errors.New(bad)
}

// reconnectLeft is reconnect for a run that was killed after its tree had gone back.
func (s *session) reconnectLeft(ctx context.Context, ev Events, report *change.Report) error {
	m, ok := left()
	if !ok || !s.req.Live() {
		return nil
	}
	list, err := s.store.List()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(g change.Generation) bool { return g.ID == m.ID })
	if m.Network == nil || i >= 0 && list[i].State != "rolled-back" {
		forget() // it came to its end
		return nil
	}
	r := &run{s: s, ev: ev, p: &planned{plan: &change.Plan{}, delta: &change.Delta{}}, report: report, of: m.ID}
	defer r.watch(ctx, nil)()
	return r.reconnect(context.WithoutCancel(ctx))
}

// left is what a run that did not come to its end remembered.
func left() (memory, bool) {
	var m memory
	b, err := os.ReadFile(memoryFile)
	ok := err == nil && json.Unmarshal(b, &m) == nil
	return m, ok
}

// cgroupfs is where the units' control groups are, "" where that is not known.
func cgroupfs() string {
	dir, err := health.Hierarchy()
	if err != nil {
		return ""
	}
	return filepath.Clean(dir)
}
