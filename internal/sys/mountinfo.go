package sys

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one line of /proc/PID/mountinfo, proc_pid_mountinfo(5). All strings
// are bytes as the kernel has them, with the octal escapes undone: a mount
// point need not be UTF-8 and may hold spaces and newlines.
type Mount struct {
	ID     int
	Parent int // the mount that it is mounted upon; not listed for the root of a namespace
	Major  uint32
	Minor  uint32
	// Dev is Major and Minor as stat's st_dev. Objects on btrfs report a
	// device of their subvolume instead: compare mounts with mounts only.
	Dev          uint64
	Root         string // what of the file system is seen at Point; ends in "//deleted" where that was removed
	Point        string // relative to the root directory of the process that was read
	Options      string // of this mount: "ro,nosuid,relatime"
	FSType       string
	Source       string
	SuperOptions string // of the file system: "rw,errors=remount-ro"
	Shared       int    // peer group; 0: private
	Master       int    // peer group that it is a slave of; 0: none
}

// ReadOnly tells whether this mount refuses writes by a flag of its own.
func (m *Mount) ReadOnly() bool { return hasOption(m.Options, "ro") }

// SuperReadOnly tells whether the file system as a whole refuses writes.
func (m *Mount) SuperReadOnly() bool { return hasOption(m.SuperOptions, "ro") }

// Inside tells whether the mount point is dir or lies below it.
func (m *Mount) Inside(dir string) bool {
	return m.Point == dir || dir == "/" || strings.HasPrefix(m.Point, dir+"/")
}

func hasOption(list, want string) bool {
	for opt := range strings.SplitSeq(list, ",") {
		if opt == want {
			return true
		}
	}
	return false
}

// ReadMountinfo parses a mountinfo file, "/proc/self/mountinfo" or that of
// another process. The order is the kernel's: a mount comes after its parent's
// creation, and of two with one point the later covers the earlier.
func ReadMountinfo(path string) ([]Mount, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts, err := ParseMountinfo(f)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return mounts, nil
}

// ParseMountinfo parses proc_pid_mountinfo(5). A line that does not have the
// format is an error: leaving a mount out would leave it unprotected.
//
// moby/sys/mountinfo is not used: it reads by bufio.Scanner, whose 64 KiB limit
// one overlay with many lowers exceeds, and then no mount is seen at all.
func ParseMountinfo(r io.Reader) ([]Mount, error) {
	var out []Mount
	br := bufio.NewReader(r) // no Scanner: overlay's options exceed its line limit
	for n := 1; ; n++ {
		line, err := br.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if line = bytes.TrimSuffix(line, []byte("\n")); len(line) > 0 {
			m, perr := parseMount(string(line))
			if perr != nil {
				return nil, fmt.Errorf("line %d: %w", n, perr)
			}
			out = append(out, m)
		}
		if err != nil {
			return out, nil
		}
	}
}

// parseMount reads
//
//	36 35 98:0 /root /point rw,noatime shared:1 master:2 - ext4 /dev/sda1 rw,errors=continue
//
// with any number of optional fields before the hyphen. Fields are separated by
// exactly one space, so that an empty source stays an empty field.
func parseMount(line string) (Mount, error) {
	var m Mount
	f := strings.Split(line, " ")
	sep := 6
	for sep < len(f) && f[sep] != "-" {
		sep++
	}
	if sep+3 >= len(f) {
		return m, fmt.Errorf("%q is no mount: want ten fields or more", line)
	}
	var err error
	if m.ID, err = strconv.Atoi(f[0]); err != nil {
		return m, fmt.Errorf("mount id %q: %w", f[0], err)
	}
	if m.Parent, err = strconv.Atoi(f[1]); err != nil {
		return m, fmt.Errorf("parent id %q: %w", f[1], err)
	}
	major, minor, _ := strings.Cut(f[2], ":")
	maj, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return m, fmt.Errorf("device %q: %w", f[2], err)
	}
	mnr, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return m, fmt.Errorf("device %q: %w", f[2], err)
	}
	m.Major, m.Minor = uint32(maj), uint32(mnr)
	m.Dev = unix.Mkdev(m.Major, m.Minor)
	m.Root, m.Point, m.Options = unescape(f[3]), unescape(f[4]), f[5]
	for _, opt := range f[6:sep] {
		tag, val, _ := strings.Cut(opt, ":")
		id := 0
		if tag == "shared" || tag == "master" {
			if id, err = strconv.Atoi(val); err != nil {
				return m, fmt.Errorf("propagation %q: %w", opt, err)
			}
		}
		switch tag {
		case "shared":
			m.Shared = id
		case "master":
			m.Master = id
		}
	}
	m.FSType, m.Source, m.SuperOptions = unescape(f[sep+1]), unescape(f[sep+2]), f[sep+3]
	return m, nil
}

// unescape undoes the kernel's mangle(): three octal digits after a backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(v))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
