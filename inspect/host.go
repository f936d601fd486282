package inspect

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// host is what all processes are compared with.
type host struct {
	proc    *sys.FD
	hier    hierarchy
	systemd bool // PID 1 is systemd: cgroups name units
	mntNS   uint64
	pidNS   uint64
	ownNS   uint64 // the mount namespace that we are in
	clocks  sys.Clocks
	began   int64 // when its first process did, in nanoseconds since the epoch
	units   map[string]*change.UnitState
	users   map[string]map[string]*change.UnitState // of users' managers, by the user@ unit
}

// userUnits are the units of users by their managers.
func userUnits(list []*change.UserManager) map[string]map[string]*change.UnitState {
	out := make(map[string]map[string]*change.UnitState, len(list))
	for _, m := range list {
		out[m.Unit] = m.Units
	}
	return out
}

// serviceOf is the service that a process belongs to, of the system or of a
// user; nil where it is not known.
func (h *host) serviceOf(hit *change.Hit) *change.UnitState {
	name, units := hit.Unit, h.units
	if hit.UserUnit != "" {
		name, units = hit.UserUnit, h.users[hit.Unit]
	}
	if !strings.HasSuffix(name, ".service") {
		return nil
	}
	return units[name]
}

func openHost(units map[string]*change.UnitState) (*host, error) {
	proc, err := sys.OpenRoot("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot look at the processes: %w", err)
	}
	h := &host{proc: proc, units: units}
	if h.clocks, err = sys.ReadClocks(); err != nil {
		proc.Close()
		return nil, err
	}
	h.began = h.clocks.Real - h.clocks.Boot
	hidden := true
	if pid1, err := sys.OpenProc(proc, 1); err == nil {
		defer pid1.Close()
		if file, err := pid1.ReadFile("cgroup", nil); err == nil {
			h.hier, h.systemd = findHierarchy(file)
			hidden = false
		}
		// In a container PID 1 is younger than the boot.
		if st, err := readStat(pid1); err == nil {
			h.began += int64(st.startTicks) * (1e9 / sys.TicksPerSecond)
		}
		h.mntNS, h.pidNS = nsOf(pid1, "ns/mnt"), nsOf(pid1, "ns/pid")
	}
	if self, err := sys.OpenProc(proc, os.Getpid()); err == nil {
		defer self.Close()
		if mounts, err := sys.ReadMountinfo("/proc/self/mountinfo"); err == nil && hidden {
			_, err := os.Lstat("/run/systemd/system") // sd_booted(3)
			h.hier, h.systemd = mountedHierarchy(mounts), err == nil
		}
		h.ownNS = nsOf(self, "ns/mnt")
		// Where PID 1 may not be looked at, we are taken to be where it is.
		h.mntNS = cmp.Or(h.mntNS, h.ownNS)
		h.pidNS = cmp.Or(h.pidNS, nsOf(self, "ns/pid"))
	}
	return h, nil
}

func (h *host) close() { h.proc.Close() }

// nsOf is a namespace's number, 0 where it cannot be read.
func nsOf(p *sys.Proc, name string) uint64 {
	var n change.Node
	if p.StatInto(name, &n) != nil {
		return 0
	}
	return n.Ino
}

// pids lists the processes.
func (h *host) pids() ([]int, error) {
	names, err := sys.ReadDirNames(h.proc)
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes: %w", err)
	}
	out := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out, nil
}

// visitor looks at one process, with its executable's identity.
type visitor func(p *sys.Proc, exe *change.Node) error

// scan has each process visited, on all processors; each of these gets a
// visitor of its own. Kernel threads have no executable and are passed over; so
// is a process that ends meanwhile.
func (h *host) scan(ctx context.Context, visitor func() visitor) (scanned, error) {
	pids, err := h.pids()
	if err != nil {
		return scanned{}, err
	}
	var next, examined atomic.Int64
	var mu sync.Mutex
	var failures []error
	var opaque []int
	var s scanned
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), max(1, len(pids))) {
		wg.Go(func() {
			visit := visitor()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(pids) {
					return
				}
				switch err := h.visit(pids[i], visit); {
				case err == nil:
					examined.Add(1)
				case sys.IsGone(err):
				case sys.IsDenied(err):
					unit, is, err := h.unread(pids[i])
					mu.Lock()
					switch {
					case sys.IsDenied(err):
						opaque = append(opaque, pids[i])
					case is:
						s.deny(unit)
					}
					mu.Unlock()
				default:
					mu.Lock()
					failures = append(failures, fmt.Errorf("cannot look at process %d: %w", pids[i], err))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	s.examined = int(examined.Load())
	if err := errors.Join(append(failures, ctx.Err())...); err != nil {
		return s, err
	}
	h.hidden(pids, opaque, &s)
	return s, nil
}

func (h *host) visit(pid int, visit visitor) error {
	p, err := sys.OpenProc(h.proc, pid)
	if err != nil {
		return err
	}
	defer p.Close()
	var exe change.Node
	if err := p.StatInto("exe", &exe); err != nil {
		return err
	}
	return visit(p, &exe)
}

// sighting is a process that uses what is looked for.
type sighting struct {
	who     change.Hit // without Kind, Path and Detail
	started int64      // monotonic, in nanoseconds
	pidNS   uint64
	mntNS   uint64          // where it is another than the host's
	root    change.InodeKey // where it was asked for
	files   int
	found   []change.Hit // Kind, Path and Detail alone
}

// describe fills in who a process is and what is special about it. What
// depends on its unit's state is for settle.
func (h *host) describe(p *sys.Proc, exe *change.Node, buf []byte) (sighting, []byte, error) {
	s := sighting{who: change.Hit{PID: p.PID}}
	text, err := p.ReadFile("stat", buf[:0])
	if err != nil {
		return s, text, err
	}
	st, err := parseStat(text)
	if err != nil {
		return s, text, err
	}
	s.who.Comm, s.started = st.comm, h.monotonic(st)
	if h.systemd {
		if text, err = p.ReadFile("cgroup", text[:0]); err == nil {
			s.who.Unit, s.who.UserUnit = h.hier.unit(text)
		}
	}
	s.pidNS = nsOf(p, "ns/pid")
	const setID = 0o6000
	if exe.Mode&setID != 0 {
		unit := s.who.Unit
		s.who.Setuid = strings.HasPrefix(unit, "session-") || strings.HasPrefix(unit, "user@") || loggedIn(p)
	}
	return s, text, nil
}

func (h *host) unitOf(p *sys.Proc) (system, user string) {
	if !h.systemd {
		return "", ""
	}
	file, err := p.ReadFile("cgroup", nil)
	if err != nil {
		return "", ""
	}
	return h.hier.unit(file)
}

// monotonic is when a process began, by the clock that systemd uses.
func (h *host) monotonic(st procStat) int64 {
	return int64(st.startTicks)*(1e9/sys.TicksPerSecond) - (h.clocks.Boot - h.clocks.Monotonic)
}

// Manager is what the service manager is asked when the processes have been
// looked at.
type Manager interface {
	// Units are the manager's units by name.
	Units(ctx context.Context) (map[string]*change.UnitState, error)
	// Users are the managers of users, with their units.
	Users(ctx context.Context) ([]*change.UserManager, error)
	// Fill fetches what units lack.
	Fill(ctx context.Context, units []*change.UnitState, want change.UnitFields) error
}

// settle asks the manager about the units of the sightings, and tells leftovers
// and the payload of containers from what belongs to the units.
func (h *host) settle(ctx context.Context, m Manager, list []sighting) (err error) {
	if m != nil {
		if h.units, err = m.Units(ctx); err != nil {
			return err
		}
		users, err := m.Users(ctx)
		if err != nil {
			return err
		}
		h.users = userUnits(users)
		if err := h.fill(ctx, m, list, change.FieldInvoked, func(*sighting) bool { return true }); err != nil {
			return err
		}
		// The main process is asked for only where it makes a difference.
		if err := h.fill(ctx, m, list, change.FieldMainPID, func(s *sighting) bool {
			return h.elsewhere(s) || h.leftover(&s.who, s.started)
		}); err != nil {
			return err
		}
	}
	for i := range list {
		s := &list[i]
		s.who.Leftover, s.who.Container = h.leftover(&s.who, s.started), h.container(s)
	}
	return nil
}

func (h *host) fill(ctx context.Context, m Manager, list []sighting, want change.UnitFields, needs func(*sighting) bool) error {
	set := map[*change.UnitState]bool{}
	var units []*change.UnitState
	for i := range list {
		s := &list[i]
		if u := h.serviceOf(&s.who); u != nil && !set[u] && needs(s) {
			set[u] = true
			units = append(units, u)
		}
	}
	if len(units) == 0 {
		return nil
	}
	return m.Fill(ctx, units, want)
}

// leftover tells whether a process of a service is older than its present
// invocation: a session below sshd, a shim below containerd. systemd forks
// before it notes the time, so an allowance is made, and the main process is
// never one.
func (h *host) leftover(hit *change.Hit, started int64) bool {
	u := h.serviceOf(hit)
	if u == nil || u.MainPID == hit.PID {
		return false
	}
	if !u.Active() && u.ActiveState != "deactivating" {
		return true
	}
	if u.InvokedMonoUSec == 0 {
		return false
	}
	const tick, allowance = 1e9 / sys.TicksPerSecond, 1e9
	return started+tick+allowance < int64(u.InvokedMonoUSec)*1000
}

// elsewhere tells whether a process lives in a PID namespace that is not the host's.
func (h *host) elsewhere(s *sighting) bool {
	return s.pidNS != 0 && h.pidNS != 0 && s.pidNS != h.pidNS
}

// container tells whether a process lives in a PID namespace that is not its
// unit's own (PrivatePIDs=): the payload of a container.
func (h *host) container(s *sighting) bool {
	if !h.elsewhere(s) {
		return false
	}
	if u := h.serviceOf(&s.who); u != nil && u.MainPID > 0 {
		if main, err := sys.OpenProc(h.proc, u.MainPID); err == nil {
			defer main.Close()
			return nsOf(main, "ns/pid") != s.pidNS
		}
	}
	return true
}

// loggedIn tells whether a process descends from a login: its audit login uid
// is set, pam_loginuid(8).
func loggedIn(p *sys.Proc) bool {
	text, err := p.ReadFile("loginuid", nil)
	return err == nil && len(text) > 0 && strings.TrimSpace(string(text)) != "4294967295"
}

// procStat is what is needed of proc_pid_stat(5).
type procStat struct {
	comm       string
	state      byte
	flags      uint64 // PF_ of linux/sched.h
	parent     int
	startTicks uint64 // since boot, in sys.TicksPerSecond
}

func readStat(p *sys.Proc) (procStat, error) {
	text, err := p.ReadFile("stat", nil)
	if err != nil {
		return procStat{}, err
	}
	return parseStat(text)
}

// parseStat reads "PID (COMM) STATE PPID ..."; the name may hold anything, a
// closing parenthesis too, so that the last one counts.
func parseStat(text []byte) (procStat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return procStat{}, fmt.Errorf("cannot read %q as a process's stat", text)
	}
	f := strings.Fields(string(text[end+1:]))
	const state, parent, flags, start = 0, 1, 6, 19 // fields 3, 4, 9 and 22
	if len(f) <= start {
		return procStat{}, fmt.Errorf("cannot read %q as a process's stat: %d fields", text, len(f))
	}
	st := procStat{comm: string(text[open+1 : end]), state: f[state][0]}
	var errs [3]error
	st.parent, errs[0] = strconv.Atoi(f[parent])
	st.flags, errs[1] = strconv.ParseUint(f[flags], 10, 64)
	st.startTicks, errs[2] = strconv.ParseUint(f[start], 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return st, fmt.Errorf("cannot read %q as a process's stat: %w", text, err)
	}
	return st, nil
}

// own lists the units that this process and its ancestors run in, PID 1's left
// out: the session that called, and the sshd that it came by.
func (h *host) own(more []string) []string {
	set := map[string]bool{}
	for _, unit := range more {
		set[unit] = true
	}
	for pid, hops := os.Getpid(), 0; pid > 1 && hops < 100; hops++ {
		p, err := sys.OpenProc(h.proc, pid)
		if err != nil {
			break
		}
		if unit, _ := h.unitOf(p); unit != "" {
			set[unit] = true
		}
		st, err := readStat(p)
		p.Close()
		if err != nil {
			break
		}
		pid = st.parent
	}
	out := make([]string, 0, len(set))
	for unit := range set {
		out = append(out, unit)
	}
	slices.Sort(out)
	return out
}
