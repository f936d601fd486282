package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
)

// The caller's standard input reaches a command in the sandbox through pipes alone, never
// as the caller's own descriptor: a file that is opened for reading can be opened anew,
// for writing, by whoever has its descriptor. Where the work is done in another process
// the bytes go through a socket that the caller serves for one connection, in pieces behind
// their length (four bytes, the lowest first); one of no length is the end. So the end of a caller that
// was killed is not taken for the end of what it had to say.

// serveInput serves the caller's input, and gives the socket's path. close ends it.
func serveInput(input io.Reader) (name string, end func(), err error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return "", nil, fmt.Errorf("cannot make %s: %w", runDir, err)
	}
	name = filepath.Join(runDir, "input-"+randomID())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return "", nil, fmt.Errorf("cannot pass on the standard input: %w", err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return "", nil, errors.Join(fmt.Errorf("cannot pass on the standard input: %w", err), l.Close())
	}
	go func() {
		conn, err := l.AcceptUnix()
		// It removes the path, too.
		_ = l.Close()
		if err != nil {
			return // nobody came for it
		}
		defer conn.Close()
		// Who does not read on has ended.
		_ = sendInput(conn, input)
	}()
	return name, func() { _ = l.Close() }, nil
}

// openInput is the input that a request's command reads; nil for none.
func openInput(x *ExecRequest, ev Events) (io.ReadCloser, error) {
	switch {
	case !x.Input || x.Terminal:
		return nil, nil
	case x.InputFrom != "":
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: x.InputFrom, Net: "unix"})
		if err != nil {
			return nil, fmt.Errorf("cannot read the standard input: %w", err)
		}
		return &inputReader{conn: conn}, nil
	case ev.Input != nil:
		return io.NopCloser(ev.Input), nil
	}
	return nil, nil
}

func sendInput(to io.Writer, input io.Reader) error {
	buf := make([]byte, 4+64<<10)
	for {
		n, err := input.Read(buf[4:])
		if n > 0 {
			binary.LittleEndian.PutUint32(buf, uint32(n))
			if _, err := to.Write(buf[:4+n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			_, err = to.Write(make([]byte, 4))
			return err
		}
		if err != nil {
			return err
		}
	}
}

// inputReader reads what sendInput sent.
type inputReader struct {
	conn  io.ReadCloser
	left  uint32
	ended bool
}

func (r *inputReader) Read(b []byte) (int, error) {
	for r.left == 0 {
		if r.ended {
			return 0, io.EOF
		}
		var size [4]byte
		if _, err := io.ReadFull(r.conn, size[:]); err != nil {
			return 0, cutOff(err)
		}
		r.left = binary.LittleEndian.Uint32(size[:])
		r.ended = r.left == 0
	}
	n, err := r.conn.Read(b[:min(len(b), int(r.left))])
	r.left -= uint32(n)
	if n > 0 {
		return n, nil
	}
	return 0, cutOff(err)
}

// cutOff makes of an end between two pieces one in the middle.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *inputReader) Close() error { return r.conn.Close() }
