package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/diff"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/rootkind"
	"github.com/liveupd/liveupd/sandbox"
)

// workName is the folder that sandboxes write to, in the store or where a running
// system keeps caches. What lies in it belongs to the one that holds its lock; what
// a killed one left is removed by the next.
const workName = "sandbox"

// work is where a sandbox's changes are kept until they are committed or dropped.
type work struct {
	s    *session
	home *sys.FD // the folder sandbox, locked
	dir  *sys.FD // what this run writes, in it
	path string  // of dir in this mount namespace; "" where it lies on the root's own file system
	spec *nsmount.WorkspaceSpec
	kept bool // what was written stays for the next run
	// began is when the first program could read the root.
	began time.Time
}

const workDirName = "work"

// openWork makes an empty folder for a sandbox.
func (s *session) openWork() (_ *work, err error) {
	w := &work{s: s}
	var homePath string
	if w.home, homePath, err = s.workHome(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.home.Close()
		}
	}()
	ok, err := sys.TryLock(w.home)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", w.home.Name(), err)
	}
	if !ok {
		return nil, change.WithHint(fmt.Errorf("cannot make a sandbox: another process has one: %w", change.ErrLocked),
			"wait until it ends, then run the same command again")
	}
	if err := s.k.RemoveAll(w.home, workDirName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove what a sandbox left: %w", err)
	}
	if w.dir, err = ensureDir(s.k, w.home, workDirName); err != nil {
		return nil, fmt.Errorf("cannot make a folder for the sandbox: %w", err)
	}
	if homePath != "" {
		w.path = path.Join(homePath, workDirName)
	}
	w.spec, err = s.root.Workspace(s.k, w.dir, w.path, s.sandboxWrites)
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// workHome opens the folder of sandboxes: on the root's own file system, so that a
// commit takes files by their names, or, for a plan of a root that cannot be
// written to, where a running system keeps caches.
func (s *session) workHome() (*sys.FD, string, error) {
	if dir, err := openStateDir(s.k, s.vols[0].Dir); err == nil {
		defer dir.Close()
		home, err := ensureDir(s.k, dir, workName)
		if err != nil {
			return nil, "", fmt.Errorf("cannot make a folder for the sandbox: %w", err)
		}
		return home, "", nil
	}
	var errs []error
	for _, name := range s.cacheHomes() {
		err := os.MkdirAll(name, 0o700)
		if err == nil {
			var home *sys.FD
			if home, err = openPrivate(name); err == nil {
				return home, name, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, "", fmt.Errorf("cannot make a folder for the sandbox: %w", errors.Join(errs...))
}

// cacheHomes are the folders of sandboxes of a root that cannot be written to.
func (s *session) cacheHomes() []string {
	var out []string
	for _, base := range []string{"/var/cache/liveupd", runDir + "/cache"} {
		out = append(out, path.Join(base, strings.ReplaceAll(strings.Trim(s.req.Root, "/"), "/", "-")+"-"+workName))
	}
	return out
}

func openPrivate(name string) (*sys.FD, error) {
	home, err := sys.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	if err := private(home); err != nil {
		home.Close()
		return nil, err
	}
	return home, nil
}

// sandboxWrites tells whether a sandbox may change a volume: what takes no update in
// place it sees as it is, read-only; so is a disk that was put in read-only.
func (s *session) sandboxWrites(v nsmount.Volume) bool {
	if v.Mount == "/" {
		return true
	}
	h := rootkind.Host{Sys: "/sys"}
	if s.req.Live() {
		h.Run = "/run"
	}
	e, err := rootkind.Look(v.Dir, &v.Info, h)
	if err != nil || e.Kind() != nil {
		return false
	}
	system := slices.ContainsFunc([]string{"/usr", "/etc", "/var", "/opt", "/boot", "/srv"}, func(dir string) bool {
		return v.Mount == dir || strings.HasPrefix(v.Mount, dir+"/")
	})
	return !v.ReadOnly || system
}

// close removes what the sandbox wrote.
func (w *work) close() error {
	if w == nil {
		return nil
	}
	if w.dir != nil {
		w.dir.Close()
	}
	if w.kept {
		w.home.Close()
		return nil
	}
	err := w.s.k.RemoveAll(w.home, workDirName)
	w.home.Close()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove what the sandbox wrote: %w", err)
	}
	return nil
}

// neverKept is what no sandbox changes in the root: what is made at each boot, and what
// is not kept.
var neverKept = []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/run", "/var/lock"}

// delta compares what the sandbox wrote with the root.
func (w *work) delta(ctx context.Context, ignore func(string) bool, ev Events) (*change.Delta, error) {
	var uppers []diff.Upper
	for _, v := range w.spec.Volumes {
		if v.ReadOnly {
			continue
		}
		from := strconv.Itoa(v.Number) + "/up"
		up, err := sys.OpenDirAt(w.dir, from)
		if err != nil {
			return nil, fmt.Errorf("cannot open what was written to %s: %w", v.Mount, err)
		}
		defer up.Close()
		uppers = append(uppers, diff.Upper{Mount: v.Mount, From: "/" + from, Dir: up})
	}
	ev.progress("comparing", 0, 0, "files", "")
	o := w.s.diffOptions(ev)
	o.AllowRemovals = true // each was asked for by name
	d, err := diff.Uppers(ctx, w.s.k, uppers, ignore, o)
	if err != nil {
		return nil, err
	}
	return d, w.s.judgeVolumes(d)
}

// changedBeside refuses where somebody else changed a file while the sandbox had its own copy of it:
// that change is in no copy, and the comparison, which comes after it, does not see it. What shared
// accepts may be lost. A file that is dated in the future tells nothing. Folders change with each name in them.
func (w *work) changedBeside(d *change.Delta, shared func(string) bool) error {
	from, to := w.began.UnixNano(), time.Now().UnixNano()
	for i := range d.Entries {
		e := &d.Entries[i]
		if e.Old == nil || e.Old.IsDir() || e.Old.CtimeNS < from || e.Old.CtimeNS > to || shared(e.Path) {
			continue
		}
		return change.WithHint(fmt.Errorf("cannot take over what was changed in the sandbox: %s was changed on the system meanwhile: %w; %w", e.Path, change.ErrDrift, ErrNothingCommitted),
			"run the same command again")
	}
	return nil
}

// runIn runs a command in the sandbox.
func (w *work) runIn(ctx context.Context, spec sandbox.Spec, o sandbox.Options) (*sandbox.Result, error) {
	view, err := json.Marshal(w.spec)
	if err != nil {
		return nil, err
	}
	spec.View, spec.Name = view, "liveupd-"+randomID()
	spec.Systemd = systemd.Booted()
	if spec.Memory == 0 {
		spec.Memory = sandboxMemory()
	}
	if spec.Pids == 0 {
		spec.Pids = sandboxPids
	}
	if name := containerManager(); name != "" {
		spec.Files = append(slices.Clip(spec.Files), sandbox.File{Path: managerFile, Mode: 0o644, Content: name + "\n"})
	}
	ctx, stop := w.watchSpace(ctx)
	defer stop()
	if w.began.IsZero() {
		w.began = time.Now()
	}
	res, err := sandbox.Run(ctx, spec, o)
	if res != nil {
		w.s.warnings = append(w.s.warnings, res.Notes...)
	}
	return res, err
}

// errFull ends a sandbox that would fill the disk under the running system.
var errFull = errors.New("there is not enough room for what it writes")

// A sandbox leaves this much room to the running system, looked at so often.
const (
	sandboxLeaves = 192 << 20
	spaceEvery    = 50 * time.Millisecond
)

// watchSpace ends the context when the file system that the sandbox writes to is
// nearly full. One that was nearly full before keeps half of what it had.
func (w *work) watchSpace(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	first, err := sys.Statfs(w.home)
	if err != nil {
		return ctx, func() { cancel(nil) }
	}
	floor := min(sandboxLeaves, first.Available/2)
	go func() {
		tick := time.NewTicker(spaceEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if now, err := sys.Statfs(w.home); err == nil && now.Available < floor {
				cancel(fmt.Errorf("%w: %d MB are left on its file system", errFull, now.Available>>20))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// sandboxPids bounds the processes of a sandbox: a build uses hundreds, a fork bomb
// any number.
const sandboxPids = 8192

// sandboxMemory is three quarters of the machine's memory: the rest is the services'.
func sandboxMemory() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kb * 1024 / 4 * 3
		}
	}
	return 0
}

// changedBase is the record after a change that came from no source: what of it
// changed is recorded as it is now, and so is no damage. In /etc the record stays: there
// the change is the machine's own edit, which the next update keeps.
func changedBase(base *catalog.Base, d *change.Delta) func(yield func(string, *change.Node) bool) {
	changed := make(map[string]*change.Node, len(d.Entries))
	for i := range d.Entries {
		changed[d.Entries[i].Path] = d.Entries[i].New
	}
	return func(yield func(string, *change.Node) bool) {
		if base == nil {
			return
		}
		for p, n := range base.All() {
			if now, ok := changed[p]; ok && !strings.HasPrefix(p, "/etc/") {
				if now == nil {
					continue
				}
				n = now
			}
			if !yield(p, n) {
				return
			}
		}
	}
}
