package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/diff"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/source/patch"
	"github.com/liveupd/liveupd/source/tarball"
	"github.com/liveupd/liveupd/source/tree"
)

// The cache of unpacked archives is the same for both kinds: a patch becomes an
// archive, and the archive a folder.

// oldFile opens a file of the root for a patch, through no symlink but those of a merged /usr. It wakes no
// device, and leaves the time of the last access as it is.
func (s *session) oldFile(name string) (patch.File, error) {
	dir, rel := s.inVolume(s.merged(name))
	n, err := sys.LstatPath(dir, rel)
	if err != nil {
		return nil, err
	}
	if n.Type != change.Regular {
		return nil, fmt.Errorf("it is a %s", n.Type)
	}
	fd, err := sys.OpenContent(dir, rel)
	if err != nil {
		return nil, err
	}
	now, err := fd.Stat()
	if err == nil && (now.Type != change.Regular || now.Dev != n.Dev || now.Ino != n.Ino) {
		err = change.ErrDrift
	}
	if err != nil {
		fd.Close()
		return nil, err
	}
	return rootFile{fd, now.Size}, nil
}

// merged leads a path through the links of a merged /usr: what an archive has as /lib/x lies in /usr/lib/x.
func (s *session) merged(p string) string {
	top, _, deeper := strings.Cut(p[1:], "/")
	if !deeper {
		return p
	}
	n, err := sys.LstatPath(s.vols[0].Dir, top)
	if err == nil && n.Type == change.Symlink && strings.TrimPrefix(n.Target, "/") == "usr/"+top {
		return "/usr" + p
	}
	return p
}

// rootFile is an open file of the root.
type rootFile struct {
	*sys.FD
	size int64
}

// Size is in bytes.
func (f rootFile) Size() int64 { return f.size }

// inVolume is volumeOf with a path that is looked up below the folder.
func (s *session) inVolume(name string) (*sys.FD, string) {
	dir, rel := s.volumeOf(name)
	return dir, strings.TrimPrefix(rel, "/")
}

// openPatch checks that the root is the one that a patch was made for; what it
// gives to read is the archive of what changes.
func (s *session) openPatch(ctx context.Context, in io.Reader, name string) (*patch.Patch, error) {
	p, err := patch.Open(ctx, in, s.oldFile, s.keptFiles())
	if err != nil {
		return nil, fmt.Errorf("cannot apply the patch %s: %w", name, err)
	}
	return p, nil
}

// keptFiles opens files of kept generations by their digest: with them a patch that
// has been applied can be read again, and compared with what is there.
func (s *session) keptFiles() patch.Kept {
	var m *mender
	return func(d change.Digest) (patch.File, error) {
		if m == nil {
			list, err := s.store.List()
			if err != nil {
				return nil, err
			}
			looked := &mender{s: s}
			if err := looked.keep(list); err != nil {
				return nil, err
			}
			m = looked
		}
		for _, p := range m.kept[d] {
			if f, err := s.oldFile(p); err == nil {
				return f, nil
			}
		}
		return nil, fs.ErrNotExist
	}
}

// settleGone decides which of the paths that a patch removes go. A file that the
// machine changed stays, and so does a folder that holds more than the patch knows.
func (s *session) settleGone(gone []patch.Gone) (goes map[string]bool, warnings []string, err error) {
	goes = map[string]bool{}
	for _, g := range slices.Backward(gone) {
		p := string(g.Path)
		dir, rel := s.inVolume(p)
		n, err := sys.LstatPath(dir, rel)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrInvalid):
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("cannot look at %s, which the patch removes: %w", p, err)
		}
		stays, err := s.stays(g, n, goes)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot look at %s, which the patch removes: %w", p, err)
		}
		if stays != "" {
			warnings = append(warnings, fmt.Sprintf("%s stays, although the patch removes it: %s", p, stays))
			continue
		}
		goes[p] = true
	}
	slices.Sort(warnings)
	return goes, warnings, nil
}

// goneRules add the paths that a patch removes to the rules of who owns what: a part
// of a tree removes nothing by itself.
type goneRules struct {
	diff.Owner
	gone    map[string]bool
	modules string // of the running kernel, "" where none runs from the root
}

// patchRules are the rules for a source, of which a patch says itself what goes.
func (s *session) patchRules(u *update, own diff.Owner) diff.Owner {
	if !u.patch {
		return own
	}
	r := goneRules{Owner: own, gone: u.gone}
	if k := s.rulesOptions(false, nil, nil, nil).Kernel; k != "" {
		r.modules = "/usr/lib/modules/" + k
	}
	return r
}

// goes: in /var and /boot an update only adds, and the kernel that runs loads its modules yet.
func (r goneRules) goes(p string) bool {
	if !r.gone[p] || r.modules != "" && (p == r.modules || strings.HasPrefix(p, r.modules+"/")) {
		return false
	}
	class := r.Owner.Class(p)
	return class != change.ClassNever && class != change.ClassAddOnly
}

func (r goneRules) Class(p string) change.Class {
	if r.goes(p) {
		return change.ClassWhole
	}
	class := r.Owner.Class(p)
	if class == change.ClassWhole {
		return change.ClassListed // what a patch does not name stays
	}
	return class
}

func (r goneRules) Decide(p string, old, new *change.Node) change.Decision {
	if new == nil && r.goes(p) {
		return change.Decision{Verdict: change.VerdictRemove}
	}
	return r.Owner.Decide(p, old, new)
}

func (r goneRules) Recorded() iter.Seq[string] {
	return func(yield func(string) bool) {
		for p := range r.Owner.Recorded() {
			if !r.gone[p] && !yield(p) {
				return
			}
		}
		for _, p := range slices.Sorted(maps.Keys(r.gone)) {
			if r.goes(p) && !yield(p) {
				return
			}
		}
	}
}

// stays tells why a path does not go, "" where it does.
func (s *session) stays(g patch.Gone, n *change.Node, goes map[string]bool) (string, error) {
	p := string(g.Path)
	dir, rel := s.inVolume(p)
	if n.IsDir() {
		fd, err := sys.OpenAt(dir, rel, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
		if err != nil {
			return "", err
		}
		defer fd.Close()
		names, err := sys.ReadDirNames(fd)
		if err != nil {
			return "", err
		}
		for _, name := range names {
			if !goes[path.Join(p, name)] {
				return "it holds " + name, nil
			}
		}
		return "", nil
	}
	if g.Digest.IsZero() {
		return "", nil
	}
	if n.Type != change.Regular {
		return "it is no longer a file", nil
	}
	f, err := sys.OpenRegular(dir, rel, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, io.NewSectionReader(f, 0, f.Size()))
	d := change.Digest(sum.Sum(nil))
	if err == nil && d != g.Digest {
		return "the machine changed it", nil
	}
	return "", err
}

// DiffRequest asks for a patch.
type DiffRequest struct {
	Old, New string // a folder, tree:DIR, an archive, or tar:FILE
	Out      string
	Force    bool // replace Out where it is there
	Level    int
	Zstd     string // as patch.Options has it
}

// Diff makes a patch that turns one tree into another, whole or not at all.
func Diff(ctx context.Context, req DiffRequest, ev Events) (_ *change.DiffReport, err error) {
	if req.Out == "" {
		return nil, usage("no file is given for the patch: give one with -o FILE")
	}
	if req.Level < 0 || req.Level > maxLevel {
		return nil, usage("the level %d is not known: zstd has the levels 1 to %d", req.Level, maxLevel)
	}
	if err := free(req); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(req.Out), ".liveupd-diff-")
	if err != nil {
		return nil, change.WithHint(fmt.Errorf("cannot write %s: %w", req.Out, err), "make its folder, or name another file with -o")
	}
	defer func() { err = errors.Join(err, removeTree(tmp)) }()
	var sides [2]*sys.FD
	whole := true
	for i, spec := range []string{req.Old, req.New} {
		side, err := openSide(ctx, spec, filepath.Join(tmp, []string{"old", "new"}[i]), ev)
		if err != nil {
			return nil, err
		}
		defer side.Close()
		sides[i] = side
		one, err := tree.IsWhole(side)
		if err != nil {
			return nil, err
		}
		whole = whole && one
	}
	// It holds files of /etc whole, also such as only root may read: the umask says who may read it.
	out, err := os.OpenFile(filepath.Join(tmp, "patch"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, fmt.Errorf("cannot write %s: %w", req.Out, err)
	}
	defer out.Close()
	ev.progress("reading", 0, 0, "files", req.Old+" and "+req.New)
	sum, err := patch.Make(ctx, sides[0], sides[1], out, patch.Options{
		Level: req.Level, Zstd: req.Zstd, Whole: whole, Progress: func(done, total int64) { ev.bytes("packing", 0, done, total) },
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make the patch: %w", err)
	}
	report := &change.DiffReport{
		MessageType: "report", Schema: Schema, Verb: "diff", Result: "nothing-to-do", Old: req.Old, New: req.New, Encoder: sum.Encoder,
		Entries: sum.Entries, Removed: sum.Gone, Bases: sum.Bases, Content: sum.Content, Bytes: sum.Bytes,
	}
	if sum.Entries == 0 && sum.Gone == 0 {
		return report, nil
	}
	report.Result, report.Out = "done", req.Out
	return report, errors.Join(out.Sync(), os.Rename(out.Name(), req.Out))
}

// maxLevel is the zstd program's.
const maxLevel = 22

// free refuses a name for the patch that is in use: by another patch, which may be signed
// and published, unless it is to be replaced, and by what is compared in any case.
func free(req DiffRequest) error {
	st, err := os.Stat(req.Out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot write the patch: %w", err)
	case !st.Mode().IsRegular():
		return usage("cannot write the patch to %s: it is no regular file", req.Out)
	}
	for _, spec := range []string{req.Old, req.New} {
		if side, err := os.Stat(strings.TrimPrefix(spec, "tar:")); err == nil && os.SameFile(st, side) {
			return usage("cannot write the patch to %s: it is what is compared", req.Out)
		}
	}
	if !req.Force {
		return change.WithHint(fmt.Errorf("cannot write the patch: %s is there already", req.Out), "name another file, or replace it with --force")
	}
	return nil
}

// openSide opens a tree to compare; an archive is unpacked into a folder at.
func openSide(ctx context.Context, spec, at string, ev Events) (*sys.FD, error) {
	kind, where, ok := strings.Cut(spec, ":")
	if !ok || kind != "tree" && kind != "tar" {
		kind, where = "", spec
	}
	st, err := os.Stat(where)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot open %s: %w", spec, err)
	case st.IsDir() && kind != "tar":
		return sys.OpenRoot(where)
	case st.IsDir() || kind == "tree":
		return nil, usage("cannot compare %s: it is %s", spec, map[bool]string{true: "a folder and no archive", false: "no folder"}[st.IsDir()])
	}
	in, err := sys.OpenFile(where)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", spec, err)
	}
	defer in.Close()
	if err := os.Mkdir(at, 0o700); err != nil {
		return nil, err
	}
	dest, err := sys.OpenRoot(at)
	if err != nil {
		return nil, err
	}
	_, err = tarball.Unpack(ctx, new(sys.Kernel), in, where, dest, tarball.Options{
		Progress: func(p tarball.Progress) { ev.bytes("unpacking", p.Entries, p.Read, st.Size()) },
	})
	if err != nil {
		dest.Close()
		return nil, err
	}
	return dest, nil
}

// removeTree removes what was unpacked; a folder of an archive need not be one that
// its owner may change.
func removeTree(dir string) error {
	fd, err := sys.OpenRoot(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer fd.Close()
	return new(sys.Kernel).RemoveAll(fd, filepath.Base(dir))
}
