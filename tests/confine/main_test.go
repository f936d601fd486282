package confine

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/sandbox"
	"github.com/liveupd/liveupd/tests/machine"
)

// inside names the folder of the child that stands for the host.
const inside = "LIVEUPD_CONFINE"

// host is the machine that a sandbox is to leave alone: a root in a folder, and this process.
type host struct {
	t       *testing.T
	dir     string
	root    string // in dir
	program string // liveupd-sandbox
	runs    int
}

// asHost runs the test once more in a child with namespaces of its own, and there f.
func asHost(t *testing.T, f func(h *host)) {
	if dir := os.Getenv(inside); dir != "" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		// The copies of what other tests have mounted would keep their devices busy.
		for _, point := range mountPoints(t) {
			if (strings.HasPrefix(point, "/var/") || strings.HasPrefix(point, "/tmp/")) && !strings.HasPrefix(dir+"/", point+"/") {
				_ = syscall.Unmount(point, syscall.MNT_DETACH) // one may lie below another
			}
		}
		f(&host{t: t, dir: dir, root: filepath.Join(dir, "root"), program: os.Getenv(inside + "_PROGRAM")})
		return
	}
	t.Parallel()
	machine.Require(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	machine.CopyRoot(t, "small", root)
	build := exec.Command("go", "build", "-o", filepath.Join(root, "usr/bin/probe"), "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the probe: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+dir, inside+"_PROGRAM="+machine.Program(t, sandbox.ProgramName))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// mountPoints is where something is mounted.
func mountPoints(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		points = append(points, strings.Fields(line)[4])
	}
	return points
}

// run runs a shell script in the sandbox, and gives what it printed.
func (h *host) run(s sandbox.Spec, limit time.Duration, script string) (*sandbox.Result, string, error) {
	h.t.Helper()
	h.runs++
	home := filepath.Join(h.dir, "home-"+strconv.Itoa(h.runs))
	for _, dir := range []string{home, home + "/work", home + "/shared"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			h.t.Fatal(err)
		}
	}
	root, err := nsmount.Open(h.root, false)
	if err != nil {
		h.t.Fatal(err)
	}
	defer root.Close()
	work, err := sys.OpenRoot(home + "/work")
	if err != nil {
		h.t.Fatal(err)
	}
	defer work.Close()
	view, err := root.Workspace(nil, work, home+"/work", func(nsmount.Volume) bool { return true })
	if err != nil {
		h.t.Fatal(err)
	}
	view.Binds = []nsmount.Bind{{From: "shared", To: "/run/liveupd/shared", Home: true}}
	if s.View, err = json.Marshal(view); err != nil {
		h.t.Fatal(err)
	}
	s.Name = "liveupd-" + strings.Repeat("0", 6) + strconv.Itoa(os.Getpid()%1000000)
	s.Commands = []sandbox.Command{{Argv: []string{"/bin/sh", "-c", script}}}
	var out bytes.Buffer
	res, err := sandbox.Run(h.t.Context(), s, sandbox.Options{Output: &out, Timeout: limit, Program: h.program})
	return res, out.String(), err
}
