package systemd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
)

// bus is the system bus, for what is not PID 1's: logind and NetworkManager.
func bus() (*dbus.Conn, error) {
	conn, err := dbus.Dial("unix:path=" + systemSocket)
	if err != nil {
		return nil, err
	}
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

const (
	login      = "org.freedesktop.login1"
	loginPath  = dbus.ObjectPath("/org/freedesktop/login1")
	loginIface = "org.freedesktop.login1.Manager"
)

// Users names who is logged in, by logind; sorted. logind is not started for it.
func Users(ctx context.Context) ([]string, error) {
	conn, err := bus()
	if err != nil {
		return nil, fmt.Errorf("cannot ask who is logged in: %w", err)
	}
	defer conn.Close()
	var raw [][]any
	err = conn.Object(login, loginPath).CallWithContext(ctx, loginIface+".ListSessions", dbus.FlagNoAutoStart).Store(&raw)
	if err != nil {
		return nil, fmt.Errorf("cannot ask who is logged in: %w", err)
	}
	var out []string
	for _, row := range raw {
		if len(row) != 5 {
			continue
		}
		name, _ := row[2].(string)
		path, _ := row[4].(dbus.ObjectPath)
		class, err := conn.Object(login, path).GetProperty("org.freedesktop.login1.Session.Class")
		if err == nil {
			if text, ok := class.Value().(string); ok && text != "user" {
				continue // a greeter, a user's manager
			}
		}
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// ScheduleReboot has logind reboot the machine at a time, and tell those who are logged in.
func ScheduleReboot(ctx context.Context, at time.Time, message string) error {
	conn, err := bus()
	if err != nil {
		return fmt.Errorf("cannot ask for a reboot: %w", err)
	}
	defer conn.Close()
	manager := conn.Object(login, loginPath)
	if err := manager.CallWithContext(ctx, loginIface+".SetWallMessage", 0, message, true).Err; err != nil {
		return fmt.Errorf("cannot announce a reboot: %w", err)
	}
	if err := manager.CallWithContext(ctx, loginIface+".ScheduleShutdown", 0, "reboot", uint64(at.UnixMicro())).Err; err != nil {
		return fmt.Errorf("cannot ask for a reboot: %w", err)
	}
	return nil
}

// Reboot starts the target that reboots the machine, as systemctl reboot does without logind.
func (c *Conn) Reboot(ctx context.Context) error {
	err := c.current().calls.Object(service, managerPath).
		CallWithContext(ctx, managerIface+".StartUnit", 0, "reboot.target", "replace-irreversibly").Err
	if err != nil {
		return fmt.Errorf("cannot reboot: %w", err)
	}
	return nil
}

// ErrNoNetworkManager says that NetworkManager does not run.
var ErrNoNetworkManager = errors.New("NetworkManager does not run")

// Metered asks NetworkManager whether what is sent costs: known is false where it does not
// know. It is not started for it.
func Metered(ctx context.Context) (metered, known bool, err error) {
	conn, err := bus()
	if err != nil {
		return false, false, fmt.Errorf("%w: %w", ErrNoNetworkManager, err)
	}
	defer conn.Close()
	var v dbus.Variant
	err = conn.Object("org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager").
		CallWithContext(ctx, propsIface+".Get", dbus.FlagNoAutoStart, "org.freedesktop.NetworkManager", "Metered").Store(&v)
	if err != nil {
		return false, false, fmt.Errorf("%w: %w", ErrNoNetworkManager, err)
	}
	// NMMetered: 0 unknown, 1 yes, 2 no, 3 guessed yes, 4 guessed no.
	n, _ := v.Value().(uint32)
	return n == 1 || n == 3, n != 0, nil
}

// StartNoWait asks for a unit's start, and does not wait for it.
func (c *Conn) StartNoWait(ctx context.Context, unit string) error {
	err := c.current().calls.Object(service, managerPath).CallWithContext(ctx, managerIface+".StartUnit", 0, unit, "replace").Err
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", unit, err)
	}
	return nil
}
