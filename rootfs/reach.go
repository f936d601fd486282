package rootfs

import (
	"strings"

	"github.com/liveupd/liveupd/change"
)

// starts are the dependencies along which a start pulls in the other unit.
var starts = wordSet("Wants Requires Requisite BindsTo BindTo Upholds")

// reached collects what a boot into default.target starts, and by what.
func (s *unitSet) reached() map[string]string {
	out := map[string]string{}
	var queue []*change.Unit
	visit := func(name, by string) {
		u := s.unit(name)
		if u == nil || u.Masked {
			return
		}
		if _, ok := out[u.Name]; !ok {
			out[u.Name] = by
			queue = append(queue, u)
		}
	}
	visit("default.target", "default.target")
	for len(queue) > 0 {
		u := queue[0]
		queue = queue[1:]
		for _, name := range s.pulls(u) {
			visit(name, u.Name)
		}
	}
	return out
}

// pulls lists the units that a start of u starts or, for what waits for an
// event, that the event will start. The dependencies that the manager adds by
// itself (systemd.service(5), "Implicit" and "Default Dependencies") are among
// them where they start something.
func (s *unitSet) pulls(u *change.Unit) []string {
	var out []string
	for _, set := range u.Settings {
		if set.Section == "Unit" && starts[set.Key] {
			for word := range strings.FieldsSeq(set.Value) {
				out = append(out, dependency(u, word))
			}
		}
	}
	stem, unitType := splitName(u.Name)
	switch unitType {
	case "socket":
		if !isYes(value(u, "Socket", "Accept")) {
			out = append(out, triggered(u, "Socket", "Service", stem))
		}
	case "timer":
		out = append(out, triggered(u, "Timer", "Unit", stem))
	case "path":
		out = append(out, triggered(u, "Path", "Unit", stem))
	case "automount":
		out = append(out, stem+".mount")
	case "service":
		for _, v := range values(u, "Service", "Sockets") {
			out = append(out, strings.Fields(specifiers(u, v))...)
		}
		if value(u, "Service", "Type") == "dbus" {
			out = append(out, "dbus.socket")
		}
	}
	section := sectionOf(unitType)
	if slice := value(u, section, "Slice"); slice != "" {
		out = append(out, specifiers(u, slice))
	}
	switch unitType {
	case "service", "socket", "timer", "path":
		if d := value(u, "Unit", "DefaultDependencies"); d == "" || isYes(d) {
			out = append(out, "sysinit.target")
		}
	}
	return out
}

func sectionOf(unitType string) string {
	return strings.ToUpper(unitType[:1]) + unitType[1:]
}

// triggered is the unit that an event of u starts: the one that it names, or
// the service of its own name.
func triggered(u *change.Unit, section, key, stem string) string {
	if v := value(u, section, key); v != "" {
		return dependency(u, v)
	}
	return stem + ".service"
}

// dependency expands a unit name in a dependency of u. A template becomes the
// instance of u's own instance, or of its prefix (resolve_template of the
// manager).
func dependency(u *change.Unit, word string) string {
	name := specifiers(u, word)
	if isTemplate(name) {
		prefix, instance, _, _ := nameParts(u.Name)
		if instance == "" {
			instance = prefix
		}
		name = instantiate(name, instance)
	}
	return name
}

func isYes(v string) bool {
	switch strings.ToLower(v) {
	case "1", "yes", "y", "true", "t", "on":
		return true
	}
	return false
}
