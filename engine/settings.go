package engine

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/inspect"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/planner"
	"github.com/liveupd/liveupd/restart"
	"github.com/liveupd/liveupd/rootfs"
)

// readSettings reads what both trees set for the host as a whole, as far as
// the update touches it, and how the running kernel has it now.
func (s *session) readSettings(in *change.Input, content *sys.FD, running bool) error {
	if in.Delta.Empty() {
		return nil
	}
	var paths []string
	for i := range in.Delta.Entries {
		paths = append(paths, in.Delta.Entries[i].Path)
	}
	vols := s.rootVolumes()
	if running {
		run, err := sys.OpenRoot("/run")
		if err != nil {
			return fmt.Errorf("cannot read the host's settings: %w", err)
		}
		defer run.Close()
		vols = append(vols, rootfs.Volume{Mount: "/run", Dir: run})
	}
	old := rootfs.Volumes(vols...)
	var warnings []string
	in.Old.Host, warnings = rootfs.ReadHost(old, paths)
	in.Old.Warnings = append(in.Old.Warnings, warnings...)
	in.New.Host, warnings = rootfs.ReadHost(rootfs.Overlay(old, in.Delta, content), paths)
	in.New.Warnings = append(in.New.Warnings, warnings...)
	if running {
		in.Facts.Host = inspect.Settings(planner.AskedSysctl(in.Old.Host, in.New.Host), planner.AskedModules(in.Old.Host, in.New.Host))
	}
	return s.initrdCopies(in)
}

// hostAccess gives the steps on the host what they need: where / is read-only
// for everybody, the users' database is written through our own copy of the mount.
func (s *session) hostAccess(steps []change.Step) (*restart.Host, func(), error) {
	h := &restart.Host{}
	if !slices.ContainsFunc(steps, func(st change.Step) bool { return st.Do == "sysusers" }) {
		return h, func() {}, nil
	}
	root, err := sys.OpenRoot("/")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot look at the root: %w", err)
	}
	defer root.Close()
	if ro, err := sys.ReadOnly(root); err != nil || !ro {
		return h, func() {}, err
	}
	vol, at := s.volumeOf("/etc/passwd")
	if strings.TrimPrefix(at, "/") != "etc/passwd" {
		return h, func() {}, nil // /etc has a file system of its own
	}
	h.Etc, err = os.Open(vol.ProcPath())
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open the writable root: %w", err)
	}
	return h, func() { h.Etc.Close() }, nil
}

// namesFile remembers what the initrds hold, for as long as the machine is up.
const namesFile = runDir + "/initrd-names.json"

// initrdCopies tells what of the update an initrd holds a copy of, and what
// makes the initrds anew. Where /boot cannot be written to that is told.
func (s *session) initrdCopies(in *change.Input) error {
	var paths []string
	for i := range in.Delta.Entries {
		e := &in.Delta.Entries[i]
		if e.Old != nil && e.Old.Type == change.Regular && e.Op != change.Metadata && inInitrds(e.Path) {
			paths = append(paths, e.Path)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	state, err := inspectRecovery(s.req)
	if err != nil || len(state.Kernels) == 0 {
		return err
	}
	cache := ""
	if os.Geteuid() == 0 {
		cache = namesFile
	}
	copies, err := state.Copies(s.req.Root, cache, paths)
	if err != nil || len(copies) == 0 {
		return err
	}
	in.Facts.Host.Initrd, in.Facts.Host.Rebuild = copies, state.Rebuild()
	if len(in.Facts.Host.Rebuild) == 0 {
		in.New.Warnings = append(in.New.Warnings, fmt.Sprintf("an initrd holds a copy of %s, and no tool is known to make it anew", some(copies)))
		return nil
	}
	if !s.req.Live() {
		return nil
	}
	boot, err := sys.OpenRoot("/boot")
	if err != nil {
		return nil // there is none to write to
	}
	defer boot.Close()
	if ro, err := sys.ReadOnly(boot); err != nil || ro {
		in.New.Warnings = append(in.New.Warnings, fmt.Sprintf("an initrd holds a copy of %s, and /boot is read-only: make the initrds anew with: %s",
			some(copies), strings.Join(in.Facts.Host.Rebuild, " ")))
		in.Facts.Host.Rebuild = nil
	}
	return nil
}

// inInitrds tells whether a path is where initrds have theirs from.
func inInitrds(p string) bool {
	for _, dir := range []string{"/usr/bin/", "/usr/sbin/", "/usr/lib", "/bin/", "/sbin/", "/lib", "/etc/"} {
		if strings.HasPrefix(p, dir) {
			return true
		}
	}
	return false
}
