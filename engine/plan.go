package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/diff"
	"github.com/liveupd/liveupd/inspect"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/internal/trust"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/planner"
	"github.com/liveupd/liveupd/rootfs"
	"github.com/liveupd/liveupd/writable"
)

// planned is a plan with all that carrying it out needs.
type planned struct {
	plan   *change.Plan
	delta  *change.Delta
	src    *update      // nil for a rollback
	claim  *trust.Claim // what a signed update says of itself; nil for others
	root   *sys.FD      // what a repair without a source reads from
	result *diff.Result
	base   *catalog.Base
	facts  *change.Facts
	mounts *nsmount.Picture // when it was planned; nil where nothing will be committed
	// expect is what generators should have made after a daemon-reload, by path;
	// nil where that was not looked at.
	expect map[string]string
	// held is given back when the plan is carried out or dropped.
	held []func()
	// yield gives back those of the package manager's locks that dpkg takes itself; nil where
	// none are held.
	yield func() (release func(), err error)
	// takes: the content is ours and may be moved.
	takes bool
	// records are the new record where the result does not tell it.
	records iter.Seq2[string, *change.Node]
	// restore are the steps that the update which is taken back had carried out.
	restore []change.Step
}

func (p *planned) close() {
	if p == nil {
		return
	}
	if p.src != nil {
		p.src.Close()
		p.src = nil
	}
	for _, release := range slices.Backward(p.held) {
		release()
	}
	p.held = nil
}

func (e *Engine) plan(ctx context.Context, req Request, ev Events) (any, error) {
	// It holds two trees and every path that changes: a tenth of the time for a
	// fifth of the memory.
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	s, err := openSession(e, req, cacheOnly)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.noteUnfinished(); err != nil {
		return nil, err
	}
	p, err := s.planSource(ctx, ev)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := expected(req, p.plan); err != nil {
		return nil, err
	}
	p.close()
	if err := s.boundCaches(); err != nil {
		s.warnings = append(s.warnings, err.Error())
	}
	p.plan.Warnings = append(p.plan.Warnings, s.warnings...)
	s.warnings = nil
	return p.plan, nil
}

// noteUnfinished refuses to plan over a transaction that was cut off: what is
// read now is not what an apply, which recovers first, would find.
func (s *session) noteUnfinished() error {
	list, err := s.store.List()
	if err != nil {
		return err
	}
	if g, ok := unfinished(list); ok && g.State != "staging" {
		return change.WithHint(fmt.Errorf("cannot plan: transaction %s is unfinished (%s)", g.ID, g.State), "run: liveupd recover")
	}
	return nil
}

func expected(req Request, p *change.Plan) error {
	if req.Expect != "" && req.Expect != p.ID {
		return change.WithHint(fmt.Errorf("%w: the plan is %s now, not %s", change.ErrDrift, p.ID, req.Expect),
			"look at the new plan with: liveupd apply --plan")
	}
	return nil
}

// planSource walks from the source to the plan. Only caches are written.
func (s *session) planSource(ctx context.Context, ev Events) (_ *planned, err error) {
	if s.usesApt() {
		return s.planApt(ctx, ev)
	}
	p := &planned{}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.src, err = s.openSource(ctx, ev); err != nil {
		return nil, err
	}
	if p.claim, err = s.judgeTrust(p.src); err != nil {
		return nil, err
	}
	if p.base, _, err = s.currentBase(); err != nil {
		return nil, err
	}
	m := p.src.Manifest()
	rules, err := writable.New(s.rulesOptions(p.src.fromWhole(), p.src.owns(), m.Never, p.base))
	if err != nil {
		return nil, err
	}
	sourceIndex, sourceName := s.sourceIndex(p.src)
	ev.progress("reading", 0, 0, "files", s.req.Source)
	o := s.diffOptions(ev)
	o.SourceIndex, o.Implied = sourceIndex, p.src.isImplied
	if o.IgnoreLabels, err = strangeLabels(p.src); err != nil {
		return nil, err
	}
	foreign := foreignRules{rules, s.root.Foreign()}
	if p.result, err = diff.Compare(ctx, p.src, s.patchRules(p.src, foreign), o); err != nil {
		return nil, err
	}
	if err := foreign.refuse(p.result.Delta); err != nil {
		return nil, err
	}
	if err := p.src.Finish(); err != nil {
		return nil, err
	}
	p.delta = p.result.Delta
	if err := errors.Join(s.judgeVolumes(p.delta), s.probe(p.delta), s.canSnapshot()); err != nil {
		return nil, err
	}
	s.saveIndexes(sourceIndex, sourceName)
	if err := s.libraryCache(ctx, p, p.src.Root(), ev); err != nil {
		return nil, err
	}
	if err := s.presetLinks(ctx, p, p.src.Root()); err != nil {
		return nil, err
	}
	if err := s.decide(ctx, p, p.src.Root(), change.Policy{Max: s.req.Max, AllowRemovals: s.req.AllowRemovals, Bootme: m.Bootme, Snapshot: s.req.Snapshot}, ev); err != nil {
		return nil, err
	}
	p.plan.Source, p.plan.Name, p.plan.Version, p.plan.Sequence = s.req.Source, m.Name, m.Version, m.Sequence
	p.plan.SignedBy = p.src.signedBy()
	p.plan.Signed = p.plan.SignedBy != ""
	p.plan.Warnings = append(p.plan.Warnings, p.src.Warnings()...)
	p.plan.Warnings = append(p.plan.Warnings, trustWarnings(p.claim)...)
	p.plan.Warnings = append(p.plan.Warnings, foreign.warnings(p.src.Root())...)
	p.plan.Warnings = append(p.plan.Warnings, s.fleeting(p.delta)...)
	if !p.plan.Signed {
		p.plan.Warnings = slices.Insert(p.plan.Warnings, 0, "the source is unsigned: nobody vouches for its content")
	}
	return p, nil
}

// rulesOptions avoids the trap of a nil base in a non-nil interface.
func (s *session) rulesOptions(whole bool, owns, never []string, base *catalog.Base) writable.Options {
	o := writable.Options{Whole: whole, Owns: owns, Never: never}
	if base != nil {
		o.Base = base
	}
	if s.req.Live() {
		o.Kernel = sys.KernelRelease()
	}
	return o
}

func (s *session) diffOptions(ev Events) diff.Options {
	o := diff.Options{
		Live: s.vols[0].Dir, Index: s.liveIndex, AllowRemovals: s.req.AllowRemovals, Mounts: s.root.Covered(), Hiding: s.root.Hiding(),
		Progress: func(files, _ int64) { ev.progress("reading", files, 0, "files", "") },
	}
	for _, v := range s.vols {
		o.Volumes = append(o.Volumes, diff.Volume{Mount: v.Mount, Dir: v.Dir})
	}
	return o
}

// decide reads both trees and the running host, and makes the plan for p.delta,
// whose new content lies below content.
func (s *session) decide(ctx context.Context, p *planned, content *sys.FD, policy change.Policy, ev Events) (err error) {
	ev.progress("planning", 0, 0, "", "")
	if err := s.keepsItself(p.delta); err != nil {
		return err
	}
	s.govern(&policy)
	in := change.Input{Delta: p.delta, Policy: policy, Restore: p.restore, Facts: &change.Facts{}, Old: &change.Tree{}, New: &change.Tree{}}
	running := s.req.Live() && systemd.Booted()
	if s.mode == readWrite && !p.delta.Empty() {
		p.mounts = s.picture()
	}
	var b *bus
	if running {
		b = openBus(ctx, askedOfPlanned, true)
		defer b.close()
		if err := s.readHost(ctx, b, p.delta, in.Facts); err != nil {
			return err
		}
	}
	if !p.delta.Empty() {
		if p.expect, err = s.readTrees(ctx, &in, content, running, ev); err != nil {
			return err
		}
	}
	if err := s.readSettings(&in, content, running); err != nil {
		return err
	}
	if err := s.packagesForRules(&in, content); err != nil {
		return err
	}
	p.facts = in.Facts
	plan, lacks := planner.Decide(in)
	for len(lacks) > 0 {
		if err := b.learn(ctx, lacks); err != nil {
			return err
		}
		plan, lacks = planner.Decide(in)
	}
	p.plan = plan
	if running && s.mode == readWrite {
		if err := s.learnGroups(ctx, b, plan); err != nil {
			return err
		}
	}
	p.plan.Root = s.req.Root
	s.warnUnrecovered(p.plan)
	s.dropAbsentChecks(p.plan, content, p.delta)
	return nil
}

// askedOfPlanned is what a plan needs to know of every service that runs.
const askedOfPlanned = change.FieldNames | change.FieldFragment | change.FieldType

// readHost fills the facts from systemd and from the processes.
func (s *session) readHost(ctx context.Context, b *bus, d *change.Delta, facts *change.Facts) error {
	if !d.Empty() {
		vols := make([]inspect.Volume, 0, len(s.vols))
		for _, v := range s.vols {
			vols = append(vols, inspect.Volume{Mount: v.Mount, Dir: v.Dir})
		}
		got, err := inspect.Collect(ctx, inspect.Request{Delta: d, Volumes: vols, Manager: b, Own: s.req.Own})
		if err != nil {
			return err
		}
		*facts = *got
	}
	if _, err := b.Units(ctx); err != nil {
		return err
	}
	if err := b.all(ctx, change.FieldNames); err != nil {
		return err
	}
	users, err := b.Users(ctx)
	if err != nil {
		return err
	}
	facts.Running, facts.Units, facts.SystemdVersion = true, b.units, b.version
	facts.Users = users
	return nil
}

// learnGroups fetches the control groups of the units that are acted on, or
// deferred: they may have to stand still for the swap.
func (s *session) learnGroups(ctx context.Context, b *bus, plan *change.Plan) error {
	var units []*change.UnitState
	for _, u := range plan.Units {
		if st := b.units[u.Unit]; st != nil && u.Manager == "" {
			units = append(units, st)
		}
	}
	return b.Fill(ctx, units, change.FieldGroup)
}

// readTrees loads what the old and the new tree say of their units, and tells
// what generators should have made when the new one's have run.
func (s *session) readTrees(ctx context.Context, in *change.Input, content *sys.FD, running bool, ev Events) (expect map[string]string, err error) {
	vols := s.rootVolumes()
	if running {
		// Generated and transient units, and drop-ins, lie in /run, which no file
		// system of the root holds.
		run, err := sys.OpenRoot("/run")
		if err != nil {
			return nil, fmt.Errorf("cannot read the generated units: %w", err)
		}
		defer run.Close()
		vols = append(vols, rootfs.Volume{Mount: "/run", Dir: run})
	}
	oldView := rootfs.Volumes(vols...)
	newView := rootfs.Overlay(oldView, in.Delta, content)
	if running {
		made, err := s.previewGenerators(ctx, in.Delta, content, oldView, newView, ev)
		if err != nil {
			return nil, fmt.Errorf("cannot preview the generators: %w", err)
		}
		if made != nil {
			in.Generated, expect = made.plan, made.expect
			newView = made.overlay(oldView, in.Delta, content)
		}
	}
	o := loadOptions(in.Facts.Units)
	o.Run, o.Static = running, !running
	if in.Old, err = rootfs.Load(ctx, oldView, o); err != nil {
		return nil, fmt.Errorf("cannot read the units of the old tree: %w", err)
	}
	if in.New, err = rootfs.Load(ctx, newView, o); err != nil {
		return nil, fmt.Errorf("cannot read the units of the new tree: %w", err)
	}
	rootfs.MarkSameCode(oldView, newView, in)
	var etc []string
	for _, e := range in.Delta.Entries {
		if strings.HasPrefix(e.Path, "/etc/") {
			etc = append(etc, e.Path)
		}
	}
	if len(etc) > 0 {
		if other := rootfs.Packages(newView).Other(); other != "" {
			in.New.Warnings = append(in.New.Warnings, fmt.Sprintf(
				"the database of %s is not read: which service a file in /etc belongs to is told by the unit files and the built-in table alone", other))
		}
		rootfs.ConfigReaders(oldView, in.Old, etc)
		rootfs.ConfigReaders(newView, in.New, etc)
	}
	if running {
		(&userTree{s: s, delta: in.Delta, content: content, etc: etc}).trees(ctx, in.Facts)
	}
	return expect, nil
}

func (s *session) rootVolumes() []rootfs.Volume {
	vols := make([]rootfs.Volume, 0, len(s.vols)+1)
	for _, v := range s.vols {
		vols = append(vols, rootfs.Volume{Mount: v.Mount, Dir: v.Dir})
	}
	return vols
}

// dropAbsentChecks removes the validators whose program the new tree lacks,
// and says so: a check that cannot run must not look as if it had passed.
func (s *session) dropAbsentChecks(p *change.Plan, content *sys.FD, d *change.Delta) {
	if len(p.Checks) == 0 {
		return
	}
	view := rootfs.Overlay(rootfs.Volumes(s.rootVolumes()...), d, content)
	dropped := map[string]bool{}
	p.Checks = slices.DeleteFunc(p.Checks, func(c change.Check) bool {
		if findProgram(view, c.Argv[0]) {
			return false
		}
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s is not validated: the new tree has no %s", c.Path, c.Argv[0]))
		dropped[strings.Join(c.Argv, " ")] = true
		return true
	})
	p.Steps = slices.DeleteFunc(p.Steps, func(st change.Step) bool { return st.Do == "check" && dropped[st.Target] })
	for i := range p.Steps {
		p.Steps[i].Seq = i + 1
	}
}

// checkPath is where a validator's program is looked for.
var checkPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

func findProgram(v rootfs.View, name string) bool {
	candidates := []string{name}
	if !path.IsAbs(name) {
		candidates = candidates[:0]
		for _, dir := range checkPath {
			candidates = append(candidates, path.Join(dir, name))
		}
	}
	for _, c := range candidates {
		if _, err := v.Resolve(c); err == nil {
			return true
		}
	}
	return false
}

// ownUnits are the units that this process runs in, for a request.
func ownUnits() []string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	var out []string
	for part := range strings.SplitSeq(strings.TrimSpace(string(data)), "/") {
		if ext := path.Ext(part); ext == ".service" || ext == ".scope" {
			out = append(out, part)
		}
	}
	return out
}
