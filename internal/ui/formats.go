package ui

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
)

// The exit status of a monitoring plugin (Monitoring Plugins Development
// Guidelines, "Plugin Return Codes").
const (
	NagiosOK       = 0
	NagiosWarning  = 1
	NagiosCritical = 2
	NagiosUnknown  = 3
)

// tally counts what a check found.
type tally struct {
	units      []change.Stale
	containers []change.Stale // deferred for they carry a payload
	sessions   []string
	kernel     string // the state of the kernel, and of the microcode
	microcode  string
}

func tallyOf(r *change.CheckReport) tally {
	out := tally{kernel: stateOf(r.Kernel), microcode: stateOf(r.Microcode)}
	for _, u := range r.Units {
		if isContainer(u.Unit) {
			out.containers = append(out.containers, u)
		} else {
			out.units = append(out.units, u)
		}
	}
	for _, h := range r.Sessions {
		name := h.Unit
		if name == "" {
			name = "no unit"
		}
		if !slices.Contains(out.sessions, name) {
			out.sessions = append(out.sessions, name)
		}
	}
	slices.Sort(out.sessions)
	return out
}

func stateOf(r *change.Release) string {
	if r == nil || r.State == "" {
		return "unknown"
	}
	return r.State
}

// isContainer tells a unit that carries a payload of its own by the names that
// the container managers give.
func isContainer(unit string) bool {
	for _, prefix := range []string{
		"lxc@", "lxc-", "lxc.payload.", "lxc.monitor.", "systemd-nspawn@", "machine-", "docker-", "libpod-", "crio-", "cri-containerd-", "incus-", "lxd-",
	} {
		if strings.HasPrefix(unit, prefix) {
			return true
		}
	}
	return false
}

// Nagios renders a check as a monitoring plugin's one line with performance
// data, and the exit status to it: a warning where units or sessions run what
// is gone, critical where the host as a whole must start anew, unknown where
// nothing was found and not all could be looked at. The fields of
// the performance data are those of needrestart -p.
func Nagios(r *change.CheckReport) (line string, status int) {
	t := tallyOf(r)
	names := func(list []change.Stale) string {
		if len(list) == 0 {
			return "none"
		}
		out := make([]string, 0, len(list))
		for _, u := range list {
			out = append(out, unitName(u.Manager, u.Unit))
		}
		return fmt.Sprintf("%d (%s)", len(list), strings.Join(out, ", "))
	}
	kernel := map[string]int{"rebuilt": 1, "newer": 2}
	if len(t.units)+len(t.containers)+len(t.sessions)+len(r.Waiting)+len(r.Effects) > 0 || r.HostAction > change.ActionNone {
		status = NagiosWarning
	}
	if r.HostAction >= change.ActionSoftReboot || kernel[t.kernel] > 0 || kernel[t.microcode] > 0 {
		status = NagiosCritical
	}
	if status == NagiosOK && r.Incomplete {
		status = NagiosUnknown
	}
	release := func(r *change.Release) string {
		if r == nil {
			return "unknown"
		}
		s := clean(r.Running)
		if kernel[r.State] > 0 && r.Newest != "" {
			s += " (installed: " + clean(r.Newest) + ")"
		}
		return s
	}
	sessions := "none"
	if len(t.sessions) > 0 {
		sessions = fmt.Sprint(len(t.sessions))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s - ", []string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[status])
	if r.Incomplete {
		fmt.Fprintf(&b, "incomplete, %s not looked at, ", plural(r.Unread, "process"))
	}
	fmt.Fprintf(&b, "Kernel: %s, ", release(r.Kernel))
	if r.Microcode != nil {
		fmt.Fprintf(&b, "Microcode: %s, ", release(r.Microcode))
	}
	fmt.Fprintf(&b, "Services: %s, Containers: %s, Sessions: %s", names(t.units), names(t.containers), sessions)
	if r.HostAction > change.ActionNone {
		fmt.Fprintf(&b, ", Host: %s", r.HostAction)
	}
	if len(r.Waiting) > 0 {
		fmt.Fprintf(&b, ", Deferred: %d", len(r.Waiting))
	}
	fmt.Fprintf(&b, " | Kernel=%d;0;;0;2 ", kernel[t.kernel])
	if r.Microcode != nil {
		fmt.Fprintf(&b, "Microcode=%d;0;;0;1 ", min(1, kernel[t.microcode]))
	}
	fmt.Fprintf(&b, "Services=%d;0;;0 Containers=%d;0;;0 Sessions=%d;0;;0", len(t.units), len(t.containers), len(t.sessions))
	// A bar would end the text and begin the performance data.
	text, perf, _ := strings.Cut(b.String(), " | ")
	return strings.ReplaceAll(text, "|", "/") + " | " + perf, status
}

// Batch renders a check in the lines of needrestart -b, so that what reads
// those reads this (needrestart's README.batch.md). NEEDRESTART-VER is the
// version whose lines these are.
func Batch(r *change.CheckReport) []byte {
	t := tallyOf(r)
	var b bytes.Buffer
	line := func(key string, value any) { fmt.Fprintf(&b, "NEEDRESTART-%s: %s\n", key, clean(fmt.Sprint(value))) }
	line("VER", "3.11")
	ksta := map[string]int{"current": 1, "rebuilt": 2, "newer": 3}
	if r.Kernel != nil {
		line("KCUR", r.Kernel.Running)
		if r.Kernel.Newest != "" {
			line("KEXP", r.Kernel.Newest)
		}
	}
	line("KSTA", ksta[t.kernel])
	if r.Microcode != nil {
		line("UCSTA", map[string]int{"current": 1, "newer": 2}[t.microcode])
		line("UCCUR", r.Microcode.Running)
		if r.Microcode.Newest != "" {
			line("UCEXP", r.Microcode.Newest)
		}
	}
	sessions := slices.Clone(t.sessions)
	for _, u := range t.units {
		// Who reads a service's line restarts it with systemctl: a user's would be
		// the system's namesake there.
		if u.Manager == "" {
			line("SVC", u.Unit)
		} else if !slices.Contains(sessions, u.Manager) {
			sessions = append(sessions, u.Manager)
		}
	}
	for _, u := range t.containers {
		line("CONT", u.Unit)
	}
	for _, s := range sessions {
		line("SESS", s)
	}
	return b.Bytes()
}

// OpenMetrics renders a check as metrics for a textfile collector (OpenMetrics
// 1.0, the gauge and info types; Prometheus' text format reads them too).
func OpenMetrics(r *change.CheckReport, now time.Time) []byte {
	var b bytes.Buffer
	family := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	sample := func(name string, value any, labels ...string) {
		b.WriteString(name)
		for i := 0; i+1 < len(labels); i += 2 {
			sep := ","
			if i == 0 {
				sep = "{"
			}
			fmt.Fprintf(&b, "%s%s=\"%s\"", sep, labels[i], labelValue(labels[i+1]))
		}
		if len(labels) > 0 {
			b.WriteByte('}')
		}
		fmt.Fprintf(&b, " %v\n", value)
	}
	family("liveupd_check_timestamp_seconds", "gauge", "When the machine was looked at, in seconds since the epoch.")
	sample("liveupd_check_timestamp_seconds", now.Unix())
	family("liveupd_processes_examined", "gauge", "Processes that were looked at.")
	sample("liveupd_processes_examined", r.Examined)
	family("liveupd_processes_unread", "gauge", "Processes that could not be looked at.")
	sample("liveupd_processes_unread", r.Unread)
	family("liveupd_check_incomplete", "gauge", "1 where not all could be looked at: nothing stale does not mean that all is well then.")
	incomplete := 0
	if r.Incomplete {
		incomplete = 1
	}
	sample("liveupd_check_incomplete", incomplete)
	family("liveupd_stale_units", "gauge", "Units that run what is no longer on disk, by what would bring them up to date.")
	by := map[change.Action]int{}
	for _, u := range r.Units {
		by[u.Action]++
	}
	for _, a := range []change.Action{change.ActionReload, change.ActionRestart, change.ActionDefer} {
		sample("liveupd_stale_units", by[a], "action", a.String())
	}
	family("liveupd_stale_unit", "gauge", "1 for each unit that runs what is no longer on disk.")
	for _, u := range r.Units {
		sample("liveupd_stale_unit", 1, "unit", u.Unit, "manager", u.Manager, "action", u.Action.String())
	}
	family("liveupd_stale_sessions", "gauge", "Sessions whose processes run what is no longer on disk.")
	sample("liveupd_stale_sessions", len(tallyOf(r).sessions))
	family("liveupd_waiting_units", "gauge", "Units that an earlier update put off.")
	sample("liveupd_waiting_units", len(r.Waiting))
	family("liveupd_host_action", "gauge", "1 for what the host as a whole needs.")
	for a := change.ActionDaemonReload; a <= change.ActionReboot; a++ {
		if a == change.ActionReload || a == change.ActionRestart {
			continue // a unit's, not the host's
		}
		needed := 0
		if r.HostAction == a {
			needed = 1
		}
		sample("liveupd_host_action", needed, "action", a.String())
	}
	for _, k := range []struct {
		name, what string
		release    *change.Release
	}{{"kernel", "kernel", r.Kernel}, {"microcode", "processor's microcode", r.Microcode}} {
		if k.release == nil {
			continue
		}
		name := "liveupd_" + k.name + "_outdated"
		family(name, "gauge", "1 where a newer "+k.what+" is installed than the one that runs.")
		value := 0
		if k.release.State == "newer" || k.release.State == "rebuilt" {
			value = 1
		}
		sample(name, value, "running", k.release.Running, "newest", k.release.Newest)
	}
	b.WriteString("# EOF\n")
	return b.Bytes()
}

// labelValue escapes as the format wants it; what is not UTF-8 it cannot carry.
func labelValue(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}
