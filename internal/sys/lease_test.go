package sys

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A file on which somebody holds a lease is opened when that is given up.
func TestOpenOfALeasedFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	lease := func(kind uintptr) syscall.Errno {
		const setLease = 1024
		_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, held.Fd(), setLease, kind)
		return errno
	}
	if errno := lease(syscall.F_WRLCK); errno != 0 {
		t.Skip("no leases here: ", errno)
	}
	// What is asked for first fails: the test shows something.
	if fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0); err != syscall.EAGAIN {
		t.Fatalf("open = %d, %v; want EAGAIN", fd, err)
	}
	given := make(chan syscall.Errno)
	go func() {
		time.Sleep(50 * time.Millisecond)
		given <- lease(syscall.F_UNLCK)
	}()
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f, err := OpenContent(root, "file")
	if errno := <-given; errno != 0 {
		t.Fatal(errno)
	}
	if err != nil {
		t.Fatalf("OpenContent: %v; want it to wait for the lease", err)
	}
	f.Close()
}
