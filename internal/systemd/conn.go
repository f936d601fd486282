// Package systemd speaks to the service manager that is PID 1: its units, its
// jobs and its transient units, over its private socket or the system bus. It
// speaks to the managers of users as well (user.go).
//
// The private socket (/run/systemd/private, root only) comes first: it works
// while dbus-daemon is away or is itself what restarts. What it guarantees:
//
//  1. Messages that belong together are written in one piece. PID 1 handles
//     what waits in its sockets before it runs its job queue, so all jobs of a
//     batch are enqueued before the first is run, and systemd's own ordering
//     holds between them.
//  2. A job's end is known by the path that the enqueuing call returned,
//     compared with each JobRemoved signal since before that call: an end that
//     is reported before the reply has been read is not lost.
//  3. Re-executing PID 1 closes the private socket. Reexec connects again, and
//     every later call goes over the new connection.
package systemd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	sdbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

const (
	service      = "org.freedesktop.systemd1"
	managerPath  = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	serviceIface = "org.freedesktop.systemd1.Service"
	propsIface   = "org.freedesktop.DBus.Properties"

	privateSocket = "/run/systemd/private"
	systemSocket  = "/run/dbus/system_bus_socket"
)

// Booted tells whether systemd is PID 1, by the rule of sd_booted(3).
func Booted() bool {
	fi, err := os.Lstat("/run/systemd/system")
	return err == nil && fi.IsDir()
}

// Conn is a connection to PID 1, or to a user's manager, safe for concurrent
// use. It outlives a re-execution that Reexec ordered.
type Conn struct {
	mu      sync.Mutex
	link    *link
	version int
	user    *UserManager // whose manager it is; nil for PID 1
}

// link is one pair of sockets, good until PID 1 re-executes.
type link struct {
	sd      *sdbus.Conn
	calls   *dbus.Conn // passes file descriptors
	jobs    *dbus.Conn // written in batches, receives the signals
	cork    *cork
	plain   *cork // below calls, where it passes no descriptors
	private bool
}

// ErrNotBooted says that there is no systemd to speak to.
var ErrNotBooted = errors.New("systemd is not PID 1 here")

// Connect opens the private socket, or the system bus where that cannot be
// had. The context bounds connecting only, not the connection's life.
func Connect(ctx context.Context) (*Conn, error) {
	if !Booted() {
		return nil, fmt.Errorf("cannot connect to systemd: %w", ErrNotBooted)
	}
	c := &Conn{}
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Conn) connect(ctx context.Context) error {
	dial := dialLink
	if c.user != nil {
		dial = c.user.dialLink
	}
	l, err := dial(ctx)
	if err != nil {
		return err
	}
	text, err := l.manager(ctx, "Version")
	if err != nil {
		l.close()
		return fmt.Errorf("cannot read systemd's version: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil {
		c.link.close()
	}
	l.patient()
	c.link, c.version = l, parseVersion(text)
	return nil
}

func dialLink(ctx context.Context) (*link, error) {
	var private error
	if os.Geteuid() == 0 {
		l, err := open(ctx, endpoint{name: privateSocket, private: true})
		if err == nil {
			return l, nil
		}
		private = err
	}
	l, err := open(ctx, endpoint{name: systemSocket})
	if err != nil {
		return nil, fmt.Errorf("cannot connect to systemd: %w", errors.Join(private, err))
	}
	return l, nil
}

// endpoint is a socket that a manager listens at.
type endpoint struct {
	name    string
	private bool
	// dial opens it where more is to be looked at than its path; nil for that.
	dial func(context.Context) (net.Conn, error)
}

func (e *endpoint) cork(ctx context.Context) (*cork, error) {
	if e.dial == nil {
		return dialCork(ctx, e.name)
	}
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	return newCork(conn), nil
}

// open dials both connections. go-systemd asks for two of its own accord: the
// first for calls, the second for signals.
func open(ctx context.Context, at endpoint) (*link, error) {
	socket, private := at.name, at.private
	l := &link{private: private}
	n := 0
	sd, err := sdbus.NewConnection(func() (*dbus.Conn, error) {
		n++
		var conn *dbus.Conn
		var err error
		switch {
		case n == 1 && at.dial == nil:
			// No context: godbus would close the connection at its end.
			conn, err = dbus.Dial("unix:path=" + socket)
			l.calls = conn
		case n == 1:
			if l.plain, err = at.cork(ctx); err != nil {
				return nil, err
			}
			conn, err = dbus.NewConn(l.plain)
			l.calls = conn
		default:
			if l.cork, err = at.cork(ctx); err != nil {
				return nil, err
			}
			conn, err = dbus.NewConn(l.cork)
			l.jobs = conn
		}
		if err != nil {
			return nil, err
		}
		// The numeric uid: a name would need the system's name services.
		if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
			conn.Close()
			return nil, err
		}
		if !private {
			if err := conn.Hello(); err != nil {
				conn.Close()
				return nil, err
			}
		}
		return conn, nil
	})
	if err != nil {
		for _, k := range []*cork{l.plain, l.cork} {
			if k != nil {
				k.Close()
			}
		}
		return nil, fmt.Errorf("cannot connect to %s: %w", socket, err)
	}
	l.sd = sd
	if !private {
		for _, rule := range []string{
			"type='signal',sender='" + service + "',interface='" + managerIface + "'",
			"type='signal',sender='" + service + "',interface='" + propsIface + "',member='PropertiesChanged'",
		} {
			if err := l.jobs.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.AddMatch", 0, rule).Store(); err != nil {
				l.close()
				return nil, fmt.Errorf("cannot listen to systemd on %s: %w", socket, err)
			}
		}
	}
	// Direct connections get all signals without asking; on the bus PID 1 is
	// silent until somebody subscribes.
	if err := l.jobs.Object(service, managerPath).CallWithContext(ctx, managerIface+".Subscribe", 0).Store(); err != nil {
		l.close()
		return nil, fmt.Errorf("cannot subscribe to systemd on %s: %w", socket, err)
	}
	return l, nil
}

func (l *link) close() {
	if l.sd != nil {
		l.sd.Close()
	}
}

// patient takes away the time limit that held while the connection was made.
func (l *link) patient() {
	for _, k := range []*cork{l.plain, l.cork} {
		if k != nil {
			_ = k.SetDeadline(time.Time{}) // a socket that is closed says so at its next use
		}
	}
}

// manager reads one property of the manager as text.
func (l *link) manager(ctx context.Context, name string) (string, error) {
	var v dbus.Variant
	call := l.calls.Object(service, managerPath).CallWithContext(ctx, propsIface+".Get", 0, managerIface, name)
	if err := call.Store(&v); err != nil {
		return "", err
	}
	s, ok := v.Value().(string)
	if !ok {
		return "", fmt.Errorf("property %s is a %s, not text", name, v.Signature())
	}
	return s, nil
}

func (c *Conn) current() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link
}

// Close closes the connection.
func (c *Conn) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link.close()
}

// Version is systemd's major version, 252 for "252.39-1~deb12u1".
func (c *Conn) Version() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// Manager is a property of the manager that is text, "" where it has none of the name.
func (c *Conn) Manager(ctx context.Context, name string) string {
	text, err := c.current().manager(ctx, name)
	if err != nil {
		return "" // an older systemd, as a rule
	}
	return text
}

// Private tells whether the private socket is used, so that dbus may go away.
func (c *Conn) Private() bool { return c.current().private }

func parseVersion(s string) int {
	s = strings.TrimPrefix(s, "v")
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, _ := strconv.Atoi(s[:end])
	return n
}

// Reload makes PID 1 read its unit files again, and returns when it has.
func (c *Conn) Reload(ctx context.Context) error {
	if err := c.current().sd.ReloadContext(ctx); err != nil {
		return fmt.Errorf("cannot reload systemd's unit files: %w", err)
	}
	return nil
}

// Reexec makes PID 1 execute its binary anew and returns when the new one
// answers. Jobs that were not awaited before are no longer followed.
func (c *Conn) Reexec(ctx context.Context) error {
	l := c.current()
	call := l.calls.Object(service, managerPath).GoWithContext(ctx, managerIface+".Reexecute", 0, make(chan *dbus.Call, 1))
	// No reply ever comes: the connection closes (private socket), or the bus
	// says NoReply (system bus). Any other answer is a refusal.
	select {
	case done := <-call.Done:
		if done.Err != nil && !goneAway(done.Err) {
			return fmt.Errorf("cannot re-execute systemd: %w", done.Err)
		}
	case <-l.calls.Context().Done():
	case <-ctx.Done():
		return fmt.Errorf("cannot re-execute systemd: %w", ctx.Err())
	}
	return c.reconnect(ctx)
}

// reconnect tries until the manager answers, after it has executed itself anew.
func (c *Conn) reconnect(ctx context.Context) error {
	var last error
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot reach systemd after its re-execution: %w", errors.Join(ctx.Err(), last))
		case <-time.After(wait):
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		last = c.connect(attempt)
		cancel()
		if last == nil {
			return nil
		}
	}
}

// goneAway tells whether an error means that the peer went away.
func goneAway(err error) bool {
	if derr, ok := errors.AsType[dbus.Error](err); ok {
		return derr.Name == "org.freedesktop.DBus.Error.NoReply" || derr.Name == "org.freedesktop.DBus.Error.Disconnected"
	}
	return true // not an answer of the peer: the transport broke
}

// ResetFailed clears a unit's failed state and its start limit.
func (c *Conn) ResetFailed(ctx context.Context, unit string) error {
	if err := c.current().sd.ResetFailedUnitContext(ctx, unit); err != nil {
		return fmt.Errorf("cannot reset %s: %w", unit, err)
	}
	return nil
}

// Properties reads all properties of a unit, those of its type included.
func (c *Conn) Properties(ctx context.Context, unit string) (map[string]any, error) {
	props, err := c.current().sd.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return nil, fmt.Errorf("cannot read the properties of %s: %w", unit, err)
	}
	return props, nil
}

// cork is a socket that can hold back what is written to it, so that a batch
// of messages leaves in one write.
type cork struct {
	net.Conn
	in *bufio.Reader

	mu   sync.Mutex
	held bool
	buf  []byte
}

func dialCork(ctx context.Context, socket string) (*cork, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	return newCork(conn), nil
}

func newCork(conn net.Conn) *cork { return &cork{Conn: conn, in: bufio.NewReaderSize(conn, 64<<10)} }

func (k *cork) Read(b []byte) (int, error) { return k.in.Read(b) }

func (k *cork) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held {
		k.buf = append(k.buf, b...)
		return len(b), nil
	}
	return k.Conn.Write(b)
}

func (k *cork) hold() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = true
}

func (k *cork) release() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = false
	buf := k.buf
	k.buf = nil
	if len(buf) == 0 {
		return nil
	}
	_, err := k.Conn.Write(buf)
	return err
}
