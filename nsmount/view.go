package nsmount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
)

// UnsupportedError says that this kernel or root cannot have a staged view:
// nothing is wrong with the update, but nothing can be validated either.
type UnsupportedError = sys.UnsupportedError

// ExitError is a program that ran in the view and did not succeed.
type ExitError struct {
	Argv   []string
	Code   int    // exit status; meaningless with a signal
	Signal string // what killed it, "" where it exited
}

func (e *ExitError) Error() string {
	if e.Signal != "" {
		return fmt.Sprintf("%s: killed by signal: %s", e.Argv[0], e.Signal)
	}
	return fmt.Sprintf("%s: exit status %d", e.Argv[0], e.Code)
}

// ViewUpper is what is staged for one volume, in the form of overlayfs's
// uppers: directories mirror the volume's, and a character device 0:0 stands
// for a removal.
type ViewUpper struct {
	Mount string // the volume's
	Up    *sys.FD
	// Work is an empty directory beside Up. The view leaves it alone, since it
	// writes nothing there; it may be nil.
	Work *sys.FD
}

// ViewOptions says what is seen: the root with the uppers over its volumes.
type ViewOptions struct {
	Root   *Root
	Uppers []ViewUpper
	// Changes are what else differs, written into each view that is built: for a
	// look at an update of which nothing is staged.
	Changes []ViewChange
}

// View is the root as it will be after the commit.
type View struct {
	spec    viewSpec
	changes []ViewChange
}

// viewSpec is what the child is told.
type viewSpec struct {
	Path    string
	Volumes []viewVolume
	Argv    []string // empty: build the view, and end
	Lay     bool     // changes come by a descriptor of their own
	// Session is what Do asks for; nil for Run.
	Session *ViewSession
}

type viewVolume struct {
	Mount    string
	Dev, Ino uint64 // of its root directory: the child opens it anew, by path
	Up       string // from there; "" for no upper
	// Nested: it is a btrfs subvolume that lies in another volume, and is no mount.
	Nested bool
}

// viewResult is what the child answers.
type viewResult struct {
	Err         string // the view could not be built or the program not started
	Unsupported *UnsupportedError
	NotFound    bool // there is no such program in the view
	Exit        int
	Signal      string
	Outcome     *ViewOutcome
}

const (
	viewArg   = "liveupd-view" // argv[0] of the child
	maxOutput = 64 << 10       // bytes of a program's output that are kept
	viewPath  = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// OpenView prepares the staged view and builds it once, so that a kernel or a
// root that cannot have one is known before anything is to be validated: then
// the error is an *UnsupportedError. The kernel's own calls are made by a child
// whose mounts vanish with it, so that there is no fault to ask k for.
func OpenView(ctx context.Context, _ *sys.Kernel, o ViewOptions) (*View, error) {
	v := &View{spec: viewSpec{Path: o.Root.path, Lay: len(o.Changes) > 0}, changes: o.Changes}
	for _, vol := range o.Root.vols {
		if vol.tree == nil {
			return nil, &UnsupportedError{Feature: "the staged view", Needs: "CAP_SYS_ADMIN"}
		}
		vv, err := describe(o, vol)
		if err != nil {
			return nil, fmt.Errorf("cannot open the staged view of %s: %w", vol.Mount, err)
		}
		v.spec.Volumes = append(v.spec.Volumes, vv)
	}
	for _, u := range o.Uppers {
		if slices.ContainsFunc(o.Root.vols, func(vol *volume) bool { return vol.Mount == u.Mount }) {
			continue
		}
		vv, err := describeNested(o, u.Mount)
		if err != nil {
			return nil, fmt.Errorf("cannot open the staged view of %s: %w", u.Mount, err)
		}
		v.spec.Volumes = append(v.spec.Volumes, vv)
	}
	if len(o.Changes) > 0 {
		return v, nil // they are written once, into the view that is used
	}
	if _, _, err := v.run(ctx, v.spec); err != nil {
		return nil, fmt.Errorf("cannot open the staged view: %w", err)
	}
	return v, nil
}

func describe(o ViewOptions, vol *volume) (viewVolume, error) {
	n, err := vol.Dir.Stat()
	if err != nil {
		return viewVolume{}, err
	}
	vv := viewVolume{Mount: vol.Mount, Dev: n.Dev, Ino: n.Ino}
	i := slices.IndexFunc(o.Uppers, func(u ViewUpper) bool { return u.Mount == vol.Mount })
	if i < 0 {
		return vv, nil
	}
	vv.Up, err = below(o.Root, vol, o.Uppers[i].Up)
	return vv, err
}

// describeNested describes a subvolume by the volume that it lies in.
func describeNested(o ViewOptions, mount string) (viewVolume, error) {
	in := o.Root.vols[0]
	for _, v := range o.Root.vols {
		if len(v.Mount) > len(in.Mount) && strings.HasPrefix(mount, v.Mount+"/") {
			in = v
		}
	}
	dir, err := sys.OpenAt(in.Dir, strings.TrimPrefix(relative(in.Mount, mount), "/"), sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return viewVolume{}, err
	}
	defer dir.Close()
	vv, err := describe(o, &volume{Volume: Volume{Mount: mount, Dir: dir}})
	vv.Nested = true
	return vv, err
}

// below finds the path of an open directory from the root of its volume, which
// the child needs: overlayfs takes no layer of another namespace before Linux 6.15.
func below(r *Root, vol *volume, dir *sys.FD) (string, error) {
	want, err := dir.Stat()
	if err != nil {
		return "", err
	}
	p, err := dir.DescribedPath()
	if err != nil {
		return "", err
	}
	// As seen from the volume's copy, from this namespace, or, of a subvolume, from the
	// copy of the volume that it lies in, wherever in that.
	nested := p[max(strings.LastIndex(p, "/.liveupd/"), 0):]
	for _, rel := range []string{p, relative(r.hostPath(vol.Mount), p), nested} {
		rel = strings.Trim(rel, "/")
		fd, err := sys.OpenAt(vol.Dir, rel, sys.OpenPath|sys.OpenDir, sys.ResolveBeneath|sys.ResolveNoSymlinks)
		if err != nil {
			continue
		}
		got, err := fd.Stat()
		fd.Close()
		if err == nil && got.Dev == want.Dev && got.Ino == want.Ino && !strings.ContainsAny(rel, `\:,`) {
			return rel, nil
		}
	}
	return "", fmt.Errorf("%s is not found below %s: %w", p, vol.Mount, fs.ErrNotExist)
}

// Run runs a program in the view, freshly built: what an earlier one wrote is
// gone. It returns the first 64 KiB of what it wrote to standard output and
// error, also with an error: *ExitError where it failed, fs.ErrNotExist where
// the view has no such program, ctx's where that ended first. All processes
// that the program left behind are killed.
func (v *View) Run(ctx context.Context, argv []string) ([]byte, error) {
	if len(argv) == 0 {
		return nil, errors.New("cannot run in the staged view: no program given")
	}
	spec := v.spec
	spec.Argv = argv
	out, _, err := v.run(ctx, spec)
	if err != nil {
		return out, fmt.Errorf("cannot pass %s in the staged view: %w", strings.Join(argv, " "), err)
	}
	return out, nil
}

// Close ends the view. Nothing of it is left after a Run, so it cannot fail.
func (v *View) Close() error { return nil }

func (v *View) run(ctx context.Context, spec viewSpec) ([]byte, *ViewOutcome, error) {
	msg, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, err
	}
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer specW.Close() // the child ends itself when this does, be it by our death
	resR, resW, err := os.Pipe()
	if err != nil {
		specR.Close()
		return nil, nil, err
	}
	defer resR.Close()
	layR, layW, err := os.Pipe()
	if err != nil {
		specR.Close()
		resW.Close()
		return nil, nil, err
	}

	out := &limited{}
	cmd := exec.CommandContext(ctx, selfExe)
	cmd.Args = []string{viewArg}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{specR, resW, layR}
	// The child is process 1 of its pid namespace: when it is killed, which is
	// what CommandContext does, so are all in it.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: sys.CloneMountNS | sys.ClonePIDNS | sys.CloneIPCNS | sys.CloneUTSNS,
		Setsid:     true,
	}
	if spec.Session != nil && spec.Session.NoNetwork {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Start()
	specR.Close()
	resW.Close()
	layR.Close()
	if err != nil {
		layW.Close()
		return nil, nil, fmt.Errorf("cannot start in namespaces of its own: %w", err)
	}
	laid := make(chan error, 1)
	go func() {
		err := sendChanges(layW, v.changes)
		laid <- errors.Join(err, layW.Close())
	}()
	_, werr := specW.Write(msg)
	var res viewResult
	rerr := json.NewDecoder(resR).Decode(&res)
	err = cmd.Wait()
	// A child that ended early reads no more: what it answered says why.
	if lerr := <-laid; lerr != nil && !errors.Is(lerr, syscall.EPIPE) {
		return out.bytes(), nil, lerr
	}
	switch {
	case ctx.Err() != nil:
		return out.bytes(), nil, ctx.Err()
	case rerr != nil:
		return out.bytes(), nil, fmt.Errorf("the child gave no answer: %w", errors.Join(werr, rerr, err))
	}
	return out.bytes(), res.Outcome, res.err(spec.Argv)
}

func (res *viewResult) err(argv []string) error {
	switch {
	case res.Unsupported != nil:
		return res.Unsupported
	case res.NotFound:
		return fmt.Errorf("%s: %w", res.Err, fs.ErrNotExist)
	case res.Err != "":
		return errors.New(res.Err)
	case res.Exit != 0 || res.Signal != "":
		return &ExitError{Argv: argv, Code: res.Exit, Signal: res.Signal}
	}
	return nil
}

// limited keeps the first maxOutput bytes that are written to it.
type limited struct {
	kept []byte
	lost int
}

func (l *limited) Write(b []byte) (int, error) {
	take := min(len(b), maxOutput-len(l.kept))
	l.kept = append(l.kept, b[:take]...)
	l.lost += len(b) - take
	return len(b), nil
}

func (l *limited) bytes() []byte {
	if l.lost == 0 {
		return l.kept
	}
	note := fmt.Sprintf("\n[%d bytes more]\n", l.lost)
	return append(l.kept[:min(len(l.kept), maxOutput-len(note))], note...)
}
