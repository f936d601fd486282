package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	sdbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/liveupd/liveupd/change"
)

// planned are the unit types that an update can act on or must not disturb.
var planned = []string{".service", ".socket", ".timer", ".path", ".mount", ".target", ".slice", ".scope"}

func isPlanned(name string) bool {
	for _, suffix := range planned {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// Units reads the state of all loaded units of the types that an update deals
// with. The map holds each unit under all of its names.
func (c *Conn) Units(ctx context.Context) (map[string]*change.UnitState, error) {
	list, err := c.current().sd.ListUnitsContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list units: %w", err)
	}
	var names []string
	for _, u := range list {
		if isPlanned(u.Name) && u.LoadState != "not-found" {
			names = append(names, u.Name)
		}
	}
	states, err := c.States(ctx, names)
	if err != nil {
		return nil, err
	}
	out := make(map[string]*change.UnitState, len(states))
	for _, u := range states {
		out[u.Name] = u
		for _, alias := range u.Names {
			out[alias] = u
		}
	}
	return out, nil
}

// States reads the state of the named units, whether loaded or not; a unit
// that does not exist has LoadState "not-found". The result stands in the
// order of the names. All questions are sent in one write and the answers are
// read as they come: the cost is PID 1's, some 0.1 ms for each unit.
func (c *Conn) States(ctx context.Context, names []string) ([]*change.UnitState, error) {
	l := c.current()
	type asked struct {
		unit *dbus.Call
		more []*dbus.Call // one for each of typeProps
	}
	calls := make([]asked, len(names))
	// In slices, so that neither side's socket buffer stands full of questions
	// while the other side's stands full of answers.
	const slice = 64
	out := make([]*change.UnitState, len(names))
	for from := 0; from < len(names); from += slice {
		to := min(from+slice, len(names))
		l.cork.hold()
		for i := from; i < to; i++ {
			obj := l.jobs.Object(service, unitPath(names[i]))
			calls[i].unit = obj.Go(propsIface+".GetAll", 0, make(chan *dbus.Call, 1), unitIface)
			// GetAll here would make PID 1 read the unit's cgroup files for
			// its counters: twice the cost of all the rest.
			iface, props := typeProps(names[i])
			for _, prop := range props {
				calls[i].more = append(calls[i].more, obj.Go(propsIface+".Get", 0, make(chan *dbus.Call, 1), iface, prop))
			}
		}
		if err := l.cork.release(); err != nil {
			return nil, fmt.Errorf("cannot read the states of units: %w", err)
		}
		for i := from; i < to; i++ {
			var props map[string]dbus.Variant
			err := l.answer(ctx, calls[i].unit, &props)
			if _, refused := errors.AsType[dbus.Error](err); refused {
				props, err = l.singly(ctx, names[i])
			}
			if err != nil {
				return nil, fmt.Errorf("cannot read the state of %s: %w", names[i], err)
			}
			u := unitState(names[i], props)
			clear(props)
			_, wanted := typeProps(names[i])
			for n, call := range calls[i].more {
				var v dbus.Variant
				if err := l.answer(ctx, call, &v); err != nil {
					return nil, fmt.Errorf("cannot read %s of %s: %w", wanted[n], names[i], err)
				}
				props[wanted[n]] = v
			}
			serviceState(u, props)
			out[i] = u
		}
	}
	return out, nil
}

// stateProps are the properties of which a unit's state is made.
var stateProps = []string{
	"Id", "Names", "LoadState", "ActiveState", "SubState", "CanReload", "FragmentPath", "DropInPaths", "NeedDaemonReload", "RefuseManualStart", "RefuseManualStop",
	"StateChangeTimestampMonotonic", "ActiveEnterTimestampMonotonic", "InactiveExitTimestampMonotonic", "RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf",
	"PropagatesReloadTo", "PropagatesStopTo", "TriggeredBy", "Triggers", "ConditionResult", "ConditionTimestampMonotonic", "InvocationID",
}

// singly reads a unit's properties one by one and leaves out what PID 1 cannot tell: a drop-in
// or a description that is no UTF-8 has no place in a message, and GetAll fails by it.
func (l *link) singly(ctx context.Context, name string) (map[string]dbus.Variant, error) {
	out := make(map[string]dbus.Variant, len(stateProps))
	obj := l.jobs.Object(service, unitPath(name))
	for _, prop := range stateProps {
		var v dbus.Variant
		err := l.answer(ctx, obj.Go(propsIface+".Get", 0, make(chan *dbus.Call, 1), unitIface, prop), &v)
		if _, refused := errors.AsType[dbus.Error](err); refused && prop != "ActiveState" {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[prop] = v
	}
	return out, nil
}

func (l *link) answer(ctx context.Context, call *dbus.Call, into any) error {
	select {
	case done := <-call.Done:
		return done.Store(into)
	case <-ctx.Done():
		return ctx.Err()
	case <-l.jobs.Context().Done():
		return errLost
	}
}

func unitPath(name string) dbus.ObjectPath {
	return dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + sdbus.PathBusEscape(name))
}

// typeProps are the interface that has a unit's type-specific properties, and
// those of them that are needed.
func typeProps(name string) (iface string, props []string) {
	switch name[strings.LastIndexByte(name, '.')+1:] {
	case "service":
		return serviceIface, []string{
			"ControlGroup", "Type", "RemainAfterExit", "MainPID", "NRestarts", "Result",
			"StatusText", "ExecMainCode", "ExecMainStatus",
		}
	case "scope":
		return "org.freedesktop.systemd1.Scope", []string{"ControlGroup", "Result"}
	case "slice":
		return "org.freedesktop.systemd1.Slice", []string{"ControlGroup"}
	case "socket":
		return "org.freedesktop.systemd1.Socket", []string{"Result"}
	}
	return "", nil
}

func unitState(name string, p map[string]dbus.Variant) *change.UnitState {
	u := &change.UnitState{
		Name: text(p, "Id"), Names: list(p, "Names"),
		LoadState: text(p, "LoadState"), ActiveState: text(p, "ActiveState"), SubState: text(p, "SubState"),
		CanReload: flag(p, "CanReload"), FragmentPath: text(p, "FragmentPath"), DropIns: list(p, "DropInPaths"),
		NeedDaemonReload:  flag(p, "NeedDaemonReload"),
		RefuseManualStart: flag(p, "RefuseManualStart"), RefuseManualStop: flag(p, "RefuseManualStop"),
		StateChangeMonoUSec: number(p, "StateChangeTimestampMonotonic"),
		ActiveEnterMonoUSec: number(p, "ActiveEnterTimestampMonotonic"),
		InvokedMonoUSec:     number(p, "InactiveExitTimestampMonotonic"),
		RequiredBy:          list(p, "RequiredBy"), RequisiteOf: list(p, "RequisiteOf"),
		BoundBy: list(p, "BoundBy"), ConsistsOf: list(p, "ConsistsOf"),
		PropagatesReloadTo: list(p, "PropagatesReloadTo"), PropagatesStopTo: list(p, "PropagatesStopTo"),
		TriggeredBy: list(p, "TriggeredBy"), Triggers: list(p, "Triggers"),
	}
	if u.Name == "" {
		u.Name = name
	}
	if met, ok := p["ConditionResult"].Value().(bool); ok {
		u.ConditionUnmet = !met && number(p, "ConditionTimestampMonotonic") > 0
	}
	// While a unit starts, ActiveEnter is still that of the start before.
	if u.InvokedMonoUSec > 0 && u.ActiveEnterMonoUSec >= u.InvokedMonoUSec {
		u.LastStartUSec = u.ActiveEnterMonoUSec - u.InvokedMonoUSec
	}
	if id, ok := p["InvocationID"].Value().([]byte); ok && len(id) == 16 {
		u.InvocationID = fmt.Sprintf("%x", id)
	}
	return u
}

func serviceState(u *change.UnitState, p map[string]dbus.Variant) {
	u.ControlGroup = text(p, "ControlGroup")
	u.Type = text(p, "Type")
	u.RemainAfterExit = flag(p, "RemainAfterExit")
	u.MainPID = int(number(p, "MainPID"))
	u.NRestarts = uint32(number(p, "NRestarts"))
	u.Result = text(p, "Result")
	u.StatusText = text(p, "StatusText")
	u.ExecMainCode = int32(number(p, "ExecMainCode"))
	u.ExecMainStatus = int32(number(p, "ExecMainStatus"))
}

func text(p map[string]dbus.Variant, key string) string {
	s, _ := p[key].Value().(string)
	return s
}

func list(p map[string]dbus.Variant, key string) []string {
	l, _ := p[key].Value().([]string)
	if len(l) == 0 {
		return nil
	}
	return l
}

func flag(p map[string]dbus.Variant, key string) bool {
	b, _ := p[key].Value().(bool)
	return b
}

func number(p map[string]dbus.Variant, key string) uint64 {
	switch n := p[key].Value().(type) {
	case uint64:
		return n
	case uint32:
		return uint64(n)
	case int32:
		return uint64(n)
	}
	return 0
}
