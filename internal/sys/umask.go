package sys

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Umask is this process's file mode creation mask. The kernel tells it without its being changed
// for other threads' files from Linux 4.7 on (proc(5), Umask).
func Umask() uint32 {
	if f, err := os.Open("/proc/self/status"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if rest, ok := strings.CutPrefix(lines.Text(), "Umask:"); ok {
				if mask, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 9); err == nil {
					return uint32(mask)
				}
			}
		}
	}
	mask := unix.Umask(0)
	unix.Umask(mask)
	return uint32(mask)
}
