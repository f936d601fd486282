package nsmount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// namespace is one mount namespace of the machine.
type namespace struct {
	file  *os.File // nil where we may not enter it
	ino   uint64
	pid   int    // a process in it; 0 for one that only a mount keeps alive
	point string // that mount
	// seen are its mounts as that process sees them.
	seen []sys.Mount
}

func (n *namespace) close() error { return n.file.Close() }

func (n *namespace) String() string {
	if n.pid == 0 {
		return "the mount namespace that is kept at " + n.point
	}
	return fmt.Sprintf("the mount namespace of process %d (%s)", n.pid, comm(n.pid))
}

func comm(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "ended"
	}
	return strings.TrimSuffix(string(b), "\n")
}

// pids lists the processes of this pid namespace.
func pids() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out, nil
}

// gone tells that an error about a process means that there is none any more:
// it ended, or is a zombie without namespaces.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL)
}

// namespaces opens each mount namespace that a process is in or that is
// mounted somewhere in ours (as snapd keeps those of its snaps). The caller
// closes them.
func namespaces() (out []*namespace, err error) {
	defer func() {
		if err != nil {
			closeAll(out)
			out = nil
		}
	}()
	list, err := pids()
	if err != nil {
		return nil, err
	}
	seen := map[uint64]bool{}
	add := func(n *namespace, path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			f.Close()
			return err
		}
		n.ino = st.Sys().(*syscall.Stat_t).Ino
		if seen[n.ino] {
			return f.Close()
		}
		seen[n.ino] = true
		n.file = f
		out = append(out, n)
		return nil
	}
	var closed []*namespace // may not be entered
	for _, pid := range list {
		dir := "/proc/" + strconv.Itoa(pid)
		err := add(&namespace{pid: pid}, dir+"/ns/mnt")
		switch {
		case err == nil || gone(err):
		case errors.Is(err, fs.ErrPermission):
			mounts, err := sys.ReadMountinfo(dir + "/mountinfo")
			if gone(err) {
				continue
			}
			if err != nil {
				return out, err
			}
			closed = append(closed, &namespace{pid: pid, seen: mounts})
		default:
			return out, err
		}
	}
	own, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return out, err
	}
	for _, m := range own {
		if m.FSType == "nsfs" && strings.HasPrefix(m.Root, "mnt:[") {
			if err := add(&namespace{point: m.Point}, m.Point); err != nil {
				return out, err
			}
		}
	}
	return appendUnknown(out, closed)
}

// appendUnknown adds those of closed that are not also in open: a namespace
// that one of its processes does not let us enter, another may.
func appendUnknown(open, closed []*namespace) ([]*namespace, error) {
	if len(closed) == 0 {
		return open, nil
	}
	known := map[int]bool{}
	for _, n := range open {
		err := n.within(func(mounts []sys.Mount) error {
			for _, m := range mounts {
				known[m.ID] = true
			}
			return nil
		})
		if err != nil {
			return open, err
		}
	}
	for _, n := range closed {
		if slices.ContainsFunc(n.seen, func(m sys.Mount) bool { return known[m.ID] }) {
			continue
		}
		for _, m := range n.seen {
			known[m.ID] = true
		}
		open = append(open, n)
	}
	return open, nil
}

func closeAll(list []*namespace) {
	for _, n := range list {
		n.file.Close()
	}
}

// within runs f in the namespace, on a thread that ends with it, with all its
// mounts. A process's own mountinfo would show only what its root directory
// lets it see.
func (n *namespace) within(f func(mounts []sys.Mount) error) error {
	proc, err := os.OpenRoot("/proc")
	if err != nil {
		return err
	}
	defer proc.Close()
	return sys.OnThread(func() error {
		if err := sys.EnterMountNS(n.file); err != nil {
			return fmt.Errorf("cannot enter %s: %w", n, err)
		}
		info, err := proc.Open("thread-self/mountinfo")
		if err != nil {
			return err
		}
		defer info.Close()
		mounts, err := sys.ParseMountinfo(info)
		if err != nil {
			return fmt.Errorf("cannot read the mounts of %s: %w", n, err)
		}
		return f(mounts)
	})
}

// flagged is a mount in some namespace that was given a read-only flag. It is
// kept by its number, not by a descriptor, which would keep it from being
// unmounted; the namespace stays until we are done, should its last process end.
type flagged struct {
	ns    *namespace
	id    int
	point string
}

// protect gives a read-only flag to each mount of the file system, in any
// namespace, that has none, and refuses where it cannot. It looks again until
// there is none left: namespaces are copied at any time.
func (s *super) protect(k *sys.Kernel) error {
	for range 8 {
		all, err := namespaces()
		if err != nil {
			return fmt.Errorf("cannot look for its other mounts: %w", err)
		}
		before := len(s.flags)
		used := map[*namespace]bool{}
		for _, n := range all {
			count := len(s.flags)
			if err = s.protectIn(k, n); err != nil {
				err = fmt.Errorf("%s: %w", n, err)
			}
			used[n] = len(s.flags) > count
			if err != nil {
				break
			}
		}
		for _, n := range all {
			if !used[n] {
				n.file.Close()
			}
		}
		if err != nil || len(s.flags) == before {
			return err
		}
	}
	return errors.New("new mounts of it keep appearing")
}

func (s *super) protectIn(k *sys.Kernel, n *namespace) error {
	if n.file == nil {
		for _, m := range n.seen {
			if m.Dev == s.dev && !m.ReadOnly() {
				return fmt.Errorf("its mount on %s would become writable too, and cannot be reached from here", m.Point)
			}
		}
		return nil
	}
	return n.within(func(mounts []sys.Mount) error {
		for _, m := range mounts {
			if m.Dev != s.dev || m.ReadOnly() {
				continue
			}
			if err := s.note.add(noteLine{Namespace: n.ino, ID: m.ID, Point: m.Point}); err != nil {
				return fmt.Errorf("cannot note that its mount on %s is made read-only: %w", m.Point, err)
			}
			if err := setFlag(k, m.ID, m.Point, sys.MountReadOnly, 0); err != nil {
				return fmt.Errorf("its mount on %s would become writable too, and cannot be made read-only: %w", m.Point, err)
			}
			s.flags = append(s.flags, flagged{n, m.ID, m.Point})
		}
		return nil
	})
}

// setFlag changes the flags of the mount with this number in the calling
// thread's namespace. There is no way to one that another mount hides.
func setFlag(k *sys.Kernel, id int, point string, set, clr uint64) error {
	fd, err := sys.OpenMount(nil, point, false, false)
	if err != nil {
		return err
	}
	defer fd.Close()
	got, err := sys.MountID(fd)
	if err != nil {
		return err
	}
	if got != id {
		return fmt.Errorf("another mount hides it: %w", syscall.EBUSY)
	}
	return k.SetMountAttr(fd, set, clr)
}

// unprotect takes back the flags that protect gave, from what is still mounted.
func (s *super) unprotect(k *sys.Kernel) error {
	var errs []error
	var left []flagged
	for len(s.flags) > 0 {
		n := s.flags[0].ns
		var mine, others []flagged
		for _, f := range s.flags {
			if f.ns == n {
				mine = append(mine, f)
			} else {
				others = append(others, f)
			}
		}
		s.flags = others
		failed := 0
		err := n.within(func(mounts []sys.Mount) error {
			for _, f := range mine {
				i := slices.IndexFunc(mounts, func(m sys.Mount) bool { return m.ID == f.id && m.Dev == s.dev })
				if i < 0 {
					continue // unmounted meanwhile
				}
				if err := setFlag(k, f.id, mounts[i].Point, 0, sys.MountReadOnly); err != nil {
					failed++
					left = append(left, f)
					errs = append(errs, fmt.Errorf("cannot take back the read-only flag of %s in %s: %w", f.point, n, err))
				}
			}
			return nil
		})
		if err != nil {
			left = append(left, mine...)
			errs = append(errs, err)
			continue
		}
		if failed == 0 {
			n.file.Close()
		}
	}
	s.flags = left
	return errors.Join(errs...)
}
