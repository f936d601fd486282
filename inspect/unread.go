package inspect

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/internal/sys"
)

// scanned is what a scan met: how many processes it looked at, and how many it
// could not.
type scanned struct {
	examined int
	denied   int
	hidden   int            // that /proc does not even list
	masked   bool           // /proc is mounted so that it lists one's own alone
	opaque   int            // of which there is but the number: they may be the kernel's own
	units    map[string]int // of the denied and the hidden ones, where they are known
}

func (s *scanned) deny(unit string) {
	s.denied++
	s.count(unit)
}

func (s *scanned) count(unit string) {
	if s.units == nil {
		s.units = map[string]int{}
	}
	s.units[unit]++
}

// gaps tells in words what was not looked at.
func (s *scanned) gaps() []string {
	var out []string
	if s.denied > 0 {
		out = append(out, fmt.Sprintf("%s could not be looked at (not permitted): whether they run old code is not known", processes(s.denied)))
	}
	if s.masked {
		how := "the others are"
		if s.hidden > 0 {
			how = processes(s.hidden) + " of others are"
		}
		out = append(out, "/proc lists one's own processes alone (hidepid=): "+how+" hidden, and whether they run old code is not known")
	}
	if s.opaque > 0 {
		out = append(out, fmt.Sprintf("/proc tells nothing of %s (hidepid=), among which the kernel's own are: whether the others run old code is not known", processes(s.opaque)))
	}
	return out
}

func processes(n int) string {
	if n == 1 {
		return "1 process"
	}
	return fmt.Sprintf("%d processes", n)
}

// unread tells of a process that may not be looked at which unit it belongs to;
// false for one of the kernel's own, and for one that has ended. What is needed
// for that is for everybody to read, but for hidepid=: err then.
func (h *host) unread(pid int) (unit string, is bool, err error) {
	p, err := sys.OpenProc(h.proc, pid)
	if err != nil {
		return "", false, err
	}
	defer p.Close()
	st, err := readStat(p)
	if err != nil {
		return "", false, err
	}
	const kernelThread = 0x00200000 // PF_KTHREAD of linux/sched.h
	if st.flags&kernelThread != 0 || st.state == 'Z' || st.state == 'X' {
		return "", false, nil
	}
	unit, _ = h.unitOf(p)
	return unit, true, nil
}

// hidden counts the processes that hidepid= keeps from us, by the control groups
// that list them for everybody: those of which /proc tells no more than the
// number (opaque), and those that it does not even list. What is in no group
// but the first one is the kernel's own.
func (h *host) hidden(pids, opaque []int, s *scanned) {
	s.masked = masked()
	if !s.masked && len(opaque) == 0 {
		return
	}
	members := members("/sys/fs/cgroup")
	for _, pid := range opaque {
		if unit, ok := members[pid]; ok {
			s.deny(unit)
		} else {
			s.opaque++
		}
	}
	if !s.masked {
		return
	}
	for _, pid := range pids {
		delete(members, pid)
	}
	for _, unit := range members {
		s.hidden++
		s.count(unit)
	}
}

// masked tells whether /proc is mounted so that it lists one's own processes
// alone (proc(5), hidepid=), and we are not free of that.
func masked() bool {
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	hides := false
	for i := range mounts {
		if mounts[i].Point == "/proc" {
			o := mounts[i].SuperOptions
			hides = slices.ContainsFunc([]string{"hidepid=2", "hidepid=invisible", "hidepid=4", "hidepid=ptraceable"},
				func(how string) bool { return strings.Contains(o, how) })
		}
	}
	_, err = os.Lstat("/proc/1")
	return hides && err != nil
}

// members tells of which unit each process is by the files of the control
// groups; "" is none. It is empty where those cannot be read.
func members(top string) map[int]string {
	out := map[int]string{}
	for _, top := range []string{top, filepath.Join(top, "unified"), filepath.Join(top, "systemd")} {
		if _, err := os.Lstat(filepath.Join(top, "cgroup.procs")); err != nil {
			continue // no hierarchy begins here
		}
		_ = filepath.WalkDir(top, func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return fs.SkipDir
			}
			dir := filepath.Dir(name)
			if e.Name() != "cgroup.procs" || e.IsDir() || dir == top {
				return nil
			}
			unit, _ := unitsOf(strings.TrimPrefix(dir, top))
			text, err := os.ReadFile(name)
			if err != nil {
				return nil
			}
			for f := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					out[pid] = unit
				}
			}
			return nil
		})
		break
	}
	return out
}
