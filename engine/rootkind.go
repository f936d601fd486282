package engine

import (
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/rootkind"
)

// judgeRoot refuses an update of a root that takes none in place, before
// anything is made writable. The other verbs do with it what they can.
func (s *session) judgeRoot() error {
	if s.req.Verb != "plan" && s.req.Verb != "apply" && s.req.Verb != "exec" {
		return nil
	}
	return s.judge(s.root.Volumes()[0])
}

// judgeVolumes refuses an update that changes something on a file system of
// the root that takes no update in place. One that it leaves alone may be any.
func (s *session) judgeVolumes(d *change.Delta) error {
	for _, v := range s.root.Volumes()[1:] {
		if !s.changes(d, v.Mount) {
			continue
		}
		if err := s.judge(v); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) judge(v nsmount.Volume) error {
	h := rootkind.Host{Sys: "/sys", Root: v.Mount == "/"}
	if s.req.Live() {
		h.Run = "/run"
	}
	e, err := rootkind.Look(v.Dir, &v.Info, h)
	if err != nil {
		return fmt.Errorf("cannot tell what kind of root %s is on: %w", v.Mount, err)
	}
	if kind := e.Kind(); kind != nil {
		return kind.Error(v.Mount)
	}
	return nil
}

// changes tells whether d has an entry on the volume at mount.
func (s *session) changes(d *change.Delta, mount string) bool {
	for i := range d.Entries {
		if s.mountOf(d.Entries[i].Path) == mount {
			return true
		}
	}
	return false
}

// mountOf is the mount of the volume that a path lies on.
func (s *session) mountOf(p string) string {
	mount := "/"
	for _, v := range s.vols {
		if len(v.Mount) > len(mount) && (p == v.Mount || strings.HasPrefix(p, v.Mount+"/")) {
			mount = v.Mount
		}
	}
	return mount
}
