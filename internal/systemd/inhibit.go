package systemd

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/godbus/dbus/v5"
)

// Inhibit takes logind's lock against whatever ends the system (power-off, reboot,
// kexec, soft-reboot), until release: who asks for one of these meanwhile is refused, and told
// why. Up to systemd 256 root is not held up by it. logind is not started for it:
// where it does not run there is no lock, and an error.
func Inhibit(ctx context.Context, why string) (release func(), err error) {
	conn, err := dbus.Dial("unix:path=" + systemSocket)
	if err != nil {
		return nil, fmt.Errorf("cannot hold up a shutdown: %w", err)
	}
	defer conn.Close()
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	var lock dbus.UnixFD
	if err == nil {
		err = conn.Object("org.freedesktop.login1", "/org/freedesktop/login1").
			CallWithContext(ctx, "org.freedesktop.login1.Manager.Inhibit", dbus.FlagNoAutoStart, "shutdown", "liveupd", why, "block").Store(&lock)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot hold up a shutdown: %w", err)
	}
	// A validator that outlived us would keep it.
	syscall.CloseOnExec(int(lock))
	f := os.NewFile(uintptr(lock), "logind's lock")
	return func() { f.Close() }, nil
}
