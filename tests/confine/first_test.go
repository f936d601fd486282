package confine

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/sandbox"
)

// sleepers are the processes of this host that sleep for so many seconds.
func sleepers(seconds string) (pids []int) {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range found {
		if b, err := os.ReadFile(name); err == nil && string(b) == "sleep\x00"+seconds+"\x00" {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// A command meets signals as it does outside, though it is the first that its namespace was made
// for: it ends by its own, its process 1 by none.
func testSignals(h *host, t *testing.T) {
	for _, tc := range []struct {
		script, signal string
		exit           int
	}{
		{"kill -KILL $$; echo survived", "killed", -1},
		{"kill -TERM $$; echo survived", "terminated", -1},
		{"trap '' TERM; kill -TERM $$; exit 4", "", 4},
		{"sh -c 'kill -KILL $$'; exit $?", "", 137},
		{"kill -SEGV $$", "segmentation fault", -1},
		{"kill -KILL 0; echo survived", "killed", -1},
		{"sleep 3600 & kill -KILL -1; wait; exit 5", "", 5},
		{"for s in HUP INT QUIT TERM KILL USR1 PIPE ALRM STOP; do kill -$s 1; done; sleep 0.3; exit 6", "", 6},
	} {
		res, out, err := h.run(sandbox.Spec{}, time.Minute, tc.script)
		if failure := (*sandbox.Failure)(nil); !errors.As(err, &failure) || failure.Exit != tc.exit || failure.Signal != tc.signal || strings.Contains(out, "survived") {
			t.Errorf("%s: %v, %q, %+v; want signal %q, exit %d", tc.script, err, out, res, tc.signal, tc.exit)
		}
	}
}

// What its parent left behind is reaped, and is no child of the command's.
func testOrphans(h *host, t *testing.T) {
	_, out, err := h.run(sandbox.Spec{}, time.Minute, "(sleep 0.1 & sleep 0.1 &) ; sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status; grep -c '^PPid:.'$$'$' /proc/[0-9]*/status | grep -c ':1'; true")
	// One child is the pipeline's own, at most.
	if err != nil || strings.Contains(out, "/proc/") || len(strings.TrimSpace(out)) != 1 {
		t.Errorf("%v: %s", err, out)
	}
}

// A command that takes another user's rights, which frees it from its parent's death, ends with the
// sandbox all the same, and in its time.
func testAnotherUser(h *host, t *testing.T) {
	mark := "4714" + strconv.Itoa(os.Getpid())
	began := time.Now()
	_, out, err := h.run(sandbox.Spec{}, 2*time.Second, "exec setpriv --reuid 65534 --clear-groups sleep "+mark)
	if stopped := (*sandbox.Stopped)(nil); !errors.As(err, &stopped) {
		t.Errorf("it ended with %v, %q", err, out)
	}
	t.Logf("it was ended after %v", time.Since(began).Round(time.Millisecond))
	for _, pid := range sleepers(mark) {
		t.Errorf("process %d is left", pid)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/liveupd-*" + strconv.Itoa(os.Getpid()%1000000) + "-0"); len(left) > 0 {
		t.Errorf("control groups are left: %q", left)
	}
}

// What a command hands back is read without waiting for it.
func testKept(h *host, t *testing.T) {
	for script, want := range map[string]string{
		"echo noted >/run/noted":                           "",
		"mkfifo /run/noted":                                "it is no file",
		"mkdir /run/noted":                                 "it is no file",
		"ln -s /etc/passwd /run/noted":                     "cannot read",
		"head -c 40M /dev/zero >/run/noted":                "more than 32 MB",
		"mkfifo /run/noted; exit 3":                        "exit status 3",
		"ln -s other /run/noted; echo noted >/run/other":   "",
		"rm -f /run/noted; ln -s /run/nothing /run/noted2": "",
	} {
		res, out, err := h.run(sandbox.Spec{Keep: []string{"/run/noted"}}, time.Minute, script)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %q; want %q", script, err, out, want)
		}
		if got := res.Kept["/run/noted"]; strings.Contains(script, "echo noted") && got != "noted\n" {
			t.Errorf("%s: kept is %q", script, got)
		}
	}
}
