package sys

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// A process's number is given to another: nothing of that one is taken for the
// first one's.
func TestProcOfASuccessor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a PID namespace, to choose the next number in it")
	}
	const inside = "LIVEUPD_TEST_SUCCESSOR"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestProcOfASuccessor$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	for _, err := range []error{
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""), syscall.Mount("proc", "/proc", "proc", 0, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	proc, err := OpenRoot("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	start := func() *exec.Cmd {
		cmd := exec.Command("/bin/cat")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	end := func(cmd *exec.Cmd) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	first := start()
	pid := first.Process.Pid
	p, err := OpenProc(proc, pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var n change.Node
	if err := p.StatInto("exe", &n); err != nil {
		t.Fatal(err)
	}
	end(first)
	for range 100 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0o644); err != nil {
			t.Skipf("the next number cannot be chosen: %v", err)
		}
		second := start()
		defer end(second)
		if second.Process.Pid != pid {
			continue // a thread of ours got it
		}
		if err := p.StatInto("exe", &n); !IsGone(err) {
			t.Errorf("its executable: %v", err)
		}
		if _, err := p.ReadFile("stat", nil); !IsGone(err) {
			t.Errorf("its stat: %v", err)
		}
		if err := p.Maps(MapsOptions{}, func(*Mapping) bool { t.Error("a mapping"); return true }); !IsGone(err) {
			t.Errorf("its mappings: %v", err)
		}
		// The number itself is good again.
		q, err := OpenProc(proc, pid)
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		if err := q.StatInto("exe", &n); err != nil {
			t.Errorf("the successor's executable: %v", err)
		}
		return
	}
	t.Fatal("no process got the number")
}
