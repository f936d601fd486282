package house

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runMake runs make in the tree with its own results elsewhere.
func runMake(t *testing.T, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("make")
	if err != nil {
		t.Skip("needs the program make")
	}
	cmd := exec.CommandContext(t.Context(), program, append([]string{"-C", root, "--no-print-directory", "BIN=" + t.TempDir()}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestMakeHelp(t *testing.T) {
	out := runMake(t, "help")
	for _, target := range []string{"help", "build", "run", "check", "test", "test-long", "bench", "deb", "install"} {
		if !strings.Contains(out, "make "+target+" ") {
			t.Errorf("make help does not tell of %s:\n%s", target, out)
		}
	}
}

// The programs are installed where they are told to, need no loader and no
// libc, and hold no path of the machine that built them.
func TestMakeInstall(t *testing.T) {
	dest := t.TempDir()
	runMake(t, "install", "DESTDIR="+dest, "prefix=/usr")
	abs, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"liveupd", "liveupd-recover"} {
		file := filepath.Join(dest, "usr/bin", name)
		info, err := os.Stat(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != 0o755 {
			t.Errorf("%s has the mode %v; want 0755", name, info.Mode())
		}
		if loader(t, file) {
			t.Errorf("%s needs a loader: it is not static", name)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), abs+"/") {
			t.Errorf("%s holds the path %s", name, abs)
		}
	}
	// The check itself must see a loader where there is one.
	if sh, err := filepath.EvalSymlinks("/bin/sh"); err == nil && !loader(t, sh) {
		t.Errorf("%s seems to be static, too: the check above proves nothing", sh)
	}
}

func loader(t *testing.T, file string) bool {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true
		}
	}
	return false
}
