package nsmount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// Descriptors of the child.
const (
	specFD   = 3
	resultFD = 4
	layFD    = 5
)

// ChildMain has to be called first in main, and in TestMain: it does the work
// where this process was started by Run, and returns true when main should
// return. In every other process it returns false at once.
func ChildMain() bool {
	if len(os.Args) != 1 || os.Args[0] != viewArg {
		return false
	}
	spec, result := os.NewFile(specFD, "spec"), os.NewFile(resultFD, "result")
	res, err := childRun(spec)
	if err != nil {
		res.Err = err.Error()
		if u, ok := errors.AsType[*UnsupportedError](err); ok {
			res.Unsupported = u
		}
	}
	if err := json.NewEncoder(result).Encode(res); err != nil {
		fmt.Fprintln(os.Stderr, err) // nobody is left to read it but perhaps a log
	}
	return true
}

func childRun(spec *os.File) (viewResult, error) {
	var res viewResult
	if os.Getpid() != 1 {
		return res, errors.New("this is no pid namespace of its own")
	}
	if err := sys.CloseOnExec(specFD); err != nil {
		return res, err
	}
	var s viewSpec
	dec := json.NewDecoder(spec)
	if err := dec.Decode(&s); err != nil {
		return res, fmt.Errorf("cannot read what to show: %w", err)
	}
	// Nothing more comes but the end, when the parent is gone: then all that
	// runs here ends with this process.
	go func() {
		_, _ = io.Copy(io.Discard, spec)
		os.Exit(1) //nolint:forbidigo // nothing to clean up: the kernel ends the namespaces with process 1
	}()
	syscall.Umask(0)
	b, err := newBuilder(&s)
	if err != nil {
		return res, err
	}
	if err := b.build(); err != nil {
		return res, err
	}
	if s.Lay {
		changes := os.NewFile(layFD, "changes")
		if err := b.lay(changes); err != nil {
			return res, err
		}
		changes.Close()
	}
	if s.Session != nil {
		syscall.Umask(0o022)
		res.Outcome, err = b.session(s.Session)
		return res, err
	}
	if len(s.Argv) == 0 {
		return res, nil
	}
	syscall.Umask(0o022)
	return execute(s.Argv)
}

// execute runs the program and waits for it, with the few rights that it gets.
func execute(argv []string) (res viewResult, err error) {
	err = sys.OnThread(func() error {
		os.Clearenv()
		for k, v := range map[string]string{"PATH": viewPath, "LC_ALL": "C.UTF-8", "HOME": "/root"} {
			if err := os.Setenv(k, v); err != nil {
				return err
			}
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		// By thread: started from this one, the program has what this one has.
		if err := sys.Confine(sys.ValidatorCapabilities()); err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			res.NotFound = errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist)
			return err
		}
		err := cmd.Wait()
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			return err
		}
		status := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			res.Signal = status.Signal().String()
		}
		res.Exit = status.ExitStatus()
		return nil
	})
	return res, err
}
