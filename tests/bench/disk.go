package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// disk is an ext4 file system on a loop device, gone when it is closed.
type disk struct {
	Mount  string
	dir    string
	device string
}

// newDisk makes a file system of about size bytes. Its blocks are allocated in
// advance, so that no run pays for the growth of the image.
func newDisk(cache string, size int64) (*disk, error) {
	parent := filepath.Join(cache, "bench")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, "disk-")
	if err != nil {
		return nil, err
	}
	d := &disk{dir: dir, Mount: filepath.Join(dir, "mnt")}
	if err := d.make(size); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *disk) make(size int64) error {
	image := filepath.Join(d.dir, "image")
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fmt.Errorf("cannot allocate %d MB for %s: %w", size>>20, image, err)
	}
	if _, err := tool("mkfs.ext4", "-q", "-F", "-N", "1000000", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", image); err != nil {
		return err
	}
	if d.device, err = tool("losetup", "--find", "--show", image); err != nil {
		return err
	}
	if err := os.Mkdir(d.Mount, 0o755); err != nil {
		return err
	}
	_, err = tool("mount", "-t", "ext4", d.device, d.Mount)
	return err
}

// Close unmounts and removes the file system.
func (d *disk) Close() error {
	var problems []error
	err := syscall.Unmount(d.Mount, 0)
	// A mount namespace that is just being made (another machine boots) holds it for a moment.
	for range 100 {
		if !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(100 * time.Millisecond)
		err = syscall.Unmount(d.Mount, 0)
	}
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		problems = append(problems, fmt.Errorf("cannot unmount %s: %w", d.Mount, err))
	}
	if d.device != "" {
		_, err := tool("losetup", "--detach", d.device)
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return os.RemoveAll(d.dir)
}

// tool runs a program and returns what it printed.
func tool(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cannot run %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// settle writes all back, so that no contender pays for another's dirty pages.
func (b *bench) settle() error {
	_, err := tool("sync", "-f", b.dir)
	return err
}

// dropCaches empties the page, dentry and inode caches.
func (b *bench) dropCaches() error {
	if err := b.settle(); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0o600); err != nil {
		return fmt.Errorf("cannot drop the caches: %w", err)
	}
	time.Sleep(100 * time.Millisecond)
	return nil
}
