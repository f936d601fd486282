package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

const share = "usr/share/many"

// images are a machine's, before it is booted.
func images(m *machine.Machine, mounts ...string) map[string]string {
	out := map[string]string{}
	for _, at := range append(mounts, "/") {
		out[at] = filepath.Join(machine.CacheDir(), "machines", m.Name, map[string]string{"/": "root.img", "/var": "var.img"}[at])
	}
	return out
}

// update is a tree with new files in dirs.
func update(t *testing.T, root string, files int, dirs ...string) *fixture.Tree {
	up := fixture.NewTree(t, root)
	for _, dir := range dirs {
		for i := range files {
			up.File(fmt.Sprintf("%s/%d", dir, i), fmt.Sprintf("new %d\n", i), 0o644)
		}
	}
	return up
}

// cut makes a machine of which an update of dirs died in the swap.
func cut(t *testing.T, o machine.Options, dirs ...string) *machine.Machine {
	t.Helper()
	machine.Require(t)
	o.Programs = machine.Programs(t)
	o.Customize = func(root string) error {
		for _, dir := range dirs {
			if strings.HasPrefix(dir, "var/") { // where an update only adds
				return os.MkdirAll(filepath.Join(root, dir), 0o755)
			}
		}
		return manyFiles(root, many, dirs...)
	}
	m := machine.New(t, o)
	var mounts []string
	if o.WritableVar {
		mounts = append(mounts, "/var")
	}
	up := update(t, o.Root, many, dirs...)
	withMounted(t, images(m, mounts...), func(root string) {
		setUp(t, root)
		killed(t, "apply", root, up.Dir, many/2)
		if s := state(root); s != "committing" {
			t.Fatalf("the state is %q; want committing", s)
		}
		n := 0
		for _, dir := range dirs {
			n += countNew(t, many, filepath.Join(root, dir))
		}
		if n == 0 || n == many*len(dirs) {
			t.Fatalf("%d of %d files are new: nothing was cut", n, many*len(dirs))
		}
	})
	return m
}

func wholly(t *testing.T, m *machine.Machine, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if n := countNew(t, many, m.Path("/"+dir)); n != many {
			t.Errorf("%d of %d files of /%s are new", n, many, dir)
		}
	}
}

// await polls until cond holds.
func await(t *testing.T, m *machine.Machine, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited two minutes for %s\n%s", what, m.Console(60))
		}
	}
}

// concluded waits until the unit at the end of the boot has marked the update as verified.
func concluded(t *testing.T, m *machine.Machine) {
	t.Helper()
	await(t, m, "the end of the update", func() bool { return machine.State(m.Image()) == "verified" })
}

// The last resort: nothing ran before PID 1, which came from a tree that was half old and
// half new. The unit recovers it and starts userspace anew, once.
func TestLateUnit(t *testing.T) {
	t.Parallel()
	m := cut(t, machine.Options{Root: "trixie", ReadOnly: true}, share)
	m.Start()
	await(t, m, "the soft-reboot", func() bool {
		return softReboots(m) == "1" &&
			strings.TrimSpace(m.Run("systemctl", "is-system-running").Stdout) != "starting"
	})
	wholly(t, m, share)
	concluded(t, m)
	console := m.Console(400)
	if !strings.Contains(console, "the new tree: transaction") || !strings.Contains(console, "soft-reboot") {
		t.Errorf("the console does not tell of it:\n%s", console)
	}
	if got := m.SystemctlShow("liveupd-recover.service", "ActiveState", "Result"); got["Result"] != "success" {
		t.Errorf("the unit is %v\n%s", got, m.Journal("liveupd-recover.service"))
	}
	out := m.Run("findmnt", "-no", "VFS-OPTIONS,FS-OPTIONS", "/").Stdout
	for field := range strings.FieldsSeq(out) {
		if !strings.HasPrefix(field, "ro") {
			t.Errorf("the root's options are %q", out)
		}
	}
	fixture.In(t, m, "verify").Want(t, 0)
	if n := softReboots(m); n != "1" {
		t.Errorf("%s soft-reboots; want one", n)
	}
}

// A file system that no initrd mounts is recovered by the unit; PID 1 has nothing of it,
// and nothing is started anew.
func TestOtherFileSystem(t *testing.T) {
	t.Parallel()
	const lib = "var/lib/many"
	m := cut(t, machine.Options{Root: "trixie", ReadOnly: true, WritableVar: true}, lib)
	m.Start()
	wholly(t, m, lib)
	concluded(t, m)
	if n := softReboots(m); n != "0" {
		t.Errorf("%s soft-reboots; want none", n)
	}
	if !strings.Contains(m.Console(400), "the new tree: transaction") {
		t.Errorf("the console does not tell of it:\n%s", m.Console(60))
	}
}

// Without the unit the machine comes up with a mixture: the control of the tests above.
func TestWithoutUnit(t *testing.T) {
	t.Parallel()
	m := cut(t, machine.Options{Root: "trixie", ReadOnly: true}, share)
	withMounted(t, images(m), func(root string) {
		run(t, machine.Program(t, "liveupd"), "setup", "--root", root, "--remove", "--yes")
	})
	m.Start()
	if n := countNew(t, many, m.Path("/"+share)); n == 0 || n == many {
		t.Errorf("%d of %d files are new: the test shows nothing", n, many)
	}
	if s := machine.State(m.Image()); s != "committing" {
		t.Errorf("the state is %q", s)
	}
}

// Three recoveries that die end in the emergency target, with words for a person, and not in
// a loop; what the words say to type brings the machine up.
func TestEmergency(t *testing.T) {
	t.Parallel()
	m := cut(t, machine.Options{Root: "trixie", ReadOnly: true, Emergency: true}, share)
	withMounted(t, images(m), func(root string) {
		for range 3 {
			killed(t, "recover", root, "", 3)
		}
	})
	m.Start()
	await(t, m, "the emergency target", func() bool {
		return m.Unit("emergency.target").ActiveState == "active"
	})
	console := m.Console(400)
	for _, want := range []string{
		"THE BOOT STOPS HERE", "3 recoveries were begun and did not end", "found in      committing",
		"liveupd-recover --boot --again --root /", "systemctl reboot", "liveupd.recover=0",
	} {
		if !strings.Contains(console, want) {
			t.Errorf("the console does not say %q:\n%s", want, console)
		}
	}
	if m.Unit("multi-user.target").ActiveState == "active" || m.Unit("cron.service").ActiveState == "active" {
		t.Error("services run on a mixed tree")
	}
	out := m.Run("/usr/local/lib/liveupd/liveupd-recover", "--boot", "--again", "--root", "/")
	if out.Code != 0 || !strings.Contains(out.Stdout, "the new tree") {
		t.Fatalf("trying again: %+v", out)
	}
	wholly(t, m, share)
	m.Crash()
	m.Start()
	if m.Unit("multi-user.target").ActiveState != "active" {
		t.Errorf("the machine does not come up afterwards\n%s", m.Console(60))
	}
	concluded(t, m)
	if _, err := os.Stat(m.Path("/run/liveupd/started-anew")); err == nil {
		t.Error("it was started anew without need")
	}
}
