// Package apt holds the black-box tests of what runs in the sandbox: liveupd exec, and
// upgrades by apt and dpkg, on booted machines and on roots in a folder. Packages come
// from an archive that the tests make, of their own packages and of what Debian has
// published since the roots were made.
package apt

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// atOnce is how many tests run side by side where the command line does not say: more than
// processors, for most of their time they wait for their machines.
const atOnce = "3"

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(atOnce); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(m.Run())
}

// pack is a package that a test makes.
type pack struct {
	name, version string
	fields        string            // further lines of control
	files         map[string]string // by path; "#!" makes a program
	scripts       map[string]string // preinst, postinst, prerm, postrm, config, templates
	conffiles     []string
}

// build makes the package's file in dir.
func (p pack) build(dir string) error {
	work, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	put := func(name, content string, mode fs.FileMode) error {
		name = filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return os.WriteFile(name, []byte(content), mode)
	}
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Test <t@example.com>\nDescription: a test\n%s", p.name, p.version, p.fields)
	if err := put("DEBIAN/control", control, 0o644); err != nil {
		return err
	}
	if len(p.conffiles) > 0 {
		if err := put("DEBIAN/conffiles", strings.Join(p.conffiles, "\n")+"\n", 0o644); err != nil {
			return err
		}
	}
	for name, content := range p.scripts {
		mode := fs.FileMode(0o755)
		if name == "templates" {
			mode = 0o644
		}
		if err := put("DEBIAN/"+name, content, mode); err != nil {
			return err
		}
	}
	for name, content := range p.files {
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := put(name, content, mode); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, p.name+"_"+p.version+"_all.deb")
	out, err := exec.Command("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", work, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, out)
	}
	return nil
}

// index makes dir an archive of the packages in it.
func index(dir string) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	slices.Sort(debs)
	var packages bytes.Buffer
	for _, deb := range debs {
		control, err := exec.Command("dpkg-deb", "--field", deb).Output()
		if err != nil {
			return fmt.Errorf("dpkg-deb --field %s: %w", deb, err)
		}
		content, err := os.ReadFile(deb)
		if err != nil {
			return err
		}
		fmt.Fprintf(&packages, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control, filepath.Base(deb), len(content), sha256.Sum256(content))
	}
	return os.WriteFile(filepath.Join(dir, "Packages"), packages.Bytes(), 0o644)
}

// archive lays an archive of our own into a root, and makes it apt's only one.
func archive(root string, packs []pack, debs ...string) error {
	dir := filepath.Join(root, "srv/archive")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range packs {
		if err := p.build(dir); err != nil {
			return err
		}
	}
	for _, deb := range debs {
		if out, err := exec.Command("cp", "--reflink=auto", deb, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("cp %s: %w: %s", deb, err, out)
		}
	}
	if err := index(dir); err != nil {
		return err
	}
	for _, part := range []string{"var/lib/apt/lists/partial", "var/cache/apt/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(root, part), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), []byte("deb [trusted=yes] file:/srv/archive ./\n"), 0o644)
}

// installed puts packages into a root that does not run.
func installed(root string, packs ...pack) error {
	dir := filepath.Join(root, "srv/old")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := []string{root, "env", "SYSTEMD_OFFLINE=1", "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "dpkg", "-i"}
	for _, p := range packs {
		if err := p.build(dir); err != nil {
			return err
		}
		args = append(args, "/srv/old/"+p.name+"_"+p.version+"_all.deb")
	}
	if out, err := exec.Command("chroot", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg -i: %w: %s", err, out)
	}
	return nil
}

// upgrades gives the files of what Debian has published for a cached root since it was
// made: downloaded by the host's apt, and kept in the cache.
func upgrades(t *testing.T, name string) []string {
	t.Helper()
	root := machine.CachedRoot(t, name)
	out, err := exec.Command("../setup/upgrades.sh", root).Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Output returns it as it is
			t.Fatalf("cannot get the upgrades of %s: %v\n%s", name, err, exit.Stderr)
		}
		t.Fatal(err)
	}
	debs := strings.Fields(string(out))
	if len(debs) == 0 {
		t.Skipf("Debian has no upgrade for the root %s", name)
	}
	return debs
}

// folder is a copy of a cached root, with an archive.
func folder(t *testing.T, name string, customize func(root string) error) string {
	t.Helper()
	machine.Require(t)
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	machine.CopyRoot(t, name, root)
	if customize != nil {
		if err := customize(root); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// tree is the state of a root without what is liveupd's own.
func tree(t *testing.T, root string) machine.Snapshot {
	t.Helper()
	return machine.TakeSnapshot(t, root, ".liveupd")
}

// same fails where two states differ but in what allow lets pass.
func same(t *testing.T, what string, a, b machine.Snapshot, allow func(path string) bool) {
	t.Helper()
	paths := slices.DeleteFunc(a.Paths(b), func(p string) bool { return p == "." || p == "" || allow != nil && allow(p) })
	if len(paths) > 0 {
		diff := slices.DeleteFunc(a.Diff(b), func(line string) bool {
			return !slices.ContainsFunc(paths, func(p string) bool { return strings.Contains(line, p) })
		})
		t.Errorf("%s: %d paths differ: %q\n%s", what, len(paths), paths[:min(len(paths), 20)], strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

// here runs liveupd on a root in a folder.
func here(t *testing.T, root string, args ...string) *fixture.Output {
	t.Helper()
	// Before the first word that is no flag: what follows it may be a command's own.
	return fixture.Here(t, append([]string{args[0], "--root", root}, args[1:]...)...)
}

// digest is a line of a Release file for Packages.
func digest(content []byte) string {
	return fmt.Sprintf("%x %d Packages", sha256.Sum256(content), len(content))
}
