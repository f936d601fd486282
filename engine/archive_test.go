package engine

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
)

// archiveOf packs files, by name and content.
func archiveOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644, ModTime: time.Unix(1_700_000_000, 0)}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// archiveServer serves one archive; it breaks the first connections.
type archiveServer struct {
	mu      sync.Mutex
	content []byte
	etag    string
	breaks  int
	bodies  int
}

func (s *archiveServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, ".minisig") {
		http.NotFound(w, r) // nobody has signed it
		return
	}
	w.Header().Set("ETag", s.etag)
	if r.Header.Get("If-None-Match") == "" {
		s.bodies++
	}
	if s.breaks > 0 {
		s.breaks--
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(s.content[:10])
		panic(http.ErrAbortHandler)
	}
	http.ServeContent(w, r, "update.tar", time.Time{}, bytes.NewReader(s.content))
}

func (b *bed) tar(verb, where string) (any, error) {
	b.t.Helper()
	return (&Engine{}).Run(b.t.Context(), Request{Verb: verb, Root: b.root, Source: "tar:" + where, AllowUnsigned: true, NoPrompt: true}, Events{})
}

func TestArchiveFromAServer(t *testing.T) {
	b := newBed(t)
	s := &archiveServer{content: archiveOf(t, "usr/share/one", "1", "usr/share/two", strings.Repeat("x", 100_000)), etag: `"a"`, breaks: 1}
	srv := httptest.NewServer(s)
	defer srv.Close()
	plan, err := b.tar("plan", srv.URL+"/update.tar")
	if err != nil {
		t.Fatal(err)
	}
	if got := plan.(*change.Plan).Changes.Added; got < 2 {
		t.Fatalf("the plan adds %d paths", got)
	}
	bodies := s.bodies
	if _, err := b.tar("apply", srv.URL+"/update.tar"); err != nil {
		t.Fatal(err)
	}
	if s.bodies != bodies {
		t.Error("the apply fetched again what its plan had fetched")
	}
	got, err := os.ReadFile(filepath.Join(b.root, "usr/share/two"))
	if err != nil || len(got) != 100_000 {
		t.Errorf("usr/share/two has %d bytes, %v", len(got), err)
	}
	// Another archive at the same address.
	s.content, s.etag = archiveOf(t, "usr/share/one", "2"), `"b"`
	if _, err := b.tar("apply", srv.URL+"/update.tar"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(b.root, "usr/share/one")); err != nil || string(got) != "2" {
		t.Errorf("usr/share/one is %q, %v", got, err)
	}
	if _, err := b.tar("apply", srv.URL+"/update.tar"); err != nil {
		t.Fatal(err)
	}
}

// What the transaction took is gone from where it was unpacked, and no inode of the
// root has a name there.
func TestArchiveIsUsedUp(t *testing.T) {
	b := newBed(t)
	file := filepath.Join(t.TempDir(), "update.tar")
	if err := os.WriteFile(file, archiveOf(t, "usr/share/one", "1", "usr/share/two", "2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.tar("plan", file); err != nil {
		t.Fatal(err)
	}
	unpackedDir := filepath.Join(b.root, ".liveupd", unpackedName)
	inodes := map[uint64]string{}
	dir, err := sys.OpenRoot(unpackedDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	names, err := filepath.Glob(unpackedDir + "/*/usr/share/*")
	if err != nil || len(names) != 2 {
		t.Fatalf("unpacked are %v, %v", names, err)
	}
	for _, name := range names {
		rel, _ := filepath.Rel(unpackedDir, name)
		n, err := sys.Lstat(dir, rel)
		if err != nil {
			t.Fatal(err)
		}
		inodes[n.Ino] = filepath.Base(name)
	}
	if _, err := b.tar("apply", file); err != nil {
		t.Fatal(err)
	}
	root, err := sys.OpenRoot(b.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"one", "two"} {
		n, err := sys.Lstat(root, "usr/share/"+name)
		if err != nil {
			t.Fatal(err)
		}
		if inodes[n.Ino] != name || n.Nlink != 1 {
			t.Errorf("%s was copied (inode %d, %d names)", name, n.Ino, n.Nlink)
		}
	}
	if left, err := filepath.Glob(unpackedDir + "/*"); err != nil || len(left) > 2 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// A file that changes while it is unpacked, and two at once.
func TestArchiveThatChanges(t *testing.T) {
	b := newBed(t)
	file := filepath.Join(t.TempDir(), "update.tar")
	if err := os.WriteFile(file, archiveOf(t, "usr/share/one", "1"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "mkdirat" && c.Path == "usr" {
			if err := os.Chtimes(file, time.Now(), time.Now()); err != nil {
				t.Error(err)
			}
		}
		return sys.Fault{}
	})
	req := Request{Verb: "apply", Root: b.root, Source: "tar:" + file, AllowUnsigned: true, NoPrompt: true}
	if _, err := (&Engine{Kernel: k}).Run(t.Context(), req, Events{}); !errors.Is(err, change.ErrDrift) {
		t.Errorf("error %v; want drift", err)
	}
	if _, err := os.Stat(filepath.Join(b.root, "usr/share/one")); err == nil {
		t.Error("it was applied")
	}
}

// prehashed signs as the program minisign does.
func prehashed(p minisign.PrivateKey, message []byte) []byte {
	in := minisign.NewReader(bytes.NewReader(message))
	_, _ = io.Copy(io.Discard, in) // from memory
	return in.Sign(p)
}

// An archive whose signature stands beside it needs none inside; a wrong one refuses it
// before it is unpacked.
func TestSignedArchive(t *testing.T) {
	b := newBed(t)
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(t.TempDir(), "keys")
	text, err := public.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(keys, 0o755), os.WriteFile(filepath.Join(keys, "ops.pub"), text, 0o644)); err != nil {
		t.Fatal(err)
	}
	content := archiveOf(t, "usr/share/one", "1")
	file := filepath.Join(t.TempDir(), "update.tar")
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, content)
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(filepath.Dir(file))))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	plan := func(where string) (*change.Plan, error) {
		v, err := (&Engine{}).Run(t.Context(), Request{Verb: "plan", Root: b.root, Source: "tar:" + where, KeysDir: keys, NoPrompt: true}, Events{})
		p, _ := v.(*change.Plan)
		return p, err
	}
	for _, where := range []string{file, srv.URL + "/update.tar"} {
		if _, err := plan(where); !errors.Is(err, change.ErrVerification) {
			t.Errorf("unsigned: %v", err)
		}
	}
	write(file+".minisig", prehashed(private, []byte("something else")))
	for _, where := range []string{file, srv.URL + "/update.tar"} {
		if _, err := plan(where); !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), "ops.pub does not confirm it") {
			t.Errorf("wrong signature: %v", err)
		}
	}
	write(file+".minisig", prehashed(private, content))
	for _, where := range []string{file, srv.URL + "/update.tar"} {
		p, err := plan(where)
		if err != nil || !p.Signed || !strings.Contains(p.SignedBy, "ops.pub") {
			t.Errorf("signed: %+v, %v", p, err)
		}
	}
	if err := os.WriteFile(filepath.Join(keys, trust.RevokedFile), fmt.Appendf(nil, "%016X 2026-11-21 lost\n", public.ID()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := plan(file); !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked: %v", err)
	}
}
