package rootfs

import "strings"

// splitWords splits a value as the manager does for a command line
// (extract_first_word with unquoting and C escapes): quotes may stand
// anywhere in a word, a backslash escapes. An unclosed quote ends the list at
// what was understood.
func splitWords(s string) []string {
	var out []string
	for {
		word, rest, ok := nextWord(s)
		if !ok {
			return out
		}
		out = append(out, word)
		s = rest
	}
}

func nextWord(s string) (word, rest string, ok bool) {
	s = strings.TrimLeftFunc(s, isBlank)
	if s == "" {
		return "", "", false
	}
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\':
			if i+1 == len(s) {
				return "", "", false
			}
			text, n := cUnescape(s[i+1:])
			b.WriteString(text)
			i += n
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				b.WriteByte(c)
			}
		case c == '\'' || c == '"':
			quote = c
		case isBlank(rune(c)):
			return b.String(), s[i:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", quote == 0
}

// cUnescape reads one escape after its backslash and gives its text and its
// length. What is no escape stays as it stands, backslash included.
func cUnescape(s string) (text string, n int) {
	switch s[0] {
	case 'a':
		return "\a", 1
	case 'b':
		return "\b", 1
	case 'f':
		return "\f", 1
	case 'n':
		return "\n", 1
	case 'r':
		return "\r", 1
	case 't':
		return "\t", 1
	case 'v':
		return "\v", 1
	case 's':
		return " ", 1
	case '\\', '"', '\'', ' ', '\t':
		return s[:1], 1
	case 'x':
		if len(s) >= 3 && hex(s[1]) >= 0 && hex(s[2]) >= 0 {
			return string([]byte{byte(hex(s[1])<<4 | hex(s[2]))}), 3
		}
	}
	return `\` + s[:1], 1
}

// command is one program that a service starts.
type command struct {
	program string
	args    []string
}

// commands reads the value of an Exec line: prefixes, several commands
// separated by ";" (systemd.service(5), "Command Lines"), specifiers, and
// variables that env knows.
func commands(value string, expand func(string) string, env map[string]string) []command {
	var out []command
	var words []string
	flush := func() {
		if c, ok := oneCommand(words, expand, env); ok {
			out = append(out, c)
		}
		words = nil
	}
	for _, raw := range rawWords(value) {
		if raw == ";" {
			flush()
			continue
		}
		if raw == `\;` {
			raw = ";"
		}
		words = append(words, raw)
	}
	flush()
	return out
}

// rawWords is splitWords that keeps a lone escaped semicolon apart from a bare one.
func rawWords(s string) []string {
	var out []string
	for {
		s = strings.TrimLeftFunc(s, isBlank)
		if strings.HasPrefix(s, `\;`) && (len(s) == 2 || isBlank(rune(s[2]))) {
			out = append(out, `\;`)
			s = s[2:]
			continue
		}
		word, rest, ok := nextWord(s)
		if !ok {
			return out
		}
		out = append(out, word)
		s = rest
	}
}

func oneCommand(words []string, expand func(string) string, env map[string]string) (command, bool) {
	if len(words) == 0 {
		return command{}, false
	}
	program := strings.TrimLeft(words[0], "@-:+!|")
	prefix := words[0][:len(words[0])-len(program)]
	args := words[1:]
	if strings.Contains(prefix, "@") && len(args) > 0 {
		args = args[1:] // argv[0]
	}
	c := command{program: expand(program)}
	if c.program == "" {
		return command{}, false
	}
	for _, a := range args {
		a = expand(a)
		switch name, whole := wholeVariable(a); {
		case strings.Contains(prefix, ":"):
			c.args = append(c.args, a)
		case whole:
			c.args = append(c.args, strings.Fields(env[name])...)
		default:
			c.args = append(c.args, variables(a, env))
		}
	}
	return c, true
}

// wholeVariable tells whether a word is $NAME alone, which is split into words.
func wholeVariable(word string) (string, bool) {
	name, ok := strings.CutPrefix(word, "$")
	return name, ok && name != "" && nameLen(name) == len(name)
}

// variables puts ${NAME} in; $NAME too, for shells. A name that env does not
// know becomes empty, as in the manager.
func variables(s string, env map[string]string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		switch {
		case s[0] == '$':
			b.WriteByte('$')
			s = s[1:]
		case s[0] == '{' && strings.IndexByte(s, '}') > 0:
			end := strings.IndexByte(s, '}')
			b.WriteString(env[s[1:end]])
			s = s[end+1:]
		default:
			n := nameLen(s)
			if n == 0 {
				b.WriteByte('$')
				continue
			}
			b.WriteString(env[s[:n]])
			s = s[n:]
		}
	}
}

func nameLen(s string) int {
	n := 0
	for n < len(s) && (s[n] == '_' || s[n] >= 'a' && s[n] <= 'z' || s[n] >= 'A' && s[n] <= 'Z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return n
}

// parseEnvironment reads an EnvironmentFile: NAME=VALUE lines, comments,
// quotes and continuation lines (systemd.exec(5)).
func parseEnvironment(b []byte, env map[string]string) {
	text := strings.ReplaceAll(string(b), "\\\n", "")
	for line := range strings.Lines(text) {
		line = strings.TrimFunc(line, isBlank)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		name, val, ok := strings.Cut(line, "=")
		if !ok || nameLen(name) != len(name) {
			continue
		}
		if len(val) >= 2 && (val[0] == '"' || val[0] == '\'') && val[len(val)-1] == val[0] {
			val = val[1 : len(val)-1]
		}
		env[name] = val
	}
}
