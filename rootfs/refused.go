package rootfs

import (
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// refused tells why the manager would not load a unit by what its files say, "" where
// nothing is known against it: what service_verify(), socket_verify() and their like in
// src/core look for, and what ends the reading of an Exec line. It is a suspicion that
// systemd's own program confirms, and so leaves out what is rare.
func refused(u *change.Unit) string {
	set := func(section string, keys ...string) bool {
		for _, s := range u.Settings {
			for _, key := range keys {
				if s.Section == section && (s.Key == key || strings.HasSuffix(key, "*") && strings.HasPrefix(s.Key, strings.TrimSuffix(key, "*"))) {
					return true
				}
			}
		}
		return false
	}
	if u.Fragment == "" || isTemplate(u.Name) {
		return ""
	}
	switch path.Ext(u.Name) {
	case ".service":
		return refusedService(u, set)
	case ".socket":
		switch {
		case !set("Socket", "Listen*"):
			return "it listens on nothing"
		case isYes(value(u, "Socket", "Accept")) && set("Socket", "Service"):
			return "a socket that accepts by itself cannot name a service"
		}
	case ".timer":
		if !set("Timer", "On*") {
			return "it has no time"
		}
	case ".path":
		if !set("Path", "Path*", "DirectoryNotEmpty") {
			return "it watches no path"
		}
	}
	return ""
}

func refusedService(u *change.Unit, set func(string, ...string) bool) string {
	for _, s := range u.Settings {
		if s.Section == "Service" && strings.HasPrefix(s.Key, "Exec") && !strings.HasPrefix(s.Key, "ExecSearch") && relativeProgram(specifiers(u, s.Value)) {
			return s.Key + "= names neither a program nor an absolute path"
		}
	}
	starts := len(values(u, "Service", "ExecStart"))
	kind := value(u, "Service", "Type")
	restart := value(u, "Service", "Restart")
	switch oneshot := kind == "oneshot" || kind == "" && starts == 0; {
	case starts == 0 && !set("Service", "ExecStop") && !set("Unit", "SuccessAction"):
		return "it starts nothing"
	case starts == 0 && !oneshot:
		return "it starts nothing, which only a oneshot may"
	case starts > 1 && !oneshot:
		return "it has more than one ExecStart=, which only a oneshot may"
	case oneshot && (restart == "always" || restart == "on-success"):
		return "a oneshot cannot have Restart=" + restart
	case kind == "dbus" && !set("Service", "BusName"):
		return "its Type= is dbus, and it has no BusName="
	}
	return ""
}

// relativeProgram tells whether a command line names its program by a path that does not
// begin at the root, and does not say that this is no failure.
func relativeProgram(line string) bool {
	words := splitWords(line)
	if len(words) == 0 {
		return false
	}
	program := strings.TrimLeft(words[0], "@-:+!|")
	prefix := words[0][:len(words[0])-len(program)]
	return !strings.Contains(prefix, "-") && !strings.HasPrefix(program, "/") && strings.Contains(program, "/")
}
