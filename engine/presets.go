package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/planner"
	"github.com/liveupd/liveupd/rootfs"
)

// presetLinks adds to an update the links that enable its new units by the presets
// of the tree, as systemctl preset makes them. They are part of the
// transaction: the commit lays them, and what takes it back takes them away.
func (s *session) presetLinks(ctx context.Context, p *planned, content *sys.FD) error {
	if !bringsUnits(p.delta) {
		return nil
	}
	old := rootfs.Volumes(s.rootVolumes()...)
	before, err := rootfs.Load(ctx, old, rootfs.LoadOptions{})
	if err != nil {
		return fmt.Errorf("cannot read the units of the old tree: %w", err)
	}
	view := rootfs.Overlay(old, p.delta, content)
	after, err := rootfs.Load(ctx, view, rootfs.LoadOptions{})
	if err != nil {
		return fmt.Errorf("cannot read the units of the new tree: %w", err)
	}
	links := planner.PresetLinks(before, after)
	m := &made{s: s, by: "preset", old: old, entries: map[string]*change.Entry{}}
	for i := range p.delta.Entries {
		m.entries[p.delta.Entries[i].Path] = &p.delta.Entries[i]
	}
	for _, l := range links {
		if _, err := view.Lstat(l.Path); !errors.Is(err, fs.ErrNotExist) {
			continue // there is something: it was the administrator's, or is the update's own
		}
		m.mtime = latest(p.delta, []string{l.Target})
		if err := m.enable(l, view); err != nil {
			return err
		}
	}
	p.delta = m.delta(p.delta)
	return s.judgeVolumes(p.delta)
}

// enable enters a link, and its folder where that is not there.
func (m *made) enable(l planner.Link, view rootfs.View) error {
	dir := path.Dir(l.Path)
	if _, err := view.Lstat(dir); errors.Is(err, fs.ErrNotExist) && !slices.ContainsFunc(m.out, func(e change.Entry) bool { return e.Path == dir }) {
		if err := m.add(dir, &change.Node{Type: change.Directory, Mode: 0o755, MtimeNS: m.mtime}, nil); err != nil {
			return err
		}
	}
	return m.add(l.Path, &change.Node{Type: change.Symlink, Mode: 0o777, Target: l.Target, MtimeNS: m.mtime}, nil)
}

// bringsUnits tells whether a unit file of the system is added.
func bringsUnits(d *change.Delta) bool {
	return slices.ContainsFunc(d.Entries, func(e change.Entry) bool {
		dir := path.Dir(e.Path)
		return e.Op == change.Add && strings.HasSuffix(dir, "/systemd/system") && slices.Contains(unitSuffixes, path.Ext(e.Path))
	})
}

// tellPresets records that the links of units are staged.
func (r *run) tellPresets(began time.Time) {
	for _, st := range r.p.plan.Steps {
		if st.Do == "preset" {
			r.step(st.Do, st.Target, st.Undo, began, nil)
		}
	}
}
