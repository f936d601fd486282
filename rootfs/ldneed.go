package rootfs

import (
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// LdCache is the file that the loader finds libraries by.
const LdCache = "/etc/ld.so.cache"

// Libraries is what an update means for the loader's cache.
type Libraries struct {
	// Program is the new tree's ldconfig, "" where none makes a cache there.
	Program string
	// Causes are the changed paths for which another cache could be due, sorted;
	// without one the present cache is as good as before.
	Causes []string
	// Needs are the changed paths that ldconfig reads: all folders and links, and
	// the files of library folders.
	Needs map[string]bool
	dirs  map[string]bool // that ldconfig reads in the new tree, without symlinks
}

// InLibraryFolder tells whether ldconfig keeps the links of the folder that p lies in.
func (l *Libraries) InLibraryFolder(p string) bool { return l.dirs[path.Dir(p)] }

// ReadLibraries finds what of d ldconfig would read (ldconfig(8)): the folders of
// ld.so.conf and of what it includes, the built-in ones, and the glibc-hwcaps in
// them. A library that is replaced by one of the same soname for the same
// processor needs no other cache.
func ReadLibraries(before, after View, d *change.Delta) *Libraries {
	was, is := newReader(asTree(before), &warnings{}), newReader(asTree(after), &warnings{})
	l := &Libraries{Needs: map[string]bool{}}
	l.Program = is.ldconfig()
	if _, err := is.t.Lstat(LdCache); err != nil && l.Program == "" {
		return l // a loader that needs none
	}
	var order [2][]string
	oldDirs, newDirs := was.cacheDirs(&order[0]), is.cacheDirs(&order[1])
	l.dirs = newDirs
	cause := map[string]bool{}
	confs := map[string]bool{}
	for _, r := range []*reader{was, is} {
		for _, p := range r.confFiles() {
			confs[p] = true
		}
	}
	other := !slices.Equal(order[0], order[1])
	tool := is.tool(l.Program)
	far := map[string]*change.Entry{} // what a link of a library folder could lead to elsewhere
	for i := range d.Entries {
		e := &d.Entries[i]
		file := e.New != nil && e.New.Type == change.Regular
		inDir := oldDirs[path.Dir(e.Path)] || newDirs[path.Dir(e.Path)]
		if !file || confs[e.Path] || tool[e.Path] || e.Path == LdCache || inDir && strings.Contains(path.Base(e.Path), ".so") {
			l.Needs[e.Path] = true
		}
		if !inDir && e.Op != change.Metadata && (strings.Contains(path.Base(e.Path), ".so") || isFolderOrLink(e) && !folderOnly(e)) {
			far[e.Path] = e
		}
		switch {
		case e.Op == change.Metadata:
		case e.Path == LdCache && e.New == nil:
			cause[e.Path] = true
		case confs[e.Path] && other:
			cause[e.Path] = true
		case inDir && isLibraryName(path.Base(e.Path)) && !sameLibrary(was, is, e):
			cause[e.Path] = true
		case other && isFolderOrLink(e) && leadsToLibraries(e.Path, order[0], order[1]):
			cause[e.Path] = true
		}
	}
	if len(far) > 0 {
		for _, r := range []*reader{was, is} {
			r.linkedTo(far, func(p string, e *change.Entry) {
				l.Needs[p] = true
				if !sameLibrary(was, is, e) {
					cause[p] = true
				}
			})
		}
	}
	for p := range cause {
		l.Causes = append(l.Causes, p)
	}
	slices.Sort(l.Causes)
	return l
}

// ldconfig finds the program that makes the cache. Where musl's loader is the
// root's, a program of that name makes none.
func (r *reader) ldconfig() string {
	if _, err := r.t.Lstat(LdCache); err != nil {
		for _, musl := range glob(r.t, "/lib/ld-musl-*") {
			if _, err := r.t.Lstat(musl); err == nil {
				return ""
			}
		}
	}
	for _, p := range []string{"/sbin/ldconfig", "/usr/sbin/ldconfig", "/usr/bin/ldconfig", "/bin/ldconfig"} {
		if n, err := r.t.stat2(p); err == nil && n.Type == change.Regular && n.Mode&0o111 != 0 {
			return p
		}
	}
	return ""
}

// tool is what the program is made of beside libraries: Ubuntu's is a script
// about ldconfig.real.
func (r *reader) tool(program string) map[string]bool {
	out := map[string]bool{}
	if program == "" {
		return out
	}
	c := &collector{u: &change.Unit{}, host: r, in: r, env: map[string]string{}, workDir: "/", seen: map[[2]string]bool{}}
	c.program(program, nil, "exec", "")
	for _, use := range c.out {
		out[use.Path] = true
	}
	for _, dir := range []string{"/sbin", "/usr/sbin"} {
		if real, err := r.t.Resolve(dir + "/ldconfig.real"); err == nil {
			out[real] = true
		}
	}
	return out
}

// cacheDirs are the folders that ldconfig reads, without symlinks; order lists
// them as they are named, those of ld.so.conf first.
func (r *reader) cacheDirs(order *[]string) map[string]bool {
	out := map[string]bool{}
	named := slices.Concat(r.confDirs(), []string{"/lib", "/usr/lib", "/lib64", "/usr/lib64"}, glob(r.t, "/lib/*-linux-gnu*"), glob(r.t, "/usr/lib/*-linux-gnu*"))
	for _, dir := range named {
		real, err := r.t.Resolve(dir)
		if err != nil || !r.isDir(real) {
			continue
		}
		*order = append(*order, dir+" "+real)
		out[real] = true
		for _, variant := range r.hwcaps(real) {
			out[variant] = true
		}
	}
	return out
}

// linkedTo finds what the links of library folders lead through or to, of some
// paths in other folders.
func (r *reader) linkedTo(far map[string]*change.Entry, found func(string, *change.Entry)) {
	var order []string
	for dir := range r.cacheDirs(&order) {
		names, err := r.t.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, name := range names {
			p := join(dir, name)
			if n, err := r.t.stat(p); err != nil || n.Type != change.Symlink || !isLibraryName(name) {
				continue
			}
			real, _, trail, _ := r.t.walk(p, true)
			for _, at := range append(trail, real) {
				if e := far[at]; e != nil {
					found(at, e)
				}
			}
		}
	}
}

// folderOnly tells of an entry that neither was nor will be a symlink.
func folderOnly(e *change.Entry) bool {
	return (e.Old == nil || e.Old.Type != change.Symlink) && (e.New == nil || e.New.Type != change.Symlink)
}

// confFiles are ld.so.conf and what it includes, by their own and by their real names.
func (r *reader) confFiles() []string {
	seen := map[string]bool{}
	var dirs, out []string
	r.readConf("/etc/ld.so.conf", seen, &dirs)
	for p := range seen {
		out = append(out, p)
		if real, err := r.t.Resolve(p); err == nil {
			out = append(out, real)
		}
	}
	return out
}

// isLibraryName tells of which names ldconfig takes notice.
func isLibraryName(name string) bool {
	return strings.Contains(name, ".so") && (strings.HasPrefix(name, "lib") || strings.HasPrefix(name, "ld-") || strings.HasPrefix(name, "ld.so"))
}

// sameLibrary tells of a replaced file that ldconfig would enter it as before.
func sameLibrary(was, is *reader, e *change.Entry) bool {
	if e.Old == nil || e.New == nil || e.Old.Type != change.Regular || e.New.Type != change.Regular {
		return false
	}
	a, errA := was.elf(e.Path)
	b, errB := is.elf(e.Path)
	if errA != nil || errB != nil {
		return errA != nil && errB != nil
	}
	return a.soname == b.soname && a.class == b.class && a.machine == b.machine
}

func isFolderOrLink(e *change.Entry) bool {
	for _, n := range []*change.Node{e.Old, e.New} {
		if n != nil && (n.Type == change.Directory || n.Type == change.Symlink) {
			return true
		}
	}
	return false
}

// leadsToLibraries tells whether a path is a folder of libraries, or lies on the way to one.
func leadsToLibraries(p string, orders ...[]string) bool {
	for _, order := range orders {
		for _, names := range order {
			for dir := range strings.FieldsSeq(names) {
				if dir == p || strings.HasPrefix(dir, p+"/") {
					return true
				}
			}
		}
	}
	return false
}

// SameCache tells whether the loader finds the same by both caches. The error
// is of the second, where that is none.
func SameCache(before, after []byte) (bool, error) {
	is, err := parseLdCache(after)
	if err != nil {
		return false, err
	}
	was, err := parseLdCache(before)
	return err == nil && reflect.DeepEqual(was, is), nil
}
