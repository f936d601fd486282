package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/nsmount"
)

// WorkerArg is the hidden verb of the process that a verb on the running root
// is carried out in: "worker" in the transient unit, which starts
// "worker-inside" in the private mount namespace.
const (
	WorkerArg       = "worker"
	WorkerInsideArg = "worker-inside"
)

// The conversation with the worker: the request as the first line to it, then
// "yes", "no" or "cancel"; from it one message a line.
type message struct {
	Kind   string          `json:"kind"` // progress, plan, step, finding, verified, confirm, result, error
	Type   string          `json:"type,omitempty"`
	Value  json.RawMessage `json:"value,omitempty"`
	Error  string          `json:"error,omitempty"`
	Hint   string          `json:"hint,omitempty"`
	Causes []string        `json:"causes,omitempty"`
}

// causes are the conditions that survive the way from the worker.
var causes = map[string]error{
	"verification": change.ErrVerification, "locked": change.ErrLocked, "drift": change.ErrDrift, "interrupted": context.Canceled,
	"person": change.ErrNeedsPerson, "declined": ErrDeclined, "usage": ErrUsage,
	"rolled-back": ErrRolledBack, "nothing-committed": ErrNothingCommitted,
}

// remoteError is an error that another process met.
type remoteError struct {
	text   string
	causes []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.causes }

// results are the types that Run returns.
func decodeResult(kind string, raw json.RawMessage) (any, error) {
	var v any
	switch kind {
	case "plan":
		v = new(change.Plan)
	case "report":
		v = new(change.Report)
	case "check":
		v = new(change.CheckReport)
	case "verify":
		v = new(change.VerifyReport)
	case "keys":
		v = new(change.KeyReport)
	case "generations":
		list := []change.Generation{}
		err := change.Decode(raw, &list)
		return list, err
	default:
		return nil, nil
	}
	return v, change.Decode(raw, v)
}

func resultKind(v any) string {
	switch v := v.(type) {
	case *change.Plan:
		if v != nil {
			return "plan"
		}
	case *change.Report:
		if v != nil {
			return "report"
		}
	case *change.CheckReport:
		if v != nil {
			return "check"
		}
	case *change.VerifyReport:
		if v != nil {
			return "verify"
		}
	case *change.KeyReport:
		if v != nil {
			return "keys"
		}
	case []change.Generation:
		return "generations"
	}
	return ""
}

// Spawn carries out a request on the running root in a process of its own and
// relays what it tells. Interrupts reach it as "cancel"; when the caller
// dies, a run that was agreed to goes on to its end. A caller that is told to
// end leaves a run that no longer stops (ErrLeft).
func Spawn(ctx context.Context, req Request, ev Events) (any, error) {
	req, err := normalize(req)
	if err != nil {
		return nil, err
	}
	req.Own = ownUnits()
	if req.Exec != nil && req.Exec.Input && ev.Input != nil {
		x := *req.Exec
		var end func()
		if x.InputFrom, end, err = serveInput(ev.Input); err != nil {
			return nil, err
		}
		defer end()
		req.Exec = &x
	}
	toWorker, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer ours.Close()
	fromWorker, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer fromWorker.Close()
	before := earlier(req)
	wait, err := startWorker(ctx, req, ev, toWorker, theirs)
	toWorker.Close()
	theirs.Close()
	if err != nil {
		return nil, err
	}
	say := json.NewEncoder(ours)
	if err := say.Encode(change.Escaped(req)); err != nil {
		return nil, fmt.Errorf("cannot speak to the worker: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { fmt.Fprintln(ours, "cancel") })
	defer stop()
	past, done := make(chan struct{}), make(chan struct{})
	defer close(done)
	if outlivesCaller(req) {
		go func() {
			for _, both := range []<-chan struct{}{ev.Terminated, past} {
				select {
				case <-both:
				case <-done:
					return
				}
			}
			// Whoever ends us may wait for that before the run can go on: a
			// service manager that restarts the service of our session.
			fromWorker.Close()
		}()
	}
	emit := ev.Emit
	told := sync.OnceFunc(func() { close(past) })
	ev.Emit = func(v any) {
		if emit != nil {
			emit(v)
		}
		if p, ok := v.(change.Progress); ok && p.Phase == change.PhaseInterrupted {
			told()
		}
	}
	result, got, err := relay(fromWorker, ours, ev)
	if errors.Is(err, fs.ErrClosed) {
		return nil, ErrLeft
	}
	if waitErr := wait(); !got && reads(req) {
		return nil, endedWithout(waitErr)
	} else if !got {
		return killed(req, before, endedWithout(waitErr))
	}
	return result, err
}

func relay(from io.Reader, to io.Writer, ev Events) (result any, got bool, err error) {
	sc := bufio.NewScanner(from)
	sc.Buffer(make([]byte, 64<<10), 1<<30)
	for sc.Scan() {
		var m message
		if err := change.Decode(sc.Bytes(), &m); err != nil {
			return nil, false, fmt.Errorf("cannot read the worker's message: %w", err)
		}
		switch m.Kind {
		case "progress":
			var p change.Progress
			if change.Decode(m.Value, &p) == nil {
				ev.emit(p)
			}
		case "plan", "confirm":
			p := new(change.Plan)
			if err := change.Decode(m.Value, p); err != nil {
				return nil, false, fmt.Errorf("cannot read the worker's plan: %w", err)
			}
			if m.Kind == "plan" {
				ev.emit(p)
				continue
			}
			answer := "yes"
			if ev.Confirm != nil && !ev.Confirm(p) {
				answer = "no"
			}
			fmt.Fprintln(to, answer)
		case "step":
			var r change.StepResult
			if change.Decode(m.Value, &r) == nil {
				ev.emit(r)
			}
		case "finding":
			var d change.Damage
			if change.Decode(m.Value, &d) == nil {
				ev.emit(d)
			}
		case "verified":
			r := new(change.VerifyReport)
			if change.Decode(m.Value, r) == nil {
				ev.emit(r)
			}
		case "result":
			if result, err = decodeResult(m.Type, m.Value); err != nil {
				return nil, true, err
			}
			if m.Error != "" {
				remote := &remoteError{text: m.Error}
				for _, name := range m.Causes {
					remote.causes = append(remote.causes, causes[name])
				}
				err = remote
				if m.Hint != "" {
					err = change.WithHint(remote, m.Hint)
				}
			}
			return result, true, err
		}
	}
	return nil, false, sc.Err()
}

// startWorker starts the worker: in a transient unit of its own where systemd
// runs the host and something will change, so that a restart of the caller's
// session does not end it; else as a child.
func startWorker(ctx context.Context, req Request, ev Events, stdin, stdout *os.File) (wait func() error, err error) {
	exe, err := program()
	if err != nil {
		return nil, fmt.Errorf("cannot find our own program: %w", err)
	}
	if outlivesCaller(req) {
		bus, err := systemd.Connect(ctx)
		if err != nil {
			return nil, err
		}
		unit := fmt.Sprintf("liveupd-%s-%s.service", req.Verb, randomID())
		t := systemd.Transient{
			Name: unit, Description: "liveupd " + req.Verb, Argv: []string{exe, WorkerArg},
			Stdin: stdin, Stdout: stdout, Stderr: os.Stderr, Watchdog: stuckAfter(req),
		}
		if req.Verb != "restart" && req.Verb != "recover" && !reads(req) {
			// What a killed worker leaves behind is settled at once, not at the next run.
			t.ExecStopPost = []string{exe, "recover", "--if-unfinished"}
		}
		running, err := bus.StartTransient(ctx, t)
		if err != nil {
			bus.Close()
			return nil, err
		}
		if ev.Started != nil {
			ev.Started(unit)
		}
		return func() error {
			defer bus.Close()
			exit, err := running.Wait(context.WithoutCancel(ctx))
			if err == nil && exit.Known && exit.Result != "success" {
				err = fmt.Errorf("%s: %s", unit, exit.Result)
			}
			return err
		}, nil
	}
	if req.Verb == "recover" {
		if err := endRest(); err != nil {
			return nil, err
		}
	}
	return startInside(stdin, stdout)
}

// outlivesCaller tells whether the worker runs in a unit of its own.
func outlivesCaller(req Request) bool {
	return systemd.Booted() && (req.Verb == "apply" || req.Verb == "rollback" || req.Verb == "restart" ||
		req.Verb == "exec" && !req.PlanOnly || (req.Verb == "recover" || reads(req)) && req.Unattended ||
		req.Verb == "verify" && req.Repair && !req.PlanOnly)
}

// reads tells whether a request changes nothing.
func reads(req Request) bool { return req.Verb == "status" || req.Verb == "history" }

// startInside starts the process in the private mount namespace.
func startInside(stdin, stdout *os.File) (wait func() error, err error) {
	cmd, err := inside(stdin, stdout)
	if err != nil {
		return nil, err
	}
	return func() error { return waitInside(cmd) }, nil
}

func inside(stdin, stdout *os.File) (*exec.Cmd, error) {
	cmd, err := nsmount.Command([]string{WorkerInsideArg})
	if err != nil {
		return nil, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	if err := nsmount.Start(cmd); err != nil {
		return nil, fmt.Errorf("cannot start the worker in a private mount namespace: %w", err)
	}
	return cmd, nil
}

func waitInside(cmd *exec.Cmd) error {
	err := cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("the worker: %w", err)
	}
	return err
}

// Worker is the main function of "worker": it starts the inner worker and
// waits for it.
func Worker() error {
	cmd, err := inside(os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	go func() {
		for range terms {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it decides whether to undo or to finish
		}
	}()
	return waitInside(cmd)
}

// WorkerInside is the main function of "worker-inside".
func WorkerInside() error {
	if err := nsmount.Isolate(); err != nil {
		return err
	}
	// It was started as /proc/self/exe: whoever meets our locks names this process.
	_ = os.WriteFile("/proc/self/comm", []byte("liveupd"), 0)
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("cannot read the request: %w", err)
	}
	var req Request
	if err := change.Decode(line, &req); err != nil {
		return fmt.Errorf("cannot read the request: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := &workerSide{ctx: ctx, out: json.NewEncoder(os.Stdout), answers: make(chan bool, 1), agreed: req.NoPrompt}
	go w.listen(in, cancel)
	// systemctl stop and a shutdown: undo before the commit point, finish after it.
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	go func() {
		<-terms
		cancel()
	}()
	life := newPulse(req)
	ev := Events{Emit: func(v any) {
		life.beat(v)
		w.emit(v)
	}}
	if !req.NoPrompt {
		ev.Confirm = w.confirm
	}
	stop, err := systemd.Alive(life.well)
	if err != nil {
		return err
	}
	defer stop()
	result, err := (&Engine{}).Run(ctx, req, ev)
	w.result(result, err)
	return nil
}

// workerSide speaks the worker's half of the conversation. What can no longer
// be delivered, because the caller is gone, is dropped: the work goes on.
type workerSide struct {
	ctx     context.Context
	mu      sync.Mutex
	out     *json.Encoder
	answers chan bool
	agreed  bool // nothing will be asked
}

func (w *workerSide) listen(in *bufio.Reader, cancel func()) {
	agreed := w.agreed
	for {
		line, err := in.ReadString('\n')
		switch strings.TrimSpace(line) {
		case "yes":
			agreed = true
			w.answers <- true
		case "no":
			w.answers <- false
		case "cancel":
			cancel()
		}
		if err != nil {
			if !agreed {
				cancel()
			}
			// Nobody is left to agree to anything more.
			close(w.answers)
			return
		}
	}
}

func (w *workerSide) send(m message, v any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v != nil {
		raw, err := json.Marshal(change.Escaped(v))
		if err != nil {
			m.Error = fmt.Sprintf("cannot render a %s: %v", m.Kind, err)
		}
		m.Value = raw
	}
	_ = w.out.Encode(change.Escaped(m))
}

func (w *workerSide) emit(v any) {
	switch v.(type) {
	case change.Progress:
		w.send(message{Kind: "progress"}, v)
	case *change.Plan:
		w.send(message{Kind: "plan"}, v)
	case change.StepResult:
		w.send(message{Kind: "step"}, v)
	case change.Damage:
		w.send(message{Kind: "finding"}, v)
	case *change.VerifyReport:
		w.send(message{Kind: "verified"}, v)
	}
}

func (w *workerSide) confirm(p *change.Plan) bool {
	w.send(message{Kind: "confirm"}, p)
	select {
	case yes := <-w.answers:
		return yes
	case <-w.ctx.Done():
		return false
	}
}

func (w *workerSide) result(v any, err error) {
	m := message{Kind: "result", Type: resultKind(v)}
	if m.Type == "" {
		v = nil
	}
	if err != nil {
		m.Error = err.Error()
		if hint, ok := errors.AsType[*change.HintError](err); ok {
			m.Hint = hint.Hint
		}
		for name, cause := range causes {
			if errors.Is(err, cause) {
				m.Causes = append(m.Causes, name)
			}
		}
	}
	w.send(m, v)
}
