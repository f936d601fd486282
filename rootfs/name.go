package rootfs

import (
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

var unitTypes = wordSet("service socket target device mount automount swap timer path slice scope")

// maxName is the longest unit name in bytes, less the end mark (UNIT_NAME_MAX).
const maxName = 255

// validName tells whether name is a unit's: of a plain unit, an instance or a
// template.
func validName(name string) bool {
	stem, suffix := splitName(name)
	if stem == "" || !unitTypes[suffix] || len(name) > maxName || strings.HasPrefix(stem, "@") {
		return false
	}
	for i := range len(stem) {
		c := stem[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte(`:-_.\@`, c) >= 0:
		default:
			return false
		}
	}
	return true
}

// splitName gives what stands before the last dot, and the unit type after it.
func splitName(name string) (stem, suffix string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return name, ""
	}
	return name[:i], name[i+1:]
}

// nameParts splits foo@bar.service into prefix foo, instance bar and suffix
// service. A template has instance "" and at true.
func nameParts(name string) (prefix, instance, suffix string, at bool) {
	stem, suffix := splitName(name)
	prefix, instance, at = strings.Cut(stem, "@")
	return prefix, instance, suffix, at
}

func isTemplate(name string) bool {
	_, instance, _, at := nameParts(name)
	return at && instance == ""
}

// templateOf gives foo@.service for foo@bar.service, "" for what is no instance.
func templateOf(name string) string {
	prefix, instance, suffix, at := nameParts(name)
	if !at || instance == "" {
		return ""
	}
	return prefix + "@." + suffix
}

// specifiers expands the specifiers of systemd.unit(5) that a tree can tell,
// for a unit of the system manager. One that only the running machine knows
// (%b, %H, %v, ...) stays as it stands, so that no wrong path comes of it.
func specifiers(u *change.Unit, s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if rep, ok := specifier(u, s[i]); ok {
			b.WriteString(rep)
		} else {
			b.WriteByte('%')
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func specifier(u *change.Unit, c byte) (string, bool) {
	prefix, instance, suffix, _ := nameParts(u.Name)
	switch c {
	case '%':
		return "%", true
	case 'n':
		return u.Name, true
	case 'N':
		return strings.TrimSuffix(u.Name, "."+suffix), true
	case 'p':
		return prefix, true
	case 'P':
		return unescape(prefix), true
	case 'i':
		return instance, true
	case 'I':
		return unescape(instance), true
	case 'j', 'J':
		last := prefix[strings.LastIndexByte(prefix, '-')+1:]
		if c == 'J' {
			last = unescape(last)
		}
		return last, true
	case 'f':
		name := instance
		if name == "" {
			name = prefix
		}
		return path.Clean("/" + unescape(name)), true
	case 't':
		return "/run", true
	case 'S':
		return "/var/lib", true
	case 'C':
		return "/var/cache", true
	case 'L':
		return "/var/log", true
	case 'E':
		return "/etc", true
	case 'T':
		return "/tmp", true
	case 'V':
		return "/var/tmp", true
	case 'd':
		return "/run/credentials/" + u.Name, true
	case 'h':
		return "/root", true
	case 's':
		return "/bin/sh", true
	case 'u', 'g':
		return "root", true
	case 'U', 'G':
		return "0", true
	case 'y':
		return u.Fragment, u.Fragment != ""
	case 'Y':
		return path.Dir(u.Fragment), u.Fragment != ""
	}
	return "", false
}

// unescape undoes systemd-escape(1): "-" is a slash, \xHH a byte.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			b.WriteByte('/')
		case s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' && hex(s[i+2]) >= 0 && hex(s[i+3]) >= 0:
			b.WriteByte(byte(hex(s[i+2])<<4 | hex(s[i+3])))
			i += 3
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
