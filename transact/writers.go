package transact

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// refuseWriters refuses a file that a program holds open for writing or mapped
// shared-writable: after the commit it would go on writing to the old one.
func refuseWriters(dir *sys.FD, name, p, verb string) error {
	f, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenNoLink|syscall.O_NONBLOCK, resolve)
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", p, err)
	}
	defer f.Close()
	writing, err := sys.OpenForWriting(f)
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", p, err)
	}
	if !writing {
		return nil
	}
	n, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot look at %s: %w", p, err)
	}
	who, hint := "a running program", "stop the program that writes to it, then plan again"
	if list := sys.Writers(n); len(list) > 0 {
		const shown = 3
		names := make([]string, 0, shown)
		for _, w := range list[:min(len(list), shown)] {
			names = append(names, w.String())
		}
		who = strings.Join(names, ", ")
		hint = "stop " + who + ", then plan again"
		if more := len(list) - shown; more > 0 {
			who += fmt.Sprintf(" and %d more", more)
		}
	}
	return change.WithHint(fmt.Errorf("cannot %s %s: %s has it open for writing: %w", verb, p, who, change.ErrDrift), hint)
}

// checkWriters looks at a file that goes, or at all files of a folder that does.
func (m *mover) checkWriters(op *journal.Op, s spot) error {
	verb := "replace"
	if op.Kind == journal.Remove {
		verb = "remove"
	}
	if op.Old.Type == change.Regular {
		return refuseWriters(s.live, s.liveName, op.Path, verb)
	}
	return walk(s.live, s.liveName, op.Path, func(p string, dir *sys.FD, name string) error {
		member, err := m.members.find(p)
		if err != nil || member == nil || member.Old == nil || member.Old.Type != change.Regular {
			return err
		}
		return refuseWriters(dir, name, p, verb)
	})
}

// checkOldFiles looks, after the names have moved, at the files that went: what
// somebody wrote to one between the look before the commit and its exchange, or
// is about to write through what he opened meanwhile, must not be lost.
func (m *mover) checkOldFiles() error {
	for op, err := range m.t.journal.Ops.Where(journal.Moves) {
		if err != nil {
			return err
		}
		if op.Old == nil || op.Old.Type != change.Regular {
			continue
		}
		m.dirs.trim()
		dir, name, err := m.dirs.parent(m.t.vols[op.Volume].dir, op.Staged)
		if err != nil {
			return named("look at", op, err)
		}
		found, err := look(dir, name)
		if err != nil {
			return named("look at", op, err)
		}
		if !untouched(op.Old, found) {
			return changedError(op)
		}
		if err := refuseWriters(dir, name, op.Path, "replace"); err != nil {
			return err
		}
	}
	return nil
}
