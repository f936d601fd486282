package rootfs

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

// pyInstall is where one interpreter looks for modules.
type pyInstall struct {
	tag     string   // "cpython-311"
	paths   []string // the standard library, then the site folders and what their .pth files add
	configs []string // pyvenv.cfg, .pth files: read at each start
	starts  []string // modules that .pth files import
	sites   int      // index in paths of the first site folder
}

// standard tells whether a file belongs to the standard library.
func (in *pyInstall) standard(file string) bool {
	return slices.ContainsFunc(in.paths[:in.sites], func(dir string) bool {
		rest, ok := strings.CutPrefix(file, dir+"/")
		return ok && !strings.HasPrefix(rest, "dist-packages/") && !strings.HasPrefix(rest, "site-packages/")
	})
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
