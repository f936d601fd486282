// Package deb builds the Debian package, looks at it as Debian's own tools do, and
// installs, upgrades, removes and purges it on booted machines, alone and beside what else
// updates a machine.
package deb

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/liveupd/liveupd/tests/machine"
)

// long tells whether the long form is asked for: another release, another architecture, a boot.
func long() bool { return os.Getenv("LIVEUPD_LONG") == "1" }

// Versions of the packages that the tests make of one source.
const (
	oldVersion = "1.0"
	newVersion = "1.1"
)

// epoch is when they were made.
const epoch = "1700000000"

// tool is the program that makes packages, built once.
var tool = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "deb-tool-")
	if err != nil {
		return "", err
	}
	made = append(made, dir)
	name := filepath.Join(dir, "deb")
	out, err := exec.Command("go", "build", "-o", name, "../../packaging/deb").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return name, nil
})

// made are folders that go with the test binary.
var made []string

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range made {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// buildDeb makes a package and gives its file.
func buildDeb(source, arch, version, out string, env ...string) (string, error) {
	name, err := tool()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(name, "-source", source, "-arch", arch, "-version", version, "-level", "0", "-out", out)
	cmd.Env = append(append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// packages are those of this machine's architecture, built once: the old one and the new one.
var packages = sync.OnceValues(func() (files [2]string, err error) {
	dir, err := os.MkdirTemp("", "deb-out-")
	if err != nil {
		return files, err
	}
	made = append(made, dir)
	for i, version := range []string{oldVersion, newVersion} {
		if files[i], err = buildDeb("../..", runtime.GOARCH, version, dir); err != nil {
			return files, err
		}
	}
	return files, nil
})

func debs(t *testing.T) (older, newer string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds packages: not with -short")
	}
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("builds packages: needs dpkg-deb")
	}
	files, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	return files[0], files[1]
}

// unpack unpacks a package, its control files in DEBIAN.
func unpack(t *testing.T, deb string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	run(t, "dpkg-deb", "--raw-extract", deb, dir)
	return dir
}

// run runs a program of the host, which must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// carry copies the packages to /root of a root that is made.
func carry(t *testing.T) func(root string) error {
	older, newer := debs(t)
	return func(root string) error {
		for name, deb := range map[string]string{"old.deb": older, "new.deb": newer} {
			b, err := os.ReadFile(deb)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(root, "root", name), b, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
}

// want runs a program in a machine, which must end with this status.
func want(t *testing.T, m *machine.Machine, code int, args ...string) machine.Result {
	t.Helper()
	out := m.Run(args...)
	if out.Code != code {
		t.Fatalf("%s: exit code %d; want %d\n%s%s", strings.Join(args, " "), out.Code, code, out.Stdout, out.Stderr)
	}
	return out
}
