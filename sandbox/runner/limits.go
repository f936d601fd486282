package runner

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runc/libcontainer"
)

// limits watches a container's control group: systemd removes that of a scope as soon
// as its last process has ended, and with it what it counted.
type limits struct {
	dirs              []string
	memory, processes atomic.Bool
	end, ended        chan struct{}
}

// How often the counts are read, and how long the kernel's word of memory is waited for after
// a process was killed.
const (
	limitsEvery = 50 * time.Millisecond
	limitsAfter = 300 * time.Millisecond
)

func watchLimits(c *libcontainer.Container) *limits {
	l := &limits{end: make(chan struct{}), ended: make(chan struct{})}
	if state, err := c.State(); err == nil {
		for _, dir := range state.CgroupPaths {
			l.dirs = append(l.dirs, dir)
		}
	}
	// Without a controller there is nothing to be told.
	killed, err := c.NotifyOOM()
	if err != nil {
		killed = nil
	}
	go func() {
		defer close(l.ended)
		tick := time.NewTicker(limitsEvery)
		defer tick.Stop()
		end := l.end
		var last <-chan time.Time
		for {
			select {
			case _, ok := <-killed:
				if !ok {
					killed = nil
					break
				}
				// Version 1 tells of the group's end in the same way: the count decides, where there still is one.
				if l.look(); len(l.dirs) == 1 {
					l.memory.Store(true)
				}
			case <-tick.C:
				l.look()
			case <-end:
				l.look()
				end, last = nil, time.After(limitsAfter)
			case <-last:
				return
			}
			if end == nil && (killed == nil || l.memory.Load()) {
				return
			}
		}
	}()
	return l
}

func (l *limits) look() {
	for _, dir := range l.dirs {
		// Version 1 has the count in memory.oom_control, version 2 in memory.events; pids.events is in both.
		if counted(filepath.Join(dir, "memory.oom_control"), "oom_kill") || counted(filepath.Join(dir, "memory.events"), "oom_kill") {
			l.memory.Store(true)
		}
		if counted(filepath.Join(dir, "pids.events"), "max") {
			l.processes.Store(true)
		}
	}
}

// met tells whether the kernel ended a process of the container for want of memory, or
// refused it one more process; wait: it may have, and its word may still come.
func (l *limits) met(wait bool) (memory, processes bool) {
	close(l.end)
	if wait {
		<-l.ended
	}
	l.look()
	return l.memory.Load(), l.processes.Load()
}

// counted tells whether a file of lines "KEY NUMBER" has more than 0 for a key.
func counted(file, key string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key && f[1] != "0" {
			return true
		}
	}
	return false
}
