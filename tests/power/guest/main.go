// Command guest is the first process of the virtual machines of the power suites. The kernel's command line says what it does:
//
//	power.fs=ext4|xfs|btrfs  the file system of /dev/vda
//	power.do=apply           mounts it, writes and fsyncs files of its own on it all the while, waits for a line
//	                         on the console and applies the update on /dev/vdb
//	power.do=recover         mounts it, runs liveupd-recover as an initrd does, and tells what tree it is
//
// What it tells it tells on the console. While it applies, it also writes a mark for each phase past the end of
// the file system on /dev/vda, unflushed, so that the log of the disk's writes tells which came before.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/power/tree"
)

const target = "/target"

// say prints a line on the console, which a line of the kernel may have begun.
func say(format string, args ...any) { fmt.Fprintf(os.Stdout, "\n"+format, args...) }

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a virtual machine, and nothing else")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "\nguest failed: %v\n", err)
	}
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF) // it comes back only where it fails
	time.Sleep(time.Hour)
}

func run() error {
	for _, m := range [][2]string{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := syscall.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("cannot mount %s: %w", m[1], err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	option := func(name string) string {
		for word := range strings.FieldsSeq(string(line)) {
			if value, ok := strings.CutPrefix(word, "power."+name+"="); ok {
				return value
			}
		}
		return ""
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := mount("/dev/vda", target, option("fs"), 0); err != nil {
		return err
	}
	switch do := option("do"); do {
	case "apply":
		err = apply()
	case "recover":
		err = recoverTree()
	default:
		err = fmt.Errorf("no power.do=%s", do)
	}
	syscall.Sync()
	return errors.Join(err, syscall.Unmount(target, 0))
}

func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	const finitModule = 313
	for name := range strings.FieldsSeq(string(order)) {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		empty := []byte{0}
		_, _, errno := syscall.Syscall(finitModule, f.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0)
		f.Close()
		if errno != 0 && errno != syscall.EEXIST {
			return fmt.Errorf("cannot load %s: %w", name, errno)
		}
	}
	return nil
}

// mount waits for the device: the kernel looks for it while the modules are loaded.
func mount(device, at, kind string, flags uintptr) error {
	var err error
	for range 200 {
		if err = syscall.Mount(device, at, kind, flags, ""); err == nil {
			return nil
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENXIO) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("cannot mount %s: %w", device, err)
}

// apply applies the update that is on the second disk.
func apply() error {
	if err := os.MkdirAll("/src", 0o755); err != nil {
		return err
	}
	if err := mount("/dev/vdb", "/src", "ext4", syscall.MS_RDONLY); err != nil {
		return err
	}
	marks, err := openMarks("/dev/vda")
	if err != nil {
		return err
	}
	busy, err := startWriter(filepath.Join(target, tree.Busy))
	if err != nil {
		return err
	}
	say("ready\n")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	marks.put("start")
	cmd := exec.Command("/bin/liveupd", "apply", "--root", target, "--source", "tree:/src", "--allow-unsigned", "--yes", "--json")
	cmd.Stderr = os.Stderr
	lines, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	follow(lines, marks)
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return err
	}
	code := cmd.ProcessState.ExitCode()
	marks.put(fmt.Sprintf("exit %d", code))
	say("exit %d\n", code)
	say("fsyncs %d\n", busy.end())
	return nil
}

// follow tells the phases of a run, when they are entered.
func follow(lines io.Reader, marks *marks) {
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(nil, 16<<20)
	last := ""
	for scanner.Scan() {
		var line struct {
			Type   string      `json:"message_type"`
			Phase  string      `json:"phase"`
			Step   change.Step `json:"step"`
			Result string      `json:"result"`
			Error  string      `json:"error"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			say("odd line %q\n", scanner.Text())
			continue
		}
		phase := line.Phase
		switch line.Type {
		case "plan":
			phase = "planned"
		case "step":
			phase = line.Step.Do + "-" + line.Result
		case "report", "error":
			say("report %s %s\n", line.Result, line.Error)
		}
		if phase != "" && phase != last {
			last = phase
			marks.put(phase)
			say("phase %s\n", phase)
		}
	}
}

// recoverTree does what an initrd does with a root before anything of it is used, twice.
func recoverTree() error {
	for range 2 {
		out, err := exec.Command("/bin/liveupd-recover", "--root", target, "--json").Output()
		if err != nil {
			return fmt.Errorf("liveupd-recover failed: %w: %s", err, out)
		}
		say("recovered %s\n", strings.TrimSpace(string(out)))
		found, err := tree.Describe(target)
		if err != nil {
			return err
		}
		say("digest %s\n", tree.Digest(found))
	}
	return nil
}

// writer is another program that writes and calls fsync all the while.
type writer struct {
	stop atomic.Bool
	done sync.WaitGroup
	n    int
}

func startWriter(dir string) (*writer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	w := &writer{}
	failed := 0
	w.done.Go(func() {
		for i := 0; !w.stop.Load(); i++ {
			err := writeOne(filepath.Join(dir, fmt.Sprint("file", i%50)), i)
			if err == nil {
				w.n++
			} else if failed++; failed < 3 {
				say("writer: %v\n", err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	return w, nil
}

// writeOne makes a file anew and makes it durable, which makes the file system write down what others
// have changed, too.
func writeOne(name string, i int) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%d %s", i, strings.Repeat("x", i%5000)); err != nil {
		return err
	}
	return f.Sync()
}

func (w *writer) end() int {
	w.stop.Store(true)
	w.done.Wait()
	return w.n
}

// marks writes on the disk itself, past the file system's end, around the page cache.
type marks struct {
	f      *os.File
	sector []byte // aligned, as O_DIRECT wants it
	at     int64
}

func openMarks(device string) (*marks, error) {
	f, err := os.OpenFile(device, os.O_WRONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	page, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	return &marks{f, page[:tree.MarkSize], end - tree.MarkSize}, nil
}

// put writes a mark. The suite finds out by itself where one is missing.
func (m *marks) put(text string) {
	clear(m.sector)
	copy(m.sector, tree.MarkMagic+text)
	if _, err := m.f.WriteAt(m.sector, m.at); err != nil {
		say("mark %q: %v\n", text, err)
	}
}
