package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// What lies below /run/user/UID is the user's: a socket, a link to another
// one (PID 1's own, which would carry out orders about units of the system), or
// a file system of the user's making. Therefore:
//
//  1. The folder must be a directory that belongs to that user, in a /run/user
//     that only root can write to; no symbolic link is followed, and below the
//     folder no mount is entered.
//  2. The socket must belong to the user, and who listens at it must be the main
//     process of user@UID.service, by the kernel's word.
//  3. It is connected to through the descriptor that was looked at.
//  4. Whatever the manager says is bounded in size, and each wait in time.

// UserManager names the service manager of a user.
type UserManager struct {
	UID uint32
	PID int // its main process
	// Dir is where the users' runtime folders are; "" is /run/user.
	Dir string
}

// ErrNotTheirs says that what lies at the place of a manager's socket is not
// the manager's.
var ErrNotTheirs = errors.New("this is not the user's manager")

// userBytes is how much a user's manager may say in the life of a connection.
// The states of a thousand units are some 5 MB.
const userBytes = 64 << 20

// UserUID reads the user's number in the name of a manager's unit,
// user@UID.service.
func UserUID(unit string) (uint32, bool) {
	text, ok := strings.CutPrefix(unit, "user@")
	if !ok {
		return 0, false
	}
	if text, ok = strings.CutSuffix(text, ".service"); !ok {
		return 0, false
	}
	uid, err := strconv.ParseUint(text, 10, 32)
	return uint32(uid), err == nil && strconv.FormatUint(uid, 10) == text
}

// ConnectUser connects to a user's manager, as root. The context bounds
// connecting, also to a manager that does not answer.
func ConnectUser(ctx context.Context, u UserManager) (*Conn, error) {
	c := &Conn{user: &u}
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (u *UserManager) dialLink(ctx context.Context) (*link, error) {
	type opened struct {
		socket *sys.FD
		err    error
	}
	// A file system of the user's making may never answer.
	look := make(chan opened, 1)
	go func() {
		fd, err := u.socket()
		look <- opened{fd, err}
	}()
	var at opened
	select {
	case at = <-look:
	case <-ctx.Done():
		return nil, fmt.Errorf("cannot look for the socket of the manager of user %d: %w", u.UID, ctx.Err())
	}
	if at.err != nil {
		return nil, at.err
	}
	defer at.socket.Close()
	return open(ctx, endpoint{name: at.socket.Name(), private: true, dial: func(ctx context.Context) (net.Conn, error) {
		return u.dial(ctx, at.socket)
	}})
}

// socket opens the socket itself (O_PATH), when it is the user's.
func (u *UserManager) socket() (*sys.FD, error) {
	top := u.Dir
	if top == "" {
		top = "/run/user"
	}
	place := fmt.Sprintf("%s/%d/systemd/private", top, u.UID)
	refuse := func(what string) error { return fmt.Errorf("cannot use %s: %w: %s", place, ErrNotTheirs, what) }
	base, err := sys.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	if n, err := base.Stat(); err != nil || n.UID != 0 || n.Mode&0o022 != 0 {
		return nil, refuse(top + " can be written to by others than root")
	}
	dir, err := sys.OpenAt(base, strconv.FormatUint(uint64(u.UID), 10), sys.OpenPath|sys.OpenDir|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if n, err := dir.Stat(); err != nil || n.UID != u.UID || !n.IsDir() {
		return nil, refuse("the folder is another user's")
	}
	fd, err := sys.OpenAt(dir, "systemd/private", sys.OpenPath|sys.OpenNoLink, sys.ResolveBeneath|sys.ResolveNoSymlinks|sys.ResolveNoXDev)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EXDEV) {
		return nil, refuse("a link, or another file system, leads elsewhere")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", place, err)
	}
	n, err := fd.Stat()
	switch {
	case err != nil:
	case n.Type != change.Socket:
		err = refuse("it is a " + n.Type.String())
	case n.UID != u.UID:
		err = refuse("it belongs to another user")
	}
	if err != nil {
		fd.Close()
		return nil, err
	}
	return fd, nil
}

func (u *UserManager) dial(ctx context.Context, socket *sys.FD) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket.ProcPath())
	if err != nil {
		return nil, err
	}
	if err := u.isPeer(conn); err != nil {
		conn.Close()
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end) // a socket that has none would be no Unix socket
	}
	return &bounded{Conn: conn, left: userBytes}, nil
}

func (u *UserManager) isPeer(conn net.Conn) error {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%w: it is no Unix socket", ErrNotTheirs)
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		return err
	}
	peer, err := sys.PeerOf(raw)
	if err != nil {
		return err
	}
	if peer.UID != u.UID || peer.PID != u.PID {
		return fmt.Errorf("%w: process %d of user %d listens there, and the manager is process %d of user %d", ErrNotTheirs, peer.PID, peer.UID, u.PID, u.UID)
	}
	return nil
}

// bounded reads at most so many bytes.
type bounded struct {
	net.Conn
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the manager has said more than %d bytes: %w", userBytes, io.ErrShortBuffer)
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// reexecSignal makes a user's manager execute its binary anew: SIGRTMIN+25
// (systemd(1), "Signals").
const reexecSignal = 34 + 25

// ReexecUser makes the manager in unit, user@UID.service, execute its binary anew, by
// the unit's reload or, before systemd 253, which has none there, by a
// signal. It returns when the new one answers.
func (c *Conn) ReexecUser(ctx context.Context, unit string) error {
	states, err := c.States(ctx, []string{unit})
	if err != nil {
		return err
	}
	u := states[0]
	if !u.Active() {
		return fmt.Errorf("cannot re-execute %s: %w", unit, ErrNotActive)
	}
	user, err := managerOf(u)
	if err != nil {
		return err
	}
	old, err := ConnectUser(ctx, user)
	if err != nil {
		return fmt.Errorf("cannot re-execute %s: it does not answer: %w", unit, err)
	}
	defer old.Close()
	if u.CanReload {
		ends, _ := c.Do(ctx, []Job{{Kind: JobReload, Unit: unit}})
		switch end := ends[0]; {
		case end.Err != nil:
			return end.Err
		case end.Result != "done":
			return fmt.Errorf("cannot re-execute %s: its reload ended with %q", unit, end.Result)
		}
	} else if err := c.kill(ctx, unit, "main", reexecSignal); err != nil {
		return err
	}
	return old.again(ctx)
}

// again waits until the manager has closed the connection and answers anew.
func (c *Conn) again(ctx context.Context) error {
	l := c.current()
	select {
	case <-l.calls.Context().Done():
	case <-ctx.Done():
		return fmt.Errorf("the manager of user %d has not executed itself anew: %w", c.user.UID, ctx.Err())
	}
	return c.reconnect(ctx)
}

// kill sends a signal to processes of a unit: main, control or all.
func (c *Conn) kill(ctx context.Context, unit, whom string, signal int32) error {
	call := c.current().calls.Object(service, managerPath).CallWithContext(ctx, managerIface+".KillUnit", 0, unit, whom, signal)
	if call.Err != nil {
		return fmt.Errorf("cannot signal %s: %w", unit, call.Err)
	}
	return nil
}

// managerOf names the manager that runs in a unit.
func managerOf(u *change.UnitState) (UserManager, error) {
	uid, ok := UserUID(u.Name)
	if !ok || u.MainPID <= 0 {
		return UserManager{}, fmt.Errorf("%s is no running manager of a user", u.Name)
	}
	return UserManager{UID: uid, PID: u.MainPID}, nil
}

// User connects to the manager that runs in unit, user@UID.service.
func (c *Conn) User(ctx context.Context, unit string) (*Conn, error) {
	states, err := c.States(ctx, []string{unit})
	if err != nil {
		return nil, err
	}
	if !states[0].Active() {
		return nil, fmt.Errorf("cannot connect to %s: %w", unit, ErrNotActive)
	}
	user, err := managerOf(states[0])
	if err != nil {
		return nil, err
	}
	return ConnectUser(ctx, user)
}
