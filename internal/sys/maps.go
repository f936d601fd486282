package sys

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// ParseMaps reads the text of proc_pid_maps(5):
//
//	7f3d4c000000-7f3d4c021000 r-xp 00000000 08:01 1234    /usr/lib/x.so (deleted)
//
// and calls yield with the mappings that have a file. Lines that do not have
// the form are passed over. The kernel escapes a newline in a path as \012 and
// nothing else, not even the backslash: it is undone here.
func ParseMaps(text []byte, yield func(Mapping) bool) {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		m, ok := parseMapping(line)
		if ok && !yield(m) {
			return
		}
	}
}

func parseMapping(line []byte) (m Mapping, ok bool) {
	next := func(sep byte) []byte {
		i := bytes.IndexByte(line, sep)
		if i < 0 {
			f := line
			line = nil
			return f
		}
		f := line[:i]
		line = line[i+1:]
		return f
	}
	var okStart, okEnd, okMajor, okMinor, okIno bool
	m.Start, okStart = hexNumber(next('-'))
	m.End, okEnd = hexNumber(next(' '))
	perms := next(' ')
	next(' ') // the offset
	major, okMajor := hexNumber(next(':'))
	minor, okMinor := hexNumber(next(' '))
	m.Ino, okIno = decimalNumber(next(' '))
	if !okStart || !okEnd || !okMajor || !okMinor || !okIno || len(perms) < 4 || m.Ino == 0 || m.End <= m.Start {
		return m, false
	}
	m.Dev = unix.Mkdev(uint32(major), uint32(minor))
	m.Exec = perms[2] == 'x'
	m.Name = string(bytes.ReplaceAll(bytes.TrimLeft(line, " "), []byte(`\012`), []byte{'\n'}))
	return m, true
}

func hexNumber(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 16 {
		return 0, false
	}
	var v uint64
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

func decimalNumber(b []byte) (uint64, bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	var v uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	return v, true
}
