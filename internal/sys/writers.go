package sys

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/liveupd/liveupd/change"
)

// Writer is a process that has a file open for writing or mapped shared-writable.
type Writer struct {
	PID  int
	Comm string
}

func (w Writer) String() string { return fmt.Sprintf("%s (process %d)", w.Comm, w.PID) }

// Writers finds the processes that can write to a regular file through what they
// hold already. It is for a message: a process that ends meanwhile, or that we
// may not look at, is passed over.
func Writers(file *change.Node) []Writer {
	root, err := OpenRoot("/proc")
	if err != nil {
		return nil
	}
	defer root.Close()
	names, err := ReadDirNames(root)
	if err != nil {
		return nil
	}
	var out []Writer
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, err := OpenProc(root, pid)
		if err != nil {
			continue
		}
		if p.hasOpen(file) || p.hasMapped(file) {
			comm, _ := p.ReadFile("comm", nil) // it ends right now: it has no name any more
			out = append(out, Writer{PID: pid, Comm: string(bytes.TrimSpace(comm))})
		}
		p.Close()
	}
	return out
}

// leadsTo tells whether a magic link leads to the file. The server of a network
// file system is not asked: a dead one would not answer.
func (p *Proc) leadsTo(link string, file *change.Node) bool {
	var st unix.Statx_t
	err := unix.Statx(p.dir.n, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st)
	return err == nil && st.Ino == file.Ino && unix.Mkdev(st.Dev_major, st.Dev_minor) == file.Dev
}

func (p *Proc) hasOpen(file *change.Node) bool {
	dir, err := p.Open("fd", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer dir.Close()
	fds, err := ReadDirNames(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if !p.leadsTo("fd/"+fd, file) {
			continue
		}
		info, err := p.ReadFile("fdinfo/"+fd, nil)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			// proc_pid_fdinfo(5): the flags of open(2), in octal.
			val, ok := strings.CutPrefix(line, "flags:")
			if !ok {
				continue
			}
			flags, err := strconv.ParseUint(strings.TrimSpace(val), 8, 64)
			if err == nil && flags&unix.O_PATH == 0 && flags&unix.O_ACCMODE != unix.O_RDONLY {
				return true
			}
		}
	}
	return false
}

// hasMapped reads proc_pid_maps(5): "START-END rw-s OFFSET DEV INODE PATH". The
// device there is not always stat's, so the mapping itself is looked at.
func (p *Proc) hasMapped(file *change.Node) bool {
	text, err := p.ReadFile("maps", nil)
	if err != nil {
		return false
	}
	ino := strconv.FormatUint(file.Ino, 10)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != ino || len(f[1]) != 4 || f[1][1] != 'w' || f[1][3] != 's' {
			continue
		}
		start, end, _ := strings.Cut(f[0], "-")
		if p.leadsTo("map_files/"+strings.TrimLeft(start, "0")+"-"+strings.TrimLeft(end, "0"), file) {
			return true
		}
	}
	return false
}
