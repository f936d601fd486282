package diff

import (
	"errors"
	"fmt"
	"io"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
)

// attempts is how often a file that changes while it is read is read again.
const attempts = 3

var errRestless = errors.New("it changes while it is read")

// claim compares an entry of a signed source with what the manifest says. What
// the manifest vouches for is taken from it: the digest, which staging checks
// against what it copies, and the attributes.
func (w *worker) claim(p *pairing, name string, n *change.Node) error {
	at := join(p.srcDir, name)
	want, _ := w.src.Claim(at)
	if want == nil {
		return fmt.Errorf("cannot take %q: the manifest does not list it: %w", at, change.ErrVerification)
	}
	refuse := func(what string, have, want any) error {
		return fmt.Errorf("cannot take %q: its %s is %v, and the manifest says %v: %w", at, what, have, want, change.ErrVerification)
	}
	switch {
	case n.Type != want.Type:
		return refuse("type", n.Type, want.Type)
	case n.Mode != want.Mode && n.Type != change.Symlink:
		return refuse("mode", fmt.Sprintf("%04o", n.Mode), fmt.Sprintf("%04o", want.Mode))
	case n.UID != want.UID:
		return refuse("owner", n.UID, want.UID)
	case n.GID != want.GID:
		return refuse("group", n.GID, want.GID)
	case n.Size != want.Size:
		return refuse("size", n.Size, want.Size)
	case n.Rdev != want.Rdev:
		return refuse("device number", n.Rdev, want.Rdev)
	}
	if n.Type == change.Symlink {
		target, err := sys.Readlink(p.src.fd, name)
		if err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", at, err)
		}
		if target != want.Target {
			return refuse("target", fmt.Sprintf("%q", target), fmt.Sprintf("%q", want.Target))
		}
	}
	if err := attributes(w.o.SourceIndex, p.src, name, n); err != nil {
		return fmt.Errorf("cannot read %s of the source: %w", at, err)
	}
	if a := xattrDifference(want, n); a != 0 {
		return fmt.Errorf("cannot take %q: its attributes (%v) are not those of the manifest: %w", at, a.Names(), change.ErrVerification)
	}
	n.Xattrs, n.Digest = want.Xattrs, want.Digest
	return nil
}

// attributes fills in extended attributes, and the digest where the index knows it.
func attributes(x *catalog.Index, f *folder, name string, n *change.Node) error {
	if lookup(x, f, n, false) {
		return nil
	}
	fd, at := f.at(name)
	var err error
	if n.Xattrs, err = sys.Xattrs(fd, at); err != nil {
		return err
	}
	if ino, ok := f.vol.key(n); ok {
		x.Put(ino, n.CtimeNS, n.Size, n.Digest, n.Xattrs)
	}
	return nil
}

// describe completes both nodes but for digests.
func (w *worker) describe(e *encounter) error {
	if err := w.describeSource(e); err != nil || e.ln == nil {
		return err
	}
	return w.describeLive(e.live, e.dir, e.name, e.ln)
}

// describeSource completes the source's node but for its digest.
func (w *worker) describeSource(e *encounter) error {
	if !w.signed {
		if err := attributes(w.o.SourceIndex, e.src, e.name, e.sn); err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", e.srcPath(), err)
		}
		w.unlabel(e.sn)
	}
	if e.sn.Type == change.Symlink {
		var err error
		if e.sn.Target, err = sys.Readlink(e.src.fd, e.name); err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", e.srcPath(), err)
		}
	}
	return nil
}

// describeLive completes a live node but for its digest.
func (w *worker) describeLive(f *folder, dir, name string, n *change.Node) error {
	err := attributes(w.o.Index, f, name, n)
	if err == nil && n.Type == change.Symlink {
		n.Target, err = sys.Readlink(f.fd, name)
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", join(dir, name), err)
	}
	return nil
}

// unread tells a regular file of which the digest is not known.
func unread(n *change.Node) bool {
	return n != nil && n.Type == change.Regular && n.Digest.IsZero()
}

// mustRead tells whether it takes a digest that is not known to decide: the
// three-way rule wants both, and else it is needed where the sizes agree.
func (w *worker) mustRead(e *encounter) bool {
	if !unread(e.sn) && !unread(e.ln) {
		return false
	}
	if e.class == change.ClassThreeWay {
		return true
	}
	return e.ln != nil && e.sn.Type == e.ln.Type && e.sn.Size == e.ln.Size && (e.sn.Dev != e.ln.Dev || e.sn.Ino != e.ln.Ino)
}

// read fills in the digests that decide needs.
func (w *worker) read(e *encounter) error {
	if unread(e.sn) {
		if err := w.digest(w.o.SourceIndex, e.src, e.name, e.sn); err != nil {
			return fmt.Errorf("cannot read %s of the source: %w", e.srcPath(), err)
		}
		w.unlabel(e.sn)
	}
	if unread(e.ln) {
		if err := w.digest(w.o.Index, e.live, e.name, e.ln); err != nil {
			return fmt.Errorf("cannot read %s: %w", e.path(), err)
		}
	}
	return nil
}

// digest reads a regular file. Where it changed since it was described, or
// changes meanwhile, n becomes what it is now.
func (w *worker) digest(x *catalog.Index, f *folder, name string, n *change.Node) error {
	fd, err := sys.OpenContent(f.fd, name)
	if err != nil {
		return err
	}
	defer fd.Close()
	for range attempts {
		before, err := fd.Stat()
		if err != nil {
			return err
		}
		if before.Type != change.Regular {
			return fmt.Errorf("it became a %s", before.Type)
		}
		if state(before) != state(n) {
			*n = *before
			if n.Xattrs, err = sys.Xattrs(f.fd, name); err != nil {
				return err
			}
		}
		d, err := w.sum(fd, before.Size)
		if err != nil {
			return err
		}
		after, err := fd.Stat()
		if err != nil {
			return err
		}
		if state(after) == state(before) {
			n.Digest = d
			if ino, ok := f.vol.key(n); ok {
				x.Put(ino, n.CtimeNS, n.Size, d, n.Xattrs)
			}
			return nil
		}
	}
	return errRestless
}

// state is what changes whenever a file does.
func state(n *change.Node) [4]int64 { return [4]int64{int64(n.Dev), int64(n.Ino), n.CtimeNS, n.Size} }

// sum reads an open file from its start; no more than its size, so that the
// end of a file that grows without end is reached.
func (w *worker) sum(fd *sys.FD, size int64) (d change.Digest, err error) {
	if w.buf == nil {
		w.buf = make([]byte, 256<<10)
	}
	w.hash.Reset()
	for off := int64(0); off < size; {
		n, err := fd.ReadAt(w.buf[:min(int64(len(w.buf)), size-off)], off)
		if n > 0 {
			w.hash.Write(w.buf[:n])
			off += int64(n)
			w.stats.bytes.Add(int64(n))
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return d, err
		}
	}
	w.hash.Sum(d[:0])
	return d, nil
}
