package engine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/rootfs"
)

// Limits of generators before a commit. A manager waits for 90 s.
const (
	generatorLimit  = 20 * time.Second
	generatorsLimit = 80 * time.Second
)

// generators previews what the new tree's generators will make at the
// daemon-reload that follows:
//
//  1. They are run in a view of the new tree, one after another, as the manager
//     would: with its three folders, its environment, and what anybody may read of
//     /run; without network, devices, sockets and most rights, and for a short time.
//  2. What they make is compared with what lies in /run/systemd/generator* now.
//  3. Where that differs, the old tree's are run in the same way. A difference
//     that they show as well does not come of the update, but of the view, or of
//     what the machine changed since its last daemon-reload: that generator's result is
//     not known beforehand.
type generators struct {
	s       *session
	old     rootfs.View // with /run
	after   rootfs.View
	content *sys.FD
	delta   *change.Delta
	env     []string
}

// generatorResult is what a preview found.
type generatorResult struct {
	plan *change.Generated
	// entries are the changes below /run, for a view of the machine after the daemon-reload.
	entries []change.Entry
	// expect is what should lie below /run then.
	expect map[string]string
}

// previewGenerators gives nil where nothing changes that a generator could read.
func (s *session) previewGenerators(ctx context.Context, d *change.Delta, content *sys.FD, old, after rootfs.View, ev Events) (*generatorResult, error) {
	g := &generators{s: s, old: old, after: after, content: content, delta: d}
	progs := rootfs.Generators(after)
	if !g.concerned(append(slices.Clone(progs), rootfs.Generators(old)...)) {
		return nil, nil
	}
	ev.progress("previewing", 0, 0, "", "generators")
	ctx, cancel := context.WithTimeout(ctx, generatorsLimit)
	defer cancel()
	g.env = generatorEnv(ctx)
	res, err := g.run(ctx, progs)
	if _, ok := errors.AsType[*sys.UnsupportedError](err); ok || errors.Is(err, context.DeadlineExceeded) {
		return &generatorResult{plan: &change.Generated{Unseen: err.Error()}}, nil
	}
	return res, err
}

// concerned tells whether something changes that a generator could read. Of one
// that is not systemd's any configuration could be; a unit that comes or goes hides
// what others make, or no longer does.
func (g *generators) concerned(progs []rootfs.Generator) bool {
	strange := slices.ContainsFunc(progs, func(p rootfs.Generator) bool { return !p.Known() })
	for i := range g.delta.Entries {
		e := &g.delta.Entries[i]
		if e.Op == change.Metadata && e.Aspects&change.AspectMode == 0 || e.Path == rootfs.LdCache {
			continue
		}
		moves := e.Op != change.Metadata && (e.Op != change.Replace || e.Aspects&change.AspectType != 0 || e.New.Type == change.Symlink)
		for _, dir := range []string{"/etc/systemd/", "/usr/lib/systemd/", "/lib/systemd/", "/usr/local/lib/systemd/"} {
			if (moves || strange) && strings.HasPrefix(e.Path, dir) {
				return true
			}
		}
		if strange && strings.HasPrefix(e.Path, "/etc/") || slices.ContainsFunc(progs, func(p rootfs.Generator) bool { return p.Reads(e.Path) }) {
			return true
		}
	}
	return false
}

// run compares what the generators make.
func (g *generators) run(ctx context.Context, progs []rootfs.Generator) (*generatorResult, error) {
	is, failed, err := g.make(ctx, g.delta, progs)
	if err != nil {
		return nil, err
	}
	now := g.now()
	res := &generatorResult{plan: &change.Generated{Files: map[string]change.GeneratedFile{}, Unsure: map[string]string{}}, expect: map[string]string{}}
	differs := differing(now, is)
	var was map[string]generated
	wasFailed := map[string]string{}
	before := rootfs.Generators(g.old)
	if len(differs) > 0 || len(failed) > 0 {
		if was, wasFailed, err = g.make(ctx, &change.Delta{}, before); err != nil {
			return nil, err
		}
	}
	for name, why := range failed {
		res.plan.Unsure[name] = why
		if _, both := wasFailed[name]; !both {
			res.plan.Unsure[name] = "it fails with the update: " + why
		}
	}
	for p, f := range now {
		res.expect[p] = f.meaning()
	}
	all := append(slices.Clone(progs), before...)
	for _, p := range differs {
		f, there := is[p]
		by := f.by
		if !there {
			by = was[p].by
		}
		if failed[by] != "" || by == "" && len(failed) > 0 {
			continue // told by its name already
		}
		if by == "" {
			by = "the generator of " + unitOf(p)
		}
		from := g.cause(by, all, f, was[p])
		if why := unsure(from, same(was, now, p), same(was, is, p)); why != "" {
			res.plan.Unsure[by] = why
			continue
		}
		res.plan.Files[p] = change.GeneratedFile{By: by, From: cmp.Or(from, g.only())}
		delete(res.expect, p)
		if there {
			res.expect[p] = f.meaning()
		}
		res.entries = append(res.entries, g.entry(p, f, there))
	}
	return res, nil
}

// unsure tells why it is not known beforehand what a generator will make in
// place of what it has made, "" where it is: that the old tree makes in a view
// what lies there vouches for the view. Where the update changes what the generator reads, and
// the machine had changed it before as well, what counts is the new tree.
func unsure(from string, faithful, unchanged bool) string {
	switch {
	case faithful:
		return ""
	case unchanged:
		return "what it has made differs from what it makes in a view of the root, without the update as well"
	case from == "":
		return "it makes something else of the same each time"
	}
	return ""
}

// generated is one file or link that a generator makes.
type generated struct {
	by      string
	target  string // of a link
	content []byte
	mode    uint32
	link    bool
}

// meaning is its content without comments and empty lines.
func (f generated) meaning() string {
	if f.link {
		return "-> " + f.target
	}
	var b strings.Builder
	for line := range bytes.Lines(f.content) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' && line[0] != ';' {
			b.Write(line)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func same(a, b map[string]generated, p string) bool {
	x, inA := a[p]
	y, inB := b[p]
	return inA == inB && (!inA || x.meaning() == y.meaning())
}

// differing are the paths whose meaning differs, sorted.
func differing(a, b map[string]generated) []string {
	all := map[string]bool{}
	for p := range a {
		all[p] = true
	}
	for p := range b {
		all[p] = true
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(p string) bool { return same(a, b, p) })
}

// now is what the running manager's generators have made.
func (g *generators) now() map[string]generated {
	return readGenerated(g.old)
}

func readGenerated(v rootfs.View) map[string]generated {
	out := map[string]generated{}
	for p, n := range rootfs.Generated(v) {
		f := generated{target: n.Target, mode: n.Mode, link: n.Type == change.Symlink}
		if n.Type == change.Regular {
			var err error
			if f.content, err = v.ReadFile(p); err != nil {
				continue // it has just gone
			}
		}
		out[p] = f
	}
	return out
}

// make runs generators in a view of the root with d.
func (g *generators) make(ctx context.Context, d *change.Delta, progs []rootfs.Generator) (out map[string]generated, failed map[string]string, err error) {
	view, err := g.s.preview(ctx, d, g.content, read)
	if err != nil {
		return nil, nil, err
	}
	session := nsmount.ViewSession{
		Env: g.env, NoNetwork: true, RunFiles: true,
		Fresh: slices.Concat(rootfs.GeneratedDirs, uncontained()), Take: rootfs.GeneratedDirs,
	}
	for _, p := range progs {
		session.Programs = append(session.Programs, nsmount.ViewProgram{Argv: append([]string{p.Path}, rootfs.GeneratedDirs...), Limit: generatorLimit})
	}
	res, err := view.Do(ctx, session)
	if err != nil {
		return nil, nil, err
	}
	out, failed = map[string]generated{}, map[string]string{}
	for i, end := range res.Programs {
		if err := end.Err(); err != nil {
			failed[progs[i].Name] = err.Error()
			if words, _, _ := strings.Cut(strings.TrimSpace(string(end.Output)), "\n"); words != "" {
				failed[progs[i].Name] += ": " + words
			}
		}
	}
	for _, f := range res.Found {
		if f.Type != change.Regular && f.Type != change.Symlink {
			continue
		}
		x := generated{target: string(f.Target), content: f.Content, mode: f.Mode, link: f.Type == change.Symlink}
		if f.By >= 0 {
			x.by = progs[f.By].Name
		}
		out[string(f.Path)] = x
	}
	return out, failed, nil
}

// unread are folders of an update that no generator reads: they may be large.
var unread = []string{
	"/boot/", "/usr/lib/modules/", "/lib/modules/", "/usr/lib/firmware/", "/lib/firmware/", "/usr/src/", "/usr/include/", "/usr/lib/debug/",
	"/usr/share/doc/", "/usr/share/man/", "/usr/share/info/", "/usr/share/locale/", "/usr/share/icons/", "/usr/share/zoneinfo/", "/usr/share/fonts/",
}

func read(p string) bool {
	return !slices.ContainsFunc(unread, func(dir string) bool { return strings.HasPrefix(p, dir) })
}

// generatorEnv is what the manager gives its generators beside a PATH
// (systemd.generator(7)).
func generatorEnv(ctx context.Context) []string {
	env := []string{"SYSTEMD_SCOPE=system", "SYSTEMD_IN_INITRD=0", "SYSTEMD_FIRST_BOOT=0"}
	_, err := os.Stat(containerFile)
	contained := err == nil
	if bus, err := systemd.Connect(ctx); err == nil {
		if v := bus.Manager(ctx, "Architecture"); v != "" {
			env = append(env, "SYSTEMD_ARCHITECTURE="+v)
		}
		if v := bus.Manager(ctx, "ConfidentialVirtualization"); v != "" {
			env = append(env, "SYSTEMD_CONFIDENTIAL_VIRTUALIZATION="+v)
		}
		if v := bus.Manager(ctx, "Virtualization"); v != "" {
			kind := "vm:"
			if contained {
				kind = "container:"
			}
			env = append(env, "SYSTEMD_VIRTUALIZATION="+kind+v)
		}
		bus.Close()
	}
	if contained {
		// There the manager's own arguments stand for the kernel's command line.
		if line, err := os.ReadFile("/proc/1/cmdline"); err == nil {
			words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
			env = append(env, "SYSTEMD_PROC_CMDLINE="+strings.Join(words[1:], " "))
		}
	}
	return env
}

// cause is the changed path that a generator makes something else of, "" where
// that cannot be told.
func (g *generators) cause(by string, progs []rootfs.Generator, files ...generated) string {
	changes := func(p string) bool {
		return slices.ContainsFunc(g.delta.Entries, func(e change.Entry) bool { return e.Path == p })
	}
	for _, f := range files {
		for line := range strings.Lines(string(f.content)) {
			if p, ok := strings.CutPrefix(strings.TrimSpace(line), "SourcePath="); ok && changes(p) {
				return p
			}
		}
	}
	for _, e := range g.delta.Entries {
		if e.Old.IsDir() || e.New.IsDir() {
			continue
		}
		for i := range progs {
			if progs[i].Name == by && progs[i].Reads(e.Path) {
				return e.Path
			}
		}
	}
	return ""
}

// only is the one file of /etc that the update changes: who makes something else
// than without the update has it from there, whatever it is known to read.
func (g *generators) only() string {
	only := ""
	for _, e := range g.delta.Entries {
		if strings.HasPrefix(e.Path, "/etc/") && !e.New.IsDir() && e.Path != rootfs.LdCache {
			if only != "" {
				return ""
			}
			only = e.Path
		}
	}
	return only
}

// entry is a change below /run, for a view of what the manager will read.
func (g *generators) entry(p string, f generated, there bool) change.Entry {
	e := change.Entry{Path: p, Op: change.Remove}
	if n, err := g.old.Lstat(p); err == nil {
		e.Old = n
	}
	if !there {
		return e
	}
	e.Op, e.MadeBy = change.Add, f.by
	if e.Old != nil {
		e.Op, e.Aspects = change.Replace, change.AspectContent
	}
	e.New = &change.Node{Type: change.Symlink, Mode: 0o777, Target: f.target}
	if !f.link {
		e.Made = append([]byte{}, f.content...)
		e.New = &change.Node{Type: change.Regular, Mode: f.mode, Size: int64(len(f.content)), Digest: change.Digest(sha256.Sum256(f.content))}
	}
	return e
}

// overlay is the view of the machine after the update and its daemon-reload.
func (r *generatorResult) overlay(old rootfs.View, d *change.Delta, content *sys.FD) rootfs.View {
	with := *d
	with.Entries = append(slices.Clone(d.Entries), r.entries...)
	have := map[string]bool{}
	for _, e := range r.entries {
		for dir := path.Dir(e.Path); e.New != nil && !have[dir] && len(dir) > len("/run/systemd"); dir = path.Dir(dir) {
			have[dir] = true
			if _, err := old.Lstat(dir); err != nil {
				with.Entries = append(with.Entries, change.Entry{Path: dir, Op: change.Add, New: &change.Node{Type: change.Directory, Mode: 0o755}})
			}
		}
	}
	return rootfs.Overlay(old, &with, content)
}

// compareGenerated looks, after a daemon-reload, at what generators have made,
// and tells of units that are not what was planned for.
func (r *run) compareGenerated() {
	expect := r.p.expect
	reloaded := slices.ContainsFunc(r.report.Steps, func(st change.StepResult) bool {
		return (st.Step.Do == "daemon-reload" || st.Step.Do == "daemon-reexec") && st.Result == "done"
	})
	if expect == nil || !reloaded {
		return
	}
	run, err := sys.OpenRoot("/run")
	if err != nil {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf("the generated units were not looked at: %v", err))
		return
	}
	defer run.Close()
	is := readGenerated(rootfs.Volumes(append(r.s.rootVolumes(), rootfs.Volume{Mount: "/run", Dir: run})...))
	units := map[string]bool{}
	for p, f := range is {
		if want, known := expect[p]; !known || want != f.meaning() {
			units[unitOf(p)] = true
		}
	}
	for p := range expect {
		if _, there := is[p]; !there {
			units[unitOf(p)] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(units)) {
		r.s.warnings = append(r.s.warnings, fmt.Sprintf(
			"%s: its generator made it otherwise than was seen beforehand; nothing was started, stopped or restarted for that: see systemctl cat %s", name, name))
	}
}

// unitOf is the unit that a file or link below a folder of generators says something of.
func unitOf(p string) string {
	dir, name := path.Split(p)
	if folder := path.Base(dir); strings.HasSuffix(folder, ".d") {
		return strings.TrimSuffix(folder, ".d")
	}
	return name
}
