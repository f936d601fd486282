package rootfs

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

// maxModules bounds the modules that one script's imports may reach.
const maxModules = 20000

// pyBuiltin are modules inside of the interpreter, which come before any file.
var pyBuiltin = wordSet(`_abc _ast _codecs _collections _functools _imp _io _operator _signal _sre _stat _string
_symtable _thread _tracemalloc _warnings _weakref atexit builtins errno faulthandler gc itertools marshal posix pwd sys time`)

// pyStartup are the modules that every start of Python loads before the script
// (python -X importtime -c pass); what they would import in functions does not
// count for a script that only starts.
var pyStartup = []string{
	"zipimport", "encodings", "encodings.aliases", "encodings.utf_8", "codecs", "io", "abc", "site", "os", "stat",
	"posixpath", "genericpath", "_collections_abc", "_sitebuiltins",
}

// pyInstall is where one interpreter looks for modules.
type pyInstall struct {
	tag     string   // "cpython-311"
	paths   []string // the standard library, then the site folders and what their .pth files add
	configs []string // pyvenv.cfg, .pth files: read at each start
	starts  []string // modules that .pth files import
	sites   int      // index in paths of the first site folder
}

// pyModule is a module that was found.
type pyModule struct {
	file string   // where the content is; "" for a namespace package
	pkg  []string // where submodules are looked for; nil for what is no package
	ext  bool     // an extension module
	// source tells that file can be read for imports; a compiled file alone cannot.
	source bool
	link   []string // symlinks on the way to file
}

// pyOptions are the interpreter options that change the search path.
type pyOptions struct {
	isolated bool // -I
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
				o = pyOptions{isolated: true, noEnv: true, noUser: true, safePath: true}
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
				w.run(operand(), real)
				return
			case 'c':
				w := c.pyWalk(invoked, real, c.workDir, o)
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
		w.run("__main__", script)
		return
	}
	w := c.pyWalk(invoked, real, path.Dir(script), o)
	w.scan(pySource{file: script}, c.in.imports(script, true))
	w.finish()
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
		for _, p := range strings.Split(c.env["PYTHONPATH"], ":") {
			if p != "" {
				w.paths = append(w.paths, c.absolute(p))
			}
		}
	}
	w.paths = append(w.paths, in.paths[:in.sites]...)
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
	for _, name := range pyStartup {
		w.leaf(name, real)
	}
	for _, name := range append([]string{"sitecustomize", "usercustomize"}, in.starts...) {
		w.add("", pyImport{module: name}, nil)
	}
	return w
}

// install finds out how an interpreter looks for modules, from its path and
// what lies around it, as its own start-up does (getpath.py and site.py).
func (r *reader) install(invoked, real string) *pyInstall {
	return r.installs.get(invoked+"\x00"+real, func() *pyInstall { return r.readInstall(invoked, real) })
}

func (r *reader) readInstall(invoked, real string) *pyInstall {
	in := &pyInstall{}
	version := strings.TrimPrefix(path.Base(real), "python")
	home, venv, system := "", "", true
	for _, dir := range []string{path.Dir(invoked), path.Dir(path.Dir(invoked))} {
		b, err := r.t.ReadFile(join(dir, "pyvenv.cfg"))
		if err != nil {
			continue
		}
		venv, system = dir, false
		in.configs = append(in.configs, join(dir, "pyvenv.cfg"))
		for line := range strings.Lines(string(b)) {
			key, val, _ := strings.Cut(line, "=")
			switch val = strings.TrimSpace(val); strings.ToLower(strings.TrimSpace(key)) {
			case "home":
				home = val
			case "include-system-site-packages":
				system = strings.EqualFold(val, "true")
			}
		}
		break
	}
	if home == "" {
		home = path.Dir(real)
	}
	prefix, version := r.pyPrefix(home, version)
	in.tag = "cpython-" + strings.ReplaceAll(version, ".", "")
	lib := "/lib/python" + version
	in.paths = []string{prefix + lib, prefix + lib + "/lib-dynload"}
	if p := prefix + "/lib64/python" + version; r.isDir(p) && !r.isDir(prefix+lib+"/lib-dynload") {
		in.paths = append(in.paths, p, p+"/lib-dynload")
	}
	in.sites = len(in.paths)
	var sites []string
	if venv != "" {
		sites = append(sites, venv+lib+"/site-packages", venv+"/lib64/python"+version+"/site-packages")
	}
	if system {
		if prefix == "/usr" {
			// Debian's site.py.
			sites = append(sites, "/usr/local"+lib+"/dist-packages", "/usr/lib/python3/dist-packages", "/usr"+lib+"/dist-packages",
				"/usr/local"+lib+"/site-packages")
		}
		sites = append(sites, prefix+lib+"/site-packages", prefix+"/lib64/python"+version+"/site-packages")
	}
	seen := map[string]bool{}
	for _, dir := range sites {
		if real, err := r.t.Resolve(dir); err == nil && !seen[real] {
			seen[real] = true
			in.paths = append(in.paths, dir)
			r.readPth(dir, in)
		}
	}
	return in
}

// pyPrefix finds the folder above lib/pythonX.Y/os.py, from the interpreter's
// folder upwards.
func (r *reader) pyPrefix(dir, version string) (prefix, found string) {
	_, err := strconv.ParseFloat(version, 32)
	known := err == nil && strings.Contains(version, ".")
	for up := dir; ; up = path.Dir(up) {
		base := strings.TrimSuffix(up, "/")
		if known {
			for _, lib := range []string{"/lib/python", "/lib64/python"} {
				if _, err := r.t.Lstat(base + lib + version + "/os.py"); err == nil {
					return base, version
				}
			}
		} else if v := r.newestPython(base + "/lib"); v != "" {
			return base, v
		}
		if up == "/" {
			break
		}
	}
	if !known {
		version = "3"
	}
	return "/usr", version
}

func (r *reader) newestPython(lib string) string {
	names, err := r.t.ReadDir(lib)
	if err != nil {
		return ""
	}
	best, newest := "", -1
	for _, n := range names {
		minor, ok := strings.CutPrefix(n, "python3.")
		number, err := strconv.Atoi(minor)
		if !ok || err != nil || number <= newest {
			continue
		}
		if _, err := r.t.Lstat(join(lib, n) + "/os.py"); err == nil {
			best, newest = "3."+minor, number
		}
	}
	return best
}

// readPth reads a site folder's .pth files (site.py, addpackage).
func (r *reader) readPth(dir string, in *pyInstall) {
	names, err := r.t.ReadDir(dir)
	if err != nil {
		r.warn.absent(err, "read", r.prefix+dir)
		return
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".pth") || strings.HasPrefix(name, ".") {
			continue
		}
		file := join(dir, name)
		b, err := r.t.ReadFile(file)
		if err != nil {
			r.warn.absent(err, "read", r.prefix+file)
			continue
		}
		in.configs = append(in.configs, file)
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			switch {
			case line == "" || line[0] == '#':
			case strings.HasPrefix(line, "import ") || strings.HasPrefix(line, "import\t"):
				for _, imp := range scanPython(line, true) {
					if imp.level == 0 {
						in.starts = append(in.starts, imp.module)
					}
				}
			default:
				if !strings.HasPrefix(line, "/") {
					line = join(dir, line)
				}
				if line = path.Clean(line); r.isDir(line) && !slices.Contains(in.paths, line) {
					in.paths = append(in.paths, line)
				}
			}
		}
	}
}

// imports reads a source once for each way in which it is run.
func (r *reader) imports(file string, main bool) []pyImport {
	return r.sources.get(sourceKey{file, main}, func() []pyImport {
		b, err := r.t.ReadFile(file)
		if err != nil {
			r.warn.absent(err, "read Python source", r.prefix+file)
			return nil
		}
		return scanPython(string(b), main)
	})
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
		w.scan(pySource{file: m.file, pkg: pkg}, w.c.in.imports(m.file, true))
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
	if m == nil {
		return nil
	}
	w.use(m, last, via)
	if m.source {
		pkg := name
		if m.pkg == nil {
			pkg = parent
		}
		w.scan(pySource{file: m.file, pkg: pkg}, w.c.in.imports(m.file, false))
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

// pyFind looks a module up in folders: the first one that has it, or the
// folders without __init__ which together make a namespace package.
func (r *reader) pyFind(dirs []string, name string) *pyModule {
	var namespace []string
	for _, dir := range dirs {
		m := r.modules.get(moduleKey{dir, name}, func() *pyModule { return r.pyLook(dir, name) })
		switch {
		case m == nil:
		case m.file != "":
			return m
		default:
			namespace = append(namespace, m.pkg...)
		}
	}
	if namespace == nil {
		return nil
	}
	return &pyModule{pkg: namespace}
}

type moduleKey struct{ dir, name string }

// pyLook looks a module up in one folder, in the order of importlib's
// FileFinder: a package, an extension module, a source, a compiled file
// without source, a portion of a namespace package.
func (r *reader) pyLook(dir, name string) *pyModule {
	names := r.pyNames(dir)
	pkg := join(dir, name)
	if names.all[name] {
		for _, init := range []string{"__init__.py", "__init__.pyc"} {
			if m := r.pyFile(join(pkg, init)); m != nil {
				m.pkg = []string{pkg}
				return m
			}
		}
	}
	for _, file := range names.ext[name] {
		if m := r.pyFile(join(dir, file)); m != nil {
			m.ext = true
			return m
		}
	}
	for _, ext := range []string{".py", ".pyc"} {
		if names.all[name+ext] {
			if m := r.pyFile(join(dir, name+ext)); m != nil {
				return m
			}
		}
	}
	if names.all[name] && r.isDir(pkg) {
		return &pyModule{pkg: []string{pkg}}
	}
	return nil
}

// pyDir is a folder's names, and its extension modules by module name.
type pyDir struct {
	all map[string]bool
	ext map[string][]string
}

func (r *reader) pyNames(dir string) pyDir {
	return r.names.get(dir, func() pyDir {
		names, err := r.t.ReadDir(dir)
		if err != nil {
			return pyDir{}
		}
		d := pyDir{all: make(map[string]bool, len(names)), ext: map[string][]string{}}
		for _, n := range names {
			d.all[n] = true
			module, rest, _ := strings.Cut(n, ".")
			if rest == "so" || rest == "abi3.so" || strings.HasPrefix(rest, "cpython-") && strings.HasSuffix(rest, ".so") {
				d.ext[module] = append(d.ext[module], n)
			}
		}
		return d
	})
}

func (r *reader) pyFile(p string) *pyModule {
	real, node, trail, err := r.t.walk(p, true)
	if err != nil || node.IsDir() {
		return nil
	}
	return &pyModule{file: real, link: trail, source: strings.HasSuffix(p, ".py")}
}
