package power

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const memory = "/dev/shm"

// makeDir makes a folder in memory that goes with the test. It is locked for as long as this test binary
// lives: the folders of those that were killed, with what they had mounted and attached, are removed here.
func makeDir(t *testing.T) string {
	t.Helper()
	const pattern = "liveupd-power-"
	old, err := filepath.Glob(filepath.Join(memory, pattern+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range old {
		// One that was made just now and is not locked yet is empty, and stays.
		if lock, err := lockDir(dir); err == nil {
			if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
				t.Logf("removes %s, which a killed test left", dir)
				if err := removeDir(dir); err != nil {
					t.Errorf("cannot remove what a killed test left: %v", err)
				}
			}
			lock.Close()
		}
	}
	dir, err := os.MkdirTemp(memory, pattern)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeDir(dir); err != nil {
			t.Error(err)
		}
		lock.Close()
	})
	return dir
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	return f, nil
}

// removeDir unmounts and detaches what belongs to a folder, and removes it.
func removeDir(dir string) error {
	var problems []error
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	problems = append(problems, err)
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, dir+"/") {
			problems = append(problems, unmount(point))
		}
	}
	loops, err := command("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")
	problems = append(problems, err)
	for line := range strings.Lines(loops) {
		if device, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(strings.TrimSpace(file), dir+"/") {
			_, err := command("losetup", "--detach", device)
			problems = append(problems, err)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
