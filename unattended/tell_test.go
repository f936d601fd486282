package unattended

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// An update that went well has gone well, whoever cannot be told of it.
func TestMetricsUnwritable(t *testing.T) {
	f := newFake(t, `metrics = "`+filepath.Join(t.TempDir(), "none/x.prom")+`"`)
	f.update("a=1")
	n, err := f.run(Options{})
	if err != nil || n.Result != change.NightDone || n.Code != 0 {
		t.Errorf("the run is %q, %d, %v", n.Result, n.Code, err)
	}
	told := func(n *change.Night) bool {
		return slices.ContainsFunc(n.Warnings, func(w string) bool { return strings.Contains(w, "cannot write the metrics") })
	}
	if !told(n) {
		t.Errorf("it warns %q", n.Warnings)
	}
	if state, err := LoadState(f.dir); err != nil || state.Last == nil || !told(state.Last) {
		t.Errorf("kept is %+v, %v", state, err)
	}
}

// A hook that cannot be run is told with its reason.
func TestUnusable(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"plain": 0o644, "program": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for program, want := range map[string]string{
		dir + "/none": "no such file", dir + "/plain": "not executable", dir: "a folder", dir + "/program": "", "/home/none/x": "", "/root/none": "",
	} {
		if got := unusable(program); got != want && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("%s: %q; want %q", program, got, want)
		}
	}
}
