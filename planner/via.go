package planner

import (
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// used is the reason that a unit uses a path by its definition, with the way
// from the path to the unit.
func used(unit string, def *change.Unit, use change.Use) change.Reason {
	r := change.Reason{Kind: use.Kind, Path: use.Path, Via: wayFrom(def, unit, use.Path)}
	r.Detail = through(r.Via)
	return r
}

// through tells the way in words: the paths between, from the unit on.
func through(way []change.Link) string {
	var steps []string
	for _, l := range slices.Backward(way) {
		if l.Path != "" {
			steps = append(steps, l.Path)
		}
	}
	if len(steps) == 0 {
		return ""
	}
	return "through " + strings.Join(steps, ", ")
}

// wayFrom follows a use back to the unit: who needs the library, who imports
// that, who executes it.
func wayFrom(def *change.Unit, unit, from string) []change.Link {
	uses := make(map[string]change.Use, len(def.Uses))
	for _, use := range def.Uses {
		if _, ok := uses[use.Path]; !ok {
			uses[use.Path] = use
		}
	}
	var way []change.Link
	seen := map[string]bool{}
	for at := from; !seen[at]; {
		seen[at] = true
		use, ok := uses[at]
		if !ok {
			break
		}
		by, more := uses[use.Via]
		more = more && !seen[use.Via]
		if !more {
			by = change.Use{}
		}
		link := change.Link{Kind: linkKind(use, by), Unit: unit}
		if more {
			link.Unit, link.Path = "", use.Via
		}
		way = append(way, link)
		if !more {
			break
		}
		at = use.Via
	}
	return way
}

// linkKind is what is done with a used path, by another one where there is one between:
// a program runs a script that a script sources, and only a script has a first line.
func linkKind(use, by change.Use) string {
	switch use.Kind {
	case "soname":
		return "needed"
	case "module":
		return "imports"
	case "interpreter":
		if by.Kind == "exec" || by.Kind == "interpreter" {
			return "executes"
		}
		return "shebang"
	case "script":
		if by.Kind == "script" {
			return "sources"
		}
		return "executes"
	case "exec":
		return "executes"
	case "config":
		return "reads"
	}
	return use.Kind // environment, credential, bind, root
}

// told are the verdict's reasons as they are shown, each with its way to the unit.
func (v *verdict) told() []change.Reason {
	list := slices.Clone(v.reasons)
	for i := range list {
		if r := &list[i]; len(r.Via) == 0 {
			r.Via = wayOf(v.unit, r)
		}
	}
	return tidyReasons(list)
}

// wayOf is the way of a reason that leads to the unit without what lies between,
// or through a process.
func wayOf(unit string, r *change.Reason) []change.Link {
	if r.PID != 0 {
		return []change.Link{{Kind: r.Kind, PID: r.PID, Comm: r.Comm}, {Kind: "process", Unit: unit}}
	}
	kind := r.Kind
	switch {
	case kind == "config":
		kind = "reads"
	case strings.HasPrefix(kind, "unit-"):
		kind = "defines"
	}
	return []change.Link{{Kind: kind, Unit: unit}}
}
