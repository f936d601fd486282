package transact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// CheckKept reads all that the transaction keeps for a rollback and compares it
// with the journal's digests: a damaged old file is worse than a new one. Damage
// is change.ErrVerification and names the paths. Nothing is changed. progress may
// be nil; it is called with what has been read so far, one call at a time.
func (t *Tx) CheckKept(ctx context.Context, progress func(files, bytes int64)) error {
	if t.journal == nil {
		return fmt.Errorf("cannot check what transaction %s keeps: it has no journal", t.ID())
	}
	if missing := t.missing(); len(missing) > 0 {
		return fmt.Errorf("cannot check what transaction %s keeps: %s is not mounted", t.ID(), strings.Join(missing, ", "))
	}
	err := t.checkKept(ctx, true, progress)
	t.keptRead = err == nil
	return err
}

// checkKept looks, before anything moves, whether every old object is there and
// every name can move. With digests it reads the old files.
func (t *Tx) checkKept(ctx context.Context, digests bool, progress func(files, bytes int64)) error {
	c := &keptCheck{t: t, digests: digests, progress: progress}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			w := &keptWorker{keptCheck: c, dirs: newDirs()}
			defer w.dirs.close()
			for ctx.Err() == nil {
				// Neighbours share their folders.
				const run = 64
				from := int(next.Add(run)) - run
				if from >= t.journal.Ops.Len() {
					return
				}
				for i := from; i < min(from+run, t.journal.Ops.Len()) && ctx.Err() == nil; i++ {
					w.dirs.trim()
					op, err := t.journal.Ops.At(i)
					if err == nil {
						err = w.check(op)
					}
					if err != nil {
						cancel(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return c.verdict()
}

// keptCheck is one run of checkKept.
type keptCheck struct {
	t        *Tx
	digests  bool
	progress func(files, bytes int64)

	mu           sync.Mutex
	files, bytes int64
	damaged      []keptDamage
	contents     []OldContent
}

type keptDamage struct{ path, how string }

// KeptError tells what of a generation is damaged; it is change.ErrVerification.
type KeptError struct {
	// Contents are the damaged files that MendKept can put right.
	Contents []OldContent
	err      error
}

func (e *KeptError) Error() string { return e.err.Error() }
func (e *KeptError) Unwrap() error { return e.err }

// verdict names what is damaged: all of it matters to whoever has to mend it,
// the first few are enough to see what happened.
func (c *keptCheck) verdict() error {
	if len(c.damaged) == 0 {
		return nil
	}
	slices.SortFunc(c.damaged, func(a, b keptDamage) int { return strings.Compare(a.path, b.path) })
	if len(c.damaged) == 1 {
		return &KeptError{c.contents, fmt.Errorf("cannot roll back %s: what was kept of it %s: %w", c.damaged[0].path, c.damaged[0].how, change.ErrVerification)}
	}
	const shown = 10
	var text strings.Builder
	for _, d := range c.damaged[:min(len(c.damaged), shown)] {
		fmt.Fprintf(&text, "\n  %s: what was kept of it %s", d.path, d.how)
	}
	if more := len(c.damaged) - shown; more > 0 {
		fmt.Fprintf(&text, "\n  and %d more", more)
	}
	return &KeptError{c.contents, fmt.Errorf("cannot roll back %d paths: %w%s", len(c.damaged), change.ErrVerification, text.String())}
}

type keptWorker struct {
	*keptCheck
	dirs *dirs
	buf  []byte
}

func (w *keptWorker) check(op *journal.Op) error {
	if op.Staged == "" {
		return nil
	}
	if op.Kind != journal.Member {
		if err := w.checkLive(op); err != nil {
			return err
		}
	}
	if op.Old == nil {
		return nil
	}
	how, err := w.checkObject(op)
	if err != nil {
		return fmt.Errorf("cannot roll back %s: %w", op.Path, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if how != "" {
		w.damaged = append(w.damaged, keptDamage{op.Path, how})
		if op.Old.Type == change.Regular && !op.Old.Digest.IsZero() && how != isGone {
			w.contents = append(w.contents, w.t.oldContent(op))
		}
	}
	w.files++
	if op.Old.Type == change.Regular {
		w.bytes += op.Old.Size
	}
	if w.progress != nil {
		w.progress(w.files, w.bytes)
	}
	return nil
}

// checkLive looks whether the name can move.
func (w *keptWorker) checkLive(op *journal.Op) error {
	tv := &w.t.vols[op.Volume]
	mounts := make([]string, len(w.t.vols))
	for i := range w.t.vols {
		mounts[i] = w.t.vols[i].mount
	}
	_, rel := locate(mounts, op.Path)
	dir, name, err := w.dirs.parent(tv.vol.Dir, rel)
	if notHere(err) {
		if op.Kind == journal.Add {
			return nil // it went with its folder
		}
		return change.WithHint(fmt.Errorf("cannot roll back %s: its folder is not there any more: %w", op.Path, err),
			"make "+path.Dir(op.Path)+" again, then run the same command")
	}
	if err != nil {
		return fmt.Errorf("cannot roll back %s: %w", op.Path, err)
	}
	if err := refuseFlags(dir, ".", path.Dir(op.Path)); err != nil {
		return err
	}
	err = refuseFlags(dir, name, op.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody removed it: the old one returns all the same
	}
	return err
}

const isGone = "is gone"

// checkObject says how the old object is not what the journal names; "" for not.
func (w *keptWorker) checkObject(op *journal.Op) (string, error) {
	const altered = "is not what was there before"
	dir, name, err := w.dirs.parent(w.t.vols[op.Volume].dir, op.Staged)
	if notHere(err) {
		return isGone, nil
	}
	if err != nil {
		return "", err
	}
	found, err := look(dir, name)
	if err != nil {
		return "", err
	}
	if found == nil {
		return isGone, nil
	}
	if !retained(op.Old, found) || !sameContent(op.Old, found) {
		return altered, nil
	}
	if op.Old.Type == change.Regular && found.Mtime != op.Old.Mtime {
		return "was written to since", nil
	}
	if found.Mode != op.Old.Mode || found.UID != op.Old.UID || found.GID != op.Old.GID {
		return "has another mode or owner", nil
	}
	if !w.digests || op.Old.Type != change.Regular || op.Old.Digest.IsZero() {
		return "", nil
	}
	if w.buf == nil {
		w.buf = make([]byte, copyBuffer)
	}
	digest, err := digestAt(dir, name, w.buf)
	if isErrno(err, syscall.EIO) {
		return "cannot be read from the disk", nil
	}
	if err != nil {
		return "", err
	}
	if digest != op.Old.Digest {
		return fmt.Sprintf("has the digest %s, not %s", short(digest), short(op.Old.Digest)), nil
	}
	return "", nil
}

// short is enough of a digest for a person to compare.
func short(d change.Digest) string { return d.String()[:12] }

// OldContent is an object that a transaction keeps for a rollback.
type OldContent struct {
	Path   string // where it was
	From   string // where it lies now, in the live root
	Size   int64
	Digest change.Digest

	volume int
	staged string
	old    *journal.Object
}

func (t *Tx) oldContent(op *journal.Op) OldContent {
	return OldContent{
		Path: op.Path, From: path.Join(t.vols[op.Volume].mount, Dir, txName, t.ID(), op.Staged), Size: op.Old.Size, Digest: op.Old.Digest,
		volume: op.Volume, staged: op.Staged, old: op.Old,
	}
}

// MendKept writes the right content into a damaged file that the transaction keeps:
// into the same inode, which the journal knows it by. A crash in the midst of it
// leaves the file damaged, as it was. What in holds is checked by its digest.
func (t *Tx) MendKept(c OldContent, in *sys.FD) error {
	fail := func(err error) error { return fmt.Errorf("cannot mend what is kept of %s: %w", c.Path, err) }
	k := t.s.k
	d := newDirs()
	defer d.close()
	dir, name, err := d.parent(t.vols[c.volume].dir, c.staged)
	if err != nil {
		return fail(err)
	}
	found, err := look(dir, name)
	if err != nil {
		return fail(err)
	}
	if found == nil || found.Type != change.Regular || found.Handle != c.old.Handle && !retained(c.old, found) {
		return fail(errors.New("it is another file now"))
	}
	xattrs, err := sys.Xattrs(dir, name)
	if err != nil {
		return fail(err)
	}
	if xattrs["security.capability"] != nil {
		return fail(errors.New("it has capabilities, which each write takes from a file"))
	}
	out, err := k.OpenRewrite(dir, name)
	if err != nil {
		return fail(err)
	}
	defer out.Close()
	digest, _, err := hashing(in, make([]byte, copyBuffer), func(b []byte) error { return k.Write(out, b) })
	if err == nil && digest != c.Digest {
		err = fmt.Errorf("the content has the digest %s, not %s: %w", short(digest), short(c.Digest), change.ErrVerification)
	}
	if err == nil {
		err = k.Fsync(out)
	}
	if err == nil {
		err = k.Chmod(dir, name, c.old.Mode)
	}
	if err == nil {
		// Last: until it is back the file counts as damaged.
		err = k.SetMtime(dir, name, c.old.Mtime)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// Kept lists the regular files that the transaction keeps, by the journal: whether
// they are still whole is not looked at.
func (t *Tx) Kept() ([]OldContent, error) {
	if t.journal == nil {
		return nil, nil
	}
	var out []OldContent
	for op, err := range t.journal.Ops.Where(journal.HasOld) {
		if err != nil {
			return nil, err
		}
		if op.Staged == "" || op.Old.Type != change.Regular || op.Old.Digest.IsZero() || t.vols[op.Volume].dir == nil {
			continue
		}
		out = append(out, t.oldContent(op))
	}
	return out, nil
}
