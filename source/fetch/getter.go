package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

const resolve = sys.ResolveBeneath | sys.ResolveNoSymlinks | sys.ResolveNoXDev

// maxMeta bounds the note beside a part.
const maxMeta = 64 << 10

// maxPause is the longest wait between two attempts, whatever the server asks for.
const maxPause = 2 * time.Minute

// meta is what the server said of a file.
type meta struct {
	URL          string `json:"url"`
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
	Size         int64  `json:"size"` // -1: it did not say
}

// validator is what If-Range takes: a strong ETag, else the time; "" for none.
func (m meta) validator() string {
	if m.ETag != "" && !strings.HasPrefix(m.ETag, "W/") {
		return m.ETag
	}
	return m.LastModified
}

// getter is one fetch under way.
type getter struct {
	k       *sys.Kernel
	o       Options
	dir     *sys.FD
	address string
	key     string

	held    *sys.FD // the lock
	have    meta    // of the part or the whole
	done    int64   // bytes in the part
	resumed int64
	whole   bool // KEY.file is what the server has
	retry   time.Duration
}

func (g *getter) name(suffix string) string { return g.key + suffix }

// lock keeps two fetches of one address apart.
func (g *getter) lock() error {
	f, err := g.k.OpenAppend(g.dir, g.name(".lock"))
	if err != nil {
		return err
	}
	ok, err := sys.TryLock(f)
	if err == nil && !ok {
		err = change.WithHint(fmt.Errorf("another process fetches it: %w", change.ErrLocked), "wait until it ends")
	}
	if err != nil {
		f.Close()
		return err
	}
	g.held = f
	return nil
}

func (g *getter) close() { g.held.Close() }

// attempt makes one request and takes what it brings. nil: it is complete.
func (g *getter) attempt(ctx context.Context) error {
	g.load()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(g.o.Idle, func() { cancel(fmt.Errorf("nothing came for %s", g.o.Idle)) })
	defer idle.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.address, nil)
	if err != nil {
		return permanentError{err}
	}
	req.Header.Set("User-Agent", "liveupd")
	req.Header.Set("Accept-Encoding", "identity")
	switch v := g.have.validator(); {
	case v != "" && g.whole && g.have.ETag != "":
		req.Header.Set("If-None-Match", g.have.ETag)
	case v != "" && g.whole:
		req.Header.Set("If-Modified-Since", g.have.LastModified)
	case v != "" && g.done > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", g.done))
		req.Header.Set("If-Range", v)
	}
	resp, err := g.o.Client.Do(req)
	if err != nil {
		return orCause(ctx, err)
	}
	defer resp.Body.Close()
	idle.Reset(g.o.Idle)
	complete, err := g.accept(resp)
	if err != nil || complete {
		return err
	}
	return orCause(ctx, g.take(resp, idle))
}

func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// accept reads the head of an answer: what its body continues, or that nothing
// more is needed.
func (g *getter) accept(resp *http.Response) (complete bool, err error) {
	g.retry = 0
	switch {
	case resp.StatusCode == http.StatusNotModified && g.whole:
		return true, nil
	case resp.StatusCode == http.StatusPartialContent:
		return false, g.acceptPart(resp)
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && g.done > 0:
		// The part is as long as the file, or longer than what became of it.
		return false, g.drop(fmt.Errorf("the server has no byte %d of it", g.done))
	case resp.StatusCode == http.StatusOK:
		g.whole = false
		if err := g.drop(nil); err != nil {
			return false, err
		}
		g.have = meta{URL: g.address, ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified"), Size: resp.ContentLength}
		if g.have.Size > g.o.MaxBytes {
			return false, g.tooLarge()
		}
		return false, g.store()
	}
	err = fmt.Errorf("the server says %s", resp.Status)
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if s, perr := strconv.Atoi(resp.Header.Get("Retry-After")); perr == nil && s > 0 {
			g.retry = min(time.Duration(s)*time.Second, maxPause)
		}
		return false, err
	case http.StatusRequestTimeout:
		return false, err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return false, permanentError{fmt.Errorf("%w: %w", err, ErrNotFound)}
	case resp.StatusCode == http.StatusGone:
		return false, unwantedError{fmt.Errorf("%w: %w", err, ErrNotFound)}
	case resp.StatusCode >= 500:
		return false, err
	}
	return false, permanentError{err}
}

func (g *getter) acceptPart(resp *http.Response) error {
	var from, to, size int64
	text := resp.Header.Get("Content-Range")
	if _, err := fmt.Sscanf(text, "bytes %d-%d/%d", &from, &to, &size); err != nil {
		if _, err := fmt.Sscanf(text, "bytes %d-%d/*", &from, &to); err != nil {
			return g.drop(fmt.Errorf("the server continues at %q, which cannot be read", text))
		}
		size = -1
	}
	if from != g.done || size >= 0 && (to >= size || g.have.Size >= 0 && size != g.have.Size) {
		return g.drop(fmt.Errorf("the server continues at %q, and %d bytes are here", text, g.done))
	}
	if size > g.o.MaxBytes {
		return g.tooLarge()
	}
	if g.resumed == 0 {
		g.resumed = g.done
	}
	return nil
}

func (g *getter) tooLarge() error {
	return unwantedError{fmt.Errorf("it has more than the %d MB that are allowed", g.o.MaxBytes>>20)}
}

// take writes a body to the part.
func (g *getter) take(resp *http.Response, idle *time.Timer) (err error) {
	f, err := g.k.OpenAppend(g.dir, g.name(".part"))
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	for {
		n, rerr := resp.Body.Read(buf)
		if n > 0 {
			idle.Reset(g.o.Idle)
			if g.done+int64(n) > g.o.MaxBytes {
				return g.tooLarge()
			}
			if err := g.k.Write(f, buf[:n]); err != nil {
				return err
			}
			g.done += int64(n)
			g.o.Progress(g.done, max(g.have.Size, 0))
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if g.have.Size >= 0 && g.done != g.have.Size {
		return fmt.Errorf("the connection ended after %d of %d bytes", g.done, g.have.Size)
	}
	return g.k.Fsync(f)
}

// load looks at what an earlier try left.
func (g *getter) load() {
	g.done, g.whole = 0, false
	m, ok := g.readMeta()
	if !ok {
		g.have = meta{Size: -1}
		return
	}
	g.have = m
	if node, err := sys.Lstat(g.dir, g.name(".file")); err == nil && node.Type == change.Regular && node.Size == m.Size {
		g.whole = true
		return
	}
	if node, err := sys.Lstat(g.dir, g.name(".part")); err == nil && node.Type == change.Regular {
		g.done = node.Size
	}
}

func (g *getter) readMeta() (m meta, ok bool) {
	f, err := sys.OpenAt(g.dir, g.name(".meta"), sys.OpenRead|sys.OpenNoLink, resolve)
	if err != nil {
		return m, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMeta))
	if err != nil || json.Unmarshal(b, &m) != nil || m.URL != g.address {
		return m, false
	}
	return m, true
}

// store writes the note of a file that begins to come; the part comes after it, so
// that a part never lies beside another file's note.
func (g *getter) store() error {
	b, err := json.Marshal(g.have)
	if err != nil {
		return err
	}
	if err := g.unlink(".meta.new"); err != nil {
		return err
	}
	f, err := g.k.Create(g.dir, g.name(".meta.new"), 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := g.k.Write(f, b); err != nil {
		return err
	}
	if err := g.k.Fsync(f); err != nil {
		return err
	}
	return g.k.Rename(g.dir, g.name(".meta.new"), g.dir, g.name(".meta"), 0)
}

func (g *getter) unlink(suffix string) error {
	if err := g.k.Unlink(g.dir, g.name(suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// drop forgets what has come, and why.
func (g *getter) drop(why error) error {
	g.done, g.resumed = 0, 0
	for _, suffix := range []string{".part", ".file", ".meta"} {
		if err := g.unlink(suffix); err != nil {
			return errors.Join(why, err)
		}
	}
	return why
}

func (g *getter) pause(barren int) time.Duration {
	if g.retry > 0 {
		return g.retry
	}
	return min(g.o.Pause<<min(barren-1, 10), maxPause)
}

// finish gives the whole file its name and reads it once more: what is on the disk
// is what counts.
func (g *getter) finish(ctx context.Context) (*Result, error) {
	if !g.whole {
		if err := g.k.Rename(g.dir, g.name(".part"), g.dir, g.name(".file"), 0); err != nil {
			return nil, err
		}
		if g.have.Size < 0 {
			g.have.Size = g.done
			if err := g.store(); err != nil {
				return nil, err
			}
		}
		if err := g.k.Fsync(g.dir); err != nil {
			return nil, err
		}
	}
	f, err := sys.OpenAt(g.dir, g.name(".file"), sys.OpenRead|sys.OpenNoLink, resolve)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	var size int64
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		n, err := f.Read(buf)
		sum.Write(buf[:max(n, 0)])
		size += int64(max(n, 0))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	r := &Result{Name: g.name(".file"), Size: size, Resumed: g.resumed, Unchanged: g.whole}
	copy(r.Digest[:], sum.Sum(nil))
	return r, nil
}
