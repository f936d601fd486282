package main

import (
	"errors"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// The exit codes, in every command's help.
const (
	exitDone       = 0
	exitFailed     = 1
	exitUsage      = 2
	exitRolledBack = 3
	exitPending    = 4
	exitLocked     = 5
	exitRefused    = 6
	exitPerson     = 7
	exitSomething  = 10
	exitLeft       = 128 + 15 // as if SIGTERM had ended it
)

const exitHelp = `
EXIT STATUS
  0  done, or nothing to do
  1  failed, and nothing changed
  2  the command line makes no sense
  3  failed after the commit, and rolled back
  4  done; a host action (a reboot of some kind) is still pending
  5  another transaction, or apt or dpkg, holds the lock
  6  verification refused the update
  7  recovery needs a person
 10  with --plan --exit-code: there is something to do
143  ended by SIGTERM past the commit point; the run goes on without it`

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	for _, m := range []struct {
		err  error
		code int
	}{
		{engine.ErrLeft, exitLeft},
		{change.ErrNeedsPerson, exitPerson},
		{engine.ErrRolledBack, exitRolledBack},
		{engine.ErrUsage, exitUsage},
		{change.ErrLocked, exitLocked},
		{change.ErrVerification, exitRefused},
	} {
		if errors.Is(err, m.err) {
			return m.code
		}
	}
	return exitFailed
}
