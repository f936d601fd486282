package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/catalog"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/source/fetch"
	"github.com/liveupd/liveupd/source/patch"
	"github.com/liveupd/liveupd/source/tarball"
	"github.com/liveupd/liveupd/source/tree"
)

// What is unpacked lies in a folder unpacked of the store, for each archive KEY, its
// note KEY.json and its index KEY.index. KEY.part is one under way, KEY.used one whose
// files a transaction takes; whoever comes next removes both. One archive is kept:
// an apply after its plan does not unpack again.
const (
	unpackedName = "unpacked"
	partSuffix   = ".part"
	usedSuffix   = ".used"
	noteSuffix   = ".json"
	indexSuffix  = ".index"
)

// maxNote bounds what is read of a note.
const maxNote = 64 << 20

// unpacked is an archive that became a folder.
type unpacked struct {
	k       *sys.Kernel
	home    *sys.FD // the folder unpacked, locked
	key     string
	note    unpackNote
	implied map[string]bool
	index   *catalog.Index
	used    bool
}

// unpackNote is what is kept of an unpacked archive beside its files.
type unpackNote struct {
	Digest   string   `json:"sha256"` // of the archive
	Implied  []string `json:"implied,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Patch: it was one, and removes Gone.
	Patch bool         `json:"patch,omitempty"`
	Gone  []patch.Gone `json:"gone,omitempty"`
	// Whole: it was made of whole systems.
	Whole bool `json:"whole,omitempty"`
}

func (u *unpacked) close() {
	if u == nil {
		return
	}
	if u.used {
		// What the transaction did not take is of no more use. The next one removes what stays.
		_ = u.k.RemoveAll(u.home, u.key+usedSuffix)
	}
	u.home.Close()
}

// useUp says, before the first file is taken, that the folder is no longer whole.
func (u *unpacked) useUp() error {
	if u.used {
		return nil
	}
	if err := u.k.Rename(u.home, u.key, u.home, u.key+usedSuffix, 0); err != nil {
		return fmt.Errorf("cannot take what was unpacked: %w", err)
	}
	u.used = true
	return nil
}

// urlLike is what looks like an address; which kinds can be fetched is fetch's to say.
var urlLike = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)

func isURL(where string) bool { return urlLike.MatchString(where) }

// openArchive fetches and unpacks an archive, or finds it unpacked.
func (s *session) openArchive(ctx context.Context, kind, where string, ev Events) (_ *update, err error) {
	home, homePath, err := s.unpackHome()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			home.Close()
		}
	}()
	ok, err := sys.TryLock(home)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", homePath, err)
	}
	if !ok {
		return nil, change.WithHint(fmt.Errorf("cannot unpack %s: another process unpacks in %s: %w", where, homePath, change.ErrLocked),
			"wait until it ends, then run the same command again")
	}
	file, name := where, where
	if isURL(where) {
		if file, err = s.fetchArchive(ctx, where, homePath, home, ev); err != nil {
			return nil, err
		}
	}
	in, err := sys.OpenFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot open the archive: %w", err)
	}
	defer in.Close()
	u := &unpacked{k: s.k, home: home}
	if u.key, err = archiveKey(in); err != nil {
		return nil, err
	}
	// Signatures first: an archive that is refused is not even unpacked.
	signed, err := s.confirmArchive(ctx, in, file, name, homePath, home, ev)
	if err != nil {
		return nil, err
	}
	if err := s.unpackOnce(ctx, u, in, kind, name, ev); err != nil {
		return nil, err
	}
	if err := signed.unpackedIs(name, u.note.Digest); err != nil {
		return nil, err
	}
	t, err := tree.Open(ctx, filepath.Join(homePath, u.key), tree.Options{
		Keys: s.keyring(), AllowUnsigned: s.req.AllowUnsigned, Name: name, Signer: signed.signer, Head: signed.head, Empty: kind == "patch",
	})
	if err != nil {
		return nil, err
	}
	out := &update{Tree: t, unpacked: u, patch: kind == "patch"}
	if out.gone, out.warnings, err = s.settleGone(u.note.Gone); err != nil {
		t.Close()
		return nil, err
	}
	return out, nil
}

// archiveKey identifies a file's content without reading it: of the file that is open, for
// its name may be a symlink, or another file's by now.
func archiveKey(f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot open the archive: %w", err)
	}
	n, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("cannot open the archive %s: no inode is told of it", f.Name())
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %d %d", n.Dev, n.Ino, n.Size, n.Mtim.Nano(), n.Ctim.Nano()))
	return hex.EncodeToString(sum[:8]), nil
}

// unpackHome opens the folder that archives are unpacked in: on the root's own file
// system, so that a commit need not copy them, or, where that cannot be written
// to, where a running system keeps caches.
func (s *session) unpackHome() (*sys.FD, string, error) {
	if dir, err := openStateDir(s.k, s.vols[0].Dir); err == nil {
		defer dir.Close()
		home, err := ensureDir(s.k, dir, unpackedName)
		if err != nil {
			return nil, "", fmt.Errorf("cannot make a folder to unpack in: %w", err)
		}
		// By its descriptor: in the private mount namespace it has no other name.
		return home, home.ProcPath(), nil
	}
	var errs []error
	for _, base := range []string{"/var/cache/liveupd", runDir + "/cache"} {
		name := filepath.Join(base, strings.ReplaceAll(strings.Trim(s.req.Root, "/"), "/", "-")+"-"+unpackedName)
		err := os.MkdirAll(base, 0o700)
		if err == nil {
			err = os.Mkdir(name, 0o700)
		}
		if err == nil || errors.Is(err, fs.ErrExist) {
			var home *sys.FD
			if home, err = sys.OpenRoot(name); err == nil {
				if err = private(home); err == nil {
					return home, home.ProcPath(), nil
				}
				home.Close()
			}
		}
		errs = append(errs, err)
	}
	return nil, "", fmt.Errorf("cannot make a folder to unpack in: %w", errors.Join(errs...))
}

// private refuses a folder that others could have written to.
func private(dir *sys.FD) error {
	n, err := dir.Stat()
	if err != nil {
		return err
	}
	if n.Mode&0o077 != 0 || n.UID != uint32(os.Geteuid()) {
		return fmt.Errorf("%s has the mode %04o and the owner %d, not 0700 and %d", dir.Name(), n.Mode, n.UID, os.Geteuid())
	}
	return nil
}

func ensureDir(k *sys.Kernel, dir *sys.FD, name string) (*sys.FD, error) {
	if err := k.Mkdir(dir, name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	fd, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return nil, err
	}
	if err := private(fd); err != nil {
		fd.Close()
		return nil, err
	}
	return fd, nil
}

// unpackOnce unpacks in, unless it lies there.
func (s *session) unpackOnce(ctx context.Context, u *unpacked, in *os.File, kind, name string, ev Events) error {
	var p *patch.Patch
	if kind == "patch" {
		// What was unpacked before needs no old files any more, but the root may have become another one.
		var err error
		if p, err = s.openPatch(ctx, in, name); err != nil {
			return err
		}
	}
	if u.load() == nil && u.note.Patch == (p != nil) {
		return nil
	}
	u.note = unpackNote{}
	st, err := in.Stat()
	if err != nil {
		return fmt.Errorf("cannot unpack %s: %w", name, err)
	}
	var archive io.Reader = in
	size := st.Size()
	if p != nil {
		archive, size = p.Tar(ctx), p.Size()
	}
	if err := u.clear(func(string) bool { return true }); err != nil {
		return err
	}
	if err := s.k.Mkdir(u.home, u.key+partSuffix, 0o700); err != nil {
		return fmt.Errorf("cannot unpack %s: %w", name, err)
	}
	dest, err := sys.OpenAt(u.home, u.key+partSuffix, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return fmt.Errorf("cannot unpack %s: %w", name, err)
	}
	defer dest.Close()
	u.index = new(catalog.Index)
	ev.progress("unpacking", 0, size, "bytes", "")
	res, err := tarball.Unpack(ctx, s.k, archive, name, dest, tarball.Options{
		ID:       tarball.IDsFrom(s.accounts("passwd"), s.accounts("group")),
		Progress: func(p tarball.Progress) { ev.bytes("unpacking", p.Entries, p.Read, size) },
		Record: func(_ string, n *change.Node) {
			if n.Type == change.Regular {
				u.index.PutOwn(n.Ino, n.CtimeNS, n.Size, n.Digest, n.Xattrs)
			}
		},
	})
	if err != nil {
		return errors.Join(err, u.clear(func(string) bool { return true }))
	}
	if key, err := archiveKey(in); err != nil || key != u.key {
		err = errors.Join(err, fmt.Errorf("cannot unpack %s: it changed while it was read: %w", name, change.ErrDrift))
		return errors.Join(err, u.clear(func(string) bool { return true }))
	}
	u.note = unpackNote{Digest: res.Digest.String(), Implied: res.Implied, Warnings: res.Warnings}
	if p != nil {
		u.note.Digest, u.note.Patch, u.note.Gone, u.note.Whole = p.Digest().String(), true, p.Gone(), p.Whole()
	}
	u.setImplied()
	return u.save(name)
}

// accounts reads the root's passwd or group: GNU tar writes ACLs by name. Where there is
// none, an archive that needs it is refused by that name.
func (s *session) accounts(name string) []byte {
	for _, vol := range slices.Backward(s.vols) {
		if vol.Mount != "/" && vol.Mount != "/etc" {
			continue
		}
		at := "etc/" + name
		if vol.Mount == "/etc" {
			at = name
		}
		f, err := sys.OpenRegular(vol.Dir, at, sys.ResolveBeneath|sys.ResolveNoSymlinks)
		if err != nil {
			continue
		}
		b := make([]byte, min(f.Size(), maxNote))
		n, err := f.ReadAt(b, 0)
		f.Close()
		if err == nil || errors.Is(err, io.EOF) {
			return b[:n]
		}
	}
	return nil
}

func (u *unpacked) setImplied() {
	u.implied = map[string]bool{}
	for _, p := range u.note.Implied {
		u.implied[p] = true
	}
}

// save keeps what was unpacked; the folder gets its name last.
func (u *unpacked) save(name string) error {
	fail := func(err error) error { return fmt.Errorf("cannot keep what was unpacked of %s: %w", name, err) }
	b, err := json.Marshal(u.note)
	if err != nil {
		return fail(err)
	}
	f, err := u.k.Create(u.home, u.key+noteSuffix, 0o600)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	if err := u.k.Write(f, b); err != nil {
		return fail(err)
	}
	if err := u.index.Save(u.k, u.home, u.key+indexSuffix); err != nil {
		return fail(err)
	}
	if err := u.k.Rename(u.home, u.key+partSuffix, u.home, u.key, sys.RenameNoReplace); err != nil {
		return fail(err)
	}
	return nil
}

// load takes over what an earlier run unpacked.
func (u *unpacked) load() error {
	if _, err := sys.Lstat(u.home, u.key); err != nil {
		return err
	}
	f, err := sys.OpenAt(u.home, u.key+noteSuffix, sys.OpenRead|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxNote))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &u.note); err != nil {
		return err
	}
	u.setImplied()
	u.index = catalog.LoadIndex(u.home, u.key+indexSuffix)
	return nil
}

// clear removes what lies in the folder of unpacked archives, but what was fetched.
func (u *unpacked) clear(which func(name string) bool) error {
	names, err := sys.ReadDirNames(u.home)
	if err != nil {
		return fmt.Errorf("cannot clear the unpacked archives: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		if name == fetchedName || !which(name) {
			continue
		}
		if err := u.k.RemoveAll(u.home, name); err != nil {
			return fmt.Errorf("cannot clear the unpacked archives: %w", err)
		}
	}
	return nil
}

// fetchedName is the folder of what came from servers.
const fetchedName = "fetched"

// fetchArchive brings an archive from a server and gives its file.
func (s *session) fetchArchive(ctx context.Context, address, homePath string, home *sys.FD, ev Events) (string, error) {
	ev.progress("fetching", 0, 0, "bytes", "")
	return s.fetchFile(ctx, address, homePath, home, fetch.Options{
		Progress: func(done, total int64) { ev.bytes("fetching", 0, done, total) },
	})
}

func (s *session) fetchFile(ctx context.Context, address, homePath string, home *sys.FD, o fetch.Options) (string, error) {
	if err := fetch.Check(address); err != nil {
		return "", usage("cannot read source %q: %v", s.req.Source, err)
	}
	dir, err := ensureDir(s.k, home, fetchedName)
	if err != nil {
		return "", fmt.Errorf("cannot make a folder to fetch to: %w", err)
	}
	defer dir.Close()
	res, err := fetch.Get(ctx, s.k, address, dir, o)
	if err != nil {
		return "", err
	}
	return filepath.Join(homePath, fetchedName, res.Name), nil
}
