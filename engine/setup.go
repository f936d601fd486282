package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/recovery"
	"github.com/liveupd/liveupd/transact"
)

// verdictsFile keeps what was found in initrds; it goes with the boot.
const verdictsFile = runDir + "/initrds.json"

// inspectRecovery reads what recovers the root at its next boot.
func inspectRecovery(req Request) (*recovery.State, error) {
	o := recovery.Options{Live: req.Live()}
	if os.Geteuid() == 0 {
		o.Cache = verdictsFile
	}
	if req.Live() {
		cmdline, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			return nil, fmt.Errorf("cannot read the kernel's command line: %w", err)
		}
		o.Cmdline, o.Container = string(cmdline), containerManager() != ""
	}
	return recovery.Inspect(req.Root, o)
}

// setupHint is what to do about it.
const setupHint = "run: liveupd setup"

// lacking tells what no recovery covers at the next boot of the running system.
func (s *session) lacking() []string {
	if !s.req.Live() {
		return nil
	}
	state, err := inspectRecovery(s.req)
	if err != nil {
		return []string{err.Error()}
	}
	return state.Lacks()
}

// warnUnrecovered is a plan's warning that a crash in the commit would not be
// recovered at the next boot. Who stands beside it may accept that.
func (s *session) warnUnrecovered(p *change.Plan) {
	if lacks := s.lacking(); len(lacks) > 0 {
		p.Warnings = append(p.Warnings, "no recovery at boot is installed: "+some(lacks)+"; "+setupHint)
	}
}

// refuseUnrecovered is the same for a run that nobody stands beside.
func (s *session) refuseUnrecovered() error {
	if !s.req.Unattended {
		return nil
	}
	if lacks := s.lacking(); len(lacks) > 0 {
		return change.WithHint(fmt.Errorf("cannot apply unattended: no recovery at boot is installed: %s; %w", some(lacks), ErrNothingCommitted), setupHint)
	}
	return nil
}

// some shortens a list for one line.
func some(list []string) string {
	const most = 3
	if n := len(list) - most; n > 0 {
		list = append(slices.Clone(list[:most]), fmt.Sprintf("%d more", n))
	}
	return strings.Join(list, ", ")
}

// setup installs what recovers a cut-off commit at the next boot, or takes it away.
func (e *Engine) setup(ctx context.Context, req Request, ev Events) (any, error) {
	release, err := lockSetup(req)
	if err != nil {
		return nil, err
	}
	defer release()
	state, err := inspectRecovery(req)
	if err != nil {
		return nil, err
	}
	u, err := openRecoverySetup(req, state)
	if err != nil {
		return nil, err
	}
	defer u.close()
	beside, err := openTogether(req)
	if err != nil {
		return nil, err
	}
	defer beside.close()
	report := &change.SetupReport{MessageType: "report", Schema: Schema, Verb: "setup", Root: req.Root, Items: []change.SetupItem{}, Commands: []string{}, Warnings: []string{}}
	report.Neighbours = beside.found()
	items, initrds, err := u.plan(req)
	if err != nil {
		return nil, err
	}
	others, err := beside.plan(req)
	if err != nil {
		return nil, err
	}
	report.Items = append(items, others...)
	fillSetup(report, state)
	rebuild := state.Rebuild()
	initrds = initrds && len(rebuild) > 0 && len(state.Kernels) > 0 && !req.Setup.NoInitrds
	if initrds {
		report.Commands = append(report.Commands, strings.Join(rebuild, " "))
	}
	nothing := !initrds && !slices.ContainsFunc(report.Items, func(it change.SetupItem) bool { return it.Action != "keep" })
	switch {
	case nothing:
		report.Result = "nothing-to-do"
		return report, nil
	case req.PlanOnly:
		report.Result = "planned"
		return report, nil
	}
	var warning string
	if err = u.do(req); err == nil {
		warning, err = beside.do(ctx, req, others)
	}
	if errors.Is(err, fs.ErrPermission) || err != nil && strings.Contains(err.Error(), "read-only file system") {
		err = change.WithHint(err, "make the root writable for the time of the setup, or run liveupd setup --root DIR where its image is made")
	}
	if err != nil {
		return nil, err
	}
	report.Result = "done"
	if warning != "" {
		report.Warnings = append(report.Warnings, warning)
	}
	if initrds {
		ev.progress("rebuilding", 0, 0, "", "the initrds, with "+rebuild[0])
		if err := rebuildInitrds(ctx, req, rebuild); err != nil {
			report.Result = "pending"
			report.Warnings = append(report.Warnings, err.Error())
		}
	}
	// What counts is what lies in the initrds now.
	if state, err = inspectRecovery(req); err != nil {
		return report, err
	}
	fillSetup(report, state)
	report.Neighbours = beside.found()
	if req.Remove {
		report.Lacks = []string{}
	}
	return report, nil
}

// recoverySetup is the recovery at boot as far as the request is for it.
type recoverySetup struct {
	*recovery.Setup // nil: it is not
}

func openRecoverySetup(req Request, state *recovery.State) (recoverySetup, error) {
	if req.Setup.Settle || req.Remove && req.Setup.Together {
		return recoverySetup{}, nil
	}
	programs, err := ownPrograms()
	if err != nil {
		return recoverySetup{}, err
	}
	u, err := recovery.OpenSetup(req.Root, state, programs)
	return recoverySetup{u}, err
}

func (u recoverySetup) close() {
	if u.Setup != nil {
		u.Close()
	}
}

func (u recoverySetup) plan(req Request) (items []change.SetupItem, initrds bool, err error) {
	switch {
	case u.Setup == nil:
		return nil, false, nil
	case req.Remove:
		return u.PlanRemove()
	}
	return u.Plan()
}

func (u recoverySetup) do(req Request) error {
	switch {
	case u.Setup == nil:
		return nil
	case req.Remove:
		return u.Remove()
	}
	return u.Install()
}

func fillSetup(r *change.SetupReport, s *recovery.State) {
	r.Container, r.Tool, r.Unit, r.Init, r.InitPath = s.Container, s.Tool, s.Unit, s.Init, s.InitPath
	r.Kernels = append([]change.BootKernel{}, s.Kernels...)
	r.Lacks = append([]string{}, s.Lacks()...)
}

// lockSetup keeps updates out meanwhile: an initrd that is made in the middle of one
// would hold a mixture. A tree without a store has none to keep out.
func lockSetup(req Request) (release func(), err error) {
	if req.PlanOnly {
		return func() {}, nil
	}
	if req.Live() {
		lock, err := takeLock(req)
		if err != nil {
			return nil, err
		}
		return func() { lock.Close() }, nil
	}
	if _, err := os.Lstat(filepath.Join(req.Root, transact.Dir)); err != nil {
		return func() {}, nil
	}
	s, err := openSession(&Engine{}, req, readOnly)
	if err != nil {
		return nil, err
	}
	if err := s.store.Lock(); err != nil {
		s.close()
		return nil, err
	}
	return s.close, nil
}

// ownPrograms finds liveupd-recover beside this program, or where a package has it.
func ownPrograms() (recovery.Programs, error) {
	var p recovery.Programs
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		return p, fmt.Errorf("cannot find our own program: %w", err)
	}
	p.Liveupd = exe
	for _, dir := range []string{filepath.Dir(exe), "/usr/lib/liveupd", "/usr/local/lib/liveupd"} {
		name := filepath.Join(dir, "liveupd-recover")
		if st, err := os.Stat(name); err == nil && st.Mode().IsRegular() {
			p.Recover = name
			return p, nil
		}
	}
	return p, change.WithHint(fmt.Errorf("cannot find liveupd-recover beside %s", exe), "install both programs in one folder")
}

// rebuildInitrds runs the tool that makes initrds: here, or chrooted into a tree, with
// mounts of its own that go with it.
func rebuildInitrds(ctx context.Context, req Request, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if !req.Live() {
		const script = `set -e
root=$1
shift
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
exec chroot "$root" "$@"`
		cmd = exec.CommandContext(ctx, "unshare", append([]string{
			"--mount", "--propagation", "private", "/bin/sh", "-c", script, "liveupd-setup", req.Root,
		}, argv...)...)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root"}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("the initrds were not made anew: %s: %w%s", strings.Join(argv, " "), err, quoteOutput(out))
	}
	return nil
}
