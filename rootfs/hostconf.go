package rootfs

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// confKind is a set of folders whose files systemd's early programs read: the
// folders by precedence, the strongest first, and the suffix of the names.
type confKind struct {
	kind, suffix string
	dirs         []string
	extra        []string // single files that count with them
}

func confDirs(name string) []string {
	return []string{"/etc/" + name, "/run/" + name, "/usr/local/lib/" + name, "/usr/lib/" + name, "/lib/" + name}
}

// confKinds follows sysctl.d(5), modules-load.d(5), binfmt.d(5), tmpfiles.d(5),
// sysusers.d(5), udev(7) and hwdb(7). /etc/sysctl.conf and /etc/modules are
// read on Debian through links in /etc (99-sysctl.conf, modules.conf), which
// newer releases leave out: then the files have no effect.
var confKinds = []confKind{
	{kind: "sysctl", suffix: ".conf", dirs: confDirs("sysctl.d"), extra: []string{"/etc/sysctl.conf"}},
	{kind: "modules-load", suffix: ".conf", dirs: confDirs("modules-load.d"), extra: []string{"/etc/modules"}},
	{kind: "binfmt", suffix: ".conf", dirs: confDirs("binfmt.d")},
	{kind: "tmpfiles", suffix: ".conf", dirs: confDirs("tmpfiles.d")},
	{kind: "sysusers", suffix: ".conf", dirs: confDirs("sysusers.d")},
	{kind: "udev", suffix: ".rules", dirs: confDirs("udev/rules.d")},
	{kind: "hwdb", suffix: ".hwdb", dirs: confDirs("udev/hwdb.d")},
	{kind: "link", suffix: ".link", dirs: confDirs("systemd/network")},
}

// touches tells whether a path is one of a kind's.
func (k *confKind) touches(p string) bool {
	if slices.Contains(k.extra, p) {
		return true
	}
	for _, dir := range k.dirs {
		// The folder itself may be a link that changes.
		if rest, ok := strings.CutPrefix(p, dir); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// ReadHost reads what a tree sets for the host as a whole, as far as one of
// paths, which change, belongs to it; nil where none does.
func ReadHost(v View, paths []string) (*change.HostConfig, []string) {
	t := asTree(v)
	warn := &warnings{}
	// Of a whole tree's paths few are of any kind.
	all := paths
	paths = nil
	for _, p := range all {
		if p == "/etc/fstab" || p == "/etc/crypttab" || slices.ContainsFunc(confKinds, func(k confKind) bool { return k.touches(p) }) {
			paths = append(paths, p)
		}
	}
	var out *change.HostConfig
	host := func() *change.HostConfig {
		if out == nil {
			out = &change.HostConfig{Effective: map[string]map[string]string{}}
		}
		return out
	}
	for i := range confKinds {
		k := &confKinds[i]
		if slices.ContainsFunc(paths, k.touches) {
			host().Effective[k.kind] = effectiveFiles(t, k, warn)
			readKind(t, k, out, paths, warn)
		}
	}
	if slices.Contains(paths, "/etc/fstab") {
		host().Fstab = parseFstab(text(t, "/etc/fstab", warn))
	}
	if slices.Contains(paths, "/etc/crypttab") {
		host().Crypttab = parseCrypttab(text(t, "/etc/crypttab", warn))
	}
	return out, slices.Sorted(maps.Keys(warn.seen))
}

func text(t *tree, p string, warn *warnings) string {
	b, err := t.ReadFile(p)
	if err != nil {
		warn.absent(err, "read", p)
		return ""
	}
	return string(b)
}

// effectiveFiles gives the path that counts for each file name of a kind.
func effectiveFiles(t *tree, k *confKind, warn *warnings) map[string]string {
	out := map[string]string{}
	seen := map[string]bool{}
	for _, dir := range k.dirs {
		names, err := t.ReadDir(dir)
		if err != nil {
			warn.absent(err, "read", dir)
			continue
		}
		for _, name := range names {
			if !strings.HasSuffix(name, k.suffix) || seen[name] {
				continue
			}
			seen[name] = true
			real, node, _, err := t.walk(join(dir, name), true)
			// A link to /dev/null or an empty file masks the name; a link that
			// leads nowhere reads as nothing.
			if real == "/dev/null" || err != nil || node.Type != change.Regular || node.Size == 0 {
				continue
			}
			out[name] = real
		}
	}
	return out
}

func readKind(t *tree, k *confKind, out *change.HostConfig, paths []string, warn *warnings) {
	files := out.Effective[k.kind]
	for _, name := range slices.Sorted(maps.Keys(files)) {
		file := files[name]
		switch k.kind {
		case "sysctl":
			out.Sysctl = append(out.Sysctl, parseSysctl(text(t, file, warn), file)...)
		case "modules-load":
			if out.Modules == nil {
				out.Modules = map[string]string{}
			}
			for _, m := range parseModules(text(t, file, warn)) {
				if _, twice := out.Modules[m]; !twice {
					out.Modules[m] = file
				}
			}
		case "binfmt":
			if out.Binfmt == nil {
				out.Binfmt, out.BinfmtFile = map[string]string{}, map[string]string{}
			}
			for _, line := range lines(text(t, file, warn)) {
				if rule := binfmtName(line); rule != "" {
					out.Binfmt[rule], out.BinfmtFile[rule] = line, file
				}
			}
		case "udev":
			// Only rules of files that change are told apart.
			if slices.Contains(paths, file) || slices.ContainsFunc(k.dirs, func(dir string) bool { return slices.Contains(paths, join(dir, name)) }) {
				if out.Udev == nil {
					out.Udev = map[string][]change.UdevRule{}
				}
				out.Udev[file] = parseUdev(text(t, file, warn))
			}
		}
	}
}

// lines gives what is neither empty nor a comment.
func lines(s string) []string {
	var out []string
	for l := range strings.Lines(s) {
		l = strings.TrimSpace(l)
		if l != "" && l[0] != '#' && l[0] != ';' {
			out = append(out, l)
		}
	}
	return out
}

// parseSysctl reads one file of sysctl.d(5).
func parseSysctl(s, file string) []change.SysctlLine {
	var out []change.SysctlLine
	for _, l := range lines(s) {
		key, value, ok := strings.Cut(l, "=")
		line := change.SysctlLine{Value: strings.TrimSpace(value), File: file}
		key, line.Lenient = strings.CutPrefix(strings.TrimSpace(key), "-")
		if !ok {
			if !line.Lenient {
				continue // systemd refuses the line
			}
			line.Lenient, line.Exclude = false, true
		}
		if line.Key = SysctlKey(strings.TrimSpace(key)); line.Key != "" {
			out = append(out, line)
		}
	}
	return out
}

// SysctlKey gives a kernel setting's name with dots as separators, and with a
// slash for a dot inside of a part: net/ipv4/conf/eth0.1/forwarding becomes
// net.ipv4.conf.eth0/1.forwarding (sysctl.d(5): whichever separator comes
// first is the one). "" where it is no name below /proc/sys.
func SysctlKey(s string) string {
	s = strings.Trim(s, "./")
	if i := strings.IndexAny(s, "./"); i >= 0 && s[i] == '/' {
		s = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, s)
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || part == "/" || part == "//" || strings.ContainsAny(part, "\x00\n") {
			return ""
		}
	}
	return s
}

// parseModules reads one file of modules-load.d(5): a name a line, and in
// /etc/modules perhaps parameters after it.
func parseModules(s string) []string {
	var out []string
	for _, l := range lines(s) {
		if f := strings.Fields(l); len(f) > 0 && !strings.ContainsAny(f[0], "/\x00") && f[0][0] != '-' {
			out = append(out, strings.ReplaceAll(f[0], "-", "_"))
		}
	}
	return out
}

// binfmtName is the name of a rule of binfmt.d(5): its first field, after a
// separator that is its first character.
func binfmtName(line string) string {
	if len(line) < 2 {
		return ""
	}
	name, rest, ok := strings.Cut(line[1:], line[:1])
	if !ok || rest == "" || name == "" || name == "." || name == ".." || strings.Contains(name, "/") ||
		name == "register" || name == "status" {
		return ""
	}
	return name
}

// parseFstab reads fstab(5).
func parseFstab(s string) []change.FstabEntry {
	var out []change.FstabEntry
	for _, l := range lines(s) {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		e := change.FstabEntry{What: unescapeOctal(f[0]), Where: unescapeOctal(f[1]), Options: "defaults"}
		if len(f) > 2 {
			e.Type = f[2]
		}
		if len(f) > 3 {
			e.Options = unescapeOctal(f[3])
		}
		if e.Where != "none" && strings.HasPrefix(e.Where, "/") {
			e.Where = path.Clean(e.Where)
		}
		out = append(out, e)
	}
	return out
}

// unescapeOctal undoes fstab's octal escapes: \040 for a blank.
func unescapeOctal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// parseCrypttab reads crypttab(5).
func parseCrypttab(s string) map[string]string {
	out := map[string]string{}
	for _, l := range lines(s) {
		if f := strings.Fields(l); len(f) >= 2 {
			out[f[0]] = strings.Join(f[1:], " ")
		}
	}
	return out
}
