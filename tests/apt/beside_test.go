package apt

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// What somebody changes on the system while a command works on its copy is not lost: the
// command's work is refused. What it did not touch may change, and what was changed before it began.
func TestExecBeside(t *testing.T) {
	t.Parallel()
	root := folder(t, "small", nil)
	if err := put(root, map[string]string{"etc/one": "old\n", "etc/two": "old\n", "etc/three": "old\n"}); err != nil {
		t.Fatal(err)
	}
	// Nobody can have changed it by now.
	ahead := time.Now().Add(24 * time.Hour)
	if err := os.Chtimes(filepath.Join(root, "etc/two"), ahead, ahead); err != nil {
		t.Fatal(err)
	}
	run := func(beside func() error) *fixture.Output {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		began := filepath.Join(root, ".liveupd/sandbox/work/0/up/etc/began")
		cmd := exec.CommandContext(ctx, machine.Program(t, "liveupd"), "exec", "--json", "--yes", "--root", root, "--", "sh", "-c",
			"echo more >>/etc/one; echo more >>/etc/two; : >/etc/began; read go")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := os.Stat(began); err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("the command did not begin: %s", errs.String())
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err := beside(); err != nil {
			t.Error(err)
		}
		if _, err := io.WriteString(in, "go\n"); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // the status tells
		return fixture.Parse(t, machine.Result{Stdout: out.String(), Stderr: errs.String(), Code: cmd.ProcessState.ExitCode()})
	}
	for what, beside := range map[string]func() error{
		"written to": func() error {
			return os.WriteFile(filepath.Join(root, "etc/one"), []byte("somebody else's\n"), 0o644)
		},
		"replaced": func() error {
			if err := os.WriteFile(filepath.Join(root, "etc/one.new"), []byte("somebody else's\n"), 0o644); err != nil {
				return err
			}
			return os.Rename(filepath.Join(root, "etc/one.new"), filepath.Join(root, "etc/one"))
		},
		"made": func() error { return os.WriteFile(filepath.Join(root, "etc/began"), []byte("mine\n"), 0o644) },
	} {
		before := tree(t, root)
		out := run(beside).Want(t, 1)
		if !strings.Contains(out.Error, "was changed on the system meanwhile") || !strings.Contains(out.Error, "nothing was changed") || !strings.Contains(out.Hint, "again") {
			t.Errorf("%s: %q, %q", what, out.Error, out.Hint)
		}
		same(t, what, before, tree(t, root), func(p string) bool { return p == "etc" || p == "etc/one" || p == "etc/began" })
		if got, err := os.ReadFile(filepath.Join(root, "etc/one")); err != nil || strings.Contains(string(got), "more") {
			t.Errorf("%s: the file has %q (%v)", what, got, err)
		}
		if err := put(root, map[string]string{"etc/one": "old\n"}); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(root, "etc/began")); err != nil {
			t.Fatal(err)
		}
	}
	run(func() error { return os.WriteFile(filepath.Join(root, "etc/three"), []byte("new\n"), 0o644) }).Want(t, 0)
	for name, want := range map[string]string{"one": "old\nmore\n", "two": "old\nmore\n", "three": "new\n"} {
		if got, err := os.ReadFile(filepath.Join(root, "etc", name)); err != nil || string(got) != want {
			t.Errorf("%s has %q (%v); want %q", name, got, err, want)
		}
	}
}
