package layouts

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
)

func look(program string) (string, error) { return exec.LookPath(program) }

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return trim(string(out))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// disks is a folder for images, in memory where there is some.
func disks(t *testing.T) string {
	t.Helper()
	base := ""
	if _, err := os.Stat("/dev/shm"); err == nil {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "layouts")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sizes are sparse, in MiB: xfs makes none under 300.
var sizes = map[string]int64{"ext4": 96, "xfs": 320, "btrfs": 160}

// disk makes a file system on a loop device that is attached until the test ends.
func disk(t *testing.T, fstype string, options ...string) string {
	t.Helper()
	need(t, "mkfs."+fstype)
	file := filepath.Join(disks(t), "image")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, sizes[fstype]<<20))
	run(t, append(append([]string{"mkfs." + fstype, "-q"}, options...), file)...)
	return loop(t, file)
}

func loop(t *testing.T, file string, options ...string) string {
	t.Helper()
	dev := run(t, append(append([]string{"losetup", "--show", "-f"}, options...), file)...)
	t.Cleanup(func() { run(t, "losetup", "-d", dev) })
	return dev
}

// mount mounts with mount(8) until the test ends.
func mount(t *testing.T, point string, args ...string) {
	t.Helper()
	must(t, os.MkdirAll(point, 0o755))
	run(t, append(append([]string{"mount"}, args...), point)...)
	cleanMount(t, point)
}

func cleanMount(t *testing.T, point string) {
	t.Cleanup(func() {
		var err error
		for range 100 {
			if err = syscall.Unmount(point, 0); !errors.Is(err, syscall.EBUSY) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("umount %s: %v", point, err)
		}
	})
}

// flags are what mountinfo says of each mount below root: point, the mount's
// options and the file system's.
func flags(t *testing.T, root string) string {
	t.Helper()
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	must(t, err)
	var out []string
	for _, m := range mounts {
		if m.Inside(root) {
			out = append(out, m.Point+" "+m.Options+" "+m.SuperOptions)
		}
	}
	return strings.Join(out, "\n")
}
