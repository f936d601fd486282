package rootfs

import (
	"path"
	"regexp"
	"strings"
)

var (
	pyAdds = regexp.MustCompile(`\bsys\.path\.(insert|append|extend)\s*\(|\bsite\.(addsitedir)\s*\(|\bsys\.path\s*(\[0:0\]|\[:0\])?\s*(\+=|=)\s*\[`)
	pySets = regexp.MustCompile(`(?m)^[ \t]*([A-Za-z_]\w*)[ \t]*=[ \t]*([^=\n][^\n]*)`)
)

// pySysPath lists the folders that a source adds to its search path where its text says
// which they are: those that come first, and those that come last. A condition around
// the statement does not count.
func pySysPath(src, file string, env map[string]string) (first, last []string) {
	if !strings.Contains(src, "sys.path") && !strings.Contains(src, "addsitedir") {
		return nil, nil
	}
	lit := literals{file: file, vars: map[string]string{}, env: env, python: true}
	sets := pySets.FindAllStringSubmatchIndex(src, -1)
	for _, at := range pyAdds.FindAllStringSubmatchIndex(src, -1) {
		if commented(src, at[0]) {
			continue
		}
		for len(sets) > 0 && sets[0][0] < at[0] {
			name, value := src[sets[0][2]:sets[0][3]], src[sets[0][4]:sets[0][5]]
			delete(lit.vars, name)
			if v, ok := lit.one(value); ok {
				lit.vars[name] = v
			}
			sets = sets[1:]
		}
		how := ""
		if at[2] >= 0 {
			how = src[at[2]:at[3]]
		}
		text := strings.TrimLeft(src[at[1]:min(len(src), at[1]+500)], "[ \t\n")
		dirs, _ := lit.list(text)
		for _, d := range dirs {
			switch {
			case !path.IsAbs(d):
			case how == "append" || how == "extend" || at[4] >= 0:
				last = append(last, path.Clean(d))
			default:
				first = append(first, path.Clean(d))
			}
		}
	}
	return first, last
}

// operand is a term with what follows it: of Python the methods and properties of paths.
func (s *exprScanner) operand() ([]string, bool) {
	vals, ok := s.term()
	if !s.python {
		return vals, ok
	}
	for ok && len(vals) == 1 && s.at('.') {
		s.pos++
		from := s.pos
		for s.pos < len(s.src) && isWord(s.src[s.pos]) {
			s.pos++
		}
		name := s.src[from:s.pos]
		var args []string
		if called := s.at('('); called {
			s.pos++
			var n int
			args, n = s.list(s.src[s.pos:])
			s.pos += n
			if s.space(); !s.at(')') {
				return nil, false
			}
			s.pos++
		}
		switch name {
		case "parent":
			vals = []string{path.Dir(vals[0])}
		case "parents":
			up := 0
			for s.pos < len(s.src) && strings.IndexByte("[0123456789]", s.src[s.pos]) >= 0 {
				if c := s.src[s.pos]; c >= '0' && c <= '9' {
					up = min(up*10+int(c-'0'), exprDepth)
				}
				s.pos++
			}
			for range up + 1 {
				vals = []string{path.Dir(vals[0])}
			}
		case "resolve", "absolute", "as_posix", "expanduser":
		case "joinpath":
			vals = []string{path.Join(append(vals, args...)...)}
		default:
			return nil, false
		}
	}
	return vals, ok
}

// braces puts the variables of an f-string in.
func (s *exprScanner) braces(text string) (string, bool) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{")
		b.WriteString(before)
		if !found {
			return b.String(), true
		}
		inner, after, closed := strings.Cut(rest, "}")
		nested := &exprScanner{literals: s.literals, src: inner, depth: s.depth}
		vals, ok := nested.expr()
		if !closed || !ok || len(vals) != 1 {
			return "", false
		}
		b.WriteString(vals[0])
		text = after
	}
}
