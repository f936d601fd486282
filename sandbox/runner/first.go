package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/exeseal"

	"github.com/liveupd/liveupd/internal/sys"
)

// The command is not process 1 of its namespace, for that one is not like others: the kernel
// keeps from it each signal that it has no handler for, SIGKILL among them, and whatever its parent
// left behind becomes its child, which it does not know and does not reap. So "kill -9 $$" would do
// nothing, and a program that waits for all its children would wait for strangers. Process 1 is
// this program once more: it starts the command as the leader of a session of its own, reaps what comes, and tells
// the runner how the command ended. What is to end the command from outside kills process 1, and
// with it all the others: it never changes its user, which would free it from the runner's death.
//
// It is run from a sealed copy of the program: what a command can open by /proc/1/exe is not
// the host's.

// Descriptors of process 1.
const (
	firstProgram = 3
	firstResult  = 4
)

// firstPath is what libcontainer executes; what follows it are firstPlain or firstTerminal, the
// name of process 1, and the command.
const (
	firstPath     = "/proc/self/fd/3"
	firstPlain    = "plain"
	firstTerminal = "terminal"
)

// firstName is what process 1 is called where nobody wants another name for it.
const firstName = "liveupd-first"

// firstTasks is more than the threads that process 1 has: they count as processes, and
// are not the command's.
const firstTasks = 12

// ended is what process 1 tells of the command.
type ended struct {
	Status   syscall.WaitStatus
	Err      string // it was not started
	NotFound bool
}

// first is the runner's side of a process 1.
type first struct{ program, ours, theirs *os.File }

// under makes p, whose Args are the command's, a process 1 that starts the command.
func under(p *libcontainer.Process, stateDir, how, name string) (*first, error) {
	f := &first{}
	var err error
	if f.program, err = exeseal.CloneSelfExe(stateDir); err != nil {
		return nil, err
	}
	if f.ours, f.theirs, err = os.Pipe(); err != nil {
		f.program.Close()
		return nil, err
	}
	if name == "" {
		name = firstName
	}
	p.Args = append([]string{firstPath, how, name}, p.Args...)
	p.ExtraFiles = []*os.File{f.program, f.theirs}
	return f, nil
}

func (f *first) close() {
	f.program.Close()
	f.ours.Close()
	f.theirs.Close()
}

// read gives what process 1, which has ended, told; nil where it was ended before.
func (f *first) read() *ended {
	f.theirs.Close()
	e := &ended{}
	if err := json.NewDecoder(f.ours).Decode(e); err != nil {
		return nil
	}
	return e
}

// FirstMain is the main function of process 1; false where this is none.
func FirstMain() bool {
	if len(os.Args) < 4 || os.Args[0] != firstPath || os.Args[1] != firstPlain && os.Args[1] != firstTerminal {
		return false
	}
	runtime.GOMAXPROCS(1)
	// In place of the descriptor's number, for who looks at the processes.
	_ = os.WriteFile("/proc/self/comm", []byte(os.Args[2]), 0)
	e := &ended{}
	if err := e.run(os.Args[3:], os.Args[1] == firstTerminal); err != nil {
		e.Err = err.Error()
		e.NotFound = errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound)
	}
	result := os.NewFile(firstResult, "result")
	if err := json.NewEncoder(result).Encode(e); err != nil {
		fmt.Fprintln(os.Stderr, "liveupd-sandbox:", err)
		os.Exit(1) //nolint:forbidigo // this process is nothing but this function
	}
	return true
}

func (e *ended) run(argv []string, terminal bool) error {
	syscall.CloseOnExec(firstProgram)
	syscall.CloseOnExec(firstResult)
	// A signal without a handler would end a program of Go's. With one the command begins
	// with the default, and none is passed on: each reaches whom it was sent to.
	signal.Notify(make(chan os.Signal, 1))
	attr := &syscall.SysProcAttr{Setsid: true}
	if terminal {
		// Only one that is no session's can become the command's.
		if err := sys.LeaveTerminal(0); err != nil {
			return err
		}
		attr.Setctty = true
	}
	name, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec(name, argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: attr})
	if errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("%s is there, and the interpreter that it names is not", name)
	}
	if err != nil {
		return &fs.PathError{Op: "exec", Path: name, Err: err}
	}
	letGo()
	for {
		var status syscall.WaitStatus
		switch who, err := syscall.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("cannot wait for it: %w", err)
		case who == pid:
			e.Status = status
			return nil
		}
	}
}

// letGo leaves the streams to the command: whoever is at their other end learns when it closes them.
func letGo() {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close()
	for fd := range 3 {
		_ = syscall.Dup3(int(null.Fd()), fd, 0) // it stays open then
	}
}
