package engine

import (
	"context"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/planner"
)

// bus is what the service manager knows of its units, asked while processes and
// files are read: the list of units first, and then, of each, what is needed.
// On a host without systemd it has no units.
type bus struct {
	ready   chan struct{} // closed when what stands below is there
	asker   *systemd.Asker
	units   map[string]*change.UnitState
	version int
	loaded  systemd.Loaded
	err     error

	asked    chan struct{} // closed when these are there
	users    []*change.UserManager
	usersErr error
}

// openBus connects and lists the units, without waiting for the answer. fields
// are fetched of all services that are active; the managers of users are asked
// where that is wanted.
func openBus(ctx context.Context, fields change.UnitFields, users bool) *bus {
	b := &bus{ready: make(chan struct{}), asked: make(chan struct{}), units: map[string]*change.UnitState{}}
	if !systemd.Booted() {
		close(b.ready)
		close(b.asked)
		return b
	}
	go func() {
		b.err = b.list(ctx, fields)
		close(b.ready)
		if b.usersErr = b.err; b.err == nil && users {
			b.usersErr = b.askUsers(ctx)
		}
		close(b.asked)
	}()
	return b
}

// askUsers asks the managers of users. What it needs to know of theirs is asked
// before anybody else looks at it.
func (b *bus) askUsers(ctx context.Context) error {
	var managers []*change.UnitState
	for name, u := range b.units {
		if _, is := systemd.UserUID(name); is && u.Active() {
			managers = append(managers, u)
		}
	}
	if err := b.Fill(ctx, managers, change.FieldMainPID); err != nil {
		return err
	}
	b.users = userManagers(ctx, b.units)
	return nil
}

func (b *bus) list(ctx context.Context, fields change.UnitFields) (err error) {
	if b.asker, err = systemd.NewAsker(ctx); err != nil {
		return err
	}
	list, err := b.asker.List(ctx)
	if err != nil {
		return err
	}
	var services []*change.UnitState
	for _, u := range list {
		b.units[u.Name] = u
		if u.Active() && strings.HasSuffix(u.Name, ".service") {
			services = append(services, u)
		}
	}
	if b.version, b.loaded, err = b.asker.Manager(ctx); err != nil {
		return err
	}
	return b.asker.Fill(ctx, services, fields)
}

func (b *bus) close() {
	<-b.asked
	if b.asker != nil {
		b.asker.Close()
	}
}

// Units are the units by name.
func (b *bus) Units(ctx context.Context) (map[string]*change.UnitState, error) {
	select {
	case <-b.ready:
		return b.units, b.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Users are the managers of users that run.
func (b *bus) Users(ctx context.Context) ([]*change.UserManager, error) {
	select {
	case <-b.asked:
		return b.users, b.usersErr
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// facts are what is known when all is asked.
func (b *bus) facts() *change.Facts {
	return &change.Facts{Running: b.asker != nil, Units: b.units, Users: b.users, SystemdVersion: b.version}
}

// Fill fetches what units lack.
func (b *bus) Fill(ctx context.Context, units []*change.UnitState, want change.UnitFields) error {
	if b.asker == nil || len(units) == 0 {
		return nil
	}
	return b.asker.Fill(ctx, units, want)
}

// learn fetches what a decision lacked.
func (b *bus) learn(ctx context.Context, lacks planner.Lacks) error {
	return b.asker.FillEach(ctx, lacks)
}

// all fetches groups of every unit; with FieldNames each is found by all its names then.
func (b *bus) all(ctx context.Context, want change.UnitFields) error {
	list := make([]*change.UnitState, 0, len(b.units))
	for name, u := range b.units {
		if name == u.Name {
			list = append(list, u)
		}
	}
	if err := b.Fill(ctx, list, want); err != nil {
		return err
	}
	if want&change.FieldNames != 0 {
		for _, u := range list {
			for _, name := range u.Names {
				b.units[name] = u
			}
		}
	}
	return nil
}
