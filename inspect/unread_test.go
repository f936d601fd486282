package inspect

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// lookAs is the life of a process that looks as somebody who may not see all:
// "USER HIDEPID", in a mount namespace of its own.
func lookAs(how string) {
	user, hidepid, _ := strings.Cut(how, " ")
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	if hidepid != "" {
		check(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
		check(syscall.Mount("proc", "/proc", "proc", 0, "hidepid="+hidepid))
	}
	if user == "nobody" {
		check(syscall.Setgroups(nil))
		check(syscall.Setgid(65534))
		check(syscall.Setuid(65534))
	}
	res, err := Stale(context.Background(), StaleRequest{})
	check(err)
	check(json.NewEncoder(os.Stdout).Encode(res))
}

func look(t *testing.T, how string) *StaleResult {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LIVEUPD_TEST_LOOK="+how)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("look as %s: %v", how, err)
	}
	res := &StaleResult{}
	if err := json.Unmarshal(out, res); err != nil {
		t.Fatal(err)
	}
	return res
}

// Who may not see all says so, and how much; the kernel's own threads run no
// code of files and do not count.
func TestStaleSaysWhatItCouldNotSee(t *testing.T) {
	needRoot(t)
	dir := lasting(t)
	lib := filepath.Join(dir, "lib.so")
	write(t, lib, "library")
	pid := mapper(t, lib, true)
	write(t, lib+".new", "other")
	rename(t, lib+".new", lib)
	hit := func(r *StaleResult) bool {
		return slices.ContainsFunc(r.Hits, func(h change.Hit) bool { return h.PID == pid && h.Path == lib })
	}
	root := look(t, "root ")
	// Where the tests run in a container its first process may be closed to root too.
	if root.Unread > 1 || len(root.Gaps) != root.Unread || !hit(root) {
		t.Fatalf("as root: %d unread, %q, the process is found: %v", root.Unread, root.Gaps, hit(root))
	}
	all, kernel := count(t)
	t.Logf("%d processes, %d of them the kernel's; root looks at %d", all, kernel, root.Examined)
	user := look(t, "nobody ")
	if user.Unread == 0 || len(user.Gaps) != 1 || !strings.Contains(user.Gaps[0], "not permitted") || hit(user) {
		t.Errorf("as a user: %d unread, %q", user.Unread, user.Gaps)
	}
	if kernel > 20 && user.Unread > all-kernel/2 {
		t.Errorf("as a user: %d unread of %d, of which %d are the kernel's", user.Unread, all, kernel)
	}
	for _, hidepid := range []string{"1", "2"} {
		if r := look(t, "root "+hidepid); r.Unread != root.Unread || len(r.Gaps) != len(root.Gaps) || !hit(r) {
			t.Errorf("as root below hidepid=%s: %d unread, %q", hidepid, r.Unread, r.Gaps)
		}
		r := look(t, "nobody "+hidepid)
		if len(r.Gaps) == 0 || !strings.Contains(strings.Join(r.Gaps, " "), "hidepid=") || r.Examined == 0 || hit(r) {
			t.Errorf("as a user below hidepid=%s: %d looked at, %d unread, %q", hidepid, r.Examined, r.Unread, r.Gaps)
		}
		t.Logf("hidepid=%s: %d looked at, %q", hidepid, r.Examined, r.Gaps)
	}
}

// count counts the processes, and those of them that are the kernel's own.
func count(t *testing.T) (all, kernel int) {
	t.Helper()
	proc, err := sys.OpenRoot("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	h := &host{proc: proc}
	pids, err := h.pids()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if _, is, err := h.unread(pid); err == nil {
			all++
			if !is {
				kernel++
			}
		}
	}
	return all, kernel
}

func TestMembers(t *testing.T) {
	top := t.TempDir()
	for name, text := range map[string]string{
		"cgroup.procs": "2\n3\n", "system.slice/cron.service/cgroup.procs": "10\n11\n", "other/cgroup.procs": "12\n",
		"user.slice/user-1.slice/session-2.scope/cgroup.procs": "13\n", "system.slice/cgroup.procs": "", "init.scope/cgroup.procs": "1\nx\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(top, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(top, name), text)
	}
	want := map[int]string{10: "cron.service", 11: "cron.service", 12: "", 13: "session-2.scope", 1: "init.scope"}
	if diff := cmp.Diff(want, members(top)); diff != "" {
		t.Errorf("members() (-want +got):\n%s", diff)
	}
	// Where systemd has a hierarchy of its own beside those of the controllers.
	hybrid := t.TempDir()
	if err := os.Mkdir(filepath.Join(hybrid, "memory"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(hybrid, "memory/cgroup.procs"), "2\n")
	rename(t, top, filepath.Join(hybrid, "unified"))
	if diff := cmp.Diff(want, members(hybrid)); diff != "" {
		t.Errorf("members() of a hybrid (-want +got):\n%s", diff)
	}
	if got := members(t.TempDir()); len(got) != 0 {
		t.Errorf("members() of nothing = %v", got)
	}
}

// A kernel without PROCMAP_QUERY gives the same answer.
func TestTextAgreesWithQuery(t *testing.T) {
	dir := lasting(t)
	lib := filepath.Join(dir, "lib.so")
	write(t, lib, "library")
	pids := []int{mapper(t, lib, true), mapper(t, lib, true), program(t, filepath.Join(dir, "program"))}
	entries := []change.Entry{replace(t, lib), replace(t, filepath.Join(dir, "program"))}
	collect := func(text bool) []change.Hit {
		facts, err := Collect(t.Context(), Request{Delta: &change.Delta{Entries: entries}, Text: text})
		if err != nil {
			t.Fatal(err)
		}
		return only(facts.Hits, pids)
	}
	if diff := cmp.Diff(collect(true), collect(false)); diff != "" || len(collect(true)) != 3 {
		t.Errorf("Collect() (-text +query):\n%s", diff)
	}
	for _, name := range []string{lib, filepath.Join(dir, "program")} {
		write(t, name+".new", "other")
		rename(t, name+".new", name)
	}
	query, text := stale(t, StaleRequest{}, pids...), stale(t, StaleRequest{Text: true}, pids...)
	if diff := cmp.Diff(text, query); diff != "" || len(text) != 3 {
		t.Errorf("Stale() (-text +query):\n%s", diff)
	}
}

// Processes come and go while they are looked at.
func TestStaleWhileProcessesEnd(t *testing.T) {
	dir := lasting(t)
	lib := filepath.Join(dir, "lib.so")
	write(t, lib, "library")
	pid := mapper(t, lib, true)
	write(t, lib+".new", "other")
	rename(t, lib+".new", lib)
	ctx, cancel := context.WithCancel(t.Context())
	churn := make(chan struct{})
	go func() {
		defer close(churn)
		for ctx.Err() == nil {
			_ = exec.Command("/bin/sh", "-c", "/bin/true & /bin/true").Run()
		}
	}()
	for range 20 {
		want(t, "under churn", stale(t, StaleRequest{}, pid), change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "replaced"})
	}
	cancel()
	<-churn
	if r, err := Stale(ctx, StaleRequest{}); err == nil {
		t.Errorf("Stale() with an ended context = %+v", r)
	}
}
