package house

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// goFiles lists the Go files of the tree by folder, relative to root.
func goFiles(t *testing.T) map[string][]string {
	t.Helper()
	files := map[string][]string{}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		name := e.Name()
		if e.IsDir() && rel != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(name, ".go") && e.Type().IsRegular() {
			files[filepath.Dir(rel)] = append(files[filepath.Dir(rel)], rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found Go files in %d folders only", len(files))
	}
	return files
}

// A package has one comment, in one file: two that drift apart are worse than none.
func TestPackageComments(t *testing.T) {
	files := goFiles(t)
	for _, dir := range slices.Sorted(maps.Keys(files)) {
		var with []string
		for _, name := range files[dir] {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc == nil {
				continue
			}
			with = append(with, name)
			want := "Package " + f.Name.Name + " "
			if f.Name.Name == "main" {
				want = "Command " + filepath.Base(dir) + " "
			}
			if !strings.HasPrefix(f.Doc.Text(), want) {
				t.Errorf("%s: the package comment does not begin with %q", name, want)
			}
		}
		if len(with) != 1 {
			t.Errorf("%s: %d files have a package comment (%s); want one", dir, len(with), strings.Join(with, ", "))
		}
	}
}

// A file that cannot be read at once hides a wall that wants to be moved.
func TestFileLength(t *testing.T) {
	const most = 600
	for _, names := range goFiles(t) {
		for _, name := range names {
			b, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(b, []byte("\n")); n > most {
				t.Errorf("%s has %d lines; split it before %d", name, n, most)
			}
		}
	}
}

// A package is a noun with one job. These names say nothing, so everything ends up in them.
func TestNames(t *testing.T) {
	for dir := range goFiles(t) {
		for part := range strings.SplitSeq(filepath.ToSlash(dir), "/") {
			if slices.Contains([]string{"util", "utils", "common", "core", "helper", "helpers", "misc", "lib", "shared"}, part) {
				t.Errorf("%s: %q says nothing about what the package does", dir, part)
			}
		}
	}
}

// A replace makes what is built here differ from what others get, and a
// vendored tree is nobody's to check.
func TestModule(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "replace" {
			t.Errorf("go.mod holds a replace: %s", line)
		}
	}
}

// Each change that a user sees has a file of its own in the form that changelog/README.md states.
func TestChangelog(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(root, "changelog/*/*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("found %d changelog files, %v", len(names), err)
	}
	kinds := []string{"Security: ", "Bugfix: ", "Change: ", "Enhancement: "}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		title, rest, _ := strings.Cut(string(b), "\n")
		if !slices.ContainsFunc(kinds, func(k string) bool { return strings.HasPrefix(title, k) }) {
			t.Errorf("%s: the first line is %q; want one of %q and a title", name, title, kinds)
		}
		if len(title) > 80 || !strings.HasPrefix(rest, "\n") || strings.TrimSpace(rest) == "" {
			t.Errorf("%s: want a title of at most 80 characters, an empty line and a text", name)
		}
	}
}
