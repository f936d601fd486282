package unattended

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/systemd"
)

// System is the machine that this program runs on.
type System struct{}

var _ Host = System{}

// Now is the time, in the machine's zone.
func (System) Now() time.Time { return time.Now() }

// Sleep waits.
func (System) Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Do has the engine carry a request out, in a worker of its own.
func (System) Do(ctx context.Context, req engine.Request, ev engine.Events) (any, error) {
	return engine.Spawn(ctx, req, ev)
}

// Look lists the transactions.
func (System) Look(ctx context.Context, req engine.Request) ([]change.Generation, error) {
	req.Root, req.NoPrompt = "/", true
	if !req.Unattended {
		result, err := (&engine.Engine{}).Run(ctx, req, engine.Events{})
		list, _ := result.([]change.Generation)
		return list, err
	}
	result, err := engine.Spawn(context.WithoutCancel(ctx), req, engine.Events{})
	list, _ := result.([]change.Generation)
	return list, err
}

// Boot is the kernel's boot ID.
func (System) Boot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

var commands atomic.Int64

// Command runs a program in a transient unit: it has none of the limits of the service that
// we run in, and when its time is up all of its processes go.
func (System) Command(ctx context.Context, c Command) (string, error) {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return "", err
	}
	defer bus.Close()
	stdin, say, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("cannot make a pipe: %w", err)
	}
	out, theirs, err := os.Pipe()
	if err != nil {
		stdin.Close()
		say.Close()
		return "", fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer out.Close()
	running, err := bus.StartTransient(ctx, systemd.Transient{
		Name: fmt.Sprintf("liveupd-hook-%d-%d.service", os.Getpid(), commands.Add(1)), Description: "liveupd's " + c.What + " hook",
		Argv: c.Argv, Env: c.Env, Stdin: stdin, Stdout: theirs, Stderr: theirs, Limit: c.Limit,
	})
	stdin.Close()
	theirs.Close()
	if err != nil {
		say.Close()
		if why := unusable(c.Argv[0]); why != "" {
			return "", fmt.Errorf("cannot run %s: %s", c.Argv[0], why)
		}
		return "", fmt.Errorf("cannot run %s: %w", c.Argv[0], err)
	}
	go func() {
		_, _ = io.WriteString(say, c.Stdin) // a program need not read it
		say.Close()
	}()
	var tail tailBuffer
	read := make(chan struct{})
	go func() {
		_, _ = io.Copy(&tail, out)
		close(read)
	}()
	// systemd ends it when its time is up.
	exit, err := running.Wait(context.WithoutCancel(ctx))
	select {
	case <-read:
	case <-time.After(5 * time.Second): // a process that has left the unit holds the pipe
		out.Close()
		<-read
	}
	text := strings.TrimSpace(tail.String())
	switch {
	case err != nil:
		return text, fmt.Errorf("cannot follow %s: %w", c.Argv[0], err)
	case exit.Result == "timeout":
		return text, fmt.Errorf("%s did not end within %s", c.Argv[0], c.Limit)
	case !exit.Known && exit.Result != "success":
		return text, fmt.Errorf("how %s ended is not known", c.Argv[0])
	case exit.Result == "success":
		return text, nil
	case exit.Code == 1:
		return text, fmt.Errorf("%s ended with status %d", c.Argv[0], exit.Status)
	}
	return text, fmt.Errorf("%s was ended: %s", c.Argv[0], exit.Result)
}

// unusable says why a program cannot be run, "" where that is not to be seen: systemd tells only that
// its start failed, and our service does not see people's homes.
func unusable(program string) string {
	for _, home := range []string{"/home/", "/root/", "/run/user/"} {
		if strings.HasPrefix(program, home) {
			return ""
		}
	}
	st, err := os.Stat(program)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file"
	case err != nil:
		return ""
	case st.IsDir():
		return "it is a folder"
	case st.Mode()&0o111 == 0:
		return "it is not executable (chmod +x)"
	}
	return ""
}

// tailBuffer keeps the end of what is written to it.
type tailBuffer struct{ b []byte }

const tailSize = 4 << 10

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	return strings.ToValidUTF8(string(t.b[max(0, len(t.b)-tailSize):]), "\uFFFD")
}

// OnBattery reads the power supplies.
func (System) OnBattery() (bool, string) { return onBattery("/sys/class/power_supply") }

// onBattery goes by systemd's rule (ConditionACPower=): a supply from the mains that is online
// decides; without one, a battery of the machine that discharges does.
func onBattery(dir string) (bool, string) {
	supplies, _ := filepath.Glob(filepath.Join(dir, "*")) // the pattern is right
	read := func(s, name string) string {
		b, _ := os.ReadFile(filepath.Join(s, name)) // absent is empty
		return strings.TrimSpace(string(b))
	}
	var offline, battery, discharging string
	for _, s := range supplies {
		name := filepath.Base(s)
		switch kind := read(s, "type"); {
		case read(s, "scope") == "Device":
			// A mouse's, a phone's.
		case kind == "Mains" || kind == "USB":
			if read(s, "online") == "1" {
				return false, "on mains power (" + name + ")"
			}
			offline = name
		case kind == "Battery" || kind == "UPS":
			if read(s, "present") == "0" {
				continue
			}
			battery = name
			if read(s, "status") == "Discharging" {
				discharging = name
			}
		}
	}
	if discharging != "" {
		return true, "on battery (" + discharging + " discharges)"
	}
	if offline != "" && battery != "" {
		return true, "on battery (the mains supply " + offline + " is offline)"
	}
	return false, "no battery is in use"
}

// Metered asks NetworkManager.
func (System) Metered(ctx context.Context) (bool, string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	metered, known, err := systemd.Metered(ctx)
	switch {
	case err != nil:
		return false, "NetworkManager does not run: taken as not metered (unattended.metered says otherwise)"
	case !known:
		return false, "NetworkManager does not know whether it is metered"
	case metered:
		return true, "NetworkManager says that it is metered"
	}
	return false, "NetworkManager says that it is not metered"
}

// Users names who is logged in.
func (System) Users(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return systemd.Users(ctx)
}

// Reboot has logind reboot the machine at a time; where it does not run, systemd itself then.
func (s System) Reboot(ctx context.Context, at time.Time, message string) error {
	ask, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := systemd.ScheduleReboot(ask, at, message)
	if err == nil {
		return nil
	}
	if e := s.Sleep(ctx, time.Until(at)); e != nil {
		return errors.Join(err, e)
	}
	bus, e := systemd.Connect(ctx)
	if e != nil {
		return errors.Join(err, e)
	}
	defer bus.Close()
	if e := bus.Reboot(ctx); e != nil {
		return errors.Join(err, e)
	}
	return nil
}

// Log writes to the journal.
func (System) Log(e Entry) error { return systemd.Log(e.Text, e.Priority, withID(e)) }

func withID(e Entry) map[string]string {
	out := map[string]string{"MESSAGE_ID": e.ID, "SYSLOG_IDENTIFIER": "liveupd"}
	maps.Copy(out, e.Fields)
	return out
}

// Status tells systemd what goes on.
func (System) Status(text string) { systemd.Status(text) }

// Alive looks at a unit and its processes.
func (System) Alive(ctx context.Context, unit string) (alive, stopped bool) {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return false, false
	}
	defer bus.Close()
	states, err := bus.States(ctx, []string{unit})
	if err != nil || len(states) != 1 {
		return false, false
	}
	switch states[0].ActiveState {
	case "active", "activating", "deactivating", "reloading", "refreshing":
	default:
		return false, false
	}
	return true, states[0].ControlGroup != "" && slices.ContainsFunc(processes(states[0].ControlGroup), isStopped)
}

// processes are those of a control group and of the ones below it.
func processes(group string) []int {
	var out []int
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		top := filepath.Join(root, group)
		if _, err := os.Stat(filepath.Join(top, "cgroup.procs")); err != nil {
			continue
		}
		_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
				return nil // what has gone meanwhile has no processes
			}
			b, _ := os.ReadFile(path)
			for text := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(text); err == nil && pid > 1 {
					out = append(out, pid)
				}
			}
			return nil
		})
		break
	}
	return out
}

// isStopped reads the state of a process, proc_pid_stat(5): T is stopped by a signal.
func isStopped(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(b[max(0, bytes.LastIndexByte(b, ')')):], []byte(") "))
	return ok && len(rest) > 0 && rest[0] == 'T'
}

// End kills the processes that a unit has now. systemd's own way (KillUnit) would reach the recovery as
// well that it starts when they have ended.
func (System) End(ctx context.Context, unit string) error {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	states, err := bus.States(ctx, []string{unit})
	if err != nil {
		return err
	}
	for _, st := range states {
		if st.ControlGroup == "" {
			continue
		}
		for _, pid := range processes(st.ControlGroup) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("cannot end process %d of %s: %w", pid, unit, err)
			}
		}
	}
	return nil
}

// Settled waits, as long as systemd's own limits for a start let a unit be on its way.
func (s System) Settled(ctx context.Context, units []string) error {
	bus, err := systemd.Connect(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	for {
		states, err := bus.States(ctx, units)
		if err != nil {
			return err
		}
		waits := false
		for _, st := range states {
			switch st.ActiveState {
			case "failed":
				return fmt.Errorf("%s failed after its restart (%s)", st.Name, st.Result)
			case "activating", "deactivating", "reloading", "refreshing":
				waits = true
			}
		}
		if !waits {
			return nil
		}
		if err := s.Sleep(ctx, look); err != nil {
			return err
		}
	}
}

// Hostname is the machine's name.
func (System) Hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

// Sendmail finds the program that takes mail.
func (System) Sendmail() string {
	for _, name := range []string{"/usr/sbin/sendmail", "/usr/lib/sendmail"} {
		if st, err := os.Stat(name); err == nil && st.Mode()&0o111 != 0 {
			return name
		}
	}
	return ""
}

// Holder is the process that holds a lock on a file, by the kernel's list (proc_locks(5)), which
// is read without taking the lock; 0 where there is none.
func Holder(file string) int {
	var want string
	if st, err := os.Stat(file); err == nil {
		want = inode(st)
	}
	if want == "" {
		return 0
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) < 6 || f[1] == "->" || f[5] != want {
			continue
		}
		pid := 0
		_, _ = fmt.Sscan(f[4], &pid) // -1 and 0: of no process that can be named
		if pid <= 0 {
			pid = -1
		}
		return pid
	}
	return 0
}
