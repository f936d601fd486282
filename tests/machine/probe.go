package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Prober tries all the while to change a read-only root, and counts how often it
// was refused. Anything but EROFS is a violation.
type Prober struct {
	stop chan struct{}
	done sync.WaitGroup

	mu         sync.Mutex
	refused    int
	violations []string
}

// Probe starts a prober on the folders of the machine as its PID 1 sees them, and
// as the host's mount of the same superblock shows them. It ends with the test.
func (m *Machine) Probe(folders ...string) *Prober {
	if len(folders) == 0 {
		folders = []string{"/", "/usr", "/etc", "/usr/lib/systemd/system"}
	}
	var paths []string
	for _, folder := range folders {
		paths = append(paths, m.Path(folder), filepath.Join(m.Image(), folder))
	}
	return Probe(m.t, paths...)
}

// Probe starts a prober on folders of the host.
func Probe(t testing.TB, folders ...string) *Prober {
	p := &Prober{stop: make(chan struct{})}
	p.done.Go(func() {
		for {
			for _, folder := range folders {
				p.try(folder)
			}
			select {
			case <-p.stop:
				return
			case <-time.After(200 * time.Microsecond):
			}
		}
	})
	t.Cleanup(func() { p.Stop() })
	return p
}

// try makes a file and sets the folder's times: the first needs a writable mount and
// superblock, and so does the second, for any owner.
func (p *Prober) try(folder string) {
	name := filepath.Join(folder, ".prober")
	fd, err := syscall.Open(name, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o600)
	if err == nil {
		syscall.Close(fd)
		_ = os.Remove(name)
	}
	p.note("creat", name, err)
	var st syscall.Stat_t
	if err := syscall.Stat(folder, &st); err != nil {
		p.note("stat", folder, err)
		return
	}
	p.note("utimes", folder, syscall.UtimesNano(folder, []syscall.Timespec{st.Atim, st.Mtim}))
}

func (p *Prober) note(call, path string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(err, syscall.EROFS) {
		p.refused++
		return
	}
	const enough = 20
	if len(p.violations) < enough {
		p.violations = append(p.violations, fmt.Sprintf("%s %s %s: %v", time.Now().Format("15:04:05.000"), call, path, err))
	}
}

// Stop ends the prober and returns how often it was refused with EROFS and the
// attempts that ended otherwise. Later calls return the same.
func (p *Prober) Stop() (refused int, violations []string) {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.done.Wait()
	return p.refused, p.violations
}
