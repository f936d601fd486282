package restart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
)

// hostVerbs are the steps that act on the host as a whole and on no unit, in
// the order in which they are carried out, before the manager is told of new
// unit files. An initrd is made when all else has succeeded.
var hostVerbs = []string{
	"sysusers", "tmpfiles", "hwdb", "udev-reload", "udev-trigger", "modules-load", "modules-unload", "sysctl",
	"binfmt", "apparmor", "selinux",
}

const (
	initrdVerb = "initrd"
	// healthVerb asks a unit's own command whether it works; its target is the
	// unit and the command line.
	healthVerb = "health"
)

// runVerb is a program of the host's own that the packages of an update asked for:
// what makes boot entries, and modules of other builders.
const runVerb = "run"

// Handles tells whether Run carries out steps of this verb.
func Handles(do string) bool {
	switch do {
	case "stop", "daemon-reload", "daemon-reexec", "reload", "restart", "start", healthVerb, initrdVerb, runVerb:
		return true
	}
	return slices.Contains(hostVerbs, do)
}

// Host carries out steps on the running kernel and with systemd's own early
// programs. The zero value acts on the host that it runs on.
type Host struct {
	// Proc is where procfs is mounted; "" is /proc.
	Proc string
	// Etc is an open directory of the root through which /etc can be written to
	// where it is read-only for everybody else; nil where nobody need.
	Etc *os.File
	// Run executes a command and gives what it wrote; nil is exec.
	Run func(ctx context.Context, argv []string, files ...*os.File) ([]byte, error)
}

// hostTimeout bounds one step; making an initrd takes minutes on a slow disk.
const (
	hostTimeout   = 2 * time.Minute
	initrdTimeout = 20 * time.Minute
)

// errNotHere marks what this host cannot do, and what its boot would not do
// either: no reason to take an update back.
var errNotHere = errors.New("not done here")

// host is the phase of the host's own steps, verb by verb.
func (r *run) host(ctx context.Context) error {
	for _, verb := range hostVerbs {
		before := r.known()
		if err := r.hostSteps(ctx, verb); err != nil {
			return err
		}
		if err := r.between(ctx, before); err != nil {
			return err
		}
	}
	return nil
}

// initrds is the last phase. It is left out where a unit failed: all of it
// will be taken back.
func (r *run) initrds(ctx context.Context) error {
	if err := r.firstFailure(); err != nil {
		return err
	}
	if err := r.hostSteps(ctx, initrdVerb); err != nil {
		return err
	}
	return r.hostSteps(ctx, runVerb)
}

// health asks each unit that was interrupted whether it does what it is for. A
// unit that has just started may need a moment to be able to say so.
func (r *run) health(ctx context.Context) error {
	if err := r.firstFailure(); err != nil {
		return err
	}
	for _, i := range r.each(healthVerb) {
		start := time.Now()
		unit, line, _ := strings.Cut(r.steps[i].Target, " ")
		argv := change.SplitArgv(line)
		if len(argv) == 0 {
			r.settle(i, skipped, "there is no command", 0)
			continue
		}
		ask := r.o.Health
		if ask == nil {
			ask = func(ctx context.Context, _ string, argv []string) error {
				_, err := r.o.Host.command(ctx, argv...)
				return err
			}
		}
		for {
			err := r.within(ctx, start, func(ctx context.Context) error { return ask(ctx, unit, argv) })
			if err == nil {
				r.settle(i, done, "", time.Since(start))
				break
			}
			if time.Since(start) < r.o.HealthTimeout && !errors.Is(err, errNotHere) {
				time.Sleep(min(time.Second, r.o.HealthTimeout/5))
				continue
			}
			r.settle(i, failed, unit+" is not well: "+err.Error(), time.Since(start))
			break
		}
	}
	return r.firstFailure()
}

// within gives a command what is left of the time that all tries have together.
func (r *run) within(ctx context.Context, start time.Time, ask func(context.Context) error) error {
	left := max(r.o.HealthTimeout-time.Since(start), time.Second)
	limited, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	err := ask(limited)
	if err != nil && limited.Err() != nil {
		err = fmt.Errorf("it did not end within %s: %w", r.o.HealthTimeout, err)
	}
	return err
}

// hostSteps carries out the steps of one verb; those of one program in one call.
func (r *run) hostSteps(ctx context.Context, verb string) error {
	steps := r.each(verb)
	if len(steps) == 0 {
		return nil
	}
	switch verb {
	case "sysusers", "tmpfiles":
		var names []string
		for _, i := range steps {
			names = append(names, r.steps[i].Target)
		}
		start := time.Now()
		detail, err := r.o.Host.create(ctx, verb, names)
		for _, i := range steps {
			r.settleHost(i, detail, err, start)
		}
	default:
		for _, i := range steps {
			start := time.Now()
			detail, err := r.o.Host.do(ctx, r.steps[i])
			r.settleHost(i, detail, err, start)
		}
	}
	return r.firstFailure()
}

func (r *run) settleHost(i int, detail string, err error, start time.Time) {
	switch {
	case errors.Is(err, errNotHere):
		r.settle(i, skipped, err.Error(), time.Since(start))
	case err != nil:
		r.settle(i, failed, err.Error(), time.Since(start))
	default:
		r.settle(i, done, detail, time.Since(start))
	}
}

func (h *Host) do(ctx context.Context, s change.Step) (string, error) {
	switch s.Do {
	case "sysctl":
		return "", h.sysctl(s.Target)
	case "binfmt":
		return "", h.binfmt(s.Target)
	case "modules-load":
		out, err := h.command(ctx, "modprobe", "--", s.Target)
		if err != nil && bytes.Contains(out, []byte("No such device")) {
			err = fmt.Errorf("%w: %w", errNotHere, err) // its hardware is not in this machine
		}
		return "", err
	case "modules-unload":
		// One that is in use stays, and harms nobody.
		_, err := h.command(ctx, "modprobe", "-r", "--", s.Target)
		if err != nil {
			err = fmt.Errorf("%w: %w", errNotHere, err)
		}
		return "", err
	case "hwdb":
		argv := []string{"systemd-hwdb", "update"}
		if _, err := os.Stat("/etc/udev/hwdb.bin"); err != nil {
			argv = []string{"systemd-hwdb", "--usr", "update"}
		}
		out, err := h.command(ctx, argv...)
		if err != nil && bytes.Contains(out, []byte("Read-only file system")) {
			err = fmt.Errorf("%w: %w", errNotHere, err)
		}
		return "", err
	case "udev-reload":
		_, err := h.command(ctx, "udevadm", "control", "--reload")
		return "", err
	case "udev-trigger":
		return h.trigger(ctx, s.Target)
	case "apparmor":
		if _, err := os.Stat(s.Target); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: the profile is gone and stays loaded", errNotHere)
		}
		_, err := h.command(ctx, "apparmor_parser", "--replace", "--skip-read-cache", s.Target)
		return "", err
	case "selinux":
		_, err := h.command(ctx, "load_policy")
		return "", err
	case initrdVerb, runVerb:
		ctx, cancel := context.WithTimeout(ctx, initrdTimeout)
		defer cancel()
		_, err := h.run(ctx, strings.Fields(s.Target))
		return "", err
	}
	return "", fmt.Errorf("no such step %q", s.Do)
}

func (h *Host) proc(name string) string {
	if h.Proc != "" {
		return filepath.Join(h.Proc, name)
	}
	return filepath.Join("/proc", name)
}

// sysctl writes one setting as "KEY = VALUE"; with a "-" before it a failure is none.
func (h *Host) sysctl(target string) error {
	target, lenient := strings.CutPrefix(target, "-")
	key, value, _ := strings.Cut(target, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	name := path.Clean("/" + strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key))
	err := writeKernel(h.proc("sys"+name), value+"\n")
	switch {
	case err == nil:
		return nil
	case lenient:
		return fmt.Errorf("%w: %w, and its line says that this is no failure", errNotHere, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: the running kernel has no setting %s", errNotHere, key)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		// A container: systemd-sysctl does not count these either.
		return fmt.Errorf("%w: the kernel's settings are not this system's to change: %w", errNotHere, err)
	}
	return fmt.Errorf("cannot set %s to %q: %w", key, value, err)
}

// binfmt registers a rule with the kernel in place of one with its name, or
// takes "-NAME" away.
func (h *Host) binfmt(rule string) error {
	dir := h.proc("sys/fs/binfmt_misc")
	if _, err := os.Stat(filepath.Join(dir, "register")); err != nil {
		return fmt.Errorf("%w: the kernel takes no rules here: %w", errNotHere, err)
	}
	name, remove := strings.CutPrefix(rule, "-")
	if !remove && len(rule) > 1 {
		name, _, _ = strings.Cut(rule[1:], rule[:1])
	}
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return fmt.Errorf("cannot register %q: it names no rule", rule)
	}
	err := writeKernel(filepath.Join(dir, name), "-1")
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		if remove {
			return nil
		}
		err = writeKernel(filepath.Join(dir, "register"), rule)
	}
	switch {
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the kernel's settings are not this system's to change: %w", errNotHere, err)
	case err != nil:
		return fmt.Errorf("cannot register %q: %w", name, err)
	}
	return nil
}

// writeKernel writes to a file that is there, in one call.
func writeKernel(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// triggerFlags are what a udev-trigger step may hand on.
var triggerFlags = []string{"--action=", "--subsystem-match=", "--sysname-match="}

func (h *Host) trigger(ctx context.Context, target string) (string, error) {
	argv := []string{"udevadm", "trigger"}
	for arg := range strings.FieldsSeq(target) {
		if !slices.ContainsFunc(triggerFlags, func(flag string) bool { return strings.HasPrefix(arg, flag) }) {
			return "", fmt.Errorf("cannot trigger events: %q is none of %v", arg, triggerFlags)
		}
		argv = append(argv, arg)
	}
	if _, err := h.command(ctx, argv...); errors.Is(err, errNotHere) {
		return "", err
	} else if err != nil {
		// One device that takes no event is no failure at a boot either
		// (systemd-udev-trigger.service).
		return err.Error(), nil
	}
	// What the events do should be done before units start. An event that
	// hangs is udev's own affair.
	if _, err := h.command(ctx, "udevadm", "settle", "--timeout=30"); err != nil {
		return "its events are still being worked on", nil
	}
	return "", nil
}

// create runs systemd-sysusers or systemd-tmpfiles on the named files.
func (h *Host) create(ctx context.Context, verb string, names []string) (string, error) {
	var have []string
	for _, name := range names {
		for _, dir := range []string{"/etc/", "/run/", "/usr/local/lib/", "/usr/lib/", "/lib/"} {
			if _, err := os.Stat(dir + verb + ".d/" + name); err == nil {
				have = append(have, name)
				break
			}
		}
	}
	if len(have) == 0 {
		return "", fmt.Errorf("%w: the file is gone", errNotHere)
	}
	if verb == "tmpfiles" {
		_, err := h.command(ctx, append([]string{"systemd-tmpfiles", "--create"}, have...)...)
		// Its own unit counts these as success: a line that is not understood,
		// and a place that cannot be written to (SuccessExitStatus=DATAERR CANTCREAT).
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && (exit.ExitCode() == 65 || exit.ExitCode() == 73) {
			return err.Error(), nil
		}
		return "", err
	}
	argv := []string{"systemd-sysusers"}
	var files []*os.File
	if h.Etc != nil {
		// The first of the files that a child inherits has the number 3.
		argv = append(argv, "--root=/proc/self/fd/3")
		files = append(files, h.Etc)
	}
	_, err := h.run(ctx, append(argv, have...), files...)
	return "", err
}

// command runs a program with the time that one step has.
func (h *Host) command(ctx context.Context, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, hostTimeout)
	defer cancel()
	return h.run(ctx, argv)
}

func (h *Host) run(ctx context.Context, argv []string, files ...*os.File) ([]byte, error) {
	exe := execute
	if h.Run != nil {
		exe = h.Run
	}
	out, err := exe(ctx, argv, files...)
	if errors.Is(err, exec.ErrNotFound) {
		return out, fmt.Errorf("%w: there is no %s", errNotHere, argv[0])
	}
	if err != nil {
		text := bytes.TrimSpace(out)
		const most = 2000
		if len(text) > most {
			text = text[len(text)-most:]
		}
		return out, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.ReplaceAll(text, []byte("\n"), []byte("; ")))
	}
	return out, nil
}

// programDirs is where the host's programs are looked for, whatever the
// environment of who called says.
var programDirs = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

func execute(ctx context.Context, argv []string, files ...*os.File) ([]byte, error) {
	name := argv[0]
	if !strings.Contains(name, "/") {
		for _, dir := range programDirs {
			if st, err := os.Stat(filepath.Join(dir, name)); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				name = filepath.Join(dir, name)
				break
			}
		}
	}
	if !strings.Contains(name, "/") {
		return nil, exec.ErrNotFound
	}
	cmd := exec.CommandContext(ctx, name, argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:" + strings.Join(programDirs, ":"), "LC_ALL=C.UTF-8", "HOME=/root"}
	cmd.ExtraFiles = files
	cmd.WaitDelay = 5 * time.Second
	return cmd.CombinedOutput()
}
