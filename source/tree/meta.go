package tree

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
)

// ManifestName is the manifest of digests.
const ManifestName = "liveupd.manifest"

const (
	storeName = ".liveupd"
	tomlName  = "liveupd.toml"
	sigSuffix = ".minisig"
)

// maxTOML bounds what is read of a file that a stranger may have made.
const maxTOML = 1 << 20

// Manifest is what liveupd.toml says of the update.
type Manifest struct {
	Name    string `toml:"name"`
	Version string `toml:"version"`
	// Sequence orders updates of one name: who applies refuses to go back.
	Sequence uint64 `toml:"sequence"`
	// Bootme asks for a reboot, whatever the changes by themselves would need.
	Bootme bool `toml:"bootme"`
	// Tree is the name of the directory that a liveupd.toml beside speaks of; "" for
	// any directory in that folder.
	Tree string `toml:"tree"`
	// Owns are directories that the update owns wholly: what it does not ship
	// is removed there. nil where the key is absent, and the rules for a tree
	// without a manifest decide.
	Owns []string `toml:"owns"`
	// Never are paths that the update leaves alone, though it may ship them.
	Never []string `toml:"never"`
	// Expires is when the update is no longer accepted, Signed when it was signed, in
	// seconds since the epoch; 0 where nobody has said. Only a signer says the second.
	Expires int64 `toml:"-"`
	Signed  int64 `toml:"-"`
	// Revokes are keys that are no longer trusted once the update is verified; ascending.
	Revokes []trust.KeyID `toml:"-"`
}

// Head is what of the manifest says which update this is.
func (m *Manifest) Head() trust.Head {
	return trust.Head{
		Name: m.Name, Version: m.Version, Sequence: m.Sequence,
		Expires: m.Expires, Signed: m.Signed, Revokes: m.Revokes,
	}
}

func (m *Manifest) setHead(h trust.Head) {
	m.Name, m.Version, m.Sequence = h.Name, h.Version, h.Sequence
	m.Expires, m.Signed, m.Revokes = h.Expires, h.Signed, h.Revokes
}

// written are the keys of liveupd.toml that need more than TOML's types.
type written struct {
	*Manifest
	// Expires is a date with its zone, the same as a text, or seconds since the epoch.
	Expires any      `toml:"expires"`
	Revokes []string `toml:"revokes"`
}

func (w *written) settle() error {
	var err error
	switch v := w.Expires.(type) {
	case nil:
	case time.Time:
		w.Manifest.Expires = v.Unix()
	case int64:
		w.Manifest.Expires, err = trust.ParseTime(strconv.FormatInt(v, 10))
	case string:
		w.Manifest.Expires, err = trust.ParseTime(v)
	default:
		err = errors.New("want a date with a zone (2027-01-31T00:00:00Z) or seconds since 1970")
	}
	if err != nil {
		return fmt.Errorf("expires: %w", err)
	}
	for _, text := range w.Revokes {
		id, err := trust.ParseKeyID(text)
		if err != nil {
			return fmt.Errorf("revokes: %w", err)
		}
		w.Manifest.Revokes = append(w.Manifest.Revokes, id)
	}
	w.Manifest.Revokes = trust.SortKeyIDs(w.Manifest.Revokes)
	h := w.Head()
	return h.Check()
}

// parseTOML reads liveupd.toml. Unknown keys are refused: a misspelt "owns"
// would change who owns a folder.
func parseTOML(b []byte) (Manifest, error) {
	var m Manifest
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	w := written{Manifest: &m}
	if err := dec.Decode(&w); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			row, _ := strict.Errors[0].Position()
			return Manifest{}, fmt.Errorf("line %d: unknown key %q", row, strings.Join(strict.Errors[0].Key(), "."))
		}
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, _ := at.Position()
			return Manifest{}, fmt.Errorf("line %d: %w", row, err)
		}
		return Manifest{}, err
	}
	if err := w.settle(); err != nil {
		return Manifest{}, err
	}
	if strings.ContainsRune(m.Tree, '/') {
		return Manifest{}, fmt.Errorf("tree: %q is not the name of a directory", m.Tree)
	}
	for _, p := range m.Owns {
		if err := checkOwned(p); err != nil {
			return Manifest{}, fmt.Errorf("owns: %w", err)
		}
	}
	for _, p := range m.Never {
		if err := checkOwned(p); err != nil {
			return Manifest{}, fmt.Errorf("never: %w", err)
		}
	}
	return m, nil
}

// checkOwned refuses paths of a form that no rule could match or that would mean the whole machine.
// Which other paths can never be owned is the ownership rules' to say.
func checkOwned(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("%q is not absolute", p)
	case p == "/":
		return errors.New("\"/\" cannot be named: name the folders below it")
	case strings.ContainsRune(p, 0) || path.Clean(p) != p:
		return fmt.Errorf("%q is not a clean path (clean: %q)", p, path.Clean(p))
	case slices.Contains(strings.Split(p, "/"), storeName):
		return fmt.Errorf("%q is liveupd's own", p)
	}
	return nil
}

// place is where a describing file was found: a name in an open folder.
type place struct {
	dir    *sys.FD
	name   string
	path   string // for messages
	beside bool
}

// places lists where the file called name may stand, for a tree at dir.
func (t *Tree) places(name string) []place {
	base, up := filepath.Base(t.dir), filepath.Dir(t.dir)
	list := []place{{t.root, name, filepath.Join(t.dir, name), false}}
	if t.above != nil {
		list = append(list,
			place{t.above, base + "." + name, filepath.Join(up, base+"."+name), true},
			place{t.above, name, filepath.Join(up, name), true})
	}
	return list
}

// found is a describing file that was read.
type found struct {
	place
	content []byte
}

// locate reads the one file called name; nil where there is none. passOver
// tells of a file beside that it is meant for another tree.
func (t *Tree) locate(name string, limit int64, passOver func(found) bool) (*found, error) {
	var hit *found
	for _, at := range t.places(name) {
		content, err := t.read(at, limit)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f := found{at, content}
		if at.beside && at.name == name && passOver != nil && passOver(f) {
			continue
		}
		if hit != nil {
			return nil, fmt.Errorf("cannot choose between %s and %s: remove one", hit.path, at.path)
		}
		hit = &f
	}
	return hit, nil
}

// read reads a regular file of a place in full; fs.ErrNotExist where it is absent.
func (t *Tree) read(at place, limit int64) ([]byte, error) {
	// A FIFO here would block the open, a device could do anything.
	node, err := sys.Lstat(at.dir, at.name)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", at.path, err)
	}
	if node.Type != change.Regular {
		return nil, fmt.Errorf("cannot read %s: it is a %s, not a file", at.path, node.Type)
	}
	fd, err := sys.OpenAt(at.dir, at.name, sys.OpenRead|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", at.path, err)
	}
	defer fd.Close()
	if node, err = fd.Stat(); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", at.path, err)
	}
	if at.beside && node.UID != 0 && int(node.UID) != os.Geteuid() && node.UID != t.owner {
		return nil, fmt.Errorf("cannot trust %s: it belongs to user %d, and the tree to user %d", at.path, node.UID, t.owner)
	}
	content, err := readAll(fd, limit)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", at.path, err)
	}
	return content, nil
}

func readAll(fd *sys.FD, limit int64) ([]byte, error) {
	f, err := os.Open(fd.ProcPath())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("longer than %d bytes", limit)
	}
	return b, nil
}

// loadTOML finds and reads liveupd.toml; the zero digest where there is none.
func (t *Tree) loadTOML() (Manifest, change.Digest, error) {
	var m Manifest
	f, err := t.locate(tomlName, maxTOML, func(f found) bool {
		// A file that cannot be parsed is reported below, not passed over.
		other, err := parseTOML(f.content)
		return err == nil && other.Tree != "" && other.Tree != filepath.Base(t.dir)
	})
	if err != nil || f == nil {
		return m, change.Digest{}, err
	}
	if m, err = parseTOML(f.content); err != nil {
		return m, change.Digest{}, fmt.Errorf("cannot read %s: %w", f.path, err)
	}
	if f.beside && m.Tree != "" && m.Tree != filepath.Base(t.dir) {
		return m, change.Digest{}, fmt.Errorf("cannot use %s: it describes the tree %q, not %q", f.path, m.Tree, filepath.Base(t.dir))
	}
	return m, sha256.Sum256(f.content), nil
}
