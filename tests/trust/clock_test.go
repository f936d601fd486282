// Package trust tests, on a machine whose clock stands in 1970, that what has expired stays so.
package trust

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/vm"
)

const limit = 3 * time.Minute

// script runs as the machine's first process.
const script = `/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev 2>/dev/null
mount -t proc proc /proc
mount -t tmpfs tmp /mnt
mkdir -p /mnt/root/opt
date -s @100 >/dev/null
echo "the year is $(date +%Y)"
liveupd key add /in/ops.pub --root /mnt/root
for u in bygone recent lapsed; do
	liveupd apply --yes --root /mnt/root --source tree:/in/$u
	echo "$u exits $?"
done
echo "it holds $(cat /mnt/root/opt/app/file)"
poweroff -f
`

func TestClockIn1970(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: updates keep owners")
	}
	vm.Require(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (run tests/setup/install.sh)")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "liveupd")
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run("go", "build", "-trimpath", "-buildvcs=auto", "-o", program, "github.com/liveupd/liveupd/cmd/liveupd")
	info, err := exec.CommandContext(t.Context(), "go", "version", "-m", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	stamped := strings.Contains(string(info), "vcs.time=")
	t.Logf("the program knows when it was made: %v", stamped)

	in := filepath.Join(dir, "in")
	if err := os.Mkdir(in, 0o755); err != nil {
		t.Fatal(err)
	}
	run(program, "keygen", filepath.Join(in, "ops"), "--no-password")
	for _, u := range []struct{ name, sequence, signed, expires string }{
		{"bygone", "1", "2019-01-01T00:00:00Z", "2020-01-01T00:00:00Z"}, // before this program
		{"recent", "2", "2100-01-01T00:00:00Z", "2900-01-01T00:00:00Z"},
		{"lapsed", "3", "2080-01-01T00:00:00Z", "2090-01-01T00:00:00Z"}, // before what was seen
	} {
		file := filepath.Join(in, u.name, "opt/app/file")
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(u.name), 0o644); err != nil {
			t.Fatal(err)
		}
		run(program, "sign", filepath.Join(in, u.name), "--key", filepath.Join(in, "ops.key"),
			"--name", "app", "--sequence", u.sequence, "--time", u.signed, "--expires", u.expires)
	}
	files := map[string][]byte{
		"etc/inittab": []byte("::sysinit:/bin/busybox sh /etc/script\n"), "etc/script": []byte(script),
	}
	if err := filepath.WalkDir(in, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files["in/"+strings.TrimPrefix(path, in+"/")] = b
		return err
	}); err != nil {
		t.Fatal(err)
	}
	kernel, _ := vm.Kernel(t)
	m := vm.Start(t, vm.Config{
		Kernel: kernel, Append: "quiet",
		Initrd: vm.Initramfs(t, vm.Contents{Init: busybox, Programs: []string{busybox, program}, Files: files}),
	})
	m.WaitFor(`the year is 1970`, limit)
	if stamped {
		m.WaitFor(`expired on 2020-01-01 00:00:00 UTC, and it is 20\d\d-.* by the age of this program`, limit)
		m.WaitFor(`bygone exits 6`, limit)
	} else {
		m.WaitFor(`bygone exits 0`, limit) // nothing tells it better
	}
	m.WaitFor(`recent exits 0`, limit)
	m.WaitFor(`expired on 2090-01-01 00:00:00 UTC, and it is 2100-01-01 00:00:00 UTC by the newest update that was seen`, limit)
	m.WaitFor(`lapsed exits 6`, limit)
	m.WaitFor(`it holds recent`, limit)
	m.Wait(limit)
}
