package apt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// changes does every kind of thing to a tree; its times are set, so that two runs give the same.
const changes = `set -e
echo new >/etc/new
rm /etc/motd
mkdir -p /opt/a/b && echo x >/opt/a/b/c && chmod 2750 /opt/a && chown 33:33 /opt/a/b/c
mv /usr/share/doc/nginx /usr/share/doc/renamed
echo more >/usr/share/doc/renamed/more && rm /usr/share/doc/renamed/copyright
mv /usr/share/doc/renamed /usr/share/doc/again
rm -r /usr/share/doc/dpkg && mkdir /usr/share/doc/dpkg && echo y >/usr/share/doc/dpkg/y
rm /etc/issue && mkdir /etc/issue && echo z >/etc/issue/z
rm -r /usr/share/doc/cron && echo file >/usr/share/doc/cron
chmod 700 /usr/bin/perl
echo >>/usr/bin/perl5.36.0
chown 7:7 /usr/bin/tail && ln /usr/bin/tail /usr/bin/tail2
cp -a /usr/bin/true /usr/local/bin/t1 && ln /usr/local/bin/t1 /usr/local/bin/t2 && chmod 4755 /usr/local/bin/t2
ln -sf foo /etc/foolink && ln -sfn /nowhere /etc/os-release
mkfifo /opt/fifo
cat /etc/passwd >/etc/passwd.new && mv /etc/passwd.new /etc/passwd
touch -d 2020-02-02 /usr/bin/dpkg
printf 'same' >/etc/hostname.x && mv /etc/hostname.x /etc/hostname && chmod 644 /etc/hostname
i=0; while [ $i -lt 300 ]; do echo $i >/opt/a/f$i; i=$((i + 1)); done
mv /opt/a /opt/moved && mkdir /opt/a && mv /opt/moved/b /opt/a/b
find /etc /opt /usr -newer /etc/new -exec touch -h -d 2021-03-04 {} +
touch -d 2021-03-04 /etc/new
`

// A command in the sandbox leaves the root as it would have left it without one, and
// the rollback leaves nothing of it.
func TestExecIsNative(t *testing.T) {
	t.Parallel()
	root := folder(t, "small", nil)
	plain := filepath.Join(filepath.Dir(root), "plain")
	if out, err := exec.Command("cp", "-a", root, plain).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if out, err := exec.Command("chroot", plain, "/bin/sh", "-c", changes).CombinedOutput(); err != nil {
		t.Fatalf("the script: %v: %s", err, out)
	}
	before := tree(t, root)
	// Renamed folders and those with new names have other times.
	folders := regexp.MustCompile(`(mode=04\S+ \S+) mtime=\S+`)
	timeless := func(s machine.Snapshot) machine.Snapshot {
		out := machine.Snapshot{}
		for p, line := range s {
			out[p] = folders.ReplaceAllString(line, "$1")
		}
		return out
	}
	planned := here(t, root, "exec", "--plan", "/bin/sh", "-c", changes).Want(t, 0)
	same(t, "after --plan", before, tree(t, root), nil)
	done := here(t, root, "exec", "--yes", "/bin/sh", "-c", changes).Want(t, 0)
	same(t, "natively and in the sandbox", timeless(tree(t, plain)), timeless(tree(t, root)), nil)
	t.Logf("%+v", done.Plan.Changes)
	if planned.Plan.Changes != done.Plan.Changes {
		t.Errorf("the plan had %+v, the run %+v", planned.Plan.Changes, done.Plan.Changes)
	}
	if out := here(t, root, "verify").Want(t, 0); !strings.Contains(out.Stdout, "no path is recorded") {
		t.Errorf("verify compared nothing and does not say so: %s", out.Stdout)
	}
	here(t, root, "rollback").Want(t, 0)
	same(t, "after the rollback", before, tree(t, root), nil)

	// Who calls it says what others may read.
	private := exec.Command("/bin/sh", "-c", `umask 027; exec "$0" "$@"`, machine.Program(t, "liveupd"), "exec", "--root", root, "--yes", "/bin/sh", "-c", "echo x >/etc/private")
	if out, err := private.CombinedOutput(); err != nil {
		t.Fatalf("with a umask: %v: %s", err, out)
	}
	if n, err := os.Stat(filepath.Join(root, "etc/private")); err != nil || n.Mode().Perm() != 0o640 {
		t.Errorf("with a umask of 027 it made %v, %v", n, err)
	}
	here(t, root, "rollback").Want(t, 0)

	// Names that are no UTF-8 are told apart, in the plan and from each other's escaped form.
	bytes := here(t, root, "exec", "--yes", "/bin/sh", "-c", `printf x >"$(printf '/etc/a\377')"; printf x >"$(printf '/etc/a\376')"; printf x >'/etc/a\xff'; printf x >'/etc/a\x2d'`).Want(t, 0)
	var paths []string
	for _, p := range bytes.Plan.Paths {
		paths = append(paths, p.Path)
	}
	slices.Sort(paths)
	if want := []string{`/etc/a\x2d`, `/etc/a\x5cxff`, `/etc/a\xfe`, `/etc/a\xff`}; !slices.Equal(paths, want) {
		t.Errorf("the plan's paths are %q; want %q", paths, want)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/a\xff")); err != nil {
		t.Error(err)
	}
	here(t, root, "rollback").Want(t, 0)
	same(t, "after the rollback of names that are no UTF-8", before, tree(t, root), nil)
}

// What a command may not do in the sandbox. Each line fails, or the test does.
const escapes = `
date -s 2031-01-01
echo b >/proc/sysrq-trigger
echo 1 >/proc/sys/kernel/panic
mount -t tmpfs x /mnt
mount --bind /etc /mnt
mknod /dev/sda b 8 0 && head -c 1 /dev/sda
head -c 1 /proc/kcore
echo 1 >/sys/kernel/uevent_seqnum
test -e /run/systemd/private || test -e /run/dbus/system_bus_socket
test -e /.liveupd/tx
ls /proc | grep -Evx '[a-z].*' | grep -Evx '[1-9]|[1-9][0-9]|[1-9][0-9][0-9]'
grep -q . /proc/net/unix && tail -n +2 /proc/net/unix | grep @
reboot -f
kill -9 -- -1 && false
chroot /proc/1/root true && test /proc/1/root -ef /proc/2/root && test -e /.outside
unshare -m true
swapon /etc/passwd
hostname other && false
`

func TestExecIsConfined(t *testing.T) {
	t.Parallel()
	root := folder(t, "small", nil)
	before := tree(t, root)
	clock := time.Now()
	for line := range strings.Lines(escapes) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		out := here(t, root, "exec", "--plan", "/bin/sh", "-c", line)
		if out.Code == 0 && len(out.Plan.Paths) == 0 {
			t.Errorf("%s: worked\n%s", line, out.Stderr)
		}
	}
	if d := time.Since(clock); d < 0 || d > time.Hour {
		t.Errorf("the clock moved by %s", d)
	}
	same(t, "after all of them", before, tree(t, root), nil)
	// A daemon that is left behind ends with the command.
	mark := "liveupd-test-" + filepath.Base(filepath.Dir(root))
	here(t, root, "exec", "--plan", "/bin/sh", "-c", "setsid sleep 4711 "+mark+" & exec true").Want(t, 0)
	if out, _ := exec.Command("pgrep", "-f", mark).Output(); len(out) > 0 {
		t.Errorf("a process was left: %s", out)
	}
	lo := here(t, root, "exec", "--plan", "/bin/sh", "-c", "cat /sys/class/net/lo/operstate /sys/class/net/lo/flags; ls /sys/class/net")
	if lo.Code != 0 || !strings.Contains(lo.Stderr, "0x9") || strings.Contains(lo.Stderr, "eth") {
		t.Errorf("the network of the sandbox: %s", lo.Stderr)
	}
}

// A machine that is itself a container has fewer rights: what can be done with them is, and what
// cannot is told.
func TestExecWithFewerRights(t *testing.T) {
	t.Parallel()
	root := folder(t, "small", nil)
	for _, lacks := range []string{"-net_admin", "-net_admin,-mknod,-audit_write,-setfcap,-sys_time"} {
		cmd := exec.CommandContext(t.Context(), "setpriv", "--bounding-set", lacks, machine.Program(t, "liveupd"),
			"exec", "--json", "--root", root, "--plan", "/bin/sh", "-c", "echo new >/etc/new; cat /sys/class/net/lo/flags >&2")
		var stdout, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		_ = cmd.Run() // its exit code is looked at
		out := fixture.Parse(t, machine.Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}).Want(t, 0)
		if !slices.ContainsFunc(out.Plan.Warnings, func(w string) bool { return strings.Contains(w, "loopback") }) || !strings.Contains(out.Stderr, "0x8") {
			t.Errorf("without %s: %q, %s", lacks, out.Plan.Warnings, out.Stderr)
		}
	}
}

// Failing, being too slow, missing, interrupted or killed: nothing is changed and nothing left.
func TestExecFails(t *testing.T) {
	t.Parallel()
	root := folder(t, "small", nil)
	before := tree(t, root)
	failed := here(t, root, "exec", "/bin/sh", "-c", "echo said; echo x >/etc/x; exit 3").Want(t, 1)
	if !strings.Contains(failed.Error, "exit status 3") || !strings.Contains(failed.Error, "nothing was changed") || !strings.Contains(failed.Stderr, "said") {
		t.Errorf("a failing command: %q, %q", failed.Error, failed.Stderr)
	}
	slow := here(t, root, "exec", "--limit", "1s", "sleep", "60").Want(t, 1)
	if !strings.Contains(slow.Error, "did not end within 1s") {
		t.Errorf("a slow command: %q", slow.Error)
	}
	missing := here(t, root, "exec", "no-such-command").Want(t, 1)
	if !strings.Contains(missing.Error, "no-such-command") {
		t.Errorf("a missing command: %q", missing.Error)
	}
	if hidden := here(t, root, "exec", "/tmp/no-such-command").Want(t, 1); !strings.Contains(hidden.Hint, "a /tmp of its own") {
		t.Errorf("a command of the host's /tmp: %q, %q", hidden.Error, hidden.Hint)
	}
	folder := here(t, root, "exec", "/etc").Want(t, 1)
	if text := folder.Error + folder.Stderr; !strings.Contains(text, "/etc") || strings.Contains(text, "level=") {
		t.Errorf("a folder as a command: %q", text)
	}
	here(t, root, "exec").Want(t, 2)
	here(t, root, "exec", "--shell").Want(t, 2)
	limited := here(t, root, "exec", "--plan", "--memory", "64M", "--tasks", "20", "true").Want(t, 0)
	if slices.ContainsFunc(limited.Plan.Warnings, func(w string) bool { return strings.Contains(w, "without") }) {
		t.Logf("limits were not tried: %q", limited.Plan.Warnings)
	} else {
		here(t, root, "exec", "--memory", "64M", "tail", "/dev/zero").Want(t, 1)
		here(t, root, "exec", "--tasks", "20", "/bin/sh", "-c", "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i + 1)); done; wait").Want(t, 1)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		mark := "4712" + sig.String()[:4]
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, machine.Program(t, "liveupd"), "exec", "--root", root, "/bin/sh", "-c", "echo x >/etc/x; echo began >&2; : "+mark+"; sleep 60; :")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		for began := ""; !strings.Contains(began, "began"); {
			n, err := stderr.Read(buf)
			if err != nil {
				t.Fatalf("%s: the command did not begin: %v", sig, err)
			}
			began += string(buf[:n])
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		cancel()
		if sig != syscall.SIGKILL && cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%s: exit code %d", sig, cmd.ProcessState.ExitCode())
		}
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			out, _ := exec.Command("pgrep", "-f", ": "+mark).Output()
			if len(out) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: a process was left: %s", sig, out)
			}
		}
	}
	here(t, root, "recover").Want(t, 0)
	same(t, "after all of them", before, tree(t, root), nil)
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), root) {
		t.Errorf("a mount was left (%v):\n%s", err, mounts)
	}
	if left, err := filepath.Glob(filepath.Join(root, ".liveupd/sandbox/work*")); err != nil || len(left) > 0 {
		t.Errorf("a sandbox was left: %v %v", left, err)
	}
}

// Installers as they are used: make install, pip with a wheel, a script; on a booted
// machine with a read-only root.
func TestExecInstallers(t *testing.T) {
	t.Parallel()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: "bookworm", ReadOnly: true, Programs: machine.Programs(t), Customize: func(root string) error {
		return put(root, map[string]string{
			"srv/tool/Makefile":         "install:\n\tinstall -D -m 0755 tool $(DESTDIR)/usr/local/bin/tool\n\tinstall -D -m 0644 tool.service $(DESTDIR)/etc/systemd/system/tool.service\n",
			"srv/tool/tool":             "#!/bin/sh\nexec sleep infinity\n",
			"srv/tool/tool.service":     "[Service]\nExecStart=/usr/local/bin/tool\n[Install]\nWantedBy=multi-user.target\n",
			"srv/install.sh":            "#!/bin/sh\nset -e\nmkdir -p /opt/vendor/bin\nprintf '#!/bin/sh\\necho vendor\\n' >/opt/vendor/bin/vendor\nchmod +x /opt/vendor/bin/vendor\nln -sf /opt/vendor/bin/vendor /usr/bin/vendor\nuseradd --system vendor\nsystemctl enable cron\nsystemctl restart cron || :\n",
			"srv/wheel/greet.py":        "def hello():\n    return 'hello'\n",
			"srv/wheel/make.py":         wheel,
			"etc/systemd/system/.keep":  "",
			"usr/local/bin/make-broken": "#!/bin/sh\nrm -rf /usr/bin/perl /etc/nginx\nexit 1\n",
		})
	}})
	m.Shell("systemctl reset-failed")
	before, units := machine.TakeSnapshot(t, m.Image(), ".liveupd"), m.Units()
	run := func(args ...string) *fixture.Output {
		return fixture.Parse(t, m.Run(append([]string{"/usr/local/bin/liveupd", "exec", "--json"}, args...)...))
	}
	run("/usr/local/bin/make-broken").Want(t, 1)
	same(t, "after a broken installer", before, machine.TakeSnapshot(t, m.Image(), ".liveupd"), nil)

	inputOnMachine(t, m)

	out := run("/bin/sh", "/srv/install.sh").Want(t, 0)
	if got := m.Shell("vendor; id -un vendor"); got != "vendor\nvendor" {
		t.Errorf("after the script: %q", got)
	}
	if got := machine.Interrupted(units, m.Units()); len(got) > 0 {
		t.Errorf("the script interrupted %v; the plan said %v", got, out.Actions())
	}
	run("python3", "-B", "/srv/wheel/make.py").Want(t, 0)
	if got := m.Shell("python3 -c 'import greet; print(greet.hello())'"); got != "hello" {
		t.Errorf("the module says %q", got)
	}
	service := run("/bin/sh", "-c", "cd /srv/tool && install -D -m 0755 tool /usr/local/bin/tool && install -D -m 0644 tool.service /etc/systemd/system/tool.service && systemctl enable tool.service").Want(t, 0)
	if service.Actions()["tool.service"] != "start" || m.Unit("tool.service").ActiveState != "active" {
		t.Errorf("the installed service: plan %v, state %s", service.Actions(), m.Unit("tool.service").ActiveState)
	}
	for range 2 { // as many as are kept
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	}
	if got := m.Unit("tool.service").ActiveState; got == "active" {
		t.Error("the installed service runs after the rollback")
	}
}

// wheel does what pip does with a pure wheel, without pip: the roots have none.
const wheel = `import os, py_compile, shutil, sysconfig
to = "/usr/lib/python3/dist-packages"
shutil.copy("/srv/wheel/greet.py", to)
info = to + "/greet-1.0.dist-info"
os.makedirs(info)
open(info + "/METADATA", "w").write("Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n")
open(info + "/RECORD", "w").write("greet.py,,\n")
py_compile.compile(to + "/greet.py")
`

// put writes files into a root; "#!" makes a program.
func put(root string, files map[string]string) error {
	for name, content := range files {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(content), mode); err != nil {
			return err
		}
	}
	return nil
}
