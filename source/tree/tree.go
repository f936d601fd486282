package tree

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
)

// Options says what Open accepts.
type Options struct {
	// Keys are the public keys that count; nil is those of the running system.
	Keys *trust.Keyring
	// AllowUnsigned takes a tree that carries no signature. It never takes one
	// whose signature is wrong.
	AllowUnsigned bool
	// Name stands for the directory in messages, where it was made of something that
	// the operator knows by another name; "" is the directory's own.
	Name string
	// Signer is who signed the archive that the directory was unpacked from: then
	// it needs no manifest of its own. Head is what that signature says of it.
	Signer *trust.Signer
	Head   trust.Head
	// Empty takes a directory that holds nothing: a patch may do nothing but remove.
	Empty bool
}

// Tree is an opened update. Claim, Check and Skip may be called from many
// goroutines at once.
type Tree struct {
	dir      string  // absolute, clean
	name     string  // of it, in messages
	root     *sys.FD // dir
	above    *sys.FD // the folder that holds dir; nil for /
	owner    uint32  // of dir
	manifest Manifest
	list     *digests      // nil: unsigned
	signer   *trust.Signer // nil: unsigned
	whole    bool
	warnings []string
}

// Open opens the tree at dir and settles what can be believed of it; see the
// package comment. An error that refuses the update for its signature or for
// the lack of one matches change.ErrVerification.
func Open(ctx context.Context, dir string, o Options) (*Tree, error) {
	if o.Keys == nil {
		o.Keys = trust.NewKeyring(trust.Options{})
	}
	t, err := openDir(dir, o.Name, o.Empty)
	if err != nil {
		return nil, err
	}
	t.signer = o.Signer
	if err := t.load(ctx, o); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// openDir opens and surveys the directory alone.
func openDir(dir, name string, empty bool) (*Tree, error) {
	if dir == "" {
		return nil, errors.New("cannot open the tree: no directory is named")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the tree %s: %w", dir, err)
	}
	t := &Tree{dir: abs, name: cmp.Or(name, abs)}
	if t.root, err = sys.OpenRoot(abs); err != nil {
		return nil, fmt.Errorf("cannot open the tree: %w", err)
	}
	if err := t.survey(empty); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tree) survey(empty bool) error {
	node, err := t.root.Stat()
	if err != nil {
		return fmt.Errorf("cannot open the tree: %w", err)
	}
	t.owner = node.UID
	names, err := sys.ReadDirNames(t.root)
	if err != nil {
		return fmt.Errorf("cannot open the tree: %w", err)
	}
	if slices.Contains(names, storeName) {
		return fmt.Errorf("cannot use %s as an update: it holds %s, so it is a root that liveupd updates", t.name, storeName)
	}
	if !empty && !slices.ContainsFunc(names, func(name string) bool { return !skipped("/" + name) }) {
		return fmt.Errorf("cannot use %s as an update: it is empty", t.name)
	}
	if up := filepath.Dir(t.dir); up != t.dir {
		if t.above, err = sys.OpenRoot(up); err != nil {
			return fmt.Errorf("cannot look beside the tree: %w", err)
		}
	}
	t.whole, err = t.isWhole()
	return err
}

// load reads what describes the tree and decides whether it is believed.
func (t *Tree) load(ctx context.Context, o Options) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cannot open the tree %s: %w", t.name, err)
	}
	if err := t.loadSigned(o.Keys); err != nil {
		return err
	}
	m, sum, err := t.loadTOML()
	if err != nil {
		return err
	}
	if t.list != nil {
		if m, err = t.list.header.join(m, sum); err != nil {
			return fmt.Errorf("cannot accept %s: %w: %w", t.name, err, change.ErrVerification)
		}
	}
	t.manifest = m
	if o.Signer != nil {
		head, err := m.Head().Join(o.Head)
		if err != nil {
			return fmt.Errorf("cannot accept %s: what is signed with it and what it holds disagree: %w: %w", t.name, err, change.ErrVerification)
		}
		t.manifest.setHead(head)
	}
	if !o.AllowUnsigned && t.signer == nil {
		return change.WithHint(
			fmt.Errorf("cannot accept %s: it is not signed: %w", t.name, change.ErrVerification),
			"sign it with: liveupd sign; or, where it is named on the command line, pass --allow-unsigned")
	}
	return nil
}

// join compares the signed header with liveupd.toml and gives what is believed.
func (h *header) join(m Manifest, sum change.Digest) (Manifest, error) {
	switch {
	case h.TOML.IsZero() && !sum.IsZero():
		return m, errors.New(tomlName + " is not part of the signed manifest")
	case !h.TOML.IsZero() && sum.IsZero():
		return m, errors.New(tomlName + " is part of the signed manifest and is missing")
	case h.TOML != sum:
		return m, errors.New(tomlName + " differs from the signed manifest")
	case sum.IsZero():
		m = Manifest{Bootme: h.Bootme}
	case h.Bootme != m.Bootme:
		return m, fmt.Errorf("%s and the head of %s disagree: bootme", tomlName, ManifestName)
	}
	head, err := m.Head().Join(h.Head)
	if err != nil {
		return m, fmt.Errorf("%s and the head of %s disagree: %w", tomlName, ManifestName, err)
	}
	m.setHead(head)
	return m, nil
}

// isWhole tells whether the tree is a system: it holds usr/ and an os-release
// that can be read. A dangling os-release link does not count, because the answer
// "whole" lets the update remove what it lacks.
func (t *Tree) isWhole() (bool, error) {
	usr, err := sys.Lstat(t.root, "usr")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read %s: %w", t.name, err)
	}
	if !usr.IsDir() {
		return false, nil
	}
	for _, name := range []string{"usr/lib/os-release", "etc/os-release"} {
		fd, err := sys.OpenAt(t.root, name, sys.OpenPath, sys.ResolveInRoot|sys.ResolveNoMagic)
		if err != nil {
			continue
		}
		node, err := fd.Stat()
		fd.Close()
		if err == nil && node.Type == change.Regular && node.Size > 0 {
			return true, nil
		}
	}
	return false, nil
}

// Root is the tree's directory, open until Close.
func (t *Tree) Root() *sys.FD { return t.root }

// Dir is the tree's directory as an absolute path, for messages.
func (t *Tree) Dir() string { return t.dir }

// Whole tells whether the tree holds usr/ and an os-release.
func (t *Tree) Whole() bool { return t.whole }

// Manifest is what liveupd.toml, or the head of the signed manifest, says; the
// zero value where neither is there.
func (t *Tree) Manifest() Manifest { return t.manifest }

// Signer is the key that confirmed the signature; nil for an unsigned tree.
func (t *Tree) Signer() *trust.Signer { return t.signer }

// Warnings are for the plan.
func (t *Tree) Warnings() []string { return slices.Clone(t.warnings) }

// Close closes the tree; closing twice is harmless.
func (t *Tree) Close() error {
	return errors.Join(t.root.Close(), t.above.Close())
}

// Skip tells whether the path describes the tree instead of being part of it.
func (t *Tree) Skip(p string) bool { return skipped(p) }

func skipped(p string) bool {
	return p == "/"+tomlName || p == "/"+ManifestName || p == "/"+ManifestName+sigSuffix
}

// Claim gives what the signed manifest says of p: type, mode, owner, size,
// target, device, extended attributes and digest. A nil node of a signed tree means that p
// is not listed, and must not be taken: change.ErrVerification. The root itself
// is never listed and is claimed to be what it is.
func (t *Tree) Claim(p string) (node *change.Node, signed bool) {
	if t.list == nil {
		return nil, false
	}
	if p == "/" {
		node, err := t.root.Stat()
		if err != nil {
			return nil, true
		}
		return node, true
	}
	i, ok := t.list.find(p)
	if !ok {
		return nil, true
	}
	t.list.mark(i)
	_, node, err := parseLine(string(t.list.line(t.list.lines[i])))
	if err != nil {
		return nil, true
	}
	return node, true
}

// Check compares an object of the tree, as lstat and its extended attributes show
// it, with the signed manifest. The digest is compared where got has one. It says nothing of an unsigned
// tree. Its error matches change.ErrVerification and names the path.
func (t *Tree) Check(p string, got *change.Node) error {
	want, signed := t.Claim(p)
	if !signed || p == "/" {
		return nil
	}
	if want == nil {
		return refuse(p, "it is not in the signed manifest")
	}
	if what := mismatch(want, got); what != "" {
		return refuse(p, what)
	}
	return nil
}

func refuse(p, why string) error {
	return fmt.Errorf("cannot accept %s: %s: %w", quote(p), why, change.ErrVerification)
}

// mismatch names the first thing in which got is not want; "" for none.
func mismatch(want, got *change.Node) string {
	switch {
	case want.Type != got.Type:
		return fmt.Sprintf("it is a %s, the signed manifest says %s", got.Type, want.Type)
	case want.Mode != got.Mode:
		return fmt.Sprintf("its mode is %04o, the signed manifest says %04o", got.Mode, want.Mode)
	case want.UID != got.UID || want.GID != got.GID:
		return fmt.Sprintf("its owner is %d:%d, the signed manifest says %d:%d", got.UID, got.GID, want.UID, want.GID)
	case want.Size != got.Size:
		return fmt.Sprintf("its size is %d, the signed manifest says %d", got.Size, want.Size)
	case want.Target != got.Target:
		return fmt.Sprintf("it points to %s, the signed manifest says %s", quote(got.Target), quote(want.Target))
	case want.Rdev != got.Rdev:
		return fmt.Sprintf("its device number is %#x, the signed manifest says %#x", got.Rdev, want.Rdev)
	case !got.Digest.IsZero() && want.Digest != got.Digest:
		return "its content differs from the signed manifest"
	case !maps.EqualFunc(want.Xattrs, ownXattrs(got.Xattrs), bytes.Equal):
		return "its extended attributes differ from the signed manifest"
	}
	return ""
}

// ownXattrs leaves out what belongs to the machine and not to the tree.
func ownXattrs(all map[string][]byte) map[string][]byte {
	if !slices.ContainsFunc(slices.Collect(maps.Keys(all)), change.MachineXattr) {
		return all
	}
	own := maps.Clone(all)
	maps.DeleteFunc(own, func(key string, _ []byte) bool { return change.MachineXattr(key) })
	return own
}

// Finish is called after the walk: all that the signed manifest lists must have been
// there. A path that the walk did not ask for, because nothing may be taken there,
// must at least exist as the type that is listed.
func (t *Tree) Finish() error {
	if t.list == nil {
		return nil
	}
	for i, off := range t.list.lines {
		if t.list.marked(i) {
			continue
		}
		p, want, err := parseLine(string(t.list.line(off)))
		if err != nil {
			return fmt.Errorf("cannot read the signed manifest: %w: %w", err, change.ErrVerification)
		}
		fd, err := sys.OpenAt(t.root, p[1:], sys.OpenPath|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoMagic)
		if errors.Is(err, fs.ErrNotExist) {
			return refuse(p, "the signed manifest lists it, and it is missing")
		}
		if err != nil {
			return fmt.Errorf("cannot read %s in the tree: %w", quote(p), err)
		}
		got, err := fd.Stat()
		fd.Close()
		if err != nil {
			return fmt.Errorf("cannot read %s in the tree: %w", quote(p), err)
		}
		if got.Type != want.Type {
			return refuse(p, mismatch(want, got))
		}
	}
	return nil
}
