package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/liveupd/liveupd/internal/sys"
)

// Which generators the manager would run, and what they are known to read.
func TestGenerators(t *testing.T) {
	root := t.TempDir()
	put := func(name, content string, mode os.FileMode) {
		t.Helper()
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := cutLink(content); ok {
			if err := os.Symlink(target, at); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := os.WriteFile(at, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	const lib, etc = "usr/lib/systemd/system-generators/", "etc/systemd/system-generators/"
	put(lib+"a", "#!/bin/sh\n. /usr/share/a/functions\ncat /etc/a.conf \"/opt/a dir\"\n", 0o755)
	put(lib+"masked", "x", 0o755)
	put(etc+"masked", "->/dev/null", 0)
	put(lib+"empty", "x", 0o755)
	put(etc+"empty", "", 0o755)
	put(lib+"hidden", "old /etc/old\n", 0o755)
	put(etc+"hidden", "new /etc/new\n", 0o755)
	put(lib+"text", "no program", 0o644)
	put(lib+"systemd-fstab-generator", "\x7fELF", 0o755)
	put("opt/linked", "#!/bin/sh\n", 0o755)
	put(lib+"linked", "->/opt/linked", 0)
	dir, err := sys.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	list := Generators(Dir(dir))
	var names []string
	by := map[string]*Generator{}
	for i := range list {
		names = append(names, list[i].Name)
		by[list[i].Name] = &list[i]
	}
	if want := []string{"a", "hidden", "linked", "systemd-fstab-generator"}; !slices.Equal(names, want) {
		t.Fatalf("generators %q; want %q", names, want)
	}
	for _, tt := range []struct {
		generator, path string
		want            bool
	}{
		{"a", "/etc/a.conf", true},
		{"a", "/etc/a.conf.d", false},
		{"a", "/usr/share/a/functions", true},
		{"a", "/" + lib + "a", true},
		{"a", "/" + etc + "a", true},
		{"a", "/etc/fstab", false},
		{"a", "/usr/share/b", false},
		{"hidden", "/etc/new", true},
		{"hidden", "/etc/old", false},
		{"linked", "/opt/linked", true},
		{"systemd-fstab-generator", "/etc/fstab", true},
	} {
		if got := by[tt.generator].Reads(tt.path); got != tt.want {
			t.Errorf("%s reads %s: %t; want %t", tt.generator, tt.path, got, tt.want)
		}
	}
}

func cutLink(s string) (string, bool) {
	if len(s) > 2 && s[:2] == "->" {
		return s[2:], true
	}
	return "", false
}
