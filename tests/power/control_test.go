package power

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/vm"
)

// spoiled builds liveupd with a part of its safety taken out: each edit replaces a text that must be there once.
// The source tree is not touched.
func spoiled(t *testing.T, file string, edits ...[2]string) string {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(top, file))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, e := range edits {
		if strings.Count(text, e[0]) != 1 {
			t.Fatalf("%s holds %d times, and not once:\n%s", file, strings.Count(text, e[0]), e[0])
		}
		text = strings.Replace(text, e[0], e[1], 1)
	}
	dir := t.TempDir()
	other, overlay, program := filepath.Join(dir, filepath.Base(file)), filepath.Join(dir, "overlay"), filepath.Join(dir, "liveupd")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(top, file): other}})
	if err == nil {
		err = os.WriteFile(other, []byte(text), 0o600)
	}
	if err == nil {
		err = os.WriteFile(overlay, list, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-C", top, "-overlay", overlay, "-trimpath", "-o", program, "./cmd/liveupd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the spoiled program: %v\n%s", err, out)
	}
	return program
}

// Without the barriers the same suite finds disks that are wrong: some that become neither of the two trees, and, soon
// after the program has said that the new tree is in place, some that become the old one. From a little before that on the
// states are tried until there is one.
func TestWithoutBarriers(t *testing.T) {
	vm.Require(t)
	t.Parallel()
	const call = `func() error { return unix.Syncfs(f.n) }`
	program := spoiled(t, "internal/sys/mutate.go", [2]string{call, `func() error { return nil }`})
	r := newRig(t, ext4, vm.Trixie, program)
	l := record(t, r)
	defer l.Close()
	s := &states{t: t, r: r, base: r.base, l: l, random: choose(t), control: true}
	const enough = 40
	done := l.index("exit 0")
	for i, point := range slices.DeleteFunc(l.barriers(), func(i int) bool { return i < done-20 }) {
		if s.walk([]int{point}); i == enough || len(s.problems) > 0 {
			break
		}
	}
	t.Logf("ext4 without syncfs: %v; %d of them are wrong", &s.tally, len(s.problems))
	if len(s.problems) == 0 {
		t.Error("the suite finds nothing wrong with a program that has no barriers")
	} else {
		t.Logf("the first: %.600s", s.problems[0])
	}
}
