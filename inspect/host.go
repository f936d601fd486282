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
	if pid1, err := sys.OpenProc(proc, 1); err == nil {
		defer pid1.Close()
		if file, err := pid1.ReadFile("cgroup", nil); err == nil {
			h.hier, h.systemd = findHierarchy(file)
		}
		h.mntNS, h.pidNS = nsOf(pid1, "ns/mnt"), nsOf(pid1, "ns/pid")
	}
	if self, err := sys.OpenProc(proc, os.Getpid()); err == nil {
		defer self.Close()
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

// scanned counts what a scan met.
type scanned struct {
	examined int
	denied   int
}

func (s scanned) warnings() []string {
	if s.denied == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d processes could not be looked at (not permitted): whether they run old code is not known", s.denied)}
}

// scan calls visit for each process, on all processors, with the executable's
// identity. Kernel threads have none and are passed over; so is a process that
// ends meanwhile.
func (h *host) scan(ctx context.Context, visit func(p *sys.Proc, exe *change.Node) error) (scanned, error) {
	pids, err := h.pids()
	if err != nil {
		return scanned{}, err
	}
	var next, examined, denied atomic.Int64
	var mu sync.Mutex
	var failures []error
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), max(1, len(pids))) {
		wg.Go(func() {
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
					denied.Add(1)
				default:
					mu.Lock()
					failures = append(failures, fmt.Errorf("cannot look at process %d: %w", pids[i], err))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	s := scanned{examined: int(examined.Load()), denied: int(denied.Load())}
	return s, errors.Join(append(failures, ctx.Err())...)
}

func (h *host) visit(pid int, visit func(*sys.Proc, *change.Node) error) error {
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

// describe fills in who a process is: its units and what is special about it.
func (h *host) describe(p *sys.Proc, exe *change.Node) (change.Hit, error) {
	hit := change.Hit{PID: p.PID}
	st, err := readStat(p)
	if err != nil {
		return hit, err
	}
	hit.Comm = st.comm
	hit.Unit, hit.UserUnit = h.unitOf(p)
	hit.Leftover = h.leftover(&hit, st)
	hit.Container = h.container(p, &hit)
	const setID = 0o6000
	if exe.Mode&setID != 0 {
		hit.Setuid = strings.HasPrefix(hit.Unit, "session-") || strings.HasPrefix(hit.Unit, "user@") || loggedIn(p)
	}
	return hit, nil
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

// leftover tells whether a process of a service is older than its present
// invocation: a session below sshd, a shim below containerd. systemd forks
// before it notes the time, so an allowance is made, and the main process is
// never one.
func (h *host) leftover(hit *change.Hit, st procStat) bool {
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
	started := int64(st.startTicks)*tick - (h.clocks.Boot - h.clocks.Monotonic)
	return started+tick+allowance < int64(u.InvokedMonoUSec)*1000
}

// container tells whether a process lives in a PID namespace that is not its
// unit's own (PrivatePIDs=): the payload of a container.
func (h *host) container(p *sys.Proc, hit *change.Hit) bool {
	ns := nsOf(p, "ns/pid")
	if ns == 0 || h.pidNS == 0 || ns == h.pidNS {
		return false
	}
	if u := h.serviceOf(hit); u != nil && u.MainPID > 0 {
		if main, err := sys.OpenProc(h.proc, u.MainPID); err == nil {
			defer main.Close()
			return nsOf(main, "ns/pid") != ns
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
	const parent, start = 1, 19 // fields 4 and 22
	if len(f) <= start {
		return procStat{}, fmt.Errorf("cannot read %q as a process's stat: %d fields", text, len(f))
	}
	var st procStat
	var err error
	st.comm = string(text[open+1 : end])
	if st.parent, err = strconv.Atoi(f[parent]); err != nil {
		return st, fmt.Errorf("cannot read %q as a process's stat: %w", text, err)
	}
	if st.startTicks, err = strconv.ParseUint(f[start], 10, 64); err != nil {
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
