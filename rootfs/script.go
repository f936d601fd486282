package rootfs

import (
	"encoding/json"
	"path"
	"regexp"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// language is how scripts of one language name what they load. Names are read
// from the source where they are literals (see literals); what a program makes
// up at run time is for X-Liveupd-Watch=.
type language struct {
	// load finds a statement; its operand follows the match.
	load *regexp.Regexp
	// lib finds an addition to the folders that are searched.
	lib  *regexp.Regexp
	find func(w *scriptWalker, word, name string) []string
}

var languages = map[string]language{
	"ruby": {
		load: regexp.MustCompile(`(?m)^[ \t]*(?:begin[ ;]+)?(require_relative|require|load|autoload\s+:\w+\s*,)[ \t(]+`),
		lib:  regexp.MustCompile(`(?m)(?:\$LOAD_PATH|\$:)(?:\.unshift|\.push|\s*<<)[ \t(]*`),
		find: (*scriptWalker).ruby,
	},
	"node": {
		load: regexp.MustCompile(`(?m)(\brequire\s*\(|\bimport\s*\(|\bfrom\s|^\s*import\s)\s*`),
		find: (*scriptWalker).node,
	},
	"php": {
		load: regexp.MustCompile(`(?m)\b(require_once|include_once|require|include)\b[ \t(]*`),
		find: (*scriptWalker).php,
	},
}

// scriptWalker walks what one script loads.
type scriptWalker struct {
	c    *collector
	lang language
	dirs []string
	lit  literals
	seen map[string]bool
}

// walkScript follows what a script of a language loads, as far as its source tells.
func (c *collector) walkScript(name, p string) {
	lang, ok := languages[name]
	if !ok {
		return
	}
	real, err := c.in.t.Resolve(p)
	if err != nil {
		return
	}
	w := &scriptWalker{c: c, lang: lang, seen: map[string]bool{real: true}, lit: literals{script: p, real: real, env: c.env}}
	w.dirs = strings.FieldsFunc(c.env[map[string]string{"ruby": "RUBYLIB", "node": "NODE_PATH"}[name]], func(r rune) bool { return r == ':' })
	switch name {
	case "ruby":
		for _, pattern := range []string{
			"/usr/local/lib/site_ruby/*", "/usr/local/lib/site_ruby", "/usr/lib/ruby/vendor_ruby/*.*", "/usr/lib/ruby/vendor_ruby", "/usr/lib/ruby/[0-9]*", "/usr/lib/*/ruby/vendor_ruby/*", "/usr/lib/*/ruby/[0-9]*",
			"/var/lib/gems/*/gems/*/lib", "/usr/share/rubygems-integration/*/gems/*/lib",
		} {
			w.dirs = append(w.dirs, glob(c.in.t, pattern)...)
		}
	case "node":
		w.dirs = append(w.dirs, "/usr/local/lib/node_modules", "/usr/share/nodejs", "/usr/lib/nodejs", "/usr/lib/node_modules")
	case "php":
		w.dirs = append(w.dirs, c.workDir, "/usr/share/php", "/usr/share/pear")
	}
	w.walk(p, real)
}

func (w *scriptWalker) walk(found, real string) {
	if len(w.seen) > maxModules || path.Ext(real) == ".json" || path.Ext(real) == ".so" || path.Ext(real) == ".node" {
		return
	}
	b, err := w.c.in.t.ReadFile(real)
	if err != nil {
		w.c.in.warn.absent(err, "read script", w.c.in.prefix+real)
		return
	}
	src := string(b)
	outer := w.lit.file
	w.lit.file = found
	defer func() { w.lit.file = outer }()
	if w.lang.lib != nil {
		for _, at := range w.lang.lib.FindAllStringIndex(src, -1) {
			dirs, _ := w.lit.list(operand(src[at[1]:]))
			w.dirs = append(dirs, w.dirs...)
		}
	}
	for _, at := range w.lang.load.FindAllStringSubmatchIndex(src, -1) {
		if commented(src, at[2]) {
			continue
		}
		name, ok := w.lit.one(operand(src[at[1]:]))
		if !ok || name == "" {
			continue
		}
		for _, p := range w.lang.find(w, src[at[2]:at[3]], strings.TrimPrefix(name, "file://")) {
			n, err := w.c.in.t.stat2(p)
			if err != nil || n.Type != change.Regular {
				continue
			}
			target, err := w.c.in.t.Resolve(p)
			if err != nil || w.seen[target] {
				break
			}
			w.seen[target] = true
			w.c.follow(p, "module", real)
			w.walk(p, target)
			break
		}
	}
}

// operand is the text of a statement: its line, or some more where a bracket is open.
func operand(src string) string {
	if i := strings.IndexByte(src, ';'); i >= 0 && i < 500 {
		return src[:i]
	}
	return src[:min(len(src), 500)]
}

// commented tells whether a comment begins before at in its line.
func commented(src string, at int) bool {
	line := strings.TrimLeft(src[strings.LastIndexByte(src[:at], '\n')+1:at], " \t")
	return strings.HasPrefix(line, "#") || strings.HasPrefix(line, "//") || strings.HasPrefix(line, "*") || strings.HasPrefix(line, "/*")
}

func withSuffixes(base string, suffixes ...string) []string {
	var out []string
	for _, s := range suffixes {
		out = append(out, base+s)
	}
	return out
}

func (w *scriptWalker) ruby(word, name string) []string {
	suffixes := []string{".rb", ".so", ""}
	switch {
	case word == "require_relative":
		return withSuffixes(path.Join(path.Dir(w.lit.file), name), suffixes...)
	case strings.HasPrefix(name, "/"):
		return withSuffixes(path.Clean(name), suffixes...)
	case strings.HasPrefix(name, "./"), strings.HasPrefix(name, "../"):
		return withSuffixes(w.c.absolute(name), suffixes...)
	}
	var out []string
	for _, dir := range w.dirs {
		out = append(out, withSuffixes(path.Join(w.c.absolute(dir), name), suffixes...)...)
	}
	return out
}

func (w *scriptWalker) php(_, name string) []string {
	if strings.HasPrefix(name, "/") {
		return []string{path.Clean(name)}
	}
	out := []string{}
	for _, dir := range w.dirs {
		out = append(out, path.Join(dir, name))
	}
	return append(out, path.Join(path.Dir(w.lit.file), name))
}

// node looks a name up as Node does: a file, a folder with a package.json, and
// for a bare name the node_modules from the file's folder upwards.
func (w *scriptWalker) node(_, name string) []string {
	name = strings.TrimPrefix(name, "node:")
	if strings.HasPrefix(name, "/") {
		return w.nodePath(path.Clean(name))
	}
	if name == "." || name == ".." || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") {
		return w.nodePath(path.Join(path.Dir(w.lit.file), name))
	}
	var out []string
	real, err := w.c.in.t.Resolve(w.lit.file)
	if err != nil {
		real = w.lit.file
	}
	for dir := path.Dir(real); ; dir = path.Dir(dir) {
		out = append(out, w.nodePath(join(dir, "node_modules/"+name))...)
		if dir == "/" {
			break
		}
	}
	for _, dir := range w.dirs {
		out = append(out, w.nodePath(path.Join(dir, name))...)
	}
	return out
}

func (w *scriptWalker) nodePath(base string) []string {
	out := withSuffixes(base, "", ".js", ".mjs", ".cjs", ".json", ".node")
	if b, err := w.c.in.t.ReadFile(base + "/package.json"); err == nil {
		var pkg struct {
			Main string `json:"main"`
		}
		// Whatever else it says, a package without a usable main has an index.
		if json.Unmarshal(b, &pkg) == nil && pkg.Main != "" {
			main := path.Join(base, pkg.Main)
			out = append(out, withSuffixes(main, "", ".js", "/index.js")...)
		}
	}
	return append(out, withSuffixes(base+"/index", ".js", ".mjs", ".cjs", ".json", ".node")...)
}
