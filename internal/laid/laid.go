// Package laid lays files of liveupd's own into a root, and takes away what it has laid:
// that and no more.
//
//  1. What is to be written is recorded first, with digests: a run that was cut short is
//     gone on with, or taken back, as a whole one is.
//  2. A file is written beside its place and moved there. What somebody else wrote at a
//     path stays, and is told.
//  3. A file that was changed since it was laid stays when the rest is taken away. Folders
//     go that were made for it, where nothing else lies in them.
package laid

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// File is one file that is to be there.
type File struct {
	Path string // relative to the root
	Mode fs.FileMode
	// One of:
	Text string // its content
	From string // the host's file that it is a copy of
	Link string // the target of a symlink
}

// record is what a record file holds. Files maps a path to the digest of what was
// written there ("link:TARGET" for a symlink); Dirs are folders that were made, parents first.
type record struct {
	Files map[string]string `json:"files"`
	Dirs  []string          `json:"dirs"`
}

// Set is a number of files with one record.
type Set struct {
	r      *os.Root
	record string // the record's path
	files  []File
	rec    record
}

// Open reads what of a set was laid into a root before. The caller keeps r open while
// it uses the set.
func Open(r *os.Root, recordFile string, files []File) (*Set, error) {
	s := &Set{r: r, record: recordFile, files: files}
	b, err := r.ReadFile(recordFile)
	if err == nil {
		err = json.Unmarshal(b, &s.rec)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, change.WithHint(fmt.Errorf("cannot read what was installed: /%s: %w", recordFile, err),
			"where it is damaged, remove it: what it listed is then left when setup --undo is run")
	}
	if s.rec.Files == nil {
		s.rec.Files = map[string]string{}
	}
	return s, nil
}

// Recorded tells whether anything of the set was laid.
func (s *Set) Recorded() bool { return len(s.rec.Files) > 0 }

// Laid tells whether a path was laid by an earlier Install, and nobody has removed it since.
func (s *Set) Laid(name string) bool {
	if s.rec.Files[name] == "" {
		return false
	}
	_, err := s.r.Lstat(name)
	return err == nil
}

// digest identifies what a file is to be.
func (f *File) digest() (string, error) {
	switch {
	case f.Link != "":
		return "link:" + unmerged(f.Link), nil
	case f.From != "":
		in, err := os.Open(f.From)
		if err != nil {
			return "", fmt.Errorf("cannot install /%s: %w", f.Path, err)
		}
		defer in.Close()
		return digestOf(in)
	}
	return digestOf(strings.NewReader(f.Text))
}

func digestOf(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}

// unmerged takes the /usr of a merged one from a link's target: /lib and /usr/lib are
// one folder, and Debian's own tools write either.
func unmerged(target string) string {
	if rest, ok := strings.CutPrefix(target, "/usr/lib/"); ok {
		return "/lib/" + rest
	}
	return target
}

// found identifies what lies at a path; "" for nothing.
func (s *Set) found(name string) (string, error) {
	st, err := s.r.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := s.r.Readlink(name)
		return "link:" + unmerged(target), err
	case !st.Mode().IsRegular():
		return "", fmt.Errorf("/%s is no file", name)
	}
	f, err := s.r.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digestOf(f)
}

// recorded is what was written at a path, in the form of found.
func (s *Set) recorded(name string) string {
	was := s.rec.Files[name]
	if target, ok := strings.CutPrefix(was, "link:"); ok {
		return "link:" + unmerged(target)
	}
	return was
}

// Plan tells what Install would do, in the order of the files; what was laid earlier and
// is wanted no more comes last.
func (s *Set) Plan() ([]change.SetupItem, error) {
	var items []change.SetupItem
	wanted := map[string]bool{}
	for i := range s.files {
		f := &s.files[i]
		wanted[f.Path] = true
		want, err := f.digest()
		if err != nil {
			return nil, err
		}
		found, err := s.found(f.Path)
		if err != nil {
			return nil, fmt.Errorf("cannot look at what is installed: %w", err)
		}
		out := change.SetupItem{Path: "/" + f.Path, Action: "keep"}
		switch found {
		case want:
		case "":
			out.Action = "install"
		case s.recorded(f.Path):
			out.Action = "replace"
		default:
			out.Detail = "somebody else wrote it: it stays; remove it to have it replaced"
		}
		items = append(items, out)
	}
	stale, err := s.planRemove(func(name string) bool { return !wanted[name] })
	return append(items, stale...), err
}

// Install lays down what Plan has told.
func (s *Set) Install() error {
	plan, err := s.Plan()
	if err != nil {
		return err
	}
	var todo []*File
	for i := range s.files {
		if plan[i].Action == "keep" {
			continue
		}
		f := &s.files[i]
		if s.rec.Files[f.Path], err = f.digest(); err != nil {
			return err
		}
		if err := s.parents(f.Path); err != nil {
			return err
		}
		todo = append(todo, f)
	}
	stale := plan[len(s.files):]
	if len(todo) == 0 && len(stale) == 0 {
		return nil
	}
	if err := s.parents(s.record); err != nil {
		return err
	}
	if err := s.writeRecord(); err != nil {
		return err
	}
	for _, f := range todo {
		if err := s.lay(f); err != nil {
			return fmt.Errorf("cannot install /%s: %w", f.Path, err)
		}
	}
	if len(stale) == 0 {
		return nil
	}
	if err := s.remove(stale); err != nil {
		return err
	}
	for _, it := range stale {
		delete(s.rec.Files, strings.TrimPrefix(it.Path, "/"))
	}
	return s.writeRecord()
}

// parents notes which folders above a path have to be made.
func (s *Set) parents(name string) error {
	var missing []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		_, err := s.r.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot install /%s: %w", name, err)
		}
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		if !slices.Contains(s.rec.Dirs, dir) {
			s.rec.Dirs = append(s.rec.Dirs, dir)
		}
	}
	return nil
}

func (s *Set) writeRecord() error {
	b, err := json.MarshalIndent(s.rec, "", "  ")
	if err == nil {
		err = s.lay(&File{Path: s.record, Mode: 0o644, Text: string(b) + "\n"})
	}
	if err != nil {
		return fmt.Errorf("cannot record what is installed: %w", err)
	}
	return nil
}

// lay writes one file beside its place and moves it there.
func (s *Set) lay(f *File) (err error) {
	if err := s.r.MkdirAll(path.Dir(f.Path), 0o755); err != nil {
		return err
	}
	beside := path.Join(path.Dir(f.Path), ".liveupd-setup-"+path.Base(f.Path))
	if err := s.r.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.r.Remove(beside) // it may not have been made
		}
	}()
	if f.Link != "" {
		if err := s.r.Symlink(f.Link, beside); err != nil {
			return err
		}
		return s.r.Rename(beside, f.Path)
	}
	var content io.Reader = strings.NewReader(f.Text)
	if f.From != "" {
		in, err := os.Open(f.From)
		if err != nil {
			return err
		}
		defer in.Close()
		content = in
	}
	out, err := s.r.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	// The umask is the caller's, the mode is ours.
	if err = errors.Join(err, out.Chmod(f.Mode), out.Sync(), out.Close()); err != nil {
		return err
	}
	return s.r.Rename(beside, f.Path)
}

// PlanRemove tells what Remove would take away.
func (s *Set) PlanRemove() ([]change.SetupItem, error) {
	return s.planRemove(func(string) bool { return true })
}

func (s *Set) planRemove(which func(name string) bool) (items []change.SetupItem, err error) {
	var names []string
	for name := range s.rec.Files {
		if which(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		found, err := s.found(name)
		if err != nil {
			return nil, fmt.Errorf("cannot look at what is installed: %w", err)
		}
		out := change.SetupItem{Path: "/" + name, Action: "remove"}
		switch found {
		case "":
			continue
		case s.recorded(name):
		default:
			out.Action, out.Detail = "keep", "somebody changed it since it was installed: it stays"
		}
		items = append(items, out)
	}
	return items, nil
}

func (s *Set) remove(items []change.SetupItem) error {
	for _, it := range items {
		if it.Action != "remove" {
			continue
		}
		if err := s.r.Remove(strings.TrimPrefix(it.Path, "/")); err != nil {
			return fmt.Errorf("cannot remove %s: %w", it.Path, err)
		}
	}
	return nil
}

// Remove takes away what Install has laid down, and the folders that it made
// where nothing else lies in them.
func (s *Set) Remove() error {
	items, err := s.PlanRemove()
	if err != nil {
		return err
	}
	if err := s.remove(items); err != nil {
		return err
	}
	if err := s.r.Remove(s.record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove /%s: %w", s.record, err)
	}
	for _, dir := range slices.Backward(s.rec.Dirs) {
		_ = s.r.Remove(dir) // one that is not empty is somebody else's by now
	}
	s.rec = record{Files: map[string]string{}}
	return nil
}
