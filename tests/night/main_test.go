// Package night holds the black-box tests of unattended runs on a booted machine: the
// packaged timer and service, packages of an archive on the machine, hooks, back-off, and
// runs that are killed or stopped.
package night

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/machine"
)

// limit is how long the machine may take for anything that is waited for.
const limit = 3 * time.Minute

const units = "../../packaging/systemd"

// app is the package that is updated: two services that run its program. A run
// that has "die" in its text fails at once.
type app struct {
	name, version, text string
	service             string // further lines of its [Service]
	file                string // a further file of it
}

const unitText = `[Unit]
Description=A service of the package %[1]s
[Service]
Type=exec
ExecStart=/usr/lib/%[1]s/run
%[2]s
[Install]
WantedBy=multi-user.target
`

// build makes the package's file in dir, with one service.
func (a app) build(t testing.TB, dir string) string {
	t.Helper()
	work := t.TempDir()
	put := func(name, content string, mode os.FileMode) {
		name = filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(work, 0o755); err != nil {
		t.Fatal(err)
	}
	put("DEBIAN/control", fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Test <t@example.com>\nDescription: a test\n", a.name, a.version), 0o644)
	script := "#!/bin/sh\n# " + a.text + "\necho " + a.version + " >/run/" + a.name + ".version\n"
	if strings.Contains(a.text, "die") {
		script += "exit 7\n"
	}
	put("usr/lib/"+a.name+"/run", script+"while :; do sleep 3600; done\n", 0o755)
	put("usr/lib/systemd/system/"+a.name+".service", fmt.Sprintf(unitText, a.name, a.service), 0o644)
	if a.file != "" {
		put(a.file, a.text, 0o644)
	}
	file := filepath.Join(dir, a.name+"_"+a.version+"_all.deb")
	out, err := exec.Command("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", work, file).CombinedOutput()
	if err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	return file
}

// index makes dir an archive of the packages in it.
func index(t testing.TB, dir string) {
	t.Helper()
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	slices.Sort(debs)
	var packages bytes.Buffer
	for _, deb := range debs {
		control, err := exec.Command("dpkg-deb", "--field", deb).Output()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(deb)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&packages, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control, filepath.Base(deb), len(content), sha256.Sum256(content))
	}
	if err := os.WriteFile(filepath.Join(dir, "Packages"), packages.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// rig is a machine with apps at version 1, an archive of our own, and the packaged units.
type rig struct {
	*machine.Machine
	t    *testing.T
	from []string // the apps' versions when the part began
}

// part is the same machine for a part of the test.
func (r *rig) part(t *testing.T) *rig {
	p := &rig{Machine: r.Machine, t: t}
	p.from = strings.Fields(p.versions())
	return p
}

var apps = []string{"alpha", "beta"}

func boot(t *testing.T) *rig {
	t.Helper()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{
		Root: "trixie", Programs: machine.Programs(t),
		Customize: func(root string) error { return install(t, root) },
	})
	r := &rig{Machine: m, t: t}
	r.Shell("systemctl reset-failed; rm -f /etc/apt/sources.list.d/*; liveupd setup --yes >/dev/null; systemctl stop liveupd.timer")
	return r
}

// install puts the archive, the apps at version 1, and the packaged units into a root whose
// programs lie in /usr/local/bin.
func install(t *testing.T, root string) error {
	archive := filepath.Join(root, "srv/archive")
	for _, dir := range []string{archive, filepath.Join(root, "etc/liveupd"), filepath.Join(root, "var/lib/apt/lists/partial"), filepath.Join(root, "var/cache/apt/archives/partial")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range apps {
		app{name: name, version: "1", text: "one"}.build(t, archive)
	}
	index(t, archive)
	if err := os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), []byte("deb [trusted=yes] file:/srv/archive ./\n"), 0o644); err != nil {
		return err
	}
	for _, name := range []string{"liveupd", "liveupd-recover", "liveupd-sandbox"} {
		if err := os.Symlink("/usr/local/bin/"+name, filepath.Join(root, "usr/bin", name)); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(units + "/*")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no units in %s: %w", units, err)
	}
	for _, file := range files {
		if out, err := exec.Command("install", "-m", "0644", file, filepath.Join(root, "usr/lib/systemd/system")).CombinedOutput(); err != nil {
			return fmt.Errorf("install: %w: %s", err, out)
		}
	}
	// The packages' units are enabled as their scripts would do it.
	script := "DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 dpkg -i /srv/archive/*_1_all.deb && systemctl enable alpha beta && systemctl enable liveupd.timer liveupd-resume"
	if out, err := exec.Command("chroot", root, "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg -i: %w: %s", err, out)
	}
	return nil
}

// publish puts packages into the archive.
func (r *rig) publish(list ...app) {
	r.t.Helper()
	dir := r.Path("/srv/archive")
	for _, a := range list {
		a.build(r.t, dir)
	}
	index(r.t, dir)
}

// configure writes [unattended]; enabled is said by it.
func (r *rig) configure(lines ...string) {
	r.t.Helper()
	text := "source = \"apt\"\n[unattended]\nenabled = true\nsettle = \"100ms\"\nstall = \"2s\"\nwait = \"20s\"\n" + strings.Join(lines, "\n") + "\n"
	r.write("/etc/liveupd/liveupd.toml", text, 0o644)
}

func (r *rig) write(name, content string, mode os.FileMode) {
	r.t.Helper()
	name = r.Path(name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(name string) string {
	b, _ := os.ReadFile(r.Path(name))
	return string(b)
}

// script makes a hook that notes its environment in /run/NAME.env and what it reads in /run/NAME.in.
func (r *rig) script(name, body string) string {
	r.t.Helper()
	path := "/usr/local/sbin/" + name
	r.write(path, "#!/bin/sh\nenv | sort >/run/"+name+".env\necho >>/run/"+name+".count\n"+body+"\n", 0o755)
	return path
}

// count is how often a hook has run.
func (r *rig) count(name string) int { return strings.Count(r.read("/run/"+name+".count"), "\n") }

// night runs liveupd.service to its end and gives the report.
func (r *rig) night() *change.Night {
	r.t.Helper()
	before := r.last()
	r.Run("systemctl", "reset-failed", "liveupd.service")
	r.Shell("systemctl start liveupd.service")
	return r.after(before)
}

// last is the last report that was kept; nil for none.
func (r *rig) last() *change.Night {
	var s struct {
		Last *change.Night `json:"last"`
	}
	if err := json.Unmarshal([]byte(r.read("/var/lib/liveupd/unattended.json")), &s); err != nil {
		return nil
	}
	return s.Last
}

// after waits for the service to end, with another report than before.
func (r *rig) after(before *change.Night) *change.Night {
	r.t.Helper()
	var now *change.Night
	r.await("the end of the run", func() bool {
		u := r.Unit("liveupd.service")
		if u.ActiveState != "inactive" && u.ActiveState != "failed" {
			return false
		}
		now = r.last()
		return now != nil && (before == nil || now.Ended != before.Ended || now.Began != before.Began)
	})
	return now
}

func (r *rig) await(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %v for %s\n%s", limit, what, r.Run("journalctl", "--no-pager", "-n", "60", "-u", "liveupd*").Stdout)
		}
	}
}

func (r *rig) want(n *change.Night, result string) *change.Night {
	r.t.Helper()
	if n.Result != result {
		b, _ := json.MarshalIndent(n, "", " ")
		r.t.Fatalf("the run is %q; want %q\n%s\n%s", n.Result, result, b, r.Journal("liveupd.service"))
	}
	return n
}

// versions are those that the services say they run.
func (r *rig) versions() string {
	var out []string
	for _, name := range apps {
		out = append(out, strings.TrimSpace(r.read("/run/"+name+".version")))
	}
	return strings.Join(out, " ")
}

// wantVersions compares them; = stands for the version that an app had when the part began.
func (r *rig) wantVersions(want string) {
	r.t.Helper()
	fields := strings.Fields(want)
	for i := range fields {
		if fields[i] == "=" {
			fields[i] = r.from[i]
		}
	}
	want = strings.Join(fields, " ")
	if got := r.versions(); got != want {
		r.t.Errorf("the services run %q; want %q", got, want)
	}
	for _, name := range apps {
		if u := r.Unit(name + ".service"); u.ActiveState != "active" {
			r.t.Errorf("%s is %s", name, u.ActiveState)
		}
	}
}
