package recovery

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/liveupd/liveupd/change"
)

type setupItem = change.SetupItem

// tree is what lies below a folder: mode, and content or target.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		text := ""
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			text, err = os.Readlink(p)
		case st.Mode().IsRegular():
			var b []byte
			b, err = os.ReadFile(p)
			text = string(b)
		}
		out[rel] = fmt.Sprint(st.Mode(), " ", text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func installedProgram(content string) string { return fmt.Sprint(fs.FileMode(0o755), " ", content) }
