package runner

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/console"
	"github.com/opencontainers/runc/libcontainer"

	"github.com/liveupd/liveupd/internal/sys"
)

// terminal relays between the caller's terminal, which descriptor 2 is, and one that
// the command has for itself: it can neither type into the caller's nor take it over.
type terminal struct {
	parent, child *os.File // the socket that the command's terminal comes through
	outer, inner  console.Console
	shown, closed chan struct{} // all that the command wrote is; the relay ends
}

// How often the caller's terminal is asked for its size (the signal of a change goes to the
// caller's session alone), and how long the last of a command's output may take.
const (
	sizeEvery = 300 * time.Millisecond
	shownIn   = 2 * time.Second
)

func openTerminal(p *libcontainer.Process) (*terminal, error) {
	outer, err := console.ConsoleFromFile(os.Stderr)
	if err != nil {
		return nil, err
	}
	t := &terminal{outer: outer, shown: make(chan struct{}), closed: make(chan struct{})}
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
	go func() {
		defer close(t.shown)
		_, _ = io.Copy(t.outer, t.inner) // until no process has it open
	}()
	go t.followSize()
	return nil
}

func (t *terminal) followSize() {
	tick := time.NewTicker(sizeEvery)
	defer tick.Stop()
	last, _ := t.outer.Size()
	for {
		select {
		case <-t.closed:
			return
		case <-tick.C:
		}
		if now, err := t.outer.Size(); err == nil && now != last {
			last = now
			_ = t.inner.Resize(now) // it may have just ended
		}
	}
}

// close ends the relay. Where it began the command has ended.
func (t *terminal) close() {
	close(t.closed)
	if t.inner != nil {
		select {
		case <-t.shown:
		case <-time.After(shownIn):
		}
	}
	_ = t.outer.Reset()
	if t.inner != nil {
		_ = t.inner.Close()
	}
	t.parent.Close()
	t.child.Close()
}
