package rootfs

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// simpleCommand is one simple command of a shell text.
type simpleCommand struct {
	words []string
	exec  bool // the shell becomes it
}

// shellReserved are the words before a simple command's own first word.
var shellReserved = wordSet("if then else elif do while until ! { time command builtin nohup")

// shellCommands finds the simple commands of a POSIX shell text. It is a
// scanner, no shell: words that need an expansion keep their "$", except for
// the variables of vars and those that the text sets to a literal.
func shellCommands(src string, vars map[string]string) []simpleCommand {
	known := make(map[string]string, len(vars))
	maps.Copy(known, vars)
	var out []simpleCommand
	shellRun(src, known, func(c simpleCommand) { out = append(out, c) })
	return out
}

// shellRun does so one by one, and puts what the text sets into known.
func shellRun(src string, known map[string]string, emit func(simpleCommand)) {
	var words []string
	flush := func() {
		if c, ok := simple(words, known); ok {
			emit(c)
		}
		words = nil
	}
	var heredocs []string
	for i := 0; i < len(src); {
		switch c := src[i]; {
		case c == '\n':
			flush()
			i++
			for _, end := range heredocs {
				i = skipHeredoc(src, i, end)
			}
			heredocs = nil
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case c == '\\' && i+1 < len(src) && src[i+1] == '\n':
			i += 2
		case c == '#':
			for i < len(src) && src[i] != '\n' {
				i++
			}
		case strings.HasPrefix(src[i:], "<<") && !strings.HasPrefix(src[i:], "<<<"):
			i += 2
			i += len(src[i:]) - len(strings.TrimLeft(src[i:], "- \t"))
			word, n := shellWord(src[i:], known)
			i += n
			if n == 0 {
				i++
				continue
			}
			heredocs = append(heredocs, word)
		case c == '>' || c == '<':
			i++
			i += len(src[i:]) - len(strings.TrimLeft(src[i:], "<>&| \t"))
			_, n := shellWord(src[i:], known)
			i += n
		case strings.IndexByte(";&|()`", c) >= 0:
			flush()
			i++
		default:
			word, n := shellWord(src[i:], known)
			words = append(words, word)
			i += max(n, 1)
		}
	}
	flush()
}

func skipHeredoc(src string, i int, end string) int {
	for i < len(src) {
		line, rest, _ := strings.Cut(src[i:], "\n")
		i = len(src) - len(rest)
		if strings.TrimLeft(line, "\t") == end {
			break
		}
	}
	return i
}

// shellWord reads one word and gives its length in the text.
func shellWord(s string, vars map[string]string) (string, int) {
	var b strings.Builder
	i := 0
	for i < len(s) {
		c := s[i]
		switch {
		case c == '\'':
			end := strings.IndexByte(s[i+1:], '\'')
			if end < 0 {
				b.WriteString(s[i+1:])
				return b.String(), len(s)
			}
			b.WriteString(s[i+1 : i+1+end])
			i += end + 2
		case c == '"':
			text, n := doubleQuoted(s[i+1:], vars)
			b.WriteString(text)
			i += 1 + n
		case c == '\\' && i+1 < len(s):
			if s[i+1] != '\n' {
				b.WriteByte(s[i+1])
			}
			i += 2
		case c == '$':
			text, n := shellVariable(s[i:], vars)
			b.WriteString(text)
			i += n
		case strings.IndexByte(" \t\r\n;&|()<>`", c) >= 0:
			return b.String(), i
		default:
			b.WriteByte(c)
			i++
		}
	}
	return b.String(), i
}

func doubleQuoted(s string, vars map[string]string) (string, int) {
	var b strings.Builder
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '"':
			return b.String(), i + 1
		case c == '\\' && i+1 < len(s):
			if strings.IndexByte("$`\"\\\n", s[i+1]) < 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i+1])
			i += 2
		case c == '$':
			text, n := shellVariable(s[i:], vars)
			b.WriteString(text)
			i += n
		default:
			b.WriteByte(c)
			i++
		}
	}
	return b.String(), len(s)
}

// shellVariable expands a known variable at the start of s; anything else
// ($(...), an unknown name) keeps its text.
func shellVariable(s string, vars map[string]string) (string, int) {
	if len(s) > 1 && s[1] == '{' {
		end := strings.IndexByte(s, '}')
		if end < 0 {
			return s, len(s)
		}
		if v, ok := parameter(s[2:end], vars); ok {
			return v, end + 1
		}
		return s[:end+1], end + 1
	}
	if v, n, ok := folderIdiom(s, vars); ok {
		return v, n
	}
	if strings.HasPrefix(s, "$(") {
		// The commands inside are found by the caller, which goes on after "$(".
		return "$", 1
	}
	n := nameLen(s[1:])
	if strings.HasPrefix(s, "$0") {
		n = 1
	}
	if v, ok := vars[s[1:1+n]]; ok && n > 0 {
		return v, 1 + n
	}
	return s[:1+n], 1 + n
}

// simple strips what stands before a simple command's first word and remembers
// assignments of literals.
func simple(words []string, vars map[string]string) (simpleCommand, bool) {
	c := simpleCommand{}
	for i := 0; i < len(words); i++ {
		w := words[i]
		name, val, isSet := strings.Cut(w, "=")
		switch {
		case shellReserved[w]:
		case w == "exec":
			c.exec = true
			// Options of exec; -a takes an argument.
			for i+1 < len(words) && strings.HasPrefix(words[i+1], "-") {
				i++
				if words[i] == "-a" {
					i++
				}
			}
		case w == "export" || w == "readonly" || w == "local" || w == "declare" || w == "typeset":
		case w == "for" && i+3 < len(words) && words[i+2] == "in" && nameLen(words[i+1]) == len(words[i+1]):
			vars[words[i+1]] = strings.Join(words[i+3:], loopMark) + loopMark
			return c, false
		case isSet && name != "" && nameLen(name) == len(name):
			if !strings.Contains(val, "$") {
				vars[name] = val
			}
		default:
			c.words = words[i:]
			return c, true
		}
	}
	return c, false
}

// loopMark stands between the values that a variable takes in a loop.
const loopMark = "\x00"

// parameter expands the text between ${ and }: a name, or one with a default or
// with its last part cut off.
func parameter(text string, vars map[string]string) (string, bool) {
	text = strings.TrimSuffix(text, "[0]")
	if v, ok := vars[text]; ok {
		return v, true
	}
	n := nameLen(text)
	if strings.HasPrefix(text, "0") {
		n = 1
	}
	name, op := text[:n], strings.TrimPrefix(text[n:], "[0]")
	v, ok := vars[name]
	switch {
	case op == "%/*" && ok && strings.Contains(v, "/"):
		return v[:strings.LastIndexByte(v, '/')], true
	case strings.HasPrefix(op, ":-"), strings.HasPrefix(op, ":="), strings.HasPrefix(op, "-"), strings.HasPrefix(op, "="):
		if ok && v != "" {
			return v, true
		}
		word, _ := shellWord(strings.TrimLeft(op, ":-="), vars)
		if strings.HasPrefix(op, ":=") || strings.HasPrefix(op, "=") {
			vars[name] = word
		}
		return word, n > 0 && !strings.Contains(word, "$")
	}
	return v, ok && op == ""
}

// folderIdiom evaluates the command substitutions by which a script finds the
// folder that it lies in: dirname, readlink, realpath and cd with pwd.
func folderIdiom(s string, vars map[string]string) (value string, n int, ok bool) {
	if !strings.HasPrefix(s, "$(") || strings.HasPrefix(s, "$((") {
		return "", 0, false
	}
	depth := 0
	for i := 1; i < len(s) && i < 400; i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth == 0 {
			value, ok = folderCommand(s[2:i], vars)
			return value, i + 1, ok
		}
	}
	return "", 0, false
}

func folderCommand(text string, vars map[string]string) (string, bool) {
	var words []string
	for text = strings.TrimLeft(text, " \t\n"); text != ""; text = strings.TrimLeft(text, " \t\n") {
		if strings.IndexByte(";&|<>", text[0]) >= 0 {
			words = append(words, text[:1])
			text = text[1:]
			continue
		}
		w, n := shellWord(text, vars)
		if n == 0 {
			return "", false
		}
		words, text = append(words, w), text[n:]
	}
	if len(words) < 2 {
		return "", false
	}
	operand := ""
	for _, w := range words[1:] {
		if w == "&" || w == ";" || w == ">" {
			break
		}
		if !strings.HasPrefix(w, "-") || operand != "" {
			operand = w
		}
	}
	if operand == "" || strings.Contains(operand, "$") {
		return "", false
	}
	switch words[0] {
	case "dirname":
		return path.Dir(operand), true
	case "readlink", "realpath":
		return operand, true
	case "cd":
		return path.Clean(operand), words[len(words)-1] == "pwd" || slices.Contains(words, "pwd")
	}
	return "", false
}
