package apt

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/liveupd/liveupd/tests/machine"
)

// A shell in the sandbox has a terminal of its own, of the caller's size as it changes; all that it
// printed is shown, and the caller's terminal is afterwards as it was, be it that the time is over.
func TestExecShell(t *testing.T) {
	t.Parallel()
	root := folder(t, "small", nil)
	for _, tc := range []struct {
		limit, typed, want string
	}{
		{"1m", "tty; sleep 1; stty size; seq 1000; printf 'la%s\\n' st; exit\n", "last"},
		{"3s", "printf 'wai%s\\n' ting; sleep 100\n", "waiting"},
	} {
		pty, name, err := console.NewPty()
		if err != nil {
			t.Skipf("there are no terminals here: %v", err)
		}
		side, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		settings := func() string {
			cmd := exec.Command("stty", "-g")
			cmd.Stdin = side
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("stty: %v", err)
			}
			return string(out)
		}
		before := settings()
		var mu sync.Mutex
		var shown strings.Builder
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := pty.Read(buf)
				mu.Lock()
				shown.Write(buf[:n])
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
		says := func() string {
			mu.Lock()
			defer mu.Unlock()
			return shown.String()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		cmd := exec.CommandContext(ctx, machine.Program(t, "liveupd"), "exec", "--root", root, "--plan", "--limit", tc.limit, "--shell")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = side, side, side
		cmd.Env = append(os.Environ(), "SHELL=/bin/sh", "PS1=ready> ")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for ctx.Err() == nil && cmd.ProcessState == nil && !strings.Contains(says(), "ready> ") {
			time.Sleep(20 * time.Millisecond)
		}
		if err := pty.Resize(console.WinSize{Height: 41, Width: 133}); err != nil {
			t.Error(err)
		}
		if _, err := pty.Write([]byte(tc.typed)); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // the output tells
		cancel()
		for end := time.Now().Add(10 * time.Second); !strings.Contains(says(), "\n"+tc.want) && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
		if got := says(); !strings.Contains(got, "\n"+tc.want+"\r") || tc.limit == "1m" && (!strings.Contains(got, "41 133") || !strings.Contains(got, "/dev/pts/0")) {
			t.Errorf("--limit %s: shown is %q", tc.limit, got)
		}
		if after := settings(); after != before {
			t.Errorf("--limit %s: the terminal was %s and is %s", tc.limit, before, after)
		}
		side.Close()
		pty.Close()
	}
}
