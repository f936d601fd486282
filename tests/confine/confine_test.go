package confine

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/liveupd/liveupd/sandbox"
)

// claim is one thing that a command in the sandbox cannot do.
type claim struct {
	what    string
	without []sandbox.Protection // what bars it, taken away in the control
	// alone takes other protections away, with and without the one that is looked at: a
	// namespace holds although the command has every capability.
	alone  []sandbox.Protection
	script string      // prints "through" where it got there
	seen   func() bool // or the host sees that it did; may be nil
	// skip says why the host lacks what is barred; "" where it has it.
	skip string
}

// TestSandbox tries everything on one copy of a root.
func TestSandbox(t *testing.T) {
	asHost(t, func(h *host) {
		h.testClaims(t)
		for name, test := range map[string]func(h *host, t *testing.T){
			"deadline": testDeadline, "limits": testLimits, "daemons": testDaemons, "descriptors": testDescriptors,
			"signals": testSignals, "orphans": testOrphans, "another user": testAnotherUser, "what is kept": testKept,
		} {
			t.Run(name, func(t *testing.T) { test(h, t) })
		}
	})
}

// Each protection holds, and is what holds: without it the same script gets through.
func (h *host) testClaims(t *testing.T) {
	tried, skipped := 0, 0
	for _, c := range h.claims() {
		t.Run(c.what, func(t *testing.T) {
			if c.skip != "" {
				skipped++
				t.Skip(c.skip)
			}
			tried++
			for _, control := range []bool{false, true} {
				s := sandbox.Spec{Without: slices.Clone(c.alone)}
				if control {
					s.Without = append(s.Without, c.without...)
				}
				_, out, err := h.run(s, time.Minute, c.script)
				if failure := (*sandbox.Failure)(nil); err != nil && !errors.As(err, &failure) {
					t.Fatalf("without %v: %v\n%s", s.Without, err, out)
				}
				through := strings.Contains(out, "through") || c.seen != nil && c.seen()
				switch {
				case through && !control:
					t.Errorf("it got through:\n%s", out)
				case !through && control:
					t.Errorf("without %v it did not get through, so that this test shows nothing:\n%s", c.without, out)
				}
			}
		})
	}
	t.Logf("%d claims tried with their controls, %d skipped", tried, skipped)
}

func (h *host) claims() []claim {
	t := h.t
	one := func(p sandbox.Protection) []sandbox.Protection { return []sandbox.Protection{p} }
	sleeper := exec.Command("sleep", "3600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	died := make(chan struct{})
	go func() {
		_ = sleeper.Wait() // ended by a signal
		close(died)
	}()
	t.Cleanup(func() { _ = sleeper.Process.Kill(); <-died })
	const key = 47110815
	if _, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|0o600); err != nil {
		t.Fatal(err)
	}
	listen(t, "@liveupd-confine")
	socket := filepath.Join(h.root, "run/confine/socket")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	listen(t, socket)
	put(t, filepath.Join(h.root, "run/confine/file"), "x")
	put(t, filepath.Join(h.root, "etc/confined"), "old")
	kind, handle := h.secret()
	state := func() string {
		out, err := exec.Command("find", h.root, "-path", h.root+"/run", "-prune", "-o", "-printf", "%P %y %m %n %s %T@ %C@\n").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	before := state()
	mounts := mountPoints(t)
	caps := []struct{ name, probe, skip string }{
		{"sys_time", "clock", unable(t, unix.CAP_SYS_TIME)},
		{"sys_boot", "reboot", unable(t, unix.CAP_SYS_BOOT)},
		{"sys_module", "module", unable(t, unix.CAP_SYS_MODULE) + lacks(unix.SYS_DELETE_MODULE)},
		{"sys_admin", "mount", ""},
		{"sys_nice", "nice", unable(t, unix.CAP_SYS_NICE)},
	}
	var out []claim
	for name, text := range map[string]string{
		"keys": "keys of the host", "bpf": "programs for the kernel", "perf": "performance counters", "io_uring": "io_uring", "clone3": "clone3",
		"syslog": "the kernel's log", "vsock": "sockets to the machine's own host", "child": "user namespaces, by clone",
	} {
		skip := ""
		if out, err := exec.Command(filepath.Join(h.root, "usr/bin/probe"), name).Output(); err != nil || !strings.Contains(string(out), "through") {
			skip = fmt.Sprintf("this host does not have it itself: %s", out)
		}
		// Some of it is a matter of capabilities besides.
		out = append(out, claim{what: text, alone: one(sandbox.Capabilities), without: one(sandbox.BarredCalls), script: "probe " + name, skip: skip})
	}
	out = append(out, claim{what: "user namespaces, and mounts in them", without: one(sandbox.BarredCalls), script: "unshare -U -r -m sh -c 'mount -t tmpfs x /mnt && echo through'"})
	for _, c := range caps {
		out = append(out, claim{what: "capability " + c.name, without: one(sandbox.Capabilities), script: "probe " + c.probe, skip: c.skip})
	}
	out = append(
		out,
		claim{what: "no other capability", without: one(sandbox.Capabilities), script: `for set in Prm Eff Bnd; do grep -q "Cap$set:.00000000a80405fb$" /proc/self/status || echo through; done
			grep -q 'CapInh:.0000000000000000$' /proc/self/status && grep -q 'CapAmb:.0000000000000000$' /proc/self/status || echo through`},
		claim{what: "a file of the file system of a folder that is shown, by its handle", alone: one(sandbox.BarredCalls), without: one(sandbox.Capabilities), skip: unable(t, unix.CAP_DAC_READ_SEARCH), script: fmt.Sprintf(
			"probe handle /run/liveupd/shared %d %s secret", kind, handle)},
		claim{what: "the host's processes are not seen", without: one(sandbox.PrivatePIDs), script: "for f in /proc/[0-9]*/cmdline; do [ \"$(tr '\\0' ' ' <$f)\" = 'sleep 3600 ' ] && echo through; done"},
		claim{what: "the host's process 1 is not seen", without: one(sandbox.PrivatePIDs), script: "probe init '" + initCommand(t) + "'"},
		claim{what: "the host's processes are not killed", without: one(sandbox.PrivatePIDs), script: fmt.Sprintf(
			"probe kill %d >/dev/null; sleep 0.2", sleeper.Process.Pid), seen: func() bool {
			select {
			case <-died:
				return true
			default:
				return false
			}
		}},
		claim{what: "the host's shared memory", without: one(sandbox.PrivateIPC), script: fmt.Sprintf("probe shm %d", key)},
		claim{what: "the host's name", alone: one(sandbox.Capabilities), without: one(sandbox.PrivateNames), script: "probe hostname elsewhere >/dev/null", seen: func() bool {
			name, err := os.Hostname()
			return err != nil || name == "elsewhere"
		}},
		claim{what: "abstract sockets", without: one(sandbox.PrivateNet), script: "probe connect @liveupd-confine"},
		claim{what: "sockets in /run", without: one(sandbox.HiddenRun), script: "probe connect /run/confine/socket"},
		claim{what: "files in /run", without: one(sandbox.HiddenRun), script: "probe read /run/confine/file"},
		claim{what: "/proc/sys is read-only", without: one(sandbox.Masks), script: "probe rewrite /proc/sys/kernel/hostname"},
		claim{what: "sysrq-trigger is read-only", without: one(sandbox.Masks), script: "probe rewrite /proc/sysrq-trigger 2>&1; (echo h >/proc/sysrq-trigger) && echo through", skip: missing("/proc/sysrq-trigger")},
		claim{what: "/sys is read-only", without: one(sandbox.Masks), script: `for f in /sys/block/*/queue/read_ahead_kb; do probe rewrite $f; done`, skip: noBlocks()},
		claim{what: "what of /proc is hidden", without: one(sandbox.Masks), script: "probe read /proc/timer_list /proc/keys /proc/latency_stats /proc/sched_debug /proc/kcore"},
		claim{what: "device nodes of one's own", without: one(sandbox.Devices), script: "probe device /dev/other"},
		claim{what: "device nodes elsewhere", without: one(sandbox.Devices), script: `for dir in / /etc /run /tmp /dev/shm /var/tmp /run/liveupd/shared; do
			[ "$(probe device $dir/other)" = through ] && echo "$dir: through"; done
			probe device /dev/other`},
		claim{what: "the root before the commit", without: one(sandbox.Layers), script: "echo new >/etc/confined; rm -f /usr/bin/tail; mkdir /srv/made", seen: func() bool { return state() != before }},
		claim{what: "mounts of the runner", without: one(sandbox.PrivateMounts), script: ":", seen: func() bool {
			return slices.ContainsFunc(mountPoints(t), func(p string) bool { return !slices.Contains(mounts, p) })
		}},
	)
	return out
}

// secret makes a file that no view shows, on the file system of the folder that is shown,
// and gives its handle.
func (h *host) secret() (kind int32, handle string) {
	name := filepath.Join(h.dir, "secret")
	put(h.t, name, "secret")
	fh, _, err := unix.NameToHandleAt(unix.AT_FDCWD, name, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	return fh.Type(), hex.EncodeToString(fh.Bytes())
}

func put(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func listen(t *testing.T, at string) {
	t.Helper()
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func initCommand(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/1/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
}

// unable says that the host itself has not got a capability, so that none can be given.
func unable(t *testing.T, capability int) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`CapEff:\s*([0-9a-f]+)`).FindSubmatch(b)
	set, err := strconv.ParseUint(string(found[1]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if set&(1<<capability) == 0 {
		return "this host has not got the capability itself"
	}
	return ""
}

func lacks(nr uintptr) string {
	if _, _, errno := unix.Syscall(nr, 0, unix.O_NONBLOCK, 0); errno == unix.ENOSYS {
		return "this kernel has no modules"
	}
	return ""
}

func missing(name string) string {
	if _, err := os.Stat(name); err != nil {
		return "this kernel has no " + name
	}
	return ""
}

func noBlocks() string {
	if found, _ := filepath.Glob("/sys/block/*/queue/read_ahead_kb"); len(found) == 0 {
		return "this host has no block devices"
	}
	return ""
}

// A command that is too slow is ended, and without a deadline it is not.
func testDeadline(h *host, t *testing.T) {
	_, out, err := h.run(sandbox.Spec{}, 500*time.Millisecond, "sleep 2; echo through")
	if stopped := (*sandbox.Stopped)(nil); !errors.As(err, &stopped) || strings.Contains(out, "through") {
		t.Errorf("with a deadline: %v, %q", err, out)
	}
	if _, out, err = h.run(sandbox.Spec{}, 0, "sleep 2; echo through"); err != nil || !strings.Contains(out, "through") {
		t.Errorf("without one: %v, %q", err, out)
	}
}

// What uses more memory than it may is ended and told, as are more processes; without the limits both go on.
func testLimits(h *host, t *testing.T) {
	for _, tc := range []struct {
		what, script string
		limited      sandbox.Spec
	}{
		{"memory", "probe allocate 300", sandbox.Spec{Memory: 64 << 20}},
		{"processes", "probe processes 60", sandbox.Spec{Pids: 30}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			res, out, err := h.run(tc.limited, time.Minute, tc.script)
			if slices.ContainsFunc(res.Notes, func(n string) bool { return strings.Contains(n, "limit") }) {
				t.Skip(res.Notes)
			}
			if strings.Contains(out, "through") {
				t.Errorf("it got through: %v\n%s", err, out)
			}
			if failure := (*sandbox.Failure)(nil); tc.what == "memory" && (!errors.As(err, &failure) || !failure.OOM || !strings.Contains(err.Error(), "memory")) {
				t.Errorf("it is told as %v", err)
			}
			if _, out, err := h.run(sandbox.Spec{}, time.Minute, tc.script); err != nil || !strings.Contains(out, "through") {
				t.Errorf("without a limit: %v, %q", err, out)
			}
		})
	}
}

// A daemon that a command leaves behind ends with it. Two things see to that, the process
// namespace and the runner's own cleaning up: without both it stays.
func testDaemons(h *host, t *testing.T) {
	mark := "4713" + strconv.Itoa(os.Getpid())
	left := func() []int { return sleepers(mark) }
	script := "setsid sleep " + mark + " >/dev/null 2>&1 </dev/null & exit 0"
	for _, tc := range []struct {
		without []sandbox.Protection
		stays   bool
	}{
		{nil, false},
		{[]sandbox.Protection{sandbox.Cleanup}, false},
		{[]sandbox.Protection{sandbox.PrivatePIDs, sandbox.Cleanup}, true},
	} {
		if _, out, err := h.run(sandbox.Spec{Without: tc.without}, time.Minute, script); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		pids := left()
		if (len(pids) > 0) != tc.stays {
			t.Errorf("without %v the processes %v are left", tc.without, pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// The command inherits its three streams and nothing else, of which it could open the host.
func testDescriptors(h *host, t *testing.T) {
	_, out, err := h.run(sandbox.Spec{}, time.Minute, "for fd in /proc/self/fd/*; do readlink $fd; done; ls /proc/self/fd | tr '\\n' ' '")
	if err != nil || !strings.HasSuffix(out, "0 1 2 3 ") || strings.Contains(out, h.dir) {
		t.Errorf("%v: the descriptors are %q", err, out)
	}
}

// Nothing but a test takes a protection away.
func TestNobodyElse(t *testing.T) {
	words := regexp.MustCompile(`\bWithout\b`)
	err := filepath.WalkDir("../..", func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (e.Name() == "tests" || strings.HasPrefix(e.Name(), ".") && e.Name() != "..") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for n, line := range strings.Split(string(b), "\n") {
			if words.MatchString(line) && (strings.Contains(line, "Without:") || strings.Contains(line, "Without = ")) {
				t.Errorf("%s:%d takes protections away: %s", name, n+1, strings.TrimSpace(line))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
