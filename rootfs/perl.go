package rootfs

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// perlInstall is where one interpreter looks for modules (perl -V).
type perlInstall struct {
	inc      []string
	core     int // index in inc of the first folder of the library itself
	versions []string
	arch     []string
}

// perlFolders are the folders of @INC in their order: Debian's, then those of
// Fedora and openSUSE, then a perl that was built with the defaults. V stands
// for the version, as 5.36 and 5.36.0, A for the name of the architecture, P
// for what the interpreter's own bin folder lies in.
var perlFolders = []struct {
	dir  string
	core bool
}{
	{"/etc/perl", false},
	{"/usr/local/lib/A/perl/V", false},
	{"/usr/local/share/perl/V", false},
	{"/usr/lib/A/perl5/V", false},
	{"/usr/share/perl5", false},
	{"/usr/lib/A/perl-base", true},
	{"/usr/lib/A/perl/V", true},
	{"/usr/share/perl/V", true},
	{"/usr/local/lib/site_perl", false},
	{"/usr/local/lib64/perl5/V", false},
	{"/usr/local/lib64/perl5", false},
	{"/usr/local/share/perl5/V", false},
	{"/usr/lib64/perl5/vendor_perl", false},
	{"/usr/share/perl5/vendor_perl", false},
	{"/usr/lib64/perl5", true},
	{"/usr/lib/perl5/core_perl", true},
	{"/usr/share/perl5/core_perl", true},
	{"/usr/lib/perl5/vendor_perl/V/A", false},
	{"/usr/lib/perl5/vendor_perl/V", false},
	{"P/lib/perl5/site_perl/V/A", false},
	{"P/lib/perl5/site_perl/V", false},
	{"P/lib/perl5/V/A", true},
	{"P/lib/perl5/V", true},
	{"P/lib/site_perl/V/A", false},
	{"P/lib/site_perl/V", false},
	{"P/lib/V/A", true},
	{"P/lib/V", true},
}

func (r *reader) perlInstall(real string) *perlInstall {
	return r.perls.get(real, func() *perlInstall {
		in := &perlInstall{versions: r.perlVersions(real)}
		prefix := path.Dir(path.Dir(real))
		var rest []string
		for _, f := range perlFolders {
			dir := strings.Replace(f.dir, "P/", strings.TrimSuffix(prefix, "/")+"/", 1)
			if !strings.HasPrefix(f.dir, "P/") && prefix != "/usr" && prefix != "/" {
				continue // an interpreter that was built for a place of its own
			}
			for _, p := range r.perlExpand(dir, in.versions) {
				switch {
				case slices.Contains(in.inc, p) || slices.Contains(rest, p):
				case f.core:
					rest = append(rest, p)
				default:
					in.inc = append(in.inc, p)
				}
			}
		}
		// Debian's order has one folder behind the library; nothing there
		// replaces what the library has, so it may stand before it.
		in.core = len(in.inc)
		in.inc = append(in.inc, rest...)
		for _, p := range in.inc {
			for part := range strings.SplitSeq(p, "/") {
				if strings.Contains(part, "-linux") && !slices.Contains(in.arch, part) {
					in.arch = append(in.arch, part)
				}
			}
		}
		return in
	})
}

// perlExpand fills a folder's version and architecture in, for what is there.
func (r *reader) perlExpand(dir string, versions []string) []string {
	dirs := []string{dir}
	if strings.Contains(dir, "/V") {
		dirs = nil
		for _, v := range versions {
			dirs = append(dirs, strings.Replace(dir, "/V", "/"+v, 1))
		}
	}
	var out []string
	for _, d := range dirs {
		before, after, ok := strings.Cut(d, "/A")
		if !ok {
			if r.isDir(d) {
				out = append(out, d)
			}
			continue
		}
		names, err := r.t.ReadDir(before)
		if err != nil {
			r.warn.absent(err, "read", r.prefix+before)
			continue
		}
		for _, n := range names {
			if strings.Contains(n, "-linux") && r.isDir(before+"/"+n+after) {
				out = append(out, before+"/"+n+after)
			}
		}
	}
	return out
}

// perlHidden are modules of the library that load others by a name which they
// make at run time.
var perlHidden = map[string][]string{
	"File/Spec.pm":   {"File/Spec/Unix.pm"},
	"Pod/Usage.pm":   {"Pod/Text.pm"},
	"ExtUtils/MM.pm": {"ExtUtils/MM_Unix.pm"},
	"AnyDBM_File.pm": {"NDBM_File.pm", "DB_File.pm", "GDBM_File.pm"},
}

// perlVersions finds the interpreter's version in the names of its library's
// folders: 5.36.0 and 5.36.
func (r *reader) perlVersions(real string) []string {
	var best []int
	bases := []string{"/usr/share/perl", "/usr/lib/perl5", "/usr/share/perl5", "/usr/lib64/perl5"}
	prefix := path.Dir(path.Dir(real))
	if prefix != "/usr" && prefix != "/" {
		bases = []string{prefix + "/lib/perl5", prefix + "/lib"}
	}
	for _, base := range bases {
		names, err := r.t.ReadDir(base)
		if err != nil {
			continue
		}
		for _, n := range names {
			if v := perlNumber(n); v != nil && slices.Compare(v, best) > 0 {
				if _, err := r.t.Lstat(base + "/" + n + "/strict.pm"); err == nil || len(v) == 3 && best == nil {
					best = v
				}
			}
		}
	}
	if len(best) < 2 {
		return nil
	}
	short := strconv.Itoa(best[0]) + "." + strconv.Itoa(best[1])
	if len(best) == 2 {
		return []string{short + ".0", short}
	}
	return []string{short + "." + strconv.Itoa(best[2]), short}
}

// perlNumber reads 5.36.0 or 5.36.
func perlNumber(name string) []int {
	var out []int
	for part := range strings.SplitSeq(name, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil
		}
		out = append(out, n)
	}
	if len(out) < 2 || out[0] != 5 {
		return nil
	}
	return out
}

// perlSource is what a source loads.
type perlSource struct {
	loads []perlLoad
	xs    bool
}

func (r *reader) perlSource(file string) perlSource {
	return r.perlSources.get(file, func() perlSource {
		b, err := r.t.ReadFile(file)
		if err != nil {
			r.warn.absent(err, "read Perl source", r.prefix+file)
			return perlSource{}
		}
		loads, xs := scanPerl(string(b))
		return perlSource{loads, xs}
	})
}

// perlWalker walks what one program loads, in its order: a folder that it adds
// to @INC counts for what comes after.
type perlWalker struct {
	c       *collector
	install *perlInstall
	inc     []string
	own     int // how many folders of inc the program has added
	lit     literals
	seen    map[string]bool
}

// perl reads an interpreter's arguments and walks what its program loads.
func (c *collector) perl(real string, args []string) {
	in := c.in.perlInstall(real)
	w := &perlWalker{c: c, install: in, seen: map[string]bool{}, lit: literals{vars: map[string]string{}, env: c.env}}
	env := c.env["PERL5LIB"]
	if env == "" {
		env = c.env["PERLLIB"]
	}
	w.inc = append(w.inc, in.inc...)
	dirs := strings.FieldsFunc(env, func(r rune) bool { return r == ':' })
	w.addLib(dirs)
	var modules, texts []string
	args = w.flags(append(strings.Fields(c.env["PERL5OPT"]), args...), &modules, &texts)
	script := ""
	if texts == nil && len(args) > 0 && args[0] != "-" {
		p := c.absolute(args[0])
		if script = c.follow(p, "script", real); script == "" {
			return
		}
		w.lit.script, w.lit.real = p, script
		// perl obeys the options of the script's first line, however it is called.
		if line := c.in.head(script); strings.HasPrefix(line, "#!") && strings.Contains(line, "perl") {
			if _, options, ok := strings.Cut(line[strings.Index(line, "perl"):], " "); ok {
				w.flags(strings.Fields(options), &modules, &texts)
			}
		}
	}
	if w.find("sitecustomize.pl") != "" && c.in.isDir("/etc/perl") {
		w.module("sitecustomize.pl", real)
	}
	for _, m := range modules {
		if l, ok := perlOne("use", m); ok {
			w.load(l, real)
		}
	}
	for _, t := range texts {
		loads, _ := scanPerl(t)
		for _, l := range loads {
			w.load(l, real)
		}
	}
	if script != "" {
		w.scan(script)
	}
}

// flags reads the interpreter's options (perlrun(1)) and gives what follows them.
func (w *perlWalker) flags(args []string, modules, texts *[]string) []string {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && len(args[0]) > 1 {
		flag := args[0]
		args = args[1:]
		if flag == "--" {
			return args
		}
		for i := 1; i < len(flag); i++ {
			rest := flag[i+1:]
			operand := func() string {
				i = len(flag)
				if rest == "" && len(args) > 0 {
					rest, args = args[0], args[1:]
				}
				return rest
			}
			switch flag[i] {
			case 'e', 'E':
				*texts = append(*texts, operand())
			case 'I':
				w.addLib([]string{operand()})
			case 'M', 'm':
				m := strings.TrimPrefix(operand(), "-")
				name, list, ok := strings.Cut(m, "=")
				if ok {
					m = name + " qw(" + strings.ReplaceAll(list, ",", " ") + ")"
				}
				*modules = append(*modules, m+";")
			case 'd':
				if name, ok := strings.CutPrefix(rest, ":"); ok {
					name, _, _ = strings.Cut(name, "=")
					*modules = append(*modules, "Devel::"+name+";")
				}
				i = len(flag)
			case '0', 'C', 'D', 'F', 'i', 'l', 'x', 'V', 'v':
				i = len(flag) // an operand of its own, or none
			}
		}
	}
	return args
}

// addLib puts folders first, each with what lies in it for this version and
// architecture (lib.pm does the same).
func (w *perlWalker) addLib(dirs []string) {
	var add []string
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		dir = w.c.absolute(dir)
		var sub []string
		for _, a := range w.install.arch {
			for _, v := range w.install.versions {
				sub = append(sub, dir+"/"+v+"/"+a)
			}
			sub = append(sub, dir+"/"+a)
		}
		for _, v := range w.install.versions {
			sub = append(sub, dir+"/"+v)
		}
		for _, s := range sub {
			if w.c.in.isDir(s) {
				add = append(add, s)
			}
		}
		add = append(add, dir)
	}
	w.inc = slices.Concat(add, w.inc)
	w.own += len(add)
}

func (w *perlWalker) find(name string) string {
	for _, dir := range w.inc {
		p := join(dir, name)
		if n, err := w.c.in.t.stat2(p); err == nil && n.Type == change.Regular {
			return p
		}
	}
	return ""
}

// module uses a file of @INC, and walks it.
func (w *perlWalker) module(name, via string) {
	if w.seen[name] || len(w.seen) > maxModules {
		return
	}
	w.seen[name] = true
	p := w.find(name)
	if p == "" {
		return
	}
	real := w.c.follow(p, "module", via)
	if real == "" {
		return
	}
	if stem, ok := strings.CutSuffix(name, ".pm"); ok && w.c.in.perlSource(real).xs {
		w.compiled(stem, real)
	}
	w.walk(p, real)
	for _, hidden := range perlHidden[name] {
		w.module(hidden, real)
	}
}

// compiled uses what XSLoader loads for a module: auto/NAME/LAST.so.
func (w *perlWalker) compiled(stem, via string) {
	p := w.find("auto/" + stem + "/" + path.Base(stem) + ".so")
	if p == "" {
		return
	}
	real := w.c.follow(p, "module", via)
	if real == "" {
		return
	}
	for _, d := range w.c.in.closure(real, w.c.env["LD_LIBRARY_PATH"], "") {
		w.c.add(d.path, "soname", d.via)
	}
	// Functions of machine code that have attributes load the module for them (perlapi, newXS
	// with ATTRS: of perlxs).
	if b, err := w.c.in.t.ReadFile(real); err == nil && bytes.Contains(b, []byte("\x00Perl_apply_attrs_string\x00")) {
		w.module("attributes.pm", real)
	}
}

// file uses a file that is named by its path, and walks it.
func (w *perlWalker) file(p, via string) {
	if w.seen[p] || len(w.seen) > maxModules {
		return
	}
	w.seen[p] = true
	if n, err := w.c.in.t.stat2(p); err != nil || n.Type != change.Regular {
		return
	}
	if real := w.c.follow(p, "module", via); real != "" {
		w.walk(p, real)
	}
}

func (w *perlWalker) scan(script string) { w.walk(w.lit.script, script) }

// walk follows what a source loads; found is the path by which it was found.
func (w *perlWalker) walk(found, real string) {
	outer := w.lit.file
	w.lit.file = found
	for _, l := range w.c.in.perlSource(real).loads {
		w.load(l, real)
	}
	w.lit.file = outer
}

// load follows one statement.
func (w *perlWalker) load(l perlLoad, via string) {
	switch l.do {
	case "set":
		if v, ok := w.lit.one(l.rest); ok {
			w.lit.vars[l.name] = v
		}
	case "lib":
		dirs, _ := w.lit.list(l.rest)
		w.addLib(dirs)
		w.module("lib.pm", via)
	case "push":
		dirs, _ := w.lit.list(l.rest)
		for _, d := range dirs {
			w.inc = append(w.inc, w.c.absolute(d))
		}
	case "compiled":
		w.compiled(strings.ReplaceAll(l.name, "::", "/"), via)
	case "file":
		if vals, _ := w.lit.list(l.rest); len(vals) > 0 {
			w.named(vals[0], via)
		}
	default:
		w.module(strings.ReplaceAll(l.name, "::", "/")+".pm", via)
		w.arguments(l, via)
	}
}

// named is require or do of a file's name: from the working folder where it
// says so, else from @INC.
func (w *perlWalker) named(name, via string) {
	switch {
	case strings.HasPrefix(name, "/"):
		w.file(path.Clean(name), via)
	case strings.HasPrefix(name, "./"), strings.HasPrefix(name, "../"):
		w.file(w.c.absolute(name), via)
	case w.find(name) != "":
		w.module(name, via)
	default:
		w.file(w.c.absolute(name), via) // "." was in @INC before 5.26
	}
}

// arguments are the modules that some pragmas name.
func (w *perlWalker) arguments(l perlLoad, via string) {
	var names []string
	switch l.name {
	case "parent", "base", "fields", "aliased", "autouse", "superclass", "Mojo::Base", "Test::More", "ok":
		names, _ = w.lit.list(l.rest)
		if slices.Contains(names, "-norequire") || strings.Contains(l.rest, "-norequire") {
			return
		}
	case "if", "maybe", "Module::Load::Conditional":
		// use if CONDITION, MODULE => ARGUMENTS
		names, _ = w.lit.list(l.rest)
	case "feature":
		if l.rest == "strict warnings" {
			names = []string{"strict", "warnings"}
		}
	case "open", "encoding":
		names = []string{"PerlIO::encoding", "Encode"}
	case "POSIX":
		names = []string{"Tie::Hash"}
	}
	for _, n := range names {
		if perlModule.FindString(n) == n {
			w.module(strings.ReplaceAll(n, "::", "/")+".pm", via)
		}
	}
}
