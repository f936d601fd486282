package planner

import (
	"path"
	"strings"
)

// expand puts in what a tree can tell for the specifiers of systemd.unit(5).
// Those that only the running machine knows are the same before and after an
// update, and stay as they are.
func expand(s, unit string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if v, ok := specifier(unit, s[i]); ok {
			b.WriteString(v)
		} else {
			b.WriteString(s[i-1 : i+1])
		}
	}
	return b.String()
}

func specifier(unit string, c byte) (string, bool) {
	stem := strings.TrimSuffix(unit, path.Ext(unit))
	prefix, instance, _ := strings.Cut(stem, "@")
	final := prefix[strings.LastIndexByte(prefix, '-')+1:]
	switch c {
	case '%':
		return "%", true
	case 'n':
		return unit, true
	case 'N':
		return stem, true
	case 'p':
		return prefix, true
	case 'P':
		return unescape(prefix), true
	case 'i':
		return instance, true
	case 'I':
		return unescape(instance), true
	case 'j':
		return final, true
	case 'J':
		return unescape(final), true
	case 'f':
		if instance != "" {
			prefix = instance
		}
		return path.Clean("/" + unescape(prefix)), true
	}
	v, ok := map[byte]string{
		't': "/run", 'S': "/var/lib", 'C': "/var/cache", 'L': "/var/log", 'E': "/etc", 'T': "/tmp", 'V': "/var/tmp",
		'd': "/run/credentials/" + unit, 'h': "/root", 's': "/bin/sh", 'u': "root", 'g': "root", 'U': "0", 'G': "0",
	}[c]
	return v, ok
}

// unescape undoes systemd-escape(1): "-" is "/", \xNN a byte.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			b.WriteByte('/')
		case s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' && nibble(s[i+2]) >= 0 && nibble(s[i+3]) >= 0:
			b.WriteByte(byte(nibble(s[i+2])<<4 | nibble(s[i+3])))
			i += 3
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func nibble(c byte) int {
	return strings.IndexByte("0123456789abcdef", c)
}
