package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/liveupd/liveupd/change"
)

// Proc is one process, held by its directory in /proc. Once the process has
// ended every look into it fails, also when its number has been given to
// another: nothing that is read belongs to a successor. A scan makes thousands
// of these: they are closed by their holder and have no finalizer.
type Proc struct {
	PID int
	dir FD
}

// OpenProc opens a process below procRoot, usually "/proc".
func OpenProc(procRoot *FD, pid int) (*Proc, error) {
	p := &Proc{PID: pid}
	if err := p.dir.openIn(procRoot, strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY); err != nil {
		return nil, err
	}
	return p, nil
}

// openIn opens name below dir; f has no finalizer then.
func (f *FD) openIn(dir *FD, name string, flags int) error {
	err := retry("openat", name, func() (err error) {
		f.n, err = unix.Openat(dir.n, name, flags|unix.O_CLOEXEC, 0)
		return err
	})
	f.name = name
	runtime.KeepAlive(dir)
	return err
}

func (f *FD) shut() { _ = unix.Close(f.n) } // of /proc: nothing is lost by an error

// Close lets go of the process.
func (p *Proc) Close() { p.dir.shut() }

// IsGone tells whether an error means that the process has ended.
func IsGone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }

// IsDenied tells whether an error means that looking is not permitted.
func IsDenied(err error) bool { return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) }

// StatInto describes what a magic link leads to: "exe", "root", "ns/mnt",
// "map_files/RANGE". A kernel thread and a zombie have no exe: IsGone.
func (p *Proc) StatInto(name string, n *change.Node) error {
	var st unix.Stat_t
	err := retry("fstatat", name, func() error { return unix.Fstatat(p.dir.n, name, &st, 0) })
	if err != nil {
		return err
	}
	fillNode(n, &st)
	return nil
}

// Readlink reads a magic link's text.
func (p *Proc) Readlink(name string) (string, error) { return Readlink(&p.dir, name) }

// Open opens what name leads to, for reading.
func (p *Proc) Open(name string, flags int) (*FD, error) { return OpenAt(&p.dir, name, flags, 0) }

// ReadFile reads a file of the process's directory, appending to buf.
func (p *Proc) ReadFile(name string, buf []byte) ([]byte, error) {
	var f FD
	if err := f.openIn(&p.dir, name, unix.O_RDONLY); err != nil {
		return buf, err
	}
	defer f.shut()
	// What fits is told in one piece: a read that leaves room has read it all.
	buf = slices.Grow(buf, 4096)
	room := buf[len(buf):cap(buf)]
	n, err := read(&f, room)
	if err != nil {
		return buf, err
	}
	if buf = buf[:len(buf)+n]; n < len(room) {
		return buf, nil
	}
	return readAll(&f, buf)
}

func read(f *FD, b []byte) (n int, err error) {
	err = retry("read", f.name, func() (err error) {
		n, err = unix.Read(f.n, b)
		return err
	})
	return n, err
}

func readAll(f *FD, buf []byte) ([]byte, error) {
	for {
		if cap(buf)-len(buf) < 4096 {
			grown := make([]byte, len(buf), 2*cap(buf)+8192)
			copy(grown, buf)
			buf = grown
		}
		n, err := read(f, buf[len(buf):cap(buf)])
		if err != nil {
			return buf, err
		}
		if n <= 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

// Mapping is one file-backed area of a process's memory.
type Mapping struct {
	Start, End uint64
	// Dev and Ino are the kernel's own numbers of the file. Dev is not
	// always what stat says: btrfs subvolumes share one here.
	Dev, Ino uint64
	Exec     bool
	// Name is the file's path as proc_pid_maps(5) shows it, with its
	// " (deleted)"; "" where it was not asked for.
	Name string
	maps *FD // to ask for it
}

// File is the mapping's magic link in the process's directory.
func (m *Mapping) File() string { return fmt.Sprintf("map_files/%x-%x", m.Start, m.End) }

// Path is the path of the file, with its " (deleted)"; "" where it has none. It
// can be asked while the mapping is yielded.
func (m *Mapping) Path() string {
	if m.Name == "" && m.maps != nil {
		m.Name = queryName(m.maps, m.Start)
	}
	return m.Name
}

// procmapQuery is struct procmap_query of linux/fs.h (Linux 6.11).
type procmapQuery struct {
	size        uint64
	queryFlags  uint64
	queryAddr   uint64
	vmaStart    uint64
	vmaEnd      uint64
	vmaFlags    uint64
	vmaPageSize uint64
	vmaOffset   uint64
	inode       uint64
	devMajor    uint32
	devMinor    uint32
	vmaNameSize uint32
	buildIDSize uint32
	vmaNameAddr uint64
	buildIDAddr uint64
}

const (
	procmapExecutable     = 0x04
	procmapCoveringOrNext = 0x10
	procmapFileBacked     = 0x20

	// _IOWR('f', 17, struct procmap_query)
	ioctlProcmapQuery = 3<<30 | unsafe.Sizeof(procmapQuery{})<<16 | 'f'<<8 | 17
)

// procmapMissing is set once the kernel has said that it has no PROCMAP_QUERY.
var procmapMissing atomic.Bool

// MapsOptions say which mappings are wanted.
type MapsOptions struct {
	Exec bool // executable ones only
	Text bool // read the text even where PROCMAP_QUERY exists
}

// Maps calls yield with each file-backed mapping, by PROCMAP_QUERY where the
// kernel has it (Linux 6.11), by the text of /proc/PID/maps elsewhere. The
// mapping is good until yield returns.
func (p *Proc) Maps(o MapsOptions, yield func(m *Mapping) bool) error {
	var f FD
	if err := f.openIn(&p.dir, "maps", unix.O_RDONLY); err != nil {
		return err
	}
	defer f.shut()
	if !o.Text && !procmapMissing.Load() {
		err := queryMaps(&f, o, yield)
		if !errors.Is(err, unix.ENOTTY) {
			return err
		}
		procmapMissing.Store(true)
	}
	text, err := readAll(&f, make([]byte, 0, 64<<10))
	if err != nil {
		return err
	}
	ParseMaps(text, func(m Mapping) bool { return o.Exec && !m.Exec || yield(&m) })
	return nil
}

func queryMaps(f *FD, o MapsOptions, yield func(*Mapping) bool) error {
	q := procmapQuery{size: uint64(unsafe.Sizeof(procmapQuery{}))}
	flags := uint64(procmapCoveringOrNext | procmapFileBacked)
	if o.Exec {
		flags |= procmapExecutable
	}
	var m Mapping
	for addr := uint64(0); ; {
		q.queryFlags, q.queryAddr = flags, addr
		q.vmaNameSize, q.vmaNameAddr = 0, 0
		if err := procmap(f, &q); err != 0 {
			if err == unix.ENOENT {
				return nil
			}
			return &os.PathError{Op: "ioctl(PROCMAP_QUERY)", Path: f.name, Err: err}
		}
		m = Mapping{
			Start: q.vmaStart, End: q.vmaEnd, Dev: unix.Mkdev(q.devMajor, q.devMinor), Ino: q.inode,
			Exec: q.vmaFlags&procmapExecutable != 0, maps: f,
		}
		if !yield(&m) {
			return nil
		}
		if q.vmaEnd <= addr {
			return fmt.Errorf("cannot read %s: the kernel does not go on after %#x", f.name, addr)
		}
		addr = q.vmaEnd
	}
}

// queryName asks again for one mapping, with its path.
func queryName(f *FD, start uint64) string {
	name := make([]byte, unix.PathMax+16)
	var pin runtime.Pinner // the kernel gets its address as a number
	pin.Pin(&name[0])
	defer pin.Unpin()
	q := procmapQuery{
		size: uint64(unsafe.Sizeof(procmapQuery{})), queryAddr: start,
		vmaNameSize: uint32(len(name)), vmaNameAddr: uint64(uintptr(unsafe.Pointer(&name[0]))),
	}
	if procmap(f, &q) != 0 || q.vmaNameSize == 0 {
		return ""
	}
	return string(name[:q.vmaNameSize-1]) // its size counts the NUL
}

// procmap asks without telling the scheduler: an answer takes less than that,
// and a process has hundreds of mappings.
func procmap(f *FD, q *procmapQuery) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.n), ioctlProcmapQuery, uintptr(unsafe.Pointer(q)))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// MapsIdentity maps an open regular file of at least one byte and tells which
// numbers its mapping shows, to compare with stat's: the device differs on
// btrfs, the inode too on overlayfs before Linux 6.8.
func MapsIdentity(f *FD) (dev, ino uint64, err error) {
	page, err := unix.Mmap(f.n, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return 0, 0, callError(Call{Name: "mmap", Path: f.name}, err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(page)) }()
	runtime.KeepAlive(f)
	proc, err := OpenRoot("/proc")
	if err != nil {
		return 0, 0, err
	}
	defer proc.Close()
	self, err := OpenProc(proc, os.Getpid())
	if err != nil {
		return 0, 0, err
	}
	defer self.Close()
	addr := uint64(uintptr(unsafe.Pointer(&page[0])))
	found := false
	err = self.Maps(MapsOptions{}, func(m *Mapping) bool {
		if m.Start <= addr && addr < m.End {
			dev, ino, found = m.Dev, m.Ino, true
		}
		return !found
	})
	if err == nil && !found {
		err = fmt.Errorf("cannot find the mapping of %s in /proc/self/maps", f.name)
	}
	return dev, ino, err
}

// OpenNoAtime opens a regular file below dir for reading without touching its
// access time, where that is permitted.
func OpenNoAtime(dir *FD, name string) (*FD, error) {
	f, err := OpenAt(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME, ResolveBeneath)
	if errors.Is(err, unix.EPERM) {
		return OpenAt(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, ResolveBeneath)
	}
	return f, err
}

// ReadAt reads from an open file at an offset; fewer bytes than asked for
// only at its end.
func ReadAt(f *FD, b []byte, offset int64) (int, error) {
	total := 0
	for total < len(b) {
		var n int
		err := retry("pread64", f.name, func() (err error) {
			n, err = unix.Pread(f.n, b[total:], offset+int64(total))
			return err
		})
		runtime.KeepAlive(f)
		if err != nil {
			return total, err
		}
		if n == 0 {
			break
		}
		total += n
	}
	return total, nil
}

// Birth is when an object was made, in nanoseconds since the epoch; 0 where
// the file system does not record it.
func (p *Proc) Birth(name string) int64 {
	var st unix.Statx_t
	err := retry("statx", name, func() error { return unix.Statx(p.dir.n, name, 0, unix.STATX_BTIME, &st) })
	if err != nil || st.Mask&unix.STATX_BTIME == 0 {
		return 0
	}
	return st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
}

// Times are when an object was made, its content written and anything of it
// changed, in nanoseconds since the epoch. Born is 0 where the file system does
// not record it.
type Times struct{ Born, Modified, Changed int64 }

// TimesOf reads the times of what lies at a path, a symlink's own.
func TimesOf(path string) (Times, error) { return timesOf(path, unix.AT_SYMLINK_NOFOLLOW) }

// TimesOfTarget reads the times of what a path leads to.
func TimesOfTarget(path string) (Times, error) { return timesOf(path, 0) }

func timesOf(path string, flags int) (Times, error) {
	var st unix.Statx_t
	err := retry("statx", path, func() error {
		return unix.Statx(unix.AT_FDCWD, path, flags|unix.AT_NO_AUTOMOUNT, unix.STATX_BTIME|unix.STATX_MTIME|unix.STATX_CTIME, &st)
	})
	if err != nil {
		return Times{}, err
	}
	t := Times{Modified: st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec), Changed: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec)}
	if st.Mask&unix.STATX_BTIME != 0 {
		t.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return t, nil
}

// Clocks are one reading of the clocks that the times of processes (since
// boot), of systemd (monotonic) and of files (real) are given in, in
// nanoseconds.
type Clocks struct{ Real, Monotonic, Boot int64 }

// ReadClocks reads the three clocks.
func ReadClocks() (Clocks, error) {
	var c Clocks
	for _, read := range []struct {
		id   int32
		into *int64
	}{{unix.CLOCK_REALTIME, &c.Real}, {unix.CLOCK_MONOTONIC, &c.Monotonic}, {unix.CLOCK_BOOTTIME, &c.Boot}} {
		var ts unix.Timespec
		if err := unix.ClockGettime(read.id, &ts); err != nil {
			return c, os.NewSyscallError("clock_gettime", err)
		}
		*read.into = ts.Nano()
	}
	return c, nil
}

// TicksPerSecond is USER_HZ, the unit of /proc/PID/stat's times: 100 on every
// architecture that Go runs on.
const TicksPerSecond = 100
