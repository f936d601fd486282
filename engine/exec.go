package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/sandbox"
	"github.com/liveupd/liveupd/source/apt"
	"github.com/liveupd/liveupd/transact"
)

// ExecRequest is what exec runs.
type ExecRequest struct {
	Argv     []string `json:"argv"`
	Env      []string `json:"env,omitempty"`
	Dir      string   `json:"dir,omitempty"`
	Umask    *uint32  `json:"umask,omitempty"` // the caller's; nil: 022
	Network  bool     `json:"network,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
	Input    bool     `json:"input,omitempty"` // it reads Events.Input
	// InputFrom is the socket that the caller serves its input on.
	InputFrom string        `json:"input_from,omitempty"`
	Limit     time.Duration `json:"limit,omitempty"`  // 0: ExecLimit
	Memory    int64         `json:"memory,omitempty"` // bytes; 0: three quarters of the machine's
	Tasks     int64         `json:"tasks,omitempty"`  // 0: sandboxPids
}

// ExecLimit is how long a command may run where the request does not say.
const ExecLimit = time.Hour

// execSource begins the name of the source of what a command changed.
const execSource = "exec:"

// exec runs a command over the staged view, and commits what it changed as one
// transaction: planned, validated, and taken back like any other.
func (e *Engine) exec(ctx context.Context, req Request, ev Events) (any, error) {
	if req.Exec == nil || len(req.Exec.Argv) == 0 {
		return nil, usage("no command is given: liveupd exec -- CMD [ARGS]")
	}
	how := readWrite
	if req.PlanOnly {
		how = cacheOnly
	}
	s, err := openSession(e, req, how)
	if err != nil {
		return nil, err
	}
	report := newReport("exec")
	defer s.leave(report)
	if req.PlanOnly {
		err = s.noteUnfinished()
	} else {
		err = s.recoverFirst(ctx, ev, report)
	}
	if err != nil {
		return nil, err
	}
	w, err := s.openWork()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := w.close(); err != nil {
			s.warnings = append(s.warnings, err.Error())
		}
	}()
	if !req.PlanOnly {
		// Before the command: what the hooks write to is then what it sees.
		post, err := s.preHooks(ctx, report, ev)
		if err != nil {
			return nil, err
		}
		defer post()
	}
	p, err := s.planExec(ctx, w, report, ev)
	if err != nil {
		report.Result, report.Error = "failed", err.Error()
		if req.PlanOnly {
			return nil, err
		}
		return report, err
	}
	defer p.close()
	if req.PlanOnly {
		p.plan.Warnings = append(p.plan.Warnings, s.warnings...)
		s.warnings = nil
		return p.plan, nil
	}
	return report, s.commitPlanned(ctx, p, report, ev)
}

// commitPlanned shows a plan, asks, and carries it out.
func (s *session) commitPlanned(ctx context.Context, p *planned, report *change.Report, ev Events) error {
	ev.emit(p.plan)
	report.PlanID = p.plan.ID
	if p.plan.Empty() {
		report.Result = "nothing-to-do"
		return nil
	}
	if err := s.refuseUnrecovered(); err != nil {
		return err
	}
	if ev.Confirm != nil && !ev.Confirm(p.plan) {
		report.Result = "undone"
		return ErrDeclined
	}
	r := &run{s: s, ev: ev, p: p, report: report}
	return r.carryOut(ctx)
}

// planExec runs the command and plans for what it changed.
func (s *session) planExec(ctx context.Context, w *work, report *change.Report, ev Events) (_ *planned, err error) {
	x := s.req.Exec
	limit := x.Limit
	if limit <= 0 {
		limit = ExecLimit
	}
	shown := strings.Join(x.Argv, " ")
	ev.progress("running", 0, 0, "", shown)
	input, err := openInput(x, ev)
	if err != nil {
		return nil, err
	}
	o := sandbox.Options{Output: os.Stderr, Timeout: limit}
	if input != nil {
		defer input.Close()
		o.Input = input
	}
	spec := sandbox.Spec{
		Commands: []sandbox.Command{{Argv: x.Argv, Network: x.Network}}, Env: execEnv(x.Env), Cwd: x.Dir, Umask: x.Umask, Terminal: x.Terminal,
		Memory: x.Memory, Pids: x.Tasks,
	}
	w.withSystemctl(ctx, &spec)
	res, err := w.runIn(ctx, spec, o)
	if failure, ok := errors.AsType[*sandbox.Failure](err); ok && report != nil {
		report.Command = &change.CommandResult{Exit: failure.Exit, Signal: failure.Signal}
	}
	if err != nil {
		return nil, notCommitted(ctx, shown, err)
	}
	left := newLeftovers()
	d, err := w.delta(ctx, left.ignore, ev)
	if err == nil {
		err = w.changedBeside(d, func(string) bool { return false })
	}
	if err != nil {
		return nil, err
	}
	p := &planned{delta: d, root: w.dir, takes: true}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.base, _, err = s.currentBase(); err != nil {
		return nil, err
	}
	p.records = changedBase(p.base, d)
	if err := s.libraryCache(ctx, p, w.dir, ev); err != nil {
		return nil, err
	}
	if err := s.decide(ctx, p, w.dir, change.Policy{Max: s.req.Max, AllowRemovals: true, Snapshot: s.req.Snapshot}, ev); err != nil {
		return nil, err
	}
	p.plan.Source = execSource + shown
	recorded := apt.Read(res.Kept)
	p.plan.Asked = recorded.Actions
	tellStopped(&recorded, p.plan, p.facts)
	p.plan.Warnings = append(p.plan.Warnings, left.warnings()...)
	return p, nil
}

// notCommitted says of a command that did not succeed that nothing came of it. What
// it wrote was passed on as it came.
func notCommitted(ctx context.Context, shown string, err error) error {
	if failure, ok := errors.AsType[*sandbox.Failure](err); ok {
		return change.WithHint(fmt.Errorf("%w; %w", failure, ErrNothingCommitted),
			"what it changed was dropped with the sandbox; its output says why")
	}
	if stopped, ok := errors.AsType[*sandbox.Stopped](err); ok {
		if ctx.Err() != nil {
			return change.WithHint(fmt.Errorf("interrupted while %s ran: %w", shown, ErrNothingCommitted), "run the same command again")
		}
		hint := "give it more time with --limit"
		if errors.Is(err, sandbox.ErrInputCut) {
			hint = "run the same command again"
		}
		if errors.Is(err, errFull) {
			hint = "free some room on the root's file system"
		}
		return change.WithHint(fmt.Errorf("cannot wait for %s: %w; %w", shown, stopped, ErrNothingCommitted), hint)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return outOfSight(shown, fmt.Errorf("%w; %w", err, ErrNothingCommitted))
	}
	return fmt.Errorf("cannot run %s: %w; %w", shown, err, ErrNothingCommitted)
}

// outOfSight gives the way out to who names a command that only the host sees.
func outOfSight(shown string, err error) error {
	for _, dir := range []string{"/tmp/", "/var/tmp/", "/run/", "/dev/shm/"} {
		if strings.HasPrefix(shown, dir) {
			return change.WithHint(err, "the sandbox has a "+strings.TrimSuffix(dir, "/")+" of its own: put the command elsewhere, as in /root or /usr/local")
		}
	}
	return err
}

// execEnv is the caller's environment without what leads to the running system or
// means another process, and with what tells programs that they are not to act on it.
func execEnv(env []string) []string {
	drop := map[string]bool{
		"DBUS_SESSION_BUS_ADDRESS": true, "DBUS_SYSTEM_BUS_ADDRESS": true, "XDG_RUNTIME_DIR": true, "SSH_AUTH_SOCK": true, "NOTIFY_SOCKET": true,
		"LISTEN_FDS": true, "LISTEN_PID": true, "LISTEN_FDNAMES": true, "INVOCATION_ID": true, "JOURNAL_STREAM": true, "MAINPID": true,
		"LD_PRELOAD": true, "SYSTEMD_OFFLINE": true, "NEEDRESTART_SUSPEND": true,
	}
	var out []string
	for _, e := range env {
		if name, _, ok := strings.Cut(e, "="); ok && !drop[name] {
			out = append(out, e)
		}
	}
	return append(out, "SYSTEMD_OFFLINE=1", "NEEDRESTART_SUSPEND=1")
}

// leftovers counts what a command wrote where nothing is kept.
type leftovers struct{ dirs map[string]int }

func newLeftovers() *leftovers { return &leftovers{dirs: map[string]int{}} }

func (l *leftovers) ignore(p string) bool {
	for _, dir := range neverKept {
		if p == dir {
			return true
		}
		if strings.HasPrefix(p, dir+"/") {
			l.dirs[dir]++
			return true
		}
	}
	return filepath.Base(p) == ".liveupd"
}

func (l *leftovers) warnings() []string {
	var out []string
	for _, dir := range neverKept {
		if n := l.dirs[dir]; n > 0 {
			out = append(out, fmt.Sprintf("what was written below %s is not kept", dir))
		}
	}
	return out
}

// sandboxLeft tells whether a killed run left what it wrote behind.
func (s *session) sandboxLeft() bool {
	home, err := sys.OpenDirAt(s.vols[0].Dir, transact.Dir+"/"+workName)
	if err != nil {
		return false
	}
	defer home.Close()
	if _, err := sys.Lstat(home, workDirName); err != nil {
		return false
	}
	if _, err := sys.Lstat(home, workDirName+"/"+keptName); err == nil {
		return false // a plan's: an apply may follow
	}
	free, err := sys.TryLock(home)
	return err == nil && free
}

// dropSandbox removes what a killed run left behind.
func (s *session) dropSandbox() error {
	if !s.sandboxLeft() {
		return nil
	}
	return s.dropCaches(workDirName)
}

// sandboxCaches are the folders beside what a sandbox writes: packages and their lists.
var sandboxCaches = []string{workDirName, "archives", "lists"}

// dropCaches removes what sandboxes keep, by name, where no other process has one.
func (s *session) dropCaches(names ...string) error {
	var errs []error
	for _, home := range s.openHomes() {
		errs = append(errs, s.dropFrom(home, names))
		home.Close()
	}
	return errors.Join(errs...)
}

func (s *session) dropFrom(home *sys.FD, names []string) error {
	if free, err := sys.TryLock(home); err != nil || !free {
		return err
	}
	for _, name := range names {
		if err := s.k.RemoveAll(home, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove what a sandbox left: %w", err)
		}
	}
	return nil
}
