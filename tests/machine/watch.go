package machine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Event is something that a watcher saw: a change of a watched path (State empty) or a
// transaction that entered a state (State set). Polled changes carry in Path
// what stat saw, and in State nothing.
type Event struct {
	Time  time.Time
	Path  string // below the watched root
	What  string // inotify's word, or "ctime", "nlink", "inode", "gone"
	State string
}

func (e Event) String() string {
	if e.State != "" {
		return fmt.Sprintf("%s state %s", e.Time.Format("15:04:05.000000"), e.State)
	}
	return fmt.Sprintf("%s %s %s", e.Time.Format("15:04:05.000000"), e.What, e.Path)
}

// Watcher records each change of a tree as others see it: through one inotify
// instance, whose events come in the order in which they happened, and by
// comparing link count, inode and change time of chosen files again and again.
// Into the same stream go the states of transactions, because the watcher also
// follows the state files under .liveupd: so it is known what came before the
// commit point.
type Watcher struct {
	t      testing.TB
	root   string
	fd     int
	done   sync.WaitGroup
	ending chan struct{}
	old    map[string]bool // transactions that were there before

	mu      sync.Mutex
	watches map[int32]string // descriptor to path below root
	events  []Event
	lost    bool
}

const watchMask = syscall.IN_MODIFY | syscall.IN_ATTRIB | syscall.IN_CLOSE_WRITE | syscall.IN_CREATE | syscall.IN_DELETE |
	syscall.IN_MOVED_FROM | syscall.IN_MOVED_TO | syscall.IN_MOVE_SELF | syscall.IN_DELETE_SELF

// Watch starts a watcher on the tree at root. It watches all folders below each of
// the folders given (below root, "" is not allowed: .liveupd itself must come
// into being) and polls the files given in poll. It ends with the test.
func Watch(t testing.TB, root string, folders, poll []string) *Watcher {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatalf("cannot start a watcher: %v", err)
	}
	w := &Watcher{t: t, root: root, fd: fd, ending: make(chan struct{}), watches: map[int32]string{}, old: map[string]bool{}}
	for _, dir := range w.transactions() {
		w.old[dir] = true
	}
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return w.add(rel, watchMask)
		})
		if err != nil {
			t.Fatalf("cannot watch %s: %v", folder, err)
		}
	}
	// The root itself only for the birth of .liveupd.
	if err := w.add(".", syscall.IN_CREATE|syscall.IN_MOVED_TO); err != nil {
		t.Fatalf("cannot watch %s: %v", root, err)
	}
	w.follow(".liveupd")
	w.done.Go(w.read)
	w.done.Go(func() { w.poll(poll) })
	t.Cleanup(func() { w.Stop() })
	return w
}

func (w *Watcher) add(rel string, mask uint32) error {
	wd, err := syscall.InotifyAddWatch(w.fd, filepath.Join(w.root, rel), mask|syscall.IN_ONLYDIR)
	if err != nil {
		return fmt.Errorf("cannot watch %s: %w", rel, err)
	}
	w.mu.Lock()
	w.watches[int32(wd)] = rel
	w.mu.Unlock()
	return nil
}

// transactions are the folders .liveupd/tx/ID, below the root.
func (w *Watcher) transactions() []string {
	dirs, _ := filepath.Glob(filepath.Join(w.root, ".liveupd/tx/*"))
	for i, dir := range dirs {
		dirs[i], _ = filepath.Rel(w.root, dir)
	}
	return dirs
}

// follow watches .liveupd, .liveupd/tx and each new transaction's folder as soon as it is there.
func (w *Watcher) follow(rel string) {
	if w.add(rel, syscall.IN_CREATE|syscall.IN_MOVED_TO) != nil {
		return // not there yet: its parent's event tells
	}
	switch strings.Count(rel, "/") {
	case 0:
		w.follow(".liveupd/tx")
	case 1:
		for _, dir := range w.transactions() {
			w.follow(dir)
		}
	case 2:
		if !w.old[rel] {
			w.state(rel)
		}
	}
}

var stateWord = regexp.MustCompile(`"state":"([a-z-]+)"`)

// readState is the state of one transaction, "" where it has none.
func readState(dir string) string {
	b, _ := os.ReadFile(filepath.Join(dir, "state"))
	if found := stateWord.FindSubmatch(b); found != nil {
		return string(found[1])
	}
	return ""
}

// State is the state of the newest transaction under root/.liveupd, "" where there is none.
func State(root string) string {
	dirs, _ := filepath.Glob(filepath.Join(root, ".liveupd/tx/*"))
	var newest time.Time
	state := ""
	for _, dir := range dirs {
		info, err := os.Stat(filepath.Join(dir, "state"))
		if err == nil && !info.ModTime().Before(newest) {
			newest, state = info.ModTime(), readState(dir)
		}
	}
	return state
}

func (w *Watcher) state(rel string) {
	if state := readState(filepath.Join(w.root, rel)); state != "" {
		w.record(Event{Time: time.Now(), Path: rel, State: state})
	}
}

func (w *Watcher) record(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	const enough = 100000
	if len(w.events) < enough {
		w.events = append(w.events, e)
	}
}

func (w *Watcher) read() {
	buffer := make([]byte, 256<<10)
	for {
		n, err := syscall.Read(w.fd, buffer)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for b := buffer[:n]; len(b) >= syscall.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			length := binary.NativeEndian.Uint32(b[12:])
			name := string(bytes.TrimRight(b[syscall.SizeofInotifyEvent:syscall.SizeofInotifyEvent+length], "\x00"))
			b = b[syscall.SizeofInotifyEvent+length:]
			if wd == w.endMark() && mask&syscall.IN_CREATE != 0 && name == endName {
				return
			}
			w.see(wd, mask, name)
		}
	}
}

func (w *Watcher) see(wd int32, mask uint32, name string) {
	w.mu.Lock()
	dir, known := w.watches[wd]
	if mask&syscall.IN_Q_OVERFLOW != 0 {
		w.lost = true
	}
	w.mu.Unlock()
	if !known || mask&(syscall.IN_IGNORED|syscall.IN_Q_OVERFLOW) != 0 {
		return
	}
	path := filepath.Join(dir, name)
	switch {
	case dir == ".":
		if name == ".liveupd" {
			w.follow(path)
		}
	case dir == ".liveupd":
		if name == "tx" {
			w.follow(path)
		}
	case dir == ".liveupd/tx":
		w.follow(path)
	case strings.HasPrefix(dir, ".liveupd/"):
		if name == "state" {
			w.state(dir)
		}
	default:
		w.record(Event{Time: time.Now(), Path: path, What: maskWords(mask)})
	}
}

func maskWords(mask uint32) string {
	words := []struct {
		bit  uint32
		word string
	}{
		{syscall.IN_MODIFY, "modify"},
		{syscall.IN_ATTRIB, "attrib"},
		{syscall.IN_CLOSE_WRITE, "close-write"},
		{syscall.IN_CREATE, "create"},
		{syscall.IN_DELETE, "delete"},
		{syscall.IN_MOVED_FROM, "moved-from"},
		{syscall.IN_MOVED_TO, "moved-to"},
		{syscall.IN_MOVE_SELF, "move-self"},
		{syscall.IN_DELETE_SELF, "delete-self"},
	}
	var out []string
	for _, w := range words {
		if mask&w.bit != 0 {
			out = append(out, w.word)
		}
	}
	return strings.Join(out, "+")
}

// poll compares chosen files again and again. inotify does not tell of a second link made
// to a file in an unwatched folder other than by "attrib"; stat does.
func (w *Watcher) poll(files []string) {
	type look struct {
		ino, nlink uint64
		ctime      syscall.Timespec
	}
	seen := map[string]look{}
	first := true
	for {
		for _, rel := range files {
			var st syscall.Stat_t
			if err := syscall.Lstat(filepath.Join(w.root, rel), &st); err != nil {
				if _, ok := seen[rel]; ok || first {
					w.record(Event{Time: time.Now(), Path: rel, What: "gone"})
					delete(seen, rel)
				}
				continue
			}
			now := look{st.Ino, uint64(st.Nlink), st.Ctim}
			if old, ok := seen[rel]; ok {
				what := ""
				switch {
				case old.ino != now.ino:
					what = "inode"
				case old.nlink != now.nlink:
					what = "nlink"
				case old.ctime != now.ctime:
					what = "ctime"
				}
				if what != "" {
					// What is seen while the state is still an early one happened in it
					// or before.
					w.record(Event{Time: time.Now(), Path: rel, What: what + " (polled while " + w.newState() + ")"})
				}
			}
			seen[rel] = now
		}
		first = false
		select {
		case <-w.ending:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// newState is the state of the newest transaction that began after the watcher.
func (w *Watcher) newState() string {
	state := "none"
	for _, dir := range w.transactions() {
		if s := readState(filepath.Join(w.root, dir)); !w.old[dir] && s != "" {
			state = s
		}
	}
	return state
}

// early are the states in which nobody may see a change.
var early = []string{"none", "staging"}

// endName is made in a folder of the watcher's own to wake its reader in order.
const endName = "end"

func (w *Watcher) endMark() int32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wd, rel := range w.watches {
		if rel == endName {
			return wd
		}
	}
	return -1
}

// Stop ends the watcher after all that happened before was read, and returns what it saw,
// in order. Later calls return the same.
func (w *Watcher) Stop() []Event {
	select {
	case <-w.ending:
	default:
		close(w.ending)
		dir, err := os.MkdirTemp("", "watcher-")
		if err != nil {
			w.t.Fatalf("cannot stop the watcher: %v", err)
		}
		defer os.RemoveAll(dir)
		wd, err := syscall.InotifyAddWatch(w.fd, dir, syscall.IN_CREATE)
		if err != nil {
			w.t.Fatalf("cannot stop the watcher: %v", err)
		}
		w.mu.Lock()
		w.watches[int32(wd)] = endName
		w.mu.Unlock()
		if err := os.WriteFile(filepath.Join(dir, endName), nil, 0o600); err != nil {
			w.t.Fatalf("cannot stop the watcher: %v", err)
		}
		w.done.Wait()
		syscall.Close(w.fd)
		if w.lost {
			w.t.Error("the watcher lost events: watch fewer folders")
		}
	}
	w.done.Wait()
	return w.events
}

// BeforeCommit stops the watcher and returns the changes that it saw before a new
// transaction reached its commit point. committed tells whether one did: where it is
// false, all changes are returned.
func (w *Watcher) BeforeCommit() (changes []Event, committed bool) {
	events := w.Stop()
	commit := slices.IndexFunc(events, func(e Event) bool { return e.State != "" && !slices.Contains(early, e.State) })
	for i, e := range events {
		if e.State != "" {
			continue
		}
		_, polled, _ := strings.Cut(e.What, "(polled while ")
		before := commit < 0 || i < commit
		if polled != "" {
			before = slices.Contains(early, strings.TrimSuffix(polled, ")"))
		}
		if before {
			changes = append(changes, e)
		}
	}
	return changes, commit >= 0
}
