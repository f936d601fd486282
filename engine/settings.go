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
	return nil
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
