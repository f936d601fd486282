package rootfs

import (
	"path"
	"strings"
)

// literals evaluates the expressions by which scripts of Perl, Ruby,
// JavaScript and PHP name files: strings, their concatenation, the folder of
// the file that they stand in, and the few functions that join names. It reads
// only: what depends on anything else has no value.
type literals struct {
	file   string            // where the expression stands
	script string            // the program, as it was called
	real   string            // the program, symlinks followed
	vars   map[string]string // by name without its sigil
	env    map[string]string // the process's environment
	python bool              // it has methods, "/" between paths and strings with a letter before them
}

// exprDepth bounds nested calls.
const exprDepth = 20

// exprScanner walks over one expression list.
type exprScanner struct {
	*literals
	src   string
	pos   int
	depth int
}

// list evaluates a comma-separated list up to the end of its statement. Values
// that are not known are left out; n is how much of src was read.
func (l *literals) list(src string) (out []string, n int) {
	s := &exprScanner{literals: l, src: src}
	for s.pos < len(src) {
		vals, ok := s.expr()
		if ok {
			out = append(out, vals...)
		}
		s.space()
		switch {
		case strings.HasPrefix(src[s.pos:], "=>"):
			s.pos += 2
		case s.at(','):
			s.pos++
		case ok:
			return out, s.pos
		default:
			// Pass over what has no value, to the next item.
			if !s.skip() {
				return out, s.pos
			}
		}
	}
	return out, s.pos
}

// one evaluates a single expression.
func (l *literals) one(src string) (string, bool) {
	s := &exprScanner{literals: l, src: src}
	vals, ok := s.expr()
	if !ok || len(vals) != 1 {
		return "", false
	}
	return vals[0], true
}

func (s *exprScanner) at(c byte) bool { return s.pos < len(s.src) && s.src[s.pos] == c }

func (s *exprScanner) space() {
	for s.pos < len(s.src) && strings.IndexByte(" \t\r\n", s.src[s.pos]) >= 0 {
		s.pos++
	}
}

// skip passes over an item without a value; false at the end of the list.
func (s *exprScanner) skip() bool {
	open := 0
	for ; s.pos < len(s.src); s.pos++ {
		switch c := s.src[s.pos]; c {
		case '(', '[', '{':
			open++
		case ')', ']', '}':
			if open--; open < 0 {
				return false
			}
		case ';':
			return false
		case ',':
			if open == 0 {
				s.pos++
				return true
			}
		case '\'', '"':
			s.quoted(c)
			s.pos--
		}
	}
	return false
}

// expr is terms joined by "." or "+".
func (s *exprScanner) expr() ([]string, bool) {
	if s.depth++; s.depth > exprDepth {
		return nil, false
	}
	defer func() { s.depth-- }()
	vals, ok := s.operand()
	for ok {
		s.space()
		op := byte('+')
		switch {
		case s.python && s.at('/'):
			op = '/'
		case !s.at('.') && !s.at('+'):
			return vals, true
		}
		s.pos++
		var more []string
		if more, ok = s.operand(); ok {
			if len(vals) != 1 || len(more) != 1 {
				return nil, false
			}
			if op == '/' {
				more[0] = "/" + more[0]
			}
			vals = []string{vals[0] + more[0]}
		}
	}
	return nil, false
}

func isWord(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (s *exprScanner) term() ([]string, bool) {
	s.space()
	if s.pos >= len(s.src) {
		return nil, false
	}
	switch c := s.src[s.pos]; {
	case c == '\'' || c == '"' || c == '`':
		text, ok := s.quoted(c)
		return []string{text}, ok
	case c == '(':
		s.pos++
		vals, n := s.list(s.src[s.pos:])
		s.pos += n
		s.space()
		if !s.at(')') {
			return nil, false
		}
		s.pos++
		return vals, true
	case c == '$' || isWord(c) || c == '\\':
		return s.named()
	}
	return nil, false
}

// quoted reads a string at its quote, and puts known variables in.
func (s *exprScanner) quoted(quote byte) (string, bool) {
	s.pos++
	from := s.pos
	for s.pos < len(s.src) && s.src[s.pos] != quote {
		if s.src[s.pos] == '\\' {
			s.pos++
		}
		s.pos++
	}
	if s.pos >= len(s.src) {
		s.pos = len(s.src)
		return "", false
	}
	text := s.src[from:s.pos]
	s.pos++
	if quote == '\'' {
		return strings.ReplaceAll(text, `\'`, `'`), true
	}
	return s.interpolate(text)
}

// interpolate puts in $name, ${name}, {$name}, #{expression} and ${expression}.
func (s *exprScanner) interpolate(text string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(text); {
		rest := text[i:]
		switch {
		case rest[0] == '\\' && len(rest) > 1:
			b.WriteByte(rest[1])
			i += 2
		case strings.HasPrefix(rest, "#{"), strings.HasPrefix(rest, "${"), strings.HasPrefix(rest, "{$"):
			end := strings.IndexByte(rest, '}')
			if end < 0 {
				return "", false
			}
			from := 2
			if rest[0] == '{' {
				from = 1
			}
			inner := rest[from:end]
			val, ok := s.vars[inner]
			if !ok {
				nested := &exprScanner{literals: s.literals, src: inner, depth: s.depth}
				vals, known := nested.expr()
				if !known || len(vals) != 1 {
					return "", false
				}
				val = vals[0]
			}
			b.WriteString(val)
			i += end + 1
		case rest[0] == '$' && len(rest) > 1 && (isWord(rest[1]) || rest[1] == ':'):
			nested := &exprScanner{literals: s.literals, src: rest, depth: s.depth}
			vals, ok := nested.variable()
			if !ok {
				return "", false
			}
			b.WriteString(vals)
			i += nested.pos
		default:
			b.WriteByte(rest[0])
			i++
		}
	}
	return b.String(), true
}

// variable reads $name, with Perl's package names and an element of %ENV.
func (s *exprScanner) variable() (string, bool) {
	s.pos++ // "$"
	from := s.pos
	for s.pos < len(s.src) && (isWord(s.src[s.pos]) || strings.HasPrefix(s.src[s.pos:], "::") || s.src[s.pos-1] == ':' && s.src[s.pos] == ':') {
		s.pos++
	}
	name := s.src[from:s.pos]
	switch name {
	case "0", "PROGRAM_NAME":
		return s.script, s.script != ""
	case "FindBin::Bin", "Bin":
		if v, ok := s.vars[name]; ok {
			return v, true
		}
		return path.Dir(s.script), s.script != ""
	case "FindBin::RealBin", "RealBin":
		return path.Dir(s.real), s.real != ""
	case "ENV", "_ENV", "_SERVER":
		return s.element()
	}
	v, ok := s.vars[name]
	return v, ok
}

// element reads {'NAME'} or ['NAME'] behind the name of the environment.
func (s *exprScanner) element() (string, bool) {
	rest := s.src[s.pos:]
	end := strings.IndexAny(rest, "}]")
	if end < 0 || rest[0] != '{' && rest[0] != '[' {
		return "", false
	}
	s.pos += end + 1
	v, ok := s.env[strings.Trim(rest[1:end], `'" `)]
	return v, ok
}

// named reads what begins with a word: a variable, a constant, or a call.
func (s *exprScanner) named() ([]string, bool) {
	if s.at('$') {
		v, ok := s.variable()
		return []string{v}, ok
	}
	if s.at('\\') {
		s.pos++ // a PHP name from the root namespace
	}
	from := s.pos
	for s.pos < len(s.src) {
		rest := s.src[s.pos:]
		switch {
		case isWord(rest[0]):
			s.pos++
			continue
		case strings.HasPrefix(rest, "::"), strings.HasPrefix(rest, "->"):
			s.pos += 2
			continue
		case rest[0] == '.' && s.pos > from && len(rest) > 1 && isWord(rest[1]) && !strings.HasPrefix(s.src[from:], "__"):
			s.pos++
			continue
		}
		break
	}
	word := s.src[from:s.pos]
	switch word {
	case "q", "qq", "qw":
		return s.perlQuote(word)
	case "__FILE__", "__filename", "import.meta.filename", "import.meta.url":
		return []string{s.file}, true
	case "__file__":
		return []string{s.file}, s.file != ""
	case "os.pardir":
		return []string{".."}, true
	case "f", "r", "F", "R", "fr", "rf":
		if s.python && (s.at('\'') || s.at('"')) {
			text, ok := s.quoted(s.src[s.pos])
			if ok && word != "r" && word != "R" {
				text, ok = s.braces(text)
			}
			return []string{text}, ok
		}
	case "__DIR__", "__dirname", "__dir__", "import.meta.dirname":
		return []string{path.Dir(s.file)}, true
	case "ENV":
		v, ok := s.element()
		return []string{v}, ok
	}
	if name, ok := strings.CutPrefix(word, "process.env."); ok {
		v, ok := s.env[name]
		return []string{v}, ok
	}
	s.space()
	if !s.at('(') {
		v, ok := s.vars[word]
		return []string{v}, ok && word != ""
	}
	s.pos++
	args, n := s.list(s.src[s.pos:])
	s.pos += n
	s.space()
	if !s.at(')') {
		return nil, false
	}
	s.pos++
	return call(word, args)
}

// call is the value of one of the functions that make names of names.
func call(word string, args []string) ([]string, bool) {
	name := word
	if i := strings.LastIndexAny(word, ".:>"); i >= 0 {
		name = word[i+1:]
	}
	if len(args) == 0 {
		return nil, false
	}
	switch name {
	case "dirname":
		return []string{path.Dir(args[0])}, true
	case "catdir", "catfile", "join", "resolve":
		return []string{path.Join(args...)}, true
	case "expand_path":
		if len(args) > 1 && !strings.HasPrefix(args[0], "/") {
			return []string{path.Join(args[1], args[0])}, true
		}
		return args[:1], true
	case "abs_path", "realpath", "abspath", "normpath", "expanduser", "fspath", "str", "Path", "PurePath", "rel2abs", "realdirpath", "realpathSync", "fileURLToPath", "canonpath", "URL", "untaint":
		return args[:1], true
	}
	return nil, false
}

// perlQuote reads q(), qq() and qw() at their delimiter.
func (s *exprScanner) perlQuote(kind string) ([]string, bool) {
	s.space()
	if s.pos >= len(s.src) {
		return nil, false
	}
	open := s.src[s.pos]
	closing := open
	if i := strings.IndexByte("([{<", open); i >= 0 {
		closing = ")]}>"[i]
	}
	end := strings.IndexByte(s.src[s.pos+1:], closing)
	if end < 0 {
		s.pos = len(s.src)
		return nil, false
	}
	text := s.src[s.pos+1 : s.pos+1+end]
	s.pos += end + 2
	switch kind {
	case "qw":
		return strings.Fields(text), true
	case "qq":
		v, ok := s.interpolate(text)
		return []string{v}, ok
	}
	return []string{text}, true
}
