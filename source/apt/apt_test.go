package apt

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

const statusBefore = `Package: a
Status: install ok installed
Architecture: amd64
Version: 1
Description: first
 Version: 9 of what
 .

Package: b
Status: deinstall ok config-files
Architecture: all
Version: 3

Package: c
Status: install ok installed
Architecture: all
Version: 1:2-3
`

func TestChanged(t *testing.T) {
	after := strings.NewReplacer("Version: 1\n", "Version: 2\n", "deinstall ok config-files", "install ok installed").Replace(statusBefore)
	after = strings.Replace(after, "Package: c\nStatus: install ok installed", "Package: c\nStatus: deinstall ok config-files", 1)
	want := []change.Package{
		{Name: "a", Arch: "amd64", From: "1", To: "2"},
		{Name: "b", Arch: "all", To: "3"},
		{Name: "c", Arch: "all", From: "1:2-3"},
	}
	if diff := cmp.Diff(want, Changed([]byte(statusBefore), []byte(after))); diff != "" {
		t.Errorf("Changed (-want +got):\n%s", diff)
	}
	if got := Changed([]byte(statusBefore), []byte(statusBefore)); len(got) > 0 {
		t.Errorf("of equal files: %v", got)
	}
}

func TestRead(t *testing.T) {
	got := Read(map[string]string{
		recordPolicy: "nginx restart\nnginx restart\n", recordHost: "update-grub \n", rebootFile: "", rebootPkgs: "linux-image\n",
		recordConf: "kept /etc/a b\n --- x\n -mine\n +theirs\nreplaced /etc/c\n",
	})
	want := Recorded{
		Actions: []string{"nginx restart"}, HostSteps: []string{"update-grub"}, Reboot: []string{"linux-image"},
		Conffiles: []change.Conffile{{Path: "/etc/a b", Kept: true, Diff: "--- x\n-mine\n+theirs\n"}, {Path: "/etc/c"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Read (-want +got):\n%s", diff)
	}
}

func TestJudge(t *testing.T) {
	file, dir := &change.Node{Type: change.Regular}, &change.Node{Type: change.Directory}
	d := &change.Delta{Entries: []change.Entry{
		{Path: "/usr/bin/x", Op: change.Replace, Old: file, New: file},
		{Path: "/var/lib/dpkg/status", Op: change.Replace, Old: file, New: file},
		{Path: "/var/lib/mysql/ibdata1", Op: change.Replace, Old: file, New: file},
		{Path: "/var/lib/mysql/db/t", Op: change.Remove, Old: file},
		{Path: "/var/lib/new/x", Op: change.Add, New: file},
		{Path: "/var/lib/owned", Op: change.Replace, Old: file, New: file},
		{Path: "/var/lib/place", Op: change.Metadata, Old: dir, New: dir},
		{Path: "/var/log/dpkg.log", Op: change.Replace, Old: file, New: file},
		{Path: "/var/log/wtmp", Op: change.Replace, Old: file, New: file},
		{Path: "/var/lib/mysql/ibdata2", Op: change.Metadata, Old: file, New: file},
		{Path: "/var/single", Op: change.Replace, Old: file, New: file},
	}}
	got := Judge(d, func(p string) bool { return p == "/var/lib/owned" })
	want := Judged{
		Dropped: []string{"/var/log/wtmp"},
		Live:    map[string][]string{"/var/lib/mysql": {"/var/lib/mysql/ibdata1", "/var/lib/mysql/db/t"}, "/var": {"/var/single"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Judge (-want +got):\n%s", diff)
	}
}

// No argument becomes an option or a command of the script.
func TestScriptQuotes(t *testing.T) {
	for _, bad := range []string{"-o", "a;b", "$(x)", "a b", "`x`", "", "/x", "a'b", "*"} {
		if err := (&Options{Packages: []string{bad}}).Check(); err == nil {
			t.Errorf("the package %q is let through", bad)
		}
		if err := (&Options{Hold: []string{bad}}).Check(); err == nil {
			t.Errorf("the held package %q is let through", bad)
		}
	}
	for _, good := range []string{"nginx", "libc6:amd64", "g++", "a=1:2.3-4~deb12u1", "a/bookworm-backports", "old-"} {
		if err := (&Options{Packages: []string{good}}).Check(); err != nil {
			t.Errorf("the package %q: %v", good, err)
		}
	}
	if err := (&Options{Hold: []string{"linux-*", "lib?6:amd64"}}).Check(); err != nil {
		t.Errorf("patterns of what is held: %v", err)
	}
	if err := (&Options{Packages: []string{"linux-*"}}).Check(); err == nil {
		t.Error("a pattern of packages to install is let through")
	}
	script := (&Options{Packages: []string{"a=1~b"}, Debs: []string{"/x y.deb"}}).Script()
	if !strings.Contains(script, "install -- "+DebPath(0)+" 'a=1~b'") {
		t.Errorf("the operation is not in the script:\n%s", script)
	}
}

// What apt says of a signature is told from a server that does not answer, in the words of its
// releases: gpgv's until 2.8, sqv's since.
func TestRefused(t *testing.T) {
	script := (&Options{}).Script()
	_, rest, _ := strings.Cut(script, "\nrefused='")
	pattern, _, ok := strings.Cut(rest, "'\n")
	if !ok {
		t.Fatal("the script has no pattern")
	}
	re := regexp.MustCompile(pattern)
	for text, want := range map[string]bool{
		"W: GPG error: http://x y InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 0E98":                                                                                                                                                   true,
		"W: An error occurred during the signature verification. The repository is not updated and the previous index files will be used. GPG error: http://x y InRelease: The following signatures were invalid: EXPKEYSIG 0E98":                                                                     true,
		"W: An error occurred during the signature verification. The repository is not updated and the previous index files will be used. OpenPGP signature verification failed: http://x y InRelease: Sub-process /usr/bin/sqv returned an error code (1), error message is: Error: Policy rejected": true,
		"E: The repository 'http://x y InRelease' is not signed.":                               true,
		"E: Release file for http://x/y/Release is expired (invalid since 3d 1h).":              true,
		"E: Release file for http://x/y/Release is not valid yet (invalid for another 2d).":     true,
		"E: Failed to fetch http://x/y/Packages  Hash Sum mismatch":                             true,
		"W: Failed to fetch http://x/y/InRelease  Temporary failure resolving 'x'":              false,
		"E: Failed to fetch http://x/y/InRelease  Could not connect to x:80 (192.0.2.1).":       false,
		"E: Repository 'http://x y Release' changed its 'Origin' value from 'T' to 'T2'":        false,
		"E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct this.": false,
	} {
		if re.MatchString(text) != want {
			t.Errorf("%q: refused is %t", text, !want)
		}
	}
}

func FuzzInstalled(f *testing.F) {
	f.Add([]byte(statusBefore))
	f.Add([]byte("Package: a\nStatus:\n\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for key, p := range Installed(b) {
			if key != p.Name+":"+p.Arch || p.Name == "" {
				t.Errorf("%q is %+v", key, p)
			}
		}
		if got := Changed(b, b); len(got) > 0 {
			t.Errorf("a file differs from itself: %v", got)
		}
	})
}

// What an earlier run of dpkg had begun is finished; what was only configuration is a new package.
func TestFinished(t *testing.T) {
	stanza := func(name, arch, state, version string) string {
		return "Package: " + name + "\nStatus: install ok " + state + "\nArchitecture: " + arch + "\nVersion: " + version + "\n\n"
	}
	before := stanza("a", "all", "half-configured", "1") + stanza("b", "amd64", "unpacked", "1") + stanza("c", "amd64", "installed", "1") +
		stanza("d", "amd64", "half-configured", "1") + stanza("e", "all", "config-files", "1") + stanza("f", "all", "triggers-pending", "1")
	after := stanza("a", "all", "installed", "1") + stanza("b", "amd64", "installed", "1") + stanza("c", "amd64", "installed", "1") +
		stanza("d", "amd64", "installed", "2") + stanza("e", "all", "installed", "1") + stanza("f", "all", "installed", "1")
	if got, want := Finished([]byte(before), []byte(after)), []string{"a", "b:amd64", "f"}; !slices.Equal(got, want) {
		t.Errorf("finished are %q; want %q", got, want)
	}
}
