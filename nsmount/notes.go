package nsmount

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// A note says that the read-only flag of a file system is about to be cleared,
// and which mounts are about to be given one. It is kept while that is so, in a
// directory that does not outlive the boot: what a killed process cannot put
// back, the next one can. The file is named after the device ("8:1") and locked
// by the process that works with the file system. Each line is one noteLine, and
// written before what it tells of is done; a torn last line is ignored.
type note struct {
	file *os.File
	name string
}

// noteLine is one mount that was given a read-only flag.
type noteLine struct {
	Namespace uint64 `json:"ns"`
	ID        int    `json:"id"`
	Point     string `json:"point"` // for whoever reads the file
}

// errHeld: another process works with the file system.
var errHeld = errors.New("another run of liveupd works with it")

func noteName(dir string, v *volume) string {
	return filepath.Join(dir, fmt.Sprintf("%d:%d", v.mount.Major, v.mount.Minor))
}

// newNote begins the note of a file system.
func (r *Root) newNote(v *volume) (*note, error) {
	if err := os.MkdirAll(r.notes, 0o700); err != nil {
		return nil, err
	}
	return openNote(noteName(r.notes, v), os.O_CREATE)
}

// openNote opens and locks a note. The one that was removed by its owner
// between the two is no note.
func openNote(name string, flags int) (*note, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW|flags, 0o600)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				err = errHeld
			}
			return nil, fmt.Errorf("cannot lock %s: %w", name, err)
		}
		locked, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		named, err := os.Lstat(name)
		if err == nil && os.SameFile(locked, named) {
			return &note{file: f, name: name}, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

func (n *note) add(l noteLine) error {
	if n == nil {
		return nil
	}
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = n.file.Write(append(b, '\n'))
	return err
}

// lines reads what is whole of a note.
func (n *note) lines() ([]noteLine, error) {
	b, err := io.ReadAll(io.NewSectionReader(n.file, 0, 1<<30))
	if err != nil {
		return nil, err
	}
	var out []noteLine
	for line := range bytes.Lines(b) {
		var l noteLine
		if json.Unmarshal(line, &l) != nil {
			break
		}
		out = append(out, l)
	}
	return out, nil
}

// remove forgets the note: all is as it was.
func (n *note) remove() error {
	if n == nil || n.file == nil {
		return nil
	}
	err := os.Remove(n.name)
	n.close()
	return err
}

// close lets the note stay for another process.
func (n *note) close() {
	if n != nil && n.file != nil {
		n.file.Close()
		n.file = nil
	}
}

// Remember makes MakeWritable keep notes in dir, which must not outlive the
// boot, and takes over those that a killed process left about the volumes:
// Restore then puts back what that one did not. It returns their mounts.
//
// A file system that somebody made writable since, on a mount of his own, is
// left to him.
func (r *Root) Remember(k *sys.Kernel, dir string) (left []string, err error) {
	r.notes = dir
	for _, v := range r.vols {
		taken, err := r.takeOver(k, v)
		if err != nil {
			return left, fmt.Errorf("cannot take over what was made writable of %s: %w", v.Mount, err)
		}
		if taken {
			left = append(left, v.Mount)
		}
	}
	return left, nil
}

// LeftWritable tells whether notes in dir tell of one of the volumes, and
// changes nothing.
func (r *Root) LeftWritable(dir string) bool {
	return slices.ContainsFunc(r.vols, func(v *volume) bool {
		_, err := os.Lstat(noteName(dir, v))
		return err == nil
	})
}

func (r *Root) takeOver(k *sys.Kernel, v *volume) (taken bool, err error) {
	if v.tree == nil || r.superOf(v.mount.Dev) != nil {
		return false, nil
	}
	n, err := openNote(noteName(r.notes, v), 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errHeld) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	lines, err := n.lines()
	if err != nil {
		n.close()
		return false, err
	}
	s := &super{dev: v.mount.Dev, mount: v.Mount, tree: v.tree, repeat: repeatedOptions(&v.mount), note: n}
	accepts, err := s.adopt(lines)
	if err != nil {
		return false, errors.Join(err, s.close())
	}
	if accepts {
		err := s.unprotect(k)
		if err == nil {
			err = n.remove()
		}
		return false, errors.Join(err, s.close())
	}
	s.rw = !v.mount.SuperReadOnly()
	r.supers = append(r.supers, s)
	return true, nil
}

// adopt finds the mounts of a note again, and tells whether one that is not
// among them accepts writes.
func (s *super) adopt(lines []noteLine) (accepts bool, err error) {
	all, err := namespaces()
	if err != nil {
		return false, fmt.Errorf("cannot look for its other mounts: %w", err)
	}
	for _, n := range all {
		before := len(s.flags)
		look := func(mounts []sys.Mount) error {
			for _, m := range mounts {
				if m.Dev != s.dev {
					continue
				}
				if !m.ReadOnly() {
					accepts = accepts || !m.SuperReadOnly()
					continue
				}
				if slices.ContainsFunc(lines, func(l noteLine) bool { return l.Namespace == n.ino && l.ID == m.ID }) {
					s.flags = append(s.flags, flagged{n, m.ID, m.Point})
				}
			}
			return nil
		}
		if n.file == nil {
			err = look(n.seen)
			s.flags = s.flags[:before] // not to be reached, and so never flagged
		} else {
			err = n.within(look)
		}
		if len(s.flags) == before {
			n.file.Close()
		}
		if err != nil && !gone(err) {
			return accepts, err
		}
	}
	return accepts, nil
}

func (r *Root) superOf(dev uint64) *super {
	for _, s := range r.supers {
		if s.dev == dev {
			return s
		}
	}
	return nil
}
