// Command gotest runs go test and prints what go test prints, with two rules
// of its own:
//
//  1. Where CI=true, a test that skips fails the run, unless tests/skips.txt lists
//     it with the reason. A skipped test is a claim that nobody has checked.
//  2. The run ends after -timeout as a whole, with the goroutines of what still ran,
//     and not when each package by itself has had its time.
//
// Usage: gotest [-timeout 33m] [-skips FILE] [-p 2] -- go-test-arguments
//
// V=1 in the environment prints the output of tests that pass, too.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	timeout := flag.Duration("timeout", 33*time.Minute, "how long the whole run may take")
	skips := flag.String("skips", "tests/skips.txt", "the tests that may skip, with their reasons")
	parallel := flag.Int("p", 2, "packages that run at once")
	flag.Parse()
	o := options{timeout: *timeout, strict: os.Getenv("CI") == "true", verbose: os.Getenv("V") == "1"}
	o.args = append([]string{"test", "-json", "-p", strconv.Itoa(*parallel), "-timeout", timeout.String()}, flag.Args()...)
	if err := run(o, *skips, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
}

type options struct {
	args    []string // for go
	timeout time.Duration
	strict  bool
	verbose bool
}

func run(o options, skipsFile string, out io.Writer) error {
	allowed, err := readSkips(skipsFile)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	timed, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("the tests did not end within %s", o.timeout))
	defer cancel()
	cmd := exec.CommandContext(timed, "go", o.args...)
	cmd.Stderr = os.Stderr
	// A group of its own, so that the test programs end with the go command.
	// SIGQUIT makes each of them print what its goroutines wait for.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	cmd.WaitDelay = 30 * time.Second
	events, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("cannot run go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot run go test: %w", err)
	}
	p := &printer{out: out, verbose: o.verbose}
	readErr := p.read(events)
	waitErr := cmd.Wait()
	skipErr := judge(p.skips, allowed, o.strict, o.verbose, out)
	if timed.Err() != nil {
		return context.Cause(timed)
	}
	if exit, ok := errors.AsType[*exec.ExitError](waitErr); ok {
		waitErr = fmt.Errorf("go test failed: %w", exit)
	}
	return errors.Join(waitErr, readErr, skipErr)
}

// event is one line of go test -json; see go doc test2json and go help buildjson.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// printer turns the events back into what go test prints without -v.
type printer struct {
	out     io.Writer
	verbose bool
	tests   map[string][]*result // by package, in the order of their start
	skips   []skip
}

type result struct {
	name   string
	output []string
	action string // pass, fail, skip; "" while it runs
}

type skip struct{ pkg, test, reason string }

func (p *printer) read(r io.Reader) error {
	p.tests = map[string][]*result{}
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(p.out, line) // what go itself prints
			} else {
				p.event(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read what go test says: %w", err)
		}
	}
}

func (p *printer) event(e event) {
	if e.Test == "" {
		p.packageEvent(e)
		return
	}
	all := p.tests[e.Package]
	i := slices.IndexFunc(all, func(r *result) bool { return r.name == e.Test })
	if i < 0 {
		i = len(all)
		p.tests[e.Package] = append(all, &result{name: e.Test})
	}
	r := p.tests[e.Package][i]
	switch e.Action {
	case "output":
		if p.verbose {
			fmt.Fprint(p.out, e.Output)
		}
		if !strings.HasPrefix(e.Output, "=== ") {
			r.output = append(r.output, e.Output)
		}
	case "skip":
		p.skips = append(p.skips, skip{e.Package, e.Test, reason(r.output)})
		r.action, r.output = "skip", nil
	case "pass":
		r.action, r.output = "pass", nil
	case "fail":
		r.action = "fail"
	}
}

func (p *printer) packageEvent(e event) {
	switch e.Action {
	case "output":
		// A package that fails says so after its tests, as go test does.
		if strings.HasPrefix(e.Output, "FAIL") {
			p.flush(e.Package)
		}
		if e.Output != "PASS\n" || p.verbose {
			fmt.Fprint(p.out, e.Output)
		}
	case "build-output":
		fmt.Fprint(p.out, e.Output)
	case "fail":
		p.flush(e.Package)
		delete(p.tests, e.Package)
	case "pass", "skip":
		delete(p.tests, e.Package)
	}
}

// flush prints what the tests of a package said that failed, or that never ended: a
// panic and a timeout stand there.
func (p *printer) flush(pkg string) {
	for _, r := range p.tests[pkg] {
		if r.action == "fail" || r.action == "" {
			if !p.verbose {
				fmt.Fprint(p.out, strings.Join(r.output, ""))
			}
			r.output = nil
		}
	}
}

// reason finds what a test said when it skipped: the last line before "--- SKIP".
func reason(output []string) string {
	said := ""
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "--- ") {
			said = line
		}
	}
	return said
}

// allowance is one line of the file of skips.
type allowance struct{ pkg, test, reason string }

// readSkips reads lines of PACKAGE TEST REASON: the package relative to the
// module, the test's name, both as path.Match patterns, and in words why the test may
// skip. A # begins a comment.
func readSkips(file string) ([]allowance, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the skips: %w", err)
	}
	var out []allowance
	for i, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 4 {
			return nil, fmt.Errorf("cannot read %s: line %d: want a package, a test and a reason in words", file, i+1)
		}
		for _, pattern := range f[:2] {
			if _, err := path.Match(pattern, "x"); err != nil {
				return nil, fmt.Errorf("cannot read %s: line %d: %w", file, i+1, err)
			}
		}
		out = append(out, allowance{f[0], f[1], strings.Join(f[2:], " ")})
	}
	return out, nil
}

func (a allowance) covers(s skip) bool {
	// A listed test may skip as a whole or in any of its cases.
	top, _, _ := strings.Cut(s.test, "/")
	test := func(name string) bool { ok, err := path.Match(a.test, name); return err == nil && ok }
	_, rel, _ := strings.Cut(s.pkg, "/liveupd/liveupd/")
	pkg, err := path.Match(a.pkg, rel)
	return err == nil && pkg && (test(s.test) || test(top))
}

// judge prints the skips and, when strict, refuses those that nobody has allowed.
// Where skips are no failure they are only counted, unless verbose.
func judge(skips []skip, allowed []allowance, strict, verbose bool, out io.Writer) error {
	if !strict && !verbose {
		if len(skips) > 0 {
			fmt.Fprintf(out, "%d tests skipped (V=1 lists them with their reasons)\n", len(skips))
		}
		return nil
	}
	bad := 0
	for _, s := range skips {
		why := "not listed in tests/skips.txt"
		if i := slices.IndexFunc(allowed, func(a allowance) bool { return a.covers(s) }); i >= 0 {
			why = "allowed: " + allowed[i].reason
		} else {
			bad++
		}
		fmt.Fprintf(out, "skipped %s %s: %s (%s)\n", s.pkg, s.test, s.reason, why)
	}
	if strict && bad > 0 {
		return fmt.Errorf("%d skipped tests are not listed in tests/skips.txt, and CI=true", bad)
	}
	return nil
}
