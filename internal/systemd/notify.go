package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Alive tells systemd that this unit lives, now and then, for as long as well says so
// and until stop is called. Without a Watchdog on the unit it does nothing. What systemd
// has put into the environment for that is taken out: no child shall speak for us.
func Alive(well func() bool) (stop func(), err error) {
	socket := os.Getenv("NOTIFY_SOCKET")
	usec, _ := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	if socket == "" || usec <= 0 {
		return func() {}, nil
	}
	if name, ok := strings.CutPrefix(socket, "@"); ok {
		socket = "\x00" + name
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("cannot reach systemd's watchdog: %w", err)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer conn.Close()
		// A third of the time: one that comes late is not missed.
		tick := time.NewTicker(time.Duration(usec) * time.Microsecond / 3)
		defer tick.Stop()
		for {
			if well() {
				// One that is lost is followed by the next.
				_, _ = conn.Write([]byte("WATCHDOG=1\n"))
			}
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}, nil
}
