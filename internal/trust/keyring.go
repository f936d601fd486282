package trust

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// KeysDir is where a root keeps the public keys that it trusts.
const KeysDir = "/etc/liveupd/keys"

// PubSuffix ends the name of a file that holds a public key.
const PubSuffix = ".pub"

const (
	maxKeyFile = 4 << 10
	// MaxSignature bounds what is read of a signature.
	MaxSignature = 64 << 10
)

// Options say which keys count. The zero value is those of the running system.
type Options struct {
	// Root is the root whose KeysDir counts; "" is /.
	Root string
	// Dir is another folder of keys, wherever it lies.
	Dir string
	// Revoked gives revocations beside those of the folder's list; nil for none.
	Revoked func() ([]Revocation, error)
}

// Keyring is the keys of a folder and what was revoked. It reads them when they are
// first asked for: an update that nobody has signed needs none.
type Keyring struct {
	o    Options
	load func() (*ring, error)
}

// ring is what a folder of keys held when it was read.
type ring struct {
	keys    []Key
	revoked []Revocation
}

// Key is one file of the folder.
type Key struct {
	ID   KeyID
	File string // base name
	// Revoked says when and why the key was; nil for a key that was not.
	Revoked *Revocation
	// Err is why the file cannot be used as a key; ID says nothing then.
	Err error

	key minisign.PublicKey
}

func (k *Key) String() string { return fmt.Sprintf("%s (key %s)", k.File, k.ID) }

// Text is the key as one line, as minisign's -P takes it.
func (k *Key) Text() string { return k.key.String() }

// NewKeyring gives the keys that o names.
func NewKeyring(o Options) *Keyring {
	r := &Keyring{o: o}
	r.load = sync.OnceValues(r.read)
	return r
}

// Dir is the folder, for messages.
func (r *Keyring) Dir() string {
	if r.o.Dir != "" {
		return r.o.Dir
	}
	return path.Join("/", r.o.Root, KeysDir)
}

// Keys lists all key files by their names, unusable ones too.
func (r *Keyring) Keys() ([]Key, error) {
	loaded, err := r.load()
	if err != nil {
		return nil, err
	}
	return loaded.keys, nil
}

// Revoked lists what was revoked, each key once.
func (r *Keyring) Revoked() ([]Revocation, error) {
	loaded, err := r.load()
	if err != nil {
		return nil, err
	}
	return loaded.revoked, nil
}

// Signer is who confirmed a message.
type Signer struct {
	ID      KeyID
	File    string // of the key, base name
	Comment string // the signature's trusted comment: it is signed
}

func (s *Signer) String() string { return fmt.Sprintf("%s (key %s)", s.File, s.ID) }

// Message is what a signature is of.
type Message interface {
	confirm(key minisign.PublicKey, sig []byte) bool
	hashedOnly() bool
}

// Text is a message that is in memory.
type Text []byte

func (t Text) confirm(key minisign.PublicKey, sig []byte) bool {
	return minisign.Verify(key, t, sig)
}

func (t Text) hashedOnly() bool { return false }

// Stream is a message that was read to its end and is not kept.
type Stream struct{ r *minisign.Reader }

// ReadStream reads all of r.
func ReadStream(r io.Reader) (*Stream, error) {
	s := &Stream{minisign.NewReader(r)}
	if _, err := io.Copy(io.Discard, s.r); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Stream) confirm(key minisign.PublicKey, sig []byte) bool { return s.r.Verify(key, sig) }
func (s *Stream) hashedOnly() bool                                { return true }

// Confirm checks the signature sig, which lies at sigPath, of the message what. Any
// one key of the ring will do. The error matches change.ErrVerification and names the message,
// the key, and the way out.
//
// minisign has two kinds of signature, over the message (Ed) and over its
// BLAKE2b hash (ED, prehashed, what minisign writes since 0.8). Both are
// accepted of a text: neither can be turned into the other, because what a prehashed
// signature covers is 64 bytes, which are no manifest.
func (r *Keyring) Confirm(what string, m Message, sigPath string, sig []byte) (*Signer, error) {
	s, err := parseSignature(sig)
	if err != nil {
		return nil, fmt.Errorf("cannot read the signature %s: %w: %w", sigPath, err, change.ErrVerification)
	}
	refuse := func(why, hint string) error {
		return change.WithHint(fmt.Errorf("cannot verify %s: %s: %w", what, why, change.ErrVerification), hint)
	}
	if m.hashedOnly() && s.Algorithm != minisign.HashEdDSA {
		return nil, refuse("its signature is of the old kind, over the whole text", "sign it anew with: minisign -S -H, or liveupd sign")
	}
	loaded, err := r.load()
	if err != nil {
		return nil, err
	}
	id := KeyID(s.KeyID)
	if i := slices.IndexFunc(loaded.revoked, func(v Revocation) bool { return v.ID == id }); i >= 0 {
		return nil, refuse("it is signed by a revoked key: "+loaded.revoked[i].String(), "get the update signed by a key that is trusted; see: liveupd key list")
	}
	var bad []string
	for i := range loaded.keys {
		k := &loaded.keys[i]
		switch {
		case k.Err != nil:
			bad = append(bad, fmt.Sprintf("cannot use %s: %v", k.File, k.Err))
		case k.ID != id:
		case k.Revoked != nil:
			return nil, refuse(fmt.Sprintf("%s is the revoked key under another ID: %s", k, k.Revoked), "remove it: liveupd key remove "+k.ID.String())
		case !m.confirm(k.key, sig):
			// IDs are chosen at random and prove nothing: another key may bear the same.
			bad = append(bad, fmt.Sprintf("%s does not confirm it", k.File))
		default:
			return &Signer{ID: k.ID, File: k.File, Comment: s.TrustedComment}, nil
		}
	}
	why := fmt.Sprintf("no key in %s has signed it", r.Dir())
	if len(bad) > 0 {
		why += " (" + strings.Join(bad, "; ") + ")"
	}
	return nil, refuse(why, fmt.Sprintf("the signature says that it is by key %s; a public key is trusted once it lies in %s as NAME.pub: liveupd key add FILE", id, r.Dir()))
}

func parseSignature(sig []byte) (s minisign.Signature, err error) {
	if len(sig) > MaxSignature {
		return s, fmt.Errorf("longer than %d bytes", MaxSignature)
	}
	if err := s.UnmarshalText(sig); err != nil {
		return s, clean(err)
	}
	return s, nil
}

// clean takes the package's name off an error of minisign.
func clean(err error) error {
	return errors.New(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "minisign: "), "invalid signature: "))
}

// ParseKey reads a public key: minisign's file, or its second line alone.
func ParseKey(text []byte) (minisign.PublicKey, error) {
	var key minisign.PublicKey
	if len(text) > maxKeyFile {
		return key, fmt.Errorf("longer than %d bytes", maxKeyFile)
	}
	if bytes.Contains(text, []byte("secret key")) {
		return key, errors.New("it is a secret key: keep it to yourself, and give its public half")
	}
	if err := key.UnmarshalText(bytes.TrimSpace(text)); err != nil {
		return minisign.PublicKey{}, clean(err)
	}
	return key, nil
}

func (r *Keyring) read() (*ring, error) {
	var out ring
	fail := func(err error) (*ring, error) {
		return nil, change.WithHint(fmt.Errorf("cannot trust the keys in %s: %w: %w", r.Dir(), err, change.ErrVerification),
			"the folder and its files must belong to root and be writable for nobody else; see: liveupd key --help")
	}
	if r.o.Revoked != nil {
		more, err := r.o.Revoked()
		if err != nil {
			return nil, err
		}
		out.revoked = more
	}
	dir, err := r.open()
	if errors.Is(err, fs.ErrNotExist) {
		return &out, nil
	}
	if err != nil {
		return fail(err)
	}
	defer dir.Close()
	text, err := readFile(dir, RevokedFile, maxRevoked)
	if err == nil {
		var list []Revocation
		if list, err = ParseRevoked(text); err == nil {
			out.revoked = append(list, out.revoked...)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("%s: %w", RevokedFile, err))
	}
	out.revoked = once(out.revoked)
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return fail(err)
	}
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasSuffix(name, PubSuffix) {
			continue
		}
		k := Key{File: name}
		var text []byte
		if text, k.Err = readFile(dir, name, maxKeyFile); k.Err == nil {
			k.key, k.Err = ParseKey(text)
		}
		if k.Err == nil {
			k.ID = KeyID(k.key.ID())
			k.Revoked = findRevoked(out.revoked, k.key)
		}
		out.keys = append(out.keys, k)
	}
	return &out, nil
}

// once keeps of several revocations of one key the one that says most.
func once(list []Revocation) []Revocation {
	var out []Revocation
	at := map[KeyID]int{}
	for _, r := range list {
		i, ok := at[r.ID]
		switch {
		case !ok:
			at[r.ID] = len(out)
			out = append(out, r)
		case len(out[i].Key) == 0 && len(r.Key) > 0:
			out[i].Key = r.Key
		case len(r.Key) > 0 && !bytes.Equal(r.Key, out[i].Key):
			out = append(out, r) // two keys of one ID: both
		}
	}
	return out
}

// open opens the folder and looks at those above it.
func (r *Keyring) open() (*sys.FD, error) {
	if r.o.Dir != "" {
		dir, err := sys.OpenRoot(r.o.Dir)
		if err != nil {
			return nil, err
		}
		return safe(dir)
	}
	top := r.o.Root
	if top == "" {
		top = "/"
	}
	root, err := sys.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	rel := strings.TrimPrefix(KeysDir, "/")
	for i, c := range rel {
		if c != '/' {
			continue
		}
		above, err := openSafe(root, rel[:i])
		if err != nil {
			return nil, err
		}
		above.Close()
	}
	return openSafe(root, rel)
}

func openSafe(root *sys.FD, name string) (*sys.FD, error) {
	dir, err := sys.OpenAt(root, name, sys.OpenRead|sys.OpenDir, sys.ResolveInRoot|sys.ResolveNoMagic)
	if err != nil {
		return nil, err
	}
	if dir, err = safe(dir); err != nil {
		return nil, fmt.Errorf("/%s: %w", name, err)
	}
	return dir, nil
}

// safe closes what others could have written to.
func safe(fd *sys.FD) (*sys.FD, error) {
	node, err := fd.Stat()
	if err == nil {
		err = checkSafe(node)
	}
	if err != nil {
		fd.Close()
		return nil, err
	}
	return fd, nil
}

func checkSafe(n *change.Node) error {
	if n.UID != 0 && int(n.UID) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d", n.UID)
	}
	if n.Mode&0o022 != 0 {
		return fmt.Errorf("its mode is %04o: others can write to it", n.Mode)
	}
	return nil
}

// readFile reads a regular file that only root can have written.
func readFile(dir *sys.FD, name string, limit int64) ([]byte, error) {
	node, err := sys.Lstat(dir, name)
	if err != nil {
		return nil, err
	}
	if node.Type != change.Regular {
		return nil, fmt.Errorf("it is a %s, not a file", node.Type)
	}
	fd, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return nil, err
	}
	if fd, err = safe(fd); err != nil {
		return nil, err
	}
	defer fd.Close()
	f, err := os.Open(fd.ProcPath())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("longer than %d bytes", limit)
	}
	return b, err
}
