// Package engine composes the walk of an update; it is the only package that
// sees two organs at once.
//
//  1. Open the root's file systems, and the store of transactions in them.
//     What a killed run left behind is recovered first.
//  2. Read the source, settle what the machine owns, compare by content.
//     Nothing outside the caches has changed.
//  3. Read both trees and the running host, and plan. --plan stops here.
//  4. Stage, validate on the staged view, record everything that is about to
//     be done. An error or an interrupt up to here leaves the root as it was.
//  5. Commit. From here on an interrupt no longer stops the run.
//  6. Carry out the unit steps. When one fails, the tree is reverted and the
//     inverse steps are carried out: the machine is as it was, and running.
//  7. Look again at what runs, mark the transaction verified, put the file
//     systems back to read-only where they were, collect old generations.
//
// Work on the running root happens in a process of its own (Spawn), in a
// private mount namespace and, where systemd is PID 1, in a transient unit.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
	"github.com/liveupd/liveupd/source/apt"
)

// Schema is the version of the JSON lines' layout.
const Schema = 1

// KeepGenerations is how many committed generations are kept for a rollback
// where the request does not say.
const KeepGenerations = 2

// Request is all that a verb needs to know; it crosses to the worker as JSON.
type Request struct {
	Verb          string        `json:"verb"` // plan, apply, rollback, verify, recover, check, restart, status, history, setup
	Root          string        `json:"root"`
	Source        string        `json:"source,omitempty"`
	Max           change.Action `json:"max"`
	MaxSet        bool          `json:"max_set,omitempty"` // Max was given, even as none
	Expect        string        `json:"expect,omitempty"`
	AllowUnsigned bool          `json:"allow_unsigned,omitempty"`
	AllowRemovals bool          `json:"allow_removals,omitempty"`
	ID            string        `json:"id,omitempty"` // rollback: the generation
	Keep          int           `json:"keep,omitempty"`
	Snapshot      bool          `json:"snapshot,omitempty"` // apply: of a btrfs root, before the commit
	KeysDir       string        `json:"keys_dir,omitempty"` // "" is ROOT/etc/liveupd/keys
	Keys          *KeysRequest  `json:"keys,omitempty"`     // key: what to do
	NoPrompt      bool          `json:"no_prompt,omitempty"`
	Full          bool          `json:"full,omitempty"`      // verify: read everything, trust no index
	KeepNone      bool          `json:"keep_none,omitempty"` // clean: not even the last one
	Repair        bool          `json:"repair,omitempty"`    // verify: put back what is damaged
	PlanOnly      bool          `json:"plan_only,omitempty"` // verify with Repair: change nothing
	IfUnfinished  bool          `json:"if_unfinished,omitempty"`
	CacheMax      int64         `json:"cache_max,omitempty"` // what sandboxes leave for the next run, in bytes; 0: CacheMax, below 0: nothing
	Force         bool          `json:"force,omitempty"`     // rollback: past what nothing takes back
	// Quiesce says when units stand still for the swap: auto (""), always, never.
	Quiesce      string `json:"quiesce,omitempty"`
	QuiesceFiles int    `json:"quiesce_files,omitempty"` // of one unit, from which on auto does it; 0: quiesce.Files
	Guard        string `json:"guard,omitempty"`         // on, report or off, in place of the configured mode
	Unattended   bool   `json:"unattended,omitempty"`    // apply: refuse what nobody is there to mend
	Remove       bool   `json:"remove,omitempty"`        // setup: take it away
	// Setup is what setup does beside the recovery at boot.
	Setup SetupRequest `json:"setup,omitzero"`
	// Units are those that check is asked about, and that restart may act on; none: all.
	Units []string `json:"units,omitempty"`
	// Rules are the caller's own; they come after the administrator's, and count more.
	Rules []change.Rule `json:"rules,omitempty"`
	// Own are the units that the caller runs in, with what leads to it.
	Own []string `json:"own,omitempty"`
	// Apt is what the package manager is to do, where the update is its.
	Apt *apt.Options `json:"apt,omitempty"`
	Env []string     `json:"env,omitempty"` // the caller's, for a download
	// Exec is what exec runs.
	Exec *ExecRequest `json:"exec,omitempty"`
}

// Live tells whether the request is for the running system's own root.
func (r Request) Live() bool { return r.Root == "/" }

// Events is how a verb tells what it does. Emit gets change.Progress,
// *change.Plan, change.StepResult, change.Damage and *change.VerifyReport (before
// a repair) values, in order, from one goroutine at a time. Confirm is asked once, before anything is staged.
type Events struct {
	Emit    func(any)
	Confirm func(*change.Plan) bool
	// Terminated is closed when the caller is told to end, and not just to stop
	// what it does; nil where it never is.
	Terminated <-chan struct{}
	// Input is what a command of exec reads, where the request says so; nil is nothing.
	Input io.Reader
	// Started is told the unit in which the work is done, where it has one of its own.
	Started func(unit string)
}

// goOn tells of an interrupt that no longer stops the run, until the returned
// function is called.
func (e Events) goOn(ctx context.Context, why string) (end func() bool) {
	return context.AfterFunc(ctx, func() {
		e.progress(change.PhaseInterrupted, 0, 0, "", why+": the run goes on to its end")
	})
}

func (e Events) emit(v any) {
	if e.Emit != nil {
		e.Emit(v)
	}
}

// Sentinels beside those of package change, for the exit code.
var (
	// ErrDeclined: the plan was shown and not agreed to.
	ErrDeclined = errors.New("not confirmed: nothing was changed")
	// ErrUsage: the request makes no sense.
	ErrUsage = errors.New("usage")
	// ErrRolledBack: something failed after the commit, and all of it was taken back.
	ErrRolledBack = errors.New("rolled back")
	// ErrLeft: the caller was told to end, and the run goes on without it.
	ErrLeft = errors.New("told to end past the commit point: the run goes on without this process; see: liveupd status")
	// ErrWorkerGone: the process that did the work was killed.
	ErrWorkerGone = errors.New("the worker ended without a result")
	// ErrNothingCommitted wraps a failure before the commit point.
	ErrNothingCommitted = errors.New("nothing was changed")
)

// usageError is ErrUsage in its own words.
type usageError struct{ error }

func (e usageError) Is(target error) bool { return target == ErrUsage }
func (e usageError) Unwrap() error        { return e.error }

// Usage marks an error as one of the command line.
func Usage(err error) error { return usageError{err} }

func usage(format string, args ...any) error { return Usage(fmt.Errorf(format, args...)) }

// Engine runs verbs. The zero value talks to the real kernel.
type Engine struct {
	Kernel *sys.Kernel
	Clock  trust.Clock // by which updates expire
	// noMounts leaves the look at mounts that come meanwhile out: the negative
	// control of the tests.
	noMounts bool
}

// Run carries out a request and returns its result: *change.Plan,
// *change.Report, *change.CheckReport, *change.VerifyReport, *change.SetupReport or
// []change.Generation. A *change.Report comes with an error too, where
// something was done before the failure.
func (e *Engine) Run(ctx context.Context, req Request, ev Events) (any, error) {
	var err error
	if req, err = normalize(req); err != nil {
		return nil, err
	}
	ev = ev.throttled()
	switch req.Verb {
	case "plan":
		return e.plan(ctx, req, ev)
	case "apply":
		return e.apply(ctx, req, ev)
	case "rollback":
		return e.rollback(ctx, req, ev)
	case "recover":
		return e.recover(ctx, req, ev)
	case "clean":
		return e.clean(ctx, req, ev)
	case "verify":
		return e.verify(ctx, req, ev)
	case "check":
		return e.check(ctx, req, ev)
	case "restart":
		return e.restart(ctx, req, ev)
	case "status", "history":
		return e.history(req)
	case "key":
		return e.keys(req)
	case "exec":
		return e.exec(ctx, req, ev)
	case "setup":
		return e.setup(ctx, req, ev)
	}
	return nil, usage("no such verb %q", req.Verb)
}

func normalize(req Request) (Request, error) {
	if req.Root == "" {
		req.Root = "/"
	}
	abs, err := filepath.Abs(req.Root)
	if err != nil {
		return req, fmt.Errorf("cannot resolve root %s: %w", req.Root, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	req.Root = abs
	if req.Keep <= 0 {
		req.Keep = KeepGenerations
	}
	if req.Max == change.ActionNone && !req.MaxSet {
		// The zero value is no limit: what this program can do at most.
		req.Max = change.ActionReboot
	}
	if req.KeysDir != "" {
		if req.KeysDir, err = filepath.Abs(req.KeysDir); err != nil {
			return req, fmt.Errorf("cannot resolve the keys %s: %w", req.KeysDir, err)
		}
	}
	if kind, where, ok := strings.Cut(req.Source, ":"); ok && (kind == "tree" || kind == debKind || (kind == "tar" || kind == "patch") && !isURL(where)) && where != "" {
		// The worker has another working directory.
		if where, err = filepath.Abs(where); err != nil {
			return req, fmt.Errorf("cannot resolve source %s: %w", req.Source, err)
		}
		req.Source = kind + ":" + where
	}
	return req, nil
}

// Prepare makes a request independent of the caller's working directory, for Spawn.
func Prepare(req Request) (Request, error) { return normalize(req) }

// history lists the transactions; nothing is written and nothing need be writable.
func (e *Engine) history(req Request) (any, error) {
	s, err := openSession(e, req, readOnly)
	if err != nil {
		return nil, err
	}
	defer s.close()
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	if list == nil {
		list = []change.Generation{}
	}
	s.forgetDone(list)
	return list, nil
}

// runningUnits asks systemd which units there are and, of the named ones
// (change.UnitKey), their invocations; and the managers of users whose units are
// among these. Without an answer nothing is known of any unit.
func runningUnits(keys ...string) *change.Facts {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out := &change.Facts{}
	users := slices.ContainsFunc(keys, func(key string) bool { manager, _ := change.SplitUnitKey(key); return manager != "" })
	b := openBus(ctx, 0, users)
	defer b.close()
	units, err := b.Units(ctx)
	if err != nil || b.asker == nil {
		return out
	}
	var list []*change.UnitState
	for _, key := range keys {
		manager, name := change.SplitUnitKey(key)
		if u := units[name]; u != nil && manager == "" {
			list = append(list, u)
		}
	}
	if err := b.Fill(ctx, list, change.FieldInvocation); err != nil {
		return out
	}
	if users {
		if out.Users, err = b.Users(ctx); err != nil {
			return out
		}
	}
	out.Units, out.Running = units, true
	return out
}

// stateOf finds a unit by change.UnitKey; known is false where its manager did
// not answer.
func stateOf(facts *change.Facts, key string) (u *change.UnitState, known bool) {
	manager, name := change.SplitUnitKey(key)
	if manager == "" {
		return facts.Units[name], facts.Running
	}
	for _, m := range facts.Users {
		if m.Unit == manager {
			return m.Units[name], m.Problem == ""
		}
	}
	return nil, facts.Running // its user has logged out
}

// unfinished tells whether a transaction was cut off.
func unfinished(list []change.Generation) (change.Generation, bool) {
	i := slices.IndexFunc(list, func(g change.Generation) bool {
		return g.State != "verified" && g.State != "rolled-back"
	})
	if i < 0 {
		return change.Generation{}, false
	}
	return list[i], true
}
