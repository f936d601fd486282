package runner

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/console"
	"github.com/opencontainers/runc/libcontainer"

	"github.com/liveupd/liveupd/internal/sys"
)

// terminal relays between the caller's terminal, which descriptor 2 is, and one that
// the command has for itself: it can neither type into the caller's nor take it over.
type terminal struct {
	parent, child *os.File // the socket that the command's terminal comes through
	outer, inner  console.Console
}

func openTerminal(p *libcontainer.Process) (*terminal, error) {
	outer, err := console.ConsoleFromFile(os.Stderr)
	if err != nil {
		return nil, err
	}
	t := &terminal{outer: outer}
	if t.parent, t.child, err = sys.SocketPair(); err != nil {
		return nil, err
	}
	p.ConsoleSocket = t.child
	p.Stdin, p.Stdout, p.Stderr = nil, nil, nil
	if size, err := outer.Size(); err == nil {
		p.ConsoleWidth, p.ConsoleHeight = size.Width, size.Height
	}
	return t, nil
}

// start begins the relay, once the command runs.
func (t *terminal) start() error {
	f, err := sys.ReceiveFile(t.parent)
	if err != nil {
		return fmt.Errorf("the terminal was not handed over: %w", err)
	}
	if t.inner, err = console.ConsoleFromFile(f); err != nil {
		return err
	}
	if err := t.outer.SetRaw(); err != nil {
		return err
	}
	go func() { _, _ = io.Copy(t.inner, t.outer) }()
	go func() { _, _ = io.Copy(t.outer, t.inner) }()
	return nil
}

func (t *terminal) close() {
	_ = t.outer.Reset()
	if t.inner != nil {
		_ = t.inner.Close()
	}
	t.parent.Close()
	t.child.Close()
}
