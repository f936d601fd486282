package transact

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/internal/sys"
)

// What others could use on a file system beside the root's bars a transaction, and
// not a look at what is installed.
func TestReadPassesOver(t *testing.T) {
	var vols []Volume
	for _, mount := range []string{"/", "/media/stick"} {
		dir, err := sys.OpenRoot(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		vols = append(vols, Volume{Mount: mount, Dir: dir})
	}
	home := filepath.Join(vols[1].Dir.Name(), Dir)
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Read(vols)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) > 0 {
		t.Errorf("List: %v, %v", list, err)
	}
	s.Close()
	if s, err := Open(nil, vols); err == nil || !strings.Contains(err.Error(), "/media/stick/.liveupd") {
		if err == nil {
			s.Close()
		}
		t.Errorf("Open: %v; want a refusal of /media/stick/.liveupd", err)
	}
	if err := os.Mkdir(filepath.Join(vols[0].Dir.Name(), Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if s, err := Read(vols); err == nil {
		s.Close()
		t.Error("Read accepts a .liveupd of the root's own that others can read")
	}
}
