package rootfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// systemdTest asks the real manager what it makes of a load path: the dump of
// "systemd --test", which loads units, computes the boot transaction and does
// nothing. It runs as nobody: the manager refuses to test as root.
func systemdTest(t *testing.T, unitPath []string) string {
	t.Helper()
	program := "/usr/lib/systemd/systemd"
	if _, err := os.Stat(program); err != nil {
		t.Skip("systemd is not installed here: no manager to compare with")
	}
	if os.Getuid() != 0 {
		t.Skip("cannot become nobody without root, and the manager's test mode wants a user of its own")
	}
	run := t.TempDir()
	if err := os.Chmod(run, 0o777); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	cmd := exec.CommandContext(ctx, program, "--test", "--system", "--no-pager")
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+strings.Join(unitPath, ":"), "XDG_RUNTIME_DIR="+run, "HOME="+run, "SYSTEMD_LOG_LEVEL=err")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "-> Unit ") {
		t.Skipf("the manager's test mode does not work here: %v: %.200s", err, errs.String())
	}
	return out.String()
}

// dumped collects the values of some fields for each unit of a manager's dump.
func dumped(dump string, fields ...string) map[string]map[string][]string {
	out := map[string]map[string][]string{}
	unit := ""
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "-> Unit "); ok {
			unit = strings.TrimSuffix(name, ":")
			out[unit] = map[string][]string{}
			continue
		}
		if strings.HasPrefix(line, "-> ") {
			unit = ""
		}
		key, val, ok := strings.Cut(line, ": ")
		if ok && unit != "" && slices.Contains(fields, key) {
			out[unit][key] = append(out[unit][key], val)
		}
	}
	return out
}

// The drop-ins that we choose, and their order, are the ones of the manager.
func TestDropInsAgainstTheManager(t *testing.T) {
	dir := writeTree(t, dropInTree)
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The alias is a path of the tree, here it must lead somewhere for the manager.
	alias := filepath.Join(dir, "etc/systemd/system/alias.service")
	if err := os.Remove(alias); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "usr/lib/systemd/system/foo-bar.service"), alias); err != nil {
		t.Fatal(err)
	}
	var unitPath []string
	for _, d := range []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"} {
		unitPath = append(unitPath, dir+d)
	}
	theirs := dumped(systemdTest(t, unitPath), "DropIn Path", "Fragment Path")

	tree := load(t, viewOf(t, dropInTree), LoadOptions{})
	for _, name := range []string{"foo-bar.service", "tpl@one.service"} {
		var want []string
		for _, p := range theirs[name]["DropIn Path"] {
			want = append(want, strings.TrimPrefix(p, dir))
		}
		if len(want) == 0 {
			t.Fatalf("the manager lists no drop-ins of %s: the comparison is empty", name)
		}
		if d := cmp.Diff(want, tree.Units[name].DropIns); d != "" {
			t.Errorf("drop-ins of %s (-manager +ours):\n%s", name, d)
		}
		if got, want := tree.Units[name].Fragment, strings.TrimPrefix(theirs[name]["Fragment Path"][0], dir); got != want {
			t.Errorf("fragment of %s = %s; the manager says %s", name, got, want)
		}
	}
}

// What we say a boot reaches is the transaction that the manager computes,
// less the implicit slices, plus what timers, sockets and paths trigger later.
func TestReachedAgainstTheManager(t *testing.T) {
	// No generator folders: a tree on disk has none.
	dump := systemdTest(t, []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"})
	var theirs []string
	for line := range strings.Lines(dump) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Action: "); ok {
			if name, ok := strings.CutSuffix(name, " -> start"); ok && !strings.HasSuffix(name, ".slice") {
				theirs = append(theirs, name)
			}
		}
	}
	slices.Sort(theirs)
	theirs = slices.Compact(theirs)
	tree := load(t, Dir(openDir(t, "/")), LoadOptions{})
	later := map[string]bool{}
	for changed := true; changed; {
		changed = false
		for name, by := range tree.Reached {
			ext := filepath.Ext(by)
			if !later[name] && !slices.Contains(theirs, name) && (later[by] || ext == ".timer" || ext == ".socket" || ext == ".path" || ext == ".automount") {
				later[name], changed = true, true
			}
		}
	}
	var ours []string
	for name := range tree.Reached {
		if !later[name] && !strings.HasSuffix(name, ".slice") {
			ours = append(ours, name)
		}
	}
	slices.Sort(ours)
	if d := cmp.Diff(theirs, ours); d != "" {
		t.Errorf("reached (-manager +ours):\n%s", d)
	}
	fragments := dumped(dump, "Fragment Path")
	for _, name := range ours {
		real, err := filepath.EvalSymlinks(first(fragments[name]["Fragment Path"]))
		if got := tree.Units[name].Fragment; err == nil && got != real {
			if resolved, err := filepath.EvalSymlinks(got); err != nil || resolved != real {
				t.Errorf("fragment of %s = %s; the manager says %s", name, got, real)
			}
		}
	}
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// The libraries that we find are the ones that ld.so loads.
func TestClosureAgainstLdSo(t *testing.T) {
	loader := "/lib64/ld-linux-x86-64.so.2"
	if _, err := os.Stat(loader); err != nil {
		t.Skip("no x86-64 loader here to compare with")
	}
	r := newReader(asTree(Dir(openDir(t, "/"))), &warnings{})
	compared := 0
	for _, program := range []string{
		"/usr/bin/bash", "/usr/bin/perl", "/usr/bin/python3.11", "/usr/bin/python3", "/usr/sbin/nginx", "/usr/sbin/sshd",
		"/usr/bin/git", "/usr/bin/curl", "/usr/bin/ssh", "/usr/bin/gdb", "/usr/bin/ls", "/usr/bin/apt-get", "/usr/bin/dpkg",
		"/usr/bin/systemctl", "/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd-journald", "/usr/lib/systemd/systemd-logind",
		"/usr/bin/dbus-daemon", "/usr/sbin/cron", "/usr/bin/tar", "/usr/bin/gcc", "/usr/bin/make", "/usr/bin/qemu-system-x86_64",
		"/usr/bin/mount", "/usr/bin/openssl", "/usr/bin/psql", "/usr/bin/node", "/usr/bin/fakeroot-sysv", "/usr/bin/vim.basic",
		"/usr/lib/postgresql/15/bin/postgres", "/usr/bin/ffmpeg", "/usr/bin/rsync", "/usr/sbin/sshd",
	} {
		real, err := filepath.EvalSymlinks(program)
		if err != nil {
			continue
		}
		cmd := exec.CommandContext(t.Context(), loader, "--list", real)
		cmd.Env = []string{}
		out, err := cmd.Output()
		if err != nil {
			t.Logf("%s: the loader does not list it: %v", program, err)
			continue
		}
		var want []string
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			p := ""
			switch {
			case len(f) >= 3 && f[1] == "=>":
				p = f[2]
			case len(f) >= 1 && strings.HasPrefix(f[0], "/"):
				p = f[0]
			}
			if lib, err := filepath.EvalSymlinks(p); err == nil && strings.HasPrefix(p, "/") {
				want = append(want, lib)
			}
		}
		var got []string
		for _, d := range r.closure(real, "", "") {
			if fi, err := os.Lstat(d.path); err != nil {
				t.Errorf("%s: a path of its closure is not there: %v", program, err)
			} else if fi.Mode()&os.ModeSymlink == 0 {
				got = append(got, d.path)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if d := cmp.Diff(slices.Compact(want), slices.Compact(got)); d != "" {
			t.Errorf("%s (-ld.so +ours):\n%s", program, d)
		}
		compared++
	}
	if compared < 5 {
		t.Fatalf("only %d programs were compared", compared)
	}
	t.Logf("%d programs compared", compared)
}

// What a script really imports is among the modules that we find.
func TestModulesAgainstPython(t *testing.T) {
	const python = "/usr/bin/python3"
	real, err := filepath.EvalSymlinks(python)
	if err != nil {
		t.Skip("no system Python here to compare with")
	}
	for _, script := range []string{
		"pass", "import json, ssl", "import http.server", "import logging.handlers, argparse", "import asyncio", "import xml.etree.ElementTree",
		"import sqlite3, urllib.request", "import multiprocessing, concurrent.futures", "from email.mime import text", "import importlib\nimportlib.import_module('csv')",
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "main.py")
		tail := "\nimport sys\nfor m in list(sys.modules.values()):\n f = getattr(m, '__file__', None)\n print(f or '')\n"
		if err := os.WriteFile(file, []byte(script+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		// -S: what the .pth files of this machine import is no matter of the script.
		cmd := exec.CommandContext(t.Context(), real, "-S", file)
		cmd.Env = []string{"HOME=/nonexistent", "PYTHONDONTWRITEBYTECODE=1"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("python: %v", err)
		}
		c := &collector{
			u: &change.Unit{Name: "x.service"}, env: map[string]string{}, workDir: "/", seen: map[[2]string]bool{},
			in: newReader(asTree(Dir(openDir(t, "/"))), &warnings{}),
		}
		c.host = c.in
		c.program(python, []string{"-S", file}, "exec", "unit")
		used := map[string]bool{}
		for _, u := range c.out {
			used[u.Path] = true
		}
		loaded := 0
		for line := range strings.Lines(string(out)) {
			p, err := filepath.EvalSymlinks(strings.TrimSpace(line))
			if err != nil || strings.TrimSpace(line) == "" {
				continue
			}
			loaded++
			if !used[p] {
				t.Errorf("%q loads %s, which we do not find", script, p)
			}
		}
		if loaded < 5 {
			t.Errorf("%q: Python names only %d modules: the comparison is empty", script, loaded)
		}
		if script == "pass" && len(c.out) > 120 {
			t.Errorf("an empty script uses %d paths; want what every start loads", len(c.out))
		}
		t.Logf("%-30.30q loads %d, we name %d", script, loaded, len(c.out))
	}
}
