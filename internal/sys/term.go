package sys

import (
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
