// Package quiesce freezes services for the moment of the swap, so that none of them
// meets old and new files side by side.
//
// The kernel freezes a control group (cgroup v2, cgroup.freeze) within some 0.1 ms
// and lets it go on where it was: no connection is closed, no state lost. What is frozen
// must be thawed, come what may:
//
//   - the list of what will be frozen is noted under /run first, for the recovery
//     that follows a killed run (Thaw);
//   - a watchdog, a process of its own, thaws all when the one that froze dies, or
//     has not said within Deadline that it is done;
//   - the one that froze thaws when the swap has ended, however it ended.
//
// The files of the control groups are written straight, and not through systemd's
// FreezeUnit: that takes a round through D-Bus for each unit and back, ten times as
// long as the swap of a small update, and does not work while PID 1 is busy.
// systemd does not notice; a unit that is stopped meanwhile would wait until the thaw.
package quiesce

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
)

// Files is from how many changed files of one unit on it is frozen by default. So many
// renames take half a millisecond, five times what freezing and thawing a unit costs; a
// program that reads a few files in that time hardly meets two states of them.
const Files = 50

// Deadline is how long anything stays frozen at the very most.
const Deadline = 10 * time.Second

// settle is how long a control group may take until all of it stands still. One
// that takes longer (a process in an uninterruptible wait) is let go, and said.
const settle = 200 * time.Millisecond

// Target is a unit and its control group, as systemd names it: /system.slice/nginx.service.
type Target struct {
	Unit  string `json:"unit"`
	Group string `json:"group"`
}

// hierarchies are where cgroup v2 may be mounted: alone, or beside v1.
var hierarchies = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// Hierarchy finds where cgroup v2 is mounted; fs.ErrNotExist where it is not.
func Hierarchy() (string, error) {
	for _, dir := range hierarchies {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("cannot freeze units: cgroup v2 is not mounted at %s: %w", strings.Join(hierarchies, " or "), fs.ErrNotExist)
}

// group is one control group's files.
type group struct {
	unit string
	dir  string
}

func (g group) read(name, key string) string {
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return ""
	}
	if key == "" {
		return strings.TrimSpace(string(b))
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func (g group) frozen() bool { return g.read("cgroup.events", "frozen") == "1" }

func (g group) set(k *sys.Kernel, value string) error {
	return k.WriteControl(filepath.Join(g.dir, "cgroup.freeze"), value)
}

// Outcome is what came of a freeze.
type Outcome struct {
	Frozen   []string // units
	USec     int64    // from the first freeze to the last thaw
	Warnings []string
}

// Session is a freeze that is prepared: the watchdog watches, nothing stands still yet.
type Session struct {
	k     *sys.Kernel
	root  string
	notes string
	list  []group
	dog   *dog
	since time.Time
	out   Outcome
}

// Prepare chooses what can be frozen of targets, notes it in the folder notes and starts
// the watchdog. nil, nil: there is nothing to freeze.
func Prepare(k *sys.Kernel, notes string, targets []Target) (*Session, error) {
	root, err := Hierarchy()
	if err != nil {
		return nil, err
	}
	return prepare(k, root, notes, targets)
}

func prepare(k *sys.Kernel, root, notes string, targets []Target) (*Session, error) {
	s := &Session{k: k, root: root, notes: notes}
	for _, t := range targets {
		g := group{t.Unit, filepath.Join(root, filepath.Clean("/"+t.Group))}
		switch {
		case t.Group == "" || t.Group == "/":
		case g.read("cgroup.freeze", "") != "0":
			// It is gone, or somebody froze it before: theirs to thaw.
		case heldByFUSE(g.dir):
			s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("%s is not frozen for the swap: it serves a FUSE file system, which the swap may need", t.Unit))
		default:
			s.list = append(s.list, g)
		}
	}
	if len(s.list) == 0 {
		return nil, nil
	}
	if err := writeNotes(notes, s.list); err != nil {
		return nil, err
	}
	var err error
	if s.dog, err = startDog(s.list); err != nil {
		return nil, errors.Join(err, removeNotes(notes))
	}
	return s, nil
}

// Freeze stops all of it, and returns when it stands still. What does not in time is let go.
func (s *Session) Freeze() {
	if err := s.dog.say(freezing); err != nil {
		s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("nothing is frozen for the swap: the watchdog is gone: %v", err))
		return
	}
	s.since = time.Now()
	var waiting []group
	for _, g := range s.list {
		if err := g.set(s.k, "1"); err != nil {
			if !errors.Is(err, fs.ErrNotExist) { // the unit ended meanwhile
				s.warn(g, err.Error())
			}
			continue
		}
		waiting = append(waiting, g)
	}
	for pause := 50 * time.Microsecond; len(waiting) > 0 && time.Since(s.since) < settle; pause = min(2*pause, 5*time.Millisecond) {
		waiting = slices.DeleteFunc(waiting, func(g group) bool {
			if g.frozen() {
				s.out.Frozen = append(s.out.Frozen, g.unit)
				return true
			}
			return false
		})
		if len(waiting) > 0 {
			time.Sleep(pause)
		}
	}
	for _, g := range waiting {
		s.warn(g, fmt.Sprintf("it did not stand still within %s", settle))
		_ = g.set(s.k, "0") // Thaw tries again, and says so
	}
}

func (s *Session) warn(g group, why string) {
	s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("%s is not frozen for the swap: %s", g.unit, why))
}

// Thaw lets all of it go on, and ends the watchdog. It may be called without Freeze.
func (s *Session) Thaw() Outcome {
	var failed []group
	for _, g := range s.list {
		if err := g.set(s.k, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, g)
		}
	}
	if !s.since.IsZero() && len(s.out.Frozen) > 0 {
		s.out.USec = time.Since(s.since).Microseconds()
	}
	// The watchdog thaws once more what could not be thawed here.
	if err := s.dog.end(len(failed) == 0); err != nil {
		s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("the watchdog of the frozen units: %v", err))
	}
	left := slices.DeleteFunc(failed, func(g group) bool { return g.read("cgroup.freeze", "") != "1" })
	for _, g := range left {
		s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("%s is still frozen: write 0 to %s/cgroup.freeze", g.unit, g.dir))
	}
	if len(left) == 0 {
		if err := removeNotes(s.notes); err != nil {
			s.out.Warnings = append(s.out.Warnings, err.Error())
		}
	}
	slices.Sort(s.out.Frozen)
	return s.out
}

// heldByFUSE tells whether a process of the group holds /dev/fuse open.
func heldByFUSE(dir string) bool {
	held := false
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil // a group that goes away holds nothing
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return nil
		}
		for pid := range strings.FieldsSeq(string(b)) {
			fds, _ := filepath.Glob("/proc/" + pid + "/fd/*")
			for _, fd := range fds {
				if to, err := os.Readlink(fd); err == nil && to == "/dev/fuse" {
					held = true
					return filepath.SkipAll
				}
			}
		}
		return nil
	})
	return held
}
