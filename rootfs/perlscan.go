package rootfs

import (
	"regexp"
	"strings"
)

// perlLoad is one statement of a Perl source that loads something.
type perlLoad struct {
	// do is use, require, file (require or do of a file name), lib (folders
	// that come first), push (folders that come last), set (a scalar) or
	// compiled (what XSLoader loads under a module's name).
	do   string
	name string // a module's name, a scalar's name, or the statement's operand
	rest string // what follows a module's name, up to the end of the statement
	// inSub tells that it is done only when a function is called.
	inSub bool
}

var (
	// A statement may begin a line, or follow a bracket, a semicolon, a quote
	// (eval "require X") or a word like "and".
	perlStatement = regexp.MustCompile(`(?:^|[;{}("'&|]|\b(?:eval|or|and|unless|if|return|do|not)\b)\s*(use|no|require|do|autouse|load|autoload|load_class|use_module|require_module|use_package_optimistically|loadany|try_load_class)\b[\s(]*`)
	perlModule    = regexp.MustCompile(`^[A-Za-z_]\w*(?:(?:::|')[A-Za-z_]\w*)*\b`)
	perlQuotedMod = regexp.MustCompile(`^["'](\w+(?:::\w+)*)["']`)
	perlInc       = regexp.MustCompile(`(?:^|[;{}\s])(unshift|push)\s*\(?\s*@(?:main::|::)?INC\s*,\s*`)
	perlScalar    = regexp.MustCompile(`^\s*(?:my|our|local|BEGIN\s*\{|use\s+constant)?\s*\(?\s*\$?([A-Za-z_][\w:]*)\s*\)?\s*(?:=>|=)\s*([^=~\s].*)`)
	perlSub       = regexp.MustCompile(`^(\s*)sub\s+\w+`)
	perlHeredoc   = regexp.MustCompile(`<<~?\s*(?:"([^"\n]+)"|'([^'\n]+)'|([A-Z_][A-Z0-9_]*))`)
	perlXS        = regexp.MustCompile(`\b(?:XSLoader|DynaLoader|bootstrap)\b`)
	perlXSName    = regexp.MustCompile(`\b(?:XSLoader::load|bootstrap)\s*\(?\s*["']?([A-Z]\w*(?:::\w+)*)\b`)
	perlVersion   = regexp.MustCompile(`^v?[0-9]`)
)

// perlImplied are modules that the interpreter loads by itself for a piece of
// syntax.
var perlImplied = []struct {
	text    string
	modules []string
}{
	{":encoding(", []string{"PerlIO::encoding", "PerlIO::scalar", "Encode"}},
	{"%!", []string{"Errno"}},
	{"$!{", []string{"Errno"}},
	{"%-", []string{"Tie::Hash::NamedCapture"}},
	{"$+{", []string{"Tie::Hash::NamedCapture"}},
	{"%+", []string{"Tie::Hash::NamedCapture"}},
	{"autoflush", []string{"IO::File"}},
	{"glob", []string{"File::Glob"}},
	{"<*", []string{"File::Glob"}},
	{`\N{`, []string{"_charnames", "charnames"}},
	{`\p{`, []string{"utf8"}},
}

// scanPerl lists what a Perl source loads, in its order, and whether it loads a
// part of itself that is compiled to machine code. It reads lines and no
// grammar: a text that looks like a statement counts, and does no harm where
// there is no such module.
func scanPerl(src string) (out []perlLoad, xs bool) {
	lines := strings.Split(src, "\n")
	pod, sub := false, ""
	inSub := false
	heredocs := []string{}
	for i := range lines {
		line := strings.TrimSuffix(lines[i], "\r")
		if len(heredocs) > 0 {
			if strings.TrimSpace(line) == heredocs[0] {
				heredocs = heredocs[1:]
			}
			continue
		}
		switch {
		case pod:
			pod = !strings.HasPrefix(line, "=cut")
			continue
		case len(line) > 1 && line[0] == '=' && (line[1] >= 'a' && line[1] <= 'z' || line[1] >= 'A' && line[1] <= 'Z'):
			pod = !strings.HasPrefix(line, "=cut")
			continue
		case line == "__END__" || line == "__DATA__" || strings.HasPrefix(line, "__END__ "):
			return out, xs
		}
		line = perlUncomment(line)
		if strings.TrimSpace(line) == "" {
			continue
		}
		if inSub && strings.HasPrefix(line, sub+"}") {
			inSub = false
		}
		if m := perlSub.FindStringSubmatch(line); m != nil && !inSub && !strings.HasSuffix(strings.TrimRight(line, " \t;"), "}") {
			sub, inSub = m[1], true
		}
		for _, m := range perlHeredoc.FindAllStringSubmatch(line, 4) {
			// "1 << X" shifts; a heredoc has no blank before an unquoted mark, and its mark stands alone further down.
			mark := m[1] + m[2] + m[3]
			if m[3] != "" && strings.Contains(m[0], " ") || !hasLine(lines[i+1:], mark) {
				continue
			}
			heredocs = append(heredocs, mark)
		}
		if perlXS.MatchString(line) {
			xs = true
			// Mouse::Util loads the machine code of Mouse.
			for _, m := range perlXSName.FindAllStringSubmatch(line, 4) {
				out = append(out, perlLoad{do: "compiled", name: m[1], inSub: inSub})
			}
		}
		for _, implied := range perlImplied {
			if strings.Contains(line, implied.text) {
				for _, name := range implied.modules {
					out = append(out, perlLoad{do: "use", name: name, inSub: inSub})
				}
			}
		}
		// A statement may go on for some lines.
		whole := func(from string) string {
			for j := i + 1; j < len(lines) && j <= i+60 && !strings.Contains(from, ";"); j++ {
				from += "\n" + perlUncomment(lines[j])
			}
			return from
		}
		if strings.Contains(line, "INC") {
			for _, at := range perlInc.FindAllStringSubmatchIndex(line, -1) {
				do := "lib"
				if line[at[2]:at[3]] == "push" {
					do = "push"
				}
				out = append(out, perlLoad{do: do, rest: whole(line[at[1]:])})
			}
		}
		if strings.Contains(line, "use") || strings.Contains(line, "no ") || strings.Contains(line, "require") || strings.Contains(line, "do") || strings.Contains(line, "load") {
			for _, at := range perlStatement.FindAllStringSubmatchIndex(line, -1) {
				if l, ok := perlOne(line[at[2]:at[3]], whole(line[at[1]:])); ok {
					l.inSub = inSub && l.do != "use" // use is done when the source is compiled
					out = append(out, l)
				}
			}
		}
		if strings.Contains(line, "=") {
			if m := perlScalar.FindStringSubmatch(line); m != nil {
				out = append(out, perlLoad{do: "set", name: m[1], rest: whole(m[2])})
			}
		}
	}
	return out, xs
}

func hasLine(lines []string, mark string) bool {
	for _, l := range lines {
		if strings.TrimSpace(l) == mark {
			return true
		}
	}
	return false
}

// perlUncomment cuts a comment off: from a "#" that begins the line or follows
// a blank, with as many quotes before it as close each other.
func perlUncomment(line string) string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t' || line[i-1] == ';') &&
			strings.Count(line[:i], `"`)%2 == 0 && strings.Count(line[:i], `'`)%2 == 0 {
			return line[:i]
		}
	}
	return line
}

// perlOne reads one statement behind its word.
func perlOne(word, rest string) (perlLoad, bool) {
	if word == "use" || word == "no" {
		if perlVersion.MatchString(rest) {
			return perlLoad{do: "use", name: "feature", rest: "strict warnings"}, true
		}
		name := perlModule.FindString(rest)
		if name == "" {
			return perlLoad{}, false
		}
		l := perlLoad{do: "use", name: strings.ReplaceAll(name, "'", "::"), rest: rest[len(name):]}
		if name == "lib" && word == "use" {
			l.do = "lib"
		}
		return l, true
	}
	if name := perlModule.FindString(rest); name != "" && (word == "require" || word == "load" || word == "autouse") {
		if name == "q" || name == "qq" {
			return perlLoad{do: "file", rest: rest}, true
		}
		if after := rest[len(name):]; !strings.HasPrefix(after, "(") && !strings.HasPrefix(after, "->") && !strings.HasPrefix(after, ".") || word != "require" {
			return perlLoad{do: "require", name: strings.ReplaceAll(name, "'", "::"), rest: after}, true
		}
		return perlLoad{do: "file", rest: rest}, true
	}
	if word != "require" && word != "do" {
		if m := perlQuotedMod.FindStringSubmatch(rest); m != nil {
			return perlLoad{do: "require", name: m[1], rest: rest[len(m[0]):]}, true
		}
		return perlLoad{}, false
	}
	if rest == "" || rest[0] == '{' || perlVersion.MatchString(rest) {
		return perlLoad{}, false // a block; a version
	}
	return perlLoad{do: "file", rest: rest}, true
}
