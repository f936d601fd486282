package tarball

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/liveupd/liveupd/change"
)

// maxWindow is how far back a decoder may look, which is what it costs in
// memory: xz -9 needs 64 MiB, zstd --ultra -22 and --long 128 MiB.
const maxWindow = 128 << 20

// kinds are the formats that are told by their first bytes. Those without open
// are known so that they can be named.
var kinds = []struct {
	name  string
	magic string
	open  func(ctx context.Context, s *stream, o *Options) (io.ReadCloser, error)
}{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", "\xfd7zXZ\x00", openXZ},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
	{"bzip2", "BZh", openBzip2},
	{"lzip", "LZIP", nil},
	{"lz4", "\x04\x22\x4d\x18", nil},
	{"lzma", "\x5d\x00\x00", nil},
	{"lzop", "\x89LZO\x00", nil},
	{"compress (.Z)", "\x1f\x9d", nil},
	{"zip", "PK\x03\x04", nil},
	{"7-Zip", "7z\xbc\xaf\x27\x1c", nil},
	{"cpio", "070701", nil},
	{"cpio", "070707", nil},
	{"Debian package or ar", "!<arch>\n", nil},
	{"RPM package", "\xed\xab\xee\xdb", nil},
	{"squashfs", "hsqs", nil},
}

// decoder is an opened compression.
type decoder struct {
	io.ReadCloser
	name string
}

// detect looks at the first bytes, never at a name. A nil decoder: s is not compressed.
func detect(ctx context.Context, s *stream, o *Options) (*decoder, error) {
	head, err := s.peek(headerSize)
	if errors.Is(err, io.EOF) {
		return nil, damaged("it is empty")
	}
	if err != nil {
		return nil, err
	}
	if isHeader(head) {
		return nil, nil // a tar archive's first name may begin like anything
	}
	name, open := "", (func(context.Context, *stream, *Options) (io.ReadCloser, error))(nil)
	for _, k := range kinds {
		if bytes.HasPrefix(head, []byte(k.magic)) {
			name, open = k.name, k.open
			break
		}
	}
	// A zstd stream may begin with a frame that is to be skipped: 0x184D2A50 to 5F.
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18" {
		name, open = "zstd", openZstd
	}
	if name == "" {
		return nil, nil
	}
	if open == nil {
		return nil, change.WithHint(fmt.Errorf("it is a file of the kind %s, which is not supported", name),
			"make a tar archive, plain or compressed with gzip, xz, zstd or bzip2")
	}
	in, err := open(ctx, s, o)
	if err != nil {
		return nil, decodeError(name, err)
	}
	return &decoder{in, name}, nil
}

// decodeError tells damage, which refuses, from what is too large for us.
func decodeError(kind string, err error) error {
	var program *exec.Error
	var unsupported *unsupportedError
	switch {
	case errors.Is(err, change.ErrVerification), errors.As(err, &unsupported), errors.As(err, &program),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrUnknownDictionary):
		return fmt.Errorf("cannot decompress %s: %w", kind, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return damaged("the %s data end too early: the archive is truncated", kind)
	}
	return damaged("the %s data are damaged: %v", kind, err)
}

// unsupportedError is what a decoder cannot do, or would need too much memory for.
type unsupportedError struct{ why string }

func (e *unsupportedError) Error() string { return e.why }

// decoded reads a decoder to its end, and then makes sure that nothing follows.
type decoded struct {
	d    *decoder
	rest *stream
}

func (d *decoded) Read(p []byte) (int, error) {
	n, err := d.d.Read(p)
	if errors.Is(err, io.EOF) {
		if _, rerr := d.rest.ReadByte(); rerr == nil {
			return n, damaged("something follows the end of the %s data", d.d.name)
		} else if !errors.Is(rerr, io.EOF) {
			return n, rerr
		}
		return n, io.EOF
	}
	if err != nil {
		err = decodeError(d.d.name, err)
	}
	return n, err
}

func openGzip(_ context.Context, s *stream, _ *Options) (io.ReadCloser, error) {
	return gzip.NewReader(bufio.NewReaderSize(s, 64<<10)) // it has a fast path for this type
}

func openBzip2(_ context.Context, s *stream, _ *Options) (io.ReadCloser, error) {
	return io.NopCloser(bzip2.NewReader(bufio.NewReaderSize(s, 64<<10))), nil
}

func openZstd(_ context.Context, s *stream, o *Options) (io.ReadCloser, error) {
	d, err := zstd.NewReader(onlyReader{s}, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderConcurrency(min(o.workers(), 2)))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// onlyReader hides what else a stream can do.
type onlyReader struct{ io.Reader }

// xzPaths are where the xz program of a distribution lies: no PATH is asked, for
// it may be anybody's.
var xzPaths = []string{"/usr/bin/xz", "/bin/xz"}

// openXZ prefers the xz program: the decoder in Go needs twice the time (5.2 s against
// 2.6 s for a Debian root of 231 MB), and xz is the slowest part of all. The program
// runs with a limit on its memory and sees nothing but the two pipes. What either
// gives is checked by the same digests of the format.
func openXZ(ctx context.Context, s *stream, o *Options) (io.ReadCloser, error) {
	program := o.XZ
	if program == "" {
		program = "-"
		for _, p := range xzPaths {
			if _, err := os.Stat(p); err == nil {
				program = p
				break
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	if program == "-" {
		return newXZReader(s), nil
	}
	return startXZ(ctx, program, s)
}

// xzProcess is a running xz.
type xzProcess struct {
	cmd  *exec.Cmd
	out  io.ReadCloser
	said bytes.Buffer
	done bool
	err  error
}

func startXZ(ctx context.Context, program string, in io.Reader) (io.ReadCloser, error) {
	// The window is most of what it needs. One thread: each further one costs a
	// window of its own.
	x := &xzProcess{cmd: exec.CommandContext(ctx, program, "--decompress", "--stdout", "--format=xz", "--threads=1", "--quiet",
		fmt.Sprintf("--memlimit-decompress=%d", maxWindow+maxWindow/4))}
	x.cmd.Env = []string{"LC_ALL=C"}
	x.cmd.Dir = "/"
	x.cmd.Stdin = in
	x.cmd.Stderr = &x.said
	var err error
	if x.out, err = x.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := x.cmd.Start(); err != nil {
		return nil, err
	}
	return x, nil
}

func (x *xzProcess) Read(p []byte) (int, error) {
	n, err := x.out.Read(p)
	if err == nil {
		return n, nil
	}
	if werr := x.wait(); werr != nil {
		return n, werr
	}
	return n, err
}

// wait collects the process; only its exit status says that the data were whole.
func (x *xzProcess) wait() error {
	if x.done {
		return x.err
	}
	x.done = true
	err := x.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		said := strings.TrimSpace(strings.TrimPrefix(x.said.String(), x.cmd.Path+": (stdin): "))
		if strings.Contains(said, "emory usage limit") {
			err = &unsupportedError{fmt.Sprintf("cannot decompress xz: it looks back more than %d MiB", maxWindow>>20)}
		} else if strings.Contains(said, "nexpected end of input") {
			err = io.ErrUnexpectedEOF
		} else {
			err = fmt.Errorf("xz: %.200q (%w)", said, exit)
		}
	}
	x.err = err
	return err
}

// Close ends the process if it still runs.
func (x *xzProcess) Close() error {
	if x.done {
		return nil
	}
	_ = x.cmd.Process.Kill() // it may have ended by itself
	_ = x.wait()
	return nil
}
