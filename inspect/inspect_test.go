package inspect

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// TestMain also is the program whose mappings the tests look at: it maps the
// file that LIVEUPD_TEST_MAP names and lives until its input ends.
func TestMain(m *testing.M) {
	if how := os.Getenv("LIVEUPD_TEST_LOOK"); how != "" {
		lookAs(how)
		return
	}
	name := os.Getenv("LIVEUPD_TEST_MAP")
	if name == "" {
		m.Run() // its result is the exit code when TestMain returns
		return
	}
	f, err := os.Open(name)
	if err != nil {
		panic(err)
	}
	prot := syscall.PROT_READ
	if os.Getenv("LIVEUPD_TEST_EXEC") != "" {
		prot |= syscall.PROT_EXEC
	}
	if _, err := syscall.Mmap(int(f.Fd()), 0, 4096, prot, syscall.MAP_PRIVATE); err != nil {
		panic(err)
	}
	f.Close()
	os.Stdout.WriteString("ready\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// run starts a command that writes a line when it is ready and ends with its input.
func run(t testing.TB, cmd *exec.Cmd) int {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v did not become ready: %q, %v", cmd.Args, line, err)
	}
	return cmd.Process.Pid
}

// mapper starts a process that maps a file.
func mapper(t testing.TB, file string, executable bool) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LIVEUPD_TEST_MAP="+file)
	if executable {
		cmd.Env = append(cmd.Env, "LIVEUPD_TEST_EXEC=1")
	}
	return run(t, cmd)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func node(t testing.TB, path string) *change.Node {
	t.Helper()
	dir, err := sys.OpenRoot(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	n, err := sys.Lstat(dir, filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func replace(t testing.TB, path string) change.Entry {
	return change.Entry{Path: path, Op: change.Replace, Old: node(t, path), New: &change.Node{Type: change.Regular}, Aspects: change.AspectContent}
}

// collect returns what Collect finds of the given processes, without what
// depends on the host that the test runs on.
func collect(t testing.TB, pids []int, entries ...change.Entry) []change.Hit {
	t.Helper()
	facts, err := Collect(t.Context(), Request{Delta: &change.Delta{Entries: entries}})
	if err != nil {
		t.Fatal(err)
	}
	return only(facts.Hits, pids)
}

func only(hits []change.Hit, pids []int) []change.Hit {
	var out []change.Hit
	for _, h := range hits {
		for _, pid := range pids {
			if h.PID == pid {
				h.Unit, h.UserUnit, h.Comm = "", "", ""
				out = append(out, h)
			}
		}
	}
	return out
}

func want(t testing.TB, what string, got []change.Hit, hits ...change.Hit) {
	t.Helper()
	if len(got) == 0 && len(hits) == 0 {
		return
	}
	if diff := cmp.Diff(hits, got); diff != "" {
		t.Errorf("%s: hits (-want +got):\n%s", what, diff)
	}
}

func TestCollectMapped(t *testing.T) {
	dir := t.TempDir()
	lib, other := filepath.Join(dir, "lib.so"), filepath.Join(dir, "other.so")
	write(t, lib, "library")
	write(t, other, "library") // the same content, another inode
	pid := mapper(t, lib, true)
	bystander := mapper(t, other, true)
	pids := []int{pid, bystander}
	hit := change.Hit{PID: pid, Kind: "mapped", Path: lib}

	entry := replace(t, lib)
	want(t, "replaced", collect(t, pids, entry), hit)
	removed := entry
	removed.Op, removed.New, removed.Aspects = change.Remove, nil, 0
	want(t, "removed", collect(t, pids, removed), hit)
	metadata := entry
	metadata.Op, metadata.Aspects = change.Metadata, change.AspectMode
	want(t, "metadata only", collect(t, pids, metadata))
	links := entry
	links.Aspects = change.AspectLinks
	want(t, "link topology only", collect(t, pids, links))

	// The word "(deleted)" and the name decide nothing.
	if err := os.Rename(lib, lib+".aside"); err != nil {
		t.Fatal(err)
	}
	want(t, "kept aside under another name", collect(t, pids, entry), hit)
	if err := os.Remove(lib + ".aside"); err != nil {
		t.Fatal(err)
	}
	write(t, lib, "new library")
	want(t, "the name holds another inode already", collect(t, pids, replace(t, lib)))
}

func TestCollectHardLinks(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.so"), filepath.Join(dir, "b.so")
	write(t, a, "library")
	if err := os.Link(a, b); err != nil {
		t.Fatal(err)
	}
	pidA, pidB := mapper(t, a, true), mapper(t, b, true)
	pids := []int{pidA, pidB}
	hitA := change.Hit{PID: pidA, Kind: "mapped", Path: a}
	hitB := change.Hit{PID: pidB, Kind: "mapped", Path: b}
	want(t, "one of two names", collect(t, pids, replace(t, a)), hitA)
	want(t, "both names", collect(t, pids, replace(t, a), replace(t, b)), hitA, hitB)
}

func TestCollectData(t *testing.T) {
	dir := t.TempDir()
	jar, text := filepath.Join(dir, "classes.jar"), filepath.Join(dir, "locale-archive")
	write(t, jar, "archive")
	write(t, text, "archive")
	pidJar, pidText := mapper(t, jar, false), mapper(t, text, false)
	pids := []int{pidJar, pidText}
	want(t, "data", collect(t, pids, replace(t, jar), replace(t, text)),
		change.Hit{PID: pidJar, Kind: "mapped", Path: jar, Detail: "mapped as data"})
}

// program copies cat under a name of its own and starts it.
func program(t testing.TB, path string) int {
	t.Helper()
	cat, err := filepath.EvalSymlinks("/bin/cat")
	if err != nil {
		t.Skip(err)
	}
	content, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(content))
	cmd := exec.Command("/bin/sh", "-c", `echo ready; exec "$0"`, path)
	pid := run(t, cmd)
	// sh executes it after its line.
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if exe, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); exe == path {
			return pid
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%s was not executed", path)
	return 0
}

func TestCollectExec(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon")
	pid := program(t, path)
	want(t, "executable", collect(t, []int{pid}, replace(t, path)), change.Hit{PID: pid, Kind: "exec", Path: path})
}

// Processes come and go while they are looked at.
func TestCollectWhileProcessesEnd(t *testing.T) {
	lib := filepath.Join(t.TempDir(), "lib.so")
	write(t, lib, "library")
	pid := mapper(t, lib, true)
	ctx, cancel := context.WithCancel(t.Context())
	churn := make(chan struct{})
	go func() {
		defer close(churn)
		for ctx.Err() == nil {
			_ = exec.Command("/bin/true").Run()
		}
	}()
	for range 20 {
		want(t, "under churn", collect(t, []int{pid}, replace(t, lib)), change.Hit{PID: pid, Kind: "mapped", Path: lib})
	}
	cancel()
	<-churn
	facts, err := Collect(ctx, Request{Delta: &change.Delta{Entries: []change.Entry{replace(t, lib)}}})
	if err == nil {
		t.Errorf("Collect() with an ended context = %+v", facts)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces")
	}
}

func TestCollectContainer(t *testing.T) {
	needRoot(t)
	lib := filepath.Join(t.TempDir(), "lib.so")
	write(t, lib, "library")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LIVEUPD_TEST_MAP="+lib, "LIVEUPD_TEST_EXEC=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	pid := run(t, cmd)
	want(t, "a PID namespace that shares the file", collect(t, []int{pid}, replace(t, lib)),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Container: true})
}

func TestCollectNamespaces(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	paths := map[string]string{}
	for _, name := range []string{"under", "bound", "target", "gone", "cover"} {
		paths[name] = filepath.Join(dir, name)
		write(t, paths[name], name)
	}
	sub := filepath.Join(dir, "sub")
	if err := os.MkdirAll(filepath.Join(sub, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := `mount --make-rprivate / && mount --bind "$1/cover" "$1/under" && mount --bind "$1/bound" "$1/target" &&
		mount --bind "$1/sub" "$1/sub" && mount -t tmpfs tmpfs "$1/sub/deep" && echo ready && exec cat`
	ns := run(t, exec.Command("unshare", "-m", "/bin/sh", "-c", script, "sh", dir))
	plain := run(t, exec.Command("unshare", "-m", "/bin/sh", "-c", "echo ready && exec cat"))
	pids := []int{ns, plain}

	hit := func(path, detail string) change.Hit {
		return change.Hit{PID: ns, Kind: "namespace", Path: path, Detail: detail}
	}
	want(t, "something mounted upon it", collect(t, pids, replace(t, paths["under"])),
		hit(paths["under"], "something is mounted upon it in the unit's mount namespace"))
	want(t, "bound elsewhere", collect(t, pids, replace(t, paths["bound"])),
		hit(paths["bound"], "it is bound to "+paths["target"]+" in the unit's mount namespace"))
	want(t, "no mount near it", collect(t, pids, replace(t, paths["gone"])))
	deep := change.Entry{Path: filepath.Join(sub, "deep"), Op: change.Remove, Old: node(t, filepath.Join(sub, "deep"))}
	want(t, "a mount point below a bind mount", collect(t, pids, deep),
		hit(deep.Path, "something is mounted upon it in the unit's mount namespace"))
}

func TestCollectEmpty(t *testing.T) {
	facts, err := Collect(t.Context(), Request{Own: []string{"caller.scope"}})
	if err != nil {
		t.Fatal(err)
	}
	if facts.Running || len(facts.Hits) != 0 || !strings.Contains(strings.Join(facts.Own, " "), "caller.scope") {
		t.Errorf("Collect() = %+v", facts)
	}
}

// A btrfs subvolume has a device of its own, which mappings do not show. The
// same inode number in another subvolume is another file.
func TestCollectBtrfsSubvolumes(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		t.Skip("needs mkfs.btrfs")
	}
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	tool := func(argv ...string) {
		t.Helper()
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s", argv, err, out)
		}
	}
	tool("truncate", "-s", "128M", image)
	tool("mkfs.btrfs", "-q", image)
	tool("mount", "-o", "loop", image, mnt)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	var libs []string
	for _, name := range []string{"a", "b"} {
		sub := filepath.Join(mnt, name)
		tool("btrfs", "subvolume", "create", sub)
		libs = append(libs, filepath.Join(sub, "lib.so"))
		write(t, libs[len(libs)-1], "library")
	}
	a, b := node(t, libs[0]), node(t, libs[1])
	if a.Ino != b.Ino || a.Dev == b.Dev {
		t.Skipf("the subvolumes' files are %d:%d and %d:%d", a.Dev, a.Ino, b.Dev, b.Ino)
	}
	// Both end before the unmount: cleanups run last first.
	pidA, pidB := mapper(t, libs[0], true), mapper(t, libs[1], true)
	want(t, "one subvolume's file", collect(t, []int{pidA, pidB}, replace(t, libs[0])),
		change.Hit{PID: pidA, Kind: "mapped", Path: libs[0]})
}

func BenchmarkCollect(b *testing.B) {
	lib := filepath.Join(b.TempDir(), "lib.so")
	write(b, lib, "library")
	for range 100 {
		mapper(b, lib, true)
	}
	delta := &change.Delta{Entries: []change.Entry{replace(b, lib)}}
	for b.Loop() {
		if _, err := Collect(b.Context(), Request{Delta: delta}); err != nil {
			b.Fatal(err)
		}
	}
}
