package rootfs

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// files is a tree: path to content; "-> target" makes a symlink, a path that
// ends in "/" a folder.
type files map[string]string

func writeTree(t *testing.T, fs files) string {
	t.Helper()
	dir := t.TempDir()
	for p, content := range fs {
		full := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(content, "-> ")
		var err error
		switch {
		case strings.HasSuffix(p, "/"):
			err = os.MkdirAll(full, 0o755)
		case link:
			err = os.Symlink(target, full)
		default:
			err = os.WriteFile(full, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openDir(t testing.TB, dir string) *sys.FD {
	t.Helper()
	fd, err := sys.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	return fd
}

func viewOf(t *testing.T, fs files) View {
	t.Helper()
	return Dir(openDir(t, writeTree(t, fs)))
}

func load(t *testing.T, v View, o LoadOptions) *change.Tree {
	t.Helper()
	tree, err := Load(context.Background(), v, o)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// usesOf lists "kind path" of a unit's uses, sorted.
func usesOf(t *testing.T, tree *change.Tree, unit string) []string {
	t.Helper()
	u := tree.Units[unit]
	if u == nil {
		t.Fatalf("the tree has no unit %s", unit)
	}
	var out []string
	for _, use := range u.Uses {
		out = append(out, use.Kind+" "+use.Path)
	}
	slices.Sort(out)
	return out
}

// settingsOf lists "Section.Key=Value <- file" of a unit in order of effect.
func settingsOf(u *change.Unit) []string {
	var out []string
	for _, s := range u.Settings {
		out = append(out, s.Section+"."+s.Key+"="+s.Value+" <- "+s.File)
	}
	return out
}
