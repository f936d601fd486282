package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/transact"
)

// crashed makes a tree in which an update died after a number of renames.
func crashed(t *testing.T, renames int) (root, id string) {
	t.Helper()
	root = t.TempDir()
	return root, crash(t, root, renames)
}

// crash lets an update of root die after a number of renames.
func crash(t *testing.T, root string, renames int) (id string) {
	t.Helper()
	content := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(content, "new"), []byte("new"), 0o644))
	must(os.WriteFile(filepath.Join(content, "more"), []byte("more"), 0o644))
	vol, err := sys.OpenRoot(root)
	must(err)
	defer vol.Close()
	src, err := sys.OpenRoot(content)
	must(err)
	defer src.Close()
	seen, staged := 0, false
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "renameat2" && staged {
			seen++
		}
		if seen > renames {
			return sys.Fault{Err: errors.New("dead")}
		}
		return sys.Fault{}
	})
	s, err := transact.Open(k, []transact.Volume{{Mount: "/", Dir: vol}})
	must(err)
	defer s.Close()
	tx, err := s.Begin(transact.Header{})
	must(err)
	defer tx.Close()
	d := &change.Delta{}
	for _, name := range []string{"/more", "/new"} {
		n, err := sys.Lstat(src, name[1:])
		must(err)
		d.Entries = append(d.Entries, change.Entry{Path: name, Op: change.Add, New: n, From: name})
	}
	must(tx.Stage(context.Background(), d, src, nil))
	must(tx.Prepare(context.Background(), nil))
	staged = true
	if _, err := tx.Commit(context.Background()); err == nil {
		t.Fatal("the commit did not die")
	}
	return tx.ID()
}

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name    string
		renames int // of the commit: the first is the state committing
		damage  func(t *testing.T, root, id string)
		code    int
		stdout  string
		stderr  string
		files   int
	}{
		{"before the commit point", 0, nil, 0, "the old tree", "", 0},
		{"at the commit point", 1, nil, 0, "the new tree", "", 2},
		{"in the swap", 2, nil, 0, "the new tree", "", 2},
		{"a damaged journal", 2, func(t *testing.T, root, id string) {
			if err := os.WriteFile(filepath.Join(root, ".liveupd/tx", id, "journal"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 7, "", "needs a person", 1},
		{"a store that others can use", 2, func(t *testing.T, root, _ string) {
			if err := os.Chmod(filepath.Join(root, ".liveupd"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, 1, "", "mode 0755", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, id := crashed(t, tt.renames)
			if tt.damage != nil {
				tt.damage(t, root, id)
			}
			for i := range 2 {
				var stdout, stderr bytes.Buffer
				code := run([]string{"--root", root}, &stdout, &stderr)
				if code != tt.code {
					t.Errorf("run %d: exit %d; want %d: %s", i+1, code, tt.code, &stderr)
				}
				if i == 0 && (!strings.Contains(stdout.String(), tt.stdout) || tt.code == 0 && strings.Count(stdout.String(), "\n") != 1) {
					t.Errorf("stdout %q; want one line with %q", &stdout, tt.stdout)
				}
				if !strings.Contains(stderr.String(), tt.stderr) {
					t.Errorf("stderr %q; want %q", &stderr, tt.stderr)
				}
				files, err := filepath.Glob(filepath.Join(root, "[a-z]*"))
				if err != nil || len(files) != tt.files {
					t.Errorf("the tree holds %q; want %d files", files, tt.files)
				}
			}
		})
	}
}

func TestJSON(t *testing.T) {
	root, id := crashed(t, 3)
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--root", root, "--json"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, &stderr)
	}
	var got result
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, &stdout)
	}
	if got.MessageType != "report" || got.Verb != "recover" || got.ID != id || got.Tree != "new" || got.Found != "committing" || got.Result != "pending" {
		t.Errorf("report %s", &stdout)
	}
}

func TestNothingToRecoverMakesNothing(t *testing.T) {
	root := t.TempDir()
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--root", root}, &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), "nothing to recover") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, &stdout, &stderr)
	}
	if names, err := os.ReadDir(root); err != nil || len(names) != 0 {
		t.Errorf("it made %v, %v", names, err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"--root"}, {"--root", "/x", "y"}, {"--bogus"}} {
		var stdout, stderr bytes.Buffer
		if code := run(args, &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), "EXIT STATUS") {
			t.Errorf("%q: exit %d, stderr %q; want 2 and the usage", args, code, &stderr)
		}
	}
}
