package nsmount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/internal/sys"
)

// machine is a small root on loop devices with a volume of its own on /var and
// a tmpfs on /var/log, read-only, with an update staged.
type machine struct {
	dir  string
	root *Root
	opts ViewOptions
}

// newMachine makes one whose commands are the static busybox, which a view can
// run without anything else.
func newMachine(t *testing.T) *machine {
	t.Helper()
	needRoot(t)
	box := busybox(t)
	dir := filepath.Join(t.TempDir(), "m")
	dev, varDev := loop(t, image(t, "ext4")), loop(t, image(t, "ext4"))
	mount(t, dir, dev)
	for _, d := range []string{"bin", "etc/app/gone.d", "var", "run", "tmp", "proc", "sys", "dev", ".liveupd/tx/1/up/etc/app", ".liveupd/tx/1/work"} {
		mkdir(t, dir+"/"+d)
	}
	run(t, "cp", box, dir+"/bin/busybox")
	for _, applet := range []string{"sh", "cat", "ls", "echo", "test", "mkdir", "sleep", "kill", "head", "id", "env", "mount", "mknod", "stat", "umount", "touch", "rm", "chmod", "grep", "dd", "tr"} {
		if err := os.Symlink("busybox", dir+"/bin/"+applet); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir+"/etc/app/conf", "old")
	write(t, dir+"/etc/app/removed", "old")
	write(t, dir+"/etc/app/gone.d/file", "old")
	write(t, dir+"/etc/app/same", "same")
	write(t, dir+"/.liveupd/secret", "secret")
	if err := os.Chmod(dir+"/.liveupd", 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, dir+"/var", varDev)
	for _, d := range []string{"log", "lib", ".liveupd/tx/1/up/lib", ".liveupd/tx/1/work"} {
		mkdir(t, dir+"/var/"+d)
	}
	write(t, dir+"/var/log/under", "hidden on the live root")
	mount(t, dir+"/var/log", "-t", "tmpfs", "tmpfs")
	write(t, dir+"/var/log/live.log", "live")
	mount(t, dir+"/run", "-t", "tmpfs", "tmpfs")
	mkdir(t, dir+"/run/app/deep")
	mkdir(t, dir+"/run/systemd/resolve")
	if err := os.Chmod(dir+"/run/app", 0o710); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\n")
	if err := os.Symlink("../run/systemd/resolve/resolv.conf", dir+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../run", dir+"/var/run"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/run/app/hostname", "covered")
	write(t, dir+"/etc/hostname", "hidden")
	run(t, "mount", "--bind", dir+"/run/app/hostname", dir+"/etc/hostname")
	cleanMount(t, dir+"/etc/hostname")
	ln, err := net.Listen("unix", dir+"/run/systemd/private")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })

	up := dir + "/.liveupd/tx/1/up"
	write(t, up+"/etc/app/conf", "new")
	write(t, up+"/etc/app/added", "added")
	whiteout(t, up+"/etc/app/removed")
	whiteout(t, up+"/etc/app/gone.d")
	write(t, dir+"/var/.liveupd/tx/1/up/lib/state", "new")

	run(t, "mount", "-o", "remount,ro", dir)
	run(t, "mount", "-o", "remount,bind,ro", dir+"/var")
	m := &machine{dir: dir, root: openRoot(t, dir)}
	if err := m.root.MakeWritable(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { restore(t, m.root) })
	m.opts.Root = m.root
	for _, v := range m.root.Volumes() {
		u := ViewUpper{Mount: v.Mount}
		for name, fd := range map[string]**sys.FD{"up": &u.Up, "work": &u.Work} {
			if *fd, err = sys.OpenAt(v.Dir, ".liveupd/tx/1/"+name, sys.OpenRead|sys.OpenDir, sys.ResolveBeneath); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { (*fd).Close() })
		}
		m.opts.Uppers = append(m.opts.Uppers, u)
	}
	return m
}

// busybox finds a static one.
func busybox(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(name); err == nil {
			return name
		}
	}
	t.Skip("no static busybox (apt-get install busybox-static)")
	return ""
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func whiteout(t *testing.T, name string) {
	t.Helper()
	if err := syscall.Mknod(name, syscall.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) view(t *testing.T) *View {
	t.Helper()
	v, err := OpenView(t.Context(), nil, m.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// snapshot describes all below a directory, with change times.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	return run(t, "find", dir, "-xdev", "-printf", "%P %y %m %U %G %s %T@ %C@ %n %l\n")
}

func TestView(t *testing.T) {
	m := newMachine(t)
	before := snapshot(t, m.dir) + snapshot(t, m.dir+"/var") + snapshot(t, m.dir+"/var/log") + snapshot(t, m.dir+"/run")
	v := m.view(t)
	tests := []struct {
		name, script, want string
	}{
		{"a replaced file is new", "cat /etc/app/conf", "new"},
		{"an added file is there", "cat /etc/app/added", "added"},
		{"others stay", "cat /etc/app/same", "same"},
		{"a removed file is absent", "ls /etc/app", "added\nconf\nsame\n"},
		{"a separate volume", "cat /var/lib/state", "new"},
		{"what hides a path", "ls /var/log", "live.log\n"},
		{"our own is masked", "ls -a /.liveupd /var/.liveupd; stat -c %a /.liveupd", "/.liveupd:\n.\n..\n\n/var/.liveupd:\n.\n..\n700\n"},
		{"no sockets", "ls /run/systemd /var/run/systemd", "/run/systemd:\nresolve\n\n/var/run/systemd:\nresolve\n"},
		{"directories of /run", "stat -c %a /run/app /run/app/deep /run/lock", "710\n755\n1777\n"},
		{"resolv.conf", "cat /etc/resolv.conf", "nameserver 192.0.2.1\n"},
		{"logs and pid files", "echo x >/var/log/new.log && echo 1 >/run/app/pid && echo x >/tmp/t && echo x >/etc/app/conf && echo x >/var/lib/w && rm /etc/app/same && cat /etc/app/conf", "x\n"},
		{"what an earlier program wrote is gone", "cat /etc/app/conf; ls /var/lib /tmp /run/app", "new/run/app:\ndeep\n\n/tmp:\nerr\n\n/var/lib:\nstate\n"},
		{"processes", "for p in /proc/[0-9]*; do cat $p/comm; done | head -n 1; kill -0 " + pidOf(t) + " 2>/dev/null || echo none", "exe\nnone\n"},
		{"devices", "ls /dev; echo x >/dev/null; head -c 3 /dev/zero | tr '\\0' z", "fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\nzzz"},
		{"environment", "env | grep -v -e PWD -e SHLVL -e _=", "PATH=" + viewPath + "\nLC_ALL=C.UTF-8\nHOME=/root\n"},
		{"descriptors", "ls /proc/self/fd", "0\n1\n2\n3\n"},
		{"kernel parameters", "echo x >/proc/sys/kernel/domainname; echo x >/proc/sysrq-trigger; mkdir /sys/x; echo done", "done\n"},
		{"no new privileges", "grep NoNewPrivs /proc/self/status; grep CapBnd /proc/self/status; grep CapPrm /proc/self/status", "NoNewPrivs:\t1\n" + capabilities(t)},
		{"a file that hides a file", "cat /etc/hostname", "covered"},
		{"no mounts", "umount /.liveupd; mount -t tmpfs x /tmp; mknod /tmp/sda b 8 0; echo done", "done\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := v.Run(t.Context(), []string{"/bin/sh", "-c", "{ " + tt.script + "; } 2>/tmp/err"})
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got := string(out)
			if tt.name == "environment" {
				got, tt.want = sortLines(got), sortLines(tt.want)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	after := snapshot(t, m.dir) + snapshot(t, m.dir+"/var") + snapshot(t, m.dir+"/var/log") + snapshot(t, m.dir+"/run")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the live root and the upper (-before +after):\n%s", diff)
	}
	if mounted(t, "/.liveupd") || strings.Contains(run(t, "cat", "/proc/self/mountinfo"), "overlay rw,lowerdir=a0") {
		t.Error("a mount of the view is left")
	}
}

func sortLines(s string) string {
	return strings.Join(slices.Sorted(strings.SplitSeq(strings.TrimSpace(s), "\n")), "\n")
}

// capabilities is what a validator is left with: of ours, the allowed ones.
func capabilities(t *testing.T) string {
	t.Helper()
	_, hex, _ := strings.Cut(run(t, "grep", "CapBnd", "/proc/self/status"), "\t")
	caps, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	var allowed uint64
	for _, c := range sys.ValidatorCapabilities() {
		allowed |= 1 << c
	}
	if allowed&(1<<21) != 0 {
		t.Error("validators get CAP_SYS_ADMIN")
	}
	return fmt.Sprintf("CapBnd:\t%016x\nCapPrm:\t%016x\n", caps&allowed, caps&allowed)
}

func pidOf(t *testing.T) string {
	t.Helper()
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestViewErrors(t *testing.T) {
	m := newMachine(t)
	v := m.view(t)
	out, err := v.Run(t.Context(), []string{"/bin/sh", "-c", "echo to stdout; echo to stderr >&2; exit 7"})
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Code != 7 {
		t.Errorf("exit 7: %v", err)
	}
	if got := string(out); got != "to stdout\nto stderr\n" {
		t.Errorf("output %q", got)
	}
	if _, err := v.Run(t.Context(), []string{"/bin/sh", "-c", "kill -9 $$"}); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("killed: %v", err)
	}
	for _, name := range []string{"nosuchprogram", "/bin/nosuchprogram"} {
		if _, err := v.Run(t.Context(), []string{name}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v; want fs.ErrNotExist", name, err)
		}
	}
	out, err = v.Run(t.Context(), []string{"dd", "if=/dev/zero", "bs=1024", "count=300"})
	if err != nil || len(out) > maxOutput || !strings.Contains(string(out), "bytes more]") {
		t.Errorf("300 KiB of output: %d bytes, %v", len(out), err)
	}
	if _, err := v.Run(t.Context(), nil); err == nil {
		t.Error("an empty command was run")
	}
}

// At the deadline all that the program started is killed, also what left its session.
func TestViewDeadline(t *testing.T) {
	m := newMachine(t)
	v := m.view(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	mark := "86412"
	begin := time.Now()
	_, err := v.Run(ctx, []string{"sh", "-c", "(sleep " + mark + " &) ; sleep " + mark})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run() = %v; want the deadline", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Run took %v", took)
	}
	// What is left behind by one that ends in time is killed too.
	if _, err := v.Run(t.Context(), []string{"sh", "-c", "sleep " + mark + " >/dev/null 2>&1 &"}); err != nil {
		t.Error(err)
	}
	list, err := pids()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range list {
		cmd, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err == nil && strings.Contains(string(cmd), mark) {
			t.Errorf("process %d is left: %q", pid, cmd)
		}
	}
}

// When the parent dies, the view does.
func TestViewParentDies(t *testing.T) {
	m := newMachine(t)
	mark := "86413"
	h := startHelper(t, "view", m.dir, mark)
	if got := h.read(t); got != "started" {
		t.Fatal(got)
	}
	deadline := time.Now().Add(10 * time.Second)
	running := func() bool {
		list, err := pids()
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range list {
			cmd, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
			if err == nil && strings.HasPrefix(string(cmd), "sleep\x00"+mark) {
				return true
			}
		}
		return false
	}
	for !running() {
		if time.Now().After(deadline) {
			t.Fatal("the program does not start")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.killed = true
	for running() {
		if time.Now().After(deadline) {
			t.Fatal("the program outlives the caller")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A root that is an overlay leaves no depth for the view.
func TestViewUnsupported(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	mount(t, base, "-t", "tmpfs", "tmpfs")
	for _, d := range []string{"l1", "l2", "u", "w", "u2", "w2", "mid", "root"} {
		mkdir(t, base+"/"+d)
	}
	mkdir(t, base+"/l1/tx/up")
	mkdir(t, base+"/l1/tx/work")
	mount(t, base+"/mid", "-t", "overlay", "-o", "lowerdir="+base+"/l1,upperdir="+base+"/u,workdir="+base+"/w", "overlay")
	mount(t, base+"/root", "-t", "overlay", "-o", "lowerdir="+base+"/mid,upperdir="+base+"/u2,workdir="+base+"/w2", "overlay")
	r := openRoot(t, base+"/root")
	_, err := OpenView(t.Context(), nil, ViewOptions{Root: r})
	if _, ok := errors.AsType[*UnsupportedError](err); !ok {
		t.Errorf("OpenView() = %v; want an UnsupportedError", err)
	}
}

// Disks come and go while a view is used; what is staged has to stay.
func TestViewMountsChange(t *testing.T) {
	m := newMachine(t)
	disk := loop(t, image(t, "ext4"))
	v := m.view(t)
	mkdir(t, m.dir+"/var/log/disk")
	run(t, "mount", disk, m.dir+"/var/log/disk")
	run(t, "mount", disk, m.dir+"/tmp")
	script := []string{"sh", "-c", "cat /etc/app/conf /var/lib/state"}
	for _, when := range []string{"with a disk more", "with a disk less"} {
		if out, err := v.Run(t.Context(), script); err != nil || string(out) != "newnew" {
			t.Errorf("%s: Run() = %q, %v", when, out, err)
		}
		if when == "with a disk more" {
			run(t, "umount", m.dir+"/var/log/disk", m.dir+"/tmp")
		}
	}
	mount(t, m.dir+"/var", "-t", "tmpfs", "tmpfs")
	if _, err := v.Run(t.Context(), script); err == nil || !strings.Contains(err.Error(), "/var") {
		t.Errorf("with another /var: %v; want a refusal", err)
	}
}

// What was mounted over a path and then removed from where it lay cannot be shown, and
// bars nothing: a bound file that was replaced by a rename is like this.
func TestViewOfRemovedSources(t *testing.T) {
	m := newMachine(t)
	mkdir(t, m.dir+"/var/log/source/dir")
	write(t, m.dir+"/var/log/source/file", "bound")
	run(t, "mount", "--bind", m.dir+"/var/log/source/file", m.dir+"/etc/app/same")
	cleanMount(t, m.dir+"/etc/app/same")
	mount(t, m.dir+"/tmp", "--bind", m.dir+"/var/log/source/dir")
	run(t, "rm", "-r", m.dir+"/var/log/source")
	if out, err := m.view(t).Run(t.Context(), []string{"cat", "/etc/app/same"}); err != nil || string(out) != "same" {
		t.Errorf("Run() = %q, %v; want what lies beneath", out, err)
	}
}

// The machine that the tests run on has a view too, whatever is mounted there.
func TestViewOfThisMachine(t *testing.T) {
	needRoot(t)
	v, err := OpenView(t.Context(), nil, ViewOptions{Root: openRoot(t, "/")})
	if _, ok := errors.AsType[*UnsupportedError](err); ok {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := v.Run(t.Context(), []string{"sh", "-c", "touch /etc/liveupd-test /var/lib/liveupd-test && id -u"})
	if err != nil || string(out) != "0\n" {
		t.Errorf("Run() = %q, %v", out, err)
	}
	for _, name := range []string{"/etc/liveupd-test", "/var/lib/liveupd-test"} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s got out of the view: %v", name, err)
		}
	}
}
