package nsmount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
)

// The test binary is also the re-executed child, and the programs that tests
// start in other namespaces.
func TestMain(m *testing.M) {
	if ChildMain() {
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "child" {
		if err := testChild(os.Args[2:]); err != nil {
			panic(err)
		}
		return
	}
	m.Run()
}

func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("mounts file systems: not in the fast loop")
	}
	if os.Geteuid() != 0 {
		t.Skip("mounts take root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices: ", err)
	}
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
}

// image makes an image file with a file system that holds the directory from, if any.
func image(t *testing.T, fstype string) string {
	t.Helper()
	needRoot(t)
	needProgram(t, "mkfs."+fstype)
	file := filepath.Join(t.TempDir(), fstype+".img")
	size := map[string]int64{"ext4": 16 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}[fstype]
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+fstype, "-q", file)
	return file
}

// loop attaches an image to a loop device until the test ends.
func loop(t *testing.T, file string, opts ...string) string {
	t.Helper()
	dev := run(t, append(append([]string{"losetup", "--show", "-f"}, opts...), file)...)
	t.Cleanup(func() { run(t, "losetup", "-d", dev) })
	return dev
}

// mount mounts with mount(8) until the test ends.
func mount(t *testing.T, point string, args ...string) {
	t.Helper()
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, append(append([]string{"mount"}, args...), point)...)
	cleanMount(t, point)
}

func cleanMount(t *testing.T, point string) {
	t.Cleanup(func() {
		var err error
		for range 50 {
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

// mountRaw mounts a device so that only the file system is read-only and the
// mount has no flag of its own, which mount(8) cannot do.
func mountRaw(t *testing.T, point, fstype, dev string) {
	t.Helper()
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	mnt, err := (*sys.Kernel)(nil).NewMount(fstype, 0, sys.Option{Key: "source", Value: dev}, sys.Option{Key: "ro"})
	if err != nil {
		t.Fatal(err)
	}
	defer mnt.Close()
	at, err := sys.OpenRoot(point)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if err := (*sys.Kernel)(nil).AttachMount(mnt, at); err != nil {
		t.Fatal(err)
	}
	cleanMount(t, point)
}

// mountLine is what mountinfo says of the mount on point.
func mountLine(t *testing.T, point string) sys.Mount {
	t.Helper()
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found sys.Mount
	for _, m := range mounts {
		if m.Point == point {
			found = m
		}
	}
	if found.ID == 0 {
		t.Fatalf("nothing is mounted on %s", point)
	}
	return found
}

func openRoot(t *testing.T, dir string) *Root {
	t.Helper()
	r, err := Open(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func volumeOf(t *testing.T, r *Root, mount string) Volume {
	t.Helper()
	for _, v := range r.Volumes() {
		if v.Mount == mount {
			return v
		}
	}
	t.Fatalf("no volume %s among %v", mount, r.Volumes())
	return Volume{}
}

// tryWrite makes and removes a file: nil where that works.
func tryWrite(dir string) error {
	name := filepath.Join(dir, "probe")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	return os.Remove(name)
}

// prober writes to a directory all the time, and expects each try to end alike.
type prober struct {
	stop chan struct{}
	wg   sync.WaitGroup
	n    int
	bad  error
	ok   bool
}

// probe starts a prober; want is the errno of each try, 0 for success.
func probe(t *testing.T, dir string, want syscall.Errno) *prober {
	started := make(chan struct{})
	p := &prober{stop: make(chan struct{}), ok: true}
	p.wg.Go(func() {
		for {
			err := tryWrite(dir)
			if p.n++; p.n == 1 {
				close(started)
			}
			if want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
				p.ok, p.bad = false, err
				return
			}
			select {
			case <-p.stop:
				return
			default:
			}
		}
	})
	<-started
	t.Cleanup(func() { p.end(t) })
	return p
}

// end stops the prober and reports what it met.
func (p *prober) end(t *testing.T) {
	t.Helper()
	select {
	case <-p.stop:
		return
	default:
	}
	close(p.stop)
	p.wg.Wait()
	if !p.ok {
		t.Errorf("after %d tries a write ended with %v", p.n, p.bad)
	}
}

// writeFD writes through a volume's own directory.
func writeFD(dir *sys.FD) error {
	var k *sys.Kernel
	f, err := k.Create(dir, "written", 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(k.Write(f, []byte("x")), f.Close()); err != nil {
		return err
	}
	return k.Unlink(dir, "written")
}

// helper is a test program in a mount namespace of its own, copied from ours.
type helper struct {
	cmd    *exec.Cmd
	in     *os.File
	out    *os.File
	killed bool // by the test: no error
}

func startHelper(t *testing.T, args ...string) *helper {
	t.Helper()
	return startHelperAs(t, 0, args...)
}

// startHelperAs starts one in further new namespaces.
func startHelperAs(t *testing.T, cloneflags uintptr, args ...string) *helper {
	t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := Command(append([]string{"child"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, os.Stderr
	cmd.SysProcAttr.Cloneflags |= cloneflags
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	h := &helper{cmd: cmd, in: inW, out: outR}
	t.Cleanup(func() {
		h.in.Close()
		h.out.Close()
		if err := h.cmd.Wait(); err != nil && !h.killed {
			t.Errorf("helper %v: %v", args, err)
		}
	})
	return h
}

// ask sends a line and returns the answer.
func (h *helper) ask(t *testing.T, line string) string {
	t.Helper()
	if _, err := fmt.Fprintln(h.in, line); err != nil {
		t.Fatal(err)
	}
	return h.read(t)
}

func (h *helper) read(t *testing.T) string {
	t.Helper()
	var b []byte
	one := make([]byte, 1)
	for {
		if _, err := h.out.Read(one); err != nil {
			t.Fatalf("helper: %v after %q", err, b)
		}
		if one[0] == '\n' {
			return string(b)
		}
		b = append(b, one[0])
	}
}
