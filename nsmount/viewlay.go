package nsmount

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// ViewChange is one path of a view that is not as the root has it. Paths go
// through no symlink, and a folder comes before what it holds. No program runs in
// the view before all content was compared with the nodes' digests.
type ViewChange struct {
	Path string
	Node *change.Node // nil: it is gone, with all below
	// Open gives the content of a regular file; nil where only its owner and mode differ.
	Open func() (io.ReadCloser, error)
}

// layHead is a change on its way to the child: its length in four bytes, itself
// as JSON, then the content. Names need not be UTF-8.
type layHead struct {
	Path, Target []byte
	// End: it was the last one. Without it nothing is run: what came may be half of
	// it, or not be what was vouched for.
	End      bool
	Gone     bool
	Type     change.Type
	Mode     uint32
	UID, GID uint32
	Size     int64
	Content  bool
}

const maxLayHead = 64 << 10

func sendChanges(w io.Writer, list []ViewChange) error {
	send := func(h layHead) error {
		msg, err := json.Marshal(h)
		if err != nil {
			return err
		}
		_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(msg))), msg...))
		return err
	}
	for _, c := range list {
		h := layHead{Path: []byte(c.Path), Gone: c.Node == nil}
		if n := c.Node; n != nil {
			h.Target, h.Type, h.Mode, h.UID, h.GID = []byte(n.Target), n.Type, n.Mode, n.UID, n.GID
			h.Content = n.Type == change.Regular && c.Open != nil
			if h.Content {
				h.Size = n.Size
			}
		}
		if err := send(h); err != nil {
			return err
		}
		if h.Content {
			if err := sendContent(w, c, h.Size); err != nil {
				return err
			}
		}
	}
	return send(layHead{End: true})
}

func sendContent(w io.Writer, c ViewChange, size int64) error {
	in, err := c.Open()
	if err != nil {
		return fmt.Errorf("cannot show %s: %w", c.Path, err)
	}
	defer in.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(in, size))
	switch digest := change.Digest(h.Sum(nil)); {
	case err != nil:
	case n != size:
		err = fmt.Errorf("the source changed while it was read: %w", change.ErrDrift)
	case !c.Node.Digest.IsZero() && digest != c.Node.Digest:
		err = fmt.Errorf("its digest is %s, not %s: %w", digest, c.Node.Digest, change.ErrVerification)
	}
	if err != nil && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("cannot show %s: %w", c.Path, err)
	}
	return err
}

// lay writes the changes into the view, whose root is this process's by now.
func (b *builder) lay(in io.Reader) error {
	for {
		var size [4]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return fmt.Errorf("cannot read what to show: %w", err)
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxLayHead {
			return fmt.Errorf("cannot read a change of %d bytes", n)
		}
		msg := make([]byte, n)
		if _, err := io.ReadFull(in, msg); err != nil {
			return err
		}
		var h layHead
		if err := json.Unmarshal(msg, &h); err != nil {
			return err
		}
		if h.End {
			return nil
		}
		err := b.layOne(&h, io.LimitReader(in, h.Size))
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return &UnsupportedError{Feature: "a look at an update of this size", Needs: "more memory"}
		}
		if err != nil {
			return fmt.Errorf("cannot show %s: %w", h.Path, err)
		}
	}
}

func (b *builder) layOne(h *layHead, content io.Reader) error {
	// What a mount of the host hides, and what the view has made afresh, is not shown.
	name := string(h.Path)
	drop := func() error {
		_, err := io.Copy(io.Discard, content)
		return err
	}
	for _, own := range ownMounts {
		if name == own || strings.HasPrefix(name, own+"/") {
			return drop()
		}
	}
	// A folder that a link came in place of leads elsewhere: nothing goes there.
	dir, err := sys.OpenAt(b.view, strings.TrimPrefix(path.Dir(name)+"/.", "/"), sys.OpenRead|sys.OpenDir, sys.ResolveInRoot|sys.ResolveNoSymlinks)
	if h.Gone && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)) {
		return drop()
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	base := path.Base(name)
	was, err := sys.Lstat(dir, base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	keeps := was != nil && !h.Gone && was.Type == h.Type && (h.Type == change.Directory || h.Type == change.Regular && !h.Content)
	if was != nil && !keeps {
		if err := b.k.RemoveAll(dir, base); err != nil {
			return err
		}
	}
	switch {
	case h.Gone:
		return nil
	case keeps:
	case h.Type == change.Directory:
		err = b.k.Mkdir(dir, base, 0o700)
	case h.Type == change.Symlink:
		err = b.k.Symlink(string(h.Target), dir, base)
	case h.Type == change.Regular && h.Content:
		err = b.layFile(dir, base, content)
	default:
		return drop() // devices and sockets of an update are nothing to read
	}
	if err != nil {
		return err
	}
	if err := b.k.Chown(dir, base, h.UID, h.GID); err != nil {
		return err
	}
	if h.Type == change.Symlink {
		return nil
	}
	return b.k.Chmod(dir, base, h.Mode)
}

func (b *builder) layFile(dir *sys.FD, name string, content io.Reader) error {
	out, err := b.k.Create(dir, name, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(fileWriter{b.k, out}, content)
	return err
}

type fileWriter struct {
	k *sys.Kernel
	f *sys.FD
}

func (w fileWriter) Write(p []byte) (int, error) { return len(p), w.k.Write(w.f, p) }

// Bounds of the files of /run that are repeated.
const (
	runFileMax = 1 << 20
	runBytes   = 32 << 20
)

// copyRunFile repeats a small file or a symlink of /run, for programs that ask
// there what machine this is: those that anybody may read, and never a socket.
func (b *builder) copyRunFile(from, to *sys.FD, name string, n *change.Node) error {
	switch n.Type {
	case change.Symlink:
		target, err := sys.Readlink(from, name)
		if err != nil {
			return nil //nolint:nilerr // what lies in /run comes and goes
		}
		return b.k.Symlink(target, to, name)
	case change.Regular:
	default:
		return nil
	}
	if n.Size > runFileMax || b.runBytes+n.Size > runBytes || n.Mode&0o004 == 0 {
		return nil
	}
	fd, err := sys.OpenContent(from, name)
	if err != nil {
		return nil //nolint:nilerr // files of /run come and go
	}
	defer fd.Close()
	out, err := b.k.Create(to, name, n.Mode)
	if err != nil {
		return err
	}
	defer out.Close()
	data := make([]byte, n.Size)
	got, err := fd.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil //nolint:nilerr // it has gone
	}
	b.runBytes += int64(got)
	if err := b.k.Write(out, data[:got]); err != nil {
		return err
	}
	return b.k.Chmod(to, name, n.Mode)
}
