package restart

import (
	"slices"

	"github.com/liveupd/liveupd/change"
)

// Inverse is what takes the steps back, last first, for Run after the tree is
// what it was. A step that was skipped changed nothing and has no inverse.
//
// A unit that was restarted or reloaded had run. By now it may have failed, at
// its step or since: it gets a start beside the restart or reload, which
// together make it run from any state.
func Inverse(results []change.StepResult) []change.Step {
	var out []change.Step
	manager := ""
	add := func(do, target, undo string) {
		out = append(out, change.Step{Seq: len(out) + 1, Do: do, Target: target, Undo: undo, Manager: manager})
	}
	for _, r := range slices.Backward(results) {
		s, bad := r.Step, r.Result == failed
		manager = s.Manager
		if r.Result != done && !bad {
			continue
		}
		switch s.Do {
		case "reload":
			if ofUsers(s) && s.Manager == "" {
				add("reload", s.Target, "reload") // its user may have logged out: nobody starts it then
				break
			}
			if !bad {
				add("reload", s.Target, "reload")
				add("start", s.Target, "stop")
				break
			}
			fallthrough // what it reloaded halfway is not known
		case "restart":
			add("restart", s.Target, "restart")
			add("start", s.Target, "stop")
		case "start":
			add("stop", s.Target, "start")
		case "stop":
			add("start", s.Target, "stop")
		case "sysctl", "binfmt":
			// The value of before stands in the step. One that was not known
			// cannot be put back.
			if s.Undo != "" {
				add(s.Do, s.Undo, s.Target)
			}
		case "modules-load", "modules-unload":
			if !bad {
				add(s.Undo, s.Target, s.Do)
			}
		case "sysusers":
			// Somebody may be a new user by now: it stays.
		case "tmpfiles", "hwdb", "udev-reload", "udev-trigger", "apparmor", "selinux", "initrd", "run":
			// They make the same anew of the files of before.
			add(s.Do, s.Target, s.Do)
		case "daemon-reload":
			add("daemon-reload", s.Target, "daemon-reload")
		case "daemon-reexec":
			add("daemon-reexec", s.Target, "daemon-reexec")
		}
	}
	return out
}
