// Package users holds the black-box tests of the units of users: planned, restarted, taken
// back and put off through the managers of users who are logged in or linger.
package users

import (
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

const (
	alice        = 1000
	bob          = 1001
	aliceManager = "user@1000.service"
	bobManager   = "user@1001.service"
)

// Paths of what the users' services hang on.
const (
	units      = "usr/lib/systemd/user/"
	moduleUnit = units + "module.service"
	modulePart = "usr/lib/module/part.py"
	pluginPath = "opt/plugin/libplug.so"
)

// files are what all users have of the system, and what alice has of her own.
var files = map[string]string{
	moduleUnit:               unit("Imports a module", "ExecStart=/usr/bin/python3 -B /usr/lib/module/main.py"),
	"usr/lib/module/main.py": "import threading, part\nthreading.Event().wait()\n",
	modulePart:               "x = 1\n",
	units + "plain.service":  unit("A service", "ExecStart=/usr/bin/sleep infinity"),
	units + "hidden.service": unit("One that alice has another of", "ExecStart=/usr/bin/sleep infinity"),
	units + "plugin.service": unit("Loads a plug-in", `ExecStart=/usr/bin/python3 -c "import ctypes, threading; ctypes.CDLL('/opt/plugin/libplug.so'); threading.Event().wait()"`),
	units + "desk.service":   "[Unit]\nDescription=A part of a desktop\nPartOf=graphical-session.target\n\n[Service]\nExecStart=/usr/bin/python3 -B /usr/lib/module/main.py\n\n[Install]\nWantedBy=default.target\n",
	"home/alice/.config/systemd/user/hidden.service": unit("Her own", "ExecStart=/usr/bin/sleep 100000"),
	"home/alice/.config/systemd/user/own.service":    unit("Her own", "ExecStart=/home/alice/bin/run"),
	"home/alice/bin/run":                             "#!/bin/sh\n. /usr/lib/module/common.sh\nwhile :; do sleep 1000; done\n",
	"usr/lib/module/common.sh":                       "greeting=hello\n",
}

func unit(description, body string) string {
	return fmt.Sprintf("[Unit]\nDescription=%s\n\n[Service]\n%s\n\n[Install]\nWantedBy=default.target\n", description, body)
}

// lay puts the users and their services into a root. All of them linger.
func lay(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	for name, content := range files {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := write(root, name, content, mode); err != nil {
			return err
		}
		if rest, ok := strings.CutPrefix(name, units); ok {
			if err := link(root, "etc/systemd/user/default.target.wants/"+rest, "/"+name); err != nil {
				return err
			}
		}
	}
	if err := link(root, "home/alice/.config/systemd/user/default.target.wants/own.service", "/home/alice/.config/systemd/user/own.service"); err != nil {
		return err
	}
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*/libz.so.1"))
	if err != nil || len(libs) != 1 {
		return fmt.Errorf("libz: %v %w", libs, err)
	}
	plug, err := os.ReadFile(libs[0])
	if err != nil {
		return err
	}
	if err := write(root, pluginPath, string(plug), 0o755); err != nil {
		return err
	}
	for name, uid := range map[string]int{"alice": alice, "bob": bob} {
		home := filepath.Join(root, "home", name)
		if err := os.MkdirAll(home, 0o700); err != nil {
			return err
		}
		if err := appendTo(root, "etc/passwd", fmt.Sprintf("%s:x:%d:%d::/home/%s:/bin/sh\n", name, uid, uid, name)); err != nil {
			return err
		}
		if err := appendTo(root, "etc/group", fmt.Sprintf("%s:x:%d:\n", name, uid)); err != nil {
			return err
		}
		if err := appendTo(root, "etc/shadow", name+":*:19000:0:99999:7:::\n"); err != nil {
			return err
		}
		if err := write(root, "var/lib/systemd/linger/"+name, "", 0o644); err != nil {
			return err
		}
		err := filepath.WalkDir(home, func(p string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(p, uid, uid)
		})
		if err != nil {
			return err
		}
		if err := os.Chmod(home, 0o700); err != nil {
			return err
		}
	}
	return nil
}

func write(root, name, content string, mode os.FileMode) error {
	at := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	return os.WriteFile(at, []byte(content), mode)
}

func link(root, name, to string) error {
	if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
		return err
	}
	return os.Symlink(to, filepath.Join(root, name))
}

func appendTo(root, name, line string) error {
	f, err := os.OpenFile(filepath.Join(root, name), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

// boot boots a machine on which both users' services run.
func boot(t *testing.T, root string) *machine.Machine {
	t.Helper()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Root: root, Customize: lay, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed")
	await(t, "the users' services", func() bool { return len(all(t, m)) == len(running) })
	return m
}

// running are the users' services that run when a machine has come up.
var running = of("module.service", "", "plain.service", "", "hidden.service", "", "plugin.service", "", "desk.service", "", "alice:own.service", "")

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

func source(dir string) []string { return []string{"--source", "tree:" + dir, "--allow-unsigned"} }

func apply(t *testing.T, m *machine.Machine, dir string) *fixture.Output {
	t.Helper()
	return fixture.In(t, m, append([]string{"apply", "--yes"}, source(dir)...)...)
}

// userSteps are the steps of a plan that users' managers carry out.
func userSteps(o *fixture.Output) []string {
	var out []string
	for _, s := range o.Plan.Steps {
		if s.Manager != "" {
			out = append(out, s.Do+" "+s.Manager+"/"+s.Target)
		}
	}
	return out
}

// glob is the one path of a cached root that matches.
func glob(t *testing.T, root, pattern string) string {
	t.Helper()
	base := machine.CachedRoot(t, root)
	found, err := filepath.Glob(filepath.Join(base, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v; want one path", pattern, found, err)
	}
	rel, err := filepath.Rel(base, found[0])
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

// plugin is what the users' plug-in is a copy of.
func plugin(t *testing.T, root string) string {
	t.Helper()
	return filepath.Join(machine.CachedRoot(t, root), glob(t, root, "usr/lib/*/libz.so.1"))
}

// rebuilt is an ELF object with another build-id, as a new build of a library has.
func rebuilt(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	note := f.Section(".note.gnu.build-id")
	if note == nil {
		t.Fatalf("%s has no build-id", path)
	}
	b[note.Offset+note.FileSize-1] ^= 1
	return string(b)
}

func subtract(list, gone []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(gone, s) })
}

// as runs systemctl in a user's manager and gives what it printed.
func as(m *machine.Machine, uid int, args ...string) machine.Result {
	return m.Run(slices.Concat([]string{
		"setpriv", fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups", "env",
		fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", uid),
	}, args)...)
}

// invocations are the invocations of a user's services, by name, with those that do not run left out.
func invocations(t *testing.T, m *machine.Machine, uid int) map[string]string {
	t.Helper()
	r := as(m, uid, "systemctl", "--user", "show", "--no-pager", "--property=Id,ActiveState,InvocationID", "--", "*.service")
	if r.Code != 0 {
		t.Fatalf("cannot show the units of %d: %s", uid, r.Stderr)
	}
	out := map[string]string{}
	for block := range strings.SplitSeq(r.Stdout, "\n\n") {
		p := map[string]string{}
		for line := range strings.Lines(block) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
				p[k] = v
			}
		}
		if p["ActiveState"] == "active" {
			out[p["Id"]] = p["InvocationID"]
		}
	}
	return out
}

// all are the invocations of both users, by UnitKey.
func all(t *testing.T, m *machine.Machine) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, uid := range []int{alice, bob} {
		for name, id := range invocations(t, m, uid) {
			out["user@"+strconv.Itoa(uid)+".service/"+name] = id
		}
	}
	return out
}

// interrupted are the services that run anew or no more.
func interrupted(before, after map[string]string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if before[name] != after[name] {
			out = append(out, name)
		}
	}
	return out
}
