// Package fetch brings a file from an http or https server into a cache folder:
// continued where an earlier try broke off, bounded in size and time, whole or not
// at all.
//
// For each address three names lie in the folder: KEY.part is what has come so far,
// KEY.meta what the server said of it (JSON), KEY.file the whole. A part is continued
// only where the server confirms, by a strong ETag or by Last-Modified (RFC 9110,
// 13.1.5), that it still has the same file; else it begins anew. A whole file is
// asked for again in the same way, and not sent again where it is the same.
//
// What was fetched is nobody's word: whoever uses it checks its signature first.
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Limits where Options names none.
const (
	// DefaultMaxBytes is several times the largest image of a server.
	DefaultMaxBytes = 16 << 30
	// DefaultIdle is how long a connection may bring nothing.
	DefaultIdle = time.Minute
	// DefaultDeadline is for the whole: a night, on a slow line.
	DefaultDeadline = 6 * time.Hour
	// DefaultAttempts is how many connections in a row may bring nothing new.
	DefaultAttempts = 5
)

// maxRedirects is what browsers allow.
const maxRedirects = 10

// Options bounds a fetch. The zero value is right for use.
type Options struct {
	MaxBytes int64
	Idle     time.Duration
	Deadline time.Duration
	Attempts int
	// Pause is waited before the second attempt, twice as long before the third, and so on; 0: a second.
	Pause time.Duration
	// Anew forgets what lies there: for what is small, and must be the server's of now.
	Anew bool
	// Client makes the requests; nil is one of our own. Its redirects are checked all the same.
	Client *http.Client
	// Progress is told of bytes; total is 0 where the server does not say. From one goroutine.
	Progress func(done, total int64)
}

func (o Options) filled() Options {
	or := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	or(&o.Idle, DefaultIdle)
	or(&o.Deadline, DefaultDeadline)
	or(&o.Pause, time.Second)
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Attempts <= 0 {
		o.Attempts = DefaultAttempts
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	client := http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: o.Idle, ResponseHeaderTimeout: o.Idle,
		// An archive is its own compression; a digest is of what the server has.
		DisableCompression: true,
	}}
	if o.Client != nil {
		client = *o.Client
	}
	client.CheckRedirect = checkRedirect
	o.Client = &client
	return o
}

// checkRedirect refuses to leave https: what was asked for under TLS comes under TLS.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return permanentError{fmt.Errorf("more than %d redirects", maxRedirects)}
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return permanentError{fmt.Errorf("the server leads from https to %s", clean(req.URL))}
	}
	return nil
}

// Result is a whole file in the cache folder.
type Result struct {
	Name      string // in the folder
	Size      int64
	Digest    change.Digest
	Resumed   int64 // bytes that were there from an earlier try
	Unchanged bool  // it was there whole, and the server still has the same
}

// Check tells whether an address can be fetched.
func Check(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("cannot read the address: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("cannot fetch %s: want http://HOST/PATH or https://HOST/PATH", clean(u))
	}
	return nil
}

// clean is an address without its password, for messages.
func clean(u *url.URL) string { return u.Redacted() }

// ErrNotFound is of a server that has no such file.
var ErrNotFound = errors.New("the server has no such file")

// permanentError is one that another attempt would meet again.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// unwantedError is a permanent one that is due to the server's file itself.
type unwantedError struct{ error }

func (e unwantedError) Unwrap() error { return e.error }

// Get fetches address into dir. An error that is due to the server's file itself
// (too large, or gone for good) leaves nothing of it behind; after any other, what
// has come stays for the next try. That is so for a refusal, too: a proxy's 403, a mirror's 404
// while it is brought up to date, or the redirect of a network that wants a login says
// nothing of the file, and half of an image is worth a night. Whether a part still is one of the
// server's file the server tells, by its validator, before it is continued.
func Get(ctx context.Context, k *sys.Kernel, address string, dir *sys.FD, o Options) (*Result, error) {
	if err := Check(address); err != nil {
		return nil, err
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("cannot read the address: %w", err)
	}
	o = o.filled()
	ctx, cancel := context.WithTimeoutCause(ctx, o.Deadline, fmt.Errorf("it did not end within %s", o.Deadline))
	defer cancel()
	sum := sha256.Sum256([]byte(address))
	g := &getter{k: k, o: o, dir: dir, address: address, key: hex.EncodeToString(sum[:8])}
	fail := func(err error) error { return fmt.Errorf("cannot fetch %s: %w", clean(u), err) }
	if err := g.lock(); err != nil {
		return nil, fail(err)
	}
	defer g.close()
	if o.Anew {
		if err := g.drop(nil); err != nil {
			return nil, fail(err)
		}
	}
	barren := 0 // attempts in a row that brought nothing new
	for {
		before := g.done
		err := g.attempt(ctx)
		if err == nil {
			break
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, fail(cause)
		}
		if _, unwanted := errors.AsType[unwantedError](err); unwanted {
			return nil, fail(g.drop(err))
		}
		if _, permanent := errors.AsType[permanentError](err); permanent {
			return nil, fail(err)
		}
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS) {
			return nil, change.WithHint(fail(err), "make room where the cache lies; what has come is kept and continued")
		}
		if barren++; g.done > before {
			barren = 1
		}
		if barren >= o.Attempts {
			return nil, fail(fmt.Errorf("%d attempts brought nothing more: %w", barren, err))
		}
		select {
		case <-time.After(g.pause(barren)):
		case <-ctx.Done():
			return nil, fail(context.Cause(ctx))
		}
	}
	r, err := g.finish(ctx)
	if err != nil {
		return nil, fail(err)
	}
	return r, nil
}
