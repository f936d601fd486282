package tarball

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// BenchmarkUnpack unpacks the archive that LIVEUPD_TARBALL names into a folder
// below TMPDIR: content, metadata and digests, without a sync. Compare with
// tar --xattrs --xattrs-include='*' -xpf ARCHIVE -C DIR.
func BenchmarkUnpack(b *testing.B) {
	name := os.Getenv("LIVEUPD_TARBALL")
	if name == "" {
		b.Skip("LIVEUPD_TARBALL names no archive")
	}
	o := Options{ID: hostIDs(b), XZ: os.Getenv("LIVEUPD_XZ"), Record: func(string, *change.Node) {}}
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "dest")
		if err := os.Mkdir(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		dest, err := sys.OpenRoot(dir)
		if err != nil {
			b.Fatal(err)
		}
		in, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		res, err := Unpack(b.Context(), nil, in, name, dest, o)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(res.Bytes)
		in.Close()
		dest.Close()
		b.StopTimer()
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
