package nsmount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// A workspace is the root as a view that programs change: each volume is the lower
// layer of an overlay whose upper is kept, so that what they did can be compared
// and committed. It differs from the staged view in this:
//
//  1. The uppers lie in one folder (home), N/up for the volume N of Volumes, be it on
//     another file system than the volume: nothing is written to that before a commit.
//  2. redirect_dir=on: a folder can be renamed, and the upper says where from.
//     index=on: a file of several names stays one when it is written to. volatile: the overlay never flushes; the commit's
//     barrier does, and what was cut off is thrown away.
//  3. It is built in a process that lives as long as the work, and is left mounted
//     there for a container to take; /proc, /dev and /sys are the container's.

// WorkspaceSpec is what the process that builds a workspace is told; it crosses
// as JSON.
type WorkspaceSpec struct {
	Path string // the root, in this mount namespace
	// HomeMount and Home name the folder of the uppers: a path in that volume, or of
	// this mount namespace where HomeMount is empty.
	HomeMount string
	Home      string
	Volumes   []WorkspaceVolume
	// OwnTmp gives an empty /tmp; else the root's is shown, and what is written there
	// is thrown away.
	OwnTmp bool
	// Binds show files and folders of this mount namespace in the view.
	Binds []Bind
}

// ownRun is liveupd's own folder of the view's /run.
const ownRun = "/run/liveupd"

// Bind shows From, a path of the mount namespace (or, where Home is set, one beside
// the home), at To in the view's /run or upon something that is there.
type Bind struct {
	From, To string
	Home     bool
	ReadOnly bool
}

// WorkspaceVolume is one volume; its upper is Number/up in the home.
type WorkspaceVolume struct {
	Mount    string
	Number   int
	Dev, Ino uint64 // of its root directory: the child opens it anew, by path
	ReadOnly bool   // nothing can be written to it: no upper
}

// Workspace describes a workspace of the volumes of r, and makes its folders in home,
// which is empty. A volume that writable refuses is shown read-only.
func (r *Root) Workspace(k *sys.Kernel, home *sys.FD, homePath string, writable func(Volume) bool) (*WorkspaceSpec, error) {
	s := &WorkspaceSpec{Path: r.path, Home: homePath}
	if homePath == "" {
		var err error
		s.HomeMount = "/"
		if s.Home, err = below(r, r.vols[0], home); err != nil {
			return nil, fmt.Errorf("cannot find the folder of the workspace: %w", err)
		}
	}
	for i, vol := range r.vols {
		if vol.tree == nil {
			return nil, &UnsupportedError{Feature: "a sandbox", Needs: "CAP_SYS_ADMIN"}
		}
		n, err := vol.Dir.Stat()
		if err != nil {
			return nil, err
		}
		v := WorkspaceVolume{Mount: vol.Mount, Number: i, Dev: n.Dev, Ino: n.Ino, ReadOnly: !writable(vol.Volume)}
		s.Volumes = append(s.Volumes, v)
		if v.ReadOnly {
			continue
		}
		if err := makeUpper(k, home, vol.Dir, strconv.Itoa(i)); err != nil {
			return nil, fmt.Errorf("cannot make the workspace of %s: %w", vol.Mount, err)
		}
	}
	return s, nil
}

// makeUpper makes NUMBER/up, which looks like the volume's root directory: that of
// an overlay is its upper's.
func makeUpper(k *sys.Kernel, home, live *sys.FD, number string) error {
	if err := k.Mkdir(home, number, 0o700); err != nil {
		return err
	}
	dir, err := sys.OpenDirAt(home, number)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, name := range []string{"up", "work"} {
		if err := k.Mkdir(dir, name, 0o700); err != nil {
			return err
		}
	}
	n, err := live.Stat()
	if err != nil {
		return err
	}
	xattrs, err := live.Xattrs()
	if err != nil {
		return err
	}
	if err := k.Chown(dir, "up", n.UID, n.GID); err != nil {
		return err
	}
	if err := k.Chmod(dir, "up", n.Mode); err != nil {
		return err
	}
	for key, val := range xattrs {
		if strings.HasPrefix(key, "trusted.overlay.") {
			continue
		}
		if err := k.SetXattr(dir, "up", key, val); err != nil {
			return err
		}
	}
	return nil
}

// BuiltWorkspace is a workspace that is mounted in this process's namespace.
type BuiltWorkspace struct {
	Root  string // where
	State string // an empty folder in memory that goes with the namespace
	Run   string // what the view has as /run
}

// BuildWorkspace mounts what raw, a WorkspaceSpec, describes. It is called once in
// the life of a process in a mount namespace of its own, which nobody shares.
func BuildWorkspace(raw json.RawMessage) (*BuiltWorkspace, error) {
	var s WorkspaceSpec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("cannot read what to show: %w", err)
	}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	w := &workspace{spec: &s}
	var err error
	if w.builder, err = newBuilder(&viewSpec{Path: s.Path}); err != nil {
		return nil, err
	}
	return w.build()
}

type workspace struct {
	*builder
	spec *WorkspaceSpec
	home string // as a path below the scratch place
	// binds are opened before the scratch place hides anything.
	binds []*sys.FD
}

func (w *workspace) build() (*BuiltWorkspace, error) {
	if err := w.sameVolumes(); err != nil {
		return nil, err
	}
	var home *sys.FD
	if w.spec.HomeMount != "" {
		var err error
		if home, err = sys.OpenMount(nil, w.root.hostPath(w.spec.HomeMount), true, false); err != nil {
			return nil, err
		}
		// The file system itself was made writable by who asked for this; this copy
		// of its mount is ours alone.
		if err := w.k.SetMountAttr(home, 0, sys.MountReadOnly); err != nil {
			return nil, err
		}
	} else {
		var err error
		if home, err = sys.OpenMount(nil, w.spec.Home, true, true); err != nil {
			return nil, err
		}
	}
	if err := w.openBinds(); err != nil {
		return nil, err
	}
	scratch, err := w.k.NewMount("tmpfs", sys.MountNoDev, sys.Option{Key: "mode", Value: "0700"}, sys.Option{Key: "size", Value: "25%"})
	if err != nil {
		return nil, err
	}
	at, err := hiddenPoint()
	if err != nil {
		return nil, err
	}
	if err := w.k.AttachMount(scratch, at); err != nil {
		return nil, err
	}
	base := at.Name()
	if err := os.Chdir(base); err != nil {
		return nil, err
	}
	if w.home, err = w.attach("home", 0, home); err != nil {
		return nil, err
	}
	if w.spec.HomeMount != "" {
		w.home = path.Join(w.home, w.spec.Home)
	}
	for _, v := range w.spec.Volumes {
		if err := w.addLayered(v); err != nil {
			return nil, fmt.Errorf("cannot show %s: %w", v.Mount, err)
		}
	}
	for i, c := range w.copies {
		if w.spec.OwnTmp && c.point == "/tmp" {
			continue
		}
		if err := w.addCover(len(w.root.vols)+i, c); err != nil {
			return nil, fmt.Errorf("cannot show %s: %w", c.point, err)
		}
	}
	steps := []func() error{w.maskOwn, w.addRun}
	if w.spec.OwnTmp {
		steps = append(steps, w.addTmp)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if err := w.addBinds(); err != nil {
		return nil, err
	}
	if err := os.Mkdir("state", 0o700); err != nil {
		return nil, err
	}
	root := path.Join(base, "v0")
	return &BuiltWorkspace{Root: root, State: path.Join(base, "state"), Run: path.Join(root, "run")}, nil
}

// hiddenPoint opens a directory to mount on, of those that a container's runtime does
// not look into: it finds systemd by /run.
func hiddenPoint() (*sys.FD, error) {
	for _, dir := range []string{"/mnt", "/tmp", "/media", "/srv"} {
		if fd, err := sys.OpenRoot(dir); err == nil {
			return fd, nil
		}
	}
	return scratchPoint()
}

// openBinds copies the mounts of what is shown from outside.
func (w *workspace) openBinds() error {
	w.binds = make([]*sys.FD, len(w.spec.Binds))
	for i, b := range w.spec.Binds {
		if b.Home && w.spec.HomeMount != "" {
			continue
		}
		from := b.From
		if b.Home {
			from = path.Join(path.Dir(w.spec.Home), b.From)
		}
		var err error
		if w.binds[i], err = sys.OpenMount(nil, from, true, true); err != nil {
			return fmt.Errorf("cannot show %s: %w", b.From, err)
		}
	}
	return nil
}

func (w *workspace) addBinds() error {
	for i, b := range w.spec.Binds {
		mnt := w.binds[i]
		if mnt == nil {
			var err error
			if mnt, err = sys.OpenMount(nil, path.Join(path.Dir(w.home), b.From), true, false); err != nil {
				return fmt.Errorf("cannot show %s: %w", b.From, err)
			}
		}
		if err := w.addBind(mnt, b); err != nil {
			return fmt.Errorf("cannot show %s as %s: %w", b.From, b.To, err)
		}
	}
	return nil
}

func (w *workspace) addBind(mnt *sys.FD, b Bind) error {
	// The folder lies on a file system of the host's, which may take device nodes.
	attrs := uint64(quiet)
	if b.ReadOnly {
		attrs |= sys.MountReadOnly
	}
	if err := w.k.SetMountAttr(mnt, attrs, 0); err != nil {
		return err
	}
	n, err := mnt.Stat()
	if err != nil {
		return err
	}
	if path.Dir(b.To) == ownRun {
		if err := w.ensureDir(ownRun, 0o755); err != nil {
			return err
		}
		parent, err := w.openDir(path.Dir(b.To))
		if err != nil {
			return err
		}
		defer parent.Close()
		if n.IsDir() {
			err = w.k.Mkdir(parent, path.Base(b.To), 0o755)
		} else {
			var f *sys.FD
			if f, err = w.k.Create(parent, path.Base(b.To), 0o644); err == nil {
				err = f.Close()
			}
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return w.mountAt(mnt, b.To)
}

// sameVolumes refuses where another file system was mounted meanwhile, and leaves
// out what is there no more: disks come and go.
func (w *workspace) sameVolumes() error {
	still := w.spec.Volumes[:0]
	for _, want := range w.spec.Volumes {
		i := slices.IndexFunc(w.root.vols, func(v *volume) bool { return v.Mount == want.Mount })
		if i < 0 {
			continue // its upper stays empty
		}
		still = append(still, want)
		n, err := w.root.vols[i].Dir.Stat()
		if err != nil {
			return err
		}
		if n.Dev != want.Dev || n.Ino != want.Ino {
			return fmt.Errorf("another file system was mounted on %s meanwhile", want.Mount)
		}
	}
	w.spec.Volumes = still
	return nil
}

// addLayered mounts the overlay of one volume at its place.
func (w *workspace) addLayered(v WorkspaceVolume) error {
	i := slices.IndexFunc(w.root.vols, func(have *volume) bool { return have.Mount == v.Mount })
	vol := w.root.vols[i]
	if err := w.k.SetMountAttr(vol.tree, sys.MountReadOnly, 0); err != nil {
		return err
	}
	lower, err := w.attach("l", i, vol.tree)
	if err != nil {
		return err
	}
	var top *sys.FD
	if v.ReadOnly {
		if top, err = sys.OpenMount(nil, lower, true, false); err != nil {
			return err
		}
	} else {
		own := path.Join(w.home, strconv.Itoa(v.Number))
		if top, err = w.layered(vol.FSType, lower, own+"/up", own+"/work"); err != nil {
			return err
		}
	}
	if v.Mount == "/" {
		name, err := w.attach("v", 0, top)
		if err != nil {
			return err
		}
		w.view, err = sys.OpenRoot(name)
		return err
	}
	return w.mountAt(top, v.Mount)
}

// layered makes the overlay. A kernel before 5.10 has no volatile, and one may lack
// the default for the rest; what no folder can be renamed on serves, too.
func (w *workspace) layered(fstype, lower, up, work string) (*sys.FD, error) {
	opts := []sys.Option{
		{Key: "lowerdir", Value: lower},
		{Key: "upperdir", Value: up},
		{Key: "workdir", Value: work},
		{Key: "redirect_dir", Value: "on"},
		{Key: "metacopy", Value: "off"},
		{Key: "index", Value: "on"},
		{Key: "xino", Value: "off"},
	}
	fd, err := w.k.NewMount("overlay", sys.MountNoDev, append(slices.Clone(opts), sys.Option{Key: "volatile"})...)
	if errors.Is(err, syscall.EINVAL) {
		fd, err = w.k.NewMount("overlay", sys.MountNoDev, opts...)
	}
	for _, errno := range []syscall.Errno{syscall.ENODEV, syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ELOOP} {
		if errors.Is(err, errno) {
			return nil, fmt.Errorf("%w: %w", &UnsupportedError{
				Feature: fmt.Sprintf("a sandbox over %s (%v)", fstype, err),
				Needs:   "overlayfs, and a root that is no overlay itself",
			}, err)
		}
	}
	return fd, err
}

// WriteFile lays a file into the view of a workspace, following the view's own links.
func (b *BuiltWorkspace) WriteFile(name string, content []byte, mode uint32) error {
	root, err := os.OpenRoot(b.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	name = strings.TrimPrefix(path.Clean(name), "/")
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.WriteFile(name, content, fs.FileMode(mode)); err != nil {
		return err
	}
	return root.Chmod(name, fs.FileMode(mode))
}

// ReadRun reads a file of the view's /run; false where there is none. What programs may have put in
// its place is an error: a pipe, in which nobody writes, would hold the reader up for ever.
func (b *BuiltWorkspace) ReadRun(name string) (content string, ok bool, err error) {
	root, err := os.OpenRoot(b.Run)
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	f, err := root.OpenFile(strings.TrimPrefix(path.Clean(name), "/run/"), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot read the sandbox's %s: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", false, fmt.Errorf("cannot read the sandbox's %s: %w", name, err)
	}
	if !st.Mode().IsRegular() {
		return "", false, fmt.Errorf("cannot read the sandbox's %s: it is no file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKept+1))
	if err == nil && len(data) > maxKept {
		err = fmt.Errorf("it has more than %d MB", maxKept>>20)
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot read the sandbox's %s: %w", name, err)
	}
	return string(data), true, nil
}

// maxKept bounds what a command can hand back, in bytes.
const maxKept = 32 << 20
