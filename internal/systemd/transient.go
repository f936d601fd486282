package systemd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	sdbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// Transient is a service that exists only while it runs. It outlives the
// process, the session and the unit that asked for it.
type Transient struct {
	Name        string // with ".service"
	Description string
	Argv        []string // Argv[0] is an absolute path
	Env         []string // NAME=value
	Slice       string   // "" for system.slice
	// The standard streams are passed as descriptors; nil leaves systemd's
	// default (nothing to read, the journal to write to).
	Stdin, Stdout, Stderr *os.File
	// ExecStopPost runs when the main process has ended, however it did.
	ExecStopPost []string
	// Limit is how long it may run; then all of its processes are ended. 0: as long as it
	// likes, and as something that must not be cut short: the kernel's OOM killer looks for others first.
	Limit time.Duration
	// Watchdog kills the main process when none of the unit's processes has given a sign
	// of life (Alive) for so long; 0 is for ever. systemd 239 and later have it.
	Watchdog time.Duration
	// Like are the properties of a service whose user, groups and environment it gets.
	Like map[string]any
}

// Running is a transient service that was started.
type Running struct {
	c       *Conn
	name    string
	link    *link
	signals chan *dbus.Signal
	exit    Exit // as far as the signals have told
}

// Exit is how a transient service's main process ended.
type Exit struct {
	// Known: systemd told the status before it forgot the unit.
	Known  bool
	Code   int32  // 1 exited, 2 killed, 3 dumped core
	Status int32  // exit status or signal
	Result string // systemd's word: "success", "exit-code", "signal", "oom-kill", ...
}

// StartTransient starts a service and returns when its program is executed.
func (c *Conn) StartTransient(ctx context.Context, t Transient) (*Running, error) {
	if len(t.Argv) == 0 || !strings.HasPrefix(t.Argv[0], "/") {
		return nil, fmt.Errorf("cannot start %s: its program %q is not an absolute path", t.Name, t.Argv)
	}
	l := c.current()
	r := &Running{c: c, name: t.Name, link: l, signals: make(chan *dbus.Signal, signalRoom)}
	l.jobs.Signal(r.signals)
	descriptors := l.calls.SupportsUnixFDs()
	err := l.startTransient(ctx, t, descriptors)
	if descriptors && refusesDescriptors(err) {
		err = l.startTransient(ctx, t, false)
	}
	if _, failed := errors.AsType[*startJobError](err); failed && r.ran() {
		err = nil
	}
	if err != nil {
		l.jobs.RemoveSignal(r.signals)
		return nil, fmt.Errorf("cannot start %s: %w", t.Name, err)
	}
	return r, nil
}

// startJobError is a start job that was enqueued and did not succeed.
type startJobError struct{ result string }

func (e *startJobError) Error() string { return fmt.Sprintf("its start job ended with %q", e.result) }

// ran tells whether the program was executed although the start job failed:
// one that ends at once is reported like that. systemd's own failures before
// the execution have exit statuses of their own, systemd.exec(5).
func (r *Running) ran() bool {
	r.drain(unitPath(r.name), &r.exit)
	const firstOwn, lastOwn = 200, 250
	return r.exit.Known && (r.exit.Code != 1 || r.exit.Status < firstOwn || r.exit.Status > lastOwn)
}

func (l *link) startTransient(ctx context.Context, t Transient, descriptors bool) error {
	ended := make(chan string, 1)
	// A name left behind by a failed unit would refuse the start.
	_ = l.sd.ResetFailedUnitContext(ctx, t.Name)
	_, err := l.sd.StartTransientUnitContext(ctx, t.Name, "fail", t.properties(descriptors), ended)
	runtime.KeepAlive(t)
	if err != nil {
		return err
	}
	select {
	case result := <-ended:
		if result != "done" {
			return &startJobError{result}
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.jobs.Context().Done():
		return errLost
	}
}

func (t *Transient) properties(descriptors bool) []sdbus.Property {
	prop := func(name string, value any) sdbus.Property {
		return sdbus.Property{Name: name, Value: dbus.MakeVariant(value)}
	}
	props := []sdbus.Property{
		sdbus.PropDescription(t.Description),
		sdbus.PropExecStart(verbatim(t.Argv), false),
		sdbus.PropType("exec"),
		// On a stop the main process alone gets SIGTERM: it decides itself
		// whether to undo or to finish, and takes its children along.
		prop("KillMode", "mixed"),
		prop("SendSIGHUP", false),
		// Whoever reads our output may go away in the middle.
		prop("IgnoreSIGPIPE", true),
		prop("CollectMode", "inactive-or-failed"),
		prop("StartLimitIntervalUSec", uint64(0)),
	}
	if t.Limit > 0 {
		props = append(props, prop("RuntimeMaxUSec", uint64(t.Limit.Microseconds())), prop("TimeoutStopUSec", uint64(10e6)))
	} else {
		props = append(
			props,
			// Cut short by the OOM killer, a commit would have to be recovered.
			prop("OOMScoreAdjust", int32(-900)),
			// A power-off, reboot, kexec or soft-reboot waits for a commit to finish, and for
			// what runs after it; each of their targets has a limit of its own (30 minutes).
			prop("TimeoutStopUSec", uint64(math.MaxUint64)),
		)
	}
	if t.Slice != "" {
		props = append(props, sdbus.PropSlice(t.Slice))
	}
	if len(t.Env) > 0 {
		props = append(props, prop("Environment", t.Env))
	}
	if len(t.ExecStopPost) > 0 {
		post := sdbus.PropExecStart(verbatim(t.ExecStopPost), false)
		post.Name = "ExecStopPost"
		props = append(props, post)
	}
	props = append(props, like(t.Like)...)
	if t.Watchdog > 0 {
		props = append(props, prop("WatchdogUSec", uint64(t.Watchdog.Microseconds())), prop("NotifyAccess", "all"),
			// A stopped process ends by this signal alone.
			prop("WatchdogSignal", int32(syscall.SIGKILL)))
	}
	for _, s := range []struct {
		name string
		file *os.File
	}{{"StandardInput", t.Stdin}, {"StandardOutput", t.Stdout}, {"StandardError", t.Stderr}} {
		switch {
		case s.file == nil:
		case descriptors:
			props = append(props, prop(s.name+"FileDescriptor", dbus.UnixFD(s.file.Fd())))
		default:
			props = append(props, prop(s.name+"File", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd())))
		}
	}
	return props
}

// like are the properties that say as whom and with what environment a service runs.
func like(of map[string]any) []sdbus.Property {
	var out []sdbus.Property
	add := func(name string, value any) {
		out = append(out, sdbus.Property{Name: name, Value: dbus.MakeVariant(value)})
	}
	for _, name := range []string{"User", "Group", "WorkingDirectory"} {
		if s, ok := of[name].(string); ok && s != "" {
			add(name, s)
		}
	}
	if yes, _ := of["DynamicUser"].(bool); yes {
		add("DynamicUser", true)
	}
	for _, name := range []string{"SupplementaryGroups", "Environment"} {
		if l, ok := of[name].([]string); ok && len(l) > 0 {
			add(name, l)
		}
	}
	type file struct {
		Path     string
		Optional bool
	}
	var files []file
	list, _ := of["EnvironmentFiles"].([][]any)
	for _, f := range list {
		if len(f) != 2 {
			continue
		}
		name, ok1 := f[0].(string)
		optional, ok2 := f[1].(bool)
		if ok1 && ok2 {
			files = append(files, file{name, optional})
		}
	}
	if len(files) > 0 {
		add("EnvironmentFiles", files)
	}
	return out
}

// verbatim protects arguments from systemd's expansion of variables.
func verbatim(argv []string) []string {
	out := make([]string, len(argv))
	for i, arg := range argv {
		out[i] = strings.ReplaceAll(arg, "$", "$$")
	}
	return out
}

// refusesDescriptors tells whether a start failed because this systemd does
// not take descriptors.
func refusesDescriptors(err error) bool {
	derr, ok := errors.AsType[dbus.Error](err)
	return ok && (derr.Name == "org.freedesktop.DBus.Error.PropertyReadOnly" ||
		derr.Name == "org.freedesktop.DBus.Error.UnknownProperty")
}

// Wait returns when the service has ended, ExecStopPost included. It survives
// a re-execution of PID 1 by whoever, which closes the connection.
//
// Units are not reference-counted on the private socket, so PID 1 may forget
// the unit as soon as it ends: the status is taken from the signals on the way
// there, and that the unit is gone counts as its end.
func (r *Running) Wait(ctx context.Context) (Exit, error) {
	defer func() { r.link.jobs.RemoveSignal(r.signals) }()
	path := unitPath(r.name)
	poll := time.NewTicker(250 * time.Millisecond)
	defer poll.Stop()
	look := true
	for {
		if look {
			states, err := r.c.States(ctx, []string{r.name})
			switch {
			case ctx.Err() != nil:
				return r.exit, fmt.Errorf("cannot wait for %s: %w", r.name, ctx.Err())
			case err != nil:
				if err := r.reconnect(ctx); err != nil {
					return r.exit, fmt.Errorf("cannot wait for %s: %w", r.name, err)
				}
				continue
			}
			u := states[0]
			if !u.Active() && u.ActiveState != "deactivating" {
				if !r.exit.Known && u.LoadState != "not-found" && u.ExecMainCode != 0 {
					r.exit = Exit{Known: true, Code: u.ExecMainCode, Status: u.ExecMainStatus, Result: u.Result}
				}
				r.drain(path, &r.exit)
				return r.exit, nil
			}
		}
		select {
		case sig, ok := <-r.signals:
			if !ok {
				r.signals = nil
				look = true
				continue
			}
			look = r.exit.see(sig, path)
		case <-poll.C:
			look = true
		case <-ctx.Done():
			return r.exit, fmt.Errorf("cannot wait for %s: %w", r.name, ctx.Err())
		}
	}
}

// drain reads the signals that are already there.
func (r *Running) drain(path dbus.ObjectPath, exit *Exit) {
	for {
		select {
		case sig, ok := <-r.signals:
			if !ok {
				return
			}
			exit.see(sig, path)
		default:
			return
		}
	}
}

// see takes the status from a signal; it tells whether the unit's state may
// have changed.
func (e *Exit) see(sig *dbus.Signal, path dbus.ObjectPath) bool {
	if sig.Name == managerIface+".UnitRemoved" {
		return len(sig.Body) == 2 && sig.Body[1] == path
	}
	if sig.Name != propsIface+".PropertiesChanged" || sig.Path != path {
		return false
	}
	var iface string
	var changed map[string]dbus.Variant
	var invalidated []string
	if dbus.Store(sig.Body, &iface, &changed, &invalidated) != nil {
		return false
	}
	if iface == serviceIface {
		if code := int32(number(changed, "ExecMainCode")); code != 0 {
			e.Known, e.Code, e.Status = true, code, int32(number(changed, "ExecMainStatus"))
		}
		if result := text(changed, "Result"); result != "" {
			e.Result = result
		}
	}
	return true
}

// reconnect waits until PID 1 answers again.
func (r *Running) reconnect(ctx context.Context) error {
	if l := r.c.current(); l != r.link && l.jobs.Connected() {
		// Somebody else has connected already.
		r.follow(l)
		return nil
	}
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := r.c.connect(attempt)
		cancel()
		if err == nil {
			r.follow(r.c.current())
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (r *Running) follow(l *link) {
	r.link, r.signals = l, make(chan *dbus.Signal, signalRoom)
	l.jobs.Signal(r.signals)
}
