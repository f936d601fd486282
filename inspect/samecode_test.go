package inspect

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// A file that was signed or stripped after it was mapped is no news; one whose
// code was patched under the old build ID is.
func TestStaleBuildID(t *testing.T) {
	const program = "/usr/bin/true"
	b, err := os.ReadFile(program)
	if err != nil {
		t.Skip(err)
	}
	lib := filepath.Join(lasting(t), "lib.so")
	write(t, lib, string(b))
	pid := mapper(t, lib, true)

	write(t, lib+".new", string(b)+"~signature~")
	rename(t, lib+".new", lib)
	want(t, "signed", stale(t, StaleRequest{}, pid))

	b[len(b)/2] ^= 0xff // within its segments: section headers and names are the small rest
	write(t, lib+".new", string(b)+"~signature~")
	rename(t, lib+".new", lib)
	want(t, "patched under the same build ID", stale(t, StaleRequest{}, pid),
		change.Hit{PID: pid, Kind: "mapped", Path: lib, Detail: "replaced"})
}
