package rootfs

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/internal/elfcode"
)

// dep is a path of a library closure, symlinks on the way among them.
type dep struct{ path, via string }

// loadedObject is an object of a closure; by is what needs it, up to the program.
type loadedObject struct {
	found string // the path by which it was found; $ORIGIN is its folder
	real  string
	obj   *object
	by    *loadedObject
}

type elfResult struct {
	obj *object
	err error
}

func (r *reader) elf(real string) (*object, error) {
	res := r.elves.get(real, func() elfResult {
		f, err := r.t.Open(real)
		if err != nil {
			return elfResult{err: err}
		}
		defer f.Close()
		o, err := readELF(f)
		return elfResult{o, err}
	})
	return res.obj, res.err
}

// closure lists the libraries that ld.so loads for an object in this root,
// breadth first as it does: each needed name once, searched in DT_RPATH (of
// the object and what needs it, where there is no DT_RUNPATH), the given
// LD_LIBRARY_PATH, DT_RUNPATH, the cache and the default folders (ld.so(8)). preload are further names that the program loads first.
func (r *reader) closure(real, libraryPath, preload string) []dep {
	return r.closures.get(closureKey{real, libraryPath, preload}, func() []dep {
		return r.load(real, libraryPath, preload)
	})
}

type closureKey struct{ real, libraryPath, preload string }

func (r *reader) load(real, libraryPath, preload string) []dep {
	obj, err := r.elf(real)
	if err != nil || !obj.dynamic {
		return nil
	}
	var out []dep
	seenPath := map[string]bool{real: true}
	seenName := map[string]bool{}
	if obj.soname != "" {
		seenName[obj.soname] = true
	}
	add := func(p, via string) {
		if !seenPath[p] {
			seenPath[p] = true
			out = append(out, dep{p, via})
		}
	}
	main := &loadedObject{found: real, real: real, obj: obj}
	queue := []*loadedObject{main}
	enter := func(found string, by *loadedObject) bool {
		lib, _, trail, err := r.t.walk(found, true)
		if err != nil {
			return false
		}
		o, err := r.elf(lib)
		if err != nil {
			// Only a file that is an object at all is worth a word: a linker
			// script named like a library is passed over by ld.so's cache too.
			if !errors.Is(err, elfcode.ErrNotELF) && !errors.Is(err, fs.ErrNotExist) {
				r.warn.add("cannot read library %s: %v", r.prefix+lib, err)
			}
			return false
		}
		if o.class != obj.class || o.machine != obj.machine {
			return false
		}
		for _, link := range trail {
			add(link, by.real)
		}
		if o.soname != "" {
			seenName[o.soname] = true
		}
		if !seenPath[lib] {
			add(lib, by.real)
			queue = append(queue, &loadedObject{found: found, real: lib, obj: o, by: by})
		}
		return true
	}
	if obj.interp != "" {
		if !enter(obj.interp, main) {
			r.warn.add("%s needs the loader %s, which is not there", r.prefix+real, obj.interp)
		}
		// The loader is loaded already when a library names it.
		seenName[path.Base(obj.interp)] = true
		preload += " " + r.preload()
	} else {
		preload = ""
	}
	for _, name := range strings.FieldsFunc(preload, func(c rune) bool { return c == ':' || isBlank(c) }) {
		seenName[name] = true
		r.find(name, main, libraryPath, enter)
	}
	for len(queue) > 0 {
		l := queue[0]
		queue = queue[1:]
		for _, name := range l.obj.needed {
			if seenName[name] {
				continue
			}
			seenName[name] = true
			if !r.find(name, l, libraryPath, enter) {
				r.warn.add("%s needs %s, which no library folder holds", r.prefix+l.real, name)
			}
		}
	}
	return out
}

// preload reads /etc/ld.so.preload, which every program obeys.
func (r *reader) preload() string {
	return r.preloads.get("", func() string {
		b, err := r.t.ReadFile("/etc/ld.so.preload")
		if err != nil {
			r.warn.absent(err, "read", "/etc/ld.so.preload")
			return ""
		}
		var names []string
		for line := range strings.Lines(string(b)) {
			line, _, _ = strings.Cut(line, "#")
			names = append(names, strings.Fields(line)...)
		}
		return strings.Join(names, " ")
	})
}

// find enters the library of a name.
func (r *reader) find(name string, by *loadedObject, libraryPath string, enter func(string, *loadedObject) bool) bool {
	if strings.Contains(name, "/") {
		for _, p := range r.tokens(name, by) {
			if strings.HasPrefix(p, "/") && enter(p, by) {
				return true
			}
		}
		return false
	}
	for _, dir := range r.searchPath(by, libraryPath) {
		if r.inFolder(dir, name, by, enter) {
			return true
		}
	}
	if by.obj.noDef {
		// The cache counts nevertheless, but for what it has below the default folders.
		return r.fromCache(name, by, func(p string, by *loadedObject) bool {
			return !r.inDefault(p, by.obj) && enter(p, by)
		})
	}
	for _, dirs := range r.systemDirs(by.obj) {
		if dirs == nil && r.fromCache(name, by, enter) {
			return true
		}
		for _, dir := range dirs {
			if r.isDir(dir) && r.inFolder(dir, name, by, enter) {
				return true
			}
		}
	}
	return false
}

// inFolder enters a library of one folder, or its variant for a better
// processor; all variants where the processor is not known.
func (r *reader) inFolder(dir, name string, by *loadedObject, enter func(string, *loadedObject) bool) bool {
	found := false
	variants, first := r.usable(dir)
	for _, variant := range variants {
		if enter(join(variant, name), by) {
			if found = true; first {
				return true
			}
		}
	}
	return enter(join(dir, name), by) || found
}

// systemDirs are the folders behind an object's own, in their order; nil
// stands for the cache. glibc's ld.so knows its cache and its built-in folders
// only. Where there is no cache, ld.so.conf tells what one would lead to;
// where there is one, it tells where a library may still turn up.
func (r *reader) systemDirs(o *object) [][]string {
	if dirs := r.muslDirs(o); dirs != nil {
		return [][]string{dirs}
	}
	if r.cached() == nil {
		return [][]string{r.confDirs(), r.defaultDirs(o)}
	}
	return [][]string{nil, r.defaultDirs(o), r.confDirs()}
}

// muslDirs are the folders of musl's loader, nil where that is not the root's:
// /etc/ld-musl-ARCH.path has them, separated by colons or line ends.
func (r *reader) muslDirs(o *object) []string {
	return r.musl.get(platform(o), func() []string {
		arch := platform(o)
		loader := "/lib/ld-musl-" + arch + ".so.1"
		if arch == "i386" {
			if _, err := r.t.Lstat(loader); err != nil {
				loader = "/lib/ld-musl-i686.so.1"
			}
		}
		if _, err := r.t.Lstat(loader); err != nil || len(r.cached()) > 0 {
			return nil
		}
		if _, err := r.t.Lstat("/" + o.libFolder() + "/" + "libc.so.6"); err == nil {
			return nil // both are there, and musl is the guest
		}
		file := "/etc/ld-musl-" + strings.TrimSuffix(strings.TrimPrefix(loader, "/lib/ld-musl-"), ".so.1") + ".path"
		b, err := r.t.ReadFile(file)
		if err != nil {
			r.warn.absent(err, "read", r.prefix+file)
			return []string{"/lib", "/usr/local/lib", "/usr/lib"}
		}
		return strings.FieldsFunc(string(b), func(c rune) bool { return c == ':' || c == '\n' })
	})
}

func (r *reader) searchPath(by *loadedObject, libraryPath string) []string {
	var dirs []string
	add := func(list []string, of *loadedObject) {
		for _, d := range list {
			for _, p := range r.tokens(d, of) {
				if strings.HasPrefix(p, "/") {
					dirs = append(dirs, path.Clean(p))
				}
			}
		}
	}
	if len(by.obj.runpath) == 0 {
		for l := by; l != nil; l = l.by {
			if len(l.obj.runpath) == 0 {
				add(l.obj.rpath, l)
			}
		}
	}
	add(strings.FieldsFunc(libraryPath, func(c rune) bool { return c == ':' || c == ';' }), by)
	add(by.obj.runpath, by)
	return slices.DeleteFunc(dirs, func(d string) bool { return !r.isDir(d) })
}

// tokens expands $ORIGIN, $LIB and $PLATFORM of a search path. $LIB is what
// the loader was built with: all forms in use are tried.
func (r *reader) tokens(s string, of *loadedObject) []string {
	if !strings.Contains(s, "$") {
		return []string{s}
	}
	replace := func(s, name, by string) string {
		s = strings.ReplaceAll(s, "${"+name+"}", by)
		return strings.ReplaceAll(s, "$"+name, by)
	}
	s = replace(s, "ORIGIN", path.Dir(of.found))
	s = replace(s, "PLATFORM", platform(of.obj))
	if !strings.Contains(s, "$LIB") && !strings.Contains(s, "${LIB}") {
		return []string{s}
	}
	var out []string
	for _, lib := range []string{"lib/" + of.obj.multiarch(), "lib64", "lib"} {
		out = append(out, replace(s, "LIB", lib))
	}
	return out
}

func platform(o *object) string {
	name, _, _ := strings.Cut(o.multiarch(), "-")
	return name
}

func (r *reader) isDir(p string) bool {
	n, err := r.t.stat2(p)
	return err == nil && n.IsDir()
}

func (r *reader) defaultDirs(o *object) []string {
	ma := o.multiarch()
	return []string{"/lib/" + ma, "/usr/lib/" + ma, "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

func (r *reader) inDefault(p string, o *object) bool {
	return slices.ContainsFunc(r.defaultDirs(o), func(dir string) bool { return strings.HasPrefix(p, dir+"/") })
}

// hwcaps lists the folders of a library folder's variants.
func (r *reader) hwcaps(dir string) []string {
	return r.variants.get(dir, func() []string {
		base := join(dir, "glibc-hwcaps")
		names, err := r.t.ReadDir(base)
		if err != nil {
			r.warn.absent(err, "read", base)
			return nil
		}
		var out []string
		for _, n := range names {
			out = append(out, join(base, n))
		}
		return out
	})
}

// confDirs lists the folders of /etc/ld.so.conf and what it includes, in order.
func (r *reader) confDirs() []string {
	return r.conf.get("", func() []string {
		var out []string
		r.readConf("/etc/ld.so.conf", map[string]bool{}, &out)
		return out
	})
}

func (r *reader) readConf(file string, seen map[string]bool, out *[]string) {
	if seen[file] {
		return
	}
	seen[file] = true
	b, err := r.t.ReadFile(file)
	if err != nil {
		r.warn.absent(err, "read", file)
		return
	}
	dirs, includes := parseLdConf(b)
	for i, d := range dirs {
		if d != "" {
			*out = append(*out, d)
			continue
		}
		pattern := includes[i]
		if !strings.HasPrefix(pattern, "/") {
			pattern = join(path.Dir(file), pattern)
		}
		for _, p := range glob(r.t, pattern) {
			r.readConf(p, seen, out)
		}
	}
}

// parseLdConf reads an ld.so.conf file (ldconfig(8)). For each line dirs has a
// folder, or "" where includes has the pattern of an include at that index.
func parseLdConf(b []byte) (dirs []string, includes map[int]string) {
	includes = map[int]string{}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.FieldsFunc(line, func(c rune) bool { return isBlank(c) || c == ',' || c == ':' })
		if len(fields) == 0 {
			continue
		}
		switch fields[0] {
		case "include":
			for _, pattern := range strings.Fields(line)[1:] {
				includes[len(dirs)] = pattern
				dirs = append(dirs, "")
			}
			continue
		case "hwcap":
			continue // "hwcap N NAME": ignored since glibc 2.33
		}
		for _, d := range fields {
			d, _, _ = strings.Cut(d, "=") // "DIR=TYPE" of libc5's days
			if strings.HasPrefix(d, "/") {
				dirs = append(dirs, path.Clean(d))
			}
		}
	}
	return dirs, includes
}
