package ui

import (
	"bytes"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

func TestPackages(t *testing.T) {
	p := &change.Plan{
		Source: "apt", Root: "/",
		Changes: change.Counts{Replaced: 2},
		Packages: []change.Package{
			{Name: "a", Arch: "all", From: "1", To: "2"}, {Name: "longer", Arch: "all", To: "1"}, {Name: "x", Arch: "all", From: "3"},
		},
		Conffiles: []change.Conffile{{Path: "/etc/a", Kept: true, Diff: "-mine\n+theirs\n\x1b[2J\n"}},
		Asked:     []string{"nginx.service restart"},
	}
	var out, diag bytes.Buffer
	New(&out, &diag, Options{Verbose: true}).Plan(p)
	for _, want := range []string{
		"Packages: 1 changed, 1 installed, 1 removed\n", "  a       1 -> 2\n", "  longer  1 is installed\n", "  x       3 goes\n",
		"/etc/a: the machine's version stays", "  -mine\n  +theirs\n", "nginx.service restart",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the plan lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("a configuration file can write to the terminal")
	}
}
