package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A test that only the long form has would otherwise fail the first run under CI=true, at its end.
func TestLongFormsAreListed(t *testing.T) {
	const root = "../.."
	allowed, err := readSkips(filepath.Join(root, "tests/skips.txt"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	err = filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		for _, d := range tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Test") || !longOnly(f) {
				continue
			}
			s := skip{pkg: path.Join("github.com/liveupd/liveupd", rel), test: f.Name.Name}
			i := slices.IndexFunc(allowed, func(a allowance) bool { return a.covers(s) })
			if found[i] = true; i < 0 {
				t.Errorf("%s: %s skips without LIVEUPD_LONG=1 and is not listed in tests/skips.txt", file, s.test)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range allowed {
		if strings.Contains(a.reason, "LIVEUPD_LONG=1") && !found[i] {
			t.Errorf("tests/skips.txt lists %s of %s, which needs no LIVEUPD_LONG=1", a.test, a.pkg)
		}
	}
}

// longOnly tells whether a test skips where the long form was not asked for.
func longOnly(f *ast.FuncDecl) bool {
	only := false
	ast.Inspect(f, func(n ast.Node) bool {
		if branch, ok := n.(*ast.IfStmt); ok && mentions(branch.Cond, "long", `"LIVEUPD_LONG"`) && mentions(branch.Body, "Skip", "Skipf") {
			only = true
		}
		return !only
	})
	return only
}

// mentions tells whether one of the names or literals stands in a part of a program.
func mentions(part ast.Node, words ...string) bool {
	found := false
	ast.Inspect(part, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			found = found || slices.Contains(words, n.Name)
		case *ast.BasicLit:
			found = found || slices.Contains(words, n.Value)
		}
		return !found
	})
	return found
}
