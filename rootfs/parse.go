package rootfs

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/change/directive"
)

// maxLine is the length in bytes above which the manager refuses a line
// (LONG_LINE_MAX of systemd).
const maxLine = 1 << 20

// parseUnit reads a unit file or drop-in as systemd's config_parse() does. The
// assignments come raw, resets (empty values) among them, in file order.
// Lines that the manager ignores become warnings; refused is what ends its reading of
// the file, after which it does not load a unit of that fragment.
func parseUnit(b []byte, file string) (settings []change.Setting, warnings []string, refused string) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	section, pending, joined := "", "", false
	warn := func(n int, format string, args ...any) {
		warnings = append(warnings, fmt.Sprintf("%s:%d: ", file, n)+fmt.Sprintf(format, args...))
	}
	line := func(n int, l string) {
		l = strings.TrimFunc(l, isBlank)
		switch {
		case l == "":
		case l[0] == '[':
			if l[len(l)-1] != ']' {
				refused = "a section is not closed"
				warn(n, "a section that is not closed ends the file")
				return
			}
			section = l[1 : len(l)-1]
		default:
			key, value, ok := strings.Cut(l, "=")
			key = strings.TrimFunc(key, isBlank)
			switch {
			case !ok || key == "":
				warn(n, "a line without an assignment is ignored")
			case section == "":
				warn(n, "an assignment outside of a section is ignored")
			default:
				settings = append(settings, change.Setting{
					Section: section, Key: key, Value: strings.TrimFunc(value, isBlank), File: file,
				})
			}
		}
	}
	n := 0
	for len(b) > 0 {
		n++
		end := bytes.IndexAny(b, "\n\r\x00")
		raw, skip := b, len(b)
		if end >= 0 {
			raw, skip = b[:end], end+1
			if b[end] == '\r' && skip < len(b) && b[skip] == '\n' {
				skip++
			}
		}
		b = b[skip:]
		if len(raw)+len(pending) > maxLine {
			warn(n, "a line above %d bytes ends the file", maxLine)
			return settings, warnings, "a line is too long"
		}
		// A comment inside a continued line is dropped, and the line goes on.
		if first := strings.TrimLeftFunc(string(raw), isBlank); first != "" && (first[0] == '#' || first[0] == ';') {
			continue
		}
		l := pending + string(raw)
		if strings.HasSuffix(string(raw), `\`) && oddBackslashes(l) {
			pending, joined = l[:len(l)-1]+" ", true
			continue
		}
		pending, joined = "", false
		if line(n, l); refused != "" {
			return settings, warnings, refused
		}
	}
	if joined {
		line(n, pending)
	}
	return settings, warnings, refused
}

// oddBackslashes tells whether the last backslash escapes the line's end
// instead of being escaped itself.
func oddBackslashes(l string) bool {
	return (len(l)-len(strings.TrimRight(l, `\`)))%2 == 1
}

func isBlank(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' }

// effective applies the assignments in order: an empty one drops the earlier
// ones of its key (or group) in its section, a scalar replaces them, a list's
// accumulate.
func effective(in []change.Setting) []change.Setting {
	var out []change.Setting
	drop := func(match func(change.Setting) bool) {
		kept := out[:0]
		for _, s := range out {
			if !match(s) {
				kept = append(kept, s)
			}
		}
		out = kept
	}
	for _, s := range in {
		kind := directive.KindOf(s.Section, s.Key)
		if s.Value == "" {
			if !kind.Resets() {
				continue
			}
			group := resetGroup(s.Section, s.Key)
			drop(func(o change.Setting) bool {
				return o.Section == s.Section && resetGroup(o.Section, o.Key) == group
			})
			continue
		}
		if kind.Scalar() {
			drop(func(o change.Setting) bool { return o.Section == s.Section && o.Key == s.Key })
		}
		out = append(out, s)
	}
	return out
}

// values lists the values of a key in order of effect.
func values(u *change.Unit, section, key string) []string {
	var out []string
	for _, s := range u.Settings {
		if s.Key == key && s.Section == section {
			out = append(out, s.Value)
		}
	}
	return out
}

// value is the last value of a key, "" where it has none.
func value(u *change.Unit, section, key string) string {
	if all := values(u, section, key); len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}
