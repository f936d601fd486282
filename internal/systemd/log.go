package systemd

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"
)

// The priorities of syslog(3) that an entry can have.
const (
	PriorityError   = int(journal.PriErr)
	PriorityWarning = int(journal.PriWarning)
	PriorityNotice  = int(journal.PriNotice)
	PriorityInfo    = int(journal.PriInfo)
)

// Log writes an entry with fields to the journal (systemd.journal-fields(7)). Where no
// journald runs it is an error.
func Log(message string, priority int, fields map[string]string) error {
	if err := journal.Send(message, journal.Priority(priority), fields); err != nil {
		return fmt.Errorf("cannot write to the journal: %w", err)
	}
	return nil
}

// Ready tells the service manager that the service has started, and keeps telling it that
// it lives, where it asks for that (WatchdogSec=), until stop is called. Where no service
// manager listens nothing happens.
func Ready(status string) (stop func()) {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS="+status) // no service: nobody listens
	usec, _ := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if usec <= 0 {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			select {
			case <-done:
				return
			case <-time.After(time.Duration(usec/3) * time.Microsecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// Status tells the service manager in a line what the service does now.
func Status(status string) { _, _ = daemon.SdNotify(false, "STATUS="+status) }
