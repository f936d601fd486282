package change

import (
	"fmt"
	"slices"
	"strings"
)

// Action is a rung of the ladder: what is done to a unit or to the host.
type Action uint8

// The ladder. A higher rung interrupts more and includes what the lower ones
// achieve. Start, Stop and Defer are unit actions beside the ladder.
const (
	ActionNone Action = iota
	ActionDaemonReload
	ActionReload
	ActionRestart
	ActionDaemonReexec
	ActionSoftReboot
	ActionKexec
	ActionReboot

	ActionStart Action = iota + 100
	ActionStop
	ActionDefer
)

var actionNames = map[Action]string{
	ActionNone: "none", ActionDaemonReload: "daemon-reload", ActionReload: "reload",
	ActionRestart: "restart", ActionDaemonReexec: "daemon-reexec", ActionSoftReboot: "soft-reboot",
	ActionKexec: "kexec", ActionReboot: "reboot",
	ActionStart: "start", ActionStop: "stop", ActionDefer: "defer",
}

// Ladder lists the rungs in ascending order.
func Ladder() []Action {
	return []Action{
		ActionNone, ActionDaemonReload, ActionReload, ActionRestart,
		ActionDaemonReexec, ActionSoftReboot, ActionKexec, ActionReboot,
	}
}

func (a Action) String() string {
	if s, ok := actionNames[a]; ok {
		return s
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// MarshalText renders the action's name.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads an action's name.
func (a *Action) UnmarshalText(b []byte) error {
	for v, name := range actionNames {
		if name == string(b) {
			*a = v
			return nil
		}
	}
	return fmt.Errorf("cannot read action %q: no such rung", b)
}

// Reason is why something is done. Path names a path, or Unit a unit: a
// reason without either is a bug.
type Reason struct {
	// Kind is one of mapped, exec, interpreter, module, script, config, environment,
	// credential, bind, unit-file, unit-removed, unit-masked, unit-added,
	// namespace, soname, propagated, triggered, data (units) and kernel, initrd,
	// pid1, dbus, bootme, unit-files (host).
	Kind   string `json:"kind"`
	Path   string `json:"path,omitempty"`
	Unit   string `json:"unit,omitempty"`   // where the reason is another unit
	Detail string `json:"detail,omitempty"` // one clause for a person
	PID    int    `json:"pid,omitempty"`    // the process that shows it
	Comm   string `json:"comm,omitempty"`   // that process's name
	// Rule is what leads from the path to the unit or the step: an entry of the
	// built-in table, a directive of the unit, a package, the administrator's policy.
	Rule string `json:"rule,omitempty"`
	// Via is the way from the path (or from Unit) to the unit that the reason is
	// one for, which comes last: each link is what uses the one before.
	Via []Link `json:"via,omitempty"`
}

// Link is one step of the way from what changes to the unit that it concerns.
type Link struct {
	// Kind is what this one does with the one before: needed (as a library),
	// imports, sources, shebang, executes, environment, credential, bind, root,
	// reads, defines, symlink (leads to it), mapped, exec, namespace (by a process),
	// process (of the unit), propagated, triggered.
	Kind string `json:"kind"`
	Path string `json:"path,omitempty"`
	Unit string `json:"unit,omitempty"`
	PID  int    `json:"pid,omitempty"`
	Comm string `json:"comm,omitempty"`
}

// Equal tells whether two reasons say the same.
func (r Reason) Equal(o Reason) bool {
	return r.Kind == o.Kind && r.Path == o.Path && r.Unit == o.Unit && r.Detail == o.Detail &&
		r.PID == o.PID && r.Comm == o.Comm && r.Rule == o.Rule && slices.Equal(r.Via, o.Via)
}

// UnitPlan is what happens to one unit.
type UnitPlan struct {
	Unit string `json:"unit"`
	// Manager is the user@ unit whose manager the unit belongs to, "" for the
	// system's own units.
	Manager string   `json:"manager,omitempty"`
	Action  Action   `json:"action"`
	Reasons []Reason `json:"reasons"`
	// Propagated: systemd does it in the course of another unit's job; no job
	// of its own is sent.
	Propagated bool `json:"propagated,omitempty"`
	// LastStartUSec is how long the unit's last start took, in microseconds,
	// by systemd's own record; 0 where there is none.
	LastStartUSec uint64 `json:"last_start_usec,omitempty"`
	// Needs is what a deferred unit would take: reload or restart.
	Needs Action `json:"needs,omitempty"`
}

// UnitKey names a unit among those of all managers: a user's by
// MANAGER/UNIT, one of the system's by itself.
func UnitKey(manager, unit string) string {
	if manager == "" {
		return unit
	}
	return manager + "/" + unit
}

// SplitUnitKey undoes UnitKey.
func SplitUnitKey(key string) (manager, unit string) {
	if manager, unit, ok := strings.Cut(key, "/"); ok {
		return manager, unit
	}
	return "", key
}

// PathChange is one line of the plan's paths.
type PathChange struct {
	Path    string   `json:"path"`
	Op      Op       `json:"op"`
	Aspects []string `json:"aspects,omitempty"`
	By      string   `json:"by,omitempty"` // the program that makes it of what else changes
}

// Counts sums up a Delta.
type Counts struct {
	Added     int   `json:"added"`
	Replaced  int   `json:"replaced"`
	Removed   int   `json:"removed"`
	Metadata  int   `json:"metadata"`
	Identical int   `json:"identical"`
	Bytes     int64 `json:"bytes"`
}

// Check is a validator that runs on the staged view before the commit point.
type Check struct {
	Unit string   `json:"unit"`
	Argv []string `json:"argv"`
	Path string   `json:"path"` // the changed path that calls for it
}

// Step is one entry of the list that is walked. Do is one of check, preset, stop,
// commit, daemon-reload, daemon-reexec, reload, restart, start, verify,
// soft-reboot, kexec, reboot, run, configure, or what Effect lists; Undo is what takes it back, "" where nothing does.
type Step struct {
	Seq    int    `json:"seq"`
	Do     string `json:"do"`
	Target string `json:"target"`
	Undo   string `json:"undo"`
	// Manager is the user@ unit whose manager carries it out, "" for the system's.
	Manager string `json:"manager,omitempty"`
	// Irreversible: nothing takes it back, and once it has begun no failure takes the
	// update back.
	Irreversible bool `json:"irreversible,omitempty"`
}

// PathsLimit is the number of changed paths above which a plan's JSON leaves
// the list out and keeps the counts.
const PathsLimit = 10000

// Plan is all that an update will do, in order, with reasons.
type Plan struct {
	MessageType string `json:"message_type"` // "plan"
	Schema      int    `json:"schema"`
	ID          string `json:"id"`
	// Content names what the update brings, whatever the machine is like: the same update has the same one
	// again after it was taken back. "" where nothing comes.
	Content     string       `json:"content,omitempty"`
	Source      string       `json:"source"`
	Root        string       `json:"root"`
	Name        string       `json:"name,omitempty"`
	Version     string       `json:"version,omitempty"`
	Sequence    uint64       `json:"sequence,omitempty"`
	Signed      bool         `json:"signed"`
	SignedBy    string       `json:"signed_by,omitempty"`
	Static      bool         `json:"static,omitempty"` // read from the tree: no running system was looked at
	Changes     Counts       `json:"changes"`
	Paths       []PathChange `json:"paths,omitempty"`
	HostAction  Action       `json:"host_action"`
	HostReasons []Reason     `json:"host_reasons"`
	// Effects are the steps on the host as a whole that are no unit's, with their reasons.
	Effects  []Effect   `json:"effects,omitempty"`
	Units    []UnitPlan `json:"units"`
	Checks   []Check    `json:"checks,omitempty"`
	Steps    []Step     `json:"steps"`
	Warnings []string   `json:"warnings"`
	// Packages and Conffiles are told by a package manager's update.
	Packages  []Package  `json:"packages,omitempty"`
	Conffiles []Conffile `json:"conffiles,omitempty"`
	// Asked are the unit actions that the packages' scripts asked for by themselves, as
	// the package manager alone would have done them: "nginx.service restart".
	Asked []string `json:"asked,omitempty"`
	// RebootAsked are the packages that ask for a reboot by themselves.
	RebootAsked []string `json:"reboot_asked,omitempty"`
	// Unaffected counts the running units that keep running untouched.
	Unaffected int `json:"unaffected"`
	// Spared are the units that something which changes reaches and that are left
	// alone, with why; it does not count for the ID.
	Spared []UnitPlan `json:"spared,omitempty"`
}

// Empty tells whether the plan has nothing to do.
func (p *Plan) Empty() bool {
	return p.Changes.Added+p.Changes.Replaced+p.Changes.Removed+p.Changes.Metadata == 0 &&
		len(p.Units) == 0 && len(p.Effects) == 0 && p.HostAction == ActionNone
}
