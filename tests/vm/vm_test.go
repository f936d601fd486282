package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const limit = 3 * time.Minute

// script runs as the machine's first process: it writes what it reads on the console to the disk, with
// a flush for each line.
const script = `
mount -t devtmpfs dev /dev 2>/dev/null
for m in $(cat /modules/order); do insmod $m; done
echo "ready 1"
n=0
while read line; do
	echo "$line" | dd of=/dev/vda bs=512 seek=$n conv=sync,fsync 2>/dev/null && echo "wrote $line" || echo "failed $line"
	n=$((n+1))
	[ "$line" = end ] && poweroff -f
done </dev/console
`

func busybox(t *testing.T) Config {
	t.Helper()
	Require(t)
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (run tests/setup/install.sh)")
	}
	kernel, _ := Kernel(t)
	initrd := Initramfs(t, Contents{
		Init: program, Programs: []string{program}, Modules: []string{"virtio_pci", "virtio_blk", "xfs"},
		Files: map[string][]byte{
			"etc/inittab": []byte("::sysinit:/bin/busybox sh /etc/script\n"),
			"etc/script":  []byte("/bin/busybox --install -s /bin\nstty -F /dev/console -echo\n" + script),
		},
	})
	return Config{Kernel: kernel, Initrd: initrd, Append: "quiet"}
}

func disk(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func holds(t *testing.T, disk, text string) bool {
	t.Helper()
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), text)
}

// A machine boots, reads and writes its console and its disk, logs what it writes, and powers off.
func TestMachine(t *testing.T) {
	t.Parallel()
	c := busybox(t)
	d := Drive{Path: disk(t), Log: filepath.Join(t.TempDir(), "log")}
	c.Drives = []Drive{d}
	start := time.Now()
	m := Start(t, c)
	if got := m.WaitFor(`ready (\d)`, limit); got[1] != "1" {
		t.Errorf("the group of what was waited for is %q", got[1])
	}
	t.Logf("up after %v", time.Since(start).Round(10*time.Millisecond))
	m.Send("hello\n")
	m.WaitFor(`wrote hello`, limit)
	m.Send("end\n")
	m.Wait(limit)
	if !holds(t, d.Path, "hello") {
		t.Error("the disk does not hold what was written")
	}
	if !holds(t, d.Log, "hello") || !holds(t, d.Log, "rhswfsj") {
		t.Error("the log does not hold what was written, or is none")
	}
	if _, err := m.Await("never", limit); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("waiting for a machine that has ended: %v", err)
	}
}

// A machine goes on from a saved state any number of times, its disk may fail from there on, and its
// plug may be pulled.
func TestSaved(t *testing.T) {
	t.Parallel()
	c := busybox(t)
	d := disk(t)
	c.Drives = []Drive{{Path: d}}
	m := Start(t, c)
	m.WaitFor(`ready`, limit)
	state := filepath.Join(t.TempDir(), "state")
	m.Save(state)
	m.Kill()

	c.Incoming = state
	m = Start(t, c)
	m.Send("again\n")
	m.WaitFor(`wrote again`, limit)
	m.Kill()
	if !holds(t, d, "again") {
		t.Error("the disk does not hold what was written")
	}

	// The second write fails, once.
	c.Drives[0].Debug = map[string]any{
		"set-state":    []any{map[string]any{"event": "pwritev", "state": 1, "new_state": 2}},
		"inject-error": []any{map[string]any{"event": "pwritev", "state": 2, "iotype": "write", "errno": 5, "once": true}},
	}
	m = Start(t, c)
	for _, step := range [][2]string{{"first", "wrote first"}, {"second", "failed second"}, {"third", "wrote third"}} {
		m.Send(step[0] + "\n")
		m.WaitFor(step[1], limit)
	}
	m.Send("end\n")
	m.Wait(limit)
}
