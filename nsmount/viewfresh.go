package nsmount

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

const quiet = sys.MountNoSuid | sys.MountNoDev | sys.MountNoExec

// addProc mounts a /proc that shows the view's processes alone, with what
// sets the kernel's parameters read-only.
func (b *builder) addProc() error {
	if err := b.freshAt("/proc", "proc", quiet, true); err != nil {
		return err
	}
	for _, name := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"} {
		if err := b.readOnlyAt(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot make %s read-only: %w", name, err)
		}
	}
	return nil
}

// readOnlyAt covers a path of the view with a read-only copy of itself.
func (b *builder) readOnlyAt(point string) error {
	at, err := sys.OpenAt(b.view, strings.TrimPrefix(point, "/"), sys.OpenPath|sys.OpenNoLink, sys.ResolveInRoot|sys.ResolveNoMagic)
	if err != nil {
		return err
	}
	defer at.Close()
	copied, err := sys.OpenMount(at, "", true, false)
	if err != nil {
		return err
	}
	defer copied.Close()
	if err := b.k.SetMountAttr(copied, sys.MountReadOnly|quiet, 0); err != nil {
		return err
	}
	return b.k.AttachMount(copied, at)
}

// addSys shows the live /sys, read-only, without what is mounted below it
// (cgroups, debugfs, efivars).
func (b *builder) addSys() error {
	if err := b.ensureDir("/sys", 0o755); err != nil {
		return err
	}
	if err := b.k.SetMountAttr(b.sysfs, sys.MountReadOnly|quiet, 0); err != nil {
		return err
	}
	return b.mountAt(b.sysfs, "/sys")
}

// addDev makes a /dev with the devices that lead nowhere, a terminal instance
// of its own, and shared memory.
func (b *builder) addDev() error {
	err := b.freshAt("/dev", "tmpfs", sys.MountNoSuid|sys.MountNoExec, true, sys.Option{Key: "mode", Value: "0755"}, sys.Option{Key: "size", Value: "64k"})
	if err != nil {
		return err
	}
	dev, err := b.openDir("/dev")
	if err != nil {
		return err
	}
	defer dev.Close()
	for name, minor := range map[string]uint64{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := b.device(dev, name, 1<<8|minor); err != nil {
			return err
		}
	}
	if err := b.device(dev, "tty", 5<<8); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := b.k.Symlink(target, dev, name); err != nil {
			return err
		}
	}
	err = b.freshAt("/dev/pts", "devpts", sys.MountNoSuid|sys.MountNoExec, true,
		sys.Option{Key: "newinstance"}, sys.Option{Key: "ptmxmode", Value: "0666"}, sys.Option{Key: "mode", Value: "0620"}, sys.Option{Key: "gid", Value: "5"})
	if err != nil {
		return err
	}
	return b.freshAt("/dev/shm", "tmpfs", sys.MountNoSuid|sys.MountNoDev, true, sys.Option{Key: "mode", Value: "1777"})
}

// device makes a character device, or shows the host's where that is forbidden
// to us, as it is in a container.
func (b *builder) device(dev *sys.FD, name string, rdev uint64) error {
	err := b.k.Mknod(dev, name, syscall.S_IFCHR|0o666, rdev)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	file, err := b.k.Create(dev, name, 0o666)
	if err != nil {
		return err
	}
	defer file.Close()
	host, err := sys.OpenMount(nil, "/dev/"+name, true, false)
	if err != nil {
		return err
	}
	defer host.Close()
	return b.k.AttachMount(host, file)
}

// Bounds of the directories of /run that are repeated.
const (
	runDepth = 8
	runDirs  = 4096
)

// addRun makes an empty /run that has the live one's directories, so that pid
// files can be written, and none of its sockets: with those a hook would
// reach systemd and D-Bus, and restart what it likes.
func (b *builder) addRun() error {
	err := b.freshAt("/run", "tmpfs", sys.MountNoSuid|sys.MountNoDev, true, sys.Option{Key: "mode", Value: "0755"}, sys.Option{Key: "size", Value: "25%"})
	if err != nil {
		return err
	}
	to, err := b.openDir("/run")
	if err != nil {
		return err
	}
	defer to.Close()
	if b.run != nil {
		n, err := b.run.Stat()
		if err != nil {
			return err
		}
		left := runDirs
		if err := b.copyDirs(b.run, to, n.Dev, runDepth, &left); err != nil {
			return fmt.Errorf("cannot repeat the directories of /run: %w", err)
		}
	}
	if err := b.ensureDir("/run/lock", 0o1777); err != nil {
		return err
	}
	if err := b.k.Chmod(to, "lock", 0o1777); err != nil {
		return err
	}
	return b.addResolvConf()
}

// copyDirs repeats the directories below from that are on the file system dev.
// They come and go meanwhile: one that is gone is none.
func (b *builder) copyDirs(from, to *sys.FD, dev uint64, depth int, left *int) error {
	names, err := sys.ReadDirNames(from)
	if err != nil || depth == 0 {
		return err
	}
	for _, name := range names {
		n, err := sys.Lstat(from, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if n.Dev == dev && b.spec.Session != nil && b.spec.Session.RunFiles {
			if err := b.copyRunFile(from, to, name, n); err != nil {
				return err
			}
		}
		if !n.IsDir() || n.Dev != dev || *left == 0 {
			continue
		}
		*left--
		if err := b.copyDir(from, to, name, n, depth, left); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) copyDir(from, to *sys.FD, name string, n *change.Node, depth int, left *int) error {
	sub, err := sys.OpenAt(from, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoXDev)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := b.k.Mkdir(to, name, 0o700); err != nil {
		return err
	}
	if err := b.k.Chown(to, name, n.UID, n.GID); err != nil {
		return err
	}
	if err := b.k.Chmod(to, name, n.Mode); err != nil {
		return err
	}
	made, err := sys.OpenAt(to, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath)
	if err != nil {
		return err
	}
	defer made.Close()
	return b.copyDirs(sub, made, n.Dev, depth-1, left)
}

// resolvConf is what /etc/resolv.conf leads to below /run. Validators resolve
// names: nginx -t does so for its upstreams.
type resolvConf struct {
	path    string
	content []byte
}

func readResolvConf(r *Root) *resolvConf {
	target, err := os.Readlink(r.hostPath("/etc/resolv.conf"))
	if err != nil {
		return nil
	}
	if !path.IsAbs(target) {
		target = path.Join("/etc", target)
	}
	if target = path.Clean(target); !strings.HasPrefix(target, "/run/") {
		return nil
	}
	f, err := os.Open(r.hostPath(target))
	if err != nil {
		return nil
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil
	}
	return &resolvConf{target, content}
}

func (b *builder) addResolvConf() error {
	if b.conf == nil {
		return nil
	}
	dir, err := b.openDir(path.Dir(b.conf.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deeper than what was repeated
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := b.k.Create(dir, path.Base(b.conf.path), 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	return b.k.Write(f, b.conf.content)
}

func (b *builder) addTmp() error {
	return b.freshAt("/tmp", "tmpfs", sys.MountNoSuid|sys.MountNoDev, true, sys.Option{Key: "mode", Value: "1777"}, sys.Option{Key: "size", Value: "25%"})
}
