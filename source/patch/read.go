package patch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"slices"

	"github.com/liveupd/liveupd/change"
)

const storeName = ".liveupd"

// File is an open file of the old tree.
type File interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Opener opens a regular file of the old tree by its absolute path, through no
// symlink. What is absent gives an error that matches fs.ErrNotExist.
type Opener func(path string) (File, error)

// Kept opens a file of this digest that the old tree had and the machine keeps, for
// a rollback. Where there is none the error matches fs.ErrNotExist.
type Kept func(d change.Digest) (File, error)

// Patch is an open patch.
type Patch struct {
	in   io.Reader
	sum  hash.Hash
	head *head
	open Opener
	kept Kept
	past map[int]bool // bases that are taken from what is kept
}

// Open reads the head of a patch and checks, before anything else, that each file
// which it needs is there as it needs it. Where the patch has been there already, and
// just there, the file as it was is looked for in what is kept; kept may be nil. Errors
// that are damage, an attack, or a machine that has something else match
// change.ErrVerification.
func Open(ctx context.Context, in io.Reader, open Opener, kept Kept) (*Patch, error) {
	p := &Patch{sum: sha256.New(), open: open, kept: kept, past: map[int]bool{}}
	p.in = io.TeeReader(in, p.sum)
	var err error
	if p.head, err = readHead(p.in); err != nil {
		return nil, err
	}
	buf := make([]byte, 256<<10)
	var first error
	for i := range p.head.Bases {
		done, err := p.checkBase(ctx, &p.head.Bases[i], buf)
		if done && p.isKept(ctx, p.head.Bases[i].Digest, buf) {
			p.past[i] = true
			continue
		}
		switch {
		case errors.Is(err, errApplied):
			return nil, err // it says most, whatever else does not fit
		case err != nil && !errors.Is(err, change.ErrVerification):
			return nil, err
		case first == nil:
			first = err
		}
	}
	if first != nil {
		return nil, first
	}
	return p, nil
}

// errApplied is a file of the root that is already what the patch makes of it.
var errApplied = fmt.Errorf("as it is here already: %w", change.ErrVerification)

const otherBase = "bring the machine to the version that the patch starts from, or apply the whole update instead"

// checkBase checks one file that the patch needs; done tells, of one that is not as it is
// needed, that it is as the patch would leave it.
func (p *Patch) checkBase(ctx context.Context, b *Base, buf []byte) (done bool, err error) {
	refuse := func(format string, args ...any) error {
		return change.WithHint(damaged("it needs %q as it was in the tree that it was made from, and %s", b.Path, fmt.Sprintf(format, args...)), otherBase)
	}
	f, err := p.open(string(b.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return p.goes(b.Path), refuse("there is none")
	}
	if err != nil {
		// A folder, a symlink, a device: it is opened as a file, and as nothing else.
		return b.Becomes.IsZero() && !p.goes(b.Path), refuse("here it cannot be opened: %v", err)
	}
	defer f.Close()
	if f.Size() != b.Size && b.Becomes.IsZero() {
		return false, refuse("here it has %d bytes and not %d", f.Size(), b.Size)
	}
	got, err := digestOf(ctx, f, buf)
	if err != nil {
		return false, fmt.Errorf("cannot read %q, which it needs: %w", b.Path, err)
	}
	switch got {
	case b.Digest:
		return false, nil
	case b.Becomes:
		return true, change.WithHint(fmt.Errorf("it makes %q %w", b.Path, errApplied),
			"the patch seems to be applied: see what is with liveupd history")
	}
	return false, refuse("here it has the digest %s and not %s", got, b.Digest)
}

// goes tells whether the patch removes a path.
func (p *Patch) goes(name []byte) bool {
	_, found := slices.BinarySearchFunc(p.head.Gone, name, func(g Gone, name []byte) int { return bytes.Compare(g.Path, name) })
	return found
}

// isKept tells whether a file of this digest is kept, and whole.
func (p *Patch) isKept(ctx context.Context, d change.Digest, buf []byte) bool {
	if p.kept == nil {
		return false
	}
	f, err := p.kept(d)
	if err != nil {
		return false
	}
	defer f.Close()
	got, err := digestOf(ctx, f, buf)
	return err == nil && got == d
}

func digestOf(ctx context.Context, f File, buf []byte) (d change.Digest, err error) {
	sum := sha256.New()
	for r := io.NewSectionReader(f, 0, f.Size()); ; {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		n, err := r.Read(buf)
		sum.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return change.Digest(sum.Sum(nil)), nil
		}
		if err != nil {
			return d, err
		}
	}
}

// base opens a file that the patch needs, where Open has found it.
func (p *Patch) base(i int) (File, error) {
	if p.past[i] {
		return p.kept(p.head.Bases[i].Digest)
	}
	return p.open(string(p.head.Bases[i].Path))
}

// Encoder is what made the patch.
func (p *Patch) Encoder() string { return p.head.Encoder }

// Whole tells whether both trees were whole systems.
func (p *Patch) Whole() bool { return p.head.Whole }

// Gone are the paths that the new tree lacks, sorted.
func (p *Patch) Gone() []Gone { return p.head.Gone }

// Size is the bytes of the archive.
func (p *Patch) Size() int64 {
	var n int64
	for _, g := range p.head.Groups {
		n += g.Size
	}
	return n
}

// Digest is the SHA-256 of the patch itself, once Tar was read to its end.
func (p *Patch) Digest() change.Digest { return change.Digest(p.sum.Sum(nil)) }

// Tar is the archive of what changes. It is read once.
func (p *Patch) Tar(ctx context.Context) io.Reader { return &tarReader{p: p, ctx: ctx} }

type tarReader struct {
	p    *Patch
	ctx  context.Context
	next int
	rest []byte
	dict []byte
	err  error
}

func (r *tarReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err == nil {
			r.err = r.more()
		}
		if r.err != nil {
			return 0, r.err
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// more unpacks the next group.
func (r *tarReader) more() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	r.rest = nil
	if r.next == len(r.p.head.Groups) {
		var one [1]byte
		if n, err := io.ReadFull(r.p.in, one[:]); n > 0 {
			return damaged("it goes on after its end")
		} else if !errors.Is(err, io.EOF) {
			return truncated(err)
		}
		return io.EOF
	}
	g := &r.p.head.Groups[r.next]
	r.next++
	var size [4]byte
	if _, err := io.ReadFull(r.p.in, size[:]); err != nil {
		return truncated(err)
	}
	frame, err := readFrame(r.p.in, binary.LittleEndian.Uint32(size[:]))
	if err != nil {
		return err
	}
	if err := r.loadDict(g); err != nil {
		return err
	}
	out, err := decode(frame, r.dict, g.Size)
	if err != nil {
		return damaged("group %d cannot be unpacked: %v", r.next, err)
	}
	if int64(len(out)) != g.Size || change.Digest(sha256.Sum256(out)) != g.Digest {
		return damaged("group %d is not what its head says: the patch is damaged, or a file that it needs changed while it was read", r.next)
	}
	r.rest = out
	return nil
}

func (r *tarReader) loadDict(g *group) error {
	r.dict = r.dict[:0]
	for _, p := range g.Dict {
		base := &r.p.head.Bases[p.Base]
		f, err := r.p.base(p.Base)
		if err != nil {
			return fmt.Errorf("cannot read %q, which it needs: %w", base.Path, err)
		}
		at := len(r.dict)
		r.dict = append(r.dict, make([]byte, p.Len)...)
		_, err = io.ReadFull(io.NewSectionReader(f, p.Off, p.Len), r.dict[at:])
		f.Close()
		if err != nil {
			return fmt.Errorf("cannot read %q, which it needs: %w", base.Path, err)
		}
	}
	return nil
}
