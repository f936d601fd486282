package rootfs

import "strings"

// pyImport is one import statement of a Python source.
type pyImport struct {
	level  int      // leading dots: 0 absolute, 1 this package, ...
	module string   // "a.b"; "" for "from . import x"
	names  []string // after "import" of a from-import; nil for a plain import
	// inFunction tells that it runs only when a function is called.
	inFunction bool
}

// pyScanner finds imports in Python source without parsing it: it knows
// strings, comments, brackets and line structure, which is enough to tell a
// statement from text that looks like one. Any bytes give some answer.
type pyScanner struct {
	src   string
	pos   int
	depth int // open brackets
	out   []pyImport
	// inFunction is set while the lines of a function are read.
	inFunction bool
}

// scanPython lists the imports of a source, wherever they stand: in functions
// and conditions too, except under "if TYPE_CHECKING:" (never run) and, unless
// main is set, under a top-level "if __name__ == ..." (not run on import).
// importlib.import_module and __import__ of a literal name count.
func scanPython(src string, main bool) []pyImport {
	s := &pyScanner{src: strings.TrimPrefix(src, "\xef\xbb\xbf")}
	skip := -1 // indentation of an "if" whose block is skipped
	def := -1  // indentation of the outermost function that is open
	for s.pos < len(s.src) {
		indent, blank := s.indent()
		if blank {
			continue
		}
		if skip >= 0 && indent > skip {
			s.statement(false)
			continue
		}
		skip = -1
		if indent <= def {
			def = -1
		}
		head := s.peekLine()
		if def < 0 && (strings.HasPrefix(head, "def ") || strings.HasPrefix(head, "async def ")) {
			def = indent
		}
		s.inFunction = def >= 0
		if strings.HasPrefix(head, "if") {
			if isTypeChecking(head) || !main && indent == 0 && isMainGuard(head) {
				skip = indent
				s.statement(false)
				continue
			}
		}
		s.statement(true)
	}
	return s.out
}

// indent reads the start of a line; blank tells that the line holds nothing.
func (s *pyScanner) indent() (int, bool) {
	n := 0
	for s.pos < len(s.src) {
		switch s.src[s.pos] {
		case ' ':
			n++
		case '\t':
			n = n/8*8 + 8
		case '\f':
			n = 0
		case '\r', '\n':
			s.pos++
			return 0, true
		case '#':
			s.comment()
			return 0, true
		default:
			return n, false
		}
		s.pos++
	}
	return n, true
}

func (s *pyScanner) comment() {
	for s.pos < len(s.src) && s.src[s.pos] != '\n' {
		s.pos++
	}
}

func (s *pyScanner) peekLine() string {
	line, _, _ := strings.Cut(s.src[s.pos:min(len(s.src), s.pos+200)], "\n")
	return line
}

func isTypeChecking(line string) bool {
	cond := strings.TrimSpace(strings.TrimPrefix(line, "if"))
	cond, _, ok := strings.Cut(cond, ":")
	cond = strings.Trim(cond, " ()")
	return ok && (cond == "TYPE_CHECKING" || strings.HasSuffix(cond, ".TYPE_CHECKING") && !strings.ContainsAny(cond, " "))
}

func isMainGuard(line string) bool {
	cond := strings.Trim(strings.TrimPrefix(line, "if"), " (")
	return strings.HasPrefix(cond, "__name__") && strings.Contains(cond, "==") && strings.Contains(cond, "__main__") &&
		!strings.Contains(cond, " or ")
}

// statement reads up to the end of a logical line; collect tells whether its
// imports count.
func (s *pyScanner) statement(collect bool) {
	start := true // a statement may begin here
	kept := len(s.out)
	s.depth = 0
	for s.pos < len(s.src) {
		c := s.src[s.pos]
		switch {
		case c == '\n':
			s.pos++
			if s.depth == 0 {
				if !collect {
					s.out = s.out[:kept]
				}
				return
			}
		case c == '\\' && s.pos+1 < len(s.src):
			s.pos++
			if s.src[s.pos] == '\r' && s.pos+1 < len(s.src) {
				s.pos++
			}
			s.pos++
		case c == '#':
			s.comment()
		case c == '"' || c == '\'':
			s.str()
			start = false
		case c == '(' || c == '[' || c == '{':
			s.depth++
			s.pos++
			start = false
		case c == ')' || c == ']' || c == '}':
			s.depth = max(s.depth-1, 0)
			s.pos++
			start = false
		case (c == ';' || c == ':') && s.depth == 0:
			s.pos++
			start = true
		case isPyName(c):
			word := s.word()
			switch {
			case start && word == "import":
				s.plainImport()
			case start && word == "from":
				s.fromImport()
			case word == "import_module" || word == "__import__":
				s.dynamicImport()
			}
			start = false
		default:
			if c != ' ' && c != '\t' && c != '\r' {
				start = false
			}
			s.pos++
		}
	}
	if !collect {
		s.out = s.out[:kept]
	}
}

func isPyName(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80
}

func (s *pyScanner) word() string {
	from := s.pos
	for s.pos < len(s.src) && isPyName(s.src[s.pos]) {
		s.pos++
	}
	return s.src[from:s.pos]
}

// str passes over a string literal at its opening quote. A prefix (r, b, f)
// was read as a word; in raw strings a backslash keeps the next quote from
// ending the literal too, so that they need no other treatment.
func (s *pyScanner) str() string {
	quote := s.src[s.pos : s.pos+1]
	if triple := strings.Repeat(quote, 3); strings.HasPrefix(s.src[s.pos:], triple) {
		quote = triple
	}
	s.pos += len(quote)
	from := s.pos
	for s.pos < len(s.src) {
		switch {
		case s.src[s.pos] == '\\' && s.pos+1 < len(s.src):
			s.pos += 2
			continue
		case strings.HasPrefix(s.src[s.pos:], quote):
			text := s.src[from:s.pos]
			s.pos += len(quote)
			return text
		case s.src[s.pos] == '\n' && len(quote) == 1:
			return s.src[from:s.pos] // not closed: a syntax error
		}
		s.pos++
	}
	return s.src[from:]
}

// space passes over what may stand between the words of one statement.
func (s *pyScanner) space(lines bool) {
	for s.pos < len(s.src) {
		switch c := s.src[s.pos]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\f':
			s.pos++
		case c == '\\' && strings.HasPrefix(s.src[s.pos+1:], "\n"):
			s.pos += 2
		case c == '\\' && strings.HasPrefix(s.src[s.pos+1:], "\r\n"):
			s.pos += 3
		case lines && c == '\n':
			s.pos++
		case lines && c == '#':
			s.comment()
		default:
			return
		}
	}
}

func (s *pyScanner) at(c byte) bool { return s.pos < len(s.src) && s.src[s.pos] == c }

// dotted reads "a.b.c", blanks allowed around the dots.
func (s *pyScanner) dotted() string {
	var parts []string
	for {
		s.space(false)
		w := s.word()
		if w == "" {
			break
		}
		parts = append(parts, w)
		s.space(false)
		if !s.at('.') {
			break
		}
		s.pos++
	}
	return strings.Join(parts, ".")
}

// alias passes over "as name".
func (s *pyScanner) alias(lines bool) {
	s.space(lines)
	save := s.pos
	if s.word() != "as" {
		s.pos = save
		return
	}
	s.space(lines)
	s.word()
	s.space(lines)
}

func (s *pyScanner) found(imp pyImport) {
	imp.inFunction = s.inFunction
	s.out = append(s.out, imp)
}

func (s *pyScanner) plainImport() {
	for {
		module := s.dotted()
		if module == "" {
			return
		}
		s.found(pyImport{module: module})
		s.alias(false)
		if !s.at(',') {
			return
		}
		s.pos++
	}
}

func (s *pyScanner) fromImport() {
	imp := pyImport{names: []string{}}
	for {
		s.space(false)
		if !s.at('.') {
			break
		}
		imp.level++
		s.pos++
	}
	save := s.pos
	if s.word() != "import" {
		s.pos = save
		imp.module = s.dotted()
		s.space(false)
		if s.word() != "import" || imp.module == "" {
			return
		}
	} else if imp.level == 0 {
		return
	}
	s.space(false)
	lines := s.at('(')
	if lines {
		s.pos++
	}
	for {
		s.space(lines)
		name := s.word()
		if name == "" {
			break
		}
		imp.names = append(imp.names, name)
		s.alias(lines)
		if !s.at(',') {
			break
		}
		s.pos++
	}
	if lines && s.at(')') {
		s.pos++
	}
	s.found(imp)
}

func (s *pyScanner) dynamicImport() {
	s.space(false)
	if !s.at('(') {
		return
	}
	s.pos++
	s.depth++
	s.space(true)
	if !s.at('"') && !s.at('\'') {
		return
	}
	name := s.str()
	for i := range len(name) {
		if !isPyName(name[i]) && name[i] != '.' {
			return
		}
	}
	level := len(name) - len(strings.TrimLeft(name, "."))
	if module := strings.Trim(name, "."); module != "" {
		s.found(pyImport{level: level, module: module})
	}
}
