package rootfs

import (
	"bytes"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// GeneratorDirs are where a system manager finds its generators, highest first
// (systemd.generator(7)). What stands below /run exists on a running system only.
var GeneratorDirs = []string{
	"/run/systemd/system-generators", "/etc/systemd/system-generators",
	"/usr/local/lib/systemd/system-generators", "/usr/lib/systemd/system-generators", "/lib/systemd/system-generators",
}

// GeneratedDirs are where they put units: for the middle of the load path, for
// its beginning, and for its end. They are called with these three, in this order.
var GeneratedDirs = []string{"/run/systemd/generator", "/run/systemd/generator.early", "/run/systemd/generator.late"}

// Generator is a program that makes units of something else.
type Generator struct {
	Name string
	Path string // where it was found
	real string
	// reads are paths that its file names.
	reads []string
}

// maxProgram bounds the size of a generator that is searched for paths, in bytes.
const maxProgram = 16 << 20

// Generators lists the generators that the manager of a live root would run,
// by name. A name in a higher folder hides it in the others; one that is empty or a
// link to /dev/null masks it.
func Generators(v View) []Generator {
	t := asTree(v)
	byName := map[string]Generator{}
	hidden := map[string]bool{}
	for _, dir := range GeneratorDirs {
		names, err := t.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, name := range names {
			if hidden[name] || strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") {
				continue
			}
			at := join(dir, name)
			real, n, _, err := t.walk(at, true)
			hidden[name] = true
			if err != nil || n.Type != change.Regular || n.Size == 0 || n.Mode&0o111 == 0 {
				continue
			}
			byName[name] = Generator{Name: name, Path: at, real: real, reads: named(t, real)}
		}
	}
	out := make([]Generator, 0, len(byName))
	for _, g := range byName {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b Generator) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// named lists the absolute paths that a program's file names, as text does.
func named(t *tree, real string) []string {
	n, err := t.stat(real)
	if err != nil || n.Size > maxProgram {
		return nil
	}
	data, err := t.ReadFile(real)
	if err != nil {
		return nil
	}
	set := map[string]bool{}
	for len(data) > 0 {
		i := bytes.IndexByte(data, '/')
		if i < 0 {
			break
		}
		end := i
		for end < len(data) && isPathByte(data[end]) {
			end++
		}
		if i == 0 || !isPathByte(data[i-1]) {
			if p := path.Clean(strings.TrimRight(string(data[i:end]), ".:")); strings.Count(p, "/") > 1 {
				set[p] = true
			}
		}
		data = data[end:]
	}
	out := make([]string, 0, len(set))
	for p := range set {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

func isPathByte(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("/._-+@%:", c) >= 0
}

// tables are what systemd's own generators read beside the kernel's command line,
// devices and units; their library names it, and not they themselves.
var tables = map[string][]string{
	"systemd-fstab-generator":            {"/etc/fstab"},
	"systemd-cryptsetup-generator":       {"/etc/crypttab", "/etc/cryptsetup-keys.d"},
	"systemd-veritysetup-generator":      {"/etc/veritytab"},
	"systemd-integritysetup-generator":   {"/etc/integritytab"},
	"systemd-sysv-generator":             {"/etc/init.d", "/etc/rc0.d", "/etc/rc1.d", "/etc/rc2.d", "/etc/rc3.d", "/etc/rc4.d", "/etc/rc5.d", "/etc/rc6.d", "/etc/rcS.d"},
	"systemd-rc-local-generator":         {"/etc/rc.local"},
	"systemd-gpt-auto-generator":         {"/etc/fstab", "/etc/crypttab"},
	"systemd-getty-generator":            {"/etc/securetty"},
	"systemd-ssh-generator":              {"/usr/sbin/sshd", "/usr/bin/sshd"},
	"systemd-debug-generator":            nil,
	"systemd-hibernate-resume-generator": nil,
	"systemd-run-generator":              nil,
	"systemd-system-update-generator":    nil,
	"systemd-tpm2-generator":             nil,
	"systemd-bless-boot-generator":       nil,
	"systemd-import-generator":           nil,
	"systemd-factory-reset-generator":    nil,
}

// Known tells of a generator of which all is known that it reads.
func (g *Generator) Known() bool {
	_, ok := tables[g.Name]
	return ok
}

// Reads tells whether a changed path is the generator itself or something that it
// is known to read, "" where not: of the paths that its file names, what is the
// path or a folder above it.
func (g *Generator) Reads(p string) bool {
	if p == g.Path || p == g.real || path.Base(p) == g.Name && slices.Contains(GeneratorDirs, path.Dir(p)) {
		return true
	}
	for _, at := range tables[g.Name] {
		if p == at || strings.HasPrefix(p, at+"/") {
			return true
		}
	}
	for _, at := range g.reads {
		if p == at || strings.HasPrefix(p, at+"/") && !general[at] {
			return true
		}
	}
	return false
}

// general are folders that a program names for the sake of one thing in them.
var general = map[string]bool{
	"/usr/lib": true, "/usr/bin": true, "/usr/sbin": true, "/usr/share": true, "/usr/local": true, "/usr/local/bin": true, "/usr/local/sbin": true,
	"/usr/local/lib": true, "/etc/systemd": true, "/usr/lib/systemd": true, "/lib/systemd": true, "/var/lib": true, "/run/systemd": true,
}

// Generated are the units in the folders of generators in a view of a live root:
// files and links, by path.
func Generated(v View) map[string]*change.Node {
	t := asTree(v)
	out := map[string]*change.Node{}
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		names, err := t.ReadDir(dir)
		if err != nil || depth > 4 {
			return
		}
		for _, name := range names {
			p := join(dir, name)
			n, err := t.stat(p)
			switch {
			case err != nil:
			case n.IsDir():
				walk(p, depth+1)
			default:
				out[p] = n
			}
		}
	}
	for _, dir := range GeneratedDirs {
		walk(dir, 0)
	}
	return out
}
