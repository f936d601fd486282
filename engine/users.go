package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/planner"
	"github.com/liveupd/liveupd/restart"
	"github.com/liveupd/liveupd/rootfs"
)

// How long the managers of users are waited for, all of them together, so that
// none of them keeps an update from being carried out.
const (
	userAsk   = 5 * time.Second  // to be told of its units
	userRead  = 10 * time.Second // for its unit files: a home may lie on a server that is away
	userBegin = 20 * time.Second // to execute itself anew, or to read its unit files
)

// userManagers asks each user's manager that runs for its units.
func userManagers(ctx context.Context, units map[string]*change.UnitState) []*change.UserManager {
	ctx, cancel := context.WithTimeout(ctx, userAsk)
	defer cancel()
	var out []*change.UserManager
	var wg sync.WaitGroup
	for _, name := range slices.Sorted(maps.Keys(units)) {
		u := units[name]
		uid, is := systemd.UserUID(name)
		if !is || u.Name != name || !u.Active() || u.MainPID <= 0 {
			continue
		}
		m := &change.UserManager{Unit: name, UID: uid, Name: accountOf(uid).name}
		out = append(out, m)
		pid := u.MainPID
		wg.Go(func() {
			conn, err := systemd.ConnectUser(ctx, systemd.UserManager{UID: uid, PID: pid})
			if err == nil {
				defer conn.Close()
				m.Version = conn.Version()
				m.Units, err = conn.Units(ctx)
			}
			if err != nil {
				m.Problem = "its manager did not answer: " + err.Error()
				if errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err) {
					m.Problem = fmt.Sprintf("its manager did not answer within %s", userAsk)
				}
				m.Units = nil
			}
		})
	}
	wg.Wait()
	return out
}

// account is a line of passwd(5).
type account struct{ name, home string }

func accountOf(uid uint32) account {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return account{}
	}
	defer f.Close()
	want := strconv.FormatUint(uint64(uid), 10)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if f := strings.Split(lines.Text(), ":"); len(f) >= 6 && f[2] == want {
			return account{f[0], f[5]}
		}
	}
	return account{}
}

// readAs is whose rights a manager has, by the kernel's word about its main
// process. Its home is that of the user database or, where the user is not
// there, what the process says: it is read with that user's rights alone.
func readAs(m *change.UserManager, pid int) (*rootfs.User, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	u := &rootfs.User{UID: m.UID, Name: m.Name, Runtime: fmt.Sprintf("/run/user/%d", m.UID)}
	number := func(s string) uint32 {
		n, _ := strconv.ParseUint(s, 10, 32) // the kernel writes numbers there
		return uint32(n)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case f[0] == "Uid:" && number(f[1]) != m.UID:
			return nil, fmt.Errorf("process %d is another user's", pid)
		case f[0] == "Gid:":
			u.GID = number(f[1])
		case f[0] == "Groups:":
			for _, g := range f[1:] {
				u.Groups = append(u.Groups, number(g))
			}
		}
	}
	home := accountOf(m.UID).home
	if home == "" {
		home = homeOf(pid)
	}
	if filepath.IsAbs(home) && filepath.Clean(home) != "/" {
		if real, err := filepath.EvalSymlinks(home); err == nil {
			u.Home = real
		}
	}
	return u, nil
}

func homeOf(pid int) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 128<<10))
	if err != nil {
		return ""
	}
	for v := range strings.SplitSeq(string(b), "\x00") {
		if home, ok := strings.CutPrefix(v, "HOME="); ok {
			return home
		}
	}
	return ""
}

// userTree reads the units of a user, as the manager would before and after
// the update; without an update, as they are.
type userTree struct {
	s       *session
	delta   *change.Delta // nil without an update
	content *sys.FD
	etc     []string
}

// trees fills in what each manager that answered reads. A file system that does
// not answer either is left behind.
func (t *userTree) trees(ctx context.Context, facts *change.Facts) {
	ctx, cancel := context.WithTimeout(ctx, userRead)
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range facts.Users {
		if m.Problem != "" {
			continue
		}
		pid := facts.Units[m.Unit].MainPID
		wg.Go(func() {
			type read struct {
				old, new *change.Tree
				err      error
			}
			done := make(chan read, 1)
			copied := *m
			go func() {
				old, new, err := t.load(ctx, &copied, pid)
				done <- read{old, new, err}
			}()
			var got read
			select {
			case got = <-done:
			case <-ctx.Done():
				got.err = ctx.Err()
			}
			if got.err != nil {
				got.old = &change.Tree{Warnings: []string{fmt.Sprintf("its unit files were not read: %v", got.err)}}
				got.new = got.old
			}
			m.Old, m.New = got.old, got.new
		})
	}
	wg.Wait()
}

// load reads with descriptors of its own: it may outlive its caller.
func (t *userTree) load(ctx context.Context, m *change.UserManager, pid int) (old, new *change.Tree, err error) {
	user, err := readAs(m, pid)
	if err != nil {
		return nil, nil, err
	}
	var opened []*sys.FD
	defer func() {
		for _, fd := range opened {
			fd.Close()
		}
	}()
	var vols []rootfs.Volume
	add := func(mount string, fd *sys.FD, err error) error {
		if err != nil {
			return err
		}
		opened = append(opened, fd)
		vols = append(vols, rootfs.Volume{Mount: mount, Dir: fd})
		return nil
	}
	for _, v := range t.s.vols {
		fd, err := again(v.Dir)
		if err := add(v.Mount, fd, err); err != nil {
			return nil, nil, err
		}
	}
	run, err := sys.OpenRoot("/run")
	if err := add("/run", run, err); err != nil {
		return nil, nil, err
	}
	if user.Home != "" {
		// The home may be a file system of its own, which no update writes to.
		home, err := sys.OpenRoot(user.Home)
		if err := add(user.Home, home, err); err != nil {
			return nil, nil, fmt.Errorf("cannot read the user's own units: %w", err)
		}
	}
	o := loadOptions(m.Units)
	o.User, o.Mapped = user, t.delta == nil
	view := rootfs.Volumes(vols...)
	if old, err = rootfs.Load(ctx, view, o); err != nil {
		return nil, nil, err
	}
	if t.delta == nil {
		return old, old, nil
	}
	content, err := again(t.content)
	if err != nil {
		return nil, nil, err
	}
	opened = append(opened, content)
	after := rootfs.Overlay(view, t.delta, content)
	if new, err = rootfs.Load(ctx, after, o); err != nil {
		return nil, nil, err
	}
	if len(t.etc) > 0 {
		rootfs.ConfigReaders(view, old, t.etc)
		rootfs.ConfigReaders(after, new, t.etc)
	}
	return old, new, nil
}

// userNewer is newer for the services of users: of what they read, which files
// changed since.
func (s *session) userNewer(ctx context.Context, b *bus, epoch int64) (map[string]*planner.Newer, error) {
	if _, err := b.Users(ctx); err != nil {
		return nil, err
	}
	facts := b.facts()
	(&userTree{s: s}).trees(ctx, facts)
	out := map[string]*planner.Newer{}
	for _, m := range facts.Users {
		if m.New == nil {
			continue
		}
		n := &planner.Newer{Tree: m.New, Changed: map[string]int64{}, Epoch: epoch}
		done := make(chan struct{})
		ctx, cancel := context.WithTimeout(ctx, userRead)
		look := recently{since: firstStart(m.Units, epoch), found: map[string]int64{}, dirs: map[string]int64{}}
		go func() {
			defer close(done)
			for _, name := range planner.UserReads(m.New, m.Units) {
				if ctx.Err() != nil {
					return
				}
				look.file(name)
			}
		}()
		select {
		case <-done:
			n.Changed = look.found
		case <-ctx.Done():
		}
		cancel()
		out[m.Unit] = n
	}
	return out, nil
}

// staleManagers are the users' managers that have not read the present unit files.
func staleManagers(list []*change.UserManager) []change.Effect {
	var out []change.Effect
	for _, m := range list {
		e := change.Effect{Do: "daemon-reload", Target: m.Unit, Undo: "daemon-reload"}
		for _, name := range slices.Sorted(maps.Keys(m.Units)) {
			if u := m.Units[name]; u.NeedDaemonReload && name == u.Name {
				e.Reasons = append(e.Reasons, change.Reason{Kind: "unit-files", Unit: name, Path: u.FragmentPath, Detail: "changed since its manager read it"})
			}
		}
		if len(e.Reasons) > 0 {
			out = append(out, e)
		}
	}
	return out
}

// again opens a directory once more.
func again(dir *sys.FD) (*sys.FD, error) {
	return sys.OpenAt(dir, ".", sys.OpenRead|sys.OpenDir, sys.ResolveBeneath|sys.ResolveNoSymlinks)
}

// usersBus gives the run of the steps its connections to users' managers.
type usersBus struct{ bus *systemd.Conn }

func (u usersBus) Connect(ctx context.Context, manager string) (restart.UserBus, error) {
	ctx, cancel := context.WithTimeout(ctx, userBegin)
	defer cancel()
	return u.bus.User(ctx, manager)
}

func (u usersBus) Reexec(ctx context.Context, manager string) error {
	ctx, cancel := context.WithTimeout(ctx, userBegin)
	defer cancel()
	return u.bus.ReexecUser(ctx, manager)
}

// concludeUsers tells what the managers of users did not do, or what failed there:
// the update stands all the same.
func (r *run) concludeUsers() {
	for _, res := range r.report.Steps {
		s := res.Step
		_, itself := systemd.UserUID(s.Target)
		if s.Manager == "" && !itself {
			continue
		}
		why, left := strings.CutPrefix(res.Detail, restart.Unreached)
		switch {
		case res.Result == "failed":
			r.s.warnings = append(r.s.warnings, fmt.Sprintf("%s of %s did not come through its %s: %s; the update stands", s.Target, s.Manager, s.Do, res.Detail))
		case res.Result != "skipped" || !left:
		case s.Do == "daemon-reload":
			r.s.warnings = append(r.s.warnings, fmt.Sprintf("%s goes on with its old unit files: %s", s.Manager, why))
		default:
			r.report.Deferred = append(r.report.Deferred, r.putOff(s, why))
		}
	}
}

// putOff is the entry of a unit whose step was not carried out.
func (r *run) putOff(s change.Step, why string) change.UnitPlan {
	out := change.UnitPlan{Unit: s.Target, Manager: s.Manager, Reasons: []change.Reason{}}
	for _, u := range r.p.plan.Units {
		if u.Unit == s.Target && u.Manager == s.Manager {
			out = u
			out.Reasons = slices.Clone(u.Reasons)
			out.Needs = u.Action
		}
	}
	out.Action = change.ActionDefer
	if len(out.Reasons) == 0 {
		out.Reasons = []change.Reason{{Kind: "deferred", Unit: s.Manager}}
	}
	for i := range out.Reasons {
		if d := &out.Reasons[i].Detail; *d == "" {
			*d = why
		} else {
			*d += "; " + why
		}
	}
	return out
}
