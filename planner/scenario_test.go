package planner

import (
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// scenario builds the planner's input piece by piece: a machine on which
// nothing changes yet.
type scenario struct{ in change.Input }

func machine() *scenario {
	s := &scenario{change.Input{
		Delta:  &change.Delta{},
		Old:    &change.Tree{Units: map[string]*change.Unit{}, Reached: map[string]string{}},
		New:    &change.Tree{Units: map[string]*change.Unit{}, Reached: map[string]string{}},
		Facts:  &change.Facts{Running: true, Units: map[string]*change.UnitState{}, SystemdVersion: 257},
		Policy: change.Policy{Max: change.ActionReboot},
	}}
	s.unit("multi-user.target", "")
	s.unit("timers.target", "")
	return s
}

// tree makes it a tree that no system runs.
func (s *scenario) tree() *scenario {
	s.in.Facts = &change.Facts{}
	return s
}

func settings(file, text string) []change.Setting {
	section := "Unit"
	var out []change.Setting
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
			continue
		}
		if k, v, ok := strings.Cut(line, "="); ok {
			out = append(out, change.Setting{Section: section, Key: k, Value: v, File: file})
		}
	}
	return out
}

func fragment(name string) string {
	if t := template(name); t != "" {
		name = t
	}
	return "/usr/lib/systemd/system/" + name
}

func define(name, text string) *change.Unit {
	f := fragment(name)
	return &change.Unit{Name: name, Fragment: f, Settings: settings(f, text)}
}

// unit puts an active unit on the machine, the same in both trees.
func (s *scenario) unit(name, text string, uses ...change.Use) *change.UnitState {
	for _, t := range []*change.Tree{s.in.Old, s.in.New} {
		u := define(name, text)
		u.Uses = uses
		t.Units[name] = u
		t.Reached[name] = "multi-user.target"
	}
	st := &change.UnitState{
		Name: name, Names: []string{name}, LoadState: "loaded", ActiveState: "active", SubState: "running",
		FragmentPath: fragment(name), LastStartUSec: 200_000,
	}
	d := s.in.Old.Units[name]
	st.CanReload = last(d, "Service", "ExecReload") != ""
	if kindOf(name) == "service" {
		st.Type = "simple"
		if t := last(d, "Service", "Type"); t != "" {
			st.Type = t
		}
	}
	if s.in.Facts.Units != nil {
		s.in.Facts.Units[name] = st
	}
	return st
}

// redefine changes a unit in the new tree, and its file on disk.
func (s *scenario) redefine(name, text string) *scenario {
	u := define(name, text)
	if old := s.in.New.Units[name]; old != nil {
		u.Uses = old.Uses
	}
	s.in.New.Units[name] = u
	return s.replace(u.Fragment)
}

func (s *scenario) remove(name string) *scenario {
	delete(s.in.New.Units, name)
	delete(s.in.New.Reached, name)
	s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{Path: fragment(name), Op: change.Remove, Old: file("old")})
	return s
}

func file(content string) *change.Node {
	n := &change.Node{Type: change.Regular, Mode: 0o644, Size: int64(len(content))}
	copy(n.Digest[:], content)
	return n
}

func symlink(target string) *change.Node { return &change.Node{Type: change.Symlink, Target: target} }

func (s *scenario) replace(paths ...string) *scenario {
	for _, p := range paths {
		s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{
			Path: p, Op: change.Replace, Old: file("old " + p), New: file("new " + p), Aspects: change.AspectContent, From: p,
		})
	}
	return s
}

func (s *scenario) add(paths ...string) *scenario {
	for _, p := range paths {
		s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{Path: p, Op: change.Add, New: file("new " + p), From: p})
	}
	return s
}

func (s *scenario) relink(p, from, to string) *scenario {
	s.in.Delta.Entries = append(s.in.Delta.Entries, change.Entry{
		Path: p, Op: change.Replace, Old: symlink(from), New: symlink(to), Aspects: change.AspectContent, From: p,
	})
	return s
}

// maps puts a process into a unit that maps a path.
func (s *scenario) maps(unit string, pid int, comm, path string) *scenario {
	return s.hit(change.Hit{Unit: unit, PID: pid, Comm: comm, Kind: "mapped", Path: path})
}

func (s *scenario) hit(h change.Hit) *scenario {
	s.in.Facts.Hits = append(s.in.Facts.Hits, h)
	return s
}

const (
	libssl = "/usr/lib/x86_64-linux-gnu/libssl.so.3"
	libc   = "/usr/lib/x86_64-linux-gnu/libc.so.6"
)

const nginxUnit = `
[Service]
ExecStart=/usr/sbin/nginx -g 'daemon on;'
ExecReload=/usr/sbin/nginx -s reload
`

// summary is a plan's decision in a form that a table can hold: what happens
// to which unit, "~" before what systemd does along with another, "host".
func summary(p *change.Plan) string {
	var out []string
	for _, u := range p.Units {
		name := u.Unit
		if u.Manager != "" {
			name = u.Manager + "/" + name
		}
		mark := ""
		if u.Propagated {
			mark = "~"
		}
		out = append(out, fmt.Sprintf("%s%s %s", mark, u.Action, name))
	}
	if p.HostAction != change.ActionNone {
		out = append(out, "host "+p.HostAction.String())
	}
	for _, c := range p.Checks {
		out = append(out, "check "+strings.Join(c.Argv, " "))
	}
	return strings.Join(out, ", ")
}

// steps writes the steps in short.
func steps(p *change.Plan) string {
	var out []string
	for _, st := range p.Steps {
		out = append(out, st.Do+" "+st.Target)
	}
	return strings.Join(out, "; ")
}
