package engine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRebootAsked(t *testing.T) {
	dir := t.TempDir()
	holds := func(want string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, rebootAskedBy))
		_, asked := os.Stat(filepath.Join(dir, rebootAsked))
		if string(b) != want || (want == "") != (err != nil) || (want == "") != (asked != nil) {
			t.Errorf("asked by %q (%v, %v); want %q", b, err, asked, want)
		}
	}
	for _, step := range []struct {
		do   func(string, []string) error
		of   []string
		want string
	}{
		{askReboot, nil, ""},
		{withdrawReboot, []string{"x"}, ""},
		{askReboot, []string{"linux", "dbus"}, "linux\ndbus\n"},
		{askReboot, []string{"dbus", "libc6"}, "linux\ndbus\nlibc6\n"},
		{withdrawReboot, []string{"dbus", "other"}, "linux\nlibc6\n"},
		{withdrawReboot, []string{"linux", "libc6"}, ""},
	} {
		if err := step.do(dir, step.of); err != nil {
			t.Fatal(err)
		}
		holds(step.want)
	}
}
