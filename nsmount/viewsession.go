package nsmount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// ViewSession is a series of programs in one view, and what is read of it when
// they have ended.
type ViewSession struct {
	Programs []ViewProgram
	Env      []string // beside PATH, LC_ALL and HOME, or in their place
	// NoNetwork: not even the host's loopback is seen.
	NoNetwork bool
	// RunFiles: the small files of /run that anybody may read are shown, and not
	// only its folders.
	RunFiles bool
	// Fresh are folders that are there and empty.
	Fresh []string
	// Take are files, and folders with all that they hold, of which the content
	// is given back.
	Take []string
	// Written: the symlinks that were made, and what was removed, on the root's
	// file systems are told, without content.
	Written bool
}

// ViewProgram is one program of a session. What it leaves behind is killed
// before the next one begins.
type ViewProgram struct {
	Argv  []string
	Limit time.Duration
}

// ViewOutcome is what became of a session.
type ViewOutcome struct {
	Programs []ViewEnd
	Found    []ViewFile
}

// ViewEnd is how a program ended.
type ViewEnd struct {
	Output []byte // the first 64 KiB of standard output and error
	Code   int    // exit status; meaningless with one of the others
	Signal string // what killed it
	Late   bool   // it was killed at its limit
	// Failed: it could not be started; Foreign: it is a program of another processor.
	Failed  string
	Foreign bool
}

// Err is nil where the program succeeded.
func (e *ViewEnd) Err() error {
	switch {
	case e.Failed != "":
		return errors.New(e.Failed)
	case e.Late:
		return errors.New("it did not end in time")
	case e.Signal != "":
		return fmt.Errorf("killed by signal: %s", e.Signal)
	case e.Code != 0:
		return fmt.Errorf("exit status %d", e.Code)
	}
	return nil
}

// ViewFile is an object of the view.
type ViewFile struct {
	Path    []byte // as bytes: names need not be UTF-8
	By      int    // the program that made it, or changed it last; -1: none did
	Gone    bool
	Type    change.Type
	Mode    uint32
	UID     uint32
	GID     uint32
	Target  []byte
	Content []byte
}

// Bounds of what is given back.
const (
	takeFile  = 16 << 20
	takeBytes = 64 << 20
	takeNames = 65536
)

// Do runs a session in a view of its own. The error is *UnsupportedError where
// there can be no view, ctx's where that ended first; how the programs ended
// stands in the outcome.
func (v *View) Do(ctx context.Context, s ViewSession) (*ViewOutcome, error) {
	spec := v.spec
	spec.Session = &s
	out, res, err := v.run(ctx, spec)
	if err == nil && res == nil {
		err = fmt.Errorf("the child gave no answer: %s", strings.TrimSpace(string(out)))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look at the staged view: %w", err)
	}
	return res, nil
}

// stamp tells one content of a name from another.
type stamp struct {
	ino          uint64
	ctime, mtime int64
}

// taker follows what the programs of a session make.
type taker struct {
	b     *builder
	s     *ViewSession
	seen  map[string]stamp
	by    map[string]int
	names int
}

// session runs in the child, whose root is the view.
func (b *builder) session(s *ViewSession) (*ViewOutcome, error) {
	for _, dir := range s.Fresh {
		if err := b.emptyDir(dir); err != nil {
			return nil, err
		}
	}
	k := &taker{b: b, s: s, seen: map[string]stamp{}, by: map[string]int{}}
	if err := k.look(-1); err != nil {
		return nil, err
	}
	before, err := b.written()
	if err != nil {
		return nil, err
	}
	out := &ViewOutcome{}
	for i, p := range s.Programs {
		end, err := runProgram(p, s.Env)
		if err != nil {
			return nil, err
		}
		_ = syscall.Kill(-1, syscall.SIGKILL) // all but this process 1; there may be none
		out.Programs = append(out.Programs, end)
		if err := k.look(i); err != nil {
			return nil, err
		}
	}
	if out.Found, err = k.take(); err != nil {
		return nil, err
	}
	if !s.Written {
		return out, nil
	}
	after, err := b.written()
	if err != nil {
		return nil, err
	}
	for name, f := range after {
		if was, ok := before[name]; !ok || was.stamp != f.stamp {
			out.Found = append(out.Found, f.ViewFile)
		}
	}
	for name, f := range before {
		if _, still := after[name]; !still && !f.Gone {
			out.Found = append(out.Found, ViewFile{Path: []byte(name), By: -1, Gone: true})
		}
	}
	return out, nil
}

func (b *builder) emptyDir(name string) error {
	parent, err := b.openDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := b.k.RemoveAll(parent, path.Base(name)); err != nil {
		return err
	}
	return b.k.Mkdir(parent, path.Base(name), 0o755)
}

// runProgram runs one program with the few rights that it gets. An error is
// one of the view, not of the program.
func runProgram(p ViewProgram, env []string) (end ViewEnd, err error) {
	err = sys.OnThread(func() error {
		ctx := context.Background()
		if p.Limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, p.Limit)
			defer cancel()
		}
		out := &limited{}
		cmd := exec.CommandContext(ctx, p.Argv[0], p.Argv[1:]...)
		cmd.Env = append([]string{"PATH=" + viewPath, "LC_ALL=C.UTF-8", "HOME=/root"}, env...)
		cmd.Dir = "/"
		cmd.Stdout, cmd.Stderr = out, out
		cmd.WaitDelay = 2 * time.Second
		// By thread: started from this one, the program has what this one has.
		if err := sys.Confine(sys.ValidatorCapabilities()); err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			end.Failed, end.Foreign = err.Error(), errors.Is(err, syscall.ENOEXEC)
			return nil
		}
		err := cmd.Wait()
		end.Output, end.Late = out.bytes(), ctx.Err() != nil
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil // what it left behind holds its output, and is killed
		}
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			return err
		}
		status := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			end.Signal = status.Signal().String()
		}
		end.Code = status.ExitStatus()
		return nil
	})
	return end, err
}

// look notes what program i has made or changed of what will be taken.
func (k *taker) look(i int) error {
	k.names = 0
	return k.each(func(name string, n *change.Node) error {
		now := stamp{n.Ino, n.CtimeNS, n.MtimeNS}
		if n.IsDir() {
			now = stamp{ino: n.Ino}
		}
		if was, ok := k.seen[name]; !ok || was != now {
			k.seen[name], k.by[name] = now, i
		}
		return nil
	})
}

// each calls do for all that is to be taken.
func (k *taker) each(do func(name string, n *change.Node) error) error {
	for _, at := range k.s.Take {
		if err := k.walk(at, do); err != nil {
			return err
		}
	}
	return nil
}

func (k *taker) walk(name string, do func(string, *change.Node) error) error {
	if k.names++; k.names > takeNames {
		return fmt.Errorf("there are more than %d names below %s", takeNames, strings.Join(k.s.Take, " and "))
	}
	n, err := sys.LstatPath(k.b.view, strings.TrimPrefix(name, "/"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := do(name, n); err != nil || !n.IsDir() {
		return err
	}
	dir, err := k.b.openDir(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, child := range names {
		if err := k.walk(path.Join(name, child), do); err != nil {
			return err
		}
	}
	return nil
}

func (k *taker) take() ([]ViewFile, error) {
	var out []ViewFile
	var total int64
	k.names = 0
	err := k.each(func(name string, n *change.Node) error {
		f := ViewFile{Path: []byte(name), By: k.by[name], Type: n.Type, Mode: n.Mode, UID: n.UID, GID: n.GID, Target: []byte(n.Target)}
		if n.Type == change.Regular {
			if total += n.Size; n.Size > takeFile || total > takeBytes {
				return fmt.Errorf("%s has %d bytes: that is more than is read of it", name, n.Size)
			}
			in, err := sys.OpenRegular(k.b.view, strings.TrimPrefix(name, "/"), sys.ResolveBeneath|sys.ResolveNoSymlinks)
			if err != nil {
				return err
			}
			defer in.Close()
			if f.Content, err = io.ReadAll(io.NewSectionReader(in, 0, in.Size())); err != nil {
				return err
			}
		}
		out = append(out, f)
		return nil
	})
	return out, err
}

type writtenFile struct {
	ViewFile
	stamp stamp
}

// written lists the symlinks and the removals in the uppers of the throwaway overlays.
func (b *builder) written() (map[string]writtenFile, error) {
	if b.spec.Session == nil || !b.spec.Session.Written {
		return nil, nil
	}
	out := map[string]writtenFile{}
	for _, t := range b.tops {
		if err := writtenBelow(t.dir, strings.TrimSuffix(t.mount, "/"), out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func writtenBelow(dir *sys.FD, at string, out map[string]writtenFile) error {
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		n, err := sys.Lstat(dir, name)
		if err != nil {
			return err
		}
		full := at + "/" + name
		f := writtenFile{
			ViewFile{Path: []byte(full), By: -1, Type: n.Type, Mode: n.Mode, UID: n.UID, GID: n.GID},
			stamp{n.Ino, n.CtimeNS, n.MtimeNS},
		}
		switch {
		case n.IsDir():
			sub, err := sys.OpenDirAt(dir, name)
			if err != nil {
				return err
			}
			err = writtenBelow(sub, full, out)
			sub.Close()
			if err != nil {
				return err
			}
			continue
		case n.Type == change.Symlink:
			target, err := sys.Readlink(dir, name)
			if err != nil {
				return err
			}
			f.Target = []byte(target)
		case n.Type == change.CharDevice && n.Rdev == 0:
			f.Gone, f.Type = true, 0
		default:
			continue
		}
		out[full] = f
	}
	return nil
}
