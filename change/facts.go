package change

import "slices"

// Setting is one assignment of a unit file, in the order of effect. An entry
// of a .wants, .requires or .upholds directory stands as a Wants=, Requires=
// or Upholds= in [Unit], with the entry's path as its File.
type Setting struct {
	Section string
	Key     string
	Value   string
	File    string // the fragment or drop-in that it stands in
}

// Use is a path that a unit depends on, found by reading the tree.
type Use struct {
	Path string // after symlinks: where the content is
	// Kind is one of exec, interpreter, soname, script, module, environment,
	// credential, bind, config, root.
	Kind string
	Via  string // what leads to it: the binary that needs the library, the script that imports the module
}

// Unit is one unit as a tree defines it: the fragment and all drop-ins.
type Unit struct {
	Name     string   // "nginx.service", instances by their own name
	Aliases  []string // further names, sorted
	Fragment string   // path; "" where only drop-ins exist
	DropIns  []string
	Masked   bool
	Refused  string    // why the manager would not load it, as far as its files tell
	Unmet    []Setting // conditions and assertions that do not hold, so that it would not be started
	Settings []Setting // after resets by empty assignment
	Uses     []Use     // services only; what its processes run and read
}

// Tree is what a root says by itself.
type Tree struct {
	Units map[string]*Unit // by name; aliases point to the same unit
	// Reached are the units that a boot of this tree starts: what the default
	// target reaches, and what its timers, sockets and paths trigger. The
	// value names the unit that leads to it.
	Reached map[string]string
	// Host is what the tree sets for the host as a whole; nil where nothing of it changes.
	Host *HostConfig
	// Presets are the rules for units that are installed, in the order in which
	// they are asked: the first one that names a unit decides.
	Presets []Preset
	// Warnings tell what could not be read or understood.
	Warnings []string
	// Denied are the files and folders that we were not permitted to read.
	Denied []string
	// Touched are the names of units that the administrator has drop-ins for, or
	// that Debian's helper knows from an installation before: enabled or not as
	// somebody has settled it.
	Touched map[string]bool
	// Path are the folders that units are read from, highest first; DropInDirs are
	// those of drop-ins in them.
	Path       []string
	DropInDirs []string
}

// UserManager is the service manager of a user, as far as a plan needs it.
type UserManager struct {
	Unit  string // user@1000.service
	UID   uint32
	Name  string                // of the user, "" unknown
	Units map[string]*UnitState // by name, aliases included
	// Version is that of its systemd.
	Version int
	// Problem is why it could not be asked, "" where it answered.
	Problem string
	// Old and New are the units as the user's manager reads them, with what is
	// the user's own; nil where they were not read.
	Old, New *Tree
}

// Preset is a line of a preset file (systemd.preset(5)).
type Preset struct {
	Do        string   // enable, disable or ignore
	Pattern   string   // as path.Match has it
	Instances []string // of a template
	File      string
}

// Chain gives the paths that lead from what the unit runs to path, both ends
// among them: the binary, a library, the library that this one needs. It is
// nil where the unit does not use path.
func (u *Unit) Chain(path string) []string {
	via := make(map[string]string, len(u.Uses))
	for _, use := range u.Uses {
		if _, ok := via[use.Path]; !ok {
			via[use.Path] = use.Via
		}
	}
	var out []string
	for seen := map[string]bool{}; !seen[path]; path = via[path] {
		if _, ok := via[path]; !ok {
			break
		}
		seen[path] = true
		out = append(out, path)
	}
	slices.Reverse(out)
	return out
}

// UnitState is a unit as the running manager holds it.
type UnitState struct {
	Name                string
	Names               []string // aliases, Name among them
	LoadState           string
	ActiveState         string
	SubState            string
	Type                string // Type= of a service
	RemainAfterExit     bool
	MainPID             int
	InvocationID        string
	ControlGroup        string
	CanReload           bool
	FragmentPath        string
	DropIns             []string // that the manager has read
	NeedDaemonReload    bool     // its files changed since systemd read them, by their times
	RefuseManualStart   bool
	RefuseManualStop    bool
	StateChangeMonoUSec uint64   // monotonic
	LastStartUSec       uint64   // how long the last start took; 0 unknown
	ActiveEnterMonoUSec uint64   // monotonic
	RequiredBy          []string // what a stop or restart of this unit reaches:
	RequisiteOf         []string
	BoundBy             []string
	ConsistsOf          []string // the inverse of PartOf=
	PropagatesReloadTo  []string
	PropagatesStopTo    []string
	TriggeredBy         []string
	Triggers            []string
	NRestarts           uint32
	InvokedMonoUSec     uint64 // when the present invocation left the inactive state, monotonic
	Result              string // of a service: "success", "exit-code", "timeout", ...
	StatusText          string // what the service last said about itself by sd_notify
	ExecMainCode        int32  // how its main process last ended, as waitid's si_code: 1 exited, 2 killed, 3 dumped core
	ExecMainStatus      int32  // its exit status or signal
	ConditionUnmet      bool   // its last start was skipped: a Condition= of it did not hold
	// Lacks are the groups that the manager was not asked for: they hold nothing yet.
	Lacks UnitFields
}

// Active tells whether the unit runs or is about to.
func (u *UnitState) Active() bool {
	switch u.ActiveState {
	case "active", "activating", "reloading", "refreshing":
		return true
	}
	return false
}

// InodeKey identifies an object on a running system, for this boot.
type InodeKey struct{ Dev, Ino uint64 }

// Hit is a process that uses an object that goes, or a mount namespace that a
// swap would damage.
type Hit struct {
	Unit string `json:"unit,omitempty"` // "" where the process belongs to no unit of the system manager
	// UserUnit names the user manager's unit where the process is below one.
	UserUnit string `json:"user_unit,omitempty"`
	PID      int    `json:"pid"`
	Comm     string `json:"comm"`
	Kind     string `json:"kind"` // mapped, exec, namespace
	Path     string `json:"path"` // the path that changes
	// Leftover: the process is older than its unit's present invocation.
	Leftover bool `json:"leftover,omitempty"`
	// Setuid: the process runs a set-id program that a user started.
	Setuid bool `json:"setuid,omitempty"`
	// Container: the process belongs to a container that shares the host's files.
	Container bool   `json:"container,omitempty"`
	Detail    string `json:"detail,omitempty"` // one clause for a person, "" where the kind says it all
}

// Facts is the running host, as far as a plan needs it.
type Facts struct {
	// Running: systemd is PID 1 and its units were read.
	Running bool
	// Units by name, aliases included.
	Units    map[string]*UnitState
	Hits     []Hit
	Warnings []string
	// Own are the units that liveupd and the session which called it run in.
	Own            []string
	SystemdVersion int
	// Users are the managers of users that run.
	Users []*UserManager
	// Host is the running kernel; the zero value where it was not asked.
	Host HostFacts
}

// Input is all that the planner decides from.
type Input struct {
	Delta  *Delta
	Old    *Tree
	New    *Tree
	Facts  *Facts
	Policy Policy
	// Restore are the steps that an update had carried out which is now taken
	// back: what they recorded is how the host was before.
	Restore []Step
	// Generated is nil where no running system was looked at, or where nothing
	// changes that generators read.
	Generated *Generated
	// Packages are the owners of paths that change, where a rule asks for them.
	Packages map[string][]string
}
