package rootfs

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// LoadOptions says how much of a tree is read.
type LoadOptions struct {
	// Run: the root is a live one, /run/systemd is part of its load path. The
	// view must hold /run then: a clone of the root's file system alone lacks it.
	Run bool
	// Instances are further units to load, by name: those that run.
	Instances []string
	// Names are the services of which Uses are read.
	Names []string
	// Static: Uses are read of all reached services too.
	Static bool
	// Mapped leaves the libraries of programs out of Uses: who asks sees in the
	// processes themselves what they map.
	Mapped bool
	// User asks for the units of this user's manager, in place of the system's.
	User *User
}

// Load reads the units of a tree, what a boot of it reaches, and what the
// chosen services use. Only an ended ctx is an error; all else that goes wrong
// stands in the tree's warnings.
func Load(ctx context.Context, v View, o LoadOptions) (*change.Tree, error) {
	t := asTree(v)
	warn := &warnings{}
	dirs := loadPath
	if o.User != nil {
		// What a user may have made is read as that user, whoever we are.
		t = &tree{layer: &asUser{t: t, u: o.User}}
		dirs = o.User.loadPath()
	}
	set := readLoadPath(t, dirs, o.Run, warn)
	set.user = o.User

	names := map[string]bool{}
	for name := range set.ids {
		names[name] = true
	}
	for name := range set.named {
		names[name] = true
	}
	for _, name := range slices.Concat(o.Instances, o.Names) {
		names[name] = true
	}
	// Loading is made in parallel, the walks that order the result are not.
	if err := parallel(ctx, slices.Sorted(maps.Keys(names)), func(name string) { set.unit(name) }); err != nil {
		return nil, fmt.Errorf("cannot load units: %w", err)
	}
	out := &change.Tree{Units: map[string]*change.Unit{}, Reached: set.reached(), Path: set.dirs, DropInDirs: set.dropInDirs()}
	if o.User == nil {
		out.Presets, out.Touched = readPresets(t, o.Run, warn), set.touched()
	}
	for name := range out.Reached {
		names[name] = true
	}
	for name := range names {
		if u := set.unit(name); u != nil {
			out.Units[name], out.Units[u.Name] = u, u
			for _, alias := range u.Aliases {
				out.Units[alias] = u
			}
		}
	}

	chosen := map[string]bool{}
	for _, name := range o.Names {
		if u := out.Units[name]; u != nil {
			chosen[u.Name] = true
		}
	}
	if o.Static {
		for name := range out.Reached {
			chosen[name] = true
		}
	}
	r := newReader(t, warn)
	r.user, r.mapped = o.User, o.Mapped
	if o.Run {
		r.levels = sys.CPULevels()
	}
	err := parallel(ctx, slices.Sorted(maps.Keys(chosen)), func(name string) {
		if u := out.Units[name]; strings.HasSuffix(name, ".service") && !u.Masked {
			u.Uses = r.service(u)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read what services use: %w", err)
	}
	out.Warnings, out.Denied = slices.Sorted(maps.Keys(warn.seen)), slices.Sorted(maps.Keys(warn.denied))
	return out, nil
}

// parallel calls do for each name, on as many goroutines as there are CPUs.
func parallel(ctx context.Context, names []string, do func(string)) error {
	work := make(chan string)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(names)) {
		wg.Go(func() {
			for name := range work {
				do(name)
			}
		})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		work <- name
	}
	close(work)
	wg.Wait()
	return ctx.Err()
}
