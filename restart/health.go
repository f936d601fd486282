package restart

import (
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// verdict is what a unit's state says about its step.
type verdict struct {
	result  string
	detail  string
	pending bool // on its way: look again
}

// judge compares a unit after its job with what it was before.
func judge(t *target, u *change.UnitState) verdict {
	if t.end.Result == "canceled" && u.Active() && u.InvocationID != t.before.InvocationID {
		// Another job took the place of ours and did the same.
		return verdict{result: done}
	}
	if t.end.Result != done {
		return verdict{result: failed, detail: describe(jobDetail(t.end.Result), u)}
	}
	switch {
	case u.ActiveState == "failed":
		return verdict{result: failed, detail: describe("it failed", u)}
	case u.ActiveState == "activating" && u.SubState == "auto-restart",
		u.ActiveState == "activating" && u.SubState == "auto-restart-queued":
		return verdict{result: failed, detail: describe("it ended and is being restarted by systemd", u)}
	case u.NRestarts > t.restarts:
		return verdict{result: failed, detail: describe("it ended and was restarted by systemd", u)}
	case u.ActiveState == "reloading", u.ActiveState == "refreshing", u.ActiveState == "activating", u.ActiveState == "deactivating":
		return verdict{result: done, pending: true}
	case u.ActiveState == "inactive":
		return judgeInactive(t, u)
	}
	return verdict{result: done}
}

// loopUSec is how long a unit must have been as it is to count as steady before its job.
const loopUSec = 10_000_000

// count notes, at the first look after the job, what the unit's counter of
// restarts started from.
func (t *target) count(u *change.UnitState) {
	if t.looked {
		return
	}
	t.looked = true
	switch {
	case t.kind == systemd.JobReloadOrTryRestart:
		t.restarts = t.before.NRestarts
	case t.before.SubState == "auto-restart", t.before.SubState == "auto-restart-queued",
		t.before.NRestarts > 0 && u.StateChangeMonoUSec-t.before.StateChangeMonoUSec < loopUSec:
		// It was ending again and again before the job: systemd's own restart may
		// have come first, with the job merged into it, and a job for a unit that
		// waits for its restart leaves the counter as it is.
		t.restarts = u.NRestarts
	}
	// Else a start by a job sets the counter to zero.
}

// judgeInactive is for a unit whose job is done and that does not run.
func judgeInactive(t *target, u *change.UnitState) verdict {
	before := t.before.Active()
	switch {
	case u.ConditionUnmet && !before:
		return verdict{result: skipped, detail: "a condition of its unit file does not hold"}
	case u.ConditionUnmet:
		return verdict{result: failed, detail: "it ran before, and a condition of its unit file does not hold any more"}
	case u.Type == "oneshot" && !u.RemainAfterExit && clean(u):
		return verdict{result: done}
	case clean(u) && (!before || len(u.TriggeredBy) > 0):
		// It had nothing to do, or waits for its next activation.
		return verdict{result: done}
	}
	return verdict{result: failed, detail: describe("it ran before and has ended by itself", u)}
}

// judgeAround is for a unit that ran and that systemd restarted along.
func judgeAround(before, u *change.UnitState) verdict {
	switch {
	case u.ActiveState == "failed":
		return verdict{result: failed, detail: describe("it failed", u)}
	case u.SubState == "auto-restart":
		return verdict{result: failed, detail: describe("it ended and is being restarted by systemd", u)}
	case u.ActiveState == "inactive" && !(u.Type == "oneshot" && clean(u)):
		if u.InvocationID == before.InvocationID && clean(u) && len(u.TriggeredBy) > 0 {
			return verdict{result: done}
		}
		return verdict{result: failed, detail: describe("it was stopped and did not come back", u)}
	case u.ActiveState == "activating", u.ActiveState == "deactivating":
		return verdict{result: done, pending: true}
	}
	return verdict{result: done}
}

func clean(u *change.UnitState) bool { return u.Result == "" || u.Result == "success" }

// describe adds to a clause what systemd knows about a service's end.
func describe(clause string, u *change.UnitState) string {
	var parts []string
	if u.Result != "" && u.Result != "success" {
		parts = append(parts, "result "+u.Result)
	}
	switch u.ExecMainCode {
	case 1:
		if u.ExecMainStatus != 0 || u.Result == "exit-code" {
			parts = append(parts, fmt.Sprintf("exit status %d%s", u.ExecMainStatus, exitName(u.ExecMainStatus)))
		}
	case 2, 3:
		parts = append(parts, fmt.Sprintf("killed by signal %d", u.ExecMainStatus))
	}
	if u.StatusText != "" {
		parts = append(parts, fmt.Sprintf("it said %q", u.StatusText))
	}
	if len(parts) == 0 {
		return clause
	}
	return clause + ": " + strings.Join(parts, ", ")
}

// exitName names the exit statuses that systemd itself sets before a program
// runs, systemd.exec(5) "Process Exit Codes".
func exitName(status int32) string {
	names := map[int32]string{
		200: "CHDIR", 202: "FDS", 203: "EXEC", 205: "LIMITS", 206: "OOM_ADJUST", 209: "STDOUT", 210: "CHROOT",
		213: "SECUREBITS", 214: "SETSCHEDULER", 216: "GROUP", 217: "USER", 218: "CAPABILITIES", 219: "CGROUP",
		224: "PAM", 225: "NETWORK", 226: "NAMESPACE", 227: "NO_NEW_PRIVILEGES", 228: "SECCOMP",
		233: "RUNTIME_DIRECTORY", 238: "STATE_DIRECTORY", 239: "CACHE_DIRECTORY", 240: "LOGS_DIRECTORY",
		241: "CONFIGURATION_DIRECTORY", 243: "CREDENTIALS",
	}
	if name, ok := names[status]; ok {
		return " (" + name + ")"
	}
	return ""
}
