// Command gen makes directives.tsv, the list of all settings of unit files,
// from systemd's own documentation and from what is assigned by hand:
//
//	go run ./change/directive/gen -man DIR [-dump FILE]... -classes classes.txt -o directives.tsv
//
// DIR is usr/share/man of an unpacked systemd package, the newest that there is:
// since version 255 each setting says there in which version it came in. FILE is
// what `systemd --dump-configuration-items` of any version prints: it gives the
// types of values, and the settings that are no longer documented. What
// classes.txt does not name is reported, and gets the class that is safe.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// row is a line of the list.
type row struct{ group, key, class, kind, fallback, since string }

// pages are the manual pages with settings of units, by the group of settings
// that each describes.
var pages = map[string]string{
	"systemd.unit": "unit", "systemd.exec": "exec", "systemd.kill": "kill", "systemd.resource-control": "cgroup",
	"systemd.service": "service", "systemd.socket": "socket", "systemd.mount": "mount", "systemd.automount": "automount",
	"systemd.swap": "swap", "systemd.path": "path", "systemd.timer": "timer", "systemd.slice": "slice", "systemd.scope": "scope",
}

// kinds is how the types of a dump are compared.
var kinds = map[string]string{
	"BOOLEAN": "bool", "SECONDS": "time", "NANOSECONDS": "nsec", "MODE": "mode", "UNSIGNED": "int", "INTEGER": "int",
	"NICE": "int", "OOMSCOREADJUST": "int", "SIGNAL": "signal", "SIZE": "size", "LIMIT": "size", "UNIT [...]": "deps",
	"PATH [...]": "set", "ENVIRON": "env", "SYSCALLS": "filter", "BOUNDINGSET": "filter", "NAMESPACES": "filter",
	"FILESYSTEMS": "filter", "FAMILIES": "filter", "CONDITION": "lines", "PATH [ARGUMENT [...]]": "command", "PATH": "path",
}

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	man := flag.String("man", "", "usr/share/man of an unpacked systemd package")
	classes := flag.String("classes", "classes.txt", "what is assigned by hand")
	out := flag.String("o", "directives.tsv", "the list")
	var dumps list
	flag.Var(&dumps, "dump", "what systemd --dump-configuration-items prints; may be given again")
	flag.Parse()
	if err := run(*man, *classes, *out, dumps); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(man, classes, out string, dumps []string) error {
	rows := map[[2]string]*row{}
	for page, group := range pages {
		if err := readPage(filepath.Join(man, "man5", page+".5.gz"), group, rows); err != nil {
			return err
		}
	}
	types := map[string]string{}
	for _, dump := range dumps {
		if err := readDump(dump, rows, types); err != nil {
			return err
		}
	}
	hand, err := readHand(classes)
	if err != nil {
		return err
	}
	var lines []string
	for _, r := range rows {
		hand.assign(r, types[r.key])
		lines = append(lines, strings.Join([]string{r.group, r.key, r.class, r.kind, cmp.Or(r.fallback, "-"), cmp.Or(r.since, "-")}, "\t"))
	}
	slices.Sort(lines)
	for _, k := range slices.Sorted(slices.Values(hand.unused())) {
		fmt.Fprintf(os.Stderr, "gen: %s: %s is no setting that the manual pages or dumps know\n", classes, k)
	}
	head := "# group\tkey\tclass\tkind\tdefault\tsince: made by change/directive/gen; what is assigned by hand stands in classes.txt\n"
	return os.WriteFile(out, []byte(head+strings.Join(lines, "\n")+"\n"), 0o644)
}

var (
	term  = regexp.MustCompile(`\\fI([A-Z][A-Za-z0-9]*)=\\fR`)
	added = regexp.MustCompile(`^Added in version ([0-9]+)`)
)

// readPage finds the definitions of a manual page: a paragraph that begins with
// the settings' names and is followed by an indented block.
func readPage(file, group string, rows map[[2]string]*row) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", file, err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", file, err)
	}
	lines := strings.Split(string(text), "\n")
	section := group
	for i := 0; i+2 < len(lines); i++ {
		if strings.HasPrefix(lines[i], ".SH") {
			section = group
			if strings.Contains(lines[i], "[INSTALL]") {
				section = "install"
			}
		}
		if lines[i] != ".PP" || !strings.HasPrefix(lines[i+1], `\fI`) || lines[i+2] != ".RS 4" {
			continue
		}
		since := sinceVersion(lines[i+3:])
		for _, m := range term.FindAllStringSubmatch(lines[i+1], -1) {
			if m[1] == "Assert" {
				continue // "Assert...=" stands for all of them
			}
			rows[[2]string{section, m[1]}] = &row{group: section, key: m[1], since: since}
		}
	}
	return nil
}

// sinceVersion is the version in the block that begins with lines, less those
// of blocks within it.
func sinceVersion(lines []string) string {
	for depth, i := 1, 0; i < len(lines) && depth > 0; i++ {
		switch {
		case strings.HasPrefix(lines[i], ".RS"):
			depth++
		case strings.HasPrefix(lines[i], ".RE"):
			depth--
		case depth == 1:
			if m := added.FindStringSubmatch(lines[i]); m != nil {
				return m[1]
			}
		}
	}
	return ""
}

// readDump adds what only a dump knows, and the types.
func readDump(file string, rows map[[2]string]*row, types map[string]string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	sections := map[string][]string{}
	section := ""
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		l := sc.Text()
		if strings.HasPrefix(l, "[") {
			section = strings.ToLower(strings.Trim(l, "[]"))
			continue
		}
		key, typ, ok := strings.Cut(l, "=")
		if !ok {
			continue
		}
		types[key] = typ
		sections[key] = append(sections[key], section)
	}
	for key, in := range sections {
		for _, section := range in {
			if !known(rows, key, section) {
				rows[[2]string{groupOf(section, in), key}] = &row{group: groupOf(section, in), key: key}
			}
		}
	}
	return nil
}

// shared are the groups of settings that several sections take.
func shared(section string) []string {
	switch section {
	case "service", "socket", "mount", "swap":
		return []string{section, "exec", "kill", "cgroup"}
	case "slice":
		return []string{section, "cgroup"}
	case "scope":
		return []string{section, "kill", "cgroup"}
	}
	return []string{section}
}

func known(rows map[[2]string]*row, key, section string) bool {
	return slices.ContainsFunc(shared(section), func(g string) bool { return rows[[2]string{g, key}] != nil })
}

// groupOf is the group of a setting that no page describes.
func groupOf(section string, in []string) string {
	switch {
	case slices.Contains(in, "slice") && slices.Contains(in, "service"):
		return "cgroup"
	case slices.Contains(in, "socket") && slices.Contains(in, "service") && slices.Contains(in, "swap"):
		return "exec"
	}
	return section
}

// hand is what classes.txt says.
type hand struct {
	class, fallback map[[2]string]string
	kind            map[string]string
	scalar          map[string]bool
	used            map[string]bool
}

func readHand(file string) (*hand, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	h := &hand{
		class: map[[2]string]string{}, fallback: map[[2]string]string{},
		kind: map[string]string{}, scalar: map[string]bool{}, used: map[string]bool{},
	}
	for n, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		bad := fmt.Errorf("%s:%d: want class GROUP CLASS KEY..., kind KIND KEY..., scalar KEY... or default GROUP KEY=VALUE", file, n+1)
		if len(f) < 2 {
			return nil, bad
		}
		switch {
		case f[0] == "class" && len(f) > 3:
			for _, k := range f[3:] {
				h.class[[2]string{f[1], k}] = f[2]
			}
		case f[0] == "kind" && len(f) > 2:
			for _, k := range f[2:] {
				h.kind[k] = f[1]
			}
		case f[0] == "scalar":
			for _, k := range f[1:] {
				h.scalar[k] = true
			}
		case f[0] == "default" && len(f) > 2:
			for _, a := range f[2:] {
				k, v, ok := strings.Cut(a, "=")
				if !ok {
					return nil, bad
				}
				h.fallback[[2]string{f[1], k}] = v
			}
		default:
			return nil, bad
		}
	}
	return h, nil
}

// safe is the class of what nobody has looked at yet.
var safe = map[string]string{
	"unit": "exec", "install": "install", "exec": "exec", "kill": "exec", "cgroup": "exec", "service": "exec",
	"socket": "listen", "mount": "mount", "automount": "mount", "swap": "swap",
	"path": "manager", "timer": "manager", "slice": "manager", "scope": "manager",
}

func (h *hand) assign(r *row, typ string) {
	id := [2]string{r.group, r.key}
	h.used[r.group+" "+r.key] = true
	r.class = cmp.Or(h.class[id], h.class[[2]string{r.group, "*"}])
	if strings.HasPrefix(r.key, "Condition") || strings.HasPrefix(r.key, "Assert") {
		r.class, r.kind = "manager", "lines"
		return
	}
	if r.class == "" {
		r.class = safe[r.group]
		fmt.Fprintf(os.Stderr, "gen: %s %s= has no class: it gets %s\n", r.group, r.key, r.class)
	}
	r.kind = h.kind[r.key]
	if r.kind == "" {
		r.kind = kinds[typ]
	}
	switch {
	case r.kind == "" && h.scalar[r.key]:
		r.kind = "text"
	case r.kind == "":
		r.kind = "lines"
	}
	r.fallback = h.fallback[id]
	if r.fallback == "" && r.kind == "bool" && (r.class == "exec" || r.class == "listen") {
		r.fallback = "no"
	}
}

// unused are assignments for which no row stands.
func (h *hand) unused() []string {
	var out []string
	for id := range h.class {
		if id[1] != "*" && !h.used[id[0]+" "+id[1]] {
			out = append(out, id[0]+" "+id[1])
		}
	}
	return out
}
