package directive

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// renamed are settings under an older name or in an older section.
var renamed = map[[2]string][2]string{
	{"Unit", "BindTo"}:                     {"Unit", "BindsTo"},
	{"Unit", "PropagateReloadTo"}:          {"Unit", "PropagatesReloadTo"},
	{"Unit", "PropagateReloadFrom"}:        {"Unit", "ReloadPropagatedFrom"},
	{"Unit", "RequiresOverridable"}:        {"Unit", "Requires"},
	{"Unit", "RequisiteOverridable"}:       {"Unit", "Requisite"},
	{"Unit", "StartLimitInterval"}:         {"Unit", "StartLimitIntervalSec"},
	{"Service", "StartLimitInterval"}:      {"Unit", "StartLimitIntervalSec"},
	{"Service", "StartLimitBurst"}:         {"Unit", "StartLimitBurst"},
	{"Service", "StartLimitAction"}:        {"Unit", "StartLimitAction"},
	{"Service", "FailureAction"}:           {"Unit", "FailureAction"},
	{"Service", "RebootArgument"}:          {"Unit", "RebootArgument"},
	{"Service", "ReadWriteDirectories"}:    {"Service", "ReadWritePaths"},
	{"Service", "ReadOnlyDirectories"}:     {"Service", "ReadOnlyPaths"},
	{"Service", "InaccessibleDirectories"}: {"Service", "InaccessiblePaths"},
}

// Modern gives a setting's present section and name.
func Modern(section, key string) (string, string) {
	if now, ok := renamed[[2]string{section, key}]; ok {
		return now[0], now[1]
	}
	return section, key
}

// Equal tells whether two lists of effective assignments of one setting mean
// the same to the manager. fallback is what an empty list means, "" where that
// is not one value.
func Equal(kind Kind, fallback string, a, b []string) bool {
	if slices.Equal(a, b) {
		return true
	}
	if len(a) == 0 && fallback != "" {
		a = []string{fallback}
	}
	if len(b) == 0 && fallback != "" {
		b = []string{fallback}
	}
	return slices.Equal(Normal(kind, a), Normal(kind, b))
}

// Normal brings effective assignments into a form in which equal meaning is
// equal text. What does not have the form that the kind has stays as it is.
func Normal(kind Kind, values []string) []string {
	if kind.Scalar() {
		if len(values) == 0 {
			return nil
		}
		return []string{scalar(kind, values[len(values)-1])}
	}
	switch kind {
	case Command:
		out := make([]string, len(values))
		for i, v := range values {
			out[i] = command(v)
		}
		return out
	case Words:
		return split(values)
	case Deps:
		var words []string
		for _, v := range values {
			words = append(words, fields(v, false)...) // names of units keep their escapes
		}
		slices.Sort(words)
		return slices.Compact(words)
	case Set, Mounts:
		words := split(values)
		for i, w := range words {
			words[i] = simplify(w)
		}
		slices.Sort(words)
		return slices.Compact(words)
	case Env:
		last := map[string]string{}
		for _, w := range split(values) {
			name, _, _ := strings.Cut(w, "=")
			last[name] = w
		}
		return slices.Sorted(maps.Values(last))
	case Filter:
		return filter(values)
	}
	return values
}

func split(values []string) []string {
	var out []string
	for _, v := range values {
		out = append(out, Fields(v)...)
	}
	return out
}

func scalar(kind Kind, v string) string {
	switch kind {
	case Bool, Word:
		if yes, ok := Truth(v); ok && yes {
			return "yes"
		} else if ok {
			return "no"
		}
	case Time:
		if n, ok := span(v, 1e6, 1); ok {
			return strconv.FormatUint(n, 10)
		}
	case NSec:
		if n, ok := span(v, 1, 1000); ok {
			return strconv.FormatUint(n, 10)
		}
	case Size:
		return size(v)
	case Mode:
		if n, err := strconv.ParseUint(v, 8, 32); err == nil {
			return strconv.FormatUint(n, 8)
		}
	case Int:
		if n, err := strconv.ParseInt(strings.TrimPrefix(v, "+"), 10, 64); err == nil {
			return strconv.FormatInt(n, 10)
		}
	case Limit:
		soft, hard, both := strings.Cut(v, ":")
		if !both {
			hard = soft
		}
		return size(soft) + ":" + size(hard)
	case Count:
		if !strings.Contains(v, ":") {
			return v + ":" + v
		}
	case Signal:
		v = strings.TrimPrefix(v, "SIG")
		return cmp.Or(signals[v], v)
	case Opts:
		return strings.Join(mountOptions(v, false), ",")
	case Path:
		return simplify(v)
	}
	return v
}

var signals = map[string]string{
	"1": "HUP", "2": "INT", "3": "QUIT", "6": "ABRT", "9": "KILL", "10": "USR1", "12": "USR2", "15": "TERM", "28": "WINCH",
}

// Truth reads a boolean as the manager does (systemd.syntax(7)).
func Truth(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}

// size reads bytes with suffixes to the base 1024.
func size(v string) string {
	digits := strings.TrimSuffix(v, "B")
	factor := 1.0
	if n := len(digits); n > 1 {
		if i := strings.IndexByte("KMGTPE", digits[n-1]); i >= 0 {
			digits = digits[:n-1]
			for range i + 1 {
				factor *= 1024
			}
		}
	}
	if n, err := strconv.ParseUint(digits, 10, 64); err == nil && factor == 1 {
		return strconv.FormatUint(n, 10)
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || f < 0 || f*factor >= 1<<63 || strings.ContainsAny(digits, "eExXnNiI") {
		return v
	}
	return strconv.FormatUint(uint64(f*factor), 10)
}

var units = map[string]float64{
	"ns": 0.001, "nsec": 0.001, "us": 1, "µs": 1, "μs": 1, "usec": 1, "ms": 1e3, "msec": 1e3,
	"s": 1e6, "sec": 1e6, "second": 1e6, "seconds": 1e6, "m": 6e7, "min": 6e7, "minute": 6e7, "minutes": 6e7,
	"h": 3.6e9, "hr": 3.6e9, "hour": 3.6e9, "hours": 3.6e9, "d": 8.64e10, "day": 8.64e10, "days": 8.64e10,
	"w": 6.048e11, "week": 6.048e11, "weeks": 6.048e11, "M": 2.629800e12, "month": 2.6298e12, "months": 2.6298e12,
	"y": 3.15576e13, "year": 3.15576e13, "years": 3.15576e13,
}

// span reads a time span (systemd.time(7)) in microseconds times scale. plain is
// the unit of a number without one.
func span(v string, plain, scale float64) (uint64, bool) {
	if v == "infinity" {
		return 1<<64 - 1, true
	}
	total, any := 0.0, false
	for rest := strings.TrimSpace(v); rest != ""; rest = strings.TrimSpace(rest) {
		end := 0
		for end < len(rest) && (rest[end] >= '0' && rest[end] <= '9' || rest[end] == '.') {
			end++
		}
		n, err := strconv.ParseFloat(rest[:end], 64)
		if err != nil {
			return 0, false
		}
		rest = strings.TrimLeft(rest[end:], " \t")
		end = 0
		for end < len(rest) && rest[end] != ' ' && rest[end] != '\t' && (rest[end] < '0' || rest[end] > '9') {
			end++
		}
		factor := plain
		if end > 0 {
			u, ok := units[rest[:end]]
			if !ok {
				return 0, false
			}
			factor = u * scale
		}
		total, any, rest = total+n*factor, true, rest[end:]
	}
	return uint64(total + 0.5), any && total < 1<<62
}

// simplify removes what makes no difference in a path: doubled and trailing slashes.
func simplify(v string) string {
	if !strings.Contains(v, "/") || strings.HasPrefix(v, "//") {
		return v
	}
	for strings.Contains(v, "//") && !strings.Contains(v, "://") {
		v = strings.ReplaceAll(v, "//", "/")
	}
	if len(v) > 1 && !strings.Contains(v, "://") {
		if short := strings.TrimRight(v, "/"); strings.ContainsRune(short, '/') {
			return short
		}
	}
	return v
}

// command brings a command line into the form of one blank between words that
// are quoted where they must be.
func command(v string) string {
	words := Fields(v)
	for i, w := range words {
		if w == "" || strings.ContainsAny(w, " \t\n\r'\"\\") {
			words[i] = strconv.Quote(w)
		}
	}
	return strings.Join(words, " ")
}

// filter sorts what may be sorted: words within a line, and lines as long as
// none of them takes words away.
func filter(values []string) []string {
	var out []string
	inverted := false
	for _, v := range values {
		inverted = inverted || strings.HasPrefix(v, "~")
	}
	if !inverted {
		out = split(values)
		slices.Sort(out)
		return slices.Compact(out)
	}
	for _, v := range values {
		rest, not := strings.CutPrefix(v, "~")
		words := Fields(rest)
		slices.Sort(words)
		line := strings.Join(slices.Compact(words), " ")
		if not {
			line = "~" + line
		}
		out = append(out, line)
	}
	return out
}

// mountOptions splits mount options. Unless all are asked for, those that only
// user land reads (systemd.mount(5), mount(8)) are left out. What does not
// depend on the order is sorted.
func mountOptions(v string, all bool) []string {
	var out []string
	bases := map[string]bool{}
	ordered := false
	for o := range strings.SplitSeq(v, ",") {
		o = strings.TrimSpace(o)
		if o == "" || !all && userOption(o) {
			continue
		}
		base, _, _ := strings.Cut(o, "=")
		if base == "rw" {
			base = "ro"
		}
		base = strings.TrimPrefix(base, "no")
		ordered = ordered || bases[base]
		bases[base] = true
		out = append(out, o)
	}
	if !ordered {
		slices.Sort(out)
	}
	return out
}

func userOption(o string) bool {
	switch o {
	case "defaults", "auto", "noauto", "nofail", "fail", "_netdev", "user", "users", "nouser", "owner", "group":
		return true
	}
	return strings.HasPrefix(o, "x-") || strings.HasPrefix(o, "X-") || strings.HasPrefix(o, "comment=")
}

// Fields splits a value into words as the manager does: quotes hold a word
// together, and escapes are those of C (systemd.syntax(7), systemd.service(5)).
func Fields(s string) []string { return fields(s, true) }

func fields(s string, unescape bool) []string {
	var out []string
	var word strings.Builder
	in := false
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s) && unescape:
			n := escape(&word, s[i+1:])
			i += n
			in = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if in {
		out = append(out, word.String())
	}
	return out
}

var escapes = map[byte]string{
	'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v", '\\': `\`, '"': `"`, '\'': "'", 's': " ",
}

// escape writes what the escape sequence after a backslash stands for, and
// returns its length. What is none stays as it is written.
func escape(to *strings.Builder, s string) int {
	if e, ok := escapes[s[0]]; ok {
		to.WriteString(e)
		return 1
	}
	read := func(from, digits, base int) (uint64, bool) {
		if len(s) < from+digits {
			return 0, false
		}
		n, err := strconv.ParseUint(s[from:from+digits], base, 32)
		return n, err == nil
	}
	if s[0] >= '0' && s[0] <= '7' {
		if n, ok := read(0, 3, 8); ok && n < 256 {
			to.WriteByte(byte(n))
			return 3
		}
	}
	for kind, digits := range map[byte]int{'x': 2, 'u': 4, 'U': 8} {
		if s[0] != kind {
			continue
		}
		if n, ok := read(1, digits, 16); ok {
			if kind == 'x' {
				to.WriteByte(byte(n))
			} else {
				to.WriteRune(rune(n))
			}
			return 1 + digits
		}
	}
	to.WriteByte('\\')
	to.WriteByte(s[0])
	return 1
}
