// Command liveupd-sandbox runs one command over the staged view of a root, in a
// container of libcontainer's. liveupd starts it in a mount namespace of its own
// and hands it the work on descriptor 3; the answer goes to descriptor 4. It is
// a program of its own because a program that must survive all updates should not
// hold a container runtime.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/sandbox"
	"github.com/liveupd/liveupd/sandbox/runner"
)

func init() {
	// The kernel ties a child's life to the thread that started it; the first thread
	// lives as long as the process.
	runtime.LockOSThread()
}

func main() {
	if runner.InitMain() || runner.FirstMain() {
		return
	}
	if len(os.Args) != 1 {
		fmt.Fprintln(os.Stderr, "liveupd-sandbox is started by liveupd; see: liveupd exec --help")
		os.Exit(2)
	}
	spec, result := os.NewFile(sandbox.SpecFD, "spec"), os.NewFile(sandbox.ResultFD, "result")
	answer := json.NewEncoder(result)
	res, err := run(spec, answer)
	if err != nil {
		res.Err = err.Error()
		if u, ok := errors.AsType[*sys.UnsupportedError](err); ok {
			res.Unsupported = u
		}
	}
	if err := answer.Encode(sandbox.Message{Result: res}); err != nil {
		fmt.Fprintln(os.Stderr, "liveupd-sandbox:", err)
		os.Exit(1)
	}
}

func run(f *os.File, answer *json.Encoder) (*sandbox.Result, error) {
	none := &sandbox.Result{}
	s, gone, err := sandbox.ReadSpec(f)
	if err != nil {
		return none, err
	}
	if !slices.Contains(s.Without, sandbox.PrivateMounts) {
		if err := nsmount.Isolate(); err != nil {
			return none, err
		}
	}
	if err := sys.CloseOnExec(sandbox.SpecFD); err != nil {
		return none, err
	}
	view, err := nsmount.BuildWorkspace(s.View)
	if err != nil {
		return none, err
	}
	for _, f := range s.Files {
		if err := view.WriteFile(f.Path, []byte(f.Content), f.Mode); err != nil {
			return none, fmt.Errorf("cannot prepare %s in the sandbox: %w", f.Path, err)
		}
	}
	res, err := runner.Run(runner.View{Root: view.Root, State: view.State}, s, func(c sandbox.Command) {
		_ = answer.Encode(sandbox.Message{Phase: c.Phase}) // nobody listens: the work goes on until the pipe ends
	}, gone)
	res.Kept = map[string]string{}
	for _, name := range s.Keep {
		content, ok, rerr := view.ReadRun(name)
		if ok {
			res.Kept[name] = content
		}
		// What was noted there is part of the work: without it that has failed.
		if err == nil && res.Exit == 0 && res.Signal == "" {
			err = rerr
		}
	}
	return res, err
}
