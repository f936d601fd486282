package nsmount

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// Holder is a process that keeps a file system from going back to read-only:
// it has a file open for writing or mapped shared-writable, or uses a deleted one.
type Holder struct {
	PID  int
	Comm string
	Path string // as the process sees it
}

func (h Holder) String() string {
	return fmt.Sprintf("%s (process %d) holds %s", h.Comm, h.PID, h.Path)
}

// deleted is what the kernel appends to the path of an object without a name.
const deleted = " (deleted)"

// scan looks for the holders of one file system.
type scan struct {
	major, minor uint64
	stDevs       map[uint64]bool // st_dev of what lies on it: on btrfs one for each subvolume
	mounts       map[int]bool    // known mounts: whether it is of this file system
}

// holders finds who keeps the file system dev from turning read-only.
func (r *Root) holders(dev uint64) ([]Holder, error) {
	s := scan{stDevs: map[uint64]bool{}, mounts: map[int]bool{}}
	for _, v := range r.vols {
		if v.mount.Dev != dev {
			continue
		}
		n, err := v.Dir.Stat()
		if err != nil {
			return nil, err
		}
		s.stDevs[n.Dev] = true
		s.major, s.minor = uint64(v.mount.Major), uint64(v.mount.Minor)
		id, err := sys.MountID(v.Dir)
		if err != nil {
			return nil, err
		}
		s.mounts[id] = true
	}
	all, err := namespaces()
	if err != nil {
		return nil, fmt.Errorf("cannot look for the holders: %w", err)
	}
	defer closeAll(all)
	for _, n := range all {
		mounts := n.seen
		if n.file != nil {
			if err := n.within(func(m []sys.Mount) error { mounts = m; return nil }); err != nil {
				return nil, err
			}
		}
		for _, m := range mounts {
			s.mounts[m.ID] = m.Dev == dev
		}
	}
	list, err := pids()
	if err != nil {
		return nil, err
	}
	var out []Holder
	for _, pid := range list {
		paths := s.process(pid)
		slices.Sort(paths)
		for _, p := range slices.Compact(paths) {
			out = append(out, Holder{PID: pid, Comm: comm(pid), Path: strings.TrimSuffix(p, deleted)})
		}
	}
	return out, nil
}

// process lists what one process holds. A process that ends while it is looked
// at holds nothing: what cannot be read is passed over.
func (s *scan) process(pid int) []string {
	dir := "/proc/" + strconv.Itoa(pid)
	var out []string
	if fds, err := os.ReadDir(dir + "/fd"); err == nil {
		for _, fd := range fds {
			if p, ok := s.descriptor(dir, fd.Name()); ok {
				out = append(out, p)
			}
		}
	}
	for _, link := range []string{"cwd", "root", "exe"} {
		if p, ok := s.unlinked(dir + "/" + link); ok {
			out = append(out, p)
		}
	}
	if maps, err := os.Open(dir + "/maps"); err == nil {
		out = append(out, s.mappings(maps)...)
		maps.Close()
	}
	return out
}

// descriptor tells whether an open file holds the file system, and its path.
func (s *scan) descriptor(dir, fd string) (string, bool) {
	info, err := os.ReadFile(dir + "/fdinfo/" + fd)
	if err != nil {
		return "", false
	}
	flags, mount := parseFDInfo(info)
	ours, known := s.mounts[mount]
	if known && !ours {
		return "", false // before stat: that may hang on a dead server
	}
	name := dir + "/fd/" + fd
	st, err := os.Stat(name)
	if err != nil {
		return "", false
	}
	raw := st.Sys().(*syscall.Stat_t)
	if !ours && !s.stDevs[raw.Dev] {
		return "", false
	}
	writes := st.Mode().IsRegular() && flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if !writes && raw.Nlink > 0 {
		return "", false
	}
	p, err := os.Readlink(name)
	return p, err == nil
}

// parseFDInfo reads the flags of open(2), in octal, and the mount's number.
func parseFDInfo(b []byte) (flags uint64, mount int) {
	mount = -1
	for line := range bytes.Lines(b) {
		key, val, _ := bytes.Cut(line, []byte(":"))
		text := string(bytes.TrimSpace(val))
		switch string(key) {
		case "flags":
			flags, _ = strconv.ParseUint(text, 8, 64)
		case "mnt_id":
			if n, err := strconv.Atoi(text); err == nil {
				mount = n
			}
		}
	}
	return flags, mount
}

// unlinked tells whether a link of /proc/PID leads to an object of the file
// system without a name.
func (s *scan) unlinked(link string) (string, bool) {
	p, err := os.Readlink(link)
	if err != nil || !strings.HasSuffix(p, deleted) {
		return "", false
	}
	st, err := os.Stat(link)
	if err != nil {
		return "", false
	}
	raw := st.Sys().(*syscall.Stat_t)
	return p, raw.Nlink == 0 && s.stDevs[raw.Dev]
}

// mappings reads /proc/PID/maps, proc_pid_maps(5):
//
//	7f0a-7f0b rw-s 00000000 08:02 173521      /path (deleted)
//
// The device there is the file system's, on btrfs too.
func (s *scan) mappings(r io.Reader) []string {
	var out []string
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f := strings.SplitN(lines.Text(), " ", 6)
		if len(f) < 6 || len(f[1]) != 4 {
			continue
		}
		major, minor, _ := strings.Cut(f[3], ":")
		maj, err1 := strconv.ParseUint(major, 16, 32)
		mnr, err2 := strconv.ParseUint(minor, 16, 32)
		if err1 != nil || err2 != nil || maj != s.major || mnr != s.minor || f[4] == "0" {
			continue
		}
		p := strings.TrimLeft(f[5], " ")
		if (f[1][1] == 'w' && f[1][3] == 's') || strings.HasSuffix(p, deleted) {
			out = append(out, p)
		}
	}
	return out
}
