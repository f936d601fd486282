package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/rootkind"
	"github.com/liveupd/liveupd/transact"
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

// probe tries before a plan is shown, and before a transaction begins, whether the root
// can exchange names, as far as there is a place for that: our own folder, where it
// can be written to. The rest is tried when it is known what is needed.
func (s *session) probe(d *change.Delta) error {
	if d.Empty() {
		return nil
	}
	dir, err := openStateDir(s.k, s.vols[0].Dir)
	if err != nil {
		return nil // read-only as yet: the apply tries
	}
	defer dir.Close()
	err = transact.ProbeExchange(s.k, dir, fmt.Sprintf("%s-%d", probeName, os.Getpid()))
	if _, ok := errors.AsType[*sys.UnsupportedError](err); ok {
		return change.WithHint(fmt.Errorf("cannot update / in place: it is on %s: %w", s.root.Volumes()[0].FSType, err), transact.UnableHint("/"))
	}
	return nil
}

// fleeting warns of file systems that change and forget it with the next boot. A tree
// that somebody put below /tmp is no such root: it was put there to be taken elsewhere.
func (s *session) fleeting(d *change.Delta) []string {
	var out []string
	for _, v := range s.root.Volumes() {
		if !s.changes(d, v.Mount) || !s.req.Live() && v.Info.Point != filepath.Join(s.req.Root, v.Mount) {
			continue
		}
		e, err := rootkind.Look(v.Dir, &v.Info, rootkind.Host{Sys: "/sys"})
		if err != nil {
			continue // judge has told of it
		}
		if why := e.Fleeting(); why != "" {
			out = append(out, fmt.Sprintf("the update of %s does not last: %s, and is gone with the next boot", v.Mount, why))
		}
	}
	return out
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
