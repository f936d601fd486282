package apt

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Changes tells which package's scripts changed a path of /var: dpkg tells when it begins
// to configure each (its --status-logger), and the overlay when each path changed.
type Changes struct {
	Began   []Mark             `json:"began,omitempty"` // in order
	Touched map[string]float64 `json:"touched,omitempty"`
}

// Mark is the time, in seconds, from which on a package's script ran. dpkg goes on before
// it is taken: it may be late. Where Run is set, it is the time when dpkg was started, which is
// never late, and Name is "configure" where it was to configure packages.
type Mark struct {
	At   float64 `json:"at"`
	Name string  `json:"name"` // as dpkg writes it, with the architecture where it needs one
	Run  bool    `json:"run,omitempty"`
}

// packageName is a name as dpkg knows it, with or without an architecture: what lies in the
// sandbox a script may have written.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?$`)

// readChanges reads lines "TIME NUMBER-NUMBER-NAME", where the second number is 0 for a run of
// dpkg, and "TIME PATH".
func readChanges(began, touched string) Changes {
	var c Changes
	for line := range strings.Lines(began) {
		if at, name, ok := timed(line); ok {
			if parts := strings.SplitN(name, "-", 3); len(parts) == 3 && packageName.MatchString(parts[2]) {
				c.Began = append(c.Began, Mark{At: at, Name: parts[2], Run: parts[1] == "0"})
			}
		}
	}
	slices.SortStableFunc(c.Began, func(a, b Mark) int { return cmp.Compare(a.At, b.At) })
	for line := range strings.Lines(touched) {
		at, name, ok := timed(line)
		if !ok {
			continue
		}
		if c.Touched == nil {
			c.Touched = map[string]float64{}
		}
		c.Touched[name] = at
	}
	return c
}

func timed(line string) (at float64, rest string, ok bool) {
	stamp, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	at, err := strconv.ParseFloat(stamp, 64)
	return at, rest, ok && err == nil
}

// By gives the package whose script changed a path, none where it is not known: a preinst or
// prerm of one of several packages did it. A package of postponed had none that ran: dpkg's
// word came a moment late then, and it was the next one's.
func (c Changes) By(p string, packages []change.Package, postponed []string) []string {
	at, ok := c.Touched[p]
	for !ok && p != "/" && p != "." {
		// It is gone: the folder changed when it went.
		p = path.Dir(p)
		at, ok = c.Touched[p]
	}
	if !ok {
		return nil
	}
	i := -1
	for n, m := range c.Began {
		if m.At <= at {
			i = n
		}
	}
	if i < 0 || c.Began[i].Run && c.Began[i].Name != "configure" {
		// No package was being configured: the script that ran was this one's.
		if len(packages) == 1 {
			return c.only(packages[0].Name, postponed)
		}
		return nil
	}
	if c.Began[i].Run {
		i++ // the first word of this run came late
	}
	for ; i < len(c.Began) && !c.Began[i].Run; i++ {
		if name := c.Began[i].Name; !slices.Contains(postponed, name) {
			return []string{name}
		}
	}
	return nil
}

func (c Changes) only(name string, postponed []string) []string {
	if slices.Contains(postponed, name) || !slices.ContainsFunc(c.Began, func(m Mark) bool { return m.Name == name && !m.Run }) {
		return nil
	}
	return []string{name}
}
