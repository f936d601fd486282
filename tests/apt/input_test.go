package apt

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// result runs a command and reads what it says.
func result(t *testing.T, cmd *exec.Cmd) *fixture.Output {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the status tells
	return fixture.Parse(t, machine.Result{Stdout: out.String(), Stderr: errs.String(), Code: cmd.ProcessState.ExitCode()})
}

// What is piped or redirected to exec the command reads, whole, and can do no more with it than read.
func TestExecInput(t *testing.T) {
	t.Parallel()
	root := folder(t, "small", nil)
	content := make([]byte, 3<<20)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range content {
		content[i] = byte(r.Uint32())
	}
	file := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(stdin io.Reader, argv ...string) *fixture.Output {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, machine.Program(t, "liveupd"), append([]string{"exec", "--json", "--root", root}, argv...)...)
		cmd.Stdin = stdin
		return result(t, cmd)
	}
	open := func() *os.File {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	run(open(), "--", "sh", "-c", "cat >/etc/input").Want(t, 0)
	if got, err := os.ReadFile(filepath.Join(root, "etc/input")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("of %d bytes %d came: %v", len(content), len(got), err)
	}
	run(strings.NewReader("echo from a script >/etc/scripted\n"), "sh").Want(t, 0)
	if got, _ := os.ReadFile(filepath.Join(root, "etc/scripted")); string(got) != "from a script\n" {
		t.Errorf("the script wrote %q", got)
	}
	// A part is enough for some, and one that nobody ends holds nobody up.
	run(open(), "--plan", "head", "-c", "10").Want(t, 0)
	idle, never, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	defer never.Close()
	began := time.Now()
	run(idle, "--plan", "true").Want(t, 0)
	t.Logf("beside an input without an end it took %v", time.Since(began).Round(time.Millisecond))
	// A file that was opened for reading is not opened for writing by its descriptor.
	if err := os.WriteFile(file, []byte("short\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(open(), "--plan", "sh", "-c", "cat; echo overwritten >/proc/self/fd/0; echo overwritten >/dev/stdin; exit 0").Want(t, 0)
	if got, err := os.ReadFile(file); err != nil || string(got) != "short\n" {
		t.Errorf("the command wrote to its input: %q, %v", got, err)
	}
	// How it ended is told.
	for script, want := range map[string]int{"exit 3": 3, "sh -c 'kill -KILL $$'; exit $?": 137} {
		out := run(nil, "sh", "-c", script).Want(t, 1)
		if out.Report == nil || out.Report.Command == nil || out.Report.Command.Exit != want {
			t.Errorf("%s: the report is %+v", script, out.Report)
		}
	}
}

// inputOnMachine is the same where the work is done by another process: the input comes whole, and
// one whose caller is killed is no shorter one.
func inputOnMachine(t *testing.T, m *machine.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	content := strings.Repeat("a line of what is piped\n", 20000)
	cmd := m.Command(ctx, "/usr/local/bin/liveupd", "exec", "--json", "--yes", "--", "tee", "/etc/piped")
	cmd.Stdin = strings.NewReader(content)
	result(t, cmd).Want(t, 0)
	if got := m.Shell("cat /etc/piped | wc -c; ls /run/liveupd | grep -c input- || :"); got != "480000\n0" {
		t.Errorf("piped were %d bytes; there are %q", len(content), got)
	}
	fixture.In(t, m, "rollback", "--yes").Want(t, 0)

	cmd = m.Command(ctx, "/usr/local/bin/liveupd", "exec", "--yes", "--", "sh", "-c", "head -c 5 >/etc/piped; : >/etc/began; cat >>/etc/piped")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "a part of it"); err != nil {
		t.Fatal(err)
	}
	m.Shell("until [ -e /.liveupd/sandbox/work/0/up/etc/began ] || ls /.liveupd/sandbox/work/*/up/etc/began >/dev/null 2>&1; do sleep 0.1; done")
	for _, pid := range m.Find("liveupd") {
		if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(args), "exec\x00--yes") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	}
	_ = cmd.Wait()
	settled(t, m)
	if got := m.Shell("ls /etc/piped /etc/began 2>/dev/null || :; ls /.liveupd/sandbox"); strings.Contains(got, "etc") || strings.Contains(got, "work") {
		t.Errorf("the caller was killed in the middle of its input; there is %q", got)
	}
}
