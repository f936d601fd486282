// Package directive is systemd's own list of the settings of unit files: for
// each of them what it acts on, how its values are compared, what it means
// where it is absent, and the version of systemd that it came in.
//
// The list is a table (directives.tsv). gen makes it from the manual pages and
// from what classes.txt assigns by hand; see there.
package directive

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"
)

// Class is what a setting acts on, and so what it takes to put a new value
// into effect for a unit that is loaded. A higher class takes more.
type Class uint8

const (
	// Inert: systemd does not read it (X- keys and sections).
	Inert Class = iota
	// Install: only systemctl enable, disable and preset read it.
	Install
	// Manager: PID 1 reads it when the moment comes (a stop, a failure, a job);
	// a daemon-reload is all.
	Manager
	// Cgroup: an attribute of the unit's control group or a BPF program on it; a
	// daemon-reload writes it to the running group.
	Cgroup
	// Exec: part of the execution context or of the start itself; only a new
	// start applies it.
	Exec
	// Listen: an attribute of a listening socket, set when it is made.
	Listen
	// Remount: a mount option; the unit's reload remounts.
	Remount
	// Mount: what is mounted where; only a new mount applies it.
	Mount
	// Swap: how a swap device was switched on.
	Swap
)

var classNames = map[string]Class{
	"install": Install, "manager": Manager, "cgroup": Cgroup, "exec": Exec,
	"listen": Listen, "remount": Remount, "mount": Mount, "swap": Swap,
}

// Kind is how a setting's assignments add up and when two values are equal.
type Kind string

// The kinds of which the last assignment wins.
const (
	Text   Kind = "text"
	Enum   Kind = "enum" // one of some words
	Path   Kind = "path"
	Bool   Kind = "bool"
	Word   Kind = "word" // a boolean or one of some words
	Time   Kind = "time" // seconds, or with units (systemd.time(7))
	NSec   Kind = "nsec" // nanoseconds, or with units
	Size   Kind = "size" // bytes, with suffixes to the base 1024
	Mode   Kind = "mode" // octal
	Int    Kind = "int"
	Limit  Kind = "limit" // SOFT:HARD, as sizes
	Count  Kind = "count" // SOFT:HARD
	Signal Kind = "signal"
	Opts   Kind = "options" // of a mount
)

// The kinds whose assignments add up.
const (
	Lines   Kind = "lines"   // each assignment is an item, in order
	Command Kind = "command" // each assignment is a command line, in order
	Words   Kind = "words"   // each word is an item, in order
	Set     Kind = "set"     // each word is an item, in any order
	Deps    Kind = "deps"    // a set of units; an empty assignment is ignored
	Mounts  Kind = "mounts"  // a set of paths; an empty assignment is ignored
	Env     Kind = "env"     // NAME=VALUE words, the last of a name wins
	Filter  Kind = "filter"  // words of one set, or with ~ in front what is taken from it
)

// Scalar tells whether the last assignment wins.
func (k Kind) Scalar() bool {
	switch k {
	case Text, Enum, Path, Bool, Word, Time, NSec, Size, Mode, Int, Limit, Count, Signal, Opts:
		return true
	}
	return false
}

// Resets tells whether an empty assignment takes the earlier ones back. It is
// ignored with a warning where it is no value of its kind, and it cannot reset
// dependencies (systemd.unit(5)).
func (k Kind) Resets() bool {
	switch k {
	case Bool, Word, Enum, Time, Mode, Limit, Count, Signal, Deps, Mounts:
		return false
	}
	return true
}

// Directive is what the list says of one setting.
type Directive struct {
	Group   string // the manual page that describes it: unit, install, exec, kill, cgroup, or a unit type
	Key     string
	Class   Class
	Kind    Kind
	Default string // what it means where it is absent; "" where that is not one value
	Since   int    // the version it came in; 0: before those that are recorded
}

//go:embed directives.tsv
var table string

var list = sync.OnceValue(func() map[[2]string]Directive {
	out := make(map[[2]string]Directive, 700)
	for line := range strings.Lines(table) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 6 || strings.HasPrefix(line, "#") {
			continue
		}
		d := Directive{Group: f[0], Key: f[1], Class: classNames[f[2]], Kind: Kind(f[3]), Default: f[4]}
		if d.Default == "-" {
			d.Default = ""
		}
		d.Since, _ = strconv.Atoi(f[5]) // "-" where the documentation does not say
		out[[2]string{d.Group, d.Key}] = d
	}
	return out
})

// groups lists the manual pages whose settings a section takes, its own first.
func groups(section string) []string {
	switch section {
	case "Service":
		return []string{"service", "exec", "kill", "cgroup"}
	case "Socket":
		return []string{"socket", "exec", "kill", "cgroup"}
	case "Mount":
		return []string{"mount", "exec", "kill", "cgroup"}
	case "Swap":
		return []string{"swap", "exec", "kill", "cgroup"}
	case "Slice":
		return []string{"slice", "cgroup"}
	case "Scope":
		return []string{"scope", "kill", "cgroup"}
	case "Unit", "Install", "Automount", "Path", "Timer":
		return []string{strings.ToLower(section)}
	}
	return nil
}

// Find looks a setting up by its section. A setting that no version of systemd
// is known to have is not found.
func Find(section, key string) (Directive, bool) {
	for _, g := range groups(section) {
		if d, ok := list()[[2]string{g, key}]; ok {
			return d, true
		}
	}
	return Directive{}, false
}

// All is the whole list, in no order.
func All() []Directive {
	out := make([]Directive, 0, len(list()))
	for _, d := range list() {
		out = append(out, d)
	}
	return out
}

// KindOf is a setting's kind; what nobody knows adds up line by line, so that
// each change of it is seen.
func KindOf(section, key string) Kind {
	if d, ok := Find(section, key); ok {
		return d.Kind
	}
	return Lines
}

// ClassOf tells what it takes to put a new value into effect in a unit of the
// given type (the suffix of its name, without the dot). What no manual page
// names is taken to need a new start: the safe side.
func ClassOf(unitType, section, key string) Class {
	if strings.HasPrefix(key, "X-") || strings.HasPrefix(section, "X-") {
		return Inert
	}
	d, ok := Find(section, key)
	if section == "Install" {
		return Install
	}
	if !strings.EqualFold(section, unitType) && section != "Unit" {
		// The manager reads the section of the unit's own type only.
		if len(groups(section)) > 0 {
			return Inert
		}
		return unknown(unitType)
	}
	switch unitType {
	case "timer", "path", "target", "device", "slice", "scope":
		// Timers and paths are armed anew after a daemon-reload; the rest hold no
		// process of their own that could have the old value.
		if ok && d.Class == Cgroup {
			return Cgroup
		}
		return Manager
	}
	switch {
	case !ok:
		return unknown(unitType)
	case unitType == "socket" && (key == "PrivateNetwork" || key == "NetworkNamespacePath" || key == "PrivateIPC" || key == "IPCNamespacePath"):
		return Listen // where the socket is made
	case d.Class == Exec && section != "Unit" && unitType != "service" && (d.Group == "exec" || d.Group == "cgroup"):
		// The helper commands of a socket, mount or swap get it at their next run.
		return Manager
	case d.Class == Exec && section == "Unit" && unitType != "service":
		return Manager
	}
	return d.Class
}

func unknown(unitType string) Class {
	switch unitType {
	case "socket":
		return Listen
	case "mount", "automount":
		return Mount
	case "swap":
		return Swap
	case "timer", "path", "target", "device", "slice", "scope":
		return Manager
	}
	return Exec
}
