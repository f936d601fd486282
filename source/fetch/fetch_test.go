package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// server serves one file and breaks in the ways of its fields.
type server struct {
	mu       sync.Mutex
	content  []byte
	etag     string
	modified string
	cuts     []int // how many bytes each of the first answers brings before the connection breaks
	noRange  bool  // it does not know ranges
	noSize   bool
	skew     int // a range begins so many bytes off
	status   []int
	asked    []*http.Request
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r)
	n := len(s.asked) - 1
	if n < len(s.status) && s.status[n] != 0 {
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(s.status[n])
		return
	}
	if s.etag != "" {
		w.Header().Set("ETag", s.etag)
		if r.Header.Get("If-None-Match") == s.etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	if s.modified != "" {
		w.Header().Set("Last-Modified", s.modified)
	}
	body, code := s.content, http.StatusOK
	var from int
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil && !s.noRange &&
		(r.Header.Get("If-Range") == s.etag || r.Header.Get("If-Range") == s.modified) {
		if from >= len(body) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		from += s.skew
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
		body, code = body[from:], http.StatusPartialContent
	}
	if !s.noSize {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	w.WriteHeader(code)
	if n < len(s.cuts) && s.cuts[n] >= 0 {
		_, _ = w.Write(body[:min(s.cuts[n], len(body))])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(body)
}

func content(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(b)
	return b
}

// rig is a server and a cache folder.
type rig struct {
	t   *testing.T
	s   *server
	url string
	dir string
}

func newRig(t *testing.T, s *server) *rig {
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return &rig{t, s, srv.URL + "/update.tar.zst", t.TempDir()}
}

func (r *rig) get(k *sys.Kernel, o Options) (*Result, error) {
	r.t.Helper()
	dir, err := sys.OpenRoot(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	defer dir.Close()
	o.Pause = time.Millisecond
	return Get(r.t.Context(), k, r.url, dir, o)
}

// want checks what lies there.
func (r *rig) want(res *Result, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(r.dir, res.Name))
	if err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(got, r.s.content) || res.Size != int64(len(got)) || res.Digest != change.Digest(sha256.Sum256(got)) {
		r.t.Fatalf("the file is not the server's: %d bytes of %d, %+v", len(got), len(r.s.content), res)
	}
}

// left lists what lies in the cache, without the lock.
func (r *rig) left() []string {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if s := filepath.Ext(e.Name()); s != ".lock" {
			names = append(names, s)
		}
	}
	return names
}

func TestWhole(t *testing.T) {
	r := newRig(t, &server{content: content(3 << 20), etag: `"1"`})
	var last, total int64
	res, err := r.get(nil, Options{Progress: func(d, n int64) { last, total = d, n }})
	r.want(res, err)
	if last != 3<<20 || total != 3<<20 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	// The same again is not sent again; another one is.
	res, err = r.get(nil, Options{})
	r.want(res, err)
	if !res.Unchanged {
		t.Error("the same file came twice")
	}
	r.s.content, r.s.etag = content(2 << 20)[7:], `"2"`
	res, err = r.get(nil, Options{})
	r.want(res, err)
	if res.Unchanged {
		t.Error("another file counts as unchanged")
	}
}

func TestContinues(t *testing.T) {
	modified := "Sat, 21 Nov 2026 00:00:00 GMT"
	for name, s := range map[string]*server{
		"etag":                  {etag: `"1"`},
		"time":                  {modified: modified},
		"without a size":        {etag: `"1"`, noSize: true},
		"weak etag, no time":    {etag: `W/"1"`},
		"nothing to go by":      {},
		"ranges are not known":  {etag: `"1"`, noRange: true},
		"a range that is wrong": {etag: `"1"`, skew: 5},
	} {
		t.Run(name, func(t *testing.T) {
			s.content = content(1 << 20)
			s.cuts = []int{300_000, 200_000, 0, 100_000}
			r := newRig(t, s)
			res, err := r.get(nil, Options{})
			r.want(res, err)
			ranged := 0
			for _, req := range s.asked {
				if req.Header.Get("Range") != "" {
					ranged++
				}
			}
			if can := name == "etag" || name == "time" || name == "without a size"; can != (res.Resumed > 0) {
				t.Errorf("%d bytes were continued, after %d requests of which %d for a range", res.Resumed, len(s.asked), ranged)
			}
		})
	}
}

// A part of another run, and of a process that was killed, is continued; one of another file is not.
func TestContinuesAnotherRun(t *testing.T) {
	s := &server{content: content(1 << 20), etag: `"1"`, cuts: []int{400_000}}
	r := newRig(t, s)
	if _, err := r.get(nil, Options{Attempts: 1}); err == nil {
		t.Fatal("no error from a broken connection")
	}
	res, err := r.get(nil, Options{})
	r.want(res, err)
	if res.Resumed == 0 {
		t.Error("nothing was continued")
	}
	s = &server{content: content(1 << 20), etag: `"1"`, cuts: []int{400_000}}
	r = newRig(t, s)
	if _, err := r.get(nil, Options{Attempts: 1}); err == nil {
		t.Fatal("no error from a broken connection")
	}
	s.content, s.etag = content(2 << 20)[1<<20:], `"2"`
	res, err = r.get(nil, Options{})
	r.want(res, err)
	if res.Resumed != 0 {
		t.Error("two files were glued together")
	}
}

func TestRefusals(t *testing.T) {
	endless := &server{content: content(1 << 20), noSize: true, etag: `"1"`}
	tests := []struct {
		name string
		s    *server
		o    Options
		want string
	}{
		{"too large by its size", &server{content: content(1 << 20)}, Options{MaxBytes: 1000}, "more than the 0 MB"},
		{"too large as it comes", endless, Options{MaxBytes: 1 << 19}, "more than the 0 MB"},
		{"not found", &server{status: []int{404}}, Options{}, "404 Not Found"},
		{"forbidden", &server{status: []int{403}}, Options{}, "403 Forbidden"},
		{"always broken", &server{content: content(9), status: []int{500, 502, 503, 429, 500, 500, 500}}, Options{Attempts: 3}, "3 attempts brought nothing more"},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.s)
			_, err := r.get(nil, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), r.url) {
				t.Fatalf("error %v; want %q with the address", err, c.want)
			}
			if left := r.left(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	r := newRig(t, &server{content: content(1 << 20), status: []int{503, 500}, etag: `"1"`})
	res, err := r.get(nil, Options{})
	r.want(res, err)
}

// What has come is kept when the server, or what stands before it, refuses for a while; a file that is gone
// for good, or is too large by now, leaves nothing.
func TestPartsAfterRefusals(t *testing.T) {
	for status, kept := range map[int]bool{
		401: true, 403: true, 404: true, 407: true, 410: false, 429: true, 451: true, 500: true, 502: true, 503: true, 504: true, 302: true,
	} {
		s := &server{content: content(1 << 20), etag: `"1"`, cuts: []int{400_000}}
		r := newRig(t, s)
		if _, err := r.get(nil, Options{Attempts: 1}); err == nil {
			t.Fatal("no error from a broken connection")
		}
		part := r.left()
		s.status = []int{0, status}
		if _, err := r.get(nil, Options{Attempts: 1}); err == nil {
			t.Errorf("%d: no error", status)
		}
		if got := r.left(); kept && !slices.Equal(got, part) || !kept && len(got) > 0 {
			t.Errorf("%d: left are %v of %v", status, got, part)
		}
		s.status = nil
		res, err := r.get(nil, Options{})
		r.want(res, err)
		if (res.Resumed > 0) != kept {
			t.Errorf("%d: then %d bytes were continued", status, res.Resumed)
		}
	}
	s := &server{content: content(1 << 20), etag: `"1"`, cuts: []int{400_000}}
	r := newRig(t, s)
	if _, err := r.get(nil, Options{Attempts: 1}); err == nil {
		t.Fatal("no error from a broken connection")
	}
	if _, err := r.get(nil, Options{MaxBytes: 1 << 19}); err == nil || len(r.left()) > 0 {
		t.Errorf("too large: error %v, left are %v", err, r.left())
	}
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"ftp://host/x", "http:///x", "/x", "http://[::1", "file:///etc/passwd"} {
		if err := Check(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	dir, err := sys.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	// A password in the address is in no message.
	_, err = Get(t.Context(), nil, "http://user:secret@127.0.0.1:1/x", dir, Options{Attempts: 1})
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v; want one without the password", err)
	}
}

func TestRedirects(t *testing.T) {
	plain := httptest.NewServer(&server{content: content(100)})
	defer plain.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/down":
			http.Redirect(w, r, plain.URL, http.StatusFound)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		}
	}))
	defer secure.Close()
	dir, err := sys.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for path, want := range map[string]string{"/down": "leads from https to http", "/round": "more than 10 redirects"} {
		_, err := Get(t.Context(), nil, secure.URL+path, dir, Options{Client: secure.Client(), Attempts: 1})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v; want %q", path, err, want)
		}
	}
	// A certificate that nobody vouches for.
	if _, err := Get(t.Context(), nil, secure.URL, dir, Options{Attempts: 1}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v; want one of the certificate", err)
	}
}

// A server that sends nothing is given up, and one that sends for ever ends at the deadline.
func TestTime(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("x"))
		w.(http.Flusher).Flush()
		for r.URL.Path == "/drip" {
			select {
			case <-release:
				return
			case <-time.After(10 * time.Millisecond):
				_, _ = w.Write([]byte("x"))
				w.(http.Flusher).Flush()
			}
		}
		<-release
	}))
	defer srv.Close()
	defer close(release)
	dir, err := sys.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	_, err = Get(t.Context(), nil, srv.URL+"/stuck", dir, Options{Idle: 50 * time.Millisecond, Attempts: 2, Pause: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "nothing came for 50ms") {
		t.Errorf("error %v; want one of the silence", err)
	}
	_, err = Get(t.Context(), nil, srv.URL+"/drip", dir, Options{Deadline: 200 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "it did not end within 200ms") {
		t.Errorf("error %v; want one of the deadline", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err = Get(ctx, nil, srv.URL+"/drip", dir, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want the interrupt", err)
	}
}

// A full disk keeps what has come; with room again it goes on.
func TestFullDisk(t *testing.T) {
	r := newRig(t, &server{content: content(1 << 20), etag: `"1"`})
	written := 0
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "write" {
			if written += c.Len; written > 500_000 {
				return sys.Fault{Err: syscall.ENOSPC}
			}
		}
		return sys.Fault{}
	})
	_, err := r.get(k, Options{})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error %v; want ENOSPC", err)
	}
	if hint, ok := errors.AsType[*change.HintError](err); !ok || !strings.Contains(hint.Hint, "make room") {
		t.Errorf("no hint in %v", err)
	}
	res, err := r.get(nil, Options{})
	r.want(res, err)
	if res.Resumed == 0 {
		t.Error("nothing was continued")
	}
}

func TestTwoAtOnce(t *testing.T) {
	r := newRig(t, &server{content: content(100)})
	dir, err := sys.OpenRoot(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var second error
	_, err = Get(t.Context(), nil, r.url, dir, Options{Progress: func(int64, int64) {
		_, second = Get(t.Context(), nil, r.url, dir, Options{})
	}})
	if err != nil || !errors.Is(second, change.ErrLocked) {
		t.Errorf("errors %v and %v; want none and a lock", err, second)
	}
}
