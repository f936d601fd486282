package ui

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/liveupd/liveupd/change"
)

// packagesShown and diffShown are how much is shown where nobody asked for all of it.
const (
	packagesShown = 12
	diffShown     = 12
)

// planPackages tells what a package manager's update changes, package by package.
func (t *text) planPackages(p *change.Plan) {
	if len(p.Packages) == 0 {
		return
	}
	var up, in, out int
	for _, k := range p.Packages {
		switch {
		case k.From == "":
			in++
		case k.To == "":
			out++
		default:
			up++
		}
	}
	var parts []string
	for _, c := range []struct {
		n    int
		word string
	}{{up, "changed"}, {in, "installed"}, {out, "removed"}} {
		if c.n > 0 {
			parts = append(parts, count(c.n)+" "+c.word)
		}
	}
	t.printf("\n%s %s\n", t.paint(bold, "Packages:"), strings.Join(parts, ", "))
	shown := p.Packages
	if !t.o.Verbose && len(shown) > packagesShown {
		shown = shown[:packagesShown]
	}
	width := 0
	for _, k := range shown {
		width = max(width, utf8.RuneCountInString(k.Name))
	}
	for _, k := range shown {
		versions := k.From + " -> " + k.To
		switch {
		case k.From == "":
			versions = k.To + " is installed"
		case k.To == "":
			versions = k.From + " goes"
		}
		t.printf("  %s%s  %s\n", clean(k.Name), strings.Repeat(" ", width-utf8.RuneCountInString(k.Name)), t.paint(dim, clean(versions)))
	}
	if more := len(p.Packages) - len(shown); more > 0 {
		t.printf("  and %s more (-v shows all)\n", count(more))
	}
	for _, c := range p.Conffiles {
		t.conffile(c)
	}
	if t.o.Verbose && len(p.Asked) > 0 {
		t.printf("\n%s\n", t.paint(bold, "What the packages' scripts asked for by themselves, and the plan decides"))
		for _, line := range p.Asked {
			t.printf("  %s\n", clean(line))
		}
	}
}

// conffile shows a configuration file of which there are two versions now.
func (t *text) conffile(c change.Conffile) {
	which := "the machine's version stays, the package's lies beside it"
	if !c.Kept {
		which = "the package's version is taken, the machine's lies beside it"
	}
	t.printf("\n%s %s\n", t.paint(bold, clean(c.Path)+":"), which)
	lines := strings.Split(strings.TrimSuffix(c.Diff, "\n"), "\n")
	rest := 0
	if !t.o.Verbose && len(lines) > diffShown {
		rest = len(lines) - diffShown
		lines = lines[:diffShown]
	}
	for _, line := range lines {
		color := dim
		switch {
		case strings.HasPrefix(line, "+"):
			color = green
		case strings.HasPrefix(line, "-"):
			color = red
		}
		t.printf("  %s\n", t.paint(color, clean(line)))
	}
	if rest > 0 {
		t.printf("  %s\n", fmt.Sprintf("and %s more (-v shows all)", count(rest)))
	}
}
