package labels

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// none is the context of what the rules leave alone.
const none = "<<none>>"

// rule is one line of file_contexts.
type rule struct {
	file    string
	line    int
	pattern string
	typ     change.Type // 0: any
	context string
	meta    bool   // the pattern is more than a path
	prefix  string // what each path that it fits begins with; the whole path where it has no meta

	once sync.Once
	re   *regexp.Regexp
	err  error
}

type substitution struct{ from, to string }

// Rules are those of one root. They may be used from several goroutines.
type Rules struct {
	rules        []*rule // those without a metacharacter last, for a search from the end
	subs, dist   []substitution
	customizable map[string]bool
}

// Load reads the rules of a root; nil with no error where it has none.
func Load(root *sys.FD) (*Rules, error) {
	policy, err := policyName(root)
	if err != nil || policy == "" {
		return nil, err
	}
	dir := path.Join("etc/selinux", policy, "contexts")
	base := path.Join(dir, "files/file_contexts")
	r := &Rules{customizable: map[string]bool{}}
	for _, suffix := range []string{"", ".homedirs", ".local"} {
		text, err := read(root, base+suffix)
		if errors.Is(err, fs.ErrNotExist) {
			if suffix == "" {
				return nil, nil
			}
			continue
		}
		if err == nil {
			err = r.parse(base+suffix, text)
		}
		if err != nil {
			return nil, err
		}
	}
	r.order()
	for suffix, list := range map[string]*[]substitution{".subs": &r.subs, ".subs_dist": &r.dist} {
		text, err := read(root, base+suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		*list = parseSubs(text)
	}
	text, err := read(root, path.Join(dir, "customizable_types"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, t := range fields(text) {
		r.customizable[t[0]] = true
	}
	return r, nil
}

// policyName reads SELINUXTYPE of /etc/selinux/config. A system on which SELinux
// is off has labels all the same where it had them: they are for the day it is on.
func policyName(root *sys.FD) (string, error) {
	text, err := read(root, "etc/selinux/config")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, f := range fields(text) {
		if name, ok := strings.CutPrefix(f[0], "SELINUXTYPE="); ok {
			if name == "" || strings.ContainsRune(name, '/') || strings.HasPrefix(name, ".") {
				return "", fmt.Errorf("cannot read /etc/selinux/config: SELINUXTYPE %q is no policy's name", name)
			}
			return name, nil
		}
	}
	return "", nil
}

// maxFile bounds what is read: the largest policies have half a megabyte.
const maxFile = 64 << 20

func read(root *sys.FD, name string) ([]byte, error) {
	f, err := sys.OpenRegular(root, name, sys.ResolveInRoot)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > maxFile {
		return nil, fmt.Errorf("cannot read /%s: it has %d bytes", name, f.Size())
	}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil {
		return nil, fmt.Errorf("cannot read /%s: %w", name, err)
	}
	return text, nil
}

// fields splits the lines of a file that are no comments.
func fields(text []byte) [][]string {
	var out [][]string
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, maxFile)
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			out = append(out, f)
		}
	}
	return out
}

var types = map[string]change.Type{
	"--": change.Regular, "-d": change.Directory, "-l": change.Symlink, "-c": change.CharDevice,
	"-b": change.BlockDevice, "-p": change.FIFO, "-s": change.Socket,
}

func (r *Rules) parse(name string, text []byte) error {
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, maxFile)
	for n := 1; sc.Scan(); n++ {
		f := strings.Fields(sc.Text())
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		one := &rule{file: name, line: n, pattern: f[0]}
		switch len(f) {
		case 2:
			one.context = f[1]
		case 3:
			typ, ok := types[f[1]]
			if !ok {
				return fmt.Errorf("cannot read /%s: line %d: %q is no type of object", name, n, f[1])
			}
			one.typ, one.context = typ, f[2]
		default:
			return fmt.Errorf("cannot read /%s: line %d: want a path, a type or none, and a context", name, n)
		}
		if !utf8.ValidString(one.pattern) {
			return fmt.Errorf("cannot read /%s: line %d: the path is not UTF-8", name, n)
		}
		one.prefix, one.meta = literal(one.pattern)
		r.rules = append(r.rules, one)
	}
	return sc.Err()
}

// literal gives what each path that a pattern fits begins with, and tells whether
// there is more to it than that.
func literal(pattern string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		c := pattern[i]
		switch c {
		case '.', '^', '$', '?', '*', '+', '|', '[', '(', '{':
			prefix := b.String()
			if (c == '?' || c == '*' || c == '{') && prefix != "" {
				_, size := utf8.DecodeLastRuneInString(prefix) // it may be absent
				prefix = prefix[:len(prefix)-size]
			}
			if strings.Contains(pattern, "|") && !barsInGroups(pattern) {
				prefix = ""
			}
			return prefix, true
		case '\\':
			i++
			if i == len(pattern) {
				return b.String(), true
			}
			// \d and its like stand for more than themselves.
			if c = pattern[i]; c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
				return b.String(), true
			}
		}
		b.WriteByte(c)
	}
	return b.String(), false
}

// barsInGroups tells whether each alternative of a pattern lies in a group, so that
// what comes before the group holds for all.
func barsInGroups(pattern string) bool {
	depth := 0
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			depth--
		case '|':
			if depth == 0 {
				return false
			}
		}
	}
	return true
}

// order puts the rules without a metacharacter last, each kind in its order.
func (r *Rules) order() {
	var plain, meta []*rule
	for _, one := range r.rules {
		if one.meta {
			meta = append(meta, one)
		} else {
			plain = append(plain, one)
		}
	}
	r.rules = append(meta, plain...)
}

// parseSubs reads aliases: a path and what it stands for.
func parseSubs(text []byte) []substitution {
	var out []substitution
	for _, f := range fields(text) {
		if len(f) >= 2 {
			out = append(out, substitution{f[0], f[1]})
		}
	}
	return out
}

// substitute replaces the beginning of a path by the first alias that fits.
func substitute(list []substitution, p string) string {
	for _, s := range list {
		rest, ok := strings.CutPrefix(p, s.from)
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if s.to == "/" {
			if rest == "" {
				return "/"
			}
			return rest
		}
		return s.to + rest
	}
	return p
}

// Lookup gives the context of an object by its path and type; "" where the rules
// have none for it.
func (r *Rules) Lookup(p string, typ change.Type) (string, error) {
	p = substitute(r.dist, substitute(r.subs, p))
	for _, one := range slices.Backward(r.rules) {
		if one.typ != 0 && one.typ != typ {
			continue
		}
		ok, err := one.matches(p)
		if err != nil {
			return "", err
		}
		if !ok {
			continue
		}
		if one.context == none {
			return "", nil
		}
		return one.context, nil
	}
	return "", nil
}

func (one *rule) matches(p string) (bool, error) {
	if !one.meta {
		return p == one.prefix, nil
	}
	if !strings.HasPrefix(p, one.prefix) {
		return false, nil
	}
	one.once.Do(func() {
		if one.re, one.err = regexp.Compile(`(?s)^(?:` + one.pattern + `)$`); one.err != nil {
			one.err = fmt.Errorf("cannot read /%s: line %d: %w", one.file, one.line, one.err)
		}
	})
	return one.err == nil && one.re.MatchString(p), one.err
}

// Label gives security.selinux for an object that the source gives none: the value
// as the kernel keeps it, with a NUL at its end. old is the value that the object
// at the path has, nil for none. nil: the rules leave it alone.
func (r *Rules) Label(p string, typ change.Type, old []byte) ([]byte, error) {
	if r.customizable[contextType(old)] {
		return old, nil
	}
	context, err := r.Lookup(p, typ)
	if err != nil || context == "" {
		return nil, err
	}
	return append([]byte(context), 0), nil
}

// contextType is the type in a context: user:role:type[:range].
func contextType(label []byte) string {
	f := strings.SplitN(strings.TrimRight(string(label), "\x00"), ":", 4)
	if len(f) < 3 {
		return ""
	}
	return f[2]
}
