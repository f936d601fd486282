package directive

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEqual(t *testing.T) {
	type list = []string
	for _, c := range []struct {
		section, key string
		a, b         list
		want         bool
	}{
		{"Service", "PrivateDevices", list{"yes"}, list{"on"}, true},
		{"Service", "PrivateDevices", list{"no"}, nil, true},
		{"Service", "PrivateDevices", list{"yes"}, nil, false},
		{"Service", "ProtectSystem", list{"true"}, list{"1"}, true},
		{"Service", "ProtectSystem", list{"true"}, list{"strict"}, false},
		{"Service", "ProtectSystem", list{"off"}, nil, true},
		{"Service", "IgnoreSIGPIPE", list{"true"}, nil, true},
		{"Service", "IgnoreSIGPIPE", list{"false"}, nil, false},
		{"Service", "WatchdogSec", list{"90"}, list{"1min 30s"}, true},
		{"Service", "WatchdogSec", list{"90"}, list{"1m30s"}, true},
		{"Service", "WatchdogSec", list{"1.5h"}, list{"90min"}, true},
		{"Service", "WatchdogSec", list{"90"}, list{"90ms"}, false},
		{"Service", "TimerSlackNSec", list{"1ms"}, list{"1000000"}, true},
		{"Service", "LimitNOFILE", list{"1024"}, list{"1024:1024"}, true},
		{"Service", "LimitNOFILE", list{"1024"}, list{"1K"}, false},
		{"Service", "LimitAS", list{"1024"}, list{"1K:1024"}, true},
		{"Service", "LimitNOFILE", list{"1024"}, list{"1024:4096"}, false},
		{"Service", "LimitCORE", list{"infinity"}, list{"infinity:infinity"}, true},
		{"Service", "MemoryMax", list{"1G"}, list{"1024M"}, true},
		{"Service", "MemoryMax", list{"1.5G"}, list{"1536M"}, true},
		{"Service", "MemoryMax", list{"50%"}, list{"50"}, false},
		{"Service", "UMask", list{"022"}, nil, true},
		{"Service", "UMask", list{"77"}, list{"0077"}, true},
		{"Service", "Nice", list{"+5"}, list{"5"}, true},
		{"Service", "KillSignal", list{"SIGTERM"}, list{"15"}, true},
		{"Service", "ExecStart", list{`/bin/a  "b c"`}, list{`/bin/a 'b c'`}, true},
		{"Service", "ExecStart", list{`/bin/a b\x20c`}, list{`/bin/a "b c"`}, true},
		{"Service", "ExecStart", list{`/bin/a b c`}, list{`/bin/a "b c"`}, false},
		{"Service", "ExecStart", list{"/bin/a", "/bin/b"}, list{"/bin/b", "/bin/a"}, false},
		{"Service", "ExecStart", list{`/bin/a ""`}, list{`/bin/a`}, false},
		{"Service", "Environment", list{"A=1 B=2"}, list{"B=2", `"A=1"`}, true},
		{"Service", "Environment", list{"A=1 A=2"}, list{"A=2"}, true},
		{"Service", "Environment", list{"A=1"}, list{"A=2", "A=1"}, true},
		{"Service", "Environment", list{"A=2", "A=1"}, list{"A=1", "A=2"}, false},
		{"Service", "EnvironmentFile", list{"/a", "/b"}, list{"/b", "/a"}, false},
		{"Service", "ReadWritePaths", list{"/a /b/"}, list{"/b", "/a", "/a"}, true},
		{"Service", "ReadWritePaths", list{"/a"}, list{"-/a"}, false},
		{"Service", "BindPaths", list{"/a", "/b:/a"}, list{"/b:/a", "/a"}, false},
		{"Service", "SystemCallFilter", list{"@system-service mount"}, list{"mount", "@system-service"}, true},
		{"Service", "SystemCallFilter", list{"@system-service", "~mount"}, list{"~mount", "@system-service"}, false},
		{"Service", "SystemCallFilter", list{"~a b"}, list{"~b a"}, true},
		{"Service", "StandardInputText", list{"a  b"}, list{"a b"}, false},
		{"Service", "WorkingDirectory", list{"/srv/"}, list{"/srv"}, true},
		{"Service", "NoSuchThing", list{"yes"}, list{"true"}, false},
		{"Unit", "After", list{"a.service b.service"}, list{"b.service", "a.service"}, true},
		{"Unit", "After", list{`dev-disk\x2da.device`}, list{"dev-disk-a.device"}, false},
		{"Unit", "Description", list{"yes"}, list{"true"}, false},
		{"Socket", "SocketMode", list{"0666"}, nil, true},
		{"Socket", "SocketMode", list{"600"}, list{"0600"}, true},
		{"Mount", "Options", list{"noatime,nodev"}, list{"defaults,nodev,noatime,x-systemd.automount,nofail"}, true},
		{"Mount", "Options", list{"ro"}, list{"rw"}, false},
		{"Mount", "Options", list{"ro,rw"}, list{"rw,ro"}, false},
		{"Mount", "Options", list{"defaults"}, nil, true},
		{"Mount", "What", list{"//server/share"}, list{"/server/share"}, false},
	} {
		d, _ := Find(c.section, c.key)
		if got := Equal(KindOf(c.section, c.key), d.Default, c.a, c.b); got != c.want {
			t.Errorf("%s= %q and %q: Equal() = %v; want %v", c.key, c.a, c.b, got, c.want)
		}
		if got := Equal(KindOf(c.section, c.key), d.Default, c.b, c.a); got != c.want {
			t.Errorf("%s= %q and %q: Equal() = %v; want %v", c.key, c.b, c.a, got, c.want)
		}
	}
}

// Every row of the list has a class and a kind that this package knows.
func TestList(t *testing.T) {
	kinds := map[Kind]bool{Lines: true, Command: true, Words: true, Set: true, Deps: true, Mounts: true, Env: true, Filter: true}
	with, n := 0, 0
	for _, d := range All() {
		n++
		if d.Class == Inert {
			t.Errorf("%s %s= has no class", d.Group, d.Key)
		}
		if !d.Kind.Scalar() && !kinds[d.Kind] {
			t.Errorf("%s %s= has kind %q", d.Group, d.Key, d.Kind)
		}
		if d.Since > 0 {
			with++
		}
	}
	if n < 500 || with < 200 {
		t.Errorf("%d settings, %d with a version; want over 500 and 200", n, with)
	}
	for key, want := range map[string]int{"MemoryKSM": 254, "PrivatePIDs": 257, "ImportCredential": 254} {
		if d, ok := Find("Service", key); !ok || d.Since != want {
			t.Errorf("%s= came in with %d; want %d", key, d.Since, want)
		}
	}
}

// Each setting that a manager knows has a row.
func TestAgainstTheManagers(t *testing.T) {
	programs := map[string][]string{"this machine": {"/usr/lib/systemd/systemd"}}
	for _, root := range []string{"bookworm", "trixie"} {
		dir := "/var/cache/liveupd/roots/" + root
		programs[root] = []string{"chroot", dir, "/usr/lib/systemd/systemd"}
	}
	tried := 0
	for name, argv := range programs {
		out, err := exec.CommandContext(t.Context(), argv[0], append(argv[1:], "--dump-configuration-items")...).Output()
		if err != nil {
			t.Logf("%s: no systemd to ask: %v", name, err)
			continue
		}
		section, n := "", 0
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = strings.Trim(line, "[]")
				continue
			}
			if key, _, ok := strings.Cut(line, "="); ok && section != "" {
				n++
				if _, ok := Find(section, key); !ok {
					t.Errorf("%s: [%s] %s= has no row", name, section, key)
				}
			}
		}
		if n < 1000 {
			t.Errorf("%s names %d settings only", name, n)
		}
		t.Logf("%s: %d settings", name, n)
		tried++
	}
	if tried == 0 {
		t.Skip("no systemd here and no cached root: no manager to compare with")
	}
}

// Each setting that the manual pages of this machine describe has a row.
func TestAgainstTheManual(t *testing.T) {
	b, err := os.ReadFile("/usr/share/man/man7/systemd.directives.7.gz")
	if err != nil {
		t.Skip("no manual page systemd.directives(7) here to compare with")
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), `.SH "UNIT DIRECTIVES"`)
	rest, _, _ = strings.Cut(rest, "\n.SH")
	entry := regexp.MustCompile(`\.PP\n\\fI([A-Za-z0-9]+)=\\fR`)
	found := map[string]bool{}
	for _, d := range All() {
		found[d.Key] = true
	}
	names := entry.FindAllStringSubmatch(rest, -1)
	for _, m := range names {
		if !found[m[1]] {
			t.Errorf("%s= is described in systemd.directives(7) and has no row", m[1])
		}
	}
	if len(names) < 300 {
		t.Errorf("the manual names %d settings only", len(names))
	}
	t.Logf("%d settings", len(names))
}

func FuzzNormal(f *testing.F) {
	for _, v := range []string{"yes", "1min 30s", "1.5G", "0644", "SIGTERM", `/bin/a "b c" \x20`, "A=1 B=2", "~a b", "ro,defaults", "1K:infinity"} {
		f.Add(v)
	}
	kinds := []Kind{Text, Enum, Path, Bool, Word, Time, NSec, Size, Mode, Int, Limit, Count, Signal, Opts, Lines, Command, Words, Set, Deps, Mounts, Env, Filter}
	f.Fuzz(func(t *testing.T, v string) {
		for _, k := range kinds {
			if a, b := Normal(k, []string{v}), Normal(k, []string{v}); !slices.Equal(a, b) {
				t.Errorf("%s: %q is %q and %q", k, v, a, b)
			}
			if v != "" && !Equal(k, v, []string{v}, nil) {
				t.Errorf("%s: %q differs from itself as the default", k, v)
			}
		}
	})
}
