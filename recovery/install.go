package recovery

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

// recordFile lists what Install has laid down, so that Remove takes away that and no more.
const recordFile = "var/lib/liveupd/setup.json"

// record is its content. Files maps a path to the digest of what was written
// there ("link:TARGET" for a symlink); Dirs are folders that were made, parents first.
type record struct {
	Files map[string]string `json:"files"`
	Dirs  []string          `json:"dirs"`
}

// Setup lays the files of the recovery at boot into a root, or takes them away.
type Setup struct {
	r     *os.Root
	state *State
	items []item
	rec   record
}

// OpenSetup prepares the installation that fits a root.
func OpenSetup(root string, s *State, p Programs) (*Setup, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("cannot open root %s: %w", root, err)
	}
	u := &Setup{r: r, state: s, items: s.items(r, p)}
	b, err := r.ReadFile(recordFile)
	if err == nil {
		err = json.Unmarshal(b, &u.rec)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Close()
		return nil, change.WithHint(fmt.Errorf("cannot read what was installed: %s: %w", path.Join(root, recordFile), err),
			"where it is damaged, remove it: what it listed is then left when setup --remove is run")
	}
	if u.rec.Files == nil {
		u.rec.Files = map[string]string{}
	}
	return u, nil
}

// Close lets go of the root.
func (u *Setup) Close() error { return u.r.Close() }

// digest identifies what an item is to be.
func (it *item) digest() (string, error) {
	switch {
	case it.link != "":
		return "link:" + it.link, nil
	case it.from != "":
		f, err := os.Open(it.from)
		if err != nil {
			return "", fmt.Errorf("cannot install /%s: %w", it.path, err)
		}
		defer f.Close()
		return digestOf(f)
	}
	return digestOf(strings.NewReader(it.text))
}

func digestOf(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}

// found identifies what lies at a path; "" for nothing.
func (u *Setup) found(name string) (string, error) {
	st, err := u.r.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := u.r.Readlink(name)
		return "link:" + target, err
	case !st.Mode().IsRegular():
		return "", fmt.Errorf("/%s is no file", name)
	}
	f, err := u.r.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return digestOf(f)
}

// Plan tells what Install would do, and whether the initrds have to be made anew for it.
func (u *Setup) Plan() (items []change.SetupItem, initrds bool, err error) {
	for i := range u.items {
		it := &u.items[i]
		want, err := it.digest()
		if err != nil {
			return nil, false, err
		}
		found, err := u.found(it.path)
		if err != nil {
			return nil, false, fmt.Errorf("cannot look at what is installed: %w", err)
		}
		out := change.SetupItem{Path: "/" + it.path, Action: "keep"}
		switch found {
		case want:
		case "":
			out.Action = "install"
		case u.rec.Files[it.path]:
			out.Action = "replace"
		default:
			out.Detail = "somebody else wrote it: it stays; remove it to have it replaced"
		}
		initrds = initrds || it.initrd && out.Action != "keep"
		items = append(items, out)
	}
	if !u.state.Container {
		initrds = initrds || slices.ContainsFunc(u.state.Kernels, func(k change.BootKernel) bool { return k.Recovers != "yes" && k.Initrd != "" })
	}
	return items, initrds, nil
}

// Install lays down what Plan has told. What it writes is recorded first: an
// installation that was cut short is removed, or gone on with, as a whole one is.
func (u *Setup) Install() error {
	plan, _, err := u.Plan()
	if err != nil {
		return err
	}
	var todo []*item
	for i := range plan {
		if plan[i].Action == "keep" {
			continue
		}
		it := &u.items[i]
		if u.rec.Files[it.path], err = it.digest(); err != nil {
			return err
		}
		if err := u.parents(it.path); err != nil {
			return err
		}
		todo = append(todo, it)
	}
	if len(todo) == 0 {
		return nil
	}
	if err := u.parents(recordFile); err != nil {
		return err
	}
	if err := u.writeRecord(); err != nil {
		return err
	}
	for _, it := range todo {
		if err := u.lay(it); err != nil {
			return fmt.Errorf("cannot install /%s: %w", it.path, err)
		}
	}
	return nil
}

// parents notes which folders above a path have to be made.
func (u *Setup) parents(name string) error {
	var missing []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		_, err := u.r.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot install /%s: %w", name, err)
		}
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		if !slices.Contains(u.rec.Dirs, dir) {
			u.rec.Dirs = append(u.rec.Dirs, dir)
		}
	}
	return nil
}

func (u *Setup) writeRecord() error {
	b, err := json.MarshalIndent(u.rec, "", "  ")
	if err == nil {
		err = u.lay(&item{path: recordFile, mode: 0o644, text: string(b) + "\n"})
	}
	if err != nil {
		return fmt.Errorf("cannot record what is installed: %w", err)
	}
	return nil
}

// lay writes one item beside its place and moves it there.
func (u *Setup) lay(it *item) (err error) {
	if err := u.r.MkdirAll(path.Dir(it.path), 0o755); err != nil {
		return err
	}
	beside := path.Join(path.Dir(it.path), ".liveupd-setup-"+path.Base(it.path))
	if err := u.r.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if err != nil {
			_ = u.r.Remove(beside) // it may not have been made
		}
	}()
	if it.link != "" {
		if err := u.r.Symlink(it.link, beside); err != nil {
			return err
		}
		return u.r.Rename(beside, it.path)
	}
	var content io.Reader = strings.NewReader(it.text)
	if it.from != "" {
		f, err := os.Open(it.from)
		if err != nil {
			return err
		}
		defer f.Close()
		content = f
	}
	out, err := u.r.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, it.mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, content)
	// The umask is the caller's, the mode is ours.
	if err = errors.Join(err, out.Chmod(it.mode), out.Sync(), out.Close()); err != nil {
		return err
	}
	return u.r.Rename(beside, it.path)
}

// PlanRemove tells what Remove would take away.
func (u *Setup) PlanRemove() (items []change.SetupItem, initrds bool, err error) {
	var names []string
	for name := range u.rec.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		found, err := u.found(name)
		if err != nil {
			return nil, false, fmt.Errorf("cannot look at what is installed: %w", err)
		}
		out := change.SetupItem{Path: "/" + name, Action: "remove"}
		switch found {
		case "":
			continue
		case u.rec.Files[name]:
		default:
			out.Action, out.Detail = "keep", "somebody changed it since it was installed"
		}
		items = append(items, out)
	}
	initrds = slices.ContainsFunc(u.state.Kernels, func(k change.BootKernel) bool { return k.Recovers != "no" && k.Initrd != "" })
	return items, initrds && len(names) > 0, nil
}

// Remove takes away what Install has laid down, and the folders that it made
// where nothing else lies in them.
func (u *Setup) Remove() error {
	items, _, err := u.PlanRemove()
	if err != nil {
		return err
	}
	for _, it := range items {
		if it.Action != "remove" {
			continue
		}
		if err := u.r.Remove(strings.TrimPrefix(it.Path, "/")); err != nil {
			return fmt.Errorf("cannot remove %s: %w", it.Path, err)
		}
	}
	if err := u.r.Remove(recordFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove /%s: %w", recordFile, err)
	}
	for _, dir := range slices.Backward(u.rec.Dirs) {
		_ = u.r.Remove(dir) // one that is not empty is somebody else's by now
	}
	u.rec = record{Files: map[string]string{}}
	return nil
}

// Rebuild is the command that makes the initrds anew; none where no tool is known.
func (s *State) Rebuild() []string {
	switch s.Tool {
	case Initramfs:
		return []string{"update-initramfs", "-u", "-k", "all"}
	case Dracut:
		return []string{"dracut", "--regenerate-all", "--force"}
	}
	return nil
}
