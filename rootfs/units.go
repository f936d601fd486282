package rootfs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
)

// loadPath is the system manager's unit load path, highest first
// (systemd.unit(5), "System Unit Search Path"; path-lookup.c for the .control
// and .attached levels). What stands below /run exists on a running system only.
var loadPath = []string{
	"/etc/systemd/system.control",
	"/run/systemd/system.control",
	"/run/systemd/transient",
	"/run/systemd/generator.early",
	"/etc/systemd/system",
	"/etc/systemd/system.attached",
	"/run/systemd/system",
	"/run/systemd/system.attached",
	"/run/systemd/generator",
	"/usr/local/lib/systemd/system",
	"/usr/lib/systemd/system",
	"/lib/systemd/system", // where /lib and /usr/lib are not merged
	"/run/systemd/generator.late",
}

// warnings collects what could not be read, from any goroutine, each once.
type warnings struct {
	mu     sync.Mutex
	seen   map[string]bool
	denied map[string]bool
}

// deny notes what an error says that we were not permitted to read.
func (w *warnings) deny(err error, what string) {
	if !errors.Is(err, fs.ErrPermission) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.denied == nil {
		w.denied = map[string]bool{}
	}
	w.denied[what] = true
}

func (w *warnings) add(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == nil {
		w.seen = map[string]bool{}
	}
	w.seen[fmt.Sprintf(format, args...)] = true
}

// absent tells whether err says that there is nothing, and warns of any other.
func (w *warnings) absent(err error, verb, what string) bool {
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		w.deny(err, what)
		w.add("cannot %s %s: %v", verb, what, err)
	}
	return false
}

// unitID is what a name in the load path stands for.
type unitID struct {
	path   string // of the fragment, or of what masks it
	alias  string // the unit that this is another name of
	masked bool
}

type parsed struct {
	settings []change.Setting
	refused  string
}

// unitSet is the load path of a tree.
type unitSet struct {
	t       *tree
	warn    *warnings
	dirs    []string
	ids     map[string]unitID
	subdirs map[string]bool     // the .d, .wants, .requires, .upholds folders that exist, by path
	named   map[string]bool     // instances that an enablement symlink names
	aliases map[string][]string // by unit, sorted
	user    *User               // nil for the system's units
	files   memo[string, parsed]
	loaded  memo[string, *change.Unit]
}

func readLoadPath(t *tree, folders []string, run bool, warn *warnings) *unitSet {
	s := &unitSet{
		t: t, warn: warn, ids: map[string]unitID{}, subdirs: map[string]bool{},
		named: map[string]bool{}, aliases: map[string][]string{},
	}
	inPath := map[string]bool{}
	for _, dir := range folders {
		if strings.HasPrefix(dir, "/run/") && !run {
			continue
		}
		real, err := t.Resolve(dir)
		if err != nil {
			warn.absent(err, "read unit folder", dir)
			continue
		}
		if inPath[real] {
			continue
		}
		inPath[real], inPath[dir] = true, true
		s.dirs = append(s.dirs, dir)
	}
	for _, dir := range s.dirs {
		names, err := t.ReadDir(dir)
		if err != nil {
			warn.absent(err, "read unit folder", dir)
			continue
		}
		for _, name := range names {
			s.enter(dir, name, inPath)
		}
	}
	for name, id := range s.ids {
		if id.alias == "" {
			continue
		}
		if target := s.resolve(name); target != name {
			s.aliases[target] = append(s.aliases[target], name)
		}
	}
	for _, names := range s.aliases {
		slices.Sort(names)
	}
	return s
}

// dropInDirs are the folders of drop-ins, sorted.
func (s *unitSet) dropInDirs() []string {
	var out []string
	for dir := range s.subdirs {
		if strings.HasSuffix(dir, ".d") {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return out
}

// enter records one name of a folder of the load path; the first one of a
// name wins.
func (s *unitSet) enter(dir, name string, inPath map[string]bool) {
	p := join(dir, name)
	if ext := path.Ext(name); ext == ".d" || ext == ".wants" || ext == ".requires" || ext == ".upholds" {
		s.subdirs[p] = true
		if ext != ".d" {
			names, err := s.t.ReadDir(p)
			s.warn.absent(err, "read unit folder", p)
			for _, n := range names {
				if templateOf(n) != "" && validName(n) {
					s.named[n] = true
				}
			}
		}
		return
	}
	if !validName(name) {
		return
	}
	if _, ok := s.ids[name]; ok {
		return
	}
	node, err := s.t.Lstat(p)
	if err != nil {
		s.warn.absent(err, "read unit", p)
		return
	}
	switch node.Type {
	case change.Regular:
		s.ids[name] = unitID{path: p, masked: node.Size == 0}
		return
	case change.Symlink:
	default:
		s.warn.add("cannot read unit %s: it is a %s", p, node.Type)
		return
	}
	target := node.Target
	if !strings.HasPrefix(target, "/") {
		target = join(dir, target)
	}
	if path.Clean(target) == "/dev/null" {
		s.ids[name] = unitID{path: p, masked: true}
		return
	}
	if parent, err := s.t.Resolve(path.Dir(target)); err == nil && inPath[parent] {
		s.enterAlias(p, name, path.Base(target))
		return
	}
	end, err := s.t.stat2(p)
	switch {
	case err != nil:
		s.warn.add("unit %s is a symlink to %s, which is not there", p, node.Target)
	case end.Type == change.CharDevice, end.Type == change.Regular && end.Size == 0:
		s.ids[name] = unitID{path: p, masked: true}
	case end.Type == change.Regular:
		s.ids[name] = unitID{path: p}
	default:
		s.warn.add("cannot read unit %s: it is a %s", p, end.Type)
	}
}

func (s *unitSet) enterAlias(p, name, target string) {
	_, nameType := splitName(name)
	_, targetType := splitName(target)
	if !validName(target) || nameType != targetType {
		s.warn.add("unit %s is a symlink to %s, which is no unit of its type", p, target)
		return
	}
	if _, instance, _, at := nameParts(name); at && instance != "" && isTemplate(target) {
		// foo@bar.service -> foo@.service enables an instance, no alias.
		target = instantiate(target, instance)
		s.named[name] = true
	}
	if target != name {
		s.ids[name] = unitID{alias: target}
	}
}

// instantiate gives foo@bar.service for foo@.service and bar.
func instantiate(template, instance string) string {
	prefix, _, suffix, _ := nameParts(template)
	return prefix + "@" + instance + "." + suffix
}

// stat2 describes what p leads to.
func (t *tree) stat2(p string) (*change.Node, error) {
	_, node, _, err := t.walk(p, true)
	return node, err
}

// resolve follows aliases to the unit's own name.
func (s *unitSet) resolve(name string) string {
	for range 16 { // more than a person nests; ends a circle
		if id, ok := s.ids[name]; ok {
			if id.alias == "" {
				return name
			}
			name = id.alias
			continue
		}
		template := templateOf(name)
		if id, ok := s.ids[template]; ok && id.alias != "" && isTemplate(id.alias) {
			_, instance, _, _ := nameParts(name)
			name = instantiate(id.alias, instance)
			continue
		}
		return name
	}
	return name
}

// unit loads a unit by any of its names; nil where the tree does not define it.
func (s *unitSet) unit(name string) *change.Unit {
	if !validName(name) {
		return nil
	}
	id := s.resolve(name)
	return s.loaded.get(id, func() *change.Unit { return s.load(id) })
}

func (s *unitSet) load(name string) *change.Unit {
	u := &change.Unit{Name: name, Aliases: s.aliases[name]}
	id, ok := s.ids[name]
	if template := templateOf(name); !ok && template != "" {
		id, ok = s.ids[s.resolve(template)]
		u.Aliases = s.instanceAliases(template, name)
	}
	if ok && id.alias != "" {
		s.warn.add("unit %s is another name of itself: its symlinks lead in a circle", name)
		ok = false
	}
	if ok {
		u.Fragment, u.Masked = id.path, id.masked
	}
	if u.Masked {
		return u
	}
	var all []change.Setting
	if ok {
		all = append(all, s.parse(u.Fragment)...)
	}
	for _, p := range s.dropIns(u) {
		u.DropIns = append(u.DropIns, p)
		if !s.isNull(p) {
			all = append(all, s.parse(p)...)
		}
	}
	linked := slices.Concat(s.linked(u, ".wants", "Wants"), s.linked(u, ".requires", "Requires"), s.linked(u, ".upholds", "Upholds"))
	if !ok && len(all) == 0 && len(linked) == 0 {
		return nil
	}
	if s.user != nil {
		all = s.user.settings(all)
	}
	u.Settings = append(effective(all), linked...)
	if ok {
		u.Refused = cmp.Or(s.read(u.Fragment).refused, refused(u))
		if s.user == nil {
			u.Unmet = s.unmet(u)
		}
	}
	return u
}

// instanceAliases names an instance of a template by the template's aliases.
func (s *unitSet) instanceAliases(template, name string) []string {
	_, instance, _, _ := nameParts(name)
	out := slices.Clone(s.aliases[name])
	for _, a := range s.aliases[template] {
		if isTemplate(a) {
			out = append(out, instantiate(a, instance))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// parse reads a fragment or drop-in once. The file that the settings name is
// where the content stands, so that a changed path is found by it.
func (s *unitSet) parse(p string) []change.Setting { return s.read(p).settings }

func (s *unitSet) read(p string) parsed {
	return s.files.get(p, func() parsed {
		b, err := s.t.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) && fleeting(p) {
			return parsed{} // it went since its folder was read
		}
		if err != nil {
			s.warn.deny(err, p)
			s.warn.add("cannot read unit file %s: %v", p, err)
			return parsed{}
		}
		file := p
		if real, err := s.t.Resolve(p); err == nil {
			file = real
		}
		settings, warnings, refused := parseUnit(b, file)
		for _, w := range warnings {
			s.warn.add("%s", w)
		}
		return parsed{settings, refused}
	})
}

// extraDirs lists the folders NAME+suffix of a unit in the order in which the
// manager prefers them (unit_file_find_dropin_paths): for each name, the load
// path, and in each folder of it the name, its template, then the shortened
// names (foo-bar.service: foo-.service); last the type's own.
func (s *unitSet) extraDirs(u *change.Unit, suffix string) []string {
	var out []string
	seen := map[string]bool{}
	add := func(dir, name string) {
		if p := join(dir, name+suffix); s.subdirs[p] && !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	for _, name := range append([]string{u.Name}, u.Aliases...) {
		names := extraNames(name)
		for _, dir := range s.dirs {
			for _, n := range names {
				add(dir, n)
			}
		}
	}
	_, unitType := splitName(u.Name)
	for _, dir := range s.dirs {
		add(dir, unitType)
	}
	return out
}

func extraNames(name string) []string {
	out := []string{name}
	if template := templateOf(name); template != "" {
		out = append(out, extraNames(template)...)
	}
	prefix, instance, suffix, at := nameParts(name)
	short := strings.TrimSuffix(prefix, "-")
	i := strings.LastIndexByte(short, '-')
	if i < 0 {
		return out
	}
	next := short[:i+1]
	if at && instance != "" {
		// A template is shortened to a plain name: foo-bar@.service to foo-.service.
		next += "@" + instance
	}
	return append(out, extraNames(next+"."+suffix)...)
}

// dropIns lists a unit's drop-ins in the order of effect: sorted by file name
// over all folders, of equal names the one in the preferred folder. One that
// masks others is among them, as the manager has it.
func (s *unitSet) dropIns(u *change.Unit) []string {
	chosen := map[string]string{}
	for _, dir := range s.extraDirs(u, ".d") {
		names, err := s.t.ReadDir(dir)
		s.warn.absent(err, "read drop-ins of", dir)
		for _, name := range names {
			if !strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, ".") || chosen[name] != "" {
				continue
			}
			chosen[name] = join(dir, name)
		}
	}
	var names []string
	for name, p := range chosen {
		if s.isNull(p) {
			names = append(names, name)
			continue
		}
		if node, err := s.t.stat2(p); err != nil || node.Type != change.Regular {
			if err == nil || !s.warn.absent(err, "read drop-in", p) {
				continue
			}
			s.warn.add("drop-in %s leads to nothing", p)
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = chosen[name]
	}
	return names
}

// isNull tells whether p is a symlink to /dev/null, which a tree on disk need
// not hold.
func (s *unitSet) isNull(p string) bool {
	target, err := s.t.Readlink(p)
	if err != nil {
		return false
	}
	if !strings.HasPrefix(target, "/") {
		target = join(path.Dir(p), target)
	}
	return path.Clean(target) == "/dev/null"
}

// linked turns the entries of NAME.wants and its like into the assignments
// that they equal.
func (s *unitSet) linked(u *change.Unit, suffix, key string) []change.Setting {
	chosen := map[string]string{}
	for _, dir := range s.extraDirs(u, suffix) {
		names, err := s.t.ReadDir(dir)
		s.warn.absent(err, "read", dir)
		for _, name := range names {
			if validName(name) && chosen[name] == "" {
				chosen[name] = join(dir, name)
			}
		}
	}
	var out []change.Setting
	for name, p := range chosen {
		if !s.isNull(p) {
			out = append(out, change.Setting{Section: "Unit", Key: key, Value: name, File: p})
		}
	}
	slices.SortFunc(out, func(a, b change.Setting) int { return strings.Compare(a.Value, b.Value) })
	return out
}
