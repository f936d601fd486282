package rootfs

import (
	"path"
	"slices"
	"strings"
)

// maxModules bounds the modules that one script's imports may reach.
const maxModules = 20000

// pyBuiltin are modules inside of the interpreter, which come before any file.
var pyBuiltin = wordSet(`_abc _ast _codecs _collections _functools _imp _io _operator _signal _sre _stat _string
_symtable _thread _tracemalloc _warnings _weakref atexit builtins errno faulthandler gc itertools marshal posix pwd sys time`)

// pyHidden are the modules that the library's extension modules import in C,
// where no source shows it.
var pyHidden = map[string][]string{
	"_asyncio":     {"asyncio"},
	"_datetime":    {"_strptime"},
	"_decimal":     {"collections", "numbers"},
	"_elementtree": {"copy", "xml.etree.ElementPath"},
	"_pickle":      {"_compat_pickle", "copyreg"},
}

// pyStartup are the modules that every start of Python loads before the script
// (python -X importtime -c pass); what they would import in functions does not
// count for a script that only starts.
var pyStartup = []string{
	"zipimport", "importlib", "importlib._bootstrap_external", "encodings", "encodings.aliases", "encodings.utf_8", "codecs", "io", "abc", "site", "os", "stat",
	"posixpath", "genericpath", "_collections_abc", "_sitebuiltins",
}

// pyOptions are the interpreter options that change the search path.
type pyOptions struct {
	noEnv    bool // -E, -I
	noUser   bool // -s, -I
	safePath bool // -P, -I
	noSite   bool // -S
}

// python reads an interpreter's arguments and walks the imports of what it
// runs. invoked is the path by which the interpreter was called, real where
// its program is.
func (c *collector) python(invoked, real string, args []string) {
	var o pyOptions
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		flag := args[0]
		args = args[1:]
		if flag == "--" {
			break
		}
		if strings.HasPrefix(flag, "--") {
			if flag == "--check-hash-based-pycs" && len(args) > 0 {
				args = args[1:]
			}
			continue
		}
		for i := 1; i < len(flag); i++ {
			operand := func() string {
				if i+1 < len(flag) {
					return flag[i+1:]
				}
				if len(args) > 0 {
					return args[0]
				}
				return ""
			}
			switch flag[i] {
			case 'I':
				o = pyOptions{noEnv: true, noUser: true, safePath: true}
			case 'E':
				o.noEnv = true
			case 's':
				o.noUser = true
			case 'S':
				o.noSite = true
			case 'P':
				o.safePath = true
			case 'm':
				w := c.pyWalk(invoked, real, c.workDir, o)
				w.add("", pyImport{module: "runpy"}, nil)
				w.application(args, real)
				w.run(operand(), real)
				return
			case 'c':
				w := c.pyWalk(invoked, real, c.workDir, o)
				w.adds(pySysPath(operand(), "", c.env))
				w.scan(pySource{file: real}, scanPython(operand(), true))
				w.finish()
				return
			case 'W', 'X':
				if i+1 == len(flag) && len(args) > 0 {
					args = args[1:]
				}
				i = len(flag)
			}
		}
	}
	if len(args) == 0 || args[0] == "-" {
		c.pyWalk(invoked, real, c.workDir, o).finish()
		return
	}
	script := c.follow(c.absolute(args[0]), "script", real)
	if script == "" {
		return
	}
	if c.in.isDir(script) {
		w := c.pyWalk(invoked, real, script, o)
		w.application(args[1:], script)
		w.run("__main__", script)
		return
	}
	w := c.pyWalk(invoked, real, path.Dir(script), o)
	w.application(args[1:], script)
	text := c.in.imports(script, true)
	w.adds(text.first, text.last)
	w.scan(pySource{file: script}, text.imports)
	w.finish()
}

// application follows what an application server is told to import by its
// arguments: MODULE:NAME of gunicorn, uvicorn and their like, -A MODULE of
// Celery, --app of Flask, DJANGO_SETTINGS_MODULE. Such servers import from
// their working folder first, or from the one that an argument names.
func (w *pyWalker) application(args []string, via string) {
	dir := w.c.workDir
	var modules []string
	for i, a := range args {
		flag, val, joined := strings.Cut(a, "=")
		if !joined && i+1 < len(args) {
			val = args[i+1]
		}
		switch flag {
		case "--chdir", "--app-dir", "--pythonpath", "--workdir":
			dir = w.c.absolute(val)
		case "-A", "--app":
			module, _, _ := strings.Cut(val, ":")
			modules = append(modules, module)
		}
		if module, name, ok := strings.Cut(a, ":"); ok && isModuleName(module) && isModuleName(strings.TrimSuffix(name, "()")) {
			modules = append(modules, module)
		}
	}
	if settings := w.c.env["DJANGO_SETTINGS_MODULE"]; settings != "" {
		modules = append(modules, settings)
	}
	if modules == nil {
		return
	}
	w.paths = slices.Concat([]string{dir}, w.paths)
	for _, m := range modules {
		if isModuleName(m) {
			w.add("", pyImport{module: m}, &via)
		}
	}
}

// isModuleName tells whether s is a dotted Python name.
func isModuleName(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || part[0] >= '0' && part[0] <= '9' {
			return false
		}
		for i := range len(part) {
			if !isPyName(part[i]) {
				return false
			}
		}
	}
	return true
}

// pyWalk prepares the walk of one program's imports; first is the folder that
// stands first in sys.path.
func (c *collector) pyWalk(invoked, real, first string, o pyOptions) *pyWalker {
	in := c.in.install(invoked, real)
	w := &pyWalker{c: c, install: in, seen: map[string]*pyModule{}}
	if !o.safePath && (c.env["PYTHONSAFEPATH"] == "" || o.noEnv) {
		w.paths = append(w.paths, first)
	}
	if !o.noEnv {
		for p := range strings.SplitSeq(c.env["PYTHONPATH"], ":") {
			if p != "" {
				w.paths = append(w.paths, c.absolute(p))
			}
		}
	}
	w.paths = append(w.paths, in.paths[:in.sites]...)
	for _, name := range pyStartup {
		w.leaf(name, real)
	}
	if o.noSite {
		return w
	}
	version := strings.TrimPrefix(in.tag, "cpython-")
	if !o.noUser && c.home != "" && len(version) > 1 {
		w.paths = append(w.paths, c.home+"/.local/lib/python"+version[:1]+"."+version[1:]+"/site-packages")
	}
	w.paths = append(w.paths, in.paths[in.sites:]...)
	for _, p := range in.configs {
		c.follow(p, "module", real)
	}
	for _, name := range append([]string{"sitecustomize", "usercustomize"}, in.starts...) {
		w.add("", pyImport{module: name}, nil)
	}
	return w
}

// imports reads a source once for each way in which it is run.
func (r *reader) imports(file string, main bool) pyText {
	return r.sources.get(sourceKey{file, main}, func() pyText {
		b, err := r.t.ReadFile(file)
		if err != nil {
			r.warn.absent(err, "read Python source", r.prefix+file)
			return pyText{}
		}
		out := pyText{imports: scanPython(string(b), main)}
		out.first, out.last = pySysPath(string(b), file, nil)
		return out
	})
}

// pyText is what a source says.
type pyText struct {
	imports     []pyImport
	first, last []string // folders that it adds to the search path
}

type sourceKey struct {
	file string
	main bool
}

// pySource is where an import statement stands.
type pySource struct {
	file string // what the modules are reached by
	pkg  string // the package that relative imports start from
}

// pyWalker walks the imports of one program.
type pyWalker struct {
	c       *collector
	install *pyInstall
	paths   []string
	seen    map[string]*pyModule
	queue   []func()
}

// run walks a module that is run as a program.
func (w *pyWalker) run(name, via string) {
	if name == "" {
		return
	}
	m := w.module(name, via)
	if m != nil && m.pkg != nil {
		name += ".__main__"
		m = w.module(name, via)
	}
	if m != nil && m.source {
		pkg, _ := cutLast(name)
		text := w.c.in.imports(m.file, true)
		w.adds(text.first, text.last)
		w.scan(pySource{file: m.file, pkg: pkg}, text.imports)
	}
	w.finish()
}

func cutLast(name string) (before, last string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// adds puts folders before and behind those of the search path.
func (w *pyWalker) adds(first, last []string) {
	for _, dir := range first {
		if !slices.Contains(w.paths, dir) {
			w.paths = slices.Concat([]string{dir}, w.paths)
		}
	}
	for _, dir := range last {
		if !slices.Contains(w.paths, dir) {
			w.paths = append(w.paths, dir)
		}
	}
}

// scan follows import statements of one source.
func (w *pyWalker) scan(src pySource, imports []pyImport) {
	for _, imp := range imports {
		w.add(src.pkg, imp, &src.file)
	}
}

// finish works off what is queued.
func (w *pyWalker) finish() {
	for len(w.queue) > 0 {
		next := w.queue[0]
		w.queue = w.queue[1:]
		next()
	}
}

// add queues what one import statement loads. file is the source in which it stands; nil
// for what the interpreter imports by itself.
func (w *pyWalker) add(pkg string, imp pyImport, file *string) {
	via := w.c.interpreter
	if file != nil {
		via = *file
	}
	name := imp.module
	if imp.level > 0 {
		for range imp.level - 1 {
			pkg, _ = cutLast(pkg)
		}
		if pkg == "" {
			return
		}
		name = strings.TrimSuffix(pkg+"."+imp.module, ".")
	}
	w.queue = append(w.queue, func() {
		m := w.module(name, via)
		if m == nil || m.pkg == nil {
			return
		}
		for _, sub := range imp.names {
			w.module(name+"."+sub, via)
		}
	})
}

// leaf uses a module without following its imports.
func (w *pyWalker) leaf(name, via string) {
	dirs := w.paths
	if parent, _ := cutLast(name); parent != "" {
		m := w.c.in.pyFind(w.paths, parent)
		if m == nil {
			return
		}
		dirs = m.pkg
	}
	_, last := cutLast(name)
	if m := w.c.in.pyFind(dirs, last); m != nil {
		w.use(m, last, via)
	}
}

// module uses a module and, as importing does, each package above it, and
// queues their own imports; nil where it is built in or not to be found.
func (w *pyWalker) module(name, via string) *pyModule {
	if m, ok := w.seen[name]; ok || len(w.seen) > maxModules {
		return m
	}
	parent, last := cutLast(name)
	dirs := w.paths
	if parent != "" {
		p := w.module(parent, via)
		if p == nil || p.pkg == nil {
			return nil
		}
		dirs = p.pkg
	} else if pyBuiltin[name] {
		return nil
	}
	m := w.c.in.pyFind(dirs, last)
	w.seen[name] = m
	// Debian builds some of these into the interpreter: no file is found then.
	for _, hidden := range pyHidden[name] {
		w.add("", pyImport{module: hidden}, &via)
	}
	if m == nil {
		return nil
	}
	w.use(m, last, via)
	if m.source {
		pkg := name
		if m.pkg == nil {
			pkg = parent
		}
		text := w.c.in.imports(m.file, false)
		imports := text.imports
		if !w.install.standard(m.file) {
			w.adds(text.first, text.last)
		} else {
			// Half of the library imports the other half in some function. Its
			// files change together with the interpreter, which is a use by
			// itself, so only what an import really loads is named.
			imports = slices.DeleteFunc(slices.Clone(imports), func(i pyImport) bool { return i.inFunction })
		}
		w.scan(pySource{file: m.file, pkg: pkg}, imports)
	}
	return m
}

// use reports a module's file, its compiled form where there is one, and an
// extension module's libraries.
func (w *pyWalker) use(m *pyModule, last, via string) {
	if m.file == "" {
		return
	}
	for _, link := range m.link {
		w.c.add(link, "module", via)
	}
	w.c.add(m.file, "module", via)
	if m.ext {
		for _, d := range w.c.in.closure(m.file, w.c.env["LD_LIBRARY_PATH"], "") {
			w.c.add(d.path, "soname", d.via)
		}
		return
	}
	stem := last
	if m.pkg != nil {
		stem = "__init__"
	}
	compiled := join(path.Dir(m.file), "__pycache__/"+stem+"."+w.install.tag+".pyc")
	if _, err := w.c.in.t.Lstat(compiled); err == nil {
		w.c.add(compiled, "module", via)
	}
}
