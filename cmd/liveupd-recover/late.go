package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// mixed tells whether PID 1 came from a tree that was partly old and partly new: the
// root or /usr was recovered now, and nothing had done so before PID 1.
func mixed(rec recovered) bool {
	if rec.Did != "finished" && rec.Did != "reversed" || noted(bootNote, rec.ID) || noted(startedAnew, rec.ID) {
		return false
	}
	return slices.ContainsFunc(rec.mounts, func(m string) bool {
		return !slices.Contains(rec.Missing, m) && (m == "/" || m == "/usr" || strings.HasPrefix(m, "/usr/"))
	})
}

// softReboots is the version of systemd that can replace all of userspace without the
// firmware and the kernel.
const softReboots = 254

// startAnew boots the machine from the tree that is whole now, and waits for the
// end that this brings: what is ordered after us must not start.
func startAnew(id string, console io.Writer) error {
	verb := "reboot"
	out, err := exec.Command("systemctl", "show", "--property=Version", "--value").Output()
	if err == nil && major(string(out)) >= softReboots {
		verb = "soft-reboot"
	}
	fmt.Fprintf(console, "liveupd-recover: PID 1 was started from a tree that was partly old and partly new; the tree is whole now: %s\n", verb)
	if err := writeNote(startedAnew, id); err != nil {
		// Without the note a second one could follow. The journal says that all is done, so none will.
		fmt.Fprintf(console, "liveupd-recover: %v\n", err)
	}
	terms := make(chan os.Signal, 1) // one that came while nobody looked stays in it
	signal.Notify(terms, syscall.SIGTERM)
	if out, err := exec.Command("systemctl", "--no-block", verb).CombinedOutput(); err != nil {
		// The request may end systemctl, which is in our unit, before it has heard that it
		// was taken: then it ends us as well.
		select {
		case <-terms:
			return nil
		case <-time.After(10 * time.Second):
		}
		return fmt.Errorf("cannot start the machine anew: systemctl %s: %w: %s", verb, err, strings.TrimSpace(string(out)))
	}
	select {
	case <-terms:
		return nil
	case <-time.After(5 * time.Minute):
		return fmt.Errorf("cannot start the machine anew: systemctl %s was accepted, and nothing came of it", verb)
	}
}

// major is the number that a version of systemd begins with.
func major(version string) int {
	digits := strings.TrimSpace(version)
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i]
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}
