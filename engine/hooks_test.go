package engine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Hooks come by name, the administrator's hide others, and what others could write is refused.
func TestHooks(t *testing.T) {
	dirs := []string{filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "usr")}
	put := func(dir, name string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	look := func() []string {
		t.Helper()
		list, err := hooks(dirs)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			list[i] = filepath.Base(filepath.Dir(list[i])) + "/" + filepath.Base(list[i])
		}
		return list
	}
	if got := look(); len(got) > 0 {
		t.Errorf("no folder, and %q", got)
	}
	if os.Geteuid() != 0 {
		t.Skip("what follows needs files of root")
	}
	put(dirs[1], "10-a", 0o755)
	put(dirs[1], "30-c", 0o755)
	put(dirs[1], "40-d", 0o755)
	put(dirs[0], "20-b", 0o700)
	put(dirs[0], "30-c", 0o755)
	put(dirs[0], "README", 0o644)
	put(dirs[0], ".hidden", 0o755)
	for _, copied := range []string{"20-b~", "20-b.dpkg-old", "20-b.liveupd-new", "20-b.bak"} {
		put(dirs[0], copied, 0o755)
	}
	if err := os.Symlink("/dev/null", filepath.Join(dirs[0], "40-d")); err != nil {
		t.Fatal(err)
	}
	if got, want := look(), []string{"usr/10-a", "etc/20-b", "etc/30-c"}; !slices.Equal(got, want) {
		t.Errorf("hooks = %q; want %q", got, want)
	}
	put(dirs[0], "20-b", 0o775)
	if _, err := hooks(dirs); err == nil || !strings.Contains(err.Error(), "others than root") {
		t.Errorf("a hook that a group may write to: %v", err)
	}
}
