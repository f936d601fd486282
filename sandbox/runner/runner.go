// Package runner starts a command in a container by runc's libcontainer: the
// inside of the program liveupd-sandbox. The mounts of the view are there already.
package runner

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/sirupsen/logrus"

	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/sandbox"
)

// View is what the command will see.
type View struct {
	Root  string // where the view is mounted
	State string // an empty directory that goes with this process
}

// Run runs the commands, each in a container of its own; all that one leaves behind
// is killed when it ends. When gone is closed the command is killed. begin is called
// before each.
func Run(v View, s sandbox.Spec, begin func(sandbox.Command), gone <-chan struct{}) (*sandbox.Result, error) {
	// libcontainer logs to the command's own output; what matters of it is in its errors.
	logrus.SetOutput(io.Discard)
	res := &sandbox.Result{}
	var notes []string
	if !slices.Contains(s.Without, sandbox.BarredCalls) {
		// From here on: nothing of what is barred is needed to start a container.
		if err := sys.BarCalls(); err != nil {
			notes = append(notes, fmt.Sprintf("the command runs without a filter of system calls: %v", err))
		}
	}
	defer func() { res.Notes = append(notes, res.Notes...) }()
	for i, c := range s.Commands {
		res.Failed = i
		begin(c)
		err := runOne(v, s, c, i, res, gone)
		if err != nil || res.Exit != 0 || res.Signal != "" {
			return res, err
		}
	}
	return res, nil
}

func runOne(v View, s sandbox.Spec, c sandbox.Command, i int, res *sandbox.Result, gone <-chan struct{}) error {
	name := fmt.Sprintf("%s-%d", s.Name, i)
	config, notes := containerConfig(v, s, c, name)
	cwd := workingDir(v, s.Cwd)
	if s.Cwd != "" && cwd == "/" && filepath.Clean(s.Cwd) != "/" && ofHost(s) {
		notes = append(notes, fmt.Sprintf("the command runs in /: the sandbox does not show %s", s.Cwd))
	}
	res.Notes = notes
	container, err := libcontainer.Create(v.State, name, config)
	if err != nil {
		return fmt.Errorf("cannot prepare the sandbox: %w", err)
	}
	// Everything that the command left behind ends here.
	if !slices.Contains(s.Without, sandbox.Cleanup) {
		defer func() { _ = container.Destroy() }()
	}
	process := &libcontainer.Process{
		Args: c.Argv, Env: environment(s), Cwd: cwd, Init: true,
		Stdin: nil, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if s.Input {
		process.Stdin = os.Stdin
	}
	var relay *terminal
	how := firstPlain
	if s.Terminal {
		how = firstTerminal
		if relay, err = openTerminal(process); err != nil {
			return fmt.Errorf("cannot give the command a terminal: %w", err)
		}
		defer relay.close()
	}
	top, err := under(process, v.State, how, s.Init)
	if err != nil {
		return fmt.Errorf("cannot prepare the sandbox: %w", err)
	}
	defer top.close()
	if err := container.Run(process); err != nil {
		return fmt.Errorf("cannot start the sandbox: %w", err)
	}
	watched := watchLimits(container)
	if relay != nil {
		if err := relay.start(); err != nil {
			_ = container.Signal(syscall.SIGKILL)
			return fmt.Errorf("cannot give the command a terminal: %w", err)
		}
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-gone:
			// Process 1 of its namespace: with it all the others end.
			_ = container.Signal(syscall.SIGKILL)
		case <-done:
		}
	}()
	state, err := process.Wait()
	if state == nil {
		return fmt.Errorf("cannot wait for the command: %w", err)
	}
	status := state.Sys().(syscall.WaitStatus)
	told := top.read()
	switch {
	case told == nil: // process 1 was ended, and the command with it
	case told.NotFound:
		res.NotFound = true
		return fmt.Errorf("cannot find the command %s in the sandbox", c.Argv[0])
	case told.Err != "":
		return fmt.Errorf("cannot start the command in the sandbox: %s", told.Err)
	default:
		status = told.Status
	}
	if status.Signaled() {
		res.Signal = status.Signal().String()
	}
	res.Exit = status.ExitStatus()
	memory, processes := watched.met(told == nil || status.Signaled() || res.Exit > 128)
	if res.Exit != 0 || status.Signaled() {
		res.OOM, res.Crowded = memory, processes
	}
	if told == nil && !status.Signaled() && !memory && !processes {
		return fmt.Errorf("cannot tell how the command ended: process 1 of the sandbox has exit status %d", status.ExitStatus())
	}
	return nil
}

// searchPath is where commands are looked for where the caller says nothing.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func environment(s sandbox.Spec) []string {
	has := map[string]bool{}
	for _, e := range s.Env {
		name, _, _ := strings.Cut(e, "=")
		has[name] = true
	}
	env := s.Env
	for _, e := range []string{"PATH=" + searchPath, "HOME=/root", "LC_ALL=C.UTF-8"} {
		if name, _, _ := strings.Cut(e, "="); !has[name] && (name != "LC_ALL" || !has["LANG"]) {
			env = append(env, e)
		}
	}
	return env
}

// ofHost tells whether the view is one of the running system: the caller's directory is of it.
func ofHost(s sandbox.Spec) bool {
	var view struct{ Path string }
	return json.Unmarshal(s.View, &view) == nil && view.Path == "/"
}

// workingDir is dir where the view has it, else the root.
func workingDir(v View, dir string) string {
	if !filepath.IsAbs(dir) {
		return "/"
	}
	if st, err := os.Stat(filepath.Join(v.Root, dir)); err != nil || !st.IsDir() {
		return "/"
	}
	return filepath.Clean(dir)
}
