package inspect

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

// lasting makes a directory that is not passed over as temporary.
func lasting(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp(cache, "liveupd-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if passedOver(dir + "/x") {
		t.Skipf("%s is a place of temporary files", dir)
	}
	return dir
}

func stale(t testing.TB, r StaleRequest, pids ...int) []change.Hit {
	t.Helper()
	res, err := Stale(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if res.Examined < len(pids) {
		t.Errorf("Examined = %d", res.Examined)
	}
	return only(res.Hits, pids)
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestStaleMapped(t *testing.T) {
	dir := lasting(t)
	lib := filepath.Join(dir, "lib.so")
	write(t, lib, "library")
	pid := mapper(t, lib, true)
	want(t, "untouched", stale(t, StaleRequest{}, pid))

	write(t, lib+".new", "library")
	rename(t, lib+".new", lib)
	want(t, "the same bytes in a new inode", stale(t, StaleRequest{}, pid))

	write(t, lib+".new", "LIBRARY")
	rename(t, lib+".new", lib)
	want(t, "other bytes of the same size", stale(t, StaleRequest{}, pid),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "replaced"})

	if err := os.Remove(lib); err != nil {
		t.Fatal(err)
	}
	want(t, "removed, where no programs live", stale(t, StaleRequest{}, pid))

	if err := os.Mkdir(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	want(t, "a directory instead", stale(t, StaleRequest{}, pid),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "replaced by a directory"})
}

// The old copy that a transaction keeps has a name, and no "(deleted)".
func TestStaleRetained(t *testing.T) {
	dir := lasting(t)
	lib, kept := filepath.Join(dir, "lib.so"), filepath.Join(dir, "kept")
	write(t, lib, "library")
	pid := mapper(t, lib, true)
	old := node(t, lib)
	rename(t, lib, kept)
	write(t, lib, "new library")
	retained := map[change.InodeKey]string{{Dev: old.Dev, Ino: old.Ino}: lib}
	want(t, "kept by a transaction", stale(t, StaleRequest{Retained: retained}, pid),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "replaced"})
	// Negative control: without the store's word the copy looks fresh.
	want(t, "kept by somebody else", stale(t, StaleRequest{}, pid))

	// A copy that the store has collected is known by where it lay.
	tx := filepath.Join(dir, ".liveupd/tx/0001/up")
	if err := os.MkdirAll(tx, 0o755); err != nil {
		t.Fatal(err)
	}
	rename(t, kept, filepath.Join(tx, "lib.so"))
	want(t, "in a transaction that is not known", stale(t, StaleRequest{}, pid),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "replaced"})
	if err := os.RemoveAll(filepath.Join(dir, ".liveupd")); err != nil {
		t.Fatal(err)
	}
	want(t, "collected", stale(t, StaleRequest{}, pid),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "replaced"})
}

func TestStaleExec(t *testing.T) {
	path := filepath.Join(lasting(t), "daemon")
	pid := program(t, path)
	want(t, "untouched", stale(t, StaleRequest{}, pid))
	write(t, path+".new", "another program")
	rename(t, path+".new", path)
	want(t, "replaced", stale(t, StaleRequest{}, pid), change.Hit{PID: pid, Kind: "exec", Path: path, Detail: "replaced"})
}

func TestStaleWrittenInPlace(t *testing.T) {
	lib := filepath.Join(lasting(t), "lib.so")
	write(t, lib, "library")
	time.Sleep(50 * time.Millisecond) // a process's start is known to 10 ms only
	pid := mapper(t, lib, true)
	write(t, lib, "LIBRARY")
	future := time.Now().Add(time.Minute)
	if err := os.Chtimes(lib, future, future); err != nil {
		t.Fatal(err)
	}
	res, err := Stale(t.Context(), StaleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "written in place", only(res.Hits, []int{pid}),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "written in place since the process began"})
	if !strings.Contains(strings.Join(res.Warnings, "\n"), lib) {
		t.Errorf("no warning names %s: %q", lib, res.Warnings)
	}
}

// Generated code, which never had a lasting name.
func TestStalePassesOver(t *testing.T) {
	jit := filepath.Join("/tmp", filepath.Base(t.TempDir())+"-jit.so")
	write(t, jit, "code")
	pid := mapper(t, jit, true)
	if err := os.Remove(jit); err != nil {
		t.Fatal(err)
	}
	want(t, "generated code", stale(t, StaleRequest{}, pid))

	for name, want := range map[string]bool{
		"/memfd:jit (deleted)": true, "/dev/zero (deleted)": true, "/SYSV00000000 (deleted)": true, "[vdso]": true,
		"/dev/shm/x": true, "/run/x": true, "": true, "/usr/lib/x.so (deleted)": false, "/opt/x": false,
		"/devices/x": false, "/home/u/bin/x": false,
	} {
		if got := passedOver(name); got != want {
			t.Errorf("passedOver(%q) = %v", name, got)
		}
	}
	for name, want := range map[string]bool{
		"/usr/lib/x.so": true, "/lib64/ld.so": true, "/lib": true, "/opt/a/b": true, "/home/u/x": false, "/var/lib/x": false, "/usrx": false,
	} {
		if got := programDirectory(name); got != want {
			t.Errorf("programDirectory(%q) = %v", name, got)
		}
	}
}

func TestOriginalPath(t *testing.T) {
	for in, want := range map[string]string{
		"/.liveupd/tx/20260101-1/up/usr/lib/x.so": "/usr/lib/x.so",
		"/var/.liveupd/tx/1/up/lib/x":             "/var/lib/x",
		"/.liveupd/tx/1/up/":                      "",
		"/.liveupd/tx/1":                          "",
		"/usr/lib/x.so":                           "",
	} {
		got, ok := originalPath(in)
		if got != want || ok != (want != "") {
			t.Errorf("originalPath(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
}

func BenchmarkStale(b *testing.B) {
	for b.Loop() {
		if _, err := Stale(b.Context(), StaleRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}

// What a container runs in a root of its own is its own matter; a process that is
// merely in a changed root is the host's.
func TestStaleInItsOwnRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: changes the root and makes a PID namespace")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox (run tests/setup/install.sh)")
	}
	for _, c := range []struct {
		name string
		args []string
		want int
	}{
		{"a container", []string{"unshare", "--pid", "--fork", "--kill-child", "chroot"}, 0},
		{"a changed root", []string{"chroot"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := lasting(t)
			at := filepath.Join(root, "busybox")
			write(t, at, string(busybox))
			cmd := exec.Command(c.args[0], append(c.args[1:], root, "/busybox", "sh", "-c", "echo ready; read line")...)
			run(t, cmd)
			if err := os.Remove(at); err != nil {
				t.Fatal(err)
			}
			write(t, at, string(busybox[:len(busybox)/2]))
			res, err := Stale(t.Context(), StaleRequest{})
			if err != nil {
				t.Fatal(err)
			}
			found := 0
			for _, h := range res.Hits {
				if h.Path == "/busybox" || h.Path == at {
					found++
				}
			}
			if found != c.want {
				t.Errorf("%d hits of %s; want %d", found, at, c.want)
			}
		})
	}
}
