package transact

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// Prepare writes the journal and makes it and all that is staged durable: the
// first barrier. plan may be nil. A live object that is no longer what the Delta
// says is change.ErrDrift.
func (t *Tx) Prepare(ctx context.Context, plan *change.Plan) error {
	if t.status.State != journal.Staging || t.stage == nil || t.journal != nil {
		return fmt.Errorf("cannot prepare transaction %s: nothing is staged or it is prepared already (%s)", t.ID(), t.status.State)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p := &preparer{t: t, dirs: newDirs(), moved: map[string]bool{}}
	defer p.dirs.close()
	for i := range t.stage.items {
		p.dirs.trim()
		if err := p.op(&t.stage.items[i]); err != nil {
			return err
		}
	}
	if err := p.dirTimes(); err != nil {
		return err
	}
	slices.SortStableFunc(p.ops, func(a, b journal.Op) int {
		return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(a.Path, b.Path))
	})
	j := &journal.Journal{Header: t.header, Ops: journal.InMemory(p.ops), Made: plan}
	for _, v := range t.vols {
		j.Volumes = append(j.Volumes, journal.Volume{Mount: journal.Name(v.mount), ID: v.vol.ID})
	}
	if err := t.writeJournal(j); err != nil {
		return t.nameFull(fmt.Errorf("cannot write the journal of transaction %s: %w", t.ID(), err))
	}
	if err := t.barrier(); err != nil {
		return t.nameFull(err)
	}
	t.journal = j
	return nil
}

type preparer struct {
	t     *Tx
	dirs  *dirs
	ops   []journal.Op
	moved map[string]bool // folders in which names move or metadata is set
	times []dirTime
}

type dirTime struct {
	vol  int
	rel  string
	path string
}

func (p *preparer) op(it *item) error {
	t := p.t
	op := journal.Op{Volume: it.vol, Path: it.Path, Staged: it.staged}
	fail := func(err error) error {
		if notHere(err) {
			return driftError(it.Path, "its folder is not what it was")
		}
		return fmt.Errorf("cannot prepare %s: %w", it.Path, err)
	}
	// Nothing lives where something lands in a folder that is new.
	if it.under < 0 || it.Old != nil {
		dir, name, err := p.dirs.parent(t.vols[it.vol].vol.Dir, it.rel)
		if err != nil {
			return fail(err)
		}
		if op.Old, err = look(dir, name); err != nil {
			return fail(err)
		}
		if how := drift(it.Old, op.Old); how != "" && !t.s.noDrift {
			return driftError(it.Path, how)
		}
		if op.Old != nil {
			op.Old.Digest = it.Old.Digest
			if label := it.Old.Xattrs[selinux]; label != nil {
				op.Old.Xattrs = map[string][]byte{selinux: label}
			}
		}
		if it.inPlace() {
			if op.Old.Xattrs, err = sys.Xattrs(dir, name); err != nil {
				return fail(err)
			}
		}
	}
	switch {
	case it.inPlace():
		op.Kind, op.Class, op.Staged = journal.Metadata, journal.ClassMetadata, ""
		op.New = &journal.Object{
			Handle: op.Old.Handle, Type: op.Old.Type, Mode: it.New.Mode, UID: it.New.UID, GID: it.New.GID, Size: op.Old.Size,
			Mtime: it.New.MtimeNS, Rdev: op.Old.Rdev, Nlink: op.Old.Nlink, Target: op.Old.Target, Digest: it.New.Digest, Xattrs: it.New.Xattrs,
		}
		if label, ok := op.Old.Xattrs[selinux]; ok && it.New.Xattrs[selinux] == nil {
			op.New.Xattrs = cloneWith(it.New.Xattrs, selinux, label)
		}
		if op.Old.Type == change.Directory {
			p.moved[it.Path] = true
		}
	case it.New != nil:
		dir, name, err := p.dirs.parent(t.vols[it.vol].dir, it.staged)
		if err != nil {
			return fail(err)
		}
		if op.New, err = look(dir, name); err != nil {
			return fail(err)
		}
		if op.New == nil {
			return fail(errors.New("what was staged is gone"))
		}
		op.New.Digest = it.New.Digest
		op.Kind, op.Class = journal.Exchange, classify(it.Path, it.New)
		if it.Old == nil {
			op.Kind, op.Class = journal.Add, journal.ClassAdd
		} else if err := tellApart(op.Old, op.New); err != nil {
			return fail(err)
		}
	default:
		op.Kind, op.Class = journal.Remove, journal.ClassRemove
	}
	if it.under >= 0 {
		op.Kind, op.Class = journal.Member, journal.ClassMember
	} else if !it.inPlace() {
		p.touch(it)
	}
	p.ops = append(p.ops, op)
	return nil
}

func cloneWith(m map[string][]byte, key string, val []byte) map[string][]byte {
	out := make(map[string][]byte, len(m)+1)
	maps.Copy(out, m)
	out[key] = val
	return out
}

// touch notes that names move in the folder of an entry.
func (p *preparer) touch(it *item) {
	parent := path.Dir(it.Path)
	if !p.moved[parent] {
		p.moved[parent] = true
		p.times = append(p.times, dirTime{it.vol, path.Dir(it.rel), parent})
	}
}

// dirTimes journals the mtime of each folder in which names move. The new value
// is fixed here, so that every replay makes the same tree. A folder with metadata
// of its own in the Delta has it there.
func (p *preparer) dirTimes() error {
	inPlace := map[string]bool{}
	for i := range p.ops {
		if p.ops[i].Kind == journal.Metadata {
			inPlace[p.ops[i].Path] = true
		}
	}
	now := time.Now().UnixNano()
	for _, d := range p.times {
		if inPlace[d.path] {
			continue
		}
		p.dirs.trim()
		dir, name, err := p.dirs.parent(p.t.vols[d.vol].vol.Dir, d.rel)
		var old *journal.Object
		if err == nil {
			old, err = look(dir, name)
		}
		if err != nil || old == nil {
			return driftError(d.path, "it is not what it was")
		}
		fresh := *old
		fresh.Mtime = floor(now, p.t.vols[d.vol].tick)
		p.ops = append(p.ops, journal.Op{
			Kind: journal.DirTimes, Class: journal.ClassDirTimes, Volume: d.vol, Path: d.path, Old: old, New: &fresh,
		})
	}
	return nil
}

// kernelWriter writes an open file through the Kernel.
type kernelWriter struct {
	k *sys.Kernel
	f *sys.FD
}

func (w kernelWriter) Write(b []byte) (int, error) {
	if err := w.k.Write(w.f, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (t *Tx) writeJournal(j *journal.Journal) error {
	k, dir := t.s.k, t.vols[0].dir
	f, err := k.Create(dir, journal.FileName, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := journal.NewWriter(kernelWriter{k, f}, j.Header)
	if err != nil {
		return err
	}
	for _, v := range j.Volumes {
		if err := w.Volume(v); err != nil {
			return err
		}
	}
	for op, err := range j.Ops.Where(journal.HasOld | journal.HasNew) {
		if err == nil {
			err = w.Op(op)
		}
		if err != nil {
			return err
		}
	}
	if j.Made != nil {
		if err := w.Plan(j.Made); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := k.Fsync(f); err != nil {
		return err
	}
	return k.Fsync(dir)
}

// barrier makes all that was written on the transaction's volumes durable, at
// once. A failed sync is never tried again: the kernel drops the error with the
// pages.
func (t *Tx) barrier() error {
	errs := make([]error, len(t.vols))
	for i := range t.vols {
		if t.vols[i].dir == nil {
			continue
		}
		if err := t.s.k.Syncfs(t.vols[i].vol.sync); err != nil {
			errs[i] = fmt.Errorf("cannot make %s durable: %w", t.vols[i].mount, err)
		}
	}
	return errors.Join(errs...)
}
