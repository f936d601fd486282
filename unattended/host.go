package unattended

import (
	"context"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// Host is what a run needs of the machine.
type Host interface {
	Now() time.Time
	// Sleep waits; it ends early, with the context's error, where that ends.
	Sleep(ctx context.Context, d time.Duration) error
	// Do carries out a request of the engine, and Look one that only reads.
	Do(ctx context.Context, req engine.Request, ev engine.Events) (any, error)
	Look(ctx context.Context, req engine.Request) ([]change.Generation, error)
	Boot() string // the kernel's boot ID
	// Command runs a program and gives the end of what it printed.
	Command(ctx context.Context, c Command) (output string, err error)
	OnBattery() (battery bool, detail string)
	Metered(ctx context.Context) (metered bool, detail string)
	Users(ctx context.Context) ([]string, error)
	Reboot(ctx context.Context, at time.Time, message string) error
	Log(e Entry) error
	// Status tells the service manager what goes on.
	Status(text string)
	// Alive tells whether a unit runs, and whether processes of it are stopped by a signal.
	Alive(ctx context.Context, unit string) (alive, stopped bool)
	End(ctx context.Context, unit string) error // by SIGKILL
	// Settled waits until no unit is on its way, and tells which has failed.
	Settled(ctx context.Context, units []string) error
	Hostname() string
	Sendmail() string // the program, "" where there is none
}

// Command is a program to be run beside liveupd: with all that root may, and none of the
// limits of the service that a run is.
type Command struct {
	What  string // pre, post, canary, ...
	Argv  []string
	Env   []string
	Stdin string
	Limit time.Duration
}

// Entry is a line of the journal.
type Entry struct {
	ID       string // MESSAGE_ID
	Priority int
	Text     string
	Fields   map[string]string
}
