package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"

	"github.com/liveupd/liveupd/change"
)

// policyFile is one file of policy.d.
type policyFile struct {
	Rules []policyRule `toml:"rule"`
}

type policyRule struct {
	Units    []unitGlob `toml:"units"`
	Paths    []pathGlob `toml:"paths"`
	Packages []nameGlob `toml:"packages"`
	Action   ruleAction `toml:"action"`
	Windows  []window   `toml:"windows"`
	Reason   string     `toml:"reason"`
}

// LoadPolicy reads the administrator's rules below root: liveupd/policy.d/*.toml
// of /etc, /run and /usr/lib, in the order of their file names; a name in /etc
// hides the same one in /run and /usr/lib, and an empty file or a link to
// /dev/null just hides it. Any mistake is an error with file, line and column
// and a hint: a rule that is not understood protects nothing.
func LoadPolicy(root string) ([]change.Rule, error) {
	files := map[string]string{}
	for _, level := range levels {
		found, err := filepath.Glob(filepath.Join(root, level, "liveupd/policy.d/*.toml"))
		if err != nil {
			return nil, fmt.Errorf("cannot list the policy: %w", err)
		}
		for _, f := range found {
			if _, hidden := files[filepath.Base(f)]; !hidden {
				files[filepath.Base(f)] = f
			}
		}
	}
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	var out []change.Rule
	for _, name := range names {
		rules, err := readPolicy(files[name])
		if err != nil {
			return nil, change.WithHint(err, "mend the file, or hide it: ln -s /dev/null /etc/liveupd/policy.d/"+name+
				"; see liveupd help policy for what a rule holds")
		}
		out = append(out, rules...)
	}
	return out, nil
}

func readPolicy(name string) ([]change.Rule, error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the policy: %w", err)
	}
	return ParsePolicy(name, data)
}

// ParsePolicy reads one file of rules; name is what errors call it.
func ParsePolicy(name string, data []byte) ([]change.Rule, error) {
	var f policyFile
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			first := strict.Errors[0]
			row, col := first.Position()
			return nil, fmt.Errorf("%s:%d:%d: unknown setting %s; a rule has units, paths, packages, action, windows and reason",
				name, row, col, strings.Join(first.Key(), "."))
		}
		if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, col := bad.Position()
			return nil, fmt.Errorf("%s:%d:%d: %w", name, row, col, malformed(bad))
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	where := ruleLines(data)
	var out []change.Rule
	for i, r := range f.Rules {
		line := 1
		if i < len(where) && len(where) == len(f.Rules) {
			line = where[i]
		}
		if why := r.wrong(); why != "" {
			return nil, fmt.Errorf("%s:%d:1: rule %d %s", name, line, i+1, why)
		}
		rule := change.Rule{Action: r.Action.text, Reason: r.Reason, Source: name + ":" + strconv.Itoa(line)}
		for _, g := range r.Units {
			rule.Units = append(rule.Units, g.text)
		}
		for _, g := range r.Paths {
			rule.Paths = append(rule.Paths, g.text)
		}
		for _, g := range r.Packages {
			rule.Packages = append(rule.Packages, g.text)
		}
		for _, w := range r.Windows {
			rule.Windows = append(rule.Windows, change.Window(w))
		}
		out = append(out, rule)
	}
	return out, nil
}

// wrong tells what a rule lacks.
func (r *policyRule) wrong() string {
	switch {
	case len(r.Units)+len(r.Paths)+len(r.Packages) == 0:
		return "names no units, paths or packages: it would be for everything; say units = [\"*\"] if it is"
	case r.Action.text == "" && len(r.Windows) == 0:
		return "has neither an action nor windows: it would change nothing"
	case len(r.Windows) > 0 && r.Action.text != "" && r.Action.text != change.RuleRestart && r.Action.text != change.RuleReload:
		return fmt.Sprintf("has windows and action = %q, which never interrupts: leave one of them out", r.Action.text)
	}
	return ""
}

var ruleHead = regexp.MustCompile(`^\s*\[\[\s*"?rule"?\s*\]\]`)

// ruleLines are the lines on which rules begin.
func ruleLines(data []byte) []int {
	var out []int
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if ruleHead.Match(line) {
			out = append(out, n)
		}
	}
	return out
}

// Structures, for the decoder asks a string's own type for nothing.
type (
	unitGlob   struct{ text string }
	pathGlob   struct{ text string }
	nameGlob   struct{ text string }
	ruleAction struct{ text string }
	window     change.Window
)

func (g *nameGlob) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		return errors.New("an empty name matches nothing")
	}
	if _, err := path.Match(string(b), ""); err != nil {
		return fmt.Errorf("%q is no pattern: * ? and [a-z] are known, and a bracket has to be closed", b)
	}
	g.text = string(b)
	return nil
}

// unitTypes are the suffixes of unit names (systemd.unit(5)).
var unitTypes = []string{
	".service", ".socket", ".device", ".mount", ".automount", ".swap", ".target", ".path", ".timer", ".slice", ".scope",
}

func (g *unitGlob) UnmarshalText(b []byte) error {
	if err := (*nameGlob)(g).UnmarshalText(b); err != nil {
		return err
	}
	s := string(b)
	if !strings.HasSuffix(s, "*") && !slices.ContainsFunc(unitTypes, func(t string) bool { return strings.HasSuffix(s, t) }) {
		return fmt.Errorf("%q is no unit's name: it has no type; %q perhaps", s, s+".service")
	}
	return nil
}

func (g *pathGlob) UnmarshalText(b []byte) error {
	s := string(b)
	if dir, ok := strings.CutSuffix(s, "/"); ok && dir != "" {
		s = dir + "/**"
	}
	switch {
	case !strings.HasPrefix(s, "/"):
		return fmt.Errorf("%q is no absolute path", s)
	case strings.Contains(strings.TrimSuffix(s, "/**"), "**"):
		return fmt.Errorf("%q has ** in the middle: it stands for all below a folder, at the end of a pattern", s)
	}
	if _, err := path.Match(s, ""); err != nil {
		return fmt.Errorf("%q is no pattern: * ? and [a-z] are known, and a bracket has to be closed", s)
	}
	g.text = s
	return nil
}

func (a *ruleAction) UnmarshalText(b []byte) error {
	known := []string{change.RuleRestart, change.RuleReload, change.RuleDefer, change.RuleNever, change.RuleIgnore}
	if !slices.Contains(known, string(b)) {
		return fmt.Errorf("action = %q is none of %s", b, strings.Join(known, ", "))
	}
	a.text = string(b)
	return nil
}

// UnmarshalText reads "[DAYS] HH:MM-HH:MM", where DAYS is a list of days and of
// spans of days: Sat,Sun or Mon..Fri.
func (w *window) UnmarshalText(b []byte) error {
	wrong := func(why string) error {
		return fmt.Errorf("%q is no window: %s; one reads \"Sat,Sun 02:00-04:30\" or \"Mon..Fri 22:00-05:00\" or \"03:00-04:00\"", b, why)
	}
	fields := strings.Fields(string(b))
	w.Days = 127
	switch len(fields) {
	case 1:
	case 2:
		w.Days = 0
		for part := range strings.SplitSeq(fields[0], ",") {
			first, last, span := strings.Cut(part, "..")
			if !span {
				last = first
			}
			from, to := change.DayNumber(first), change.DayNumber(last)
			if from < 0 || to < 0 {
				return wrong(fmt.Sprintf("%q names no day", part))
			}
			for d := from; ; d = (d + 1) % 7 {
				w.Days |= 1 << d
				if d == to {
					break
				}
			}
		}
		fields = fields[1:]
	default:
		return wrong("it has days and a span of time at most")
	}
	from, to, ok := strings.Cut(fields[0], "-")
	if !ok {
		return wrong("a span of time has a - between its ends")
	}
	var good [2]bool
	w.From, good[0] = minuteOf(from)
	w.To, good[1] = minuteOf(to)
	switch {
	case !good[0], !good[1], w.From == 24*60:
		return wrong("a time is HH:MM")
	case w.From == w.To:
		return wrong("its ends are the same; all day is 00:00-24:00")
	}
	return nil
}

func minuteOf(s string) (int, bool) {
	h, m, ok := strings.Cut(s, ":")
	hour, err := strconv.ParseUint(h, 10, 8)
	minute, err2 := strconv.ParseUint(m, 10, 8)
	if !ok || err != nil || err2 != nil || len(m) != 2 || minute > 59 || hour > 24 || hour == 24 && minute > 0 {
		return 0, false
	}
	return int(hour*60 + minute), true
}
