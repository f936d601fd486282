package engine

import (
	"fmt"
	"os"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// started is where this program lay when it was started. An update of liveupd itself moves
// the running one away, to where systemd finds nothing: a service of its own view of the file
// systems has no path for it at all. What is started from then on is the new version.
var started, errStarted = os.Executable()

// program is what a worker is started from.
func program() (string, error) {
	if errStarted == nil {
		if st, err := os.Stat(started); err == nil && st.Mode().IsRegular() {
			return started, nil
		}
	}
	return os.Executable()
}

// keepsItself refuses an update that takes away the program that carries it out: what a
// crash cuts in half then could be finished by nobody, and nobody could take it back.
func (s *session) keepsItself(d *change.Delta) error {
	if !s.req.Live() {
		return nil
	}
	exe, err := program()
	if err != nil {
		return nil // without /proc it is a recovery
	}
	if gone := removes(d, exe); gone != "" {
		return change.WithHint(fmt.Errorf("cannot remove %s while it does the work: nobody could finish the update after a crash, or take it back; %w", gone, ErrNothingCommitted),
			"to remove liveupd use the package manager by itself: apt remove liveupd")
	}
	return nil
}

// removes tells which entry of a Delta takes a program away; "" where none does.
func removes(d *change.Delta, program string) string {
	for _, e := range d.Entries {
		if e.Op == change.Remove && (e.Path == program || strings.HasPrefix(program, e.Path+"/")) {
			return program
		}
	}
	return ""
}
