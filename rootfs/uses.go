package rootfs

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/elfcode"
)

// reader reads what programs of one root use. What it learns of a file holds
// for all services, so that each file is read once.
type reader struct {
	t      *tree
	prefix string // the root's own path in the host's tree, "" for the host
	warn   *warnings

	elves    memo[string, elfResult]
	closures memo[closureKey, []dep]
	preloads memo[string, string]
	variants memo[string, []string]
	conf     memo[string, []string]
	heads    memo[string, string]
	sources  memo[sourceKey, pyText]
	installs memo[string, *pyInstall]
	modules  memo[moduleKey, *pyModule]
	names    memo[string, pyDir]
	roots    memo[string, *reader]

	// overlay is the tree of an update, nil for one that lies on disk.
	overlay *overlay
	// levels are the glibc-hwcaps that the processor can run, best first; nil
	// where it is not known which machine will run the tree.
	levels []string
	caches memo[string, map[string][]cacheEntry]
	musl   memo[string, []string]

	user   *User // whose manager runs the services; nil for the system's
	mapped bool  // no libraries

	perls       memo[string, *perlInstall]
	perlSources memo[string, perlSource]
}

func newReader(t *tree, warn *warnings) *reader {
	r := &reader{t: t, warn: warn}
	if as, ok := t.layer.(*asUser); ok {
		t = as.t
	}
	r.overlay, _ = t.layer.(*overlay)
	return r
}

// rooted is the reader of a folder as a root of its own.
func (r *reader) rooted(dir string) *reader {
	if dir == "/" {
		return r
	}
	return r.roots.get(dir, func() *reader {
		return &reader{t: &tree{layer: below{r.t, dir}}, prefix: r.prefix + dir, warn: r.warn, overlay: r.overlay, levels: r.levels, user: r.user, mapped: r.mapped}
	})
}

// collector gathers the uses of one service.
type collector struct {
	u           *change.Unit
	host        *reader
	in          *reader // the root that the service's processes run in
	env         map[string]string
	workDir     string
	home        string
	interpreter string // the interpreter whose script is being walked
	depth       int
	out         []change.Use
	seen        map[[2]string]bool // path and kind
}

// maxDepth bounds scripts that start scripts.
const maxDepth = 12

// searchDirs is where the manager looks for a program without a path
// (systemd.exec(5), ExecSearchPath=).
var searchDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// service reads what the processes of a service run and read. Of its commands
// only ExecStart= matters: the others belong to the manager or have ended.
func (r *reader) service(u *change.Unit) []change.Use {
	c := &collector{u: u, host: r, in: r, env: map[string]string{}, seen: map[[2]string]bool{}, workDir: "/"}
	c.environment()
	c.readCredentials()
	c.binds()
	c.watched()
	if !c.enterRoot() {
		return c.out
	}
	c.home = c.homeOf(value(u, "Service", "User"))
	if dir := strings.TrimPrefix(c.expand(value(u, "Service", "WorkingDirectory")), "-"); strings.HasPrefix(dir, "/") {
		c.workDir = dir
	} else if dir == "~" && c.home != "" {
		c.workDir = c.home
	}
	for _, s := range c.settings("ExecStart") {
		for _, cmd := range commands(s.Value, c.expand, c.env) {
			c.program(cmd.program, cmd.args, "exec", s.File)
		}
	}
	return c.out
}

func (c *collector) expand(s string) string { return specifiers(c.u, s) }

func (c *collector) settings(keys ...string) []change.Setting {
	var out []change.Setting
	for _, s := range c.u.Settings {
		if s.Section == "Service" && slices.Contains(keys, s.Key) {
			out = append(out, s)
		}
	}
	return out
}

// add reports a path of the root that the service runs in.
func (c *collector) add(p, kind, via string) {
	if c.in.prefix != "" {
		p = c.in.prefix + p
		// A via that is the unit file lies on the host.
		if !strings.HasPrefix(via, c.in.prefix+"/") && via != "" && !c.isUnitFile(via) {
			via = c.in.prefix + via
		}
	}
	key := [2]string{p, kind}
	if !c.seen[key] {
		c.seen[key] = true
		c.out = append(c.out, change.Use{Path: p, Kind: kind, Via: via})
	}
}

func (c *collector) isUnitFile(p string) bool {
	return slices.ContainsFunc(c.u.Settings, func(s change.Setting) bool { return s.File == p })
}

// follow reports what a path leads to and the symlinks on the way. It gives
// the path of the content, "" where there is none; what leads nowhere is
// reported too where symlinks lead there.
func (c *collector) follow(p, kind, via string) string {
	real, _, trail, err := c.in.t.walk(p, true)
	for _, link := range trail {
		c.add(link, kind, via)
	}
	if err != nil {
		c.in.warn.absent(err, "read", c.in.prefix+p)
		return ""
	}
	c.add(real, kind, via)
	return real
}

// onHost reports a path that the manager itself reads, outside of any root
// directory of the service.
func (c *collector) onHost(p, kind, via string) string {
	in := c.in
	c.in = c.host
	defer func() { c.in = in }()
	return c.follow(p, kind, via)
}

// environment reads Environment= and EnvironmentFile=.
func (c *collector) environment() {
	for _, s := range c.settings("Environment") {
		for _, word := range splitWords(s.Value) {
			if name, val, ok := strings.Cut(c.expand(word), "="); ok {
				c.env[name] = val
			}
		}
	}
	for _, s := range c.settings("EnvironmentFile") {
		pattern := c.expand(strings.TrimPrefix(s.Value, "-"))
		if !strings.HasPrefix(pattern, "/") {
			continue
		}
		for _, p := range glob(c.host.t, pattern) {
			real := c.onHost(p, "environment", s.File)
			if real == "" {
				continue
			}
			b, err := c.host.t.ReadFile(real)
			if err != nil {
				c.host.warn.absent(err, "read", real)
				continue
			}
			parseEnvironment(b, c.env)
		}
	}
	for _, s := range c.settings("UnsetEnvironment") {
		for _, word := range splitWords(s.Value) {
			if name, val, exact := strings.Cut(word, "="); !exact || c.env[name] == val {
				delete(c.env, name)
			}
		}
	}
}

// credentialStores are the folders in which a credential without a path is
// looked for (systemd.exec(5), LoadCredential=).
var credentialStores = []string{"/etc/credstore", "/run/credstore", "/usr/local/lib/credstore", "/usr/lib/credstore"}

func (c *collector) readCredentials() {
	for _, s := range c.settings("LoadCredential", "LoadCredentialEncrypted", "ImportCredential") {
		stores := credentialStores
		if s.Key != "LoadCredential" {
			var encrypted []string
			for _, dir := range credentialStores {
				encrypted = append(encrypted, dir+".encrypted")
			}
			stores = slices.Concat(encrypted, credentialStores)
		}
		val := c.expand(s.Value)
		name, source, ok := strings.Cut(val, ":")
		if s.Key == "ImportCredential" {
			for _, dir := range stores {
				for _, p := range glob(c.host.t, join(dir, name)) {
					if _, err := c.host.t.Lstat(p); err == nil {
						c.onHost(p, "credential", s.File)
					}
				}
			}
			continue
		}
		if !ok || source == "" {
			source = name
		}
		if strings.HasPrefix(source, "/") {
			if real := c.onHost(source, "credential", s.File); real != "" {
				for _, p := range filesBelow(c.host.t, real) {
					c.onHost(p, "credential", s.File)
				}
			}
			continue
		}
		for _, dir := range stores {
			if _, err := c.host.t.Lstat(join(dir, source)); err == nil {
				c.onHost(join(dir, source), "credential", s.File)
				break
			}
		}
	}
}

// binds reports the sources of bind mounts and of images that are mounted.
// Content below a bind source is seen live; what matters is the source itself.
func (c *collector) binds() {
	for _, s := range c.settings("BindPaths", "BindReadOnlyPaths", "MountImages", "ExtensionImages", "ExtensionDirectories") {
		for _, word := range splitWords(s.Value) {
			source, _, _ := strings.Cut(strings.TrimLeft(c.expand(word), "-+"), ":")
			if strings.HasPrefix(source, "/") {
				c.onHost(source, "bind", s.File)
			}
		}
	}
}

// watched reports what X-Liveupd-Watch= names: globs of files, or folders with
// all that they hold.
func (c *collector) watched() {
	for _, s := range c.u.Settings {
		if s.Key != "X-Liveupd-Watch" {
			continue
		}
		for _, pattern := range splitWords(s.Value) {
			if pattern = c.expand(pattern); !strings.HasPrefix(pattern, "/") {
				continue
			}
			for _, p := range glob(c.host.t, pattern) {
				if real := c.onHost(p, "config", s.File); real != "" {
					for _, f := range filesBelow(c.host.t, real) {
						c.onHost(f, "config", s.File)
					}
				}
			}
		}
	}
}

// enterRoot moves to the root that the service's processes run in; false where
// it lies in an image, which is one path of the tree and is not looked into.
func (c *collector) enterRoot() bool {
	image := false
	for _, s := range c.settings("RootImage", "RootHash", "RootHashSignature", "RootVerity") {
		if p := c.expand(s.Value); strings.HasPrefix(p, "/") {
			c.onHost(p, "root", s.File)
			image = image || s.Key == "RootImage"
		}
	}
	if image {
		return false
	}
	for _, s := range c.settings("RootDirectory") {
		p := c.expand(strings.TrimPrefix(s.Value, "-"))
		if !strings.HasPrefix(p, "/") || path.Clean(p) == "/" {
			continue
		}
		real := c.onHost(p, "root", s.File)
		if real == "" {
			return false
		}
		c.in = c.host.rooted(real)
	}
	return true
}

// homeOf reads a user's home folder from the root's own user database.
func (c *collector) homeOf(user string) string {
	if c.in.user != nil {
		return c.in.user.Home // its services run as nobody else
	}
	user = c.expand(user)
	b, err := c.in.t.ReadFile("/etc/passwd")
	if err == nil && user != "" {
		for line := range bytes.Lines(b) {
			f := strings.Split(strings.TrimSpace(string(line)), ":")
			if len(f) >= 6 && (f[0] == user || f[2] == user) {
				return path.Clean(f[5])
			}
		}
	}
	if user == "" || user == "root" || user == "0" {
		return "/root"
	}
	return ""
}

func (c *collector) absolute(p string) string {
	if strings.HasPrefix(p, "/") {
		return path.Clean(p)
	}
	return path.Clean(join(c.workDir, p))
}

// program reports a program, what it is made of, and the script that it is
// given.
func (c *collector) program(name string, args []string, kind, via string) {
	if c.depth++; c.depth > maxDepth {
		c.in.warn.add("%s: scripts nest deeper than %d, the rest is not read", c.u.Name, maxDepth)
		c.depth--
		return
	}
	defer func() { c.depth-- }()
	p := c.lookPath(name)
	// A script that starts itself again would never end.
	once := [2]string{p, "\x00" + c.workDir + "\x00" + strings.Join(args, "\x00")}
	if p == "" || c.seen[once] {
		return
	}
	c.seen[once] = true
	real, node, _, err := c.in.t.walk(p, true)
	if err != nil || node.Type != change.Regular {
		c.follow(p, kind, via)
		return
	}
	head := c.in.head(real)
	if strings.HasPrefix(head, "#!") {
		c.follow(p, "script", via)
		c.script(real, p, head, args)
		return
	}
	c.follow(p, kind, via)
	if c.in.mapped {
		c.arguments(p, real, args)
		return
	}
	if _, err := c.in.elf(real); err != nil {
		if !errors.Is(err, elfcode.ErrNotELF) {
			c.in.warn.add("cannot read program %s: %v", c.in.prefix+real, err)
		}
		return
	}
	libraryPath, preload := c.env["LD_LIBRARY_PATH"], c.env["LD_PRELOAD"]
	if node.Mode&0o6000 != 0 && c.unprivileged() {
		libraryPath, preload = "", "" // ld.so obeys neither for who gains rights by it
	}
	for _, d := range c.in.closure(real, libraryPath, preload) {
		c.add(d.path, "soname", d.via)
	}
	c.arguments(p, real, args)
}

// unprivileged tells whether the service runs as another user than root.
func (c *collector) unprivileged() bool {
	if c.in.user != nil {
		return c.in.user.UID != 0
	}
	user := c.expand(value(c.u, "Service", "User"))
	return isYes(value(c.u, "Service", "DynamicUser")) || user != "" && user != "root" && user != "0"
}

// lookPath finds a program as the manager does; "" where it is not there and
// has no path of its own.
func (c *collector) lookPath(name string) string {
	if strings.Contains(name, "/") {
		return c.absolute(name)
	}
	dirs := searchDirs
	if p := c.env["PATH"]; p != "" {
		dirs = strings.Split(p, ":")
	}
	if search := c.settings("ExecSearchPath"); len(search) > 0 {
		dirs = nil
		for _, s := range search {
			dirs = append(dirs, strings.Split(c.expand(s.Value), ":")...)
		}
	}
	for _, dir := range dirs {
		if n, err := c.in.t.stat2(join(dir, name)); err == nil && n.Type == change.Regular && n.Mode&0o111 != 0 {
			return join(dir, name)
		}
	}
	return ""
}

// head reads the first line of what may be a script.
func (r *reader) head(real string) string {
	return r.heads.get(real, func() string {
		f, err := r.t.Open(real)
		if err != nil {
			r.warn.absent(err, "read", r.prefix+real)
			return ""
		}
		defer f.Close()
		b := make([]byte, 256) // BINPRM_BUF_SIZE of the kernel
		n, err := f.ReadAt(b, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			r.warn.add("cannot read %s: %v", r.prefix+real, err)
		}
		line, _, _ := bytes.Cut(b[:n], []byte("\n"))
		return string(line)
	})
}

// shebang splits the first line of a script as the kernel does: the
// interpreter, and all that follows as one argument.
func shebang(line string) (interpreter string, args []string) {
	rest, ok := strings.CutPrefix(line, "#!")
	if !ok {
		return "", nil
	}
	rest = strings.Trim(rest, " \t\r\x00")
	i := strings.IndexAny(rest, " \t\x00")
	if i < 0 {
		return rest, nil
	}
	if arg := strings.Trim(rest[i:], " \t\x00"); arg != "" {
		args = []string{arg}
	}
	return rest[:i], args
}

func (c *collector) script(real, invoked, head string, args []string) {
	interpreter, first := shebang(head)
	if interpreter == "" {
		return
	}
	c.program(interpreter, slices.Concat(first, []string{invoked}, args), "interpreter", real)
}

// withEnv runs do with further variables set.
func (c *collector) withEnv(set map[string]string, do func()) {
	old := c.env
	c.env = maps.Clone(old)
	maps.Copy(c.env, set)
	do()
	c.env = old
}
