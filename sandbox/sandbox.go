// Package sandbox runs a program over the staged view of a root, in a container
// of its own (liveupd-sandbox), and tells what became of it.
//
//  1. Start re-executes nothing of its own: it starts the program liveupd-sandbox,
//     which lies beside liveupd, in a mount namespace copied from the caller's, and
//     hands it a Spec.
//  2. liveupd-sandbox builds the view there: an overlay over each file system of
//     the root, whose upper the caller named. What is mounted goes with the
//     namespace.
//  3. libcontainer starts the command in it: own mount, pid, ipc, uts and (unless
//     Spec.Network) network namespaces, loopback up, few capabilities, /proc/sys and
//     the like read-only, a /run that has nothing of the host's.
//  4. When the command's first process ends, all that it left behind is killed. A
//     deadline, the caller's cancellation and the caller's death end it the same way.
//
// Guarantees: no write reaches a file system but through the uppers; no socket,
// process, clock or kernel setting of the host can be reached; nothing is left
// mounted or running, however the run ends.
package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
)

// ProgramName is the container runner's program.
const ProgramName = "liveupd-sandbox"

// Descriptors of the runner.
const (
	SpecFD   = 3
	ResultFD = 4
)

// Spec is what the runner is told, as JSON.
type Spec struct {
	View json.RawMessage // nsmount's: which file systems, and where their uppers are
	Name string          // of the container: letters, digits and "-"
	Env  []string
	Cwd  string // "" or one that the view lacks is "/"
	// Umask is what the commands begin with; nil is 022.
	Umask *uint32 `json:",omitempty"`
	// Commands run one after the other in the same view; one that fails is the last.
	Commands []Command
	// Input: the commands read the runner's standard input; else there is nothing to read.
	Input bool
	// Terminal gives the commands a terminal of their own, relayed to descriptor 2.
	Terminal bool
	// Systemd tells that PID 1 can make a scope for the limits.
	Systemd bool
	Init    string // what process 1 is called, for programs that ask by that what boots the machine; "" is a name of our own
	Memory  int64  // bytes; 0 is no limit
	Pids    int64  // processes; 0 is no limit
	// Files are laid into the view before the command starts.
	Files []File
	// Keep names the files of the view's /run whose content is wanted afterwards.
	Keep []string
	// Without takes protections away. Only the tests that show what each of them is for
	// set it: nothing that a user or a configuration says comes here.
	Without []Protection `json:",omitempty"`
}

// Protection names what keeps a command from the host, for Spec.Without.
type Protection string

// The protections. Limits and deadlines are taken away by not giving them.
const (
	PrivatePIDs   Protection = "pid"          // a process namespace
	PrivateIPC    Protection = "ipc"          // one of System V's objects and message queues
	PrivateNames  Protection = "uts"          // one of the host's name
	PrivateNet    Protection = "net"          // one of networks and abstract sockets
	PrivateMounts Protection = "mount"        // the runner's own mount namespace
	Capabilities  Protection = "capabilities" // the short list of them
	Masks         Protection = "masks"        // what of /proc and /sys is hidden or read-only
	Devices       Protection = "devices"      // a /dev that takes no new nodes
	HiddenRun     Protection = "run"          // a /run that has nothing of the host's
	Layers        Protection = "layers"       // the overlays over the root
	BarredCalls   Protection = "calls"        // the filter of system calls
	Cleanup       Protection = "cleanup"      // the end of what a command left behind
)

// Command is one command, in a container of its own.
type Command struct {
	Argv []string
	// Network lets the command use the host's network namespace.
	Network bool
	Phase   string // what it does, in one word, for Options.OnPhase
}

// File is a small file that the runner lays into the view.
type File struct {
	Path    string
	Mode    uint32
	Content string
}

// Result is the runner's answer.
type Result struct {
	Err         string // the view could not be built, or the command not started
	Unsupported *sys.UnsupportedError
	NotFound    bool // there is no such command in the view
	Failed      int  // the command of which Exit and Signal tell
	Exit        int
	Signal      string
	OOM         bool              // the kernel ended a process for the memory limit
	Crowded     bool              // the kernel refused a process for the limit of them
	Notes       []string          // what could not be had: limits without controllers
	Kept        map[string]string // by path: what Spec.Keep asked for
}

// Failure is a command that ran and did not succeed.
type Failure struct {
	Argv    []string
	Exit    int
	Signal  string
	OOM     bool   // a process met the limit of memory
	Crowded bool   // it met the limit of processes
	Output  []byte // the end of what it wrote
}

func (f *Failure) Error() string {
	what := fmt.Sprintf("exit status %d", f.Exit)
	if f.Signal != "" {
		what = "killed by signal: " + f.Signal
	}
	return f.Argv[0] + ": " + what + f.Limits()
}

// Limits says which limits were met, "" for none.
func (f *Failure) Limits() string {
	text := ""
	if f.OOM {
		text += ", out of the memory that it was allowed"
	}
	if f.Crowded {
		text += ", out of the processes that it was allowed"
	}
	return text
}

// Options say how a Spec is run.
type Options struct {
	Program string             // the runner; "" is Program()
	Output  io.Writer          // gets standard output and error as they come; nil drops them
	Input   io.Reader          // what the commands read; nil is nothing
	Timeout time.Duration      // 0 is none
	OnPhase func(phase string) // called when a command begins; may be nil
}

// ErrInputCut is an input that ended before its end.
var ErrInputCut = errors.New("its input was cut off")

// tail is how much of a command's output is kept for its report.
const tail = 16 << 10

// Run runs a command and waits for it. The error is a *Failure where the command
// failed, a *sys.UnsupportedError where this kernel or root can have no sandbox,
// fs.ErrNotExist where there is no such command.
func Run(ctx context.Context, s Spec, o Options) (*Result, error) {
	program, err := o.Program, error(nil)
	if program == "" {
		program, err = Program()
	}
	if err != nil {
		return nil, err
	}
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("it did not end within %s", o.Timeout))
		defer cancel()
	}
	s.Input = o.Input != nil
	msg, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specW.Close() // the runner ends when this does, be it by our death
	resR, resW, err := os.Pipe()
	if err != nil {
		specR.Close()
		return nil, err
	}
	defer resR.Close()
	out := &output{to: o.Output}
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	cmd := exec.CommandContext(ctx, program)
	cmd.Args = []string{ProgramName}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	if s.Terminal {
		cmd.Stdout, cmd.Stderr = nil, os.Stderr
	}
	if o.Input != nil {
		// Not cmd.Stdin = o.Input: Wait would wait for the input's end, which may never come.
		in, to, err := os.Pipe()
		if err != nil {
			specR.Close()
			resW.Close()
			return nil, err
		}
		defer in.Close()
		defer to.Close() // not before the command has ended, where what it reads was cut off
		cmd.Stdin = in
		go func() {
			// A command need not read all of it. One that would take a part for the whole is ended.
			_, err := io.Copy(to, o.Input)
			if err != nil && !errors.Is(err, syscall.EPIPE) {
				cut(fmt.Errorf("%w: %w", ErrInputCut, err))
				return
			}
			_ = to.Close()
		}()
	}
	cmd.ExtraFiles = []*os.File{specR, resW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: sys.CloneMountNS, Setsid: true}
	if slices.Contains(s.Without, PrivateMounts) {
		cmd.SysProcAttr.Cloneflags = 0
	}
	// It is told to end by the end of what it reads: so it removes its control group, and gives
	// the terminal back as it was. One that does not is killed.
	cmd.Cancel = func() error { return specW.Close() }
	cmd.WaitDelay = 10 * time.Second
	held := holdGroups(groupRoot)
	defer held.release()
	err = cmd.Start()
	specR.Close()
	resW.Close()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", program, err)
	}
	_, werr := specW.Write(append(msg, '\n'))
	res, rerr := readResult(resR, o.OnPhase)
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return res, &Stopped{Cause: context.Cause(ctx), Output: out.kept()}
	case rerr != nil:
		return nil, fmt.Errorf("%s gave no answer: %w%s", ProgramName, errors.Join(werr, rerr, err), quote(out.kept()))
	}
	return res, res.err(s.Commands[min(res.Failed, len(s.Commands)-1)].Argv, out.kept())
}

// Message is a line of the answer: a command begins, or the result.
type Message struct {
	Phase  string  `json:",omitempty"`
	Result *Result `json:",omitempty"`
}

func readResult(f io.Reader, onPhase func(string)) (*Result, error) {
	for dec := json.NewDecoder(f); ; {
		var m Message
		if err := dec.Decode(&m); err != nil {
			return &Result{}, err
		}
		if m.Result != nil {
			return m.Result, nil
		}
		if onPhase != nil {
			onPhase(m.Phase)
		}
	}
}

// Stopped is a command that was ended from outside: interrupted, or too slow.
type Stopped struct {
	Cause  error
	Output []byte
}

func (e *Stopped) Error() string { return e.Cause.Error() }
func (e *Stopped) Unwrap() error { return e.Cause }

func (r *Result) err(argv []string, out []byte) error {
	switch {
	case r.Unsupported != nil:
		return r.Unsupported
	case r.NotFound:
		return fmt.Errorf("%s: %w", r.Err, fs.ErrNotExist)
	case r.Err != "":
		return errors.New(r.Err + quote(out))
	case r.Exit != 0 || r.Signal != "":
		return &Failure{Argv: argv, Exit: r.Exit, Signal: r.Signal, OOM: r.OOM, Crowded: r.Crowded, Output: out}
	}
	return nil
}

func quote(out []byte) string {
	text := strings.TrimSpace(string(out))
	if text == "" {
		return ""
	}
	return ": " + text
}

// Program finds the runner: beside this program, or where a distribution keeps
// programs that are not for persons.
func Program() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find our own program: %w", err)
	}
	for _, dir := range []string{filepath.Dir(self), "/usr/libexec/liveupd", "/usr/lib/liveupd"} {
		name := filepath.Join(dir, ProgramName)
		if st, err := os.Stat(name); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return name, nil
		}
	}
	return "", fmt.Errorf("cannot find the program %s beside %s: it runs what is not to touch the running system: %w", ProgramName, self, fs.ErrNotExist)
}

// output passes on what a command writes and keeps its end.
type output struct {
	mu   sync.Mutex
	to   io.Writer
	last []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = append(o.last, b...)
	if len(o.last) > 2*tail {
		o.last = append(o.last[:0], o.last[len(o.last)-tail:]...)
	}
	if o.to != nil {
		// A listener that is gone does not end the command.
		_, _ = o.to.Write(b)
	}
	return len(b), nil
}

func (o *output) kept() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := bytes.Clone(o.last)
	if len(b) > tail {
		b = b[len(b)-tail:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return b
}

// ReadSpec reads what Run wrote. The rest of the pipe has nothing but its end,
// which comes with the caller's: gone is closed then.
func ReadSpec(f *os.File) (s Spec, gone <-chan struct{}, err error) {
	in := bufio.NewReader(f)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return s, nil, fmt.Errorf("cannot read what to run: %w", err)
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, nil, fmt.Errorf("cannot read what to run: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, in)
	}()
	return s, ended, nil
}
