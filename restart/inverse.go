package restart

import "github.com/liveupd/liveupd/change"

// Inverse is what takes the steps back, last first, for Run after the tree is
// what it was. A step that was skipped changed nothing and has no inverse.
//
// A unit whose restart or reload failed had run, and may run, be failed or be
// about to restart now: it gets a restart and a start, which together run it
// anew from any state.
func Inverse(results []change.StepResult) []change.Step {
	var out []change.Step
	add := func(do, target, undo string) {
		out = append(out, change.Step{Seq: len(out) + 1, Do: do, Target: target, Undo: undo})
	}
	for i := len(results) - 1; i >= 0; i-- {
		s, bad := results[i].Step, results[i].Result == failed
		if results[i].Result != done && !bad {
			continue
		}
		switch s.Do {
		case "restart":
			add("restart", s.Target, "restart")
			if bad {
				add("start", s.Target, "stop")
			}
		case "reload":
			if bad {
				add("restart", s.Target, "restart")
				add("start", s.Target, "stop")
			} else {
				add("reload", s.Target, "reload")
			}
		case "start":
			add("stop", s.Target, "start")
		case "stop":
			add("start", s.Target, "stop")
		case "daemon-reload":
			add("daemon-reload", s.Target, "daemon-reload")
		case "daemon-reexec":
			add("daemon-reexec", s.Target, "daemon-reexec")
		}
	}
	return out
}
