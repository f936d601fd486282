package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/planner"
	"github.com/liveupd/liveupd/rootfs"
)

// newer looks which of the files that services read, and that no process
// shows, changed since the first of these services began.
func (s *session) newer(ctx context.Context, b *bus) (*planner.Newer, error) {
	units, err := b.Units(ctx)
	if err != nil || len(units) == 0 {
		return nil, err
	}
	clocks, err := sys.ReadClocks()
	if err != nil {
		return nil, err
	}
	run, err := sys.OpenRoot("/run")
	if err != nil {
		return nil, fmt.Errorf("cannot read the generated units: %w", err)
	}
	defer run.Close()
	view := rootfs.Volumes(append(s.rootVolumes(), rootfs.Volume{Mount: "/run", Dir: run})...)
	o := loadOptions(units)
	o.Mapped = true
	tree, err := rootfs.Load(ctx, view, o)
	if err != nil {
		return nil, fmt.Errorf("cannot read the units: %w", err)
	}
	if err := unreloaded(ctx, b, tree); err != nil {
		return nil, err
	}
	n := &planner.Newer{Tree: tree, Changed: map[string]int64{}, Epoch: clocks.Real - clocks.Monotonic}
	look := recently{since: firstStart(units, n.Epoch), found: n.Changed, dirs: map[string]int64{}}
	for _, name := range planner.Reads(tree, units) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		look.pattern(name)
	}
	// Which services read a file of /etc is known of those that changed.
	look.below("/etc")
	n.Denied = append(look.denied, tree.Denied...)
	etc := slices.DeleteFunc(slices.Sorted(maps.Keys(n.Changed)), func(name string) bool { return !strings.HasPrefix(name, "/etc/") })
	if len(etc) > 0 {
		said := len(tree.Warnings)
		rootfs.ConfigReaders(view, tree, etc)
		n.Warnings = tree.Warnings[said:]
	}
	return n, nil
}

// firstStart is when the first of the services began that run now, in
// nanoseconds since the epoch.
func firstStart(units map[string]*change.UnitState, epoch int64) int64 {
	first := int64(math.MaxInt64)
	for _, u := range units {
		if u.Active() && u.InvokedMonoUSec > 0 && strings.HasSuffix(u.Name, ".service") {
			first = min(first, epoch+int64(u.InvokedMonoUSec)*1000)
		}
	}
	return first
}

// recently collects the files that changed since a moment.
type recently struct {
	since  int64
	denied []string
	found  map[string]int64
	dirs   map[string]int64 // when a folder's list of names last changed
}

// pattern looks at a path, a glob, or all that is below a folder.
func (r *recently) pattern(name string) {
	if dir, ok := strings.CutSuffix(name, "/**"); ok {
		dirs, _ := filepath.Glob(dir) // a malformed one matches nothing
		for _, d := range dirs {
			r.below(d)
		}
		return
	}
	if strings.ContainsAny(name, `*?[\`) {
		names, _ := filepath.Glob(name)
		for _, at := range names {
			r.file(at)
		}
		return
	}
	r.file(name)
}

func (r *recently) below(dir string) {
	_ = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			r.denied = append(r.denied, name)
		}
		if err == nil && !e.IsDir() {
			r.file(name)
		}
		return nil // what has just gone says nothing
	})
}

// file notes one that changed. The time of the last change of its inode alone
// does not show that its content is another: an owner, a mode or a hard link
// elsewhere sets it too. So either it was written since, or it is younger, or
// its folder's names changed then or later, as by a rename.
func (r *recently) file(name string) {
	t, err := sys.TimesOf(name)
	if errors.Is(err, fs.ErrPermission) {
		r.denied = append(r.denied, name)
	}
	if err != nil || t.Changed <= r.since {
		return
	}
	content := min(t.Changed, max(t.Modified, t.Born))
	if r.dir(filepath.Dir(name)) >= t.Changed {
		content = t.Changed // a rename sets both at once
	}
	if content > r.since {
		r.found[name] = content
	}
}

func (r *recently) dir(name string) int64 {
	at, ok := r.dirs[name]
	if !ok {
		t, _ := sys.TimesOf(name)
		at = t.Modified
		r.dirs[name] = at
	}
	return at
}

// loadOptions asks for what the units that run use.
func loadOptions(units map[string]*change.UnitState) rootfs.LoadOptions {
	o := rootfs.LoadOptions{Run: true}
	for name, u := range units {
		if u.Active() {
			o.Names = append(o.Names, name)
			if at := strings.IndexByte(name, '@'); at > 0 && !strings.HasPrefix(name[at:], "@.") {
				o.Instances = append(o.Instances, name)
			}
		}
	}
	slices.Sort(o.Names)
	slices.Sort(o.Instances)
	return o
}
