package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/rootfs"
	"github.com/liveupd/liveupd/sandbox"
	"github.com/liveupd/liveupd/source/apt"
)

// Kinds of source that are the package manager's: what its archives have, and files.
const (
	aptKind = "apt"
	debKind = "deb"
)

// aptLimit is how long the package manager may take, downloads among it.
const aptLimit = 2 * time.Hour

// usesApt tells whether the package manager brings the update. Where nobody has
// named a source it does, if the root has it.
func (s *session) usesApt() bool {
	if s.req.Source == "" && s.hasApt() {
		s.req.Source = aptKind
	}
	kind, _, _ := strings.Cut(s.req.Source, ":")
	return kind == aptKind || kind == debKind
}

// hasApt tells whether the root has a package manager that this program can drive.
func (s *session) hasApt() bool {
	view := rootfs.Volumes(s.rootVolumes()...)
	for _, p := range []string{"/usr/bin/apt-get", apt.StatusPath} {
		if _, err := view.Resolve(p); err != nil {
			return false
		}
	}
	return true
}

// aptOptions reads the request: the flags, and a package file that the source names.
func (s *session) aptOptions() (apt.Options, error) {
	var o apt.Options
	if s.req.Apt != nil {
		o = *s.req.Apt
	}
	kind, where, _ := strings.Cut(s.req.Source, ":")
	switch {
	case kind == debKind && where == "":
		return o, usage("cannot read source %q: want deb:FILE", s.req.Source)
	case kind == debKind:
		o.Debs = append([]string{where}, o.Debs...)
	case where != "":
		// apt:NAME is one package, or several with commas.
		o.Packages = append(strings.Split(where, ","), o.Packages...)
	}
	if err := o.Check(); err != nil {
		return o, Usage(err)
	}
	if !s.hasApt() {
		return o, change.WithHint(usage("cannot use source %q: the root has no apt and dpkg", s.req.Source), "name another source with --source SPEC")
	}
	return o, nil
}

// planApt has the package manager make the update over a view of the root, and plans
// for what it changed.
func (s *session) planApt(ctx context.Context, ev Events) (_ *planned, err error) {
	o, err := s.aptOptions()
	if err != nil {
		return nil, err
	}
	p := &planned{takes: true}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	locks, err := apt.Lock(s.volumeOf, s.mode == readWrite)
	if err != nil {
		return nil, err
	}
	p.held = append(p.held, locks.Release)
	p.yield = func() (func(), error) { locks.Yield(); return func() {}, nil }
	key := s.workKey(o)
	w, did := s.openKept(key)
	if w == nil {
		if w, err = s.openWork(); err != nil {
			return nil, err
		}
	}
	p.held = append(p.held, func() {
		if err := w.close(); err != nil {
			s.warnings = append(s.warnings, err.Error())
		}
	})
	if did == nil {
		if w, did, err = s.postpone(ctx, w, o, ev); err != nil {
			return nil, err
		}
	}
	if s.mode == cacheOnly {
		w.keep(key, did)
	}
	p.delta, p.root = did.delta, w.dir
	if p.base, _, err = s.currentBase(); err != nil {
		return nil, err
	}
	p.records = changedBase(p.base, p.delta)
	policy := change.Policy{Max: s.req.Max, AllowRemovals: true, Snapshot: s.req.Snapshot}
	if err := s.decide(ctx, p, w.dir, policy, ev); err != nil {
		return nil, err
	}
	did.tell(p.plan)
	did.tellLive(p.plan, p.facts)
	tellStopped(&did.recorded, p.plan, p.facts)
	p.plan.Source = s.req.Source
	p.plan.Warnings = append(p.plan.Warnings, s.warnings...)
	s.warnings = nil
	return p, nil
}

// aptWork is what the package manager did.
type aptWork struct {
	delta    *change.Delta
	packages []change.Package
	recorded apt.Recorded
	warnings []string
	// live is what was only unpacked, and has its other part on the live system.
	live      []liveData
	postponed []string
}

// tell adds to a plan what its Delta does not say.
func (a *aptWork) tell(p *change.Plan) {
	p.Packages, p.Conffiles, p.Asked = a.packages, a.recorded.Conffiles, a.recorded.Actions
	p.Warnings = append(p.Warnings, a.warnings...)
	for _, c := range a.recorded.Conffiles {
		if c.Kept {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s: the machine's version stays, the package's is laid beside", c.Path))
		} else {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s: the package's version is taken, the machine's is kept beside", c.Path))
		}
	}
	p.RebootAsked = a.recorded.Reboot
	if len(a.recorded.Reboot) > 0 {
		p.Warnings = append(p.Warnings, "packages ask for a reboot: "+strings.Join(a.recorded.Reboot, ", "))
	}
	if p.Empty() {
		return
	}
	verify := slices.IndexFunc(p.Steps, func(st change.Step) bool { return st.Do == "verify" })
	if verify < 0 {
		verify = len(p.Steps)
	}
	for i, line := range a.recorded.HostSteps {
		p.Steps = slices.Insert(p.Steps, verify+i, change.Step{Do: runStep, Target: line, Undo: runStep})
	}
	for i := range p.Steps {
		p.Steps[i].Seq = i + 1
	}
}

// runApt runs the package manager in the sandbox.
func (w *work) runApt(ctx context.Context, o apt.Options, ev Events) (*aptWork, error) {
	s := w.s
	for _, name := range []string{"lists", "archives"} {
		dir, err := ensureCache(s.k, w.home, name)
		if err != nil {
			return nil, fmt.Errorf("cannot make a folder for the package manager: %w", err)
		}
		dir.Close()
	}
	w.spec.OwnTmp = true
	w.spec.Binds = []nsmount.Bind{
		{From: "lists", To: apt.ListsDir, Home: true}, {From: "archives", To: apt.ArchivesDir, Home: true},
	}
	for i, deb := range o.Debs {
		w.spec.Binds = append(w.spec.Binds, nsmount.Bind{From: deb, To: apt.DebPath(i), ReadOnly: true})
	}
	spec := sandbox.Spec{
		Env: append(apt.Environment(), proxies(s.req.Env)...),
		Commands: []sandbox.Command{
			{Argv: []string{apt.ScriptPath, "fetch"}, Network: true, Phase: "fetching"},
			{Argv: []string{apt.ScriptPath, "install"}, Phase: "installing"},
		},
		Files: []sandbox.File{
			{Path: apt.ScriptPath, Mode: 0o755, Content: o.Script()},
			{Path: apt.PolicyPath, Mode: 0o755, Content: apt.PolicyScript},
		},
		Keep: apt.Keep,
	}
	if s.req.Live() && systemd.Booted() {
		spec.Init = "systemd"
	}
	container := containerManager()
	if container == "" {
		// As for generators (uncontained): a folder in the file's place.
		spec.Files = append(spec.Files, sandbox.File{Path: managerFile + "/none", Mode: 0o444})
	}
	if states := w.unitStates(ctx); states != nil {
		lay(&spec, 0o644, apt.Units(states))
	}
	lay(&spec, 0o755, apt.Stubs(container))
	phase := "fetching"
	res, err := w.runIn(ctx, spec, sandbox.Options{Timeout: aptLimit, OnPhase: func(now string) {
		phase = now
		ev.progress(now, 0, 0, "", "packages")
	}})
	if err != nil {
		return nil, aptFailed(ctx, phase, o.Debs, err)
	}
	did := &aptWork{recorded: apt.Read(res.Kept), postponed: o.Postponed}
	did.warnings = append(did.warnings, did.recorded.Warnings...)
	left := newLeftovers()
	did.delta, err = w.delta(ctx, func(p string) bool { return left.ignore(p) || apt.Ignored(p) }, ev)
	if err != nil {
		return nil, err
	}
	return did, w.judgeApt(did)
}

// ensureCache makes a folder that the package manager's own user may enter.
func ensureCache(k *sys.Kernel, home *sys.FD, name string) (*sys.FD, error) {
	if dir, err := sys.OpenDirAt(home, name); err == nil {
		return dir, nil
	}
	if err := k.Mkdir(home, name, 0o755); err != nil {
		return nil, err
	}
	return sys.OpenDirAt(home, name)
}

// proxies are what of the caller's environment a download needs.
func proxies(env []string) []string {
	var out []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		switch strings.ToLower(name) {
		case "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy":
			out = append(out, e)
		}
	}
	return out
}

// aptFailed says how apt failed. Files are named as who gave them names them, not as
// the sandbox does.
func aptFailed(ctx context.Context, phase string, debs []string, err error) error {
	quoteOutput := func(out []byte) string {
		text := quoteOutput(out)
		for i, deb := range debs {
			text = strings.ReplaceAll(text, apt.DebPath(i), deb)
		}
		return text
	}
	what := map[string]string{"fetching": "cannot get the packages", "installing": "cannot install the packages"}[phase]
	if failure, ok := errors.AsType[*sandbox.Failure](err); ok {
		if failure.Exit == apt.VerificationFailed {
			return fmt.Errorf("%s: apt refuses what the archive has: %w%s; %w%s", what, change.ErrVerification, complaint(failure.Output), ErrNothingCommitted, quoteOutput(failure.Output))
		}
		how := fmt.Sprintf("apt ended with status %d", failure.Exit)
		if failure.Signal != "" {
			how = "apt was ended: " + failure.Signal
		}
		err = fmt.Errorf("%s: %s; %w%s", what, how+failure.Limits()+complaint(failure.Output), ErrNothingCommitted, quoteOutput(failure.Output))
		if hint := aptWayOut(failure.Output); hint != "" {
			err = change.WithHint(err, hint)
		}
		return err
	}
	if stopped, ok := errors.AsType[*sandbox.Stopped](err); ok {
		if ctx.Err() != nil {
			return change.WithHint(fmt.Errorf("interrupted before the commit point: %w", ErrNothingCommitted), "run the same command again")
		}
		return fmt.Errorf("%s: %w; %w%s", what, stopped, ErrNothingCommitted, quoteOutput(stopped.Output))
	}
	return fmt.Errorf("%s: %w; %w", what, err, ErrNothingCommitted)
}

// complaint is the first thing that apt or dpkg calls an error, in brackets: whoever reads just the
// first line of ours (a mail's subject, the message of the day) is to know why.
func complaint(out []byte) string {
	const most = 300
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "E: "); ok || strings.HasPrefix(line, "dpkg: error") {
			if len(text) > most {
				text = strings.ToValidUTF8(text[:most], "") + "..."
			}
			return " (" + strings.TrimSuffix(text, ":") + ")"
		}
	}
	return ""
}

// judgeApt sorts out what of the package manager's work reaches the root.
func (w *work) judgeApt(did *aptWork) error {
	s, d := w.s, did.delta
	policy := sha256.Sum256([]byte(apt.PolicyScript))
	apt.Drop(d, func(e *change.Entry) bool {
		return e.Path == apt.PolicyPath && e.New != nil && (e.New.Digest == change.Digest(policy) || e.Op == change.Metadata)
	})
	old := rootfs.Volumes(s.rootVolumes()...)
	now := rootfs.Overlay(old, d, w.dir)
	before, err := old.ReadFile(apt.StatusPath)
	if err != nil {
		return fmt.Errorf("cannot read what is installed: %w", err)
	}
	after, err := now.ReadFile(apt.StatusPath)
	if err != nil {
		return fmt.Errorf("cannot read what is installed: %w", err)
	}
	did.packages = apt.Changed(before, after)
	finished := apt.Finished(before, after)
	for _, name := range finished {
		did.warnings = append(did.warnings, name+" was left half-configured by an earlier run of dpkg: its configuration is finished")
	}
	var asked []string
	for _, e := range d.Entries {
		if strings.HasPrefix(e.Path, "/var/") {
			asked = append(asked, e.Path)
		}
	}
	owners := map[string]bool{}
	for _, view := range []rootfs.View{old, now} {
		found, err := rootfs.Packages(view).Owners(asked...)
		if err != nil {
			return err
		}
		for p := range found {
			owners[p] = true
		}
	}
	judged := apt.Judge(d, func(p string) bool { return owners[p] })
	if err := s.refuseLive(did, judged.Live); err != nil {
		return err
	}
	apt.Drop(d, func(e *change.Entry) bool { return slices.Contains(judged.Dropped, e.Path) })
	if err := w.changedBeside(d, apt.Shared); err != nil {
		return err
	}
	if err := s.keepsKernel(d, "take the update", "boot the new kernel first"); err != nil {
		return err
	}
	if len(did.packages)+len(finished) == 0 && !slices.ContainsFunc(d.Entries, func(e change.Entry) bool { return !apt.Bookkeeping(e.Path) }) {
		apt.Drop(d, func(*change.Entry) bool { return true })
	}
	return nil
}

// keepsKernel refuses to take away the modules of the kernel that runs; what names the
// deed, and hint the way out.
func (s *session) keepsKernel(d *change.Delta, what, hint string) error {
	if !s.req.Live() {
		return nil
	}
	release := sys.KernelRelease()
	for _, dir := range []string{"/usr/lib/modules/", "/lib/modules/"} {
		at := path.Join(dir, release)
		for _, e := range d.Entries {
			if e.Op == change.Remove && (e.Path == at || strings.HasPrefix(e.Path, at+"/kernel/")) {
				return change.WithHint(fmt.Errorf("cannot %s: it removes the modules of the running kernel %s; %w", what, release, ErrNothingCommitted), hint)
			}
		}
	}
	return nil
}

// runStep is a program that the packages asked for on the host: it makes boot entries.
const runStep = "run"
