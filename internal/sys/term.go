package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TerminalWidth is the number of columns of the terminal that f is; 0 where f
// is no terminal, 80 where the terminal does not say.
func TerminalWidth(f *os.File) int {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 {
		return 80
	}
	return int(ws.Col)
}

// EchoOff makes the terminal that f is hide what is typed, until restore is called.
func EchoOff(f *os.File) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("cannot hide what is typed: %w", err)
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ECHONL
	// What was typed before the question is dropped.
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETSF, &quiet); err != nil {
		return nil, fmt.Errorf("cannot hide what is typed: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, old) }, nil // a terminal that is gone needs none
}

// LeaveTerminal gives up the terminal of the caller's session, which it leads; fd is one of its
// descriptors. The session's processes get SIGHUP and SIGCONT for it (ioctl_tty(2), TIOCNOTTY).
func LeaveTerminal(fd int) error {
	return os.NewSyscallError("ioctl TIOCNOTTY", unix.IoctlSetInt(fd, unix.TIOCNOTTY, 0))
}
