package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// sample is one run of one contender.
type sample struct {
	MS     float64 // from start to end
	CPUMS  float64 // processor time of the process and its children
	PeakMB float64 // the greatest resident set of the process and its children
	out    []byte
}

// frameVerb makes this program a small frame that runs one command and says how long it
// took and how much memory. A process begins with its parent's resident set in its
// account (the kernel hands it on over vfork and exec), and the bench itself is large.
const frameVerb = "frame"

// frame runs a command, writes the sample to a file and returns the exit code.
func frame(to string, args []string) int {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	s := sample{MS: float64(time.Since(start).Microseconds()) / 1000}
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.PeakMB = float64(usage.Maxrss) / 1024 // Linux counts in KiB
		s.CPUMS = float64(cmd.ProcessState.UserTime().Microseconds()+cmd.ProcessState.SystemTime().Microseconds()) / 1000
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 126
	}
	return cmd.ProcessState.ExitCode()
}

// timed runs a command to its end, in a frame.
func (b *bench) timed(name string, args ...string) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	result := filepath.Join(b.dir, "sample.json")
	cmd := exec.CommandContext(b.ctx, self, append([]string{frameVerb, result, name}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		tail := stdout.String() + stderr.String()
		return sample{}, fmt.Errorf("cannot run %s %s: %w: %s", name, strings.Join(args, " "), err, tail[max(0, len(tail)-2000):])
	}
	text, err := os.ReadFile(result)
	if err != nil {
		return sample{}, err
	}
	s := sample{out: stdout.Bytes()}
	return s, json.Unmarshal(text, &s)
}
