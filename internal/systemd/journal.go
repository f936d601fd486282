package systemd

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Journal returns a unit's last journal lines, "" where there is no journalctl
// or nothing was logged. since is an invocation ID (32 hexadecimal digits), a
// wall-clock time as microseconds since the epoch in decimal, or "" for the
// whole boot. It runs a program: never call it between the commit point and
// the end of the exchange.
func (c *Conn) Journal(ctx context.Context, unit, since string, lines int) string {
	const program = "/usr/bin/journalctl"
	if _, err := os.Stat(program); err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The journal is written asynchronously: what a unit said as it failed
	// may still be on its way. --sync waits for it.
	_ = exec.CommandContext(ctx, program, "--sync").Run()
	args := []string{"--no-pager", "--quiet", "--output=short-iso", "--lines=" + strconv.Itoa(lines), "--boot"}
	if len(since) == 32 {
		// The unit's own lines and what PID 1 says about that invocation.
		args = append(args, "_SYSTEMD_INVOCATION_ID="+since, "+", "INVOCATION_ID="+since)
	} else {
		if c.user != nil {
			args = append(args, "_SYSTEMD_USER_UNIT="+unit, "_UID="+strconv.FormatUint(uint64(c.user.UID), 10))
		} else {
			args = append(args, "--unit="+unit)
		}
		if usec, err := strconv.ParseInt(since, 10, 64); err == nil {
			args = append(args, "--since=@"+strconv.FormatInt(usec/1e6, 10)+"."+pad6(usec%1e6))
		}
	}
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(out), "\n")
}

func pad6(n int64) string {
	s := strconv.FormatInt(n, 10)
	return strings.Repeat("0", 6-len(s)) + s
}
