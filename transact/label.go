package transact

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

const selinux = "security.selinux"

// labelFor is the label of what comes without one, where it lands below what is
// labelled: by the root's rules, else the old object's, else that of the folder
// where it lands. The kernel's own answer would be that of .liveupd, or none where
// this kernel runs without SELinux: then the file is unlabelled for the next that
// runs with it. A path-based module (AppArmor) needs nothing: after the exchange
// the object has the path that the profile names.
func (g *stager) labelFor(it *item) ([]byte, error) {
	var old, parent []byte
	if it.Old != nil {
		old = it.Old.Xattrs[selinux]
	}
	if sk := g.made[key(it.vol, path.Dir(it.rel))]; sk != nil {
		parent = sk.label
	}
	top := g.made[key(it.vol, ".")]
	labelled := old != nil || parent != nil || top != nil && top.label != nil
	if rules := g.t.s.opts.Label; rules != nil && labelled && it.New.Xattrs[selinux] == nil {
		// What is laid beside a file is of its kind.
		label, err := rules(strings.TrimSuffix(it.Path, ".liveupd-new"), it.New.Type, old)
		if err != nil {
			return nil, fmt.Errorf("cannot label %s: %w", it.Path, err)
		}
		if label != nil {
			return label, nil
		}
	}
	if old != nil {
		return old, nil
	}
	return parent, nil
}

// setMeta gives a staged object its metadata and its label.
func (g *stager) setMeta(dir *sys.FD, name string, it *item) error {
	label, err := g.labelFor(it)
	if err != nil {
		return err
	}
	return setMeta(g.t.s.k, dir, name, it.New, label)
}

// labelHome gives .liveupd the label of the folder that it lies in, as a kernel
// with SELinux does, where this one has not.
func (s *Store) labelHome(v *volume, has []byte) error {
	if has != nil {
		return nil
	}
	above, err := sys.Xattrs(v.Dir, ".")
	if err != nil || above[selinux] == nil {
		return err
	}
	return s.k.SetXattr(v.Dir, Dir, selinux, above[selinux])
}

// relabel gives what was kept the labels that it had. A relabelling of the whole root
// (fixfiles, restorecon -R, the next boot after /.autorelabel) goes by paths, and has
// made of it what lies in .liveupd: taken back so, a daemon would run in no domain of
// its own. A label that cannot be set is told, and keeps nothing from being taken back.
func (m *mover) relabel(op *journal.Op, dir *sys.FD, name string) error {
	if op.Old.Xattrs[selinux] == nil {
		return nil
	}
	m.relabelOne(op.Path, op.Old, dir, name)
	if op.Old.Type != change.Directory {
		return nil
	}
	return walk(dir, name, op.Path, func(p string, dir *sys.FD, name string) error {
		member, err := m.members.find(p)
		if err != nil || member == nil || member.Old == nil {
			return err
		}
		m.relabelOne(p, member.Old, dir, name)
		return nil
	})
}

func (m *mover) relabelOne(p string, was *journal.Object, dir *sys.FD, name string) {
	want := was.Xattrs[selinux]
	now, err := sys.Xattrs(dir, name)
	if err == nil && want != nil && !bytes.Equal(now[selinux], want) {
		err = m.t.s.k.SetXattr(dir, name, selinux, want)
	}
	if err != nil {
		m.t.warn("%s: its old SELinux label was not put back: %v; run restorecon on it", p, err)
	}
}
