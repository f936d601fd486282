package engine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/config"
)

// The dead man's timer is systemd's watchdog over the worker's unit. The inner worker
// gives a sign of life every few seconds; one that is stopped, or hangs, gives none.
// systemd then kills the unit's main process and runs the recovery after it
// (ExecStopPost=), which ends what is left of the run and settles it: the old tree or the
// new one, the units running, the network as it was. Nothing of that needs the network,
// the caller or the killed process.

// guardConfig is the table [guard] of a root; the defaults where it cannot be read.
func guardConfig(req Request) config.Guard {
	cfg, err := config.Load(req.Root)
	if err != nil {
		return config.Guard{}.Defaults()
	}
	return cfg.Guard.Defaults()
}

// stuckAfter is how long the worker may be silent. It holds where the network is not watched, too.
func stuckAfter(req Request) time.Duration { return guardConfig(req).Stuck.D() }

// pulse knows whether a run goes on. One that is under way and tells of nothing for very long
// is taken for hung; one that waits for a person, or reads, is not.
type pulse struct {
	mu     sync.Mutex
	limit  time.Duration
	armed  bool
	last   time.Time
	phases []string
}

func newPulse(req Request) *pulse {
	return &pulse{limit: guardConfig(req).Hung.D(), phases: []string{"staging", "committing", "restarting", "verifying", "reverting", "recovering"}}
}

// beat notes what the run tells.
func (p *pulse) beat(v any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
	if progress, ok := v.(change.Progress); ok && slices.Contains(p.phases, progress.Phase) {
		p.armed = true
	}
}

func (p *pulse) well() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.armed || time.Since(p.last) < p.limit
}

// endRest ends what is left of the run that this process was started to clean up after:
// systemd kills the main process alone, and the one that does the work may be stopped,
// with the lock in its hands. Where systemd did not start us after a run it does nothing.
func endRest() error {
	if os.Getenv("SERVICE_RESULT") == "" {
		return nil
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("cannot tell which unit this is: %w", err)
	}
	unit := unitLine(own)
	if unit == "" {
		return nil
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		rest := companions(unit)
		if len(rest) == 0 {
			return nil
		}
		for _, pid := range rest {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("cannot end process %d of the run: %w", pid, err)
			}
		}
		if time.Now().After(deadline) {
			return change.WithHint(fmt.Errorf("process %d of the run does not end: the kernel holds it", rest[0]), "reboot: the recovery at boot settles the rest")
		}
	}
}

// unitLine is the line of a cgroup file that names one of our units.
func unitLine(file []byte) string {
	for line := range strings.Lines(string(file)) {
		if strings.Contains(line, "/liveupd-") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// companions are the other processes of our unit, those in groups below it too.
func companions(unit string) []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	var out []int
	for _, name := range dirs {
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		group, err := os.ReadFile(name)
		if line := unitLine(group); err != nil || line != unit && !strings.HasPrefix(line, unit+"/") || zombie(pid) {
			continue
		}
		out = append(out, pid)
	}
	return out
}

// zombie tells whether a process has ended and waits for its parent.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	i := bytes.LastIndexByte(stat, ')')
	return i >= 0 && bytes.HasPrefix(stat[i+1:], []byte(" Z"))
}
