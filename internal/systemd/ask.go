package systemd

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
)

// Asker asks PID 1 about units and nothing else. It is made for those that look
// at all units and need to know much of a few:
//
//  1. One message lists all units with their states. All else of a unit is
//     fetched by its property when somebody needs it (UnitState.Lacks says what
//     was not fetched), never by GetAll: that would include NeedDaemonReload,
//     for which PID 1 searches all drop-in folders and which takes twenty times
//     as long as all the others together.
//  2. Questions are sent in one write and answered when PID 1 comes to them:
//     the caller does something else meanwhile. It is safe for concurrent use.
type Asker struct {
	conn        net.Conn
	destination string // on a bus

	mu      sync.Mutex
	serial  uint32
	waiting map[uint32]func(*reply)
	lost    error
	ended   chan struct{} // closed with lost
}

// NewAsker connects: to the private socket, or to the system bus where that
// cannot be had.
func NewAsker(ctx context.Context) (*Asker, error) {
	if !Booted() {
		return nil, fmt.Errorf("cannot connect to systemd: %w", ErrNotBooted)
	}
	var private error
	if os.Geteuid() == 0 {
		a, err := newAsker(ctx, privateSocket, "")
		if err == nil {
			return a, nil
		}
		private = err
	}
	a, err := newAsker(ctx, systemSocket, service)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to systemd: %w", errors.Join(private, err))
	}
	return a, nil
}

func newAsker(ctx context.Context, socket, destination string) (*Asker, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	a := &Asker{conn: conn, destination: destination, waiting: map[uint32]func(*reply){}, ended: make(chan struct{})}
	// The numeric uid: a name would need the system's name services.
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	out := []byte("\x00AUTH EXTERNAL " + uid + "\r\nBEGIN\r\n")
	if destination != "" {
		a.serial++
		out = appendCall(out, a.serial, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(out); err != nil {
		conn.Close()
		return nil, err
	}
	in := bufio.NewReaderSize(conn, 64<<10)
	line, err := in.ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "OK ") {
		err = fmt.Errorf("it refuses to know us: %s", strings.TrimSpace(line))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot connect to %s: %w", socket, errors.Join(err, ctx.Err()))
	}
	go a.listen(in)
	return a, nil
}

// Close closes the connection.
func (a *Asker) Close() { a.conn.Close() }

// listen hands replies to those who wait for them, until the connection ends.
// What PID 1 tells of its own accord is passed over.
func (a *Asker) listen(in *bufio.Reader) {
	var m reply
	var buf []byte
	var err error
	for {
		if m, buf, err = readReply(in, buf); err != nil {
			break
		}
		if m.kind != kindReturn && m.kind != kindError {
			continue
		}
		a.mu.Lock()
		tell := a.waiting[m.replyTo]
		delete(a.waiting, m.replyTo)
		a.mu.Unlock()
		if tell != nil {
			tell(&m)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = errLost
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lost = err
	close(a.ended)
}

// question is one call and what takes its answer.
type question struct {
	path, iface, member string
	args                []string
	tell                func(*reply)
}

// ask sends all questions and returns when all are answered, with the first error.
func (a *Asker) ask(ctx context.Context, list []question) error {
	// A bus lets nobody wait for more than 128 answers (max_replies_per_connection).
	const most = 40
	for a.destination != "" && len(list) > most {
		if err := a.send(ctx, list[:most]); err != nil {
			return err
		}
		list = list[most:]
	}
	return a.send(ctx, list)
}

func (a *Asker) send(ctx context.Context, list []question) error {
	if len(list) == 0 {
		return nil
	}
	done := make(chan error, 1)
	left := len(list)
	var first error
	var out []byte
	a.mu.Lock()
	for _, q := range list {
		a.serial++
		out = appendCall(out, a.serial, a.destination, q.path, q.iface, q.member, q.args...)
		a.waiting[a.serial] = func(m *reply) {
			err := m.failure()
			switch {
			case unknown(err):
				err = nil // an older systemd, or a unit that has gone: there is no value
			case err == nil:
				if q.tell(m); m.body.bad {
					err = errMalformed
				}
			}
			if first == nil {
				first = err
			}
			if left--; left == 0 {
				done <- first
			}
		}
	}
	a.mu.Unlock()
	// Both sides' buffers may be full: what is written is not waited for.
	go func() {
		if _, err := a.conn.Write(out); err != nil {
			a.conn.Close()
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ended:
	}
	select {
	case err := <-done:
		return err
	default:
		return a.lost
	}
}

// List lists the loaded units of the types that an update deals with, each
// with its state and Lacks all else.
func (a *Asker) List(ctx context.Context) ([]*change.UnitState, error) {
	var out []*change.UnitState
	err := a.ask(ctx, []question{{string(managerPath), managerIface, "ListUnits", nil, func(m *reply) {
		c := &m.body
		c.array(8, func() {
			c.align(8)
			u := &change.UnitState{Name: c.str(), Lacks: change.AllFields}
			c.skip() // its description
			u.LoadState, u.ActiveState, u.SubState = c.str(), c.str(), c.str()
			c.skip() // what it follows
			c.skip() // its object
			c.u32()  // a job's id, type and object
			c.skip()
			c.skip()
			if isPlanned(u.Name) && u.LoadState != "not-found" {
				out = append(out, u)
			}
		})
	}}})
	if err != nil {
		return nil, fmt.Errorf("cannot list units: %w", err)
	}
	return out, nil
}

// Loaded is when PID 1 last began to read unit files, by both clocks.
type Loaded struct{ RealUSec, MonoUSec uint64 }

// Manager tells systemd's version and when it last read its unit files.
func (a *Asker) Manager(ctx context.Context) (version int, at Loaded, err error) {
	var text string
	var boot Loaded
	get := func(name string, into func(any)) question {
		return question{string(managerPath), propsIface, "Get", []string{managerIface, name}, func(m *reply) { into(m.body.variant()) }}
	}
	number := func(n *uint64) func(any) { return func(v any) { *n, _ = v.(uint64) } }
	err = a.ask(ctx, []question{
		get("Version", func(v any) { text, _ = v.(string) }),
		get("UnitsLoadStartTimestamp", number(&boot.RealUSec)), get("UnitsLoadStartTimestampMonotonic", number(&boot.MonoUSec)),
		// systemd before 250 does not tell of reloads: what was read at one is
		// then taken for changed since the boot.
		get("UnitsLoadTimestamp", number(&at.RealUSec)), get("UnitsLoadTimestampMonotonic", number(&at.MonoUSec)),
	})
	if err != nil {
		return 0, at, fmt.Errorf("cannot ask systemd about itself: %w", err)
	}
	if at.RealUSec == 0 {
		at = boot // it never did so again
	}
	return parseVersion(text), at, nil
}

// unknown tells whether an error says that there is no such thing.
func unknown(err error) bool {
	e, ok := errors.AsType[*replyError](err)
	if !ok {
		return false
	}
	switch e.name {
	case "org.freedesktop.DBus.Error.UnknownProperty", "org.freedesktop.DBus.Error.UnknownInterface",
		"org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.systemd1.NoSuchUnit":
		return true
	}
	return false
}

// property is one property of a unit, and the group that it belongs to.
type property struct {
	group change.UnitFields
	iface string // "" is the one of all units
	name  string
	put   func(*change.UnitState, any)
}

func putText(f func(*change.UnitState) *string) func(*change.UnitState, any) {
	return func(u *change.UnitState, v any) { *f(u), _ = v.(string) }
}

func putFlag(f func(*change.UnitState) *bool) func(*change.UnitState, any) {
	return func(u *change.UnitState, v any) { *f(u), _ = v.(bool) }
}

func putNumber(f func(*change.UnitState) *uint64) func(*change.UnitState, any) {
	return func(u *change.UnitState, v any) { *f(u), _ = v.(uint64) }
}

func putList(f func(*change.UnitState) *[]string) func(*change.UnitState, any) {
	return func(u *change.UnitState, v any) {
		if l, _ := v.([]string); len(l) > 0 {
			*f(u) = l
		}
	}
}

var (
	invoked = putNumber(func(u *change.UnitState) *uint64 { return &u.InvokedMonoUSec })
	group   = putText(func(u *change.UnitState) *string { return &u.ControlGroup })
)

// properties are what Fill can fetch.
var properties = []property{
	{change.FieldNames, "", "Names", putList(func(u *change.UnitState) *[]string { return &u.Names })},
	{change.FieldFragment, "", "FragmentPath", putText(func(u *change.UnitState) *string { return &u.FragmentPath })},
	{change.FieldDropIns, "", "DropInPaths", putList(func(u *change.UnitState) *[]string { return &u.DropIns })},
	{change.FieldType, serviceIface, "Type", putText(func(u *change.UnitState) *string { return &u.Type })},
	{change.FieldMainPID, serviceIface, "MainPID", func(u *change.UnitState, v any) {
		n, _ := v.(uint64)
		u.MainPID = int(n)
	}},
	{change.FieldCanReload, "", "CanReload", putFlag(func(u *change.UnitState) *bool { return &u.CanReload })},
	{change.FieldRefuses, "", "RefuseManualStop", putFlag(func(u *change.UnitState) *bool { return &u.RefuseManualStop })},
	{change.FieldInvoked, "", "InactiveExitTimestampMonotonic", invoked},
	{change.FieldChanged, "", "StateChangeTimestampMonotonic", putNumber(func(u *change.UnitState) *uint64 { return &u.StateChangeMonoUSec })},
	{change.FieldEntered, "", "InactiveExitTimestampMonotonic", invoked},
	{change.FieldEntered, "", "ActiveEnterTimestampMonotonic", putNumber(func(u *change.UnitState) *uint64 { return &u.ActiveEnterMonoUSec })},
	{change.FieldNeededBy, "", "RequiredBy", putList(func(u *change.UnitState) *[]string { return &u.RequiredBy })},
	{change.FieldNeededBy, "", "RequisiteOf", putList(func(u *change.UnitState) *[]string { return &u.RequisiteOf })},
	{change.FieldNeededBy, "", "BoundBy", putList(func(u *change.UnitState) *[]string { return &u.BoundBy })},
	{change.FieldNeededBy, "", "ConsistsOf", putList(func(u *change.UnitState) *[]string { return &u.ConsistsOf })},
	{change.FieldPropagates, "", "PropagatesReloadTo", putList(func(u *change.UnitState) *[]string { return &u.PropagatesReloadTo })},
	{change.FieldPropagates, "", "PropagatesStopTo", putList(func(u *change.UnitState) *[]string { return &u.PropagatesStopTo })},
	{change.FieldTriggers, "", "Triggers", putList(func(u *change.UnitState) *[]string { return &u.Triggers })},
	{change.FieldTriggers, "", "TriggeredBy", putList(func(u *change.UnitState) *[]string { return &u.TriggeredBy })},
	{change.FieldStaleFiles, "", "NeedDaemonReload", putFlag(func(u *change.UnitState) *bool { return &u.NeedDaemonReload })},
	{change.FieldInvocation, "", "InvocationID", func(u *change.UnitState, v any) {
		if id, _ := v.([]byte); len(id) == 16 {
			u.InvocationID = hex.EncodeToString(id)
		}
	}},
	{change.FieldGroup, serviceIface, "ControlGroup", group},
	{change.FieldGroup, "org.freedesktop.systemd1.Scope", "ControlGroup", group},
	{change.FieldGroup, "org.freedesktop.systemd1.Slice", "ControlGroup", group},
}

// of tells whether units of that name have the property.
func (p *property) of(name string) bool {
	if p.iface == "" {
		return true
	}
	kind := name[strings.LastIndexByte(name, '.')+1:]
	return strings.EqualFold(p.iface[strings.LastIndexByte(p.iface, '.')+1:], kind)
}

// Fill fetches what units lack of the wanted groups. A unit that has gone
// meanwhile has nothing to tell.
func (a *Asker) Fill(ctx context.Context, units []*change.UnitState, want change.UnitFields) error {
	wants := make(map[*change.UnitState]change.UnitFields, len(units))
	for _, u := range units {
		wants[u] = want
	}
	return a.FillEach(ctx, wants)
}

// FillEach is Fill with groups of its own for each unit.
func (a *Asker) FillEach(ctx context.Context, wants map[*change.UnitState]change.UnitFields) error {
	var list []question
	a.mu.Lock()
	for u, want := range wants {
		want &= u.Lacks
		if want == 0 {
			continue
		}
		path := string(unitPath(u.Name))
		for i := range properties {
			p := &properties[i]
			if want&p.group == 0 || !p.of(u.Name) {
				continue
			}
			iface := p.iface
			if iface == "" {
				iface = unitIface
			}
			list = append(list, question{path, propsIface, "Get", []string{iface, p.name}, func(m *reply) { p.put(u, m.body.variant()) }})
		}
	}
	a.mu.Unlock()
	if err := a.ask(ctx, list); err != nil {
		return fmt.Errorf("cannot read the states of units: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for u, want := range wants {
		u.Lacks &^= want
		// While a unit starts, ActiveEnter is still that of the start before.
		if want&change.FieldEntered != 0 && u.InvokedMonoUSec > 0 && u.ActiveEnterMonoUSec >= u.InvokedMonoUSec {
			u.LastStartUSec = u.ActiveEnterMonoUSec - u.InvokedMonoUSec
		}
	}
	return nil
}
